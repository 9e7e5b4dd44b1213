/**
 * Cost mode `latency`: what a request would cost on each holder, in milliseconds; lower wins.
 *
 *   u         prompt tokens to compute, own ones that are not cached
 *   x         u and the tokens still queued before it, of which the running pass has done a part
 *   prefill   floor(x / M) full passes and the rest of one, sharing the queue's attention work
 *   T         prefill + passes * d + slow tiers         predicted time to the first token
 *   own       prefill of u alone                        what it delays and evicts of others'
 *   harm      (d' - d) * (n + 1) * O + d' * O           its share in everybody's decoding
 *   full      10000 * max(0, use of KV memory - 0.9)
 *   cost      T + externality * delayed * own + decodeHarm * roomy * harm + kvUsage * full
 *
 * `delayed` is 1, in prefill pools 3/4 of the prompts that a worker has queued on average: own work
 * makes those wait that come before a queue is empty, nobody in an idle pool and many in a full one.
 * `roomy` is 1 while half of the candidates' KV memory is free: a step grows the less the fuller the
 * memory is, so that harm alone would prefer the fullest of many full workers.
 * d and d' are decode steps without and with the request. Prefill workers decode nothing: d = 0 and
 * no harm, and T is planned pass by pass (`prefill-plan.ts`). Decode workers compute no prompt: T =
 * d', harm counts in full. Under a target the score of `best-fit.ts` stands in for the cost, and a
 * prompt of several passes pays on the front worker for the time it holds it (`front-worker.ts`).
 * Everything is O(1) per holder after the match.
 */
import { bestFitScore, defaultFit, type FitRules, lateScore } from "./best-fit.ts";
import type { LatencyTerms } from "./cost-terms.ts";
import { type FrontWorker, heldMs, noFront, seeWorker } from "./front-worker.ts";
import type { LatencyBook } from "./latency-book.ts";
import type { WorkerLatency } from "./latency-model.ts";
import { type Forecast, forecastPrompt, joinersMs } from "./prefill-plan.ts";
import type { DueForecast } from "./prefill-queue.ts";
import type { CostInput, CostMode } from "./worker-cost.ts";
import { taintFactorOf } from "./worker-cost.ts";

export interface LatencyWeights {
  /** Of the request's own prefill, for what it does to others (lambda). */
  readonly prefillExternality: number;
  /** Of the decode time it takes from others and itself (w_itl); 1 on decode workers. */
  readonly decodeHarm: number;
  /** Of the penalty on nearly full KV memory. */
  readonly kvUsage: number;
}

export const defaultLatencyWeights: LatencyWeights = {
  prefillExternality: 2,
  decodeHarm: 0.006,
  kvUsage: 1,
};

export interface LatencyCostOptions {
  readonly book: LatencyBook;
  readonly weights: LatencyWeights;
  /** GPUs of one worker. */
  readonly gpus: number;
  /** Under a target; `defaultFit` when left out. */
  readonly fit?: FitRules | undefined;
}

type Measure = { -readonly [Field in keyof LatencyTerms]: LatencyTerms[Field] };

const progressShareMax = 0.95;
/** Prompts that own work delays in a prefill pool, per prompt that a worker has queued. */
const delayedPerQueued = 0.75;
const kvUsageFree = 0.9;
/** Decode harm counts less where a smaller share of the candidates' KV memory is free. */
const roomyFree = 0.5;
const fullMsPerUsage = 10_000;

/** Latency cost over the queues of `options.book`. */
export function latencyCost(options: LatencyCostOptions): CostMode {
  // One measure for all candidates: pricing allocates nothing.
  const measure = emptyMeasure();
  const front: FrontWorker = { slot: -1, waitMs: 0, nextWaitMs: 0, ownMs: 0 };
  let roomy = 1;
  return {
    name: "latency",
    cachedTokens,
    price(input, candidates, count, costs) {
      let nonFinite = 0;
      let frontPlace = -1;
      noFront(front);
      roomy = roomyShare(options.book, candidates, count);
      for (let place = 0; place < count; place++) {
        const slot = candidates[place]!;
        const cost = measureAt(options, input, slot, roomy, measure);
        costs[place] = cost;
        if (!Number.isFinite(cost)) nonFinite++;
        if (input.fitTargetMs === undefined || !Number.isFinite(cost)) continue;
        seeCandidate(options, slot, measure, front);
        if (front.slot === slot) frontPlace = place;
      }
      if (frontPlace >= 0) costs[frontPlace]! += frontGpuMs(front, options);
      return nonFinite;
    },
    termsAt(input, slot) {
      measureAt(options, input, slot, roomy, measure);
      if (slot === front.slot) measure.frontGpuMs = frontGpuMs(front, options);
      measure.cost += measure.frontGpuMs;
      return measure;
    },
  };
}

/** A prompt of one pass is soon through, and one that is late has no time to wait behind others. */
function seeCandidate(
  { book }: LatencyCostOptions,
  slot: number,
  { cost, ttftMs, ownPrefillMs, uncachedTokens }: Measure,
  front: FrontWorker,
): void {
  const { batchTokens } = book.modelAt(slot)!.shape.limits;
  const pays = cost < lateScore && uncachedTokens > batchTokens;
  seeWorker(front, slot, ttftMs - ownPrefillMs, pays ? ownPrefillMs : 0);
}

function frontGpuMs(
  front: FrontWorker,
  { gpus, fit: { frontShare } = defaultFit }: LatencyCostOptions,
): number {
  return frontShare * heldMs(front) * gpus;
}

/** Prompt tokens the holder need not compute; one token is always computed. */
function cachedTokens(input: CostInput, slot: number): number {
  const { islTokens, blockSize, overlap, bookedPrefix } = input;
  const device = overlap.device[slot] ?? 0;
  const known = device + (overlap.hostExt?.[slot] ?? 0) + (overlap.diskExt?.[slot] ?? 0);
  const blocks = Math.max(known, bookedPrefix?.[slot] ?? 0);
  return Math.min(blocks, Math.floor((islTokens - 1) / blockSize)) * blockSize;
}

/** Fills `measure` for one holder and answers its cost; NaN when the book does not know it. */
function measureAt(
  options: LatencyCostOptions,
  input: CostInput,
  slot: number,
  roomy: number,
  measure: Measure,
): number {
  const { book, weights, gpus } = options;
  const { role } = book;
  measure.cost = Number.NaN;
  measure.frontGpuMs = 0;
  measure.breaksPromise = false;
  measure.heldMs = 0;
  if (!book.modelAt(slot)) return measure.cost;
  measureDecode(options, input, slot, measure);
  // Whole: a discount would make a full pool look cheaper than others.
  measure.decodeGpuMs = measure.harmMs * gpus;
  measure.harmMs *= roomy;
  measure.cachedTokens = cachedTokens(input, slot);
  if (role === "decode") {
    measure.uncachedTokens = 0;
    measure.ttftMs = measure.itlMs;
  } else {
    measure.uncachedTokens = input.islTokens - measure.cachedTokens;
    measurePrefill(book, input, slot, measure);
    measurePlanned(options, input, slot, measure);
  }
  measure.delayMs = weights.prefillExternality * delayedPrompts(book) * measure.ownPrefillMs;
  measure.costMs = measure.ttftMs + measure.delayMs + measure.harmMs + measure.fullMs;
  measure.taintFactor = taintFactorOf(input, slot);
  measure.prefillGpuMs = measure.ownPrefillMs * gpus;
  measure.cost =
    input.fitTargetMs === undefined
      ? measure.costMs * measure.taintFactor
      : scoreOf(measure, input.fitTargetMs, options);
  return measure.cost;
}

/** Share of decode harm that counts: falls with the square of the free memory from `roomyFree` on. */
function roomyShare(book: LatencyBook, candidates: Int32Array, count: number): number {
  if (book.role !== "aggregated") return 1;
  let usedTokens = 0;
  let capacityTokens = 0;
  for (let place = 0; place < count; place++) {
    const slot = candidates[place]!;
    const model = book.modelAt(slot);
    if (!model) continue;
    usedTokens += book.activeKvTokens(slot);
    capacityTokens += model.shape.limits.capacityTokens;
  }
  const free = Math.max(0, capacityTokens - usedTokens);
  return free >= roomyFree * capacityTokens ? 1 : (free / (roomyFree * capacityTokens)) ** 2;
}

/** Elsewhere the weight alone stands for them, as the reference has it. */
function delayedPrompts({ role, queuedCount, holderCount }: LatencyBook): number {
  return role === "prefill" ? (delayedPerQueued * queuedCount) / holderCount : 1;
}

/** A decode worker is held to an ITL target, the others to one of TTFT. */
function scoreOf(
  measure: Measure,
  targetMs: number,
  { book, gpus, fit: { latencyShare } = defaultFit }: LatencyCostOptions,
): number {
  fit.predictedMs = book.role === "decode" ? measure.itlMs : measure.ttftMs;
  fit.gpuMs = measure.prefillGpuMs + measure.decodeGpuMs;
  fit.gpus = gpus;
  fit.breaksPromise = measure.breaksPromise;
  return bestFitScore(fit, targetMs, latencyShare);
}

const fit = { predictedMs: 0, gpuMs: 0, gpus: 0, breaksPromise: false };

/** d, d', and harm and full by their weights. */
function measureDecode(
  { book, weights }: LatencyCostOptions,
  input: CostInput,
  slot: number,
  measure: Measure,
): void {
  const model = book.modelAt(slot)!;
  const { blockSize } = input;
  const kvTokens = book.activeKvTokens(slot);
  // The partly filled block at the end is new on every worker.
  const newBlocks = Math.floor(input.islTokens / blockSize) - input.shared[slot]! + 1;
  const kvTokensWith = kvTokens + newBlocks * blockSize;
  const usage = kvTokensWith / model.shape.limits.capacityTokens;
  measure.fullMs = weights.kvUsage * fullMsPerUsage * Math.max(0, usage - kvUsageFree);
  measure.decodeStepMs = 0;
  measure.itlMs = 0;
  measure.harmMs = 0;
  if (book.role === "prefill") return;
  const sequences = book.decoding[slot]!;
  const outputTokens = input.expectedOutputTokens ?? book.outputTokensMean;
  const stepMs = model.decodeMs(Math.max(1, sequences), kvTokens);
  const stepWithMs = model.decodeMs(sequences + 1, kvTokensWith);
  measure.decodeStepMs = stepMs;
  measure.itlMs = stepWithMs;
  const harmMs = ((stepWithMs - stepMs) * (sequences + 1) + stepWithMs) * outputTokens;
  measure.harmMs = (book.role === "decode" ? 1 : weights.decodeHarm) * harmMs;
}

/** Queue, prefill and T. */
function measurePrefill(book: LatencyBook, input: CostInput, slot: number, measure: Measure): void {
  const model = book.modelAt(slot)!;
  const { batchTokens } = model.shape.limits;
  const { uncachedTokens: u, cachedTokens: c } = measure;
  const pending = book.pendingTokens[slot]!;
  const progress = progressTokens(book, model, slot, input.nowMs);
  const queued = Math.max(0, pending - progress);
  const queueShare = pending > 0 ? queued / pending : 0;
  const tokens = queued + u;
  const attention = book.pendingAttention[slot]! * queueShare + u * (c + u / 2);
  const fullPasses = Math.floor(tokens / batchTokens);
  const rest = tokens - fullPasses * batchTokens;
  const perToken = attention / tokens;
  const fullMs =
    fullPasses > 0 ? fullPasses * model.prefillMs(batchTokens, perToken * batchTokens) : 0;
  measure.progressTokens = progress;
  measure.queuedTokens = queued;
  measure.passes = Math.max(1, Math.ceil(tokens / batchTokens));
  measure.prefillMs = fullMs + model.prefillMs(rest, perToken * rest);
  measure.tierMs = tierMs(model, input, slot, measure);
  measure.ownPrefillMs = alonePrefillMs(model, u) + measure.tierMs;
  measure.ttftMs = measure.prefillMs + measure.passes * measure.decodeStepMs + measure.tierMs;
}

/** T of a prefill worker as its queue is planned, in place of the estimate from sums. */
function measurePlanned(
  { book, fit: { keepsPromises } = defaultFit }: LatencyCostOptions,
  { nowMs, fitTargetMs }: CostInput,
  slot: number,
  measure: Measure,
): void {
  if (book.holds && fitTargetMs !== undefined) {
    measureHeld(book, nowMs, fitTargetMs, slot, measure);
    return;
  }
  const plan = book.planAt(slot);
  if (!plan || (fitTargetMs !== undefined && !keepsPromises)) return;
  // What is behind an overdue prompt is as late: else a slow worker would look idle.
  const overdueMs = fitTargetMs === undefined ? book.overdueMs(slot, nowMs) : 0;
  planned.nowMs = nowMs - overdueMs;
  planned.uncachedTokens = measure.uncachedTokens;
  planned.cachedTokens = measure.cachedTokens;
  const model = book.modelAt(slot)!;
  forecastPrompt(plan, planned, model, forecast);
  // Under a target a prompt that would make others late does not join them.
  const joined = fitTargetMs === undefined ? joinersMs(forecast, planned.nowMs, model) : 0;
  // Under a target a stalled worker is expected to be late by as much again.
  const stalledMs = fitTargetMs === undefined ? 0 : book.stalledMs(slot, nowMs);
  measure.prefillMs = forecast.endMs + joined - planned.nowMs + stalledMs;
  measure.ttftMs = measure.prefillMs + measure.tierMs;
  measure.breaksPromise = forecast.breaksPromise;
}

/** T at the prompt's place among those that the router holds back. */
function measureHeld(
  book: LatencyBook,
  nowMs: number,
  targetMs: number,
  slot: number,
  measure: Measure,
): void {
  due.nowMs = nowMs;
  due.uncachedTokens = measure.uncachedTokens;
  due.cachedTokens = measure.cachedTokens;
  due.deadlineMs = nowMs + targetMs;
  book.forecastDue(slot, due, dueForecast);
  measure.prefillMs = dueForecast.endMs - nowMs + book.stalledMs(slot, nowMs);
  measure.ttftMs = measure.prefillMs + measure.tierMs;
  measure.heldMs = dueForecast.sentMs - nowMs;
  measure.breaksPromise = dueForecast.breaksPromise;
}

const due = { nowMs: 0, uncachedTokens: 0, cachedTokens: 0, deadlineMs: 0 };
const dueForecast: DueForecast = { endMs: 0, sentMs: 0, dueMs: 0, breaksPromise: false };

const planned = { nowMs: 0, uncachedTokens: 0, cachedTokens: 0 };
const forecast: Forecast = { endMs: 0, passStartMs: 0, passTokens: 0, breaksPromise: false };

/** What full passes would have done of the queue's head since it could begin. */
function progressTokens(
  book: LatencyBook,
  model: WorkerLatency,
  slot: number,
  nowMs: number,
): number {
  const head = book.headTokens(slot);
  if (head === 0) return 0;
  const sinceMs = Math.max(book.lastFirstTokenMs[slot]!, book.headDispatchedMs(slot)!);
  const { batchTokens } = model.shape.limits;
  // A long context slows its passes down: they do less of the queue in the same time.
  const perToken = book.pendingAttention[slot]! / book.pendingTokens[slot]!;
  const passMs = model.prefillMs(batchTokens, perToken * batchTokens);
  const done = (Math.max(0, nowMs - sinceMs) * batchTokens) / passMs;
  return Math.min(progressShareMax * head, done);
}

/** Prefill of `tokens` on an idle worker, context left out. */
function alonePrefillMs(model: WorkerLatency, tokens: number): number {
  const { batchTokens } = model.shape.limits;
  return model.prefillMs(Math.min(tokens, batchTokens), 0) * Math.max(1, tokens / batchTokens);
}

/** Blocks of slower tiers save the share of their recompute that their weight says. */
function tierMs(model: WorkerLatency, input: CostInput, slot: number, measure: Measure): number {
  const { overlap, weights, blockSize } = input;
  const host = (overlap.hostExt?.[slot] ?? 0) * blockSize;
  const disk = (overlap.diskExt?.[slot] ?? 0) * blockSize;
  if (host + disk === 0) return 0;
  const u = measure.uncachedTokens;
  const recomputeMs = alonePrefillMs(model, u + host + disk) - alonePrefillMs(model, u);
  const loaded = (1 - weights.hostCacheHitWeight) * host + (1 - weights.diskCacheHitWeight) * disk;
  return (recomputeMs * loaded) / (host + disk);
}

function emptyMeasure(): Measure {
  return {
    mode: "latency",
    cachedTokens: 0,
    uncachedTokens: 0,
    progressTokens: 0,
    queuedTokens: 0,
    passes: 0,
    prefillMs: 0,
    ownPrefillMs: 0,
    tierMs: 0,
    decodeStepMs: 0,
    itlMs: 0,
    ttftMs: 0,
    delayMs: 0,
    harmMs: 0,
    fullMs: 0,
    taintFactor: 1,
    prefillGpuMs: 0,
    decodeGpuMs: 0,
    breaksPromise: false,
    heldMs: 0,
    frontGpuMs: 0,
    costMs: 0,
    cost: 0,
  };
}
