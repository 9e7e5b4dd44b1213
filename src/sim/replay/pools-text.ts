/** A comparison of pool layouts as JSON and as a table for people. */
import { stepOf } from "./capacity.ts";
import type { PoolsPlan, SelectorReport } from "./pools-measure.ts";
import { aligned, percent, speedText } from "./replay-text.ts";

/** The whole result, as `--json` prints it. */
export interface PoolsReport {
  readonly name: string;
  readonly role: string;
  readonly gpus: number;
  readonly trace: { readonly name: string; readonly requests: number; readonly spread_ms: number };
  readonly seed: number;
  readonly speed: number;
  readonly classes: readonly ClassRow[];
  readonly capacity?: {
    readonly share: number;
    readonly speed_min: number;
    readonly speed_max: number;
    readonly step: number;
  };
  readonly selectors: readonly SelectorReport[];
}

interface ClassRow {
  readonly share: number;
  readonly ttft_base_ms: number;
  readonly ttft_ms_per_token: number;
  readonly itl_ms: number | null;
}

/** A column: its head and what it shows of a choice. */
export interface PoolsColumn {
  readonly head: string;
  readonly cell: (report: SelectorReport) => string;
}

export function poolsReport(
  { file, requests, spreadMs, seed, speed, capacity }: PoolsPlan,
  traceName: string,
  selectors: readonly SelectorReport[],
): PoolsReport {
  return {
    name: file.name,
    role: file.role,
    gpus: file.gpus,
    trace: { name: traceName, requests: requests.length, spread_ms: spreadMs },
    seed,
    speed,
    classes: file.classes.map(({ share, baseMs, msPerInputToken, itlMs }) => ({
      share,
      ttft_base_ms: baseMs,
      ttft_ms_per_token: msPerInputToken,
      itl_ms: itlMs ?? null,
    })),
    ...(capacity && {
      capacity: {
        share: capacity.share,
        speed_min: capacity.speedMin,
        speed_max: capacity.speedMax,
        step: stepOf(capacity),
      },
    }),
    selectors,
  };
}

export function poolsText(report: PoolsReport): string {
  const { capacity } = report;
  const columns = poolsColumns(report);
  const layouts = [...new Set(report.selectors.map(({ layout }) => layout))];
  const tables = layouts.flatMap((layout) => {
    const rows = report.selectors.filter((selector) => selector.layout === layout);
    const cells = [
      [layout, ...columns.map(({ head }) => head)],
      ...rows.map((row) => [row.selector, ...columns.map(({ cell }) => cell(row))]),
    ];
    return ["", ...aligned(cells)];
  });
  const note = capacity
    ? [
        "",
        `capacity = × the trace's rate at which ${percent(capacity.share)} of the requests offered ` +
          `meet their class; searched from ${capacity.speed_min} to ${capacity.speed_max}, ` +
          `step ${Number(capacity.step.toFixed(4))}`,
      ]
    : [];
  return `${[headLine(report), ...classLines(report), ...tables, ...note].join("\n")}\n`;
}

export function headLine({ trace, role, gpus, speed, seed }: PoolsReport): string {
  return (
    `${trace.name}: ${trace.requests} requests, ${gpus} GPUs for ${role}, at ${speed} × its rate, ` +
    `seed ${seed}`
  );
}

export function classLines({ classes }: PoolsReport): string[] {
  return classes.map(({ share, ttft_base_ms, ttft_ms_per_token, itl_ms }, at) => {
    const slope = ttft_ms_per_token > 0 ? ` + ${ttft_ms_per_token} ms per token` : "";
    const itl = itl_ms === null ? "" : `, then ${itl_ms} ms a token`;
    return `class ${at}, ${percent(share)}: first token in ${ttft_base_ms} ms${slope}${itl}`;
  });
}

export function poolsColumns({ capacity, role }: PoolsReport): PoolsColumn[] {
  const searched: PoolsColumn[] = capacity
    ? [
        { head: "capacity", cell: (row) => speedText(row.capacity, capacity.speed_min) },
        {
          head: "each class",
          cell: (row) => speedText(row.capacity_every_class, capacity.speed_min),
        },
        { head: "classes there", cell: (row) => shares(row.classes_at_capacity ?? []) },
      ]
    : [];
  const decoding: PoolsColumn[] = [
    { head: "TPOT p50", cell: ({ tpot_ms }) => ms(tpot_ms.p50) },
    { head: "p99", cell: ({ tpot_ms }) => ms(tpot_ms.p99) },
  ];
  return [
    ...searched,
    { head: "met", cell: ({ attainment }) => attainment.toFixed(3) },
    { head: "by class", cell: ({ classes }) => shares(classes) },
    { head: "TTFT mean", cell: ({ ttft_ms }) => ms(ttft_ms.mean) },
    { head: "p99", cell: ({ ttft_ms }) => ms(ttft_ms.p99) },
    ...(role === "prefill" ? [] : decoding),
    { head: "hit", cell: ({ hit_ratio }) => hit_ratio.toFixed(3) },
    {
      head: "pools' shares",
      cell: ({ pools }) =>
        pools.map(({ label, share }) => `${label} ${share.toFixed(2)}`).join(" "),
    },
  ];
}

function shares(values: readonly number[]): string {
  return values.map((value) => value.toFixed(2)).join(" ");
}

function ms(value: number | null): string {
  return value === null ? "-" : value.toFixed(value < 100 ? 1 : 0);
}
