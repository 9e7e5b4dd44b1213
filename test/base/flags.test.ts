import fc from "fast-check";
import { expect, expectTypeOf, it } from "vitest";
import { flagDocs, helpText } from "../../src/base/flag-help.ts";
import type { Command, FlagTable, OptionsOf } from "../../src/base/flags.ts";
import { parseCommand, unknownVariables, variablesOf } from "../../src/base/flags.ts";

const flags = {
  config: {
    flag: "config",
    env: "T_CONFIG",
    type: "string",
    required: true,
    group: "A",
    help: "C.",
  },
  port: {
    flag: "port",
    env: "T_PORT",
    olderFlags: ["listen-port"],
    olderEnv: ["T_LISTEN"],
    type: "integer",
    min: -1,
    max: 65535,
    default: 9090,
    group: "Server",
    help: "Port.",
  },
  ratio: { flag: "ratio", type: "number", above: 0, default: 0.5, group: "A", help: "R." },
  limit: {
    flag: "limit",
    env: "T_LIMIT",
    type: "integer",
    min: 1,
    default: null,
    group: "A",
    help: "",
  },
  threshold: {
    flag: "threshold",
    type: "integer",
    nullable: true,
    default: 7,
    group: "A",
    help: "",
  },
  events: {
    flag: "events",
    env: "T_EVENTS",
    olderFlags: ["kv-events"],
    type: "boolean",
    default: true,
    group: "A",
    help: "Events.",
  },
  mode: {
    flag: "mode",
    env: "T_MODE",
    type: "choice",
    choices: ["grid", "live"],
    default: "grid",
    group: "A",
    help: "How.",
  },
  hidden: { env: "T_HIDDEN", type: "string", default: null, group: "A", help: "Env only." },
} as const satisfies FlagTable;

const command = {
  name: "tiergrid test",
  summary: "Tests the flags.",
  flags,
  examples: [{ does: "run it", line: "tiergrid test --config a.json" }],
} satisfies Command<typeof flags>;

const parse = (line: string, environment: Record<string, string> = {}) =>
  parseCommand(command, line.split(" ").filter(Boolean), environment);

function options(line: string, environment: Record<string, string> = {}) {
  const parsed = parse(`--config c ${line}`, environment);
  if (parsed.type !== "options") throw new Error(JSON.stringify(parsed));
  return parsed;
}

function problems(line: string, environment: Record<string, string> = {}) {
  const parsed = parse(line, environment);
  return parsed.type === "invalid" ? parsed.problems : [];
}

it("derives the type of every option from its row", () => {
  expectTypeOf<OptionsOf<typeof flags>>().toEqualTypeOf<{
    readonly config: string;
    readonly port: number;
    readonly ratio: number;
    readonly limit: number | null;
    readonly threshold: number | null;
    readonly events: boolean;
    readonly mode: "grid" | "live";
    readonly hidden: string | null;
  }>();
});

it("gives defaults to what is not given", () => {
  expect(options("").options).toEqual({
    config: "c",
    port: 9090,
    ratio: 0.5,
    limit: null,
    threshold: 7,
    events: true,
    mode: "grid",
    hidden: null,
  });
});

it("lets a flag beat the environment, and the environment the default", () => {
  expect(options("", { T_PORT: "1" }).options.port).toBe(1);
  expect(options("--port 2", { T_PORT: "1" }).options.port).toBe(2);
  expect(options("--port=2 --port=3").options.port).toBe(3);
});

it("keeps what each source gave by itself", () => {
  const parsed = options("--port 2 --no-events", { T_PORT: "1", T_MODE: "live" });
  expect(parsed.flags).toEqual({ config: "c", port: 2, events: false });
  expect(parsed.environment).toEqual({ port: 1, mode: "live" });
});

it("takes empty text as not given", () => {
  expect(options("--port=", { T_PORT: "  " }).options.port).toBe(9090);
  expect(problems("--config=")).toEqual(["--config or T_CONFIG must be set"]);
});

it("reads none as a value only where the row allows it", () => {
  expect(options("--threshold none", { T_LIMIT: "3" }).options).toMatchObject({
    threshold: null,
    limit: 3,
  });
  expect(options("--limit null", { T_LIMIT: "3" }).options.limit).toBeNull();
  expect(problems("--config c --port none")).toEqual([
    '--port: expected an integer from -1 to 65535, got "none"',
  ]);
});

it("reads every spelling of a boolean and its no- form", () => {
  for (const text of ["true", "1", "YES", "On"]) {
    expect(options("", { T_EVENTS: text }).options.events).toBe(true);
  }
  for (const text of ["false", "0", "no", "OFF"]) {
    expect(options("", { T_EVENTS: text }).options.events).toBe(false);
  }
  expect(options("--no-kv-events").options.events).toBe(false);
  expect(options("--events=false").options.events).toBe(false);
  expect(problems("--config c --no-events=true")).toEqual(["--no-events takes no value"]);
});

it("warns once about each older spelling", () => {
  const parsed = options("--listen-port 1 --listen-port 2 --kv-events", { T_LISTEN: "5" });
  expect(parsed.options.port).toBe(2);
  expect(parsed.warnings).toEqual([
    "--listen-port is an older spelling of --port",
    "--kv-events is an older spelling of --events",
    "T_LISTEN is an older name of T_PORT",
  ]);
});

it("accepts range ends and refuses what lies beyond", () => {
  expect(options("--port -1").options.port).toBe(-1);
  expect(options("--port 65535").options.port).toBe(65535);
  for (const text of ["-2", "65536", "1.5", "0x10", "1e3", "9007199254740993", "abc"]) {
    expect(problems(`--config c --port ${text}`)).toHaveLength(1);
  }
  for (const text of ["0", "-1", "NaN", "Infinity", "1e999"]) {
    expect(problems(`--config c --ratio ${text}`)).toHaveLength(1);
  }
  expect(options("--ratio 2.5e-1").options.ratio).toBe(0.25);
});

it("reports all problems at once", () => {
  expect(problems("--prot 1 --ratio x stray --mode", { T_PORT: "y", T_MODE: "fast" })).toEqual([
    "unknown flag --prot (did you mean --port?)",
    'unexpected argument "stray"',
    '--ratio: expected a number above 0, got "x"',
    "--mode needs a value: one of grid, live",
    'T_PORT: expected an integer from -1 to 65535, got "y"',
    'T_MODE: expected one of grid, live, got "fast"',
    "--config or T_CONFIG must be set",
  ]);
});

it("asks for missing operands and hands over the rest", () => {
  const withOperands = { ...command, operands: ["file"] };
  const missing = parseCommand(withOperands, ["--config", "c"], {});
  expect(missing).toMatchObject({ type: "invalid", problems: ["<file> is missing"] });
  const given = parseCommand(withOperands, ["--config", "c", "--", "--odd"], {});
  expect(given).toMatchObject({ type: "options", operands: ["--odd"] });
});

it("finds the unknown names under TIERGRID_ and suggests the known ones", () => {
  const known = new Set([...variablesOf(flags), "TIERGRID_ROLE"]);
  const environment = { TIERGRID_ROLL: "x", TIERGRID_ROLE: "y", HOME: "z" };
  expect(unknownVariables(environment, known)).toEqual([
    "unknown environment variable TIERGRID_ROLL (did you mean TIERGRID_ROLE?)",
  ]);
});

it("takes every current name of a variable without a warning, the first one first", () => {
  const two = {
    servers: {
      env: "T_A",
      otherEnv: ["T_B"],
      type: "string",
      default: "d",
      group: "A",
      help: "S.",
    },
  } as const satisfies FlagTable;
  const read = (environment: Record<string, string>) =>
    parseCommand({ name: "t", summary: "", flags: two, examples: [] }, [], environment);
  expect(read({ T_B: "b" })).toMatchObject({ options: { servers: "b" }, warnings: [] });
  expect(read({ T_A: "a", T_B: "b" })).toMatchObject({ options: { servers: "a" }, warnings: [] });
});

it("writes help with usage, examples, groups, defaults and environment", () => {
  const text = helpText(command);
  expect(parse("-h")).toEqual({ type: "help" });
  expect(text).toContain("Usage: tiergrid test [flags]");
  expect(text).toContain("# run it\n  tiergrid test --config a.json");
  expect(text).toContain("Server\n  --port <integer>  [T_PORT]\n");
  expect(text).toContain("Port. An integer from -1 to 65535. Default: 9090.");
  expect(text).toContain("--[no-]events  [T_EVENTS]");
  expect(text.split("\n").every((line) => line.length <= 100)).toBe(true);
});

it("gives a docs row for every row of the table", () => {
  const rows = flagDocs(flags);
  expect(rows).toHaveLength(Object.keys(flags).length);
  expect(rows.find((row) => row.flag === "--port")).toMatchObject({
    environment: "T_PORT",
    older: "--listen-port, T_LISTEN",
    default: "9090",
  });
});

it("never throws, whatever is typed", () => {
  const words = fc.constantFrom(
    "--port",
    "--no-events",
    "--mode=live",
    "--",
    "-x",
    "9",
    "=",
    "--=",
  );
  fc.assert(
    fc.property(fc.array(fc.oneof(words, fc.string())), (argv) => {
      expect(["help", "invalid", "options"]).toContain(parseCommand(command, argv, {}).type);
    }),
  );
});
