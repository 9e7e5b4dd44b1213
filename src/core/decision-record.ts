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

/** Keeps decisions as they are taken, each with its cheapest `candidatesMax` candidates. */
export interface DecisionRecorder {
  readonly candidatesMax: number;
  take(decision: Decision): void;
}

/** A choice and what it was made from. */
export interface ChoiceMade {
  readonly request: ChoiceRequest;
  readonly input: CostInput;
  readonly choice: Choice;
}

/** Every holder of the roster, in its order. */
export function recordAll(tables: ChoiceTables, made: ChoiceMade): Decision {
  const { roster, scratch, costMode } = tables;
  const { request, input, choice } = made;
  const count = choice.outcome === "chosen" ? choice.candidateCount : 0;
  const terms = costMode.terms(input, scratch.candidates, count);
  const candidates: DecisionCandidate[] = [];
  let priced = 0;
  for (let at = 0; at < roster.count; at++) {
    const slot = roster.order[at]!;
    // Candidates keep the order of the roster.
    const own = priced < count && scratch.candidates[priced] === slot ? terms[priced++] : undefined;
    const left = count > 0 ? "crowded" : null;
    const whyNot = own ? null : (roster.whyNot(slot, request.constraints, input.load) ?? left);
    candidates.push(describeSlot(tables, input, slot, { whyNot, terms: own ?? null }));
  }
  return decisionOf(tables, made, candidates);
}

/** The cheapest `max` candidates, cheapest first; the chosen one is always among them. */
export function recordCheapest(tables: ChoiceTables, made: ChoiceMade, max: number): Decision {
  const { roster, scratch, costMode } = tables;
  const { input, choice } = made;
  const count = choice.outcome === "chosen" ? choice.candidateCount : 0;
  const slots = cheapestSlots(scratch, count, max);
  if (choice.outcome === "chosen" && !slots.includes(choice.slot)) {
    slots[slots.length - 1] = choice.slot;
  }
  const terms = costMode.terms(input, slots, slots.length);
  const candidates = Array.from(slots, (slot, at) =>
    describeSlot(tables, input, slot, { whyNot: null, terms: terms[at] ?? null }),
  );
  const decision = decisionOf(tables, made, candidates);
  return { ...decision, leftOut: roster.count - candidates.length };
}

function cheapestSlots(
  { candidates, costs }: ChoiceTables["scratch"],
  count: number,
  max: number,
): Int32Array {
  const places = new Int32Array(Math.min(count, max));
  let kept = 0;
  for (let place = 0; place < count; place++) {
    const cost = costs[place]!;
    if (kept === places.length && !(cost < costs[places[kept - 1]!]!)) continue;
    let at = kept < places.length ? kept++ : kept - 1;
    for (; at > 0 && cost < costs[places[at - 1]!]!; at--) places[at] = places[at - 1]!;
    places[at] = place;
  }
  for (let at = 0; at < kept; at++) places[at] = candidates[places[at]!]!;
  return places;
}

function decisionOf(
  { costMode, scratch }: ChoiceTables,
  { request, input, choice }: ChoiceMade,
  candidates: readonly DecisionCandidate[],
): Decision {
  const count = choice.outcome === "chosen" ? choice.candidateCount : 0;
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
    candidates,
    leftOut: 0,
    lowestCost,
    tiedAtLowest,
    choice,
  };
}

function describeSlot(
  { roster, costMode }: ChoiceTables,
  input: CostInput,
  slot: number,
  verdict: Pick<DecisionCandidate, "whyNot" | "terms">,
): DecisionCandidate {
  return {
    workerId: roster.workerAt(slot)!.workerId,
    dpRank: roster.dpRankAt(slot),
    overlapBlocks: Math.floor(effectiveOverlapOf(input, slot) + 0.5),
    cachedTokens: costMode.cachedTokens(input, slot),
    potentialPrefillTokens: potentialPrefillTokensOf(input, slot),
    potentialDecodeBlocks: potentialDecodeBlocksOf(input, slot),
    activeRequests: input.load.activeRequests[slot]!,
    ...verdict,
  };
}
