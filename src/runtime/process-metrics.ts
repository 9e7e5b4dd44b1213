/** What every process measures about itself: its event loop, memory, build and bus. */
import { performance } from "node:perf_hooks";
import type { Clock } from "../base/clock.ts";
import type { Bus } from "./bus.ts";
import type { processMetrics } from "./metric-table.ts";
import type { Metrics } from "./metrics.ts";

export type ProcessMetrics = Metrics<typeof processMetrics>;

export const canaryPeriodMs = 10;
/** A canary later than this counts as a stall. */
export const stallMs = 5;

export interface Build {
  readonly version: string;
  readonly commit: string;
}

/**
 * Starts the canary: a timer every 10 ms whose lateness is the event loop's delay. Returns the
 * function that stops it.
 */
export function startLoopCanary(clock: Clock, metrics: ProcessMetrics): () => void {
  const delay = metrics.histogram("tiergrid_event_loop_delay_seconds");
  const stalls = metrics.counter("tiergrid_event_loop_stalls_total");
  let cancel = (): void => {};
  const arm = (): void => {
    const dueMs = clock.nowMs() + canaryPeriodMs;
    cancel = clock.after(canaryPeriodMs, () => {
      const lateMs = Math.max(0, clock.nowMs() - dueMs);
      delay.observe(lateMs / 1000);
      if (lateMs > stallMs) stalls.add(1);
      arm();
    });
  };
  arm();
  return () => cancel();
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
