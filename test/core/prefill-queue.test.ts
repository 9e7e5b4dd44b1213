import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import { LatencyBook } from "../../src/core/latency-book.ts";
import { ShapeLatency } from "../../src/core/latency-model.ts";
import { readPerfModel } from "../../src/core/perf-model.ts";
import { heldPerWorkerMax, leadMs } from "../../src/core/prefill-queue.ts";

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
  /** From its arrival. */
  readonly targetMs: number;
}

function bookOf(): LatencyBook {
  const load = { activeBlocks: new Float64Array(1), activeRequests: new Int32Array(1) };
  const random = mulberry32(1);
  const book = new LatencyBook({ role: "prefill", blockSize: 16, load, random, holds: true });
  const limits = { capacityTokens: 1e6, batchTokens };
  book.addHolder(0, new ShapeLatency(perf, limits, false, false));
  return book;
}

function dispatch(book: LatencyBook, key: string, prompt: Prompt, mayWait = true): void {
  const { atMs: nowMs, tokens, cached, targetMs } = prompt;
  book.dispatched({
    ...{ key, slot: 0, nowMs, uncachedTokens: tokens, cachedTokens: cached },
    sequence: new Uint32Array(0),
    deadlineMs: nowMs + targetMs,
    mayWait,
  });
}

function forecastOf(book: LatencyBook, { atMs: nowMs, tokens, cached, targetMs }: Prompt) {
  const found = { endMs: Number.NaN, sentMs: 0, dueMs: 0, breaksPromise: false };
  const prompt = { nowMs, uncachedTokens: tokens, cachedTokens: cached };
  book.forecastDue(0, { ...prompt, deadlineMs: nowMs + targetMs }, found);
  return found;
}

/** An engine in its own words, first come first served, that gets what the book lets go. */
function run(book: LatencyBook, prompts: readonly Prompt[]) {
  const left = prompts.map(({ tokens }) => tokens);
  const firstMs = prompts.map(() => Number.NaN);
  const sentMs = prompts.map(() => Number.NaN);
  const forecasts: ReturnType<typeof forecastOf>[] = [];
  const sent: number[] = [];
  let arrived = 0;
  let nowMs = 0;
  let pass: { endMs: number; taken: number[] } | undefined;
  const begin = (): void => {
    let room = batchTokens;
    let attention = 0;
    const taken: number[] = [];
    for (const at of sent) {
      const tokens = Math.min(room, left[at]!);
      if (tokens === 0) continue;
      attention += tokens * (prompts[at]!.cached + prompts[at]!.tokens - left[at]! + tokens / 2);
      left[at]! -= tokens;
      room -= tokens;
      taken.push(at);
    }
    if (room === batchTokens) return;
    pass = { endMs: nowMs + perf.prefillMs(batchTokens - room, attention), taken };
  };
  const sendHeld = (): void => {
    for (let key = book.nextHeld(0); key !== undefined; key = book.nextHeld(0)) {
      if (book.releaseAtMs(key, nowMs)! > nowMs) return;
      book.release(key, nowMs);
      sent.push(Number(key));
      sentMs[Number(key)] = nowMs;
    }
  };
  while (arrived < prompts.length || pass || book.heldCount > 0) {
    const held = book.nextHeld(0);
    const sendMs = held === undefined ? Infinity : book.releaseAtMs(held, nowMs)!;
    const arrivalMs = prompts[arrived]?.atMs ?? Infinity;
    nowMs = Math.min(arrivalMs, sendMs, pass?.endMs ?? Infinity);
    expect(nowMs).toBeLessThan(Infinity);
    if (pass && pass.endMs === nowMs) {
      const { taken } = pass;
      pass = undefined;
      for (const at of taken) {
        if (left[at] !== 0) continue;
        firstMs[at] = nowMs;
        book.firstToken(String(at), nowMs);
      }
    } else if (arrivalMs === nowMs) {
      const prompt = prompts[arrived]!;
      forecasts.push(forecastOf(book, prompt));
      dispatch(book, String(arrived), prompt);
      if (!book.isHeld(String(arrived))) sent.push(arrived);
      arrived++;
    }
    sendHeld();
    // An idle engine takes all of one instant into its first pass.
    if (!pass && prompts[arrived]?.atMs !== nowMs) begin();
  }
  return { firstMs, sentMs, forecasts, sent };
}

const promptsOf = fc
  .array(
    fc.record({
      gapMs: fc.oneof(fc.constant(0), fc.double({ min: 0.01, max: 300, noNaN: true })),
      // Passes longer than the lead: what is sent into a shorter one joins the pass before.
      fullPasses: fc.integer({ min: 0, max: 3 }),
      lastTokens: fc.integer({ min: 150, max: batchTokens }),
      cached: fc.integer({ min: 0, max: 2000 }),
      targetMs: fc.oneof(fc.constantFrom(200, 500, 2000), fc.integer({ min: 1, max: 20_000 })),
    }),
    { minLength: 1, maxLength: 12 },
  )
  .map((rows) => {
    let atMs = 0;
    return rows.map(({ gapMs, fullPasses, lastTokens, ...prompt }) => {
      atMs += gapMs;
      return { ...prompt, atMs, tokens: fullPasses * batchTokens + lastTokens };
    });
  });

it("foresees the dispatch and the first token of every prompt as if nobody came after it", () => {
  fc.assert(
    fc.property(promptsOf, (prompts) => {
      for (const at of prompts.keys()) {
        const { firstMs, sentMs, forecasts } = run(bookOf(), prompts.slice(0, at + 1));
        expect(forecasts[at]!.endMs).toBeCloseTo(firstMs[at]!, 5);
        expect(forecasts[at]!.sentMs).toBeCloseTo(sentMs[at]!, 5);
      }
    }),
    { seed: 11, numRuns: 200 },
  );
});

it("makes nobody late whom it foresaw in time, unless the newcomer was said to break a promise", () => {
  fc.assert(
    fc.property(promptsOf, (prompts) => {
      const last = prompts.length - 1;
      const before = run(bookOf(), prompts.slice(0, last)).firstMs;
      const { firstMs, forecasts } = run(bookOf(), prompts);
      if (forecasts[last]!.breaksPromise) return;
      for (const [at, ms] of before.entries()) {
        const dueMs = prompts[at]!.atMs + prompts[at]!.targetMs;
        if (ms <= dueMs) expect(firstMs[at]).toBeLessThanOrEqual(dueMs + 1e-6);
      }
    }),
    { seed: 12, numRuns: 300 },
  );
});

const lax = { atMs: 0, tokens: 3000, cached: 0, targetMs: 60_000 };

it("sends what is due earlier first, and the first at once", () => {
  const prompts = [
    lax,
    { ...lax, atMs: 1 },
    { ...lax, atMs: 2, tokens: 600, targetMs: 9000 },
    { ...lax, atMs: 3, tokens: 600, targetMs: 2000 },
  ];
  const { sent, firstMs } = run(bookOf(), prompts);
  expect(sent).toEqual([0, 3, 2, 1]);
  expect(firstMs[3]).toBeLessThan(firstMs[2]!);
});

it("lets short prompts share a pass, and long ones none", () => {
  const runOf = (tokens: number) => {
    const rest = [1, 2, 3].map((atMs) => ({ ...lax, atMs, tokens }));
    return run(bookOf(), [lax, ...rest]).firstMs.slice(1);
  };
  // An empty pass takes 10 ms, so that passes of up to 100 ms are shared.
  expect(new Set(runOf(300)).size).toBe(1);
  expect(new Set(runOf(310)).size).toBe(2);
  expect(new Set(runOf(500)).size).toBe(3);
});

it("sends a held prompt shortly before its turn, or at once when the turn comes early", () => {
  const book = bookOf();
  dispatch(book, "a", { ...lax, tokens: 800 });
  expect([book.releaseAtMs("a", 0)! <= 0, book.heldCount]).toEqual([true, 1]);
  book.release("a", 0);
  dispatch(book, "b", { ...lax, atMs: 1 });
  const endMs = perf.prefillMs(800, 800 * 400);
  expect(book.releaseAtMs("b", 1)).toBeCloseTo(endMs - leadMs, 6);
  dispatch(book, "c", { ...lax, atMs: 2 });
  expect(book.releaseAtMs("c", 2)).toBe(Number.POSITIVE_INFINITY);
  book.firstToken("a", 30);
  expect(book.releaseAtMs("b", 30)).toBeLessThanOrEqual(30);
});

it("sends nothing behind a first token that is overdue, until it comes", () => {
  const book = bookOf();
  dispatch(book, "a", { ...lax, tokens: 800 }, false);
  dispatch(book, "b", { ...lax, atMs: 1 });
  const endMs = perf.prefillMs(800, 800 * 400);
  expect(book.releaseAtMs("b", endMs + 250)).toBeLessThan(endMs);
  expect(book.releaseAtMs("b", endMs + 251)).toBe(Number.POSITIVE_INFINITY);
  book.firstToken("a", endMs + 900);
  expect(book.releaseAtMs("b", endMs + 900)).toBeLessThanOrEqual(endMs + 900);
});

it("a prompt that is late everywhere waits for those in time, but not for ever", () => {
  const prompts = [
    lax,
    { ...lax, atMs: 1, tokens: 2000, targetMs: 1 },
    { ...lax, atMs: 2, tokens: 100, targetMs: 9000 },
    { ...lax, atMs: 3, tokens: 100, targetMs: 11_000 },
  ];
  expect(run(bookOf(), prompts).sent).toEqual([0, 2, 1, 3]);
});

it("holds only what has a deadline and may wait, and no more than there is room for", () => {
  const book = bookOf();
  const names: string[] = [];
  for (let at = 0; at <= heldPerWorkerMax + 1; at++) {
    names.push(String(at));
    dispatch(book, String(at), { ...lax, atMs: at / 1000 }, at > 0);
  }
  expect(names.filter((key) => book.isHeld(key))).toEqual(names.slice(1, -1));
  dispatch(book, "none", { ...lax, targetMs: Number.POSITIVE_INFINITY });
  expect(book.isHeld("none")).toBe(false);
  expect(book.heldCount).toBe(heldPerWorkerMax);
  for (const key of [...names, "none"]) book.finished(key, 5);
  expect([book.heldCount, book.queuedCount, book.requestCount]).toEqual([0, 0, 0]);
  expect([book.pendingTokens[0], book.pendingAttention[0]]).toEqual([0, 0]);
});

it("the turn of a held prompt comes earlier when another one leaves", () => {
  const book = bookOf();
  const turns: number[] = [];
  dispatch(book, "a", lax, false);
  dispatch(book, "b", { ...lax, atMs: 1, targetMs: 30_000 });
  dispatch(book, "c", { ...lax, atMs: 2 });
  book.onTurns = (slot) => turns.push(slot);
  book.finished("b", 3);
  expect([book.nextHeld(0), turns]).toEqual(["c", [0]]);
  expect(book.releaseAtMs("c", 3)).toBeLessThan(Number.POSITIVE_INFINITY);
  book.removeHolder(0);
  expect([book.nextHeld(0), book.releaseAtMs("c", 4), book.heldCount]).toEqual([
    undefined,
    undefined,
    0,
  ]);
});
