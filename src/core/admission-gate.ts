/** Whether a pool has room for a request, and what it has of the request's prompt. Books nothing. */
import type { ChoiceTables } from "./choice.ts";
import { type CostWeights, cachedTokensOf, type OverlapColumns } from "./worker-cost.ts";
import {
  type SelectionRefusal,
  unknownMaxNumBatchedTokens,
  type WorkerConstraints,
} from "./worker-roster.ts";

export interface GateQuestion {
  readonly constraints: WorkerConstraints;
  readonly nowMs: number;
  /** Batches of prefill a holder may have booked and still have room. */
  readonly threshold: number;
}

/**
 * `room` when a holder that may take the request has no more booked prefill tokens than
 * `threshold` times its batch; `full` when all have more; or why there is no such holder.
 */
export function roomFor(tables: ChoiceTables, question: GateQuestion): Room | SelectionRefusal {
  const { roster, load } = tables;
  const prefillTokens = load.prefillTokensAt(question.nowMs);
  const candidates = eligible(tables, question);
  if (typeof candidates === "string") return candidates;
  for (let at = 0; at < candidates.length; at++) {
    const slot = candidates[at]!;
    const batch = roster.workerAt(slot)!.maxNumBatchedTokens ?? unknownMaxNumBatchedTokens;
    if (prefillTokens[slot]! <= question.threshold * batch) return "room";
  }
  return "full";
}

export type Room = "room" | "full";

export interface CacheQuestion {
  readonly constraints: WorkerConstraints;
  readonly nowMs: number;
  readonly blockSize: number;
  readonly weights: CostWeights;
  readonly overlap: OverlapColumns;
}

/** Most prompt tokens that one holder which may take the request has cached. */
export function bestCachedTokens(tables: ChoiceTables, question: CacheQuestion): number {
  const candidates = eligible(tables, question);
  if (typeof candidates === "string") return 0;
  let best = 0;
  for (let at = 0; at < candidates.length; at++) {
    best = Math.max(best, cachedTokensOf(question, candidates[at]!));
  }
  return best;
}

function eligible(
  { roster, load, scratch }: ChoiceTables,
  { constraints, nowMs }: Pick<GateQuestion, "constraints" | "nowMs">,
): Int32Array | SelectionRefusal {
  scratch.cover(roster.order.length);
  const { activeBlocks, activeRequests } = load;
  const columns = { prefillTokens: load.prefillTokensAt(nowMs), activeBlocks, activeRequests };
  const found = roster.eligible(constraints, columns, scratch.candidates);
  return typeof found === "string" ? found : scratch.candidates.subarray(0, found);
}
