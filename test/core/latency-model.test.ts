import { expect, it } from "vitest";
import { ShapeLatency, WorkerLatency } from "../../src/core/latency-model.ts";
import { polynomialPerf } from "../../src/core/perf-model.ts";
import golden from "../golden/latency-calibration.json" with { type: "json" };

const limits = { capacityTokens: 1_048_576, batchTokens: 8192 };

function expectNear(found: ArrayLike<number>, wanted: readonly number[]): void {
  for (const [at, value] of wanted.entries()) expect(found[at]! / value).toBeCloseTo(1, 6);
}

it("calibrates a worker and its shape, observation by observation", () => {
  const shape = new ShapeLatency(polynomialPerf, limits);
  const workers = { A: new WorkerLatency(shape), B: new WorkerLatency(shape) };
  expectNear(shape.prefill.mean, golden.profile.prior_mean);
  for (const { after, theta_pool, theta } of golden.steps) {
    if (after > 0) {
      const { x, y, predicted } = golden.observations[after - 1]!;
      const [passes, kilotokens, attention] = x as [number, number, number];
      const [a, b, c] = workers.A.prefill.theta as unknown as [number, number, number];
      expectNear([passes * a + kilotokens * b + attention * c], [predicted]);
      workers.A.observePeriod({
        passes,
        tokens: kilotokens * 1e3,
        attention: attention * 1e6,
        ms: y,
      });
    }
    expectNear(shape.prefill.theta, theta_pool);
    expectNear(workers.A.prefill.theta, theta.A);
    expectNear(workers.B.prefill.theta, theta.B);
  }
});
