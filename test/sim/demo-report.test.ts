import fc from "fast-check";
import { expect, it } from "vitest";
import type { CompletionResult } from "../../src/sim/completion-client.ts";
import { DemoReport } from "../../src/sim/demo-report.ts";
import { LatencyHistogram } from "../../src/sim/latency-histogram.ts";

const result = (change: Partial<CompletionResult>): CompletionResult => ({
  outcome: "completed",
  fault: undefined,
  ttftMs: 100,
  gaps: [10, 8, 30, 1],
  mismatches: 0,
  outputTokens: 10,
  promptTokens: 1000,
  cachedTokens: 250,
  prefillWorker: "1",
  decodeWorker: "3",
  ...change,
});

const pools = [
  { namespace: "prefill-fast", role: "prefill", workers: ["1", "2"] },
  { namespace: "decode-fast", role: "decode", workers: ["3"] },
];

it("keeps every quantile within two percent of the exact one", () => {
  fc.assert(
    fc.property(
      fc.array(fc.double({ min: 0.011, max: 1e6, noNaN: true }), { minLength: 1 }),
      fc.constantFrom(0, 0.01, 0.5, 0.9, 0.99, 1),
      (values, q) => {
        const histogram = new LatencyHistogram();
        for (const value of values) histogram.add(value);
        const sorted = values.toSorted((a, b) => a - b);
        const exact = sorted[Math.max(0, Math.ceil(q * values.length) - 1)]!;
        expect(histogram.total).toBe(values.length);
        expect(Math.abs(histogram.quantile(q)! / exact - 1)).toBeLessThan(0.021);
      },
    ),
  );
});

it("knows no quantile of nothing, and counts the extremes at the ends", () => {
  const histogram = new LatencyHistogram();
  expect(histogram.quantile(0.5)).toBeUndefined();
  histogram.add(0, 3);
  histogram.add(1e12);
  expect(histogram.quantile(0.5)).toBeCloseTo(0.01, 3);
  expect(histogram.quantile(1)).toBeGreaterThan(9e6);
});

it("sums requests up by outcome, pool and worker", () => {
  const report = new DemoReport({ requests: 5, pools });
  report.take(result({}));
  report.take(result({ prefillWorker: "2", cachedTokens: 750, mismatches: 2 }));
  report.take(result({ outcome: "failed", fault: "broken", ttftMs: undefined }));
  report.take(result({ outcome: "rejected", fault: "529", ttftMs: undefined }));
  report.take(result({ outcome: "cancelled", fault: "broken", ttftMs: undefined }));
  expect(report.ended).toBe(5);
  expect(report.faults).toEqual(["broken", "529"]);
  expect(report.summary({ bus: "embedded", durationMs: 1500, migrated: 1 })).toMatchObject({
    requests: 5,
    completed: 2,
    failed: 2,
    rejected: 1,
    token_mismatch: 2,
    migrated: 1,
    bus: "embedded",
    duration_s: 1.5,
    kv_hit_ratio: 0.5,
    ttft_ms: { p50: 100.78, p99: 100.78 },
    pools: [
      {
        namespace: "prefill-fast",
        role: "prefill",
        requests: 2,
        workers: [
          { id: "1", requests: 1 },
          { id: "2", requests: 1 },
        ],
      },
      { namespace: "decode-fast", requests: 2, workers: [{ id: "3", requests: 2 }] },
    ],
  });
});
