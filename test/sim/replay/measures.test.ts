import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32 } from "../../../src/base/random.ts";
import { polynomialPerf } from "../../../src/core/perf-model.ts";
import { boundsOf, idlePrefillMs } from "../../../src/sim/replay/bounds.ts";
import { capacityOf, remembered, stepOf } from "../../../src/sim/replay/capacity.ts";
import { prepareTrace } from "../../../src/sim/replay/prepared-trace.ts";
import { replay } from "../../../src/sim/replay/replay.ts";
import { ReplayRun } from "../../../src/sim/replay/replay-run.ts";
import { quantileOf, summaryOf } from "../../../src/sim/replay/run-summary.ts";
import { attainmentOf } from "../../../src/sim/replay/slo.ts";
import { synthesisPresets, synthesizeTrace } from "../../../src/sim/trace-synth.ts";
import { readMockEngineConfig } from "../../../src/worker/mock-engine-config.ts";

const engine = readMockEngineConfig({ block_size: 512, num_gpu_blocks: 2048 });
const search = { speedMin: 1, speedMax: 9, steps: 7, share: 0.95 };
const flat = { deadline: 0, prefill: 0, classes: [], scaled: undefined };

it("finds the highest speed that is met, to a step", () => {
  fc.assert(
    fc.property(fc.double({ min: 1, max: 9, noNaN: true }), (limit) => {
      const at = remembered((speed) => ({ ...flat, pair: speed <= limit ? 1 : 0 }));
      const found = capacityOf(search, at, ({ pair }) => pair) ?? Number.NaN;
      expect(found).toBeLessThanOrEqual(limit);
      expect(found).toBeGreaterThan(limit - 2 * stepOf(search));
      expect(at.runs.size).toBeLessThanOrEqual(search.steps + 1);
    }),
    { seed: 3 },
  );
  expect(stepOf(search)).toBe(0.0625);
});

it("says so when not even the lower bound is met", () => {
  const at = remembered(() => ({ ...flat, pair: 0.949 }));
  expect(capacityOf(search, at, ({ pair }) => pair)).toBeNull();
  expect(
    capacityOf(
      search,
      remembered(() => ({ ...flat, pair: 0.95 })),
      ({ pair }) => pair,
    ),
  ).toBe(8.9375);
});

it("has the published floors of an idle engine", () => {
  expect(idlePrefillMs(engine, 96_925, 0)).toBeLessThanOrEqual(2000.01);
  expect(idlePrefillMs(engine, 96_926, 0)).toBeGreaterThan(2000);
  expect(idlePrefillMs(engine, 48_471, 0)).toBeLessThanOrEqual(1000.01);
  expect(idlePrefillMs(engine, 48_472, 0)).toBeGreaterThan(1000);
  expect(idlePrefillMs(engine, 1024, 512)).toBe(polynomialPerf.prefillMs(512, 0));
});

it("counts prompts below the floor with an empty and an infinite cache", () => {
  const long = Array.from({ length: 200 }, (_, id) => id);
  const requests = [1, 2, 3].map((arrivalMs) => ({
    arrivalMs,
    inputTokens: 200 * 512,
    outputTokens: 1,
    hashIds: long,
  }));
  const bounds = boundsOf({ requests, engine, workers: 1, ttftMs: [2000] });
  expect(bounds.floor).toEqual([{ ttft_ms: 2000, empty_cache: 1, infinite_cache: 0.3333 }]);
  expect(bounds.infinite_cache_hit_ratio).toBeCloseTo(2 / 3, 4);
  expect(bounds.pooled_lru_hit_ratio).toBeCloseTo(2 / 3, 4);
});

it("sums up a run as a recount does", () => {
  const requests = synthesizeTrace({ ...synthesisPresets["toolagent-ci"], requests: 600 });
  const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: mulberry32(1) });
  const pools = [{ engine, workers: 3, policy: "lmetric" as const }];
  const run = replay({ trace, pools, speed: 3, seed: 1 });
  const summary = summaryOf(trace, run);
  const places = [...run.firstMs.keys()];
  const ttft = places.map((place) => (run.firstMs[place] ?? 0) - (run.arrivalMs[place] ?? 0));
  const mean = ttft.reduce((sum, ms) => sum + ms, 0) / ttft.length;
  expect(summary.ttft_ms.mean).toBeCloseTo(mean, 3);
  expect(ttft.filter((ms) => ms <= (summary.ttft_ms.p90 ?? 0) + 1e-4)).toHaveLength(540);
  const cached = places.reduce((sum, place) => sum + (run.cached[place] ?? 0), 0);
  const prompts = requests.reduce((sum, { inputTokens }) => sum + inputTokens, 0);
  expect(summary.hit_ratio).toBeCloseTo(cached / prompts, 4);
  const computed = run.engines.reduce((sum, { computedTokens }) => sum + computedTokens, 0);
  expect(computed).toBe(prompts - cached);
  const windows = run.windows.flatMap((window) => [...window]);
  expect(windows.reduce((sum, tokens) => sum + tokens, 0)).toBe(computed);
  expect(summary.unfinished + summary.rejected).toBe(0);
});

it("takes the nearest rank", () => {
  const sorted = Float64Array.from([1, 2, 3, 4]);
  expect([0, 0.25, 0.26, 0.5, 1].map((q) => quantileOf(sorted, q))).toEqual([1, 1, 2, 2, 4]);
  expect(quantileOf(new Float64Array(0), 0.5)).toBeNull();
});

it("misses what was rejected or broken off, in every form and class", () => {
  const requests = [0, 1, 2].map((arrivalMs) => ({
    arrivalMs,
    inputTokens: 1000,
    outputTokens: 3,
    hashIds: [0, 1],
  }));
  const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: mulberry32(1) });
  const run = new ReplayRun(3);
  run.wanted.fill(3);
  run.arrivalMs.set([0, 1, 2]);
  run.firstMs.set([100, 101]);
  run.lastMs.set([150, 120]);
  run.tokens.set([3, 2]);
  const classes = [
    { share: 0.5, baseMs: 50, msPerInputToken: 0.05 },
    { share: 0.5, baseMs: 0, msPerInputToken: 0.05 },
  ];
  const slo = {
    targets: { ttftMs: 100, tpotMs: 25 },
    prefillTtftMs: 100,
    classes,
    classOf: Uint8Array.from([0, 1, 1]),
  };
  const third = 1 / 3;
  expect(attainmentOf(slo, trace, run)).toEqual({
    pair: third,
    deadline: third,
    prefill: third,
    classes: [1, 0],
    scaled: third,
  });
});
