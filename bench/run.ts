/**
 * Runs the benches and prints what came out: a table for people, `--json` for machines.
 *
 *   npm run bench                     every bench but `soak`, full size
 *   npm run bench -- soak             memory under churn, 36 minutes
 *   npm run bench -- hash index       only these
 *   npm run bench -- --quick --json   small sizes, JSON on stdout
 *   npm run bench -- stream --rows share,first   only these groups of rows; `stream` has groups
 *   npm run bench:index -- --json     one bench; its figures, one line of JSON
 *
 * Each row sets our code against a baseline that ships in `bench/`, both in the same run; only the
 * ratio carries over to another machine.
 */
import { arch, cpus, loadavg } from "node:os";
import { parseArgs } from "node:util";
import type { BenchOptions, BenchRow } from "./bench-row.ts";

const benches = {
  hash: () => import("./hash-bench.ts"),
  index: () => import("./index-bench.ts"),
  decision: () => import("./decision-bench.ts"),
  stream: () => import("./stream-bench.ts"),
  sse: () => import("./sse-bench.ts"),
  share: () => import("./share-bench.ts"),
  hashFirst: () => import("./hash-first-bench.ts"),
  soak: () => import("./soak-bench.ts"),
} as const;
/** Runs only when it is named: it takes 36 minutes. */
const longBench: BenchName = "soak";

interface Bench {
  run(options: BenchOptions): Promise<BenchRow[]>;
  /** The rows' figures under the names that `bench:<name> --json` prints. */
  figures?(rows: readonly BenchRow[]): object;
}

type BenchName = keyof typeof benches;

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      quick: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
      seed: { type: "string", default: "1" },
      rows: { type: "string", default: "" },
      figures: { type: "boolean", default: false },
    },
  });
  const names =
    positionals.length > 0
      ? positionals
      : Object.keys(benches).filter((name) => name !== longBench);
  const rows: BenchRow[] = [];
  let summary: Bench["figures"];
  for (const name of names) {
    if (!isBench(name)) {
      console.error(`no bench '${name}'; there are: ${Object.keys(benches).join(", ")}`);
      process.exitCode = 2;
      return;
    }
    console.error(`${name} …`);
    const bench: Bench = await benches[name]();
    summary = bench.figures ?? summary;
    const groups = values.rows === "" ? undefined : values.rows.split(",");
    rows.push(...(await bench.run({ quick: values.quick, seed: Number(values.seed), groups })));
  }
  const machine = {
    node: process.version,
    arch: arch(),
    cpu: cpus()[0]?.model ?? "unknown",
    cores: cpus().length,
    load: loadavg()[0],
  };
  if (values.figures && values.json && summary) {
    console.log(JSON.stringify(summary(rows)));
    return;
  }
  console.log(values.json ? JSON.stringify({ machine, rows }) : tableOf(rows, machine));
}

function isBench(name: string): name is BenchName {
  return Object.hasOwn(benches, name);
}

function tableOf(rows: readonly BenchRow[], machine: object): string {
  const head = ["id", "unit", "baseline", "ours", "ratio", "target", "note"];
  const cells = rows.map((row) => [
    row.id,
    row.unit,
    figure(row.baseline),
    figure(row.ours),
    `${figure(row.ratio)}x`,
    row.target,
    row.note ?? "",
  ]);
  const widths = head.map((title, column) =>
    Math.max(title.length, ...cells.map((row) => (row[column] ?? "").length)),
  );
  const line = (row: readonly string[]): string =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join("  ")
      .trimEnd();
  return [line(head), ...cells.map(line), "", JSON.stringify(machine)].join("\n");
}

/** Three significant digits, without an exponent below a million. */
function figure(value: number): string {
  if (!Number.isFinite(value)) return "-";
  const text = value.toPrecision(3);
  return text.includes("e") ? Math.round(Number(text)).toString() : text;
}

await main();
