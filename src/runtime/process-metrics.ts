/** What every process measures about itself: its event loop, memory, build and bus. */
import { type Histogram, monitorEventLoopDelay, performance } from "node:perf_hooks";
import type { Bus } from "./bus.ts";
import type { processMetrics } from "./metric-table.ts";
import type { Metrics } from "./metrics.ts";

export type ProcessMetrics = Metrics<typeof processMetrics>;

/** A sample, not a watch: a stall counts in proportion to its length, as it delays what arrives. */
export const loopTimerMs = 50;
/** A timer later than this counts as a stall. */
export const stallMs = 5;

export interface Build {
  readonly version: string;
  readonly commit: string;
}

/** Nanoseconds from each run of a timer to the next. */
export type TimerIntervals = Pick<Histogram, "count" | "mean" | "percentile">;

/**
 * Starts a timer inside the event loop that runs no JavaScript, so that a process at rest does not wake
 * its engine for it; `disable` ends it.
 */
export function startLoopTimer(): TimerIntervals & { disable(): boolean } {
  const timer = monitorEventLoopDelay({ resolution: loopTimerMs });
  timer.enable();
  return timer;
}

/**
 * Collects at each scrape how late the timer of `startLoopTimer` was. `intervals` is never reset: the
 * interval in which that happens would be lost, and with it the scrape's own delay.
 */
export function collectLoopDelay(metrics: ProcessMetrics, intervals: TimerIntervals): void {
  const delay = metrics.histogram("tiergrid_event_loop_delay_seconds");
  const stalls = metrics.counter("tiergrid_event_loop_stalls_total");
  metrics.onScrape(() => {
    const { count, mean } = intervals;
    const withinMs = (lateMs: number): number => countUpTo(intervals, 1e6 * (loopTimerMs + lateMs));
    const upTo = [...delay.bounds.map((bound) => withinMs(1000 * bound)), count];
    const seen = (bucket: number): number => (upTo[bucket] ?? 0) - (upTo[bucket - 1] ?? 0);
    const lateSeconds = count === 0 ? 0 : (count * (mean / 1e6 - loopTimerMs)) / 1000;
    delay.merge(
      Array.from(delay.counts, (known, bucket) => seen(bucket) - known),
      Math.max(0, lateSeconds - delay.sum),
    );
    stalls.follow(count - withinMs(stallMs));
  });
}

/** Intervals of at most `ns`, by bisection: the histogram answers ranks, not counts. */
function countUpTo(intervals: TimerIntervals, ns: number): number {
  const { count } = intervals;
  let [within, beyond] = [0, count + 1];
  while (beyond - within > 1) {
    const rank = Math.floor((within + beyond) / 2);
    if (intervals.percentile((100 * rank) / count) <= ns) within = rank;
    else beyond = rank;
  }
  return within;
}

/** Collects memory, event-loop utilisation and the build at each scrape. */
export function collectRuntime(metrics: ProcessMetrics, build: Build): void {
  const node = process.version;
  metrics.gauge("tiergrid_build_info", { ...build, node }).set(1);
  const heapUsed = metrics.gauge("tiergrid_heap_used_bytes");
  const rss = metrics.gauge("tiergrid_rss_bytes");
  const external = metrics.gauge("tiergrid_external_bytes");
  const utilization = metrics.gauge("tiergrid_event_loop_utilization");
  let last = performance.eventLoopUtilization();
  metrics.onScrape(() => {
    const memory = process.memoryUsage();
    heapUsed.set(memory.heapUsed);
    rss.set(memory.rss);
    external.set(memory.external);
    const current = performance.eventLoopUtilization();
    utilization.set(performance.eventLoopUtilization(current, last).utilization);
    last = current;
  });
}

/** Copies the bus's state and totals at each scrape. */
export function collectBus(metrics: ProcessMetrics, bus: Bus): void {
  const connected = metrics.gauge("tiergrid_bus_connected");
  const outbound = metrics.gauge("tiergrid_bus_outbound_bytes");
  const totals = [
    [metrics.counter("tiergrid_bus_reconnects_total"), "reconnects"],
    [metrics.counter("tiergrid_bus_forced_closes_total"), "forcedCloses"],
    [metrics.counter("tiergrid_bus_watchdog_swaps_total"), "watchdogSwaps"],
    [metrics.counter("tiergrid_bus_handler_errors_total"), "handlerErrors"],
    [metrics.counter("tiergrid_bus_shed_total"), "shedMessages"],
    [metrics.counter("tiergrid_bus_messages_total", { direction: "in" }), "messagesIn"],
    [metrics.counter("tiergrid_bus_messages_total", { direction: "out" }), "messagesOut"],
    [metrics.counter("tiergrid_bus_bytes_total", { direction: "in" }), "bytesIn"],
    [metrics.counter("tiergrid_bus_bytes_total", { direction: "out" }), "bytesOut"],
  ] as const;
  metrics.onScrape(() => {
    connected.set(bus.state === "connected" ? 1 : 0);
    outbound.set(bus.totals.outboundBytes);
    for (const [counter, total] of totals) counter.follow(bus.totals[total]);
  });
}
