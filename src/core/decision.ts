/**
 * One worker choice: filter, score, pick and book in one synchronous call, so that no other request
 * can choose on the same load.
 *
 *   roster ──eligible──▶ candidates ──cost──▶ costs ──pick──▶ Choice ──add──▶ load
 *                                                └──describe──▶ Decision (only when asked for)
 *
 * The scratch columns belong to the tables and are overwritten by each call.
 */
import type { Random } from "../base/random.ts";
import type {
  Choice,
  ChoiceRequest,
  ChoiceScratch,
  ChoiceTables,
  RefusedChoice,
} from "./choice.ts";
import { type Decision, type DecisionRecorder, recordAll } from "./decision-record.ts";
import { leaveOutCrowded } from "./herd-guard.ts";
import type { LatencyBook } from "./latency-book.ts";
import type { CostInput } from "./worker-cost.ts";
import { effectiveOverlapOf, potentialDecodeBlocksOf } from "./worker-cost.ts";
import { pickLowest, pickRandom, pickSoftmax } from "./worker-pick.ts";
import type { SelectionRefusal, WorkerConstraints, WorkerProfile } from "./worker-roster.ts";

/**
 * Chooses a holder for the request and books it there; a refusal books nothing. `record` is
 * told of the choice before the booking changes the load. Stale requests are the caller's to
 * expire first (`WorkerLoad.expireStale`).
 */
export function chooseAndBook(
  tables: ChoiceTables,
  request: ChoiceRequest,
  random: Random,
  record?: DecisionRecorder,
): Choice {
  if (tables.load.has(request.key)) return { outcome: "refused", code: "duplicate_request" };
  const input = costInput(tables, request);
  const choice = choose(tables, request, input, random);
  record?.({ request, input, choice });
  if (choice.outcome === "refused") return choice;
  if (request.settings.policy === "round-robin") tables.scratch.turns++;
  const { trackPrefillTokens } = request.settings;
  const booked = tables.load.add({
    key: request.key,
    slot: choice.slot,
    nowMs: request.nowMs,
    sequence: request.sequence,
    privateBlocks: request.privateBlocks,
    prefillTokens: trackPrefillTokens ? Math.max(request.islTokens - choice.cachedTokens, 0) : 0,
    cachedTokens: choice.cachedTokens,
    promptHashes: request.promptHashes,
    expectedPrefillMs: request.expectedPrefillMs ?? 0,
    deadlineMs: request.nowMs + (request.fitTargetMs ?? Number.POSITIVE_INFINITY),
    mayWait: request.mayWait,
  });
  return booked === "ok" ? choice : { outcome: "refused", code: "booking_failed" };
}

/**
 * The decision that `chooseAndBook` would take with the same draws, without booking. Ties draw from
 * the `random` given, so asking need not disturb the router's own sequence.
 */
export function explain(tables: ChoiceTables, request: ChoiceRequest, random: Random): Decision {
  const input = costInput(tables, request);
  return recordAll(tables, { request, input, choice: choose(tables, request, input, random) });
}

function choose(
  tables: ChoiceTables,
  request: ChoiceRequest,
  input: CostInput,
  random: Random,
): Choice {
  if (!(request.islTokens > 0)) return { outcome: "refused", code: "invalid_request" };
  const { roster, scratch } = tables;
  const found = roster.eligible(request.constraints, input.load, scratch.candidates);
  if (typeof found === "string") return refusal(found, request.constraints);
  const count = withoutCrowded(tables, found, input, request);
  const nonFiniteCount = tables.costMode.price(input, scratch.candidates, count, scratch.costs);
  const picked = pick(scratch, count, request, random);
  if (picked < 0) return { outcome: "refused", code: "booking_failed" };
  const slot = scratch.candidates[picked]!;
  return {
    outcome: "chosen",
    slot,
    workerId: roster.workerAt(slot)!.workerId,
    dpRank: roster.dpRankAt(slot),
    requiredBlocks: Math.ceil(request.islTokens / input.blockSize),
    overlapBlocks: Math.floor(effectiveOverlapOf(input, slot) + 0.5),
    cachedTokens: tables.costMode.cachedTokens(input, slot),
    potentialDecodeBlocks: potentialDecodeBlocksOf(input, slot),
    cost: scratch.costs[picked]!,
    candidateCount: count,
    nonFiniteCount,
  };
}

/** Policies that ignore cost send nobody after a cache, and a pin is obeyed. */
function withoutCrowded(
  { costMode, scratch }: ChoiceTables,
  found: number,
  { load }: CostInput,
  { settings, constraints }: ChoiceRequest,
): number {
  const { herdGuard, policy } = settings;
  const isPinned = constraints.pinnedWorkerId !== undefined;
  if (!herdGuard || policy !== "blocks" || isPinned) return found;
  return leaveOutCrowded(scratch.candidates, found, load, costMode.name);
}

/** A pinned request takes its worker's cheapest rank, and a target its best fit, in any policy. */
function pick(
  scratch: ChoiceScratch,
  count: number,
  request: ChoiceRequest,
  random: Random,
): number {
  const { policy, temperature } = request.settings;
  const pinned = request.constraints.pinnedWorkerId !== undefined;
  const hasTarget = request.fitTargetMs !== undefined;
  if (pinned || hasTarget) return pickLowest(scratch.costs, count, random);
  switch (policy) {
    case "random":
      return pickRandom(count, random);
    case "round-robin":
      return scratch.turns % count;
    case "blocks":
      if (temperature === 0) return pickLowest(scratch.costs, count, random);
      return pickSoftmax(scratch.costs, count, temperature, random, scratch.pickWeights);
  }
}

function costInput(tables: ChoiceTables, request: ChoiceRequest): CostInput {
  const { roster, load, scratch, latency } = tables;
  const { settings, sequence } = request;
  scratch.cover(roster.order.length);
  load.sharedPrefix(sequence, scratch.shared);
  return {
    nowMs: request.nowMs,
    islTokens: request.islTokens,
    blockSize: settings.blockSize,
    trackedBlocks: (sequence.length >> 1) + request.privateBlocks,
    trackPrefillTokens: settings.trackPrefillTokens,
    decodeOnly: settings.decodeOnly,
    weights: settings.weights,
    overlap: request.overlap,
    load: {
      prefillTokens: load.prefillTokensAt(request.nowMs),
      activeBlocks: load.activeBlocks,
      activeRequests: load.activeRequests,
    },
    shared: scratch.shared,
    taintPull: taintPull(tables, request),
    bookedPrefix: latency && bookedPrefix(latency, scratch, request),
    expectedOutputTokens: request.expectedOutputTokens,
    fitTargetMs: request.fitTargetMs,
  };
}

/**
 * What the slot's requests have computed or are about to, whether or not its engine has said so. The
 * load book knows it of requests whose blocks it tracks.
 */
function bookedPrefix(
  latency: LatencyBook,
  { shared, pendingPrefix }: ChoiceScratch,
  { sequence, promptHashes }: ChoiceRequest,
): Int32Array {
  if (sequence.length > 0 || !promptHashes) return shared;
  latency.pendingPrefix(promptHashes, pendingPrefix);
  return pendingPrefix;
}

function taintPull(tables: ChoiceTables, request: ChoiceRequest): Float64Array | undefined {
  const { preferredTaints, constraints } = request;
  if (!preferredTaints?.size || constraints.pinnedWorkerId !== undefined) return undefined;
  const { roster, scratch } = tables;
  for (let at = 0; at < roster.count; at++) {
    const slot = roster.order[at]!;
    scratch.taintPull[slot] = pullOf(roster.workerAt(slot)!, preferredTaints);
  }
  return scratch.taintPull;
}

function pullOf(worker: WorkerProfile, preferred: ReadonlyMap<string, number>): number {
  let pull = 0;
  for (const [taint, weight] of preferred) if (worker.taints.has(taint)) pull += weight;
  return pull;
}

function refusal(code: SelectionRefusal, constraints: WorkerConstraints): RefusedChoice {
  const workerId = constraints.pinnedWorkerId;
  return workerId === undefined
    ? { outcome: "refused", code }
    : { outcome: "refused", code, workerId };
}
