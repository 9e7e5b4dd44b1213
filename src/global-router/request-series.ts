/**
 * The series that every request of the global router counts in, held per pool, cell and role:
 * looking one up by its labels costs about a microsecond, and a request counts in fifteen of them.
 *
 *   ActiveConfig ──▶ LivePool ──▶ { accept, selections by reason }
 *                └─▶ role     ──▶ { selection time, attempts }, cells
 *
 * Held per config: series of a pool that a reload drops are removed, so those of a pool that comes
 * back are looked up anew.
 */
import type { Role } from "../core/sla-grid.ts";
import { type CounterSeries, type HistogramSeries, held } from "../runtime/metrics.ts";
import type { SlaMeasure } from "./cell-latency.ts";
import { createCellSeries, type FindCellSeries } from "./cell-series.ts";
import type { LiveRecord, PoolDecision } from "./pool-decision.ts";
import type { ActiveConfig, LivePool } from "./pool-health.ts";
import type { GlobalMetrics } from "./router-metrics.ts";

export interface PoolSeries {
  readonly acceptSeconds: HistogramSeries;
  selections(reason: string): CounterSeries;
  /** Questions for a quote, by how they ended. */
  quotes(outcome: string): CounterSeries;
}

export interface RequestSeries {
  ofPool(active: ActiveConfig, pool: LivePool): PoolSeries;
  readonly ofCell: FindCellSeries;
  selectionSeconds(role: Role): HistogramSeries;
  liveChoices(role: Role): (outcome: string) => CounterSeries;
  liveSeconds(role: Role): HistogramSeries;
  /** Where a target came from. */
  targetSource(target: SlaMeasure): (source: string) => CounterSeries;
  attempts(role: Role): HistogramSeries;
  /** Lifecycle notices that changed an entry, by kind. */
  notices(kind: string): CounterSeries;
  /** Owners' `closed` notices, by what became of them. */
  closed(state: string): CounterSeries;
  /** Bookings freed, by cause. */
  freed(by: string): CounterSeries;
  readonly durationSeconds: HistogramSeries;
}

export function createRequestSeries(metrics: GlobalMetrics, model: string): RequestSeries {
  const byConfig = new WeakMap<ActiveConfig, Map<LivePool, PoolSeries>>();
  const seriesOf = ({ role, namespace: pool }: LivePool): PoolSeries => ({
    acceptSeconds: metrics.histogram("tiergrid_pool_accept_seconds", { role, pool }),
    selections: held((reason) =>
      metrics.counter("tiergrid_pool_selections_total", { model, role, pool, reason }),
    ),
    quotes: held((outcome) =>
      metrics.counter("tiergrid_pool_quotes_total", { role, pool, outcome }),
    ),
  });
  return {
    ofPool(active, pool) {
      const pools = byConfig.get(active) ?? new Map<LivePool, PoolSeries>();
      if (pools.size === 0) byConfig.set(active, pools);
      const known = pools.get(pool) ?? seriesOf(pool);
      if (!pools.has(pool)) pools.set(pool, known);
      return known;
    },
    ofCell: createCellSeries(metrics),
    selectionSeconds: held((role: Role) =>
      metrics.histogram("tiergrid_selection_seconds", { role }),
    ),
    liveChoices: held((role: Role) =>
      held((outcome: string) => metrics.counter("tiergrid_live_choices_total", { role, outcome })),
    ),
    liveSeconds: held((role: Role) => metrics.histogram("tiergrid_live_choice_seconds", { role })),
    targetSource: held((target: SlaMeasure) =>
      held((source: string) => {
        const labels = { target, source: sourceLabel(source) };
        return metrics.counter("tiergrid_sla_target_source_total", labels);
      }),
    ),
    attempts: held((role: Role) => metrics.histogram("tiergrid_attempts_per_request", { role })),
    notices: held((kind) =>
      metrics.counter("tiergrid_lifecycle_notices_total", { kind, state: "applied" }),
    ),
    closed: held((state) =>
      metrics.counter("tiergrid_lifecycle_notices_total", { kind: "closed", state }),
    ),
    freed: held((by) => metrics.counter("tiergrid_bookings_freed_total", { by })),
    durationSeconds: metrics.histogram("dynamo_component_request_duration_seconds"),
  };
}

/** Counts one live decision, `durationMs` after its request was read. */
export function countSelection(
  series: RequestSeries,
  metrics: GlobalMetrics,
  decision: PoolDecision,
  durationMs: number,
): void {
  const { role, axes, override } = decision.selection;
  series.ofCell(decision).selections.add(1);
  for (const { axis, clamped, source } of axes) {
    if (clamped !== null) {
      const labels = { role, axis: axis.name, side: clamped };
      metrics.counter("tiergrid_axis_clamped_total", labels).add(1);
    }
    if (axis.name !== "ttft" && axis.name !== "itl") continue;
    series.targetSource(axis.name)(source).add(1);
  }
  if (override) {
    metrics.counter("tiergrid_priority_override_total", { role, rule: override.rule }).add(1);
  }
  series.selectionSeconds(role).observe(durationMs / 1000);
}

/** Counts what a live request's quotes came to. */
export function countLive(
  series: RequestSeries,
  { active, role: { role, live } }: PoolDecision,
  { quotes, outcome, tookMs }: LiveRecord,
): void {
  for (const { pool: index, outcome: ended } of quotes) {
    const pool = live[index];
    if (pool) series.ofPool(active, pool).quotes(ended).add(1);
  }
  series.liveChoices(role)(outcome).add(1);
  series.liveSeconds(role).observe(tookMs / 1000);
}

/** Header names are many and alike; one label value stands for all. */
function sourceLabel(source: string): string {
  if (source === "nvext.router") return "nvext_router";
  return source.startsWith("x-") ? "header" : source;
}
