/** What a local router counts: series for the hot path, copies of tables at each scrape. */
import type { Clock } from "../base/clock.ts";
import type { WorkerLoad } from "../core/worker-load.ts";
import type { ItlSummary, RequestNotice } from "../protocol/notices.ts";
import type { DispatcherTotals, EndCause } from "../runtime/dispatch-policy.ts";
import type { CardRole } from "../runtime/instance-card.ts";
import { bookingMetrics, componentMetrics, localRouterMetrics } from "../runtime/metric-table.ts";
import { held, type Metrics } from "../runtime/metrics.ts";
import type { PoolWorker } from "./worker-directory.ts";

/** Every family a local router needs; a process may register more beside them. */
export const localRouterTable = {
  ...localRouterMetrics,
  ...bookingMetrics,
  ...componentMetrics,
};
export type LocalMetrics = Metrics<typeof localRouterTable>;

/** Series that are counted in directly. */
export interface LocalSeries {
  readonly started: Series<"counter">;
  readonly ended: Series<"counter">;
  readonly ttft: Series<"histogram">;
  readonly itl: Series<"histogram">;
  readonly isl: Series<"histogram">;
  readonly osl: Series<"histogram">;
  readonly hitRate: Series<"histogram">;
  readonly duration: Series<"histogram">;
  readonly hashingMs: Series<"histogram">;
  readonly matchMs: Series<"histogram">;
  readonly schedulingMs: Series<"histogram">;
  readonly totalMs: Series<"histogram">;
  readonly predictionError: Series<"histogram">;
  /** Lifecycle notices that named a booking. */
  notices(kind: RequestNotice["type"]): Series<"counter">;
  /** Bookings freed; `failed` = an attempt before its first output. */
  freed(by: EndCause | "failed"): Series<"counter">;
}

type Series<Kind extends "counter" | "gauge" | "histogram"> = ReturnType<LocalMetrics[Kind]>;

export function localSeries(metrics: LocalMetrics): LocalSeries {
  return {
    started: metrics.counter("dynamo_component_router_requests_started_total"),
    ended: metrics.counter("dynamo_component_router_requests_total"),
    ttft: metrics.histogram("dynamo_component_router_time_to_first_token_seconds"),
    itl: metrics.histogram("dynamo_component_router_inter_token_latency_seconds"),
    isl: metrics.histogram("dynamo_component_router_input_sequence_tokens"),
    osl: metrics.histogram("dynamo_component_router_output_sequence_tokens"),
    hitRate: metrics.histogram("dynamo_component_router_kv_hit_rate"),
    duration: metrics.histogram("dynamo_component_request_duration_seconds"),
    hashingMs: metrics.histogram("dynamo_router_overhead_block_hashing_ms"),
    matchMs: metrics.histogram("dynamo_router_overhead_indexer_find_matches_ms"),
    schedulingMs: metrics.histogram("dynamo_router_overhead_scheduling_ms"),
    totalMs: metrics.histogram("dynamo_router_overhead_total_ms"),
    predictionError: metrics.histogram("tiergrid_kv_prediction_error_tokens"),
    notices: held((kind) =>
      metrics.counter("tiergrid_lifecycle_notices_total", { kind, state: "applied" }),
    ),
    freed: held((by) => metrics.counter("tiergrid_bookings_freed_total", { by })),
  };
}

/** Aggregated workers count as decode, as in the reference. */
export const workerTypeOf = (role: CardRole): string => (role === "prefill" ? "prefill" : "decode");

const rankFamilies = [
  "dynamo_frontend_worker_active_decode_blocks",
  "dynamo_frontend_worker_active_prefill_tokens",
  "dynamo_frontend_worker_last_time_to_first_token_seconds",
  "dynamo_frontend_worker_last_input_sequence_tokens",
  "dynamo_frontend_worker_last_inter_token_latency_seconds",
] as const;

export interface WorkerSeries {
  registered(worker: PoolWorker): void;
  removed(worker: PoolWorker): void;
  /** The engine's own time to the first token. */
  firstToken(workerId: string, dpRank: number, ttftMs: number, islTokens: number): void;
  gaps(workerId: string, dpRank: number, itl: ItlSummary): void;
}

/** Series per (worker, rank), held and shown from when the worker is registered until it leaves. */
export function workerSeries(metrics: LocalMetrics, role: CardRole): WorkerSeries {
  const worker_type = workerTypeOf(role);
  const rank = (worker_id: string, dp_rank: number) => ({ worker_id, dp_rank, worker_type });
  const registration = (worker_id: string, dp_rank: number) => ({
    router_worker_id: worker_id,
    dp_rank,
    worker_type,
  });
  const [, , ttft, isl, itl] = rankFamilies;
  const seriesOf = (workerId: string) => ({
    ttft: held((dpRank: number) => metrics.gauge(ttft, rank(workerId, dpRank))),
    isl: held((dpRank: number) => metrics.gauge(isl, rank(workerId, dpRank))),
    itl: held((dpRank: number) => metrics.gauge(itl, rank(workerId, dpRank))),
  });
  const byWorker = new Map<string, ReturnType<typeof seriesOf>>();
  return {
    registered({ inst, card, slots }) {
      byWorker.set(inst, seriesOf(inst));
      for (const at of slots.keys()) {
        const labels = registration(inst, card.dpStart + at);
        metrics.gauge("dynamo_component_router_worker_registered", labels).set(1);
      }
    },
    removed({ inst }) {
      byWorker.delete(inst);
      for (const family of rankFamilies) metrics.remove(family, { worker_id: inst });
      metrics.remove("dynamo_component_router_worker_registered", { router_worker_id: inst });
    },
    firstToken(workerId, dpRank, ttftMs, islTokens) {
      const series = byWorker.get(workerId);
      series?.ttft(dpRank).set(ttftMs / 1000);
      series?.isl(dpRank).set(islTokens);
    },
    gaps(workerId, dpRank, { count, sum_ms }) {
      const series = byWorker.get(workerId);
      if (count > 0) series?.itl(dpRank).set(sum_ms / count / 1000);
    },
  };
}

export interface Scraped {
  readonly clock: Clock;
  readonly role: CardRole;
  readonly load: WorkerLoad;
  readonly totals: Readonly<DispatcherTotals>;
  readonly openRequests: () => number;
  readonly ownBookings: () => number;
  readonly workers: () => Iterable<PoolWorker>;
}

/** Copies what the tables hold into gauges, at each scrape. */
export function collectAtScrape(metrics: LocalMetrics, scraped: Scraped): void {
  const { clock, role, load, totals } = scraped;
  const startedMs = clock.nowMs();
  const worker_type = workerTypeOf(role);
  const [blocks, tokens] = rankFamilies;
  metrics.onScrape(() => {
    const nowMs = clock.nowMs();
    const prefillTokens = load.prefillTokensAt(nowMs);
    for (const { inst, card, slots } of scraped.workers()) {
      for (const [at, slot] of slots.entries()) {
        const labels = { worker_id: inst, dp_rank: card.dpStart + at, worker_type };
        metrics.gauge(blocks, labels).set(load.activeBlocks[slot] ?? 0);
        metrics.gauge(tokens, labels).set(prefillTokens[slot] ?? 0);
      }
    }
    metrics.gauge("tiergrid_bookings_active", { role }).set(scraped.ownBookings());
    metrics.counter("dynamo_component_requests_total").follow(totals.received);
    metrics.counter("dynamo_component_cancellation_total").follow(totals.cancelled);
    metrics.gauge("dynamo_component_inflight_requests").set(scraped.openRequests());
    metrics.gauge("dynamo_component_uptime_seconds").set((nowMs - startedMs) / 1000);
    const late = { kind: "any", state: "late" };
    metrics.counter("tiergrid_lifecycle_notices_total", late).follow(totals.lateNotices);
  });
}
