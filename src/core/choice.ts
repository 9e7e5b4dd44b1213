/** What one worker choice is made from, and what can come out of it. */
import type { LatencyBook } from "./latency-book.ts";
import { type LatencyCostOptions, latencyCost } from "./latency-cost.ts";
import { latencyObserver } from "./latency-observer.ts";
import type { CostMode, CostWeights, OverlapColumns } from "./worker-cost.ts";
import { blocksCost } from "./worker-cost.ts";
import type { WorkerLoad } from "./worker-load.ts";
import type { SelectionRefusal, WorkerConstraints, WorkerRoster } from "./worker-roster.ts";

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
  /** Whoever books can wait with the dispatch (`LatencyBook.releaseAtMs`). */
  readonly mayWait?: boolean | undefined;
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
