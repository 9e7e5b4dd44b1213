/**
 * The holders that may take a request: every live (worker, dp rank) with what discovery and load
 * reports say about it.
 *
 *   slot         0       1       2       given by the KV index, so that columns line up
 *   worker    [ w1,     w1,     w2 ]     profile: id, taints, capacity
 *   dpRank    [  0,      1,      0 ]
 *   reports   [ kv used, decode blocks, prefill tokens ]   latest, 0 = none came
 *   limits    [ decode blocks, prefill tokens ]            Infinity = not judged
 *   order     [  0,      1,      2 ]     slots by (worker id, dp rank), both unsigned
 *
 * Busy is judged from the latest values at each selection and never stored, so no mark can stay
 * behind.
 */
import { grownFloat64, grownInt32 } from "./column.ts";
import type { LoadColumns } from "./worker-cost.ts";

export interface WorkerProfile {
  /** u64 as a canonical decimal string. */
  readonly workerId: string;
  readonly taints: ReadonlySet<string>;
  readonly totalKvBlocks?: number | undefined;
  readonly maxNumBatchedTokens?: number | undefined;
}

/** Latest report of a rank; an absent field leaves the last value. */
export interface LoadReport {
  readonly kvUsedBlocks?: number | undefined;
  readonly activeDecodeBlocks?: number | undefined;
  readonly activePrefillTokens?: number | undefined;
}

/** Null = off. A rank is busy when any value is strictly above its limit. */
export interface BusyThresholds {
  /** 0..1 of the rank's KV blocks. */
  readonly activeDecodeBlocks: number | null;
  readonly activePrefillTokens: number | null;
  /** Times the rank's batch size in tokens. */
  readonly activePrefillTokensFrac: number | null;
}

export const noBusyThresholds: BusyThresholds = {
  activeDecodeBlocks: null,
  activePrefillTokens: null,
  activePrefillTokensFrac: null,
};

/** Which holders a request may use. */
export interface WorkerConstraints {
  readonly allowedWorkerIds?: ReadonlySet<string> | undefined;
  readonly pinnedWorkerId?: string | undefined;
  readonly dpRank?: number | undefined;
  readonly requiredTaints?: readonly string[] | undefined;
}

/** Why a holder is no candidate, in the order of the filters. */
export type WhyNot = "not_allowed" | "not_pinned" | "other_rank" | "missing_taint" | "busy";

export type SelectionRefusal =
  | "no_endpoints"
  | "pinned_worker_not_allowed"
  | "pinned_worker_overloaded"
  | "all_eligible_workers_overloaded";

/** Batch size that is assumed of a worker that does not tell. */
export const unknownMaxNumBatchedTokens = 10_000_000;

const slotsAtStart = 64;
const unlimited = Number.POSITIVE_INFINITY;

export class WorkerRoster {
  /** Live slots in candidate order; the first `count` are valid. */
  order: Int32Array = new Int32Array(slotsAtStart);
  count = 0;

  readonly #workers: (WorkerProfile | undefined)[] = [];
  #dpRanks = new Float64Array(slotsAtStart);
  #kvUsedBlocks = new Float64Array(slotsAtStart);
  #decodeBlocks = new Float64Array(slotsAtStart);
  #prefillTokens = new Float64Array(slotsAtStart);
  #decodeBlocksLimit = new Float64Array(slotsAtStart);
  #prefillTokensLimit = new Float64Array(slotsAtStart);
  #thresholds: BusyThresholds = noBusyThresholds;
  #judges = false;

  constructor(thresholds: BusyThresholds = noBusyThresholds) {
    this.setThresholds(thresholds);
  }

  get thresholds(): BusyThresholds {
    return this.#thresholds;
  }

  /** Takes effect at the next selection. */
  setThresholds(thresholds: BusyThresholds): void {
    this.#thresholds = thresholds;
    this.#judges = Object.values(thresholds).some((threshold) => threshold !== null);
    for (let at = 0; at < this.count; at++) this.#setLimits(this.order[at]!);
  }

  /** Makes `slot` the holder (worker, dpRank); a slot that is live already takes the new profile. */
  set(slot: number, worker: WorkerProfile, dpRank: number): void {
    while (slot >= this.order.length) this.#grow();
    if (this.#workers[slot]) this.remove(slot);
    this.#workers[slot] = worker;
    this.#dpRanks[slot] = dpRank;
    this.#kvUsedBlocks[slot] = 0;
    this.#decodeBlocks[slot] = 0;
    this.#prefillTokens[slot] = 0;
    this.#setLimits(slot);
    let at = this.count++;
    for (; at > 0 && this.#isAfter(this.order[at - 1]!, slot); at--) {
      this.order[at] = this.order[at - 1]!;
    }
    this.order[at] = slot;
  }

  remove(slot: number): void {
    const at = this.order.subarray(0, this.count).indexOf(slot);
    if (at < 0) return;
    this.order.copyWithin(at, at + 1, this.count);
    this.count--;
    this.#workers[slot] = undefined;
  }

  workerAt(slot: number): WorkerProfile | undefined {
    return this.#workers[slot];
  }

  dpRankAt(slot: number): number {
    return this.#dpRanks[slot]!;
  }

  report(slot: number, report: LoadReport): void {
    if (!this.#workers[slot]) return;
    if (report.kvUsedBlocks !== undefined) this.#kvUsedBlocks[slot] = report.kvUsedBlocks;
    if (report.activeDecodeBlocks !== undefined) {
      this.#decodeBlocks[slot] = report.activeDecodeBlocks;
    }
    if (report.activePrefillTokens !== undefined) {
      this.#prefillTokens[slot] = report.activePrefillTokens;
    }
  }

  /** True when a reported or booked value of the slot is strictly above its limit. */
  isBusy(slot: number, load: LoadColumns): boolean {
    if (!this.#judges) return false;
    const blocks = this.#decodeBlocksLimit[slot]!;
    const tokens = this.#prefillTokensLimit[slot]!;
    return (
      this.#prefillTokens[slot]! > tokens ||
      load.prefillTokens[slot]! > tokens ||
      this.#kvUsedBlocks[slot]! > blocks ||
      this.#decodeBlocks[slot]! > blocks ||
      load.activeBlocks[slot]! > blocks
    );
  }

  /** Why the live `slot` may not take a request; undefined when it may. */
  whyNot(slot: number, constraints: WorkerConstraints, load: LoadColumns): WhyNot | undefined {
    const worker = this.#workers[slot]!;
    const { allowedWorkerIds, pinnedWorkerId, dpRank, requiredTaints } = constraints;
    if (allowedWorkerIds && !allowedWorkerIds.has(worker.workerId)) return "not_allowed";
    if (pinnedWorkerId !== undefined && pinnedWorkerId !== worker.workerId) return "not_pinned";
    if (dpRank !== undefined && dpRank !== this.#dpRanks[slot]) return "other_rank";
    if (requiredTaints && !hasAll(worker.taints, requiredTaints)) return "missing_taint";
    return this.isBusy(slot, load) ? "busy" : undefined;
  }

  /**
   * Writes the slots that may take the request into `candidates`, in candidate order, and answers
   * how many; or why there is none.
   */
  eligible(
    constraints: WorkerConstraints,
    load: LoadColumns,
    candidates: Int32Array,
  ): number | SelectionRefusal {
    const { allowedWorkerIds, pinnedWorkerId } = constraints;
    const pinned = pinnedWorkerId !== undefined;
    if (pinned && allowedWorkerIds && !allowedWorkerIds.has(pinnedWorkerId)) {
      return "pinned_worker_not_allowed";
    }
    if (!this.#judges && isOpen(constraints)) {
      candidates.set(this.order.subarray(0, this.count));
      return this.count > 0 ? this.count : "no_endpoints";
    }
    let found = 0;
    let busy = 0;
    for (let at = 0; at < this.count; at++) {
      const slot = this.order[at]!;
      const reason = this.whyNot(slot, constraints, load);
      if (reason === undefined) candidates[found++] = slot;
      else if (reason === "busy") busy++;
    }
    if (found > 0) return found;
    if (busy === 0) return "no_endpoints";
    return pinned ? "pinned_worker_overloaded" : "all_eligible_workers_overloaded";
  }

  #setLimits(slot: number): void {
    const { activeDecodeBlocks, activePrefillTokens, activePrefillTokensFrac } = this.#thresholds;
    const worker = this.#workers[slot]!;
    const total = worker.totalKvBlocks;
    this.#decodeBlocksLimit[slot] =
      activeDecodeBlocks === null || total === undefined ? unlimited : activeDecodeBlocks * total;
    const batch = worker.maxNumBatchedTokens ?? unknownMaxNumBatchedTokens;
    this.#prefillTokensLimit[slot] = Math.min(
      activePrefillTokens ?? unlimited,
      activePrefillTokensFrac === null ? unlimited : Math.floor(activePrefillTokensFrac * batch),
    );
  }

  #isAfter(slot: number, other: number): boolean {
    const workerId = this.#workers[slot]!.workerId;
    const otherId = this.#workers[other]!.workerId;
    if (workerId === otherId) return this.#dpRanks[slot]! > this.#dpRanks[other]!;
    // Canonical decimals: the longer one is the larger number.
    if (workerId.length !== otherId.length) return workerId.length > otherId.length;
    return workerId > otherId;
  }

  #grow(): void {
    const length = this.order.length * 2;
    this.order = grownInt32(this.order, length);
    this.#dpRanks = grownFloat64(this.#dpRanks, length);
    this.#kvUsedBlocks = grownFloat64(this.#kvUsedBlocks, length);
    this.#decodeBlocks = grownFloat64(this.#decodeBlocks, length);
    this.#prefillTokens = grownFloat64(this.#prefillTokens, length);
    this.#decodeBlocksLimit = grownFloat64(this.#decodeBlocksLimit, length);
    this.#prefillTokensLimit = grownFloat64(this.#prefillTokensLimit, length);
  }
}

/** True when every holder may take the request. */
function isOpen(constraints: WorkerConstraints): boolean {
  const { allowedWorkerIds, pinnedWorkerId, dpRank, requiredTaints } = constraints;
  const taints = requiredTaints?.length ?? 0;
  return !allowedWorkerIds && pinnedWorkerId === undefined && dpRank === undefined && taints === 0;
}

function hasAll(taints: ReadonlySet<string>, required: readonly string[]): boolean {
  for (let at = 0; at < required.length; at++) if (!taints.has(required[at]!)) return false;
  return true;
}
