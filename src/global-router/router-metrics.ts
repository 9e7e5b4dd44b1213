/** What the global router counts: selections, attempts, pools, its own requests. */
import type { Clock } from "../base/clock.ts";
import { type AttemptFailure, type AttemptVia, attemptFailureOf } from "../core/pool-choice.ts";
import { cellText, type Role, type SlaGrid } from "../core/sla-grid.ts";
import type { Dispatcher } from "../runtime/dispatcher.ts";
import type {
  bookingMetrics,
  componentMetrics,
  globalRouterMetrics,
  processMetrics,
} from "../runtime/metric-table.ts";
import type { Metrics } from "../runtime/metrics.ts";
import type { PoolDecision } from "./pool-decision.ts";
import {
  type ActiveConfig,
  inFlightOf,
  type LivePool,
  type PoolCondition,
  type PoolHealth,
  poolConditions,
  workersOf,
} from "./pool-health.ts";

export type GlobalMetrics = Metrics<
  typeof globalRouterMetrics &
    typeof bookingMetrics &
    typeof componentMetrics &
    typeof processMetrics
>;

/** Grids with more cells are counted as one cell, `other`. */
export const cellLabelsMax = 400;

export function cellLabel(grid: SlaGrid, cell: readonly number[]): string {
  return grid.poolOfCell.length > cellLabelsMax ? "other" : cellText(cell);
}

/** Why an attempt went to `toPool` and not to `fromPool`. */
export interface Move {
  readonly role: Role;
  readonly fromPool: string;
  readonly toPool: string;
  readonly via: AttemptVia;
  readonly cause: string;
}

export function countMove(metrics: GlobalMetrics, move: Move): void {
  const { role, fromPool, toPool, via, cause } = move;
  const labels = { role, from_pool: fromPool, to_pool: toPool, cause };
  if (via === "spill") metrics.counter("tiergrid_spill_total", labels).add(1);
  if (via === "retry") metrics.counter("tiergrid_retry_total", labels).add(1);
}

/** The `cause` label of a move after `failure` with error `code`. */
export function moveCause(via: AttemptVia, failure: AttemptFailure, code: string): string {
  if (via === "spill") return failure === "refused_overloaded" ? "overloaded" : "unavailable";
  if (failure === "refused_overloaded" || failure === "refused_unavailable") return "refused";
  return retryCauses.has(code) ? code : "engine_error";
}

const retryCauses = new Set(["accept_timeout", "no_responders", "worker_lost"]);

/** A failed attempt that no other pool may take. */
export function countSurfaced(
  metrics: GlobalMetrics,
  decision: PoolDecision,
  failure: AttemptFailure,
): void {
  const { active, role, plan } = decision;
  const refused = failure === "refused_overloaded" || failure === "refused_unavailable";
  if (refused && plan.hopsMax > 0) {
    const pool = role.pools[plan.selected]?.namespace ?? "";
    metrics.counter("tiergrid_spill_exhausted_total", { role: role.role, pool }).add(1);
  }
  const unretried = active.config.enablePriorityRetry ? "no_faster_pool" : "disabled";
  const why = surfaceCauses[failure] ?? unretried;
  metrics.counter("tiergrid_retry_refused_total", { role: role.role, why }).add(1);
}

const surfaceCauses: Readonly<Partial<Record<AttemptFailure, string>>> = {
  fail_after_output: "output_started",
  cancelled: "cancelled",
  deadline_exceeded: "deadline",
  invalid_request: "request_fault",
};

/** True when the refusal says that the pool is full, not that one pinned worker is. */
export function fillsPool(code: Parameters<typeof attemptFailureOf>[0]): boolean {
  const overloaded = attemptFailureOf(code, false) === "refused_overloaded";
  return overloaded && code !== "pinned_worker_overloaded";
}

export function countCondition(
  metrics: GlobalMetrics,
  { role, namespace: pool }: LivePool,
  condition: PoolCondition,
): void {
  metrics.counter("tiergrid_pool_state_changes_total", { role, pool, to: condition }).add(1);
}

/** Creates the series whose labels the configs name, and removes those of pools they dropped. */
export function declarePools(
  metrics: GlobalMetrics,
  model: string,
  active: readonly ActiveConfig[],
  before: readonly ActiveConfig[] = [],
): void {
  const kept = new Set<LivePool>(active.flatMap(livePools));
  for (const pool of before.flatMap(livePools)) if (!kept.has(pool)) removePool(metrics, pool);
  for (const { role, namespace: pool } of kept) {
    for (const reason of ["grid", "override", "live", "spill", "retry"]) {
      metrics.counter("tiergrid_pool_selections_total", { model, role, pool, reason });
    }
    metrics.counter("tiergrid_spill_exhausted_total", { role, pool });
    for (const to of poolConditions) {
      metrics.counter("tiergrid_pool_state_changes_total", { role, pool, to });
    }
  }
  for (const { role, grid } of active.flatMap(({ roles }) => [...roles.values()])) {
    metrics.gauge("tiergrid_bookings_active", { role });
    for (const { name } of grid.axes) {
      for (const side of ["low", "high"]) {
        metrics.counter("tiergrid_axis_clamped_total", { role, axis: name, side });
      }
    }
  }
}

function livePools({ roles }: ActiveConfig): LivePool[] {
  return [...roles.values()].flatMap(({ live }) => live);
}

function removePool(metrics: GlobalMetrics, { role, namespace: pool }: LivePool): void {
  for (const name of poolFamilies) metrics.remove(name, { role, pool });
  for (const name of ["tiergrid_spill_total", "tiergrid_retry_total"] as const) {
    metrics.remove(name, { role, from_pool: pool });
    metrics.remove(name, { role, to_pool: pool });
  }
}

const poolFamilies = [
  "tiergrid_pool_selections_total",
  "tiergrid_spill_exhausted_total",
  "tiergrid_pool_state",
  "tiergrid_pool_workers",
  "tiergrid_pool_routers",
  "tiergrid_pool_inflight",
  "tiergrid_pool_state_changes_total",
  "tiergrid_pool_accept_seconds",
  "tiergrid_pool_error_ratio",
  "tiergrid_pool_quotes_total",
  "tiergrid_cell_requests_total",
  "tiergrid_cell_sla_total",
  "tiergrid_quote_measured_ratio",
] as const;

/** Copies what is counted elsewhere at each scrape. */
export function collectGlobal(options: {
  readonly metrics: GlobalMetrics;
  readonly clock: Clock;
  readonly health: PoolHealth;
  readonly dispatcher: Dispatcher<unknown>;
  readonly active: () => ActiveConfig;
}): void {
  const { metrics, clock, health, dispatcher, active } = options;
  const startedMs = clock.nowMs();
  const requests = metrics.counter("dynamo_component_requests_total");
  const cancelled = metrics.counter("dynamo_component_cancellation_total");
  const inFlight = metrics.gauge("dynamo_component_inflight_requests");
  const uptime = metrics.gauge("dynamo_component_uptime_seconds");
  metrics.onScrape(() => {
    requests.follow(dispatcher.totals.received);
    cancelled.follow(dispatcher.totals.cancelled);
    inFlight.set(dispatcher.entries.size);
    uptime.set((clock.nowMs() - startedMs) / 1000);
    for (const role of active().roles.keys()) {
      const pools = health.pools.filter((pool) => pool.role === role);
      const booked = pools.reduce((sum, pool) => sum + inFlightOf(pool), 0);
      metrics.gauge("tiergrid_bookings_active", { role }).set(booked);
    }
    for (const pool of health.pools) collectPool(metrics, health, pool);
  });
}

function collectPool(metrics: GlobalMetrics, health: PoolHealth, live: LivePool): void {
  const labels = { role: live.role, pool: live.namespace };
  const condition = health.conditionOf(live);
  for (const state of poolConditions) {
    const value = state === condition ? 1 : 0;
    metrics.gauge("tiergrid_pool_state", { ...labels, state }).set(value);
  }
  metrics.gauge("tiergrid_pool_workers", labels).set(workersOf(live));
  metrics.gauge("tiergrid_pool_routers", labels).set(live.routers.length);
  metrics.gauge("tiergrid_pool_inflight", labels).set(inFlightOf(live));
  metrics.gauge("tiergrid_pool_error_ratio", labels).set(health.vitalsOf(live).error_rate ?? 0);
}
