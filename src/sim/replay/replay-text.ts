/** A replay's result as tables for people. */
import type { PolicyReport } from "./replay-plan.ts";
import type { ReplayReport } from "./replay-report.ts";

/** A column: its head and what it shows of a policy. */
export interface Column {
  readonly head: string;
  readonly cell: (report: PolicyReport) => string;
}

export function replayText(report: ReplayReport): string {
  const { trace, pool, speed, seed, bounds } = report;
  const rows = rowsOf(report);
  const columns = columnsOf(report);
  const cells = [
    ["policy", ...columns.map(({ head }) => head)],
    ...rows.map(([name, policy]) => [name, ...columns.map(({ cell }) => cell(policy))]),
  ];
  const head =
    `${trace.name}: ${trace.requests} requests, ${pool.workers} workers of ${pool.blocks} × ` +
    `${pool.block_size} tokens, at ${speed} × its rate, seed ${seed}`;
  const floors = bounds.floor.map(
    (floor) =>
      `${percent(floor.empty_cache)} (empty cache) to ${percent(floor.infinite_cache)} ` +
      `(infinite cache) of the prompts cannot have a first token in ${floor.ttft_ms} ms`,
  );
  const hits =
    `hit ratio of one LRU cache of the same size ${share(bounds.pooled_lru_hit_ratio)}, of an ` +
    `infinite cache ${share(bounds.infinite_cache_hit_ratio)}`;
  return `${[head, "", ...aligned(cells), "", hits, ...floors, ...capacityNote(report)].join("\n")}\n`;
}

/** The policies, and the shared cache as more rows. */
export function rowsOf({ policies, bounds }: ReplayReport): [string, PolicyReport][] {
  const { shared_cache: sums, shared_cache_planned: planned } = bounds;
  const rows = Object.entries(policies);
  if (sums) rows.push(["(shared cache)", sums]);
  if (planned) rows.push(["(shared cache, planned)", planned]);
  return rows;
}

/** Capacities where they were asked for, then what explains them. */
export function columnsOf({ capacity, policies, bounds }: ReplayReport): Column[] {
  const asked = Object.values(policies)[0] ?? bounds.shared_cache ?? bounds.shared_cache_planned;
  const capacities: Column[] = (
    [
      ["cap deadline", "capacity_deadline"],
      ["cap pair", "capacity_pair"],
      ["cap prefill", "capacity_prefill"],
      ["cap classes", "capacity_scaled"],
      ["cap each class", "capacity_every_class"],
    ] as const
  )
    .filter(([, field]) => asked?.[field] !== undefined)
    .map(([head, field]) => ({
      head,
      cell: (policy) => speedText(policy[field], capacity?.speed_min ?? 0),
    }));
  return [
    ...capacities,
    { head: "deadline", cell: ({ attainment }) => share(attainment.deadline) },
    { head: "pair", cell: ({ attainment }) => share(attainment.pair) },
    { head: "hit", cell: ({ hit_ratio }) => share(hit_ratio) },
    { head: "TTFT mean", cell: ({ ttft_ms }) => ms(ttft_ms.mean) },
    { head: "p50", cell: ({ ttft_ms }) => ms(ttft_ms.p50) },
    { head: "p90", cell: ({ ttft_ms }) => ms(ttft_ms.p90) },
    { head: "p99", cell: ({ ttft_ms }) => ms(ttft_ms.p99) },
    { head: "TPOT p50", cell: ({ tpot_ms }) => ms(tpot_ms.p50) },
    { head: "p99", cell: ({ tpot_ms }) => ms(tpot_ms.p99) },
    { head: "ITL p99", cell: ({ itl_ms }) => ms(itl_ms.p99) },
    { head: "p99.9", cell: ({ itl_ms }) => ms(itl_ms.p999) },
    { head: "imbalance", cell: (policy) => number(policy.imbalance) },
    { head: "30 s", cell: (policy) => number(policy.imbalance_30s) },
    { head: "busiest", cell: (policy) => share(policy.busiest_worker.requests) },
    { head: "worst 30 s", cell: (policy) => share(policy.busiest_worker.requests_30s) },
    { head: "prefill", cell: (policy) => share(policy.prefill_utilisation) },
    { head: "prediction", cell: (policy) => number(policy.ttft_prediction_error.p50) },
    { head: "rejected", cell: ({ rejected }) => String(rejected) },
    { head: "preempted", cell: ({ preemptions }) => String(preemptions) },
    { head: "evicted", cell: (policy) => String(policy.evicted_blocks) },
    ...(asked?.decision_us === undefined
      ? []
      : [
          { head: "choice µs p50", cell: (policy: PolicyReport) => ms(policy.decision_us?.p50) },
          { head: "p99", cell: (policy: PolicyReport) => ms(policy.decision_us?.p99) },
        ]),
  ];
}

function capacityNote({ capacity, targets }: ReplayReport): string[] {
  if (!capacity) return [];
  const { share: met, speed_min, speed_max, step, prefill_speed_max, prefill_step } = capacity;
  return [
    `capacity = × the trace's rate at which ${percent(met)} of the requests offered meet TTFT ` +
      `${targets.ttft_ms} ms and ${targets.tpot_ms} ms per token; searched from ${speed_min} to ` +
      `${speed_max}, step ${step} (prefill, TTFT ${targets.prefill_ttft_ms} ms: to ` +
      `${prefill_speed_max}, step ${prefill_step})`,
  ];
}

/** Names to the left, figures to the right. */
export function aligned(cells: readonly (readonly string[])[]): string[] {
  const widths = cells[0]?.map((_, column) =>
    Math.max(...cells.map((row) => row[column]?.length ?? 0)),
  );
  return cells.map((row) =>
    row
      .map((cell, column) => {
        const width = widths?.[column] ?? 0;
        return column === 0 ? cell.padEnd(width) : cell.padStart(width);
      })
      .join("  ")
      .trimEnd(),
  );
}

export function speedText(speed: number | null | undefined, min: number): string {
  return speed === null || speed === undefined ? `< ${min}` : speed.toFixed(2);
}

function share(value: number): string {
  return value.toFixed(3);
}

export function percent(value: number): string {
  return `${Number((value * 100).toFixed(2))} %`;
}

function ms(value: number | null | undefined): string {
  if (value === null || value === undefined) return "-";
  return value < 100 ? value.toFixed(1) : value.toFixed(0);
}

function number(value: number | null): string {
  return value === null ? "-" : value.toFixed(2);
}
