/**
 * A dispatcher's books: one entry per request, and every change of an entry's state. No I/O.
 *
 *   open ──accept──▶ accepted ──running──▶ running ──end──▶ gone
 *    ▲ └──fail──┐        │ fail
 *    └──────────┴────────┘
 *
 * `policy.plan` books; exactly one of `policy.attemptFailed` and `policy.ended` undoes that.
 */
import { CancelSwitch } from "../base/cancel.ts";
import { TiergridError } from "../base/errors.ts";
import { KeyedSlots } from "../core/keyed-slots.ts";
import type { ReadDispatch } from "../protocol/request-frame.ts";
import { attemptNumber, attemptPartMax, attemptParts, islTokensOf } from "../protocol/requests.ts";
import type {
  Acceptance,
  DispatchEntry,
  DispatcherTotals,
  DispatchPolicy,
  EndCause,
} from "./dispatch-policy.ts";

export const bookLimits = {
  entriesMax: 65_536,
  /** Two missed 5 s lists of active requests, and slack. */
  lostAfterMs: 12_000,
  /** Silence beyond one list: from here on it is asked whether our own bus is in doubt. */
  quietAfterMs: 6_000,
} as const;

export class DispatchBook<State> {
  readonly entries: KeyedSlots<DispatchEntry<State>> = new KeyedSlots();
  readonly totals: DispatcherTotals = {
    received: 0,
    accepted: 0,
    refused: 0,
    retried: 0,
    cancelled: 0,
    lateNotices: 0,
    lost: 0,
  };
  readonly #policy: DispatchPolicy<State>;
  readonly #level: "global" | "local";
  /** The last sweep found our own bus in doubt. */
  #inDoubt = false;

  constructor(policy: DispatchPolicy<State>, level: "global" | "local") {
    this.#policy = policy;
    this.#level = level;
  }

  /**
   * Registers a request; a newer call of the same stream takes the older one's place. Throws
   * `duplicate_request`, `overloaded`, and what `policy.admit` throws.
   */
  admit({ dispatch, frame }: ReadDispatch, nowMs: number): DispatchEntry<State> {
    const { envelope, body, prompt } = dispatch;
    const older = this.entries.get(envelope.rid);
    if (older && envelope.attempt <= older.attempt) {
      throw new TiergridError("duplicate_request", `attempt ${envelope.attempt} is already known`);
    }
    if (!older && this.entries.size >= bookLimits.entriesMax) {
      throw new TiergridError("overloaded", `${this.entries.size} requests are already open`);
    }
    const state = this.#policy.admit(dispatch);
    if (older) {
      older.cancel.abort();
      this.end(older, "superseded");
    }
    const entry: DispatchEntry<State> = {
      rid: envelope.rid,
      envelope,
      body,
      frame,
      prompt,
      islTokens: islTokensOf(prompt),
      state,
      receivedMs: nowMs,
      deadlineMs: nowMs + envelope.deadlineMs,
      attempt: envelope.attempt,
      attempts: 0,
      phase: "open",
      booked: false,
      target: undefined,
      worker: undefined,
      lastSeenMs: nowMs,
      offer: undefined,
      cancel: new CancelSwitch(),
    };
    this.entries.set(entry.rid, entry);
    return entry;
  }

  /**
   * Raises this level's part of the attempt number by one per attempt already sent; false when it is
   * used up. Asking again, while the policy waits, does not raise it again.
   */
  raiseAttempt(entry: DispatchEntry<State>): boolean {
    if (entry.attempts === 0) return true;
    const parts = attemptParts(entry.envelope.attempt);
    const part = parts[this.#level] + entry.attempts;
    if (part > attemptPartMax) return false;
    entry.attempt = attemptNumber({ ...parts, local: 0, [this.#level]: part });
    return true;
  }

  offered(entry: DispatchEntry<State>, target: { inst: string; control: string }): void {
    entry.booked = true;
    entry.attempts += 1;
    if (entry.attempts > 1) this.totals.retried += 1;
    entry.target = target;
  }

  accept(entry: DispatchEntry<State>, acceptance: Acceptance, nowMs: number): void {
    const { attempt, inst, control, workerId: id, waitedMs = 0 } = acceptance;
    entry.phase = "accepted";
    entry.attempt = Math.max(entry.attempt, attempt);
    entry.worker = { inst, control, id };
    entry.lastSeenMs = nowMs;
    this.totals.accepted += 1;
    this.#policy.accepted(entry, waitedMs);
  }

  /** The attempt died before its first output; the entry waits for another plan. */
  failAttempt(entry: DispatchEntry<State>, error: TiergridError): void {
    this.#policy.attemptFailed(entry, error);
    entry.booked = false;
    entry.target = undefined;
    entry.worker = undefined;
    entry.phase = "open";
  }

  /** The first output left the worker: no retry is possible, the prompt is not needed again. */
  running(entry: DispatchEntry<State>): void {
    if (entry.phase !== "accepted") return;
    entry.phase = "running";
    dropPrompt(entry);
  }

  /** Idempotent: the first cause wins. */
  end(entry: DispatchEntry<State>, cause: EndCause): void {
    if (entry.phase === "gone") return;
    entry.phase = "gone";
    dropPrompt(entry);
    if (this.entries.get(entry.rid) === entry) this.entries.delete(entry.rid);
    if (cause === "lost") this.totals.lost += 1;
    this.#policy.ended(entry, cause);
    entry.booked = false;
  }

  /** A worker's list of the requests it runs. */
  seen(requests: readonly { readonly rid: string; readonly attempt: number }[], nowMs: number) {
    for (const { rid, attempt } of requests) {
      const entry = this.entries.get(rid);
      if (entry && attempt >= entry.attempt) entry.lastSeenMs = nowMs;
    }
  }

  /** Frees what no sign has named for too long; while the gate is closed silence proves nothing. */
  sweep(nowMs: number, gate: { readonly open: boolean }): void {
    const waiting = [...this.entries.values()].filter(({ phase }) => phase !== "open");
    const isQuiet = waiting.some((entry) => nowMs - entry.lastSeenMs > bookLimits.quietAfterMs);
    this.#inDoubt = (isQuiet || this.#inDoubt) && !gate.open;
    for (const entry of waiting) {
      if (this.#inDoubt) entry.lastSeenMs = nowMs;
      if (nowMs - entry.lastSeenMs > bookLimits.lostAfterMs) this.end(entry, "lost");
      else if (nowMs > entry.deadlineMs + bookLimits.lostAfterMs) this.end(entry, "deadline");
    }
  }
}

function dropPrompt(entry: DispatchEntry<unknown>): void {
  entry.prompt = undefined;
  entry.frame = undefined;
}
