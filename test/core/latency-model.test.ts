import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import { prefillPrior, ShapeLatency, WorkerLatency } from "../../src/core/latency-model.ts";
import { coefficientsPerf, polynomialPerf, tablePerf } from "../../src/core/perf-model.ts";
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

/** Periods of an engine of 12 ms + 0.055 ms a token + 1.5 ms per 10^6 token^2, times `slowness`. */
function teach(worker: WorkerLatency, slowness: number, periods: number, seed: number): void {
  const random = mulberry32(seed);
  for (let at = 0; at < periods; at++) {
    const passes = 1 + Math.floor(random() * 4);
    const tokens = Math.floor(passes * (200 + random() * 1800));
    const attention = tokens * random() * 20_000;
    const trueMs = 12 * passes + 0.055 * tokens + (1.5 * attention) / 1e6;
    worker.observePeriod({ passes, tokens, attention, ms: slowness * trueMs });
  }
}

it("recovers a true model from a profile that is far from it", () => {
  const worker = new WorkerLatency(new ShapeLatency(polynomialPerf, limits));
  teach(worker, 1, 200, 7);
  for (const [at, truth] of [12, 55, 1.5].entries()) {
    expect(Math.abs(worker.prefill.theta[at]! / truth - 1)).toBeLessThan(0.05);
  }
  expect(worker.medianError).toBeLessThan(0.01);
  expect(Math.abs(worker.prefillMs(2000, 4e6) / (12 + 110 + 6) - 1)).toBeLessThan(0.01);
  expect(worker.prefillMs(0, 0)).toBe(0);
});

it("tells a straggler from its shape", () => {
  const shape = new ShapeLatency(polynomialPerf, limits);
  const workers = Array.from({ length: 8 }, () => new WorkerLatency(shape));
  for (let round = 0; round < 10; round++) {
    for (const [at, worker] of workers.entries())
      teach(worker, at === 0 ? 2 : 1, 8, 10 * round + at);
  }
  const [straggler, sound] = workers.map((worker) => worker.prefillMs(4096, 8e6));
  const trueMs = 12 + 0.055 * 4096 + 12;
  expect(Math.abs(sound! / trueMs - 1)).toBeLessThan(0.1);
  expect(Math.abs(straggler! / trueMs - 2)).toBeLessThan(0.2);
});

it("learns the decode step of a worker and of its shape", () => {
  const shape = new ShapeLatency(polynomialPerf, limits);
  const [worker, sibling] = [new WorkerLatency(shape), new WorkerLatency(shape)];
  const random = mulberry32(3);
  for (let at = 0; at < 400; at++) {
    const sequences = Math.ceil(random() * 60);
    const activeKvTokens = random() * limits.capacityTokens;
    const ms = 14 + 2.2e-5 * activeKvTokens + 0.08 * sequences;
    worker.observeGap({ sequences, activeKvTokens, ms });
  }
  for (const model of [worker, sibling]) {
    expect(model.decodeMs(20, 500_000)).toBeCloseTo(14 + 11 + 1.6, 0);
  }
});

it("keeps every coefficient within an eighth and eight times the prior, attention above 0", () => {
  const worker = new WorkerLatency(new ShapeLatency(polynomialPerf, limits));
  const [a, b] = worker.shape.prefill.mean;
  teach(worker, 0.01, 400, 5);
  expect(worker.prefill.theta[1]).toBe(b / 8);
  teach(worker, 100, 4000, 6);
  expect(worker.prefill.theta[1]).toBe(8 * b);
  for (let at = 0; at < 400; at++) {
    worker.observePeriod({ passes: 1, tokens: 1000, attention: at * 1e6, ms: 60 });
  }
  expect(worker.prefill.theta[2]).toBe(0);
  expect(worker.prefill.theta[0]).toBeGreaterThanOrEqual(a / 8);
});

it("takes its prior from any kind of profile", () => {
  const linear = coefficientsPerf({
    prefill: { passMs: 10, msPerToken: 0.05, msPerTokenContext: 2e-6 },
    decode: { stepMs: 8, msPerActiveKvToken: 1e-5, msPerSequence: 0.1 },
  });
  expectNear(prefillPrior(linear, 8192), [10.05, 50 * (8191 / 8192), 2]);
  expectNear(new ShapeLatency(linear, limits).decode.mean, [8.1, 10.48576, 0.02]);
  // An engine so fast that the usual attention coefficient would leave nothing for tokens.
  const fast = prefillPrior({ ...polynomialPerf, prefillMs: (tokens) => 1 + tokens / 1000 }, 8192);
  expect(fast[1]).toBeGreaterThan(0);
  expectNear([fast[0] + 8.192 * fast[1] + 33.554432 * fast[2]], [1 + 8.192]);
  const table = tablePerf({
    prefillIsl: [512, 8192],
    prefillTtftMs: [20, 200],
    decodeActiveKvTokens: [0, 1_000_000],
    decodeContextLength: [1000, 3000],
    decodeItlMs: [
      [6, 7],
      [30, 31],
    ],
    kvAxis: "physical",
  });
  const { mean } = new ShapeLatency(table, limits).decode;
  expect(mean[0]).toBeCloseTo(5.5, 9);
  expect(mean[1]).toBeGreaterThan(20);
});

it("does without the size of KV memory", () => {
  const unknown = { capacityTokens: Number.POSITIVE_INFINITY, batchTokens: 8192 };
  const worker = new WorkerLatency(new ShapeLatency(polynomialPerf, unknown));
  expect(worker.decodeMs(1, 5000)).toBeCloseTo(5.74, 9);
  worker.observeGap({ sequences: 1, activeKvTokens: 5000, ms: 20 });
  expect(worker.decodeMs(1, 5000)).toBeGreaterThan(10);
});
