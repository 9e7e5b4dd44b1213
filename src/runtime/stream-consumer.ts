/**
 * One answer at its owner: which attempt is heard, which token comes next, and which silence means
 * what. Lives as long as the answer, over every call (first dispatch, retries, migrations).
 *
 *   dispatched(call) ──▶ waiting ──accepted, heartbeat──▶ heard ──first output──▶ pinned ──▶ over
 *                          │ accept timer                  │ liveness, progress, probe │
 *                          └──────────────── failed: the shell raises the call ────────┘
 *
 * Invariants
 *   - Tokens leave in order, each index once: a lower index is dropped, a higher one is asked for
 *     again (`resume`), and the end counts only when its total is reached.
 *   - Frames of another call are dropped. Within the call the highest attempt is followed until the
 *     first output, which pins its attempt. A dropped attempt is cancelled, at most once a second.
 *   - While the gate is closed no silence counts; when it opens every silence starts anew.
 * Pure: time comes in, frames and actions go out.
 */

import { attemptParts } from "../protocol/requests.ts";
import type { EndFrame, ErrorFrame, StreamFrame, TokensFrame } from "../protocol/stream-frames.ts";
import { GapQuantile } from "./gap-quantile.ts";
import { streamDefaults } from "./stream-defaults.ts";

/** What each silence means; the keys are error codes. */
export const silenceTexts = {
  accept_timeout: "nobody said that it holds the request",
  first_token_timeout: "no token came within the time for the first",
  stream_idle: "the stream fell silent",
} as const;
export type Silence = keyof typeof silenceTexts;

export interface ConsumerTotals {
  fenced: number;
  duplicates: number;
  gaps: number;
}

/** Attempts of one answer whose last cancel is remembered. */
const cancelledMax = 64;

export class StreamConsumer {
  readonly totals: ConsumerTotals;
  readonly #firstTokenMs: number;
  readonly #acceptMs: number;
  readonly #gaps = new GapQuantile();
  /** By attempt; made for the first one, which most answers never have. */
  #cancelledMs: Map<number, number> | undefined;
  readonly #cancels: number[] = [];
  #call = 0;
  #attempt = 0;
  #pinned = false;
  #heard = false;
  #over = false;
  #have = 0;
  #dispatchedMs = 0;
  #frameMs = 0;
  #tokenMs = 0;
  #resumeDue = false;
  #resumedMs = Number.NEGATIVE_INFINITY;
  #probedMs = 0;
  /** Until then, or until it speaks, a heard worker is not judged by its silence. */
  #graceUntilMs = Number.NEGATIVE_INFINITY;
  #ackable = 0;
  #acked = 0;
  #ackedMs = 0;
  #framesSinceAck = 0;
  /** A worker without credit beats: the acknowledgement it waits for may be lost. */
  #ackDoubtful = false;
  #paused = false;

  constructor(
    firstTokenMs: number,
    totals: ConsumerTotals,
    acceptMs: number = streamDefaults.acceptMs,
  ) {
    this.#firstTokenMs = firstTokenMs;
    this.#acceptMs = acceptMs;
    this.totals = totals;
  }

  /** Index of the next token. */
  get have(): number {
    return this.#have;
  }
  get call(): number {
    return this.#call;
  }
  /** The attempt that is followed; 0 while none of this call was seen. */
  get attempt(): number {
    return this.#attempt;
  }
  /** True when a token of this call was taken. */
  get pinned(): boolean {
    return this.#pinned;
  }
  get paused(): boolean {
    return this.#paused;
  }

  /** A call was sent out; earlier calls are no longer heard. */
  dispatched(call: number, nowMs: number): void {
    this.#call = call;
    this.#attempt = 0;
    this.#pinned = false;
    this.#heard = false;
    this.#resumeDue = false;
    this.#acked = this.#have;
    this.#ackable = this.#have;
    this.#framesSinceAck = 0;
    this.#restart(nowMs);
    this.#dispatchedMs = nowMs;
  }

  /** A receipt said that a worker took `attempt`; false when that attempt is not followed. */
  receiptFor(attempt: number, nowMs: number): boolean {
    if (!this.#follows(attempt, nowMs)) return false;
    this.#heard = true;
    this.#frameMs = nowMs;
    return true;
  }

  /** Takes a frame; answers what the owner must act on: new tokens, acceptance, end, error. */
  take(frame: StreamFrame, nowMs: number): StreamFrame | undefined {
    if (this.#over || !this.#follows(frame.attempt, nowMs)) return undefined;
    this.#heard = true;
    this.#frameMs = nowMs;
    this.#graceUntilMs = Number.NEGATIVE_INFINITY;
    switch (frame.type) {
      case "tokens":
        return this.#takeTokens(frame, nowMs);
      case "heartbeat":
        if (frame.next > this.#have) this.#missing();
        if (frame.phase === "decode") this.#ackDoubtful = true;
        return undefined;
      case "accepted":
        return frame;
      case "end":
        return this.#takeEnd(frame);
      case "error":
        return frame;
    }
  }

  /** Silences, deadline excluded; the caller fails the call with the code. */
  silence(nowMs: number, gateOpen: boolean): Silence | undefined {
    if (!gateOpen) {
      this.#restart(nowMs);
      return undefined;
    }
    const silentMs = nowMs - this.#frameMs;
    if (!this.#heard) return silentMs >= this.#acceptMs ? "accept_timeout" : undefined;
    if (nowMs < this.#graceUntilMs) return undefined;
    const { livenessMs, livenessGaps, idleMs, idleGaps } = streamDefaults;
    if (silentMs >= Math.max(livenessMs, livenessGaps * this.#gaps.p99Ms)) return "stream_idle";
    if (!this.#pinned) {
      const late = nowMs - this.#dispatchedMs >= this.#firstTokenMs;
      return late ? "first_token_timeout" : undefined;
    }
    // A paused owner asked for the silence of its tokens.
    if (this.#paused) return undefined;
    const idle = nowMs - this.#tokenMs >= Math.max(idleMs, idleGaps * this.#gaps.p99Ms);
    return idle ? "stream_idle" : undefined;
  }

  /** True when the worker should be asked whether it lives; the next question is a probe later. */
  takeProbe(nowMs: number): boolean {
    const { probeMs } = streamDefaults;
    if (nowMs < this.#graceUntilMs) return false;
    if (!this.#heard || nowMs - Math.max(this.#frameMs, this.#probedMs) < probeMs) return false;
    this.#probedMs = nowMs;
    return true;
  }

  /** The bus carries messages again: every silence starts anew, and lost frames are asked for. */
  thaw(nowMs: number): void {
    this.#restart(nowMs);
    this.#graceUntilMs = nowMs + streamDefaults.thawGraceMs;
    this.#resumedMs = Number.NEGATIVE_INFINITY;
    if (this.#heard) this.#missing();
  }

  /** Index to resume from, at most once per throttle time. */
  takeResume(nowMs: number): number | undefined {
    if (!this.#resumeDue || nowMs - this.#resumedMs < streamDefaults.resumeThrottleMs) {
      return undefined;
    }
    this.#resumeDue = false;
    this.#resumedMs = nowMs;
    return this.#have;
  }

  /** Attempts to cancel, each at most once per throttle time. */
  takeCancels(): readonly number[] {
    return this.#cancels.length === 0 ? noCancels : this.#cancels.splice(0);
  }

  /** Why an acknowledgement is due: enough frames, or time; undefined when none is. */
  ackDue(nowMs: number): "frames" | "time" | undefined {
    if (!this.#heard) return undefined;
    if (this.#framesSinceAck >= streamDefaults.ackFrames && !this.#paused) return "frames";
    const sinceMs = nowMs - this.#ackedMs;
    const news = this.#ackDoubtful || this.#ackable > this.#acked;
    return sinceMs >= (news ? streamDefaults.ackMs : streamDefaults.keepAliveMs)
      ? "time"
      : undefined;
  }

  /** Index to acknowledge; counts as acknowledged. One above the total takes the end too. */
  takeAck(nowMs: number): number {
    this.#acked = this.#ackable;
    this.#ackedMs = nowMs;
    this.#ackDoubtful = false;
    if (!this.#paused) this.#framesSinceAck = 0;
    return this.#acked;
  }

  /** Stops acknowledging, so that the worker's credit runs out. */
  pause(): void {
    this.#paused = true;
  }

  resume(nowMs: number): void {
    this.#paused = false;
    this.#ackable = this.#over ? this.#have + 1 : this.#have;
    this.#tokenMs = nowMs;
  }

  #takeTokens(frame: TokensFrame, nowMs: number): TokensFrame | undefined {
    const { first, output } = frame;
    const end = first + output.tokenIds.length;
    if (first > this.#have) {
      this.#missing();
      return undefined;
    }
    if (end <= this.#have) {
      this.totals.duplicates += 1;
      return undefined;
    }
    const fresh = first === this.#have ? frame : trimmed(frame, this.#have);
    if (this.#pinned) this.#gaps.observe(nowMs - this.#tokenMs);
    this.#pinned = true;
    this.#tokenMs = nowMs;
    this.#have = end;
    this.#resumeDue = false;
    this.#framesSinceAck += 1;
    if (!this.#paused) this.#ackable = end;
    return fresh;
  }

  #takeEnd(frame: EndFrame): EndFrame | ErrorFrame | undefined {
    if (frame.total > this.#have) {
      this.#missing();
      return undefined;
    }
    if (frame.total < this.#have) {
      const message = `an end after ${frame.total} tokens, but ${this.#have} came`;
      const { attempt } = frame;
      const fault = { code: "malformed_reply", retryable: false, started: true } as const;
      return { type: "error", attempt, message, ...fault };
    }
    this.#over = true;
    this.#ackable = frame.total + 1;
    return frame;
  }

  /** Whether a frame of `attempt` is heard; one that is not is fenced off and cancelled. */
  #follows(attempt: number, nowMs: number): boolean {
    if (attempt === this.#attempt) return true;
    const current = attemptParts(attempt).call === this.#call && !this.#over;
    if (current && !this.#pinned && attempt > this.#attempt) {
      if (this.#attempt !== 0) this.#cancel(this.#attempt, nowMs);
      this.#attempt = attempt;
      return true;
    }
    this.totals.fenced += 1;
    this.#cancel(attempt, nowMs);
    return false;
  }

  #cancel(attempt: number, nowMs: number): void {
    this.#cancelledMs ??= new Map();
    const lastMs = this.#cancelledMs.get(attempt) ?? Number.NEGATIVE_INFINITY;
    if (nowMs - lastMs < streamDefaults.cancelThrottleMs) return;
    if (this.#cancelledMs.size >= cancelledMax) this.#cancelledMs.clear();
    this.#cancelledMs.set(attempt, nowMs);
    this.#cancels.push(attempt);
  }

  #missing(): void {
    if (!this.#resumeDue) this.totals.gaps += 1;
    this.#resumeDue = true;
  }

  #restart(nowMs: number): void {
    this.#dispatchedMs = nowMs;
    this.#frameMs = nowMs;
    this.#tokenMs = nowMs;
    this.#probedMs = nowMs;
  }
}

const noCancels: readonly number[] = [];

/** The part of a frame from token `from` on; its text belongs to the tokens already taken. */
function trimmed(frame: TokensFrame, from: number): TokensFrame {
  const { text, ...output } = frame.output;
  const tokenIds = output.tokenIds.slice(from - frame.first);
  return { ...frame, first: from, output: { ...output, tokenIds } };
}
