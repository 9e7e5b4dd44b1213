/**
 * What a choice looked like, for people: every holder, or of many only the cheapest. Written from
 * the scratch columns of the choice, before a booking changes what they were made from.
 */

import type { Choice, ChoiceRequest, ChoiceTables, WorkerPolicy } from "./choice.ts";
import type { CostTerms } from "./cost-terms.ts";
import type { CostInput, CostMode } from "./worker-cost.ts";
import {
  effectiveOverlapOf,
  potentialDecodeBlocksOf,
  potentialPrefillTokensOf,
} from "./worker-cost.ts";
import type { WhyNot } from "./worker-roster.ts";

/** What one holder looked like to the choice. */
export interface DecisionCandidate {
  readonly workerId: string;
  readonly dpRank: number;
  /** Null = eligible. */
  readonly whyNot: WhyNot | "crowded" | null;
  readonly overlapBlocks: number;
  readonly cachedTokens: number;
  readonly potentialPrefillTokens: number;
  readonly potentialDecodeBlocks: number;
  readonly activeRequests: number;
  /** Null when not eligible, or when the choice ended before pricing. */
  readonly terms: CostTerms | null;
}

/** The whole choice, for people and for `explain`. */
export interface Decision {
  readonly policy: WorkerPolicy;
  readonly costMode: CostMode["name"];
  /** Set when candidates were compared by their fit to it. */
  readonly fitTargetMs: number | undefined;
  readonly temperature: number;
  readonly islTokens: number;
  readonly requiredBlocks: number;
  readonly candidates: readonly DecisionCandidate[];
  readonly lowestCost: number | null;
  /** Holders that `candidates` leaves out. */
  readonly leftOut: number;
  /** Candidates that share the lowest cost. */
  readonly tiedAtLowest: number;
  readonly choice: Choice;
}

/** Told of a choice while the scratch columns hold what it was made from, before it is booked. */
export type DecisionRecorder = (made: ChoiceMade) => void;

/** A choice and what it was made from. */
export interface ChoiceMade {
  readonly request: ChoiceRequest;
  readonly input: CostInput;
  readonly choice: Choice;
}

/** Every holder of the roster, in its order. */
export function recordAll(tables: ChoiceTables, made: ChoiceMade): Decision {
  const { roster, scratch } = tables;
  const { request, input, choice } = made;
  const count = pricedCount(choice);
  const candidates: DecisionCandidate[] = [];
  let priced = 0;
  for (let at = 0; at < roster.count; at++) {
    const slot = roster.order[at]!;
    // Candidates keep the order of the roster.
    const isPriced = priced < count && scratch.candidates[priced] === slot;
    if (isPriced) priced++;
    const left = count > 0 ? "crowded" : null;
    const whyNot = isPriced ? null : (roster.whyNot(slot, request.constraints, input.load) ?? left);
    const terms = isPriced ? { ...termsOf(tables, made, slot) } : null;
    candidates.push({ ...standingOf(tables, input, slot), whyNot, terms });
  }
  return { ...headOf(tables, made, roster.count), candidates };
}

/** The cheapest `max` candidates, cheapest first; the chosen one is always among them. */
export function recordCheapest(tables: ChoiceTables, made: ChoiceMade, max: number): Decision {
  const slots = new Int32Array(max);
  const count = cheapestSlots(tables.scratch, made.choice, slots);
  const candidates = Array.from(slots.subarray(0, count), (slot) => ({
    ...standingOf(tables, made.input, slot),
    whyNot: null,
    terms: { ...termsOf(tables, made, slot) },
  }));
  return { ...headOf(tables, made, count), candidates };
}

/**
 * Fills `slots` with the cheapest candidates, cheapest first, and answers how many there are; the
 * chosen one is always among them.
 */
export function cheapestSlots(
  { candidates, costs }: ChoiceTables["scratch"],
  choice: Choice,
  slots: Int32Array,
): number {
  const priced = pricedCount(choice);
  const count = Math.min(priced, slots.length);
  let kept = 0;
  for (let place = 0; place < priced; place++) {
    const cost = costs[place]!;
    if (kept === count && !(cost < costs[slots[kept - 1]!]!)) continue;
    let at = kept < count ? kept++ : kept - 1;
    for (; at > 0 && cost < costs[slots[at - 1]!]!; at--) slots[at] = slots[at - 1]!;
    slots[at] = place;
  }
  let isAmong = choice.outcome === "refused";
  for (let at = 0; at < count; at++) {
    slots[at] = candidates[slots[at]!]!;
    if (choice.outcome === "chosen" && slots[at] === choice.slot) isAmong = true;
  }
  if (choice.outcome === "chosen" && !isAmong) slots[count - 1] = choice.slot;
  return count;
}

/** A decision that shows `shown` of the holders, but for them. */
export function headOf(
  { roster, costMode, scratch }: ChoiceTables,
  { request, input, choice }: ChoiceMade,
  shown: number,
): Omit<Decision, "candidates"> {
  const count = pricedCount(choice);
  let lowestCost: number | null = null;
  let tiedAtLowest = 0;
  for (let place = 0; place < count; place++) {
    const cost = scratch.costs[place]!;
    if (!Number.isFinite(cost)) continue;
    if (lowestCost === null || cost < lowestCost) {
      lowestCost = cost;
      tiedAtLowest = 1;
    } else if (cost === lowestCost) tiedAtLowest++;
  }
  return {
    policy: request.settings.policy,
    costMode: costMode.name,
    fitTargetMs: request.fitTargetMs,
    temperature: request.settings.temperature,
    islTokens: request.islTokens,
    requiredBlocks: Math.ceil(request.islTokens / input.blockSize),
    leftOut: roster.count - shown,
    lowestCost,
    tiedAtLowest,
    choice,
  };
}

/** How a holder stands to the request, whatever its cost. */
export function standingOf(
  { roster, costMode }: ChoiceTables,
  input: CostInput,
  slot: number,
): Omit<DecisionCandidate, "whyNot" | "terms"> {
  return {
    workerId: roster.workerAt(slot)!.workerId,
    dpRank: roster.dpRankAt(slot),
    overlapBlocks: Math.floor(effectiveOverlapOf(input, slot) + 0.5),
    cachedTokens: costMode.cachedTokens(input, slot),
    potentialPrefillTokens: potentialPrefillTokensOf(input, slot),
    potentialDecodeBlocks: potentialDecodeBlocksOf(input, slot),
    activeRequests: input.load.activeRequests[slot]!,
  };
}

/** The terms of a candidate; the next call may overwrite them. */
export function termsOf(
  { scratch, costMode }: ChoiceTables,
  { input, choice }: ChoiceMade,
  slot: number,
): CostTerms {
  return costMode.termsAt(input, slot, scratch.candidates, pricedCount(choice));
}

function pricedCount(choice: Choice): number {
  return choice.outcome === "chosen" ? choice.candidateCount : 0;
}
