import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import { LatencyBook } from "../../src/core/latency-book.ts";
import { ShapeLatency } from "../../src/core/latency-model.ts";
import { readPerfModel } from "../../src/core/perf-model.ts";
import { type Forecast, forecastPrompt } from "../../src/core/prefill-plan.ts";

const batchTokens = 1000;
const perf = readPerfModel({
  kind: "coefficients",
  prefill: { pass_ms: 10, ms_per_token: 0.1, ms_per_token_context: 1e-4 },
  decode: { step_ms: 1, ms_per_active_kv_token: 0, ms_per_sequence: 0 },
});

interface Prompt {
  readonly atMs: number;
  readonly tokens: number;
  readonly cached: number;
}

/** First tokens of an engine that computes prompts in order, `batchTokens` a pass. */
function engineTimes(prompts: readonly Prompt[]): number[] {
  const left = prompts.map(({ tokens }) => tokens);
  const firstMs = prompts.map(() => Number.NaN);
  let nowMs = 0;
  while (left.some((tokens) => tokens > 0)) {
    const waiting = prompts.flatMap(({ atMs }, at) => (left[at]! > 0 ? [{ atMs, at }] : []));
    nowMs = Math.max(nowMs, waiting[0]!.atMs);
    let room = batchTokens;
    let attention = 0;
    const ended: number[] = [];
    for (const { atMs, at } of waiting) {
      if (atMs > nowMs || room === 0) break;
      const tokens = Math.min(room, left[at]!);
      const { tokens: all, cached } = prompts[at]!;
      attention += tokens * (cached + all - left[at]! + tokens / 2);
      left[at]! -= tokens;
      room -= tokens;
      if (left[at] === 0) ended.push(at);
    }
    nowMs += perf.prefillMs(batchTokens - room, attention);
    for (const at of ended) firstMs[at] = nowMs;
  }
  return firstMs;
}

function bookOf(): LatencyBook {
  const load = { activeBlocks: new Float64Array(1), activeRequests: new Int32Array(1) };
  const book = new LatencyBook({ role: "prefill", blockSize: 16, load, random: mulberry32(1) });
  const limits = { capacityTokens: 1e6, batchTokens };
  book.addHolder(0, new ShapeLatency(perf, limits, false, false));
  return book;
}

function forecastOf(book: LatencyBook, { atMs, tokens, cached }: Prompt): Forecast {
  const found = { endMs: Number.NaN, passStartMs: 0, passTokens: 0, breaksPromise: false };
  const prompt = { nowMs: atMs, uncachedTokens: tokens, cachedTokens: cached };
  forecastPrompt(book.planAt(0)!, prompt, book.modelAt(0)!, found);
  return found;
}

/** Dispatches the prompts as they come, with the first tokens of the engine so far in between. */
function dispatchAll(
  book: LatencyBook,
  prompts: readonly Prompt[],
  deadlineMsOf: (prompt: Prompt) => number = () => Number.POSITIVE_INFINITY,
): Forecast[] {
  const seen = new Set<number>();
  return prompts.map((prompt, at) => {
    const { atMs: nowMs, tokens, cached } = prompt;
    const before = engineTimes(prompts.slice(0, at));
    const order = [...before.keys()].sort((one, other) => before[one]! - before[other]!);
    for (const other of order) {
      if (before[other]! >= nowMs || seen.has(other)) continue;
      seen.add(other);
      book.firstToken(String(other), before[other]!);
    }
    const found = forecastOf(book, prompt);
    book.dispatched({
      ...{ key: String(at), slot: 0, nowMs, uncachedTokens: tokens, cachedTokens: cached },
      sequence: new Uint32Array(0),
      deadlineMs: deadlineMsOf(prompt),
    });
    return found;
  });
}

const promptsOf = fc
  .array(
    fc.record({
      // Off any instant at which a pass may end.
      gapMs: fc.oneof(fc.constant(0), fc.double({ min: 0.01, max: 300, noNaN: true })),
      tokens: fc.integer({ min: 1, max: 3500 }),
      cached: fc.integer({ min: 0, max: 2000 }),
    }),
    { minLength: 1, maxLength: 12 },
  )
  .map((rows) => {
    let atMs = 0;
    return rows.map(({ gapMs, tokens, cached }) => {
      atMs += gapMs;
      return { atMs, tokens, cached };
    });
  });

it("foresees the first token of every prompt as if it were the last to come", () => {
  fc.assert(
    fc.property(promptsOf, (prompts) => {
      const found = dispatchAll(bookOf(), prompts);
      for (const [at, { endMs }] of found.entries()) {
        expect(endMs).toBeCloseTo(engineTimes(prompts.slice(0, at + 1))[at]!, 5);
      }
    }),
    { seed: 7, numRuns: 300 },
  );
});

it("says when a prompt would make one late that shares its pass", () => {
  const book = bookOf();
  const prompts = [
    { atMs: 0, tokens: 1000, cached: 0 },
    { atMs: 1, tokens: 200, cached: 0 },
  ];
  const [, second] = engineTimes(prompts);
  dispatchAll(book, prompts, ({ atMs }) => (atMs === 1 ? second! + 30 : Number.POSITIVE_INFINITY));
  const breaks = (tokens: number, atMs = 2): boolean =>
    forecastOf(book, { atMs, tokens, cached: 0 }).breaksPromise;
  // 100 tokens take 10 ms and their attention more; what does not fit the pass delays nobody.
  expect([100, 200, 300, 5000].map((tokens) => breaks(tokens))).toEqual([false, false, true, true]);
  expect(breaks(5000, second! - 1)).toBe(false);
});

it("keeps no promise that is broken already", () => {
  const book = bookOf();
  const prompts = [
    { atMs: 0, tokens: 1000, cached: 0 },
    { atMs: 1, tokens: 200, cached: 0 },
  ];
  dispatchAll(book, prompts, () => 5);
  expect(forecastOf(book, { atMs: 2, tokens: 500, cached: 0 }).breaksPromise).toBe(false);
});

it("forgets a prompt that leaves the queue", () => {
  const book = bookOf();
  const prompts = [800, 900, 700].map((tokens) => ({ atMs: 0, tokens, cached: 0 }));
  dispatchAll(book, prompts);
  book.finished("1", 1);
  const left = [prompts[0]!, prompts[2]!];
  const next = { atMs: 0, tokens: 400, cached: 0 };
  expect(forecastOf(book, next).endMs).toBeCloseTo(engineTimes([...left, next])[2]!, 9);
  book.finished("0", 2);
  book.finished("2", 2);
  expect(forecastOf(book, { ...next, atMs: 3 }).endMs).toBeCloseTo(3 + engineTimes([next])[0]!, 9);
});

it("plans on from a first token that comes earlier or later than expected", () => {
  for (const offMs of [-30, 80]) {
    const book = bookOf();
    const prompts = [1500, 900].map((tokens) => ({ atMs: 0, tokens, cached: 0 }));
    const [firstMs] = engineTimes(prompts);
    dispatchAll(book, prompts);
    book.firstToken("0", firstMs! + offMs);
    const next = { atMs: firstMs! + offMs + 1, tokens: 2000, cached: 0 };
    const wanted = engineTimes([...prompts, { ...next, atMs: firstMs! + 1 }])[2]!;
    expect(forecastOf(book, next).endMs).toBeCloseTo(wanted + offMs, 5);
  }
});
