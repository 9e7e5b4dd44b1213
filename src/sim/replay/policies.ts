/**
 * Worker choices that other routers make, as functions of what this router knows of its workers.
 * All compare by the same columns, one place per worker in the order of the workers' ids; ties are
 * uniformly random.
 */
import type { Random } from "../../base/random.ts";

/** What a policy sees of the workers of a pool. */
export interface WorkerViews {
  readonly count: number;
  /** Leading blocks of the prompt that the worker has cached. */
  readonly overlapBlocks: Int32Array;
  /** Blocks that the worker has cached, of any prompt. */
  readonly cachedBlocks: Float64Array;
  /** Uncached prompt tokens routed to the worker whose first token has not come. */
  readonly pendingTokens: Float64Array;
  readonly inFlight: Int32Array;
  /** Requests that the worker was ever given. */
  readonly processed: Float64Array;
  /** Latest report of the engine: requests waiting, share of KV blocks in use. */
  readonly engineWaiting: Float64Array;
  readonly engineKvUsage: Float64Array;
}

export interface PolicyRequest {
  readonly nowMs: number;
  readonly inputTokens: number;
  readonly blockSize: number;
  /** Sequence hashes of the full blocks, lanes interleaved. */
  readonly sequence: Uint32Array;
}

/** Chooses a worker: its place in the views. State, if any, belongs to the policy. */
export type Policy = (request: PolicyRequest, views: WorkerViews, random: Random) => number;

/** Prompt tokens the worker would compute: at least the last one, whatever is cached. */
export function uncachedTokens(request: PolicyRequest, overlapBlocks: number): number {
  const { inputTokens, blockSize } = request;
  const reusable = Math.floor((inputTokens - 1) / blockSize) * blockSize;
  return inputTokens - Math.min(overlapBlocks * blockSize, reusable);
}

/** Place of the lowest score; `NaN` never wins. */
export function lowest(count: number, random: Random, score: (worker: number) => number): number {
  let best = Number.POSITIVE_INFINITY;
  let picked = 0;
  let tied = 0;
  for (let worker = 0; worker < count; worker++) {
    const value = score(worker);
    if (value < best) {
      best = value;
      picked = worker;
      tied = 1;
    } else if (value === best && Math.floor(random() * ++tied) === 0) picked = worker;
  }
  return picked;
}

export const leastLoaded: Policy = (_request, { count, inFlight }, random) =>
  lowest(count, random, (worker) => inFlight[worker] ?? 0);

/** The less loaded of two different random workers; the first of them on a tie. */
export const powerOfTwo: Policy = (_request, { count, inFlight }, random) => {
  const one = Math.floor(random() * count);
  if (count < 2) return one;
  const other = (one + 1 + Math.floor(random() * (count - 1))) % count;
  return (inFlight[other] ?? 0) < (inFlight[one] ?? 0) ? other : one;
};

/** Uncached work ahead, own included, times requests (arXiv 2603.15202). */
export const lmetric: Policy = (request, views, random) =>
  lowest(views.count, random, (worker) => lmetricScore(request, views, worker));

export function lmetricScore(request: PolicyRequest, views: WorkerViews, worker: number): number {
  const uncached = uncachedTokens(request, views.overlapBlocks[worker] ?? 0);
  const pending = views.pendingTokens[worker] ?? 0;
  return (pending + uncached) * ((views.inFlight[worker] ?? 0) + 1);
}

export interface LlmdWeights {
  readonly prefix: number;
  readonly queue: number;
  readonly kvUsage: number;
}

/** Highest weighted sum of prefix share, room in the queue, and free KV, as llm-d scores. */
export function llmd(weights: LlmdWeights): Policy {
  return (request, views, random) => {
    const queues = queueSpan(views);
    return lowest(
      views.count,
      random,
      (worker) => -llmdScore(weights, request, views, queues, worker),
    );
  };
}

export interface QueueSpan {
  readonly min: number;
  readonly max: number;
}

export function queueSpan({ count, engineWaiting }: WorkerViews): QueueSpan {
  const waiting = engineWaiting.subarray(0, count);
  return { min: Math.min(...waiting), max: Math.max(...waiting) };
}

export function llmdScore(
  weights: LlmdWeights,
  request: PolicyRequest,
  views: WorkerViews,
  { min, max }: QueueSpan,
  worker: number,
): number {
  const waiting = views.engineWaiting[worker] ?? 0;
  const queue = max === min ? 1 : (max - waiting) / (max - min);
  const free = 1 - (views.engineKvUsage[worker] ?? 0);
  const prefix = prefixShare(request, views, worker);
  return weights.prefix * prefix + weights.queue * queue + weights.kvUsage * free;
}

/** Share of the prompt's full blocks that the worker has cached; 0 for a prompt without any. */
function prefixShare(request: PolicyRequest, views: WorkerViews, worker: number): number {
  const fullBlocks = request.sequence.length >> 1;
  return fullBlocks === 0 ? 0 : (views.overlapBlocks[worker] ?? 0) / fullBlocks;
}

export interface StickySettings {
  /** Share of the prompt a worker must have cached to be kept. */
  readonly affinity: number;
  readonly prefillTokensPerSecond: number;
  /** Expected wait, in ms, that sticking to the cached workers may cost. */
  readonly penaltyMaxMs: number;
}

/** The least token load among the workers with most of the prompt cached, until they saturate. */
export function llmdSticky(settings: StickySettings): Policy {
  return (request, views, random) => {
    const kept = stickyWorkers(settings, request, views);
    return lowest(views.count, random, (worker) =>
      kept[worker] ? stickyScore(request, views, worker) : Number.POSITIVE_INFINITY,
    );
  };
}

export function stickyScore(request: PolicyRequest, views: WorkerViews, worker: number): number {
  const uncached = uncachedTokens(request, views.overlapBlocks[worker] ?? 0);
  return (views.pendingTokens[worker] ?? 0) + uncached;
}

/** Which workers the affinity leaves: the cached ones, or all when there are none or they wait. */
export function stickyWorkers(
  settings: StickySettings,
  request: PolicyRequest,
  views: WorkerViews,
): boolean[] {
  const places = Array.from({ length: views.count }, (_, worker) => worker);
  const kept = places.map((worker) => prefixShare(request, views, worker) >= settings.affinity);
  if (!kept.includes(true) || !kept.includes(false)) return places.map(() => true);
  const wait = (among: boolean): number => {
    const pending = places.filter((worker) => kept[worker] === among);
    const least = Math.min(...pending.map((worker) => views.pendingTokens[worker] ?? 0));
    return (least / settings.prefillTokensPerSecond) * 1000;
  };
  return wait(true) - wait(false) > settings.penaltyMaxMs ? places.map(() => true) : kept;
}
