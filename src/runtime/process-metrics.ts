/** What every process measures about itself: its event loop, memory, build and bus. */
import { performance } from "node:perf_hooks";
import type { Bus } from "./bus.ts";
import type { processMetrics } from "./metric-table.ts";
import type { Metrics } from "./metrics.ts";

export type ProcessMetrics = Metrics<typeof processMetrics>;

/** A common timer later than this counts as a stall. */
export const stallMs = 5;

export interface Build {
  readonly version: string;
  readonly commit: string;
}

/**
 * Takes how late the process's common timers are. A sample, not a watch: a stall delays what arrives
 * in it, and the timers that end in it, in proportion to its length.
 */
export function collectLoopDelay(metrics: ProcessMetrics): (lateMs: number) => void {
  const delay = metrics.histogram("tiergrid_event_loop_delay_seconds");
  const stalls = metrics.counter("tiergrid_event_loop_stalls_total");
  return (lateMs) => {
    delay.observe(lateMs / 1000);
    if (lateMs > stallMs) stalls.add();
  };
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
