import fc from "fast-check";
import { expect, it } from "vitest";
import { LatencyHistogram } from "../../src/core/latency-histogram.ts";

const latencies = fc.array(fc.double({ min: 0.1, max: 1e6, noNaN: true }), {
  minLength: 1,
  maxLength: 300,
});

it("answers every quantile within 4.5 % of the sorted latencies", () => {
  fc.assert(
    fc.property(latencies, fc.double({ min: 0, max: 1, noNaN: true }), (values, quantile) => {
      const histogram = new LatencyHistogram();
      for (const value of values) histogram.add(value);
      const sorted = [...values].sort((a, b) => a - b);
      const exact = sorted[Math.max(1, Math.ceil(quantile * sorted.length)) - 1]!;
      const ratio = histogram.quantileMs(quantile) / exact;
      expect(Math.abs(Math.log(ratio))).toBeLessThan(Math.log(1.0451));
      expect(histogram.count).toBe(values.length);
      expect(histogram.sumMs).toBeCloseTo(
        values.reduce((sum, value) => sum + value, 0),
        3,
      );
    }),
    { seed: 1, numRuns: 300 },
  );
});

it("merges as if all latencies had been added to one", () => {
  fc.assert(
    fc.property(latencies, latencies, (left, right) => {
      const [one, two, all] = [0, 1, 2].map(() => new LatencyHistogram());
      for (const value of left) one!.add(value);
      for (const value of right) two!.add(value);
      for (const value of [...left, ...right]) all!.add(value);
      one!.merge(two!);
      for (const quantile of [0.1, 0.5, 0.9, 0.99]) {
        expect(one!.quantileMs(quantile)).toBe(all!.quantileMs(quantile));
      }
      expect(one!.count).toBe(all!.count);
    }),
    { seed: 2, numRuns: 100 },
  );
});

it("keeps what is outside its range in the first and the last bucket, and forgets when cleared", () => {
  const histogram = new LatencyHistogram();
  expect(histogram.quantileMs(0.5)).toBeNaN();
  for (const value of [-5, 0, Number.NaN]) histogram.add(value);
  expect(histogram.quantileMs(1)).toBe(0.1);
  histogram.clear();
  histogram.add(1e300);
  histogram.add(Number.POSITIVE_INFINITY);
  expect(histogram.quantileMs(0.5)).toBeGreaterThan(1.6e6);
  expect(histogram.count).toBe(2);
});
