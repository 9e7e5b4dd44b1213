/**
 * The commands of `tiergrid`: their flags are known at once, their bodies are loaded when they run.
 * Exit codes: 0 when done, 2 for a wrong command line or config, 1 for any other fault.
 */
import { toTiergridError } from "../base/errors.ts";
import { helpText } from "../base/flag-help.ts";
import {
  type Command,
  type Environment,
  type FlagTable,
  type Given,
  parseCommand,
  unknownVariables,
  variablesOf,
} from "../base/flags.ts";
import { didYouMean } from "../base/nearest-name.ts";
import { demoCommand } from "./flags-demo.ts";
import { explainCommand } from "./flags-explain.ts";
import { globalCommand, globalProblems } from "./flags-global.ts";
import {
  gridBuildCommand,
  gridCalibrateCommand,
  gridDiffCommand,
  gridLintCommand,
  gridShowCommand,
} from "./flags-grid.ts";
import { localCommand } from "./flags-local.ts";
import { checkPlanes } from "./flags-process.ts";
import { replayCommand } from "./flags-replay.ts";
import { simulateCommand } from "./flags-simulate.ts";
import { workerMockCommand } from "./flags-worker.ts";
import { packageVersion } from "./package-version.ts";

/** Where a command's words, its environment and its output are. */
export interface Terminal {
  readonly environment: Environment;
  readonly print: (text: string) => void;
  readonly complain: (line: string) => void;
}

interface Entry {
  readonly command: Command;
  readonly run: (argv: readonly string[], terminal: Terminal) => Promise<number>;
}

const entries: readonly Entry[] = [
  entry(globalCommand, async (given) => (await import("./global.ts")).run(given), globalProblems),
  entry(localCommand, async (given) => (await import("./local.ts")).run(given)),
  entry(workerMockCommand, async (given) => (await import("./worker.ts")).run(given)),
  entry(demoCommand, async (given) => (await import("./demo.ts")).run(given)),
  entry(simulateCommand, async (given, print) => (await import("./simulate.ts")).run(given, print)),
  entry(replayCommand, async (given, print) => (await import("./replay.ts")).run(given, print)),
  entry(gridShowCommand, async (given, print) =>
    (await import("./grid.ts")).showGrid(given, print),
  ),
  entry(gridLintCommand, async (given, print) =>
    (await import("./grid-lint.ts")).runGridLint(given, print),
  ),
  entry(gridBuildCommand, async (given, print) =>
    (await import("./grid-build.ts")).runGridBuild(given, print),
  ),
  entry(gridCalibrateCommand, async (given, print) =>
    (await import("./grid-calibrate.ts")).runGridCalibrate(given, print),
  ),
  entry(gridDiffCommand, async (given, print) =>
    (await import("./grid-diff.ts")).runGridDiff(given, print),
  ),
  entry(explainCommand, async (given, print) =>
    (await import("./grid.ts")).explainPool(given, print),
  ),
];

/** Every command, for the docs. */
export const commands: readonly Command[] = entries.map(({ command }) => command);

/** Variables that are read by deployment checks, outside of the flag tables. */
const otherVariables = ["TIERGRID_TERMINATION_GRACE_SECS", "TIERGRID_TRACE"];

const helpWords: readonly string[] = ["--help", "-h", "help"];

/** Runs the command that `argv` names; answers the exit code and never rejects. */
export async function runCommand(argv: readonly string[], terminal: Terminal): Promise<number> {
  const [first] = argv;
  if (first === "--version" || first === "-V") {
    terminal.print(`${packageVersion()}\n`);
    return 0;
  }
  if (first === undefined || helpWords.includes(first)) {
    terminal.print(overview(commands));
    return first === undefined ? 2 : 0;
  }
  for (const { command, run } of entries) {
    const words = command.name.split(" ").slice(1);
    if (words.every((word, at) => argv[at] === word)) {
      return await run(argv.slice(words.length), terminal);
    }
  }
  const group = commands.filter(({ name }) => name.startsWith(`tiergrid ${first} `));
  if (group.length > 0 && helpWords.includes(argv[1] ?? "")) {
    terminal.print(overview(group));
    return 0;
  }
  return complainUnknown(argv, terminal);
}

function entry<Table extends FlagTable>(
  command: Command<Table>,
  body: (given: Given<Table>, print: Terminal["print"]) => Promise<number>,
  problemsOf: (options: Given<Table>["options"]) => readonly string[] = () => [],
): Entry {
  const run = async (argv: readonly string[], terminal: Terminal): Promise<number> => {
    const parsed = parseCommand(command, argv, terminal.environment);
    if (parsed.type === "help") {
      terminal.print(helpText(command));
      return 0;
    }
    const planes = checkPlanes(terminal.environment);
    const unknown = unknownVariables(terminal.environment, knownVariables());
    for (const warning of [...parsed.warnings, ...unknown, ...planes.notices]) {
      terminal.complain(`warning: ${warning}`);
    }
    const own = parsed.type === "invalid" ? parsed.problems : problemsOf(parsed.options);
    const problems = [...own, ...planes.problems];
    if (parsed.type === "options" && problems.length === 0) {
      return await body(parsed, terminal.print).catch((cause) => failed(cause, terminal));
    }
    for (const problem of problems) terminal.complain(`error: ${problem}`);
    terminal.complain(`See ${command.name} --help`);
    return 2;
  };
  return { command, run };
}

function failed(cause: unknown, terminal: Terminal): number {
  const error = toTiergridError(cause);
  const invalid = error.code === "config_invalid";
  for (const line of error.message.split("\n")) terminal.complain(`error: ${line}`);
  if (error.code === "internal_error" && cause instanceof Error) {
    terminal.complain(cause.stack ?? "");
  }
  return invalid ? 2 : 1;
}

function complainUnknown(argv: readonly string[], terminal: Terminal): number {
  const typed = argv.filter((word) => !word.startsWith("-")).join(" ");
  const known = entries.map(({ command }) => command.name.slice("tiergrid ".length));
  const group = known.filter((name) => name.startsWith(`${argv[0]} `));
  const hint = group.length > 0 ? ` (${group.join(", ")})` : didYouMean(typed, known);
  terminal.complain(`error: unknown command ${JSON.stringify(typed.slice(0, 80))}${hint}`);
  terminal.complain("See tiergrid --help");
  return 2;
}

function knownVariables(): ReadonlySet<string> {
  const names = entries.flatMap(({ command }) => variablesOf(command.flags));
  return new Set([...names, ...otherVariables]);
}

function overview(shown: readonly Command[]): string {
  const width = Math.max(...shown.map(({ name }) => name.length));
  const rows = shown.map(({ name, summary }) => {
    const sentence = /^.*?[.:](?=\s|$)/.exec(summary)?.[0] ?? summary;
    return `  ${name.padEnd(width)}  ${sentence.slice(0, -1)}`;
  });
  const head = "Tiergrid routes LLM requests: an SLA grid chooses a pool, KV overlap a worker.";
  const foot =
    "tiergrid <command> --help explains a command; tiergrid --version prints the version.";
  return `${head}\n\nCommands\n${rows.join("\n")}\n\n${foot}\n`;
}
