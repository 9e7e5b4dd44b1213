import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { realClock, sleep } from "../../src/base/clock.ts";
import { tickClock } from "../../src/base/tick-clock.ts";
import type { Bus, BusTotals } from "../../src/runtime/bus.ts";
import {
  buckets,
  exponentialBuckets,
  linearBuckets,
  logBuckets,
} from "../../src/runtime/metric-buckets.ts";
import type { MetricRow, MetricTable } from "../../src/runtime/metric-rows.ts";
import { metricTables, processMetrics } from "../../src/runtime/metric-table.ts";
import { createMetrics, HistogramSeries, held, seriesMax } from "../../src/runtime/metrics.ts";
import {
  collectBus,
  collectLoopDelay,
  collectRuntime,
  stallMs,
} from "../../src/runtime/process-metrics.ts";

interface BucketSet {
  readonly name: string;
  readonly kind: "log" | "linear" | "exponential";
  readonly min: number;
  readonly max: number;
  readonly count: number;
  readonly start: number;
  readonly width: number;
  readonly factor: number;
  readonly buckets: number[];
}
const golden = JSON.parse(
  readFileSync(new URL("../golden/metric-buckets.json", import.meta.url), "utf8"),
) as { sets: BucketSet[] };

const table = {
  requests_total: { type: "counter", help: "R", labels: ["model", "status"], buckets: [] },
  active: { type: "gauge", help: "A", labels: [], buckets: [] },
  worker_blocks: { type: "gauge", help: "W", labels: ["worker_id", "dp_rank"], buckets: [] },
  wait_seconds: { type: "histogram", help: "S", labels: ["role"], buckets: [0, 0.1, 1] },
  tiergrid_metrics_dropped_series_total: {
    type: "counter",
    help: "D",
    labels: ["metric"],
    buckets: [],
  },
} as const satisfies MetricTable;

it.each(golden.sets)("computes the golden buckets of $name", (set) => {
  if (set.kind === "log") expect(logBuckets(set.min, set.max, set.count)).toEqual(set.buckets);
  if (set.kind === "linear") {
    expect(linearBuckets(set.start, set.width, set.count)).toEqual(set.buckets);
  }
  if (set.kind === "exponential") {
    expect(exponentialBuckets(set.start, set.factor, set.count)).toEqual(set.buckets);
  }
});

it("uses the golden sets under the names of the reference", () => {
  const named = new Map(golden.sets.map((set) => [set.name, set.buckets]));
  expect(buckets.duration).toEqual(named.get("request_duration"));
  expect(buckets.isl).toEqual(named.get("input_sequence"));
  expect(buckets.osl).toEqual(named.get("output_sequence"));
  expect(buckets.ttft).toEqual(named.get("ttft"));
  expect(buckets.itl).toEqual(named.get("itl"));
  expect(buckets.rate).toEqual(named.get("kv_hit_rate"));
});

it("names families legally, histograms with rising buckets, and none twice", () => {
  const seen = new Set<string>();
  for (const [group, rows] of Object.entries(metricTables)) {
    for (const [name, row] of Object.entries<MetricRow>(rows)) {
      expect(name, group).toMatch(/^(?:dynamo|tiergrid)_[a-z0-9_]+$/);
      expect(seen.has(name), name).toBe(false);
      seen.add(name);
      const rising = [...row.buckets].sort((a, b) => a - b);
      expect(row.buckets.length > 0, name).toBe(row.type === "histogram");
      expect(row.buckets, name).toEqual([...new Set(rising)]);
      const taken = ["namespace", "pod", "instance", "job", "container", "le"];
      expect(row.labels.filter((label) => taken.includes(label))).toEqual([]);
    }
  }
});

it("renders counters and gauges, families without labels from the start", async () => {
  const metrics = createMetrics(table, [{ prefix: "requests", labels: { router_id: "7" } }]);
  expect(await metrics.text()).toContain("# TYPE active gauge\nactive 0\n");
  expect(await metrics.text()).not.toContain("requests_total{");
  const ok = metrics.counter("requests_total", { model: 'a"b\n', status: "success" });
  ok.add(2);
  metrics.counter("requests_total", { model: 'a"b\n', status: "success" }).add(1);
  metrics.gauge("active").set(4);
  metrics.gauge("active").add(-1);
  const text = await metrics.text();
  expect(text).toContain('requests_total{router_id="7",model="a\\"b ",status="success"} 3\n');
  expect(text).toContain("\nactive 3\n");
});

it("puts an observation into the first bucket that is not below it", async () => {
  const metrics = createMetrics(table);
  const wait = metrics.histogram("wait_seconds", { role: "decode" });
  for (const value of [0, 0.1, 0.05, 1, 1.5]) wait.observe(value);
  wait.observe(0.5, 3);
  const text = await metrics.text();
  expect(text).toContain('wait_seconds_bucket{role="decode",le="0"} 1\n');
  expect(text).toContain('wait_seconds_bucket{role="decode",le="0.1"} 3\n');
  expect(text).toContain('wait_seconds_bucket{role="decode",le="1"} 7\n');
  expect(text).toContain('wait_seconds_bucket{role="decode",le="+Inf"} 8\n');
  expect(text).toContain('wait_seconds_sum{role="decode"} 4.15\n');
  expect(text).toContain('wait_seconds_count{role="decode"} 8');
});

it("merges bucket counts of the same shape and refuses others", () => {
  const wait = new HistogramSeries([1, 2]);
  wait.observe(1);
  wait.merge([1, 2, 3], 20);
  wait.merge([9, 9], 99);
  expect([...wait.counts]).toEqual([2, 2, 3]);
  expect(wait.sum).toBe(21);
});

it("caps a family and counts what it dropped", async () => {
  const metrics = createMetrics(table);
  for (let worker = 0; worker < seriesMax + 10; worker++) {
    metrics.gauge("worker_blocks", { worker_id: worker, dp_rank: 0 }).set(worker);
  }
  const text = await metrics.text();
  expect(text.match(/^worker_blocks\{/gm)).toHaveLength(seriesMax);
  expect(text).toContain(`worker_blocks{worker_id="other",dp_rank="other"} ${seriesMax + 9}\n`);
  expect(text).toContain('dropped_series_total{metric="worker_blocks"} 11\n');
});

it("removes the series of a worker that left and lets stale holders count on", async () => {
  const metrics = createMetrics(table);
  const gone = metrics.gauge("worker_blocks", { worker_id: "1", dp_rank: 0 });
  metrics.gauge("worker_blocks", { worker_id: "1", dp_rank: 1 }).set(5);
  metrics.gauge("worker_blocks", { worker_id: "2", dp_rank: 0 }).set(6);
  metrics.remove("worker_blocks", { worker_id: 1 });
  gone.set(9);
  const text = await metrics.text();
  expect(text.match(/^worker_blocks\{.*$/gm)).toEqual([
    'worker_blocks{worker_id="2",dp_rank="0"} 6',
  ]);
});

it("looks a held series up once per key", () => {
  const metrics = createMetrics(table);
  const asked: string[] = [];
  const blocksOf = held((worker_id: string) => {
    asked.push(worker_id);
    return metrics.gauge("worker_blocks", { worker_id, dp_rank: 0 });
  });
  for (const worker of ["1", "2", "1", "1"]) blocksOf(worker).add(1);
  expect(asked).toEqual(["1", "2"]);
  expect(metrics.gauge("worker_blocks", { worker_id: "1", dp_rank: 0 }).value).toBe(3);
});

it("counts how late the common timers were", () => {
  const metrics = createMetrics(processMetrics);
  const onTick = collectLoopDelay(metrics);
  const delay = metrics.histogram("tiergrid_event_loop_delay_seconds");
  const latenessMs = [0, 0.5, 0.9, 2, 4, stallMs, 6, 40, 40, 7000];
  for (const lateMs of latenessMs) onTick(lateMs);
  const within = (bound: number): number =>
    latenessMs.filter((lateMs) => lateMs <= 1000 * bound).length;
  const upTo = [...delay.bounds.map(within), latenessMs.length];
  const naive = upTo.map((count, bucket) => count - (upTo[bucket - 1] ?? 0));
  expect([...delay.counts]).toEqual(naive);
  expect(delay.sum).toBeCloseTo(7.0984, 6);
  expect(metrics.counter("tiergrid_event_loop_stalls_total").value).toBe(4);
});

it("sees a stall of the real event loop", async () => {
  const metrics = createMetrics(processMetrics);
  const ticks = tickClock(realClock, 10, collectLoopDelay(metrics));
  const woken = sleep(ticks, 1);
  const endMs = realClock.nowMs() + 10 + 2 * stallMs;
  while (realClock.nowMs() < endMs);
  await woken;
  expect(metrics.counter("tiergrid_event_loop_stalls_total").value).toBe(1);
});

it("copies bus totals and memory at scrape", async () => {
  const metrics = createMetrics(processMetrics);
  const totals: BusTotals = {
    reconnects: 2,
    forcedCloses: 0,
    watchdogSwaps: 0,
    handlerErrors: 1,
    shedMessages: 0,
    outboundBytes: 77,
    messagesIn: 10,
    messagesOut: 20,
    bytesIn: 30,
    bytesOut: 40,
  };
  collectBus(metrics, { state: "connected", totals } as Bus);
  collectRuntime(metrics, { version: "1.2.3", commit: "abc" });
  const text = await metrics.text();
  expect(text).toContain("tiergrid_bus_connected 1\n");
  expect(text).toContain("tiergrid_bus_reconnects_total 2\n");
  expect(text).toContain('tiergrid_bus_bytes_total{direction="out"} 40\n');
  expect(text).toContain('tiergrid_build_info{version="1.2.3",node="v');
  expect(text).toMatch(/tiergrid_rss_bytes [1-9]\d+\n/);
});
