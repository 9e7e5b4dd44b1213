/** The demo on a screen: one table that is drawn over itself, or a line now and then. */
import type { DemoReport } from "../sim/demo-report.ts";
import type { FleetPool } from "../sim/fleet-pool.ts";

export interface Screen {
  /** True when tables are drawn over each other. */
  readonly live: boolean;
  /** A line that stays. */
  say(line: string): void;
  /** What changes: drawn over its last form on a terminal, else `line` alone. */
  show(table: readonly string[], line: string): void;
  /** The table that was shown last stays. */
  keep(): void;
}

/** The part of a stream that is used. */
export interface ScreenStream {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

const plainColumns = 100;

export function createScreen(stream: ScreenStream): Screen {
  let drawn = 0;
  // Up over the last table, and clear what was there.
  const erase = (): string => (drawn > 0 ? `\u001b[${drawn}A\u001b[0J` : "");
  return {
    live: stream.isTTY === true,
    say: (line) => {
      stream.write(`${erase()}${line}\n`);
      drawn = 0;
    },
    show: (table, line) => {
      if (!stream.isTTY) {
        stream.write(`${line}\n`);
        return;
      }
      const width = (stream.columns ?? plainColumns) - 1;
      const lines = table.map((row) => `${row.slice(0, width)}\n`).join("");
      stream.write(erase() + lines);
      drawn = table.length;
    },
    keep: () => {
      drawn = 0;
    },
  };
}

const barColumns = 32;

/** One line: `240/300  failed 0  hit 61.2 %  TTFT 84/310 ms  ITL 6.9/14.2 ms`. */
export function progressLine(report: DemoReport): string {
  const { requests, ended, completed, started, failed, rejected } = report;
  const counts = [
    `${ended}/${requests}`,
    `running ${started - ended}`,
    `completed ${completed}`,
    `failed ${failed}`,
    ...(rejected > 0 ? [`rejected ${rejected}`] : []),
    ...(report.tokenMismatches > 0 ? [`WRONG TOKENS ${report.tokenMismatches}`] : []),
  ];
  return `${counts.join("  ")}  ${figures(report)}`;
}

function figures(report: DemoReport): string {
  const { ttft, itl, hitRatio } = report;
  const ms = (value: number | undefined): string => (value === undefined ? "-" : short(value));
  const pair = (q: DemoReport["ttft"]): string => `${ms(q.quantile(0.5))}/${ms(q.quantile(0.99))}`;
  const hits = `hit ${(100 * hitRatio).toFixed(1)} %`;
  return `${hits}  TTFT ${pair(ttft)} ms  ITL ${pair(itl)} ms`;
}

function short(ms: number): string {
  return ms < 10 ? ms.toFixed(1) : ms.toFixed(0);
}

const head = ["pool", "role", "workers", "requests", "running", "cached blocks", "by worker"];

/** Progress bar, a row per pool, and the figures so far. */
export function progressTable(report: DemoReport, pools: readonly FleetPool[]): string[] {
  const done = Math.round((barColumns * report.ended) / Math.max(1, report.requests));
  const bar = "#".repeat(done) + ".".repeat(barColumns - done);
  const served = report.pools();
  const rows = pools.map(({ namespace, role, router, workers }, at) => {
    const holders = router.holders();
    const sum = (read: (holder: (typeof holders)[number]) => number): number =>
      holders.reduce((total, holder) => total + read(holder), 0);
    const pool = served[at];
    return [
      namespace,
      role,
      String(workers.length),
      String(pool?.requests ?? 0),
      String(sum(({ activeRequests }) => activeRequests)),
      String(sum(({ cachedBlocks }) => cachedBlocks)),
      (pool?.workers ?? []).map(({ requests }) => requests).join(" "),
    ];
  });
  return [`[${bar}] ${progressLine(report)}`, "", ...columns([head, ...rows])];
}

/** Text columns: the first two flush left, numbers flush right, the last as it is. */
function columns(rows: readonly (readonly string[])[]): string[] {
  const widths = head.map((_, at) => Math.max(...rows.map((row) => row[at]?.length ?? 0)));
  return rows.map((row) => {
    const cells = row.map((cell, at) => {
      const width = widths[at] ?? 0;
      if (at === head.length - 1) return cell;
      return at < 2 ? cell.padEnd(width) : cell.padStart(width);
    });
    return `  ${cells.join("  ")}`;
  });
}
