import fc from "fast-check";
import { expect, it } from "vitest";
import { lateScore } from "../../src/core/best-fit.ts";
import {
  bestQuote,
  plainLive,
  poolPrices,
  type Quote,
  queueWaitMs,
  scoreQuote,
} from "../../src/core/quote-choice.ts";
import type { Role } from "../../src/core/sla-grid.ts";
import golden from "../golden/pool-best-fit.json" with { type: "json" };

const plain = { costShare: 1, gpus: undefined };

function quoteOf(change: Partial<Quote>): Quote {
  return {
    ...{ predictedTtftMs: 100, predictedItlMs: 10, queueMs: 0, cachedTokens: 0 },
    ...{ prefillGpuMs: 50, decodeGpuMs: 20, gpus: 1, validForMs: 50, breaksPromise: false },
    ...change,
  };
}

it.each(golden.cases)("picks between pools: $why", ({ quotes, target_ttft_ms, scores, pick }) => {
  const targets = { role: "prefill" as const, ttftMs: target_ttft_ms, itlMs: undefined };
  const scored = quotes.map((given, pool) => {
    const quote = quoteOf({
      predictedTtftMs: given.predicted_ttft_ms,
      prefillGpuMs: given.prefill_gpu_ms,
      gpus: given.gpus,
    });
    return { pool, ...scoreQuote({ quote, price: plain }, targets, plainLive) };
  });
  for (const [at, { score, late_ms }] of scores.entries()) {
    expect(scored[at]!.score / score).toBeCloseTo(1, 9);
    expect(scored[at]!.meets).toBe(late_ms === 0);
  }
  expect(quotes[bestQuote(scored, -1)!.pool]?.pool).toBe(pick);
});

it("counts a missed ITL of an agg pool as late, and TTFT before it", () => {
  const targets = { role: "agg" as const, ttftMs: 200, itlMs: 20 };
  const of = (change: Partial<Quote>) =>
    scoreQuote({ quote: quoteOf(change), price: plain }, targets);
  expect(of({})).toEqual({ score: 80, meets: true, missed: [] });
  expect(of({ predictedItlMs: 20 }).meets).toBe(true);
  expect(of({ predictedItlMs: 23 })).toEqual({
    score: lateScore + 3,
    meets: false,
    missed: ["itl"],
  });
  const ttftLate = of({ predictedTtftMs: 200 });
  expect(ttftLate.score).toBeCloseTo(lateScore + 20_000, 3);
  expect(of({ predictedTtftMs: 200, predictedItlMs: 23 })).toMatchObject({
    missed: ["ttft", "itl"],
  });
  expect(of({ predictedItlMs: 1000 }).score).toBeLessThan(ttftLate.score);
});

it("gives a request that is late everywhere the cheapest pool, before that the least late", () => {
  const cheap = quoteOf({ predictedTtftMs: 900, prefillGpuMs: 500, gpus: 2 });
  const fast = quoteOf({ predictedTtftMs: 300, prefillGpuMs: 900, gpus: 8 });
  const pick = (ttftMs: number, quotes: readonly Quote[], role: Role = "prefill") => {
    const targets = { role, ttftMs, itlMs: undefined };
    const scored = quotes.map((quote, pool) => {
      return { pool, ...scoreQuote({ quote, price: plain }, targets) };
    });
    return quotes[bestQuote(scored, -1)!.pool];
  };
  expect(pick(330.1, [cheap, fast])).toBe(fast);
  expect(pick(300, [cheap, fast])).toBe(fast);
  expect(pick(299, [cheap, fast])).toBe(cheap);
  expect(pick(299, [cheap, fast], "agg")).toBe(cheap);
  // The wait still counts by what it costs: here 0.1 * 18,000 * 2.
  const queued = { ...cheap, predictedTtftMs: 18_000 };
  expect(pick(299, [queued, fast])).toBe(fast);
});

it("gives a decode request the least late pool", () => {
  const targets = { role: "decode" as const, ttftMs: undefined, itlMs: 5 };
  const scoreOf = (predictedItlMs: number, decodeGpuMs: number) =>
    scoreQuote({ quote: quoteOf({ predictedItlMs, decodeGpuMs }), price: plain }, targets).score;
  expect(scoreOf(20, 900)).toBeLessThan(scoreOf(21, 1));
});

it("charges what a role's pools do: prefill, decode, or both", () => {
  const quote = quoteOf({});
  const scoreOf = (role: Role) =>
    scoreQuote({ quote, price: plain }, { role, ttftMs: 1000, itlMs: 1000 }, plainLive).score;
  expect([scoreOf("prefill"), scoreOf("decode"), scoreOf("agg")]).toEqual([60, 21, 80]);
});

it("scales GPU time by price and GPUs of the config, never beyond what a miss scores", () => {
  const prices = poolPrices([{ costPerSecond: 2 }, { costPerSecond: 8, gpus: 4 }]);
  expect(prices).toEqual([
    { costShare: 0.25, gpus: undefined },
    { costShare: 1, gpus: 4 },
  ]);
  expect(poolPrices([{}, { gpus: 2 }]).map(({ costShare }) => costShare)).toEqual([1, 1]);
  const quote = quoteOf({ gpus: 2 });
  const targets = { role: "prefill" as const, ttftMs: 1000, itlMs: undefined };
  const scores = prices.map((price) => scoreQuote({ quote, price }, targets, plainLive).score);
  expect(scores).toEqual([0.25 * (50 + 0.1 * 100 * 2), 2 * 50 + 0.1 * 100 * 4]);
});

it("prefers the grid's pool, then the lower one, between equals", () => {
  const tied = [4, 1, 3].map((pool) => ({ pool, score: 7 }));
  expect(bestQuote(tied, 3)?.pool).toBe(3);
  expect(bestQuote(tied, 0)?.pool).toBe(1);
  expect(bestQuote([], 0)).toBe(undefined);
});

it("waits as long as the queue is what makes it late, and not otherwise", () => {
  const targets = { role: "prefill" as const, ttftMs: 110, itlMs: undefined };
  const wait = (ttft: number, queueMs: number) =>
    queueWaitMs(quoteOf({ predictedTtftMs: ttft, queueMs }), targets);
  expect(wait(150, 60)).toBeCloseTo(50, 9);
  expect(wait(150, 49)).toBe(undefined);
  expect(wait(90, 60)).toBe(undefined);
  expect(
    queueWaitMs(quoteOf({ predictedTtftMs: 150, queueMs: 60 }), { ...targets, role: "decode" }),
  ).toBe(undefined);
});

it("finds the best of all workers among the best of each pool", () => {
  const worker = fc.record({ ttft: fc.integer({ min: 1, max: 500 }), gpu: fc.nat({ max: 500 }) });
  const pools = fc.array(fc.array(worker, { minLength: 1, maxLength: 4 }), {
    ...{ minLength: 1, maxLength: 4 },
  });
  fc.assert(
    fc.property(pools, fc.integer({ min: 1, max: 500 }), (workersOf, ttftMs) => {
      const targets = { role: "prefill" as const, ttftMs, itlMs: undefined };
      const scoreOf = ({ ttft, gpu }: { ttft: number; gpu: number }): number =>
        scoreQuote(
          { quote: quoteOf({ predictedTtftMs: ttft, prefillGpuMs: gpu }), price: plain },
          targets,
        ).score;
      const bestOfEach = workersOf.map((workers, pool) => ({
        pool,
        score: Math.min(...workers.map(scoreOf)),
      }));
      const all = workersOf.flat().map(scoreOf);
      expect(bestQuote(bestOfEach, 0)?.score).toBe(Math.min(...all));
    }),
  );
});

it("takes a quote that breaks a promise only where every other one is late", () => {
  const targets = { role: "prefill" as const, ttftMs: 1000, itlMs: undefined };
  const pick = (quotes: readonly Partial<Quote>[]) => {
    const scored = quotes.map((quote, pool) => {
      return { pool, ...scoreQuote({ quote: quoteOf(quote), price: plain }, targets) };
    });
    return bestQuote(scored, -1)?.pool;
  };
  const breaking = { breaksPromise: true };
  expect(pick([breaking, { prefillGpuMs: 900_000 }])).toBe(1);
  expect(pick([breaking, { predictedTtftMs: 950 }])).toBe(0);
  const late = { predictedTtftMs: 3000 };
  expect(
    pick([
      { ...late, ...breaking },
      { ...late, prefillGpuMs: 900_000 },
    ]),
  ).toBe(1);
});
