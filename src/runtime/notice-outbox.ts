/**
 * Notices on their way to dispatchers, gathered by subject, since a message costs more than what
 * stands in it:
 *
 *   soon    tg.nt.7   first_output a, finished b   ──flush, end of the loop turn──▶ one message
 *   later   tg.nt.9   first_output a, closed c     ──within 250 ms───────────────▶ one message
 *
 * The nearest dispatcher books by what it hears, so it hears soon. The others only free what they
 * keep for a retry, and count.
 * Invariants: what was told for later to a dispatcher that hears soon leaves with that; a full
 * message leaves at once; `flushAll` leaves nothing behind.
 */
import type { CancelTimer, Clock } from "../base/clock.ts";
import { type CourseNotice, encodeNotices } from "../protocol/notice-frame.ts";
import { noticesPerMessageMax } from "../protocol/notices.ts";

/** Publishes; must not throw. */
export type SendNotices = (subject: string, payload: Uint8Array) => void;

/** How long a notice may wait for others. */
export const laterMs = 250;
/** The same of an acceptance: a dispatcher that hears nothing for 300 ms asks another hop. */
export const acceptedWithinMs = 10;

export class NoticeOutbox {
  readonly #clock: Clock;
  readonly #send: SendNotices;
  readonly #soon = new Map<string, CourseNotice[]>();
  readonly #later = new Map<string, CourseNotice[]>();
  #cancelTurn: CancelTimer | undefined;
  #cancelLater: CancelTimer | undefined;
  #laterDueMs = 0;

  constructor(clock: Clock, send: SendNotices) {
    this.#clock = clock;
    this.#send = send;
  }

  /** Tells the nearest dispatcher of `notify` soon, the others later. */
  tell(notify: readonly string[], notice: CourseNotice): void {
    const [nearest, ...others] = notify;
    if (nearest === undefined) return;
    this.#add(this.#soon, nearest, notice);
    this.#cancelTurn ??= this.#clock.after(0, () => this.flush());
    for (const subject of others) this.#addLater(subject, notice, laterMs);
  }

  /** Tells every dispatcher of `notify` later, within `withinMs` at most. */
  tellLater(notify: readonly string[], notice: CourseNotice, withinMs: number = laterMs): void {
    for (const subject of notify) this.#addLater(subject, notice, withinMs);
  }

  /** Ends a step: sends what is due soon. */
  flush(): void {
    this.#cancelTurn?.();
    this.#cancelTurn = undefined;
    for (const [subject, notices] of this.#soon) {
      const later = this.#later.get(subject);
      if (later && later.length + notices.length <= noticesPerMessageMax) {
        this.#later.delete(subject);
        this.#send(subject, encodeNotices([...later, ...notices]));
      } else this.#send(subject, encodeNotices(notices));
    }
    this.#soon.clear();
  }

  /** Sends everything. */
  flushAll(): void {
    this.flush();
    this.#flushLater();
  }

  #flushLater(): void {
    this.#cancelLater?.();
    this.#cancelLater = undefined;
    for (const [subject, notices] of this.#later) this.#send(subject, encodeNotices(notices));
    this.#later.clear();
  }

  #addLater(subject: string, notice: CourseNotice, withinMs: number): void {
    this.#add(this.#later, subject, notice);
    const dueMs = this.#clock.nowMs() + withinMs;
    if (this.#cancelLater && this.#laterDueMs <= dueMs) return;
    this.#cancelLater?.();
    this.#laterDueMs = dueMs;
    this.#cancelLater = this.#clock.after(withinMs, () => this.#flushLater());
  }

  #add(lane: Map<string, CourseNotice[]>, subject: string, notice: CourseNotice): void {
    const notices = lane.get(subject);
    if (!notices) lane.set(subject, [notice]);
    else if (notices.push(notice) >= noticesPerMessageMax) {
      lane.delete(subject);
      this.#send(subject, encodeNotices(notices));
    }
  }
}
