/** What a worker counts, and its engine's gauges, read at each scrape. */
import type { Clock } from "../base/clock.ts";
import type { componentMetrics, workerMetrics } from "../runtime/metric-table.ts";
import type { Metrics } from "../runtime/metrics.ts";
import type { DurableEvents } from "./durable-events.ts";
import type { Engine } from "./engine.ts";
import type { WorkerJobs, WorkerJobsOptions } from "./worker-jobs.ts";

export type WorkerMetrics = Metrics<typeof workerMetrics & typeof componentMetrics>;

export function collectWorker(
  metrics: WorkerMetrics,
  clock: Clock,
  engine: Engine,
  jobs: WorkerJobs,
): void {
  const startedMs = clock.nowMs();
  const inflight = metrics.gauge("dynamo_component_inflight_requests");
  const uptime = metrics.gauge("dynamo_component_uptime_seconds");
  const cancellations = metrics.counter("dynamo_component_cancellation_total");
  const orphans = metrics.counter("tiergrid_stream_orphans_total");
  const creditStalls = metrics.counter("tiergrid_stream_credit_stalls_total");
  metrics.onScrape(() => {
    inflight.set(jobs.active);
    uptime.set((clock.nowMs() - startedMs) / 1000);
    cancellations.follow(jobs.totals.cancelled);
    orphans.follow(jobs.totals.orphans);
    creditStalls.follow(jobs.totals.creditStalls);
    collectEngine(metrics, engine);
  });
}

/** Takes what came of asking for prompts. */
export function countFetches(metrics: WorkerMetrics): WorkerJobsOptions["onFetched"] {
  const took = metrics.histogram("tiergrid_prompt_fetch_seconds");
  return (outcome, tookMs) => {
    metrics.counter("tiergrid_prompt_fetches_total", { outcome }).add();
    if (outcome === "tokens") took.observe(tookMs / 1000);
  };
}

export function collectDurableEvents(metrics: WorkerMetrics, { totals }: DurableEvents): void {
  const outcome = (name: string) =>
    metrics.counter("tiergrid_durable_events_total", { outcome: name });
  const appends = metrics.counter("tiergrid_durable_appends_total");
  const failures = metrics.counter("tiergrid_durable_append_failures_total");
  metrics.onScrape(() => {
    outcome("appended").follow(totals.events);
    outcome("dropped").follow(totals.dropped);
    appends.follow(totals.messages);
    failures.follow(totals.failures);
  });
}

function collectEngine(metrics: WorkerMetrics, engine: Engine): void {
  for (const { dpRank, activeBlocks, totalBlocks, hitRatio } of engine.load()) {
    const rank = { dp_rank: dpRank };
    const usage = totalBlocks === 0 ? 0 : activeBlocks / totalBlocks;
    metrics.gauge("dynamo_component_kvstats_active_blocks", rank).set(activeBlocks);
    metrics.gauge("dynamo_component_kvstats_total_blocks", rank).set(totalBlocks);
    metrics.gauge("dynamo_component_kvstats_gpu_cache_usage_percent", rank).set(usage);
    metrics.gauge("dynamo_component_kvstats_gpu_prefix_cache_hit_rate", rank).set(hitRatio);
  }
}
