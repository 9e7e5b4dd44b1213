/**
 * Cost of a request on every candidate holder; lower wins. `blocks` mode, in blocks of prompt:
 *
 *   cached tokens   round((device + hostWeight*host + diskWeight*disk) * blockSize)
 *   raw prefill     (active prefill + max(isl - cached, 0) + cached) / blockSize
 *   decay           1 / (1 + creditDecay * (active prefill - least) / blockSize / requiredBlocks)
 *   overlap credit  credit*decay*device + hostWeight*host + diskWeight*disk + sharedMult*beyond
 *   cost            scale * max(raw prefill - overlap credit, 0) + decode blocks + request term
 *
 * The form is the one of Dynamo's KV router; with credit 1, scale w and device overlap only it
 * equals the older `w * potential prefill blocks + potential decode blocks`.
 */
import type { BlocksTerms, CostTerms } from "./cost-terms.ts";

export interface CostWeights {
  /** 0..1: how much of the device overlap is taken off the prefill. */
  readonly overlapScoreCredit: number;
  /** How fast the credit falls with prefill backlog above the least loaded candidate. */
  readonly overlapScoreCreditDecay: number;
  readonly prefillLoadScale: number;
  readonly hostCacheHitWeight: number;
  readonly diskCacheHitWeight: number;
  readonly sharedCacheMultiplier: number;
  readonly decodeActiveRequestWeight: number;
}

/** Cached blocks of the prompt per holder slot; slots beyond a column's end hold none. */
export interface OverlapColumns {
  readonly device: Int32Array;
  /** Blocks that a slower tier adds beyond the one before it. */
  readonly hostExt?: Int32Array | undefined;
  readonly diskExt?: Int32Array | undefined;
  readonly sharedBeyond?: Int32Array | undefined;
}

/** Booked load per holder slot, as `WorkerLoad` owns it. */
export interface LoadColumns {
  readonly prefillTokens: Float64Array;
  readonly activeBlocks: Float64Array;
  readonly activeRequests: Int32Array;
}

export interface CostInput {
  readonly nowMs: number;
  readonly islTokens: number;
  readonly blockSize: number;
  /** Blocks the request would hold in the book; 0 when active blocks are not tracked. */
  readonly trackedBlocks: number;
  readonly trackPrefillTokens: boolean;
  /** True on a router of decode-only workers. */
  readonly decodeOnly: boolean;
  readonly weights: CostWeights;
  readonly overlap: OverlapColumns;
  readonly load: LoadColumns;
  /** Tracked blocks of the request that are live on the slot already. */
  readonly shared: Int32Array;
  /** Sum of the weights of the preferred taints that the slot's worker has, if any are asked. */
  readonly taintPull?: Float64Array | undefined;
  /** Blocks of the prompt that requests booked on the slot begin with; `latency` mode. */
  readonly bookedPrefix?: Int32Array | undefined;
  readonly expectedOutputTokens?: number | undefined;
  /** Price by best fit to this target instead of by cost; `latency` mode. */
  readonly fitTargetMs?: number | undefined;
}

/** A way to price candidates (slots), the first `count` of `candidates`. */
export interface CostMode {
  readonly name: "blocks" | "latency";
  /** Prompt tokens that the slot need not compute. */
  cachedTokens(input: CostInput, slot: number): number;
  /**
   * Writes the cost of `candidates[i]` into `costs[i]` and answers how many are not finite. No
   * allocation per candidate.
   */
  price(input: CostInput, candidates: Int32Array, count: number, costs: Float64Array): number;
  /**
   * The terms behind the cost of one of the candidates of the last `price`, which was asked for the
   * same input. The object may be overwritten by the next call.
   */
  termsAt(input: CostInput, slot: number, candidates: Int32Array, count: number): CostTerms;
}

/** `blocks` mode. */
export const blocksCost: CostMode = {
  name: "blocks",
  cachedTokens: cachedTokensOf,
  price(input, candidates, count, costs) {
    const { overlap, weights, load, shared } = input;
    const special = overlap.hostExt || overlap.diskExt || overlap.sharedBeyond || input.taintPull;
    const decodeForm = input.decodeOnly && !input.trackPrefillTokens;
    if (special || decodeForm || weights.overlapScoreCreditDecay !== 0) {
      return priceByTerms(input, candidates, count, costs);
    }
    // The formula of the head without the terms that are off, on hoisted columns.
    const { islTokens, blockSize, trackedBlocks } = input;
    const { overlapScoreCredit, prefillLoadScale, decodeActiveRequestWeight } = weights;
    const { device } = overlap;
    const { prefillTokens, activeBlocks, activeRequests } = load;
    const scale = input.trackPrefillTokens ? prefillLoadScale : 0;
    const promptBlocks = islTokens / blockSize;
    // 0 as long as every cost is finite, NaN from the first other one: no branch per candidate.
    let poison = 0;
    for (let place = 0; place < count; place++) {
      const slot = candidates[place]!;
      const blocks = slot < device.length ? device[slot]! : 0;
      const prompt = blocks > promptBlocks ? blocks * blockSize : islTokens;
      const raw = (prefillTokens[slot]! + prompt) / blockSize;
      const prefill = Math.max(raw - overlapScoreCredit * blocks, 0);
      const decode = activeBlocks[slot]! + trackedBlocks - shared[slot]!;
      let cost = scale * prefill + decode;
      if (decodeActiveRequestWeight !== 0)
        cost += decodeActiveRequestWeight * activeRequests[slot]!;
      costs[place] = cost;
      poison += cost - cost;
    }
    return poison === 0 ? 0 : nonFiniteCount(costs, count);
  },
  termsAt(input, slot, candidates, count) {
    return termsOf(input, slot, leastPrefillTokens(input, candidates, count));
  },
};

function priceByTerms(
  input: CostInput,
  candidates: Int32Array,
  count: number,
  costs: Float64Array,
): number {
  const least = leastPrefillTokens(input, candidates, count);
  for (let place = 0; place < count; place++) {
    const slot = candidates[place]!;
    const decay = creditDecayOf(input, slot, least);
    costs[place] = costOf(input, slot, overlapCreditOf(input, slot, decay));
  }
  return nonFiniteCount(costs, count);
}

function nonFiniteCount(costs: Float64Array, count: number): number {
  let nonFinite = 0;
  for (let place = 0; place < count; place++) if (!Number.isFinite(costs[place]!)) nonFinite++;
  return nonFinite;
}

function termsOf(input: CostInput, slot: number, least: number): BlocksTerms {
  const creditDecay = creditDecayOf(input, slot, least);
  const overlapCreditBlocks = overlapCreditOf(input, slot, creditDecay);
  return {
    mode: "blocks",
    rawPrefillBlocks: rawPrefillBlocksOf(input, slot),
    creditDecay,
    overlapCreditBlocks,
    potentialDecodeBlocks: potentialDecodeBlocksOf(input, slot),
    activeRequestTerm: activeRequestTermOf(input, slot),
    taintFactor: taintFactorOf(input, slot),
    cost: costOf(input, slot, overlapCreditBlocks),
  };
}

/** Least active prefill of the candidates; 0 when credit does not decay. */
function leastPrefillTokens(input: CostInput, candidates: Int32Array, count: number): number {
  if (input.weights.overlapScoreCreditDecay === 0 || !input.trackPrefillTokens) return 0;
  let least = Number.POSITIVE_INFINITY;
  for (let place = 0; place < count; place++) {
    least = Math.min(least, input.load.prefillTokens[candidates[place]!]!);
  }
  return least;
}

/** Prompt blocks cached on the slot, slower tiers by their weight. */
export function effectiveOverlapOf(
  input: Pick<CostInput, "overlap" | "weights">,
  slot: number,
): number {
  const { overlap, weights } = input;
  let blocks = blocksAt(overlap.device, slot);
  if (overlap.hostExt) blocks += weights.hostCacheHitWeight * blocksAt(overlap.hostExt, slot);
  if (overlap.diskExt) blocks += weights.diskCacheHitWeight * blocksAt(overlap.diskExt, slot);
  return blocks;
}

/** Prompt tokens the slot need not compute, half up. */
export function cachedTokensOf(
  input: Pick<CostInput, "overlap" | "weights" | "blockSize">,
  slot: number,
): number {
  return Math.floor(effectiveOverlapOf(input, slot) * input.blockSize + 0.5);
}

/** Prefill tokens of the slot if it took the request; 0 when prefill is not tracked. */
export function potentialPrefillTokensOf(input: CostInput, slot: number): number {
  if (!input.trackPrefillTokens) return 0;
  const own = Math.max(input.islTokens - cachedTokensOf(input, slot), 0);
  return input.load.prefillTokens[slot]! + own;
}

/** Blocks the slot would hold with the request. */
export function potentialDecodeBlocksOf(input: CostInput, slot: number): number {
  return input.load.activeBlocks[slot]! + input.trackedBlocks - input.shared[slot]!;
}

function costOf(input: CostInput, slot: number, overlapCredit: number): number {
  const { weights } = input;
  const decode = potentialDecodeBlocksOf(input, slot);
  const requests = activeRequestTermOf(input, slot);
  const factor = taintFactorOf(input, slot);
  if (input.decodeOnly && !input.trackPrefillTokens && weights.overlapScoreCredit > 0) {
    return (Math.max(0, decode - overlapCredit) + requests) * factor;
  }
  const prefill = Math.max(rawPrefillBlocksOf(input, slot) - overlapCredit, 0);
  return (weights.prefillLoadScale * prefill + decode + requests) * factor;
}

function rawPrefillBlocksOf(input: CostInput, slot: number): number {
  if (!input.trackPrefillTokens) return 0;
  const prompt = Math.max(input.islTokens, cachedTokensOf(input, slot));
  return (input.load.prefillTokens[slot]! + prompt) / input.blockSize;
}

function creditDecayOf(input: CostInput, slot: number, least: number): number {
  const { overlapScoreCreditDecay } = input.weights;
  if (overlapScoreCreditDecay === 0 || !input.trackPrefillTokens) return 1;
  const backlogBlocks = (input.load.prefillTokens[slot]! - least) / input.blockSize;
  const requiredBlocks = Math.ceil(input.islTokens / input.blockSize);
  return 1 / (1 + (overlapScoreCreditDecay * backlogBlocks) / requiredBlocks);
}

function overlapCreditOf(input: CostInput, slot: number, decay: number): number {
  const { overlap, weights } = input;
  const device = blocksAt(overlap.device, slot);
  let credit = weights.overlapScoreCredit * decay * device;
  if (overlap.hostExt || overlap.diskExt) credit += effectiveOverlapOf(input, slot) - device;
  if (overlap.sharedBeyond)
    credit += weights.sharedCacheMultiplier * blocksAt(overlap.sharedBeyond, slot);
  return credit;
}

function activeRequestTermOf(input: CostInput, slot: number): number {
  const { decodeActiveRequestWeight } = input.weights;
  if (decodeActiveRequestWeight === 0) return 0;
  return decodeActiveRequestWeight * input.load.activeRequests[slot]!;
}

export function taintFactorOf(input: CostInput, slot: number): number {
  return input.taintPull ? Math.exp(-Math.tanh(input.taintPull[slot]!)) : 1;
}

function blocksAt(column: Int32Array, slot: number): number {
  return slot < column.length ? column[slot]! : 0;
}
