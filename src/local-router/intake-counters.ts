/** What the event intake counts: plain numbers on the hot path, copied into series at a scrape. */
import type { RecoveryResult } from "../core/event-cursor.ts";
import type { RemoveResult, StoreResult } from "../core/kv-index.ts";
import type { KvEvent } from "../protocol/kv-events.ts";

export type EventType = KvEvent["type"];

/** What became of an event: the index's answer. */
export type EventStatus = StoreResult | RemoveResult;

/**
 * Why a holder's worker is asked for events: its holder is new, events are missing, its process
 * restarted, its digest disagrees, an answer left something out, or an earlier recovery failed.
 */
export type ResyncCause =
  | "discovered"
  | "gap"
  | "restarted"
  | "mismatch"
  | "incomplete"
  | "degraded";

/** The worker's answer, no answer after the last attempt, or an end that made it void. */
export type RecoveryOutcome = RecoveryResult["type"] | "cancelled";

export interface IntakeCounters {
  /** Events the cursor let through, by type and status. */
  readonly events: Readonly<Record<EventType, Record<EventStatus, number>>>;
  /** Recoveries asked for. */
  readonly resyncs: Record<ResyncCause, number>;
  /** Holders whose own digest disagreed with the index. */
  mismatches: number;
  /** Cleared or restarted holders. */
  clears: number;
  /** Events that came again, or beyond the buffer. */
  stale: number;
  /** Events of a dump that the index refused. */
  dumpRefused: number;
  /** Events of holders beyond the index's maximum. */
  noHolder: number;
  /** Recoveries started. */
  recoveries: number;
  /** Attempts of recoveries that failed. */
  recoveryFailures: number;
  /** Recoveries by what they came to; those under way are in none. */
  readonly outcomes: Record<RecoveryOutcome, number>;
}

export function newIntakeCounters(): IntakeCounters {
  const events = (): Record<EventStatus, number> => ({
    ok: 0,
    parent_block_not_found: 0,
    block_not_found: 0,
    invalid_block: 0,
    capacity: 0,
  });
  return {
    events: { stored: events(), removed: events(), cleared: events() },
    resyncs: { discovered: 0, gap: 0, restarted: 0, mismatch: 0, incomplete: 0, degraded: 0 },
    mismatches: 0,
    clears: 0,
    stale: 0,
    dumpRefused: 0,
    noHolder: 0,
    recoveries: 0,
    recoveryFailures: 0,
    outcomes: {
      events: 0,
      tree_dump: 0,
      too_new: 0,
      invalid_range: 0,
      error: 0,
      failed: 0,
      cancelled: 0,
    },
  };
}
