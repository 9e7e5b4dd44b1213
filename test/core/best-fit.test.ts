import { expect, it } from "vitest";
import { bestFitScore, latenessMs } from "../../src/core/best-fit.ts";
import golden from "../golden/pool-best-fit.json" with { type: "json" };

it.each(golden.cases)("takes the best fit: $why", ({ quotes, target_ttft_ms, scores, pick }) => {
  const found = quotes.map(({ pool, gpus, predicted_ttft_ms, prefill_gpu_ms }) => {
    const fit = { predictedMs: predicted_ttft_ms, gpuMs: prefill_gpu_ms, gpus };
    const late_ms = latenessMs(predicted_ttft_ms, target_ttft_ms);
    return { pool, late_ms, score: bestFitScore(fit, target_ttft_ms) };
  });
  for (const [at, { late_ms, score }] of scores.entries()) {
    expect(found[at]!.late_ms).toBeCloseTo(late_ms, 6);
    expect(found[at]!.score / score).toBeCloseTo(1, 9);
  }
  const best = found.reduce((low, other) => (other.score < low.score ? other : low));
  expect(best.pool).toBe(pick);
});

it("meets a target exactly at the margin", () => {
  expect(latenessMs(100, 110.00000000000001)).toBe(0);
  expect(latenessMs(100.001, 110)).toBeGreaterThan(0);
});
