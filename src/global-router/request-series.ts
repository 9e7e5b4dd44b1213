/**
 * The series that every request of the global router counts in, held per pool and role: looking one
 * up by its labels costs about a microsecond, and a request counts in eight of them.
 *
 *   ActiveConfig ──▶ LivePool ──▶ { accept, selections by reason }
 *                └─▶ role     ──▶ { selection time, attempts }
 *
 * Held per config: series of a pool that a reload drops are removed, so those of a pool that comes
 * back are looked up anew.
 */
import type { Role } from "../core/sla-grid.ts";
import type { CounterSeries, HistogramSeries } from "../runtime/metrics.ts";
import type { ActiveConfig, LivePool } from "./pool-health.ts";
import type { GlobalMetrics } from "./router-metrics.ts";

export interface PoolSeries {
  readonly acceptSeconds: HistogramSeries;
  selections(reason: string): CounterSeries;
}

export interface RequestSeries {
  ofPool(active: ActiveConfig, pool: LivePool): PoolSeries;
  attempts(role: Role): HistogramSeries;
  /** Lifecycle notices that changed an entry, by kind. */
  notices(kind: string): CounterSeries;
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
  });
  return {
    ofPool(active, pool) {
      const pools = byConfig.get(active) ?? new Map<LivePool, PoolSeries>();
      if (pools.size === 0) byConfig.set(active, pools);
      const known = pools.get(pool) ?? seriesOf(pool);
      if (!pools.has(pool)) pools.set(pool, known);
      return known;
    },
    attempts: held((role: Role) => metrics.histogram("tiergrid_attempts_per_request", { role })),
    notices: held((kind) =>
      metrics.counter("tiergrid_lifecycle_notices_total", { kind, state: "applied" }),
    ),
    freed: held((by) => metrics.counter("tiergrid_bookings_freed_total", { by })),
    durationSeconds: metrics.histogram("dynamo_component_request_duration_seconds"),
  };
}

/** `find`, asked once per key; the keys are words of this program. */
function held<Key extends string, Series>(find: (key: Key) => Series): (key: Key) => Series {
  const known = new Map<Key, Series>();
  return (key) => {
    const found = known.get(key) ?? find(key);
    if (!known.has(key)) known.set(key, found);
    return found;
  };
}
