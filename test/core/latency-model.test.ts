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
      // A profile that is a line has no bend.
      workers.A.prefill.observe([passes, kilotokens, attention, 0], y);
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
  for (const tokens of [500, 1000, 2000]) {
    for (const attention of [1e6, 4e6, 4e7]) {
      const trueMs = 12 + 0.055 * tokens + (1.5 * attention) / 1e6;
      expect(Math.abs(worker.prefillMs(tokens, attention) / trueMs - 1)).toBeLessThan(0.05);
    }
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

/** Periods of the polynomial itself, times `slowness`, by passes of 8192 tokens. */
function teachPolynomial(worker: WorkerLatency, slowness: number, noise: number, seed: number) {
  const random = mulberry32(seed);
  for (let at = 0; at < 300; at++) {
    const tokens = Math.ceil(100 + random() * 40_000);
    const attention = tokens * random() * 60_000;
    let passes = 0;
    let trueMs = 0;
    for (let left = tokens; left > 0; left -= 8192, passes++) {
      trueMs += polynomialPerf.prefillMs(Math.min(left, 8192), 0);
    }
    const ms = slowness * trueMs * (1 + noise * (2 * random() - 1));
    worker.observePeriod({ passes, tokens, attention, ms });
    const [sequences, activeKvTokens] = [Math.ceil(60 * random()), random() * 1_048_576];
    const work = { ...limits, sequences, activeKvTokens, contextTokens: activeKvTokens };
    const stepMs = polynomialPerf.decodeMs({ ...work, capacityKvTokens: limits.capacityTokens });
    worker.observeGap({ sequences, activeKvTokens, ms: slowness * stepMs });
  }
}

function polynomialStepMs(activeKvTokens: number): number {
  const work = { sequences: 8, activeKvTokens, contextTokens: activeKvTokens };
  return polynomialPerf.decodeMs({ ...work, capacityKvTokens: limits.capacityTokens });
}

it("keeps a profile that is right to the digit, whatever its form", () => {
  const worker = new WorkerLatency(new ShapeLatency(polynomialPerf, limits));
  teachPolynomial(worker, 1, 0, 11);
  expect(worker.source).toBe("calibrated");
  expect(worker.medianError).toBeLessThan(1e-9);
  for (const tokens of [1, 300, 4000, 8192]) {
    const predictedMs = worker.prefillMs(tokens, tokens * 30_000);
    expect(predictedMs / polynomialPerf.prefillMs(tokens, 0)).toBeCloseTo(1, 9);
  }
  for (const tokens of [0, 300_000, 1_000_000]) {
    expect(worker.decodeMs(8, tokens) / polynomialStepMs(tokens)).toBeCloseTo(1, 9);
  }
});

it("scales a profile that is off by a factor, its bend included", () => {
  for (const slowness of [0.4, 2.5]) {
    const worker = new WorkerLatency(new ShapeLatency(polynomialPerf, limits));
    teachPolynomial(worker, slowness, 0, 12);
    for (const tokens of [300, 4000, 8192]) {
      const trueMs = slowness * polynomialPerf.prefillMs(tokens, 0);
      expect(Math.abs(worker.prefillMs(tokens, tokens * 30_000) / trueMs - 1)).toBeLessThan(0.05);
    }
    for (const tokens of [100_000, 500_000, 1_000_000]) {
      const trueMs = slowness * polynomialStepMs(tokens);
      expect(Math.abs(worker.decodeMs(8, tokens) / trueMs - 1)).toBeLessThan(0.05);
    }
  }
});

it("lets noise part no workers of a shape", () => {
  const shape = new ShapeLatency(polynomialPerf, limits);
  const workers = Array.from({ length: 4 }, () => new WorkerLatency(shape));
  for (const [at, worker] of workers.entries()) teachPolynomial(worker, 1, 0.2, 20 + at);
  const [first, ...others] = workers.map((worker) => worker.prefillMs(3000, 5e6));
  expect(workers[0]?.prefill.theta).not.toEqual(workers[1]?.prefill.theta);
  for (const other of others) expect(other).toBe(first);
});

it("knows a worker of half the speed after ten periods of it", () => {
  const shape = new ShapeLatency(polynomialPerf, limits);
  const [slow, sound] = [new WorkerLatency(shape), new WorkerLatency(shape)];
  teach(sound, 1, 200, 30);
  teach(slow, 2, 10, 31);
  expect(slow.prefillMs(2000, 4e6)).toBeGreaterThan(1.5 * sound.prefillMs(2000, 4e6));
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
