import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import { LatencyBook, type LatencyRole } from "../../src/core/latency-book.ts";
import { ShapeLatency } from "../../src/core/latency-model.ts";
import { latencyObserver } from "../../src/core/latency-observer.ts";
import { coefficientsPerf, polynomialPerf } from "../../src/core/perf-model.ts";
import { WorkerLoad } from "../../src/core/worker-load.ts";

const blockSize = 16;
const limits = { capacityTokens: 160_000, batchTokens: 2048 };
const none = new Uint32Array(0);
/** Passes of 10 ms + 0.05 ms a token, steps of 8 ms. */
const perf = coefficientsPerf({
  prefill: { passMs: 10, msPerToken: 0.05, msPerTokenContext: 0 },
  decode: { stepMs: 8, msPerActiveKvToken: 0, msPerSequence: 0 },
});

interface Rig {
  readonly book: LatencyBook;
  readonly shape: ShapeLatency;
  dispatch(key: string, nowMs: number, uncachedTokens: number, cachedTokens?: number): void;
}

function rig(role: LatencyRole = "aggregated", profile = perf): Rig {
  const load = { activeBlocks: new Float64Array(4), activeRequests: new Int32Array(4) };
  const book = new LatencyBook({ role, blockSize, load, random: mulberry32(1) });
  const shape = new ShapeLatency(profile, limits);
  for (let slot = 0; slot < 4; slot++) book.addHolder(slot, shape);
  const dispatch = (key: string, nowMs: number, uncachedTokens: number, cachedTokens = 0) =>
    book.dispatched({ key, slot: 0, nowMs, uncachedTokens, cachedTokens, sequence: none });
  return { book, shape, dispatch };
}

/** Prefill coefficients that one observation on a fresh shape would give. */
function thetaAfter(passes: number, tokens: number, attention: number, ms: number): number[] {
  const { book } = rig();
  book.modelAt(0)?.observePeriod({ passes, tokens, attention, ms });
  return [...(book.modelAt(0)?.prefill.theta ?? [])];
}

function theta({ book }: Rig): number[] {
  return [...(book.modelAt(0)?.prefill.theta ?? [])];
}

it("learns from the time between a dispatch into an empty queue and the last first token", () => {
  const one = rig();
  one.dispatch("a", 1000, 1000);
  one.dispatch("b", 1010, 800, 200);
  one.book.firstToken("a", 1200);
  expect(one.book.modelAt(0)?.periods).toBe(0);
  one.book.firstToken("b", 1300);
  expect(one.book.modelAt(0)?.periods).toBe(1);
  // Two passes, each with a decode step of 8 ms.
  const attention = 1000 * 500 + 800 * (200 + 400);
  expect(theta(one)).toEqual(thetaAfter(2, 1800, attention, 300 - 16));
});

it("plans the queues of prefill workers only, and none when told not to", () => {
  const load = { activeBlocks: new Float64Array(1), activeRequests: new Int32Array(1) };
  const planOf = (role: LatencyRole, plans?: boolean): unknown => {
    const book = new LatencyBook({ role, blockSize, load, random: mulberry32(1), plans });
    book.addHolder(0, new ShapeLatency(perf, limits));
    return book.planAt(0);
  };
  expect(planOf("prefill")).toBeDefined();
  expect(planOf("prefill", false)).toBeUndefined();
  expect(planOf("aggregated", true)).toBeUndefined();
});

it("takes first tokens within a millisecond for one pass, and long prompts for several", () => {
  const one = rig();
  one.dispatch("a", 1000, 500);
  one.dispatch("b", 1000, 500);
  one.book.firstToken("a", 1200);
  one.book.firstToken("b", 1201);
  expect(theta(one)).toEqual(thetaAfter(1, 1000, 250_000, 201 - 8));
  const long = rig();
  long.dispatch("a", 1000, 4097);
  long.book.firstToken("a", 1500);
  expect(theta(long)).toEqual(thetaAfter(3, 4097, 4097 * 4097 * 0.5, 500 - 24));
});

it("waits half a step for the running pass when streams decode", () => {
  const one = rig();
  one.dispatch("a", 0, 1);
  one.book.firstToken("a", 100);
  one.dispatch("b", 1000, 1000);
  one.book.firstToken("b", 1200);
  expect(theta(one)).toEqual(thetaAfter(1, 1000, 500_000, 200 - 4 - 8));
});

it("prefers what the engine says was cached", () => {
  const one = rig();
  one.dispatch("a", 1000, 1000);
  one.book.firstToken("a", 1200, 400);
  expect(theta(one)).toEqual(thetaAfter(1, 600, 600 * 700, 192));
});

it("closes a period at eight first tokens and opens the next at once", () => {
  const one = rig();
  for (let at = 0; at < 10; at++) one.dispatch(`${at}`, 1000, 100);
  for (let at = 0; at < 7; at++) one.book.firstToken(`${at}`, 1100 + 20 * at);
  expect(one.book.modelAt(0)?.periods).toBe(0);
  one.book.firstToken("7", 1240);
  expect(one.book.modelAt(0)?.periods).toBe(1);
  const first = rig();
  first.book.modelAt(0)?.observePeriod({ passes: 8, tokens: 800, attention: 40_000, ms: 176 });
  expect(theta(one)).toEqual(theta(first));
  one.book.firstToken("8", 1260);
  one.book.firstToken("9", 1300);
  first.book.modelAt(0)?.observePeriod({ passes: 2, tokens: 200, attention: 10_000, ms: 60 - 16 });
  expect(theta(one)).toEqual(theta(first));
});

it("learns nothing from tiny, endless or spoilt periods", () => {
  const periods = (tokens: number, ms: number): number => {
    const one = rig();
    one.dispatch("a", 1000, tokens);
    one.book.firstToken("a", 1000 + ms);
    return one.book.modelAt(0)?.periods ?? -1;
  };
  expect([periods(64, 50), periods(63, 50)]).toEqual([1, 0]);
  expect([periods(1000, 8), periods(1000, 9)]).toEqual([0, 1]);
  expect([periods(1000, 120_007), periods(1000, 120_008)]).toEqual([1, 0]);
  const spoilt = rig();
  spoilt.dispatch("a", 1000, 1000);
  spoilt.dispatch("b", 1000, 1000);
  spoilt.book.finished("a", 1100);
  spoilt.book.firstToken("b", 1200);
  expect(spoilt.book.modelAt(0)?.periods).toBe(0);
  spoilt.dispatch("c", 2000, 1000);
  spoilt.book.firstToken("c", 2100);
  expect(spoilt.book.modelAt(0)?.periods).toBe(1);
});

it("a worker without observations follows its shape, one of another shape does not", () => {
  const one = rig();
  const other = new ShapeLatency(perf, limits);
  one.book.addHolder(3, other);
  one.dispatch("a", 1000, 1000);
  one.book.firstToken("a", 1400);
  const [learnt, sibling, stranger] = [0, 1, 3].map((slot) => one.book.modelAt(slot)!);
  expect(learnt!.source).toBe("calibrated");
  expect(sibling!.source).toBe("calibrated");
  expect([...sibling!.prefill.theta]).toEqual([...one.shape.prefill.theta]);
  expect(sibling!.prefillMs(1000, 0)).toBeGreaterThan(perf.prefillMs(1000, 0));
  expect(stranger!.source).toBe("profile");
  expect(stranger!.prefillMs(1000, 0)).toBe(perf.prefillMs(1000, 0));
});

it("returns to the profile when half of the last 64 predictions are off by more than half", () => {
  const { book } = rig();
  const model = book.modelAt(0)!;
  for (let at = 0; at < 64; at++) {
    expect(model.source).toBe(at === 0 ? "profile" : "calibrated");
    // No linear model predicts these.
    model.observePeriod({ passes: 1, tokens: 1000, attention: 0, ms: at % 2 ? 20 : 2000 });
  }
  expect(model.medianError).toBeGreaterThan(0.5);
  expect(model.source).toBe("profile");
  expect(model.prefillMs(1000, 0)).toBe(perf.prefillMs(1000, 0));
  // What it was wrongly taught is forgotten first.
  for (let at = 0; at < 200; at++) {
    model.observePeriod({ passes: 1, tokens: 1000, attention: 0, ms: 60 });
  }
  expect(model.source).toBe("calibrated");
});

it("learns the decode step from streams of a worker that prefills nothing", () => {
  const one = rig();
  const { book } = one;
  one.dispatch("a", 0, 1000);
  book.firstToken("a", 100);
  for (let token = 2; token <= 17; token++) book.decoded("a", token, 100 + 20 * (token - 1));
  expect(one.shape.decode.observations).toBe(1);
  expect(book.modelAt(0)?.decodeMs(1, 0)).toBeGreaterThan(15);
  book.decoded("a", 33, 740);
  expect(one.shape.decode.observations).toBe(2);
  // A prompt in between makes the gap one of prefill.
  one.dispatch("b", 750, 100);
  book.firstToken("b", 800);
  book.decoded("a", 65, 1380);
  expect(one.shape.decode.observations).toBe(2);
  book.decoded("a", 97, 2020);
  expect(one.shape.decode.observations).toBe(3);
});

it("expects of an answer the mean of those before it", () => {
  const { book, dispatch } = rig();
  expect(book.outputTokensMean).toBe(340);
  dispatch("a", 0, 10);
  book.answered("a", 100, 10);
  expect(book.outputTokensMean).toBe(100);
  book.answered("a", 200, 10);
  book.answered("a", 0, 10);
  expect(book.outputTokensMean).toBe(150);
});

it("takes requests without prefill as decoding from the start", () => {
  const one = rig("decode", polynomialPerf);
  one.dispatch("a", 0, 1000);
  expect(one.book.decoding[0]).toBe(1);
  expect(one.book.pendingTokens[0]).toBe(0);
  one.book.firstToken("a", 5);
  one.book.finished("a", 10);
  expect(one.book.decoding[0]).toBe(0);
});

it("agrees with a naive recount under random lifecycles, booked through the load", () => {
  const step = fc.record({
    kind: fc.constantFrom("add", "add", "first", "free", "remove"),
    slot: fc.nat(2),
    request: fc.nat(7),
    uncached: fc.nat(300),
    cached: fc.nat(300),
  });
  const property = fc.property(fc.array(step, { maxLength: 120 }), (steps) => {
    const load = new WorkerLoad(mulberry32(2));
    const random = mulberry32(3);
    const book = new LatencyBook({ role: "aggregated", blockSize, load, random });
    load.observe(latencyObserver(book));
    const shape = new ShapeLatency(polynomialPerf, limits);
    const addHolder = (slot: number): void => {
      load.addHolder(slot);
      book.addHolder(slot, shape);
    };
    for (const slot of [0, 1, 2]) addHolder(slot);
    interface Naive {
      slot: number;
      uncached: number;
      cached: number;
      queued: boolean;
      sentMs: number;
    }
    const naive = new Map<string, Naive>();
    for (const [nowMs, { kind, slot, request, uncached, cached }] of steps.entries()) {
      const key = String(request);
      const sequence = Uint32Array.of(request, 0, request, 1);
      if (kind === "add") {
        if (!naive.has(key)) {
          const queued = uncached > 0;
          naive.set(key, { slot, uncached, cached, queued, sentMs: nowMs });
        }
        load.add({
          ...{ key, slot, nowMs, privateBlocks: 0, expectedPrefillMs: 0 },
          sequence: new Uint32Array(0),
          promptHashes: sequence,
          prefillTokens: uncached,
          cachedTokens: cached,
        });
      } else if (kind === "first") {
        load.markPrefillCompleted(key, nowMs);
        const known = naive.get(key);
        if (known) known.queued = false;
      } else if (kind === "free") {
        load.free(key, nowMs);
        naive.delete(key);
      } else {
        load.removeHolder(slot);
        book.removeHolder(slot);
        for (const [other, known] of naive) if (known.slot === slot) naive.delete(other);
        addHolder(slot);
      }
      expect(book.requestCount).toBe(naive.size);
      expect(book.queuedCount).toBe([...naive.values()].filter(({ queued }) => queued).length);
      expect(book.holderCount).toBe(3);
      const prefix = new Int32Array(3);
      book.pendingPrefix(sequence, prefix);
      for (const at of [0, 1, 2]) {
        const here = [...naive.values()].filter((known) => known.slot === at);
        const queue = here.filter(({ queued }) => queued);
        const sum = (of: (known: Naive) => number): number =>
          queue.reduce((total, known) => total + of(known), 0);
        expect(book.pendingTokens[at]).toBe(sum((known) => known.uncached));
        expect(book.pendingAttention[at]).toBe(
          sum(({ uncached: u, cached: c }) => u * (c + u / 2)),
        );
        expect(book.decoding[at]).toBe(here.length - queue.length);
        expect(book.headTokens(at)).toBe(queue[0]?.uncached ?? 0);
        expect(book.headDispatchedMs(at)).toBe(queue[0]?.sentMs);
        const mine = naive.get(key);
        expect(prefix[at]).toBe(mine?.slot === at && mine.queued ? 2 : 0);
      }
    }
  });
  fc.assert(property, { seed: 7, numRuns: 150 });
});
