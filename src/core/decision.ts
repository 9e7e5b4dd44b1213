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
import {
  type Decision,
  type DecisionRecorder,
  recordAll,
  recordCheapest,
} from "./decision-record.ts";
import { leaveOutCrowded } from "./herd-guard.ts";
import { type LatencyBook, latencyObserver } from "./latency-book.ts";
import { type LatencyCostOptions, latencyCost } from "./latency-cost.ts";
import type { CostInput, CostMode, CostWeights, OverlapColumns } from "./worker-cost.ts";
import { blocksCost, effectiveOverlapOf, potentialDecodeBlocksOf } from "./worker-cost.ts";
import type { WorkerLoad } from "./worker-load.ts";
import { pickLowest, pickRandom, pickSoftmax } from "./worker-pick.ts";
import type {
  SelectionRefusal,
  WorkerConstraints,
  WorkerProfile,
  WorkerRoster,
} from "./worker-roster.ts";

/**
 * `blocks` is the router proper, lowest cost of overlap and load; the others ignore cost and exist to
 * compare with.
 */
export type WorkerPolicy = "blocks" | "random" | "round-robin";

/** Router settings with the request's override applied. */
export interface ChoiceSettings {
  readonly blockSize: number;
  readonly policy: WorkerPolicy;
  /** 0 = lowest cost; above, softmax over costs relative to their spread. */
  readonly temperature: number;
  readonly trackPrefillTokens: boolean;
  readonly decodeOnly: boolean;
  readonly weights: CostWeights;
  /** Leave out workers that have far more than the others. */
  readonly herdGuard: boolean;
}

export interface ChoiceRequest {
  /** Key of the booking, unique among live requests. */
  readonly key: string;
  readonly nowMs: number;
  readonly islTokens: number;
  /** Sequence hashes to track (lanes interleaved); empty = not tracked, or private. */
  readonly sequence: Uint32Array;
  /** Full prompt blocks to track that nobody can share. */
  readonly privateBlocks: number;
  readonly overlap: OverlapColumns;
  readonly constraints: WorkerConstraints;
  /** Weight by taint; positive pulls the request to workers that have it. */
  readonly preferredTaints?: ReadonlyMap<string, number> | undefined;
  /** Expected duration of the prefill for its decay; absent = unknown. */
  readonly expectedPrefillMs?: number | undefined;
  /** Sequence hashes by which prompts under way share when `sequence` is empty; absent = none do. */
  readonly promptHashes?: Uint32Array | undefined;
  readonly expectedOutputTokens?: number | undefined;
  /**
   * Take the best fit to this target (TTFT; ITL on decode workers) instead of the lowest cost. Only
   * in cost mode `latency`.
   */
  readonly fitTargetMs?: number | undefined;
  readonly settings: ChoiceSettings;
}

export interface ChosenWorker {
  readonly outcome: "chosen";
  readonly slot: number;
  readonly workerId: string;
  readonly dpRank: number;
  readonly requiredBlocks: number;
  readonly overlapBlocks: number;
  readonly cachedTokens: number;
  readonly potentialDecodeBlocks: number;
  readonly cost: number;
  readonly candidateCount: number;
  /** Candidates whose cost was not finite: always 0 unless there is a bug. */
  readonly nonFiniteCount: number;
}

export interface RefusedChoice {
  readonly outcome: "refused";
  readonly code: SelectionRefusal | "invalid_request" | "duplicate_request" | "booking_failed";
  readonly workerId?: string;
}

export type Choice = ChosenWorker | RefusedChoice;

export interface ChoiceTables {
  readonly roster: WorkerRoster;
  readonly load: WorkerLoad;
  readonly scratch: ChoiceScratch;
  readonly costMode: CostMode;
  /** In cost mode `latency`: the queues it prices by. */
  readonly latency?: LatencyBook;
}

/** Columns that one choice needs, reused by all of them. */
export class ChoiceScratch {
  candidates: Int32Array = new Int32Array(0);
  costs: Float64Array = new Float64Array(0);
  pickWeights: Float64Array = new Float64Array(0);
  taintPull: Float64Array = new Float64Array(0);
  shared: Int32Array = new Int32Array(0);
  pendingPrefix: Int32Array = new Int32Array(0);
  /** Round-robin turns taken. */
  turns = 0;

  /** Makes room for slots below `slots`. */
  cover(slots: number): void {
    if (this.candidates.length >= slots) return;
    this.candidates = new Int32Array(slots);
    this.costs = new Float64Array(slots);
    this.pickWeights = new Float64Array(slots);
    this.taintPull = new Float64Array(slots);
    this.shared = new Int32Array(slots);
    this.pendingPrefix = new Int32Array(slots);
  }
}

/** Tables of one pool in `blocks` cost mode. */
export function choiceTables(roster: WorkerRoster, load: WorkerLoad): ChoiceTables {
  return { roster, load, scratch: new ChoiceScratch(), costMode: blocksCost };
}

/** Tables of one pool in `latency` cost mode; from here on its book follows `load`. */
export function latencyChoiceTables(
  roster: WorkerRoster,
  load: WorkerLoad,
  options: LatencyCostOptions,
): ChoiceTables {
  const { book } = options;
  load.observe(latencyObserver(book));
  const costMode = latencyCost(options);
  return { roster, load, scratch: new ChoiceScratch(), costMode, latency: book };
}

/**
 * Chooses a holder for the request and books it there; a refusal books nothing. `record` takes
 * the decision before the booking changes the load. Stale requests are the caller's to
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
  if (record) record.take(recordCheapest(tables, { request, input, choice }, record.candidatesMax));
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
