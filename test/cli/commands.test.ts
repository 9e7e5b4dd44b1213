import { expect, it } from "vitest";
import { helpText } from "../../src/base/flag-help.ts";
import { parseCommand, variablesOf } from "../../src/base/flags.ts";
import { commands, runCommand } from "../../src/cli/commands.ts";
import { globalCommand, globalProblems } from "../../src/cli/flags-global.ts";
import { kvRouterFlags } from "../../src/cli/flags-kv-router.ts";
import { localCommand } from "../../src/cli/flags-local.ts";
import { mockEngineFlags, workerMockCommand } from "../../src/cli/flags-worker.ts";
import { kvRouterSources } from "../../src/cli/kv-router-sources.ts";
import { mockEngineOptionsOf } from "../../src/cli/mock-engine-options.ts";
import {
  defaultKvRouterConfig,
  fileKeyOf,
  loadKvRouterConfig,
} from "../../src/config/kv-router-config.ts";
import { mockEngineOptions, readMockEngineConfig } from "../../src/worker/mock-engine-config.ts";

const demoConfig = "pool-configs/demo.json";

async function run(line: string, environment: Record<string, string> = {}) {
  const printed: string[] = [];
  const complaints: string[] = [];
  const code = await runCommand(line.split(" ").filter(Boolean), {
    environment,
    print: (text) => void printed.push(text),
    complain: (text) => void complaints.push(text),
  });
  return { code, printed: printed.join(""), complaints };
}

it("shows the commands, their help and the version", async () => {
  const overview = await run("--help");
  expect(overview.code).toBe(0);
  for (const { name } of commands) expect(overview.printed).toContain(`  ${name}`);
  expect((await run("--version")).printed).toMatch(/^\d+\.\d+\.\d+\n$/);
  expect((await run("worker mock --help")).printed).toContain(
    "Usage: tiergrid worker mock [flags]",
  );
  expect((await run("")).code).toBe(2);
  const group = await run("grid --help");
  expect(group.code).toBe(0);
  for (const { name } of commands) {
    expect(group.printed.includes(`  ${name} `)).toBe(name.startsWith("tiergrid grid "));
  }
});

it("names what is missing and exits 2", async () => {
  const { code, complaints } = await run("global");
  expect(code).toBe(2);
  expect(complaints).toEqual([
    "error: --config or DYN_GLOBAL_ROUTER_CONFIG must be set",
    "error: --model-name or DYN_GLOBAL_ROUTER_MODEL_NAME must be set",
    "See tiergrid global --help",
  ]);
});

it("suggests the command that was meant", async () => {
  expect((await run("gobal")).complaints[0]).toBe(
    'error: unknown command "gobal" (did you mean global?)',
  );
  expect((await run("grid")).complaints[0]).toBe(
    'error: unknown command "grid" (grid show, grid lint, grid build, grid calibrate, grid diff)',
  );
});

it("warns of unknown TIERGRID_ names, but not of those of other commands", async () => {
  const environment = { TIERGRID_ROLE: "decode", TIERGRID_ACEPT_TIMEOUT_MS: "1" };
  const { complaints } = await run(`grid lint ${demoConfig}`, environment);
  expect(complaints).toEqual([
    "warning: unknown environment variable TIERGRID_ACEPT_TIMEOUT_MS" +
      " (did you mean TIERGRID_ACCEPT_TIMEOUT_MS?)",
  ]);
});

it("refuses transports it does not have", async () => {
  const refused = await run(`grid lint ${demoConfig}`, { DYN_REQUEST_PLANE: "tcp" });
  expect(refused.code).toBe(2);
  expect(refused.complaints[0]).toBe('error: DYN_REQUEST_PLANE: only nats is supported, got "tcp"');
  const noticed = await run(`grid lint ${demoConfig}`, {
    DYN_EVENT_PLANE: "nats",
    ETCD_ENDPOINTS: "x",
  });
  expect([noticed.code, noticed.complaints.length]).toEqual([0, 2]);
});

it("lints, shows and explains the demo's grids", async () => {
  const lint = await run(`grid lint --strict-config ${demoConfig}`);
  expect([lint.code, lint.complaints]).toEqual([0, []]);
  const shown = await run(`grid show ${demoConfig}`);
  expect(shown.printed).toContain("prefill-fast");
  expect(shown.printed).toContain("decode-bulk");
  const tight = await run(`explain ${demoConfig} --tokens 1000 --ttft-target-ms 1`);
  expect(tight.printed).toMatch(/^prefill: pool \d prefill-fast\n {2}isl 1000 \(token_count\)/);
  const json = await run(`explain ${demoConfig} --tokens 1000 --json`);
  expect(JSON.parse(json.printed)).toMatchObject([
    { role: "prefill", grid: { cell: "0.1", grid_pool: 0 }, result: { namespace: "prefill-fast" } },
    { role: "decode", axes: [{ name: "context_length", cell_low: 1024, clamped: "low" }, {}] },
  ]);
});

it("reports a config file that cannot be read with exit code 2", async () => {
  const { code, complaints } = await run("grid lint /nonexistent.json");
  expect(code).toBe(2);
  expect(complaints.join("\n")).toMatch(/^error: [\s\S]*nonexistent/);
});

it("opens beyond loopback only when told that nobody authenticates", () => {
  const problems = (line: string) => {
    const parsed = parseCommand(globalCommand, `--config c --model-name m ${line}`.split(" "), {});
    return parsed.type === "options" ? globalProblems(parsed.options) : ["invalid"];
  };
  expect(problems("--http-host 127.0.0.1")).toEqual([]);
  expect(problems("--http-host ::1")).toEqual([]);
  expect(problems("--http-host 0.0.0.0")).toHaveLength(1);
  expect(problems("--http-host 0.0.0.0 --insecure")).toEqual([]);
});

it("has the defaults of the KV router config in its flags", () => {
  const { overlapScoreWeight, ...fields } = kvRouterFlags;
  expect(overlapScoreWeight.default).toBeNull();
  for (const [name, row] of Object.entries(fields)) {
    expect(row.default, name).toBe(defaultKvRouterConfig[name as keyof typeof fields]);
  }
});

it("hands each source of KV routing to the config loader under its file keys", () => {
  const line = "--endpoint a.b.c --kv-overlap-score-weight 0 --router-temperature 0.5";
  const environment = { DYN_ROUTER_TEMPERATURE: "0.1", DYN_ROUTER_QUEUE_THRESHOLD: "none" };
  const parsed = parseCommand(localCommand, line.split(" "), environment);
  if (parsed.type !== "options") throw new Error(JSON.stringify(parsed));
  const sources = kvRouterSources(parsed);
  expect(sources).toEqual([
    { router_temperature: 0.1, router_queue_threshold: null },
    { overlap_score_weight: 0, router_temperature: 0.5 },
  ]);
  const loaded = loadKvRouterConfig([{ router_temperature: 9 }, ...sources]);
  expect(loaded).toMatchObject({
    ok: true,
    config: { routerTemperature: 0.5, prefillLoadScale: 0, overlapScoreCredit: 0 },
  });
});

it("has the defaults of the mock engine in its flags", () => {
  const options: Readonly<Record<string, { readonly default: unknown }>> = mockEngineOptions;
  for (const [name, row] of Object.entries(mockEngineFlags)) {
    // The engine's own range is for traces; the shipped model writes readable tokens.
    if (name === "tokenIdMin" || name === "tokenIdCount") continue;
    expect(row.default, name).toBe(options[fileKeyOf(name)]?.default);
  }
});

it("lets flags beat the engine's file, and leaves the rest of it alone", () => {
  const line = "--role prefill --block-size 32 --max-num-seqs none --no-enable-prefix-caching";
  const parsed = parseCommand(workerMockCommand, line.split(" "), {});
  if (parsed.type !== "options") throw new Error(JSON.stringify(parsed));
  const options = mockEngineOptionsOf(parsed, { block_size: 16, watermark: 0 });
  expect(options).toEqual({
    block_size: 32,
    watermark: 0,
    max_num_seqs: null,
    enable_prefix_caching: false,
    token_id_min: 256,
    token_id_count: 1789,
    worker_type: "prefill",
  });
  expect(readMockEngineConfig(options)).toMatchObject({ blockSize: 32, workerType: "prefill" });
});

it("spells no flag or variable twice within a command, and shows all of them in the help", () => {
  for (const command of commands) {
    const rows = Object.values(command.flags);
    const flags = rows.flatMap((row) => [row.flag ?? [], row.olderFlags ?? []].flat());
    const variables = variablesOf(command.flags);
    expect(new Set(flags).size, command.name).toBe(flags.length);
    expect(new Set(variables).size, command.name).toBe(variables.length);
    for (const row of rows) expect(helpText(command)).toContain(row.flag ?? row.env ?? "?");
  }
});
