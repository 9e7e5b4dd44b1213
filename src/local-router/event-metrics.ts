/** The KV events of a pool as metrics: copies of counters and states, at each scrape. */
import type { KvIndex } from "../core/kv-index.ts";
import type { EventIntake } from "./event-intake.ts";
import type { LocalMetrics } from "./local-metrics.ts";
import type { SilenceCheck } from "./silence-check.ts";

export interface ScrapedEvents {
  readonly index: KvIndex;
  readonly intake: EventIntake;
  readonly silence: SilenceCheck;
}

export function collectEventsAtScrape(
  metrics: LocalMetrics,
  { index, intake, silence }: ScrapedEvents,
): void {
  const { counters } = intake;
  const applied = "dynamo_component_kv_cache_events_applied";
  metrics.onScrape(() => {
    for (const [event_type, statuses] of Object.entries(counters.events)) {
      for (const [status, count] of Object.entries(statuses)) {
        if (count > 0) metrics.counter(applied, { event_type, status }).follow(count);
      }
    }
    const duplicates = { warning_kind: "duplicate_store" };
    metrics
      .counter("dynamo_component_kv_cache_event_warnings", duplicates)
      .follow(index.duplicateStores);
    for (const [cause, count] of Object.entries(counters.resyncs)) {
      metrics.counter("tiergrid_index_resyncs_total", { cause }).follow(count);
    }
    for (const [outcome, count] of Object.entries(counters.outcomes)) {
      metrics.counter("tiergrid_index_recoveries_total", { outcome }).follow(count);
    }
    metrics.counter("tiergrid_index_recovery_failures_total").follow(counters.recoveryFailures);
    for (const [state, count] of Object.entries(intake.holderStates())) {
      metrics.gauge("tiergrid_kv_event_streams", { state }).set(count);
    }
    metrics.gauge("tiergrid_kv_events_silent_workers").set(silence.count);
    const stats = index.stats();
    metrics.gauge("tiergrid_index_nodes").set(stats.blocks);
    metrics.gauge("tiergrid_index_blocks").set(stats.size);
    metrics.gauge("tiergrid_index_bytes_estimate").set(stats.bytes);
    const bytesPerBlock = stats.size === 0 ? 0 : stats.bytes / stats.size;
    metrics.gauge("tiergrid_index_bytes_per_block").set(bytesPerBlock);
  });
}
