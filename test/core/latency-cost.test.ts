import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import { bestFitScore, defaultFit, plainFit } from "../../src/core/best-fit.ts";
import type { LatencyTerms } from "../../src/core/cost-terms.ts";
import { LatencyBook, type LatencyRole } from "../../src/core/latency-book.ts";
import { defaultLatencyWeights, latencyCost } from "../../src/core/latency-cost.ts";
import { ShapeLatency } from "../../src/core/latency-model.ts";
import { polynomialPerf } from "../../src/core/perf-model.ts";
import { forecastPrompt } from "../../src/core/prefill-plan.ts";
import type { CostInput } from "../../src/core/worker-cost.ts";
import golden from "../golden/routing-policies.json" with { type: "json" };

const { setup, policies } = golden;
const { block_size: blockSize, input_tokens: islTokens } = setup.request;
const { workers } = setup;
const { latencyShare } = defaultFit;
const slots = Int32Array.from(workers.keys());

const costWeights = {
  overlapScoreCredit: 1,
  overlapScoreCreditDecay: 0,
  prefillLoadScale: 1,
  hostCacheHitWeight: 0.75,
  diskCacheHitWeight: 0.25,
  sharedCacheMultiplier: 0,
  decodeActiveRequestWeight: 0,
};

/** The state of the vectors, reached by calls; each request also holds a partly filled block. */
function bookOf(
  role: LatencyRole = "aggregated",
  capacityBlocks: number = setup.capacity_blocks,
): LatencyBook {
  const inFlight = workers.map(({ pending, decoding_requests }) => {
    return pending.length + decoding_requests;
  });
  const load = {
    activeBlocks: Float64Array.from(workers, (worker, at) => worker.active_blocks - inFlight[at]!),
    activeRequests: Int32Array.from(inFlight),
  };
  const book = new LatencyBook({ role, blockSize, load, random: mulberry32(1) });
  const shape = new ShapeLatency(polynomialPerf, {
    capacityTokens: capacityBlocks * blockSize,
    batchTokens: setup.max_num_batched_tokens,
  });
  const sequence = new Uint32Array(0);
  for (const [slot, worker] of workers.entries()) {
    book.addHolder(slot, shape);
    for (let at = 0; at < worker.decoding_requests; at++) {
      const key = `${slot} decodes ${at}`;
      const nowMs = worker.last_first_token_ms;
      book.dispatched({ key, slot, nowMs, uncachedTokens: 1, cachedTokens: 0, sequence });
      book.firstToken(key, nowMs);
    }
    for (const [at, { uncached, cached, dispatched_ms: nowMs }] of worker.pending.entries()) {
      const prompt = { uncachedTokens: uncached, cachedTokens: cached };
      book.dispatched({ key: `${slot} waits ${at}`, slot, nowMs, sequence, ...prompt });
    }
  }
  return book;
}

function inputOf(more: Partial<CostInput> = {}): CostInput {
  return {
    nowMs: setup.now_ms,
    islTokens,
    blockSize,
    trackedBlocks: setup.request.full_blocks,
    trackPrefillTokens: true,
    decodeOnly: false,
    weights: costWeights,
    overlap: { device: Int32Array.from(workers, ({ overlap_blocks }) => overlap_blocks) },
    load: {
      prefillTokens: new Float64Array(4),
      activeBlocks: new Float64Array(4),
      activeRequests: new Int32Array(4),
    },
    shared: Int32Array.from(workers, ({ active_prefix_blocks }) => active_prefix_blocks),
    expectedOutputTokens: setup.request.expected_output_tokens,
    ...more,
  };
}

function termsOf(
  book: LatencyBook,
  input: CostInput,
  weights = defaultLatencyWeights,
  gpus = 1,
  fit = defaultFit,
) {
  const cost = latencyCost({ book, weights, gpus, fit });
  const costs = new Float64Array(slots.length);
  expect(cost.price(input, slots, slots.length, costs)).toBe(0);
  const terms = Array.from(slots, (slot) => ({
    ...(cost.termsAt(input, slot, slots, slots.length) as LatencyTerms),
  }));
  expect(terms.map((term) => term.cost)).toEqual([...costs]);
  return terms;
}

it.each(["latency_default", "latency_ttft_only"] as const)("prices every term of %s", (name) => {
  const { params, per_worker, winners } = policies[name];
  const weights = {
    prefillExternality: params.lambda,
    decodeHarm: params.w_itl,
    kvUsage: params.kv_weight,
  };
  const found = termsOf(bookOf(), inputOf(), weights);
  for (const [at, terms] of found.entries()) {
    const wanted: Readonly<Record<string, number>> = per_worker[String(at) as "0"];
    const listed: Readonly<Record<string, number>> = {
      cached_tokens: terms.cachedTokens,
      uncached_tokens: terms.uncachedTokens,
      head_progress_tokens: terms.progressTokens,
      queued_tokens: terms.queuedTokens,
      passes: terms.passes,
      prefill_ms: terms.prefillMs,
      decode_step_ms: terms.decodeStepMs,
      decode_step_with_request_ms: terms.itlMs,
      predicted_ttft_ms: terms.ttftMs,
      own_prefill_ms: terms.ownPrefillMs,
      decode_harm_ms: terms.harmMs,
      kv_penalty_ms: terms.fullMs,
      cost_ms: terms.cost,
    };
    expect(Object.keys(wanted).sort()).toEqual(Object.keys(listed).sort());
    for (const [term, value] of Object.entries(wanted)) {
      const off = Math.abs(listed[term]! - value);
      expect(off, `worker ${at} ${term}`).toBeLessThanOrEqual(1e-9 * Math.abs(value));
    }
  }
  const lowest = Math.min(...found.map(({ cost }) => cost));
  const cheapest = workers.filter((_, at) => found[at]!.cost === lowest);
  expect(cheapest.map(({ worker_id }) => worker_id)).toEqual(winners);
});

it("counts decode harm by the square of the memory that is free once less than half is", () => {
  const usedBlocks = workers.reduce((sum, worker) => sum + worker.active_blocks, 0);
  for (const [use, share] of [
    [0.25, 1],
    [0.5, 1],
    [0.75, 0.25],
    [0.9, 0.04],
    [1.5, 0],
  ] as const) {
    const capacityBlocks = usedBlocks / (use * workers.length);
    for (const terms of termsOf(bookOf("aggregated", capacityBlocks), inputOf())) {
      expect(terms.harmMs).toBeCloseTo(share * terms.decodeGpuMs, 9);
      expect(terms.costMs).toBe(terms.ttftMs + terms.delayMs + terms.harmMs + terms.fullMs);
    }
    for (const terms of termsOf(bookOf("decode", capacityBlocks), inputOf())) {
      expect(terms.harmMs).toBe(terms.decodeGpuMs);
    }
  }
});

it("counts blocks of booked prompts as cached where they reach further than the index", () => {
  const bookedPrefix = Int32Array.of(90, 10, 0, 0);
  const [first, second, third] = termsOf(bookOf(), inputOf({ bookedPrefix }));
  expect(first?.cachedTokens).toBe(90 * 64);
  expect(second?.cachedTokens).toBe(10 * 64);
  expect(third?.cachedTokens).toBe(40 * 64);
});

it("computes at least one token of a prompt of whole blocks that are all cached", () => {
  const device = Int32Array.of(93, 93, 93, 93);
  const [terms] = termsOf(bookOf(), inputOf({ islTokens: 93 * 64, overlap: { device } }));
  expect(terms?.cachedTokens).toBe(92 * 64);
  expect(terms?.uncachedTokens).toBe(64);
});

it("does not wait for decode steps on prefill workers", () => {
  for (const terms of termsOf(bookOf("prefill"), inputOf())) {
    expect([terms.decodeStepMs, terms.itlMs, terms.harmMs]).toEqual([0, 0, 0]);
    expect(terms.ttftMs).toBe(terms.prefillMs);
  }
});

it("expects the rest of a queue whose head is overdue, however long", () => {
  const [waiting] = termsOf(bookOf("prefill"), inputOf({ nowMs: setup.now_ms + 60_000 }));
  // Of 9,000 and 3,000 tokens the second pass computes 3,808.
  expect(waiting!.ttftMs - waiting!.ownPrefillMs).toBeGreaterThan(0);
  const later = termsOf(bookOf("prefill"), inputOf({ nowMs: setup.now_ms + 90_000 }));
  expect(later[0]!.ttftMs).toBe(waiting!.ttftMs);
});

it("charges own work of a prefill pool by the prompts its workers have queued", () => {
  const book = bookOf("prefill");
  const queued = workers.reduce((sum, { pending }) => sum + pending.length, 0) / workers.length;
  for (const terms of termsOf(book, inputOf())) {
    expect(terms.delayMs).toBeCloseTo(2 * 0.75 * queued * terms.ownPrefillMs, 9);
    expect(terms.cost).toBeCloseTo(terms.ttftMs + terms.delayMs + terms.fullMs, 9);
  }
  for (const [slot, { pending }] of workers.entries()) {
    for (const at of pending.keys()) book.firstToken(`${slot} waits ${at}`, setup.now_ms);
  }
  for (const terms of termsOf(book, inputOf())) expect(terms.delayMs).toBe(0);
});

it("prices a decode worker by its step, the whole harm and its memory", () => {
  for (const [at, terms] of termsOf(bookOf("decode"), inputOf()).entries()) {
    expect(terms.prefillMs).toBe(0);
    expect(terms.ttftMs).toBe(terms.itlMs);
    expect(terms.cost).toBeCloseTo(terms.itlMs + terms.harmMs + terms.fullMs, 9);
    expect(terms.fullMs > 0).toBe(at === 2);
  }
});

it("adds the part of a recompute that blocks of slower tiers do not save", () => {
  const overlap = {
    device: Int32Array.of(0, 0, 0, 0),
    hostExt: Int32Array.of(0, 40, 0, 0),
    diskExt: Int32Array.of(0, 0, 40, 0),
  };
  const shared = new Int32Array(4);
  const [, host, disk, none] = termsOf(bookOf(), inputOf({ overlap, shared }));
  const alone = (tokens: number): number => polynomialPerf.prefillMs(tokens, 0);
  const saved = alone(6000) - alone(6000 - 2560);
  expect(host?.tierMs).toBeCloseTo(0.25 * saved, 9);
  expect(disk?.tierMs).toBeCloseTo(0.75 * saved, 9);
  expect(host?.ownPrefillMs).toBeCloseTo(alone(3440) + 0.25 * saved, 9);
  expect(none?.tierMs).toBe(0);
});

it("compares by best fit under a target, in GPU time", () => {
  const target = 140;
  const found = termsOf(bookOf(), inputOf({ fitTargetMs: target }), defaultLatencyWeights, 4);
  for (const terms of found) {
    const gpuMs = 4 * (terms.ownPrefillMs + terms.harmMs);
    expect(terms.prefillGpuMs + terms.decodeGpuMs).toBeCloseTo(gpuMs, 9);
    const fit = { predictedMs: terms.ttftMs, gpuMs, gpus: 4 };
    expect(terms.cost).toBeCloseTo(bestFitScore(fit, target, latencyShare), 6);
    expect(terms.cost >= 1e9).toBe(1.1 * terms.ttftMs > target);
  }
});

it("plans the queue of a prefill worker, unless the plain rule is asked for under a target", () => {
  const book = bookOf("prefill");
  // Estimated from the sums of the queue, which are the same in any pool.
  const estimated = termsOf(bookOf(), inputOf());
  const plain = termsOf(book, inputOf({ fitTargetMs: 500 }), defaultLatencyWeights, 4, plainFit);
  for (const [slot, terms] of plain.entries()) {
    expect(terms.ttftMs).toBe(estimated[slot]!.prefillMs);
    const fit = { predictedMs: terms.ttftMs, gpuMs: terms.prefillGpuMs, gpus: 4 };
    expect(terms.cost).toBe(bestFitScore(fit, 500));
  }
  const planned = termsOf(book, inputOf({ fitTargetMs: 500 }), defaultLatencyWeights, 4);
  const untargeted = termsOf(book, inputOf(), defaultLatencyWeights, 4, plainFit);
  let waiting = 0;
  for (const [slot, { uncachedTokens, cachedTokens, ...terms }] of planned.entries()) {
    const ttftMs = terms.ttftMs - book.stalledMs(slot, setup.now_ms);
    const forecast = { endMs: 0, passStartMs: 0, passTokens: 0, breaksPromise: false };
    const prompt = { nowMs: setup.now_ms, uncachedTokens, cachedTokens };
    forecastPrompt(book.planAt(slot)!, prompt, book.modelAt(slot)!, forecast);
    expect(ttftMs).toBeCloseTo(forecast.endMs - setup.now_ms, 9);
    // What comes until the last pass begins, two fifths of what the worker computes, makes it longer.
    const waitMs = Math.max(0, forecast.passStartMs - setup.now_ms);
    const coming = (0.4 * waitMs * 8192) / polynomialPerf.prefillMs(8192, 0);
    const tokens = Math.min(8192, forecast.passTokens + coming);
    const longerMs =
      polynomialPerf.prefillMs(tokens, 0) - polynomialPerf.prefillMs(forecast.passTokens, 0);
    expect(untargeted[slot]!.ttftMs).toBeCloseTo(ttftMs + longerMs, 9);
    if (waitMs > 0) waiting++;
  }
  expect(waiting).toBeGreaterThan(0);
  expect(bookOf("aggregated").planAt(0)).toBeUndefined();
});

it("charges a prompt of several passes for holding the worker that would be free first", () => {
  const long = { islTokens: 30_000, overlap: { device: new Int32Array(4) } };
  const inputFor = (fitTargetMs: number | undefined) => inputOf({ ...long, fitTargetMs });
  const found = termsOf(bookOf(), inputFor(60_000), defaultLatencyWeights, 4);
  const waits = found.map(({ ttftMs, ownPrefillMs }) => ttftMs - ownPrefillMs);
  const [least, next] = waits.toSorted((one, other) => one - other);
  for (const [at, terms] of found.entries()) {
    const heldMs = waits[at] === least ? Math.min(next! - least!, terms.ownPrefillMs) : 0;
    expect(terms.frontGpuMs).toBeCloseTo(0.5 * 4 * heldMs, 6);
    const gpuMs = terms.prefillGpuMs + terms.decodeGpuMs;
    const fit = { predictedMs: terms.ttftMs, gpuMs, gpus: 4 };
    const score = bestFitScore(fit, 60_000, latencyShare);
    expect(terms.cost).toBeCloseTo(score + terms.frontGpuMs, 6);
  }
  expect(found.filter(({ frontGpuMs }) => frontGpuMs > 0)).toHaveLength(1);
  for (const target of [undefined, 1]) {
    for (const terms of termsOf(bookOf(), inputFor(target))) expect(terms.frontGpuMs).toBe(0);
  }
});

it("holds decode workers to a target of the decode step", () => {
  for (const terms of termsOf(bookOf("decode"), inputOf({ fitTargetMs: 30 }))) {
    expect(terms.cost >= 1e9).toBe(1.1 * terms.itlMs > 30);
  }
});

it("finds no finite cost on a slot that is no holder", () => {
  const book = bookOf();
  book.removeHolder(1);
  const cost = latencyCost({ book, weights: defaultLatencyWeights, gpus: 1 });
  expect(cost.price(inputOf(), slots, slots.length, new Float64Array(4))).toBe(1);
});
