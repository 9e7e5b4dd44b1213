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
 * message leaves at once; `close` leaves nothing behind.
 */
import type { CancelTimer, Clock } from "../base/clock.ts";
import {
  encodeNoticeTexts,
  noticesPerMessageMax,
  noticeText,
  type RequestNotice,
} from "../protocol/notices.ts";

/** Publishes; must not throw. */
export type SendNotices = (subject: string, payload: Uint8Array) => void;

/** How long a notice may wait for others. */
export const laterMs = 250;

export class NoticeOutbox {
  readonly #clock: Clock;
  readonly #send: SendNotices;
  readonly #soon = new Map<string, string[]>();
  readonly #later = new Map<string, string[]>();
  #cancelTurn: CancelTimer | undefined;
  #cancelLater: CancelTimer | undefined;

  constructor(clock: Clock, send: SendNotices) {
    this.#clock = clock;
    this.#send = send;
  }

  /** Tells the nearest dispatcher of `notify` soon, the others later. */
  tell(notify: readonly string[], notice: RequestNotice): void {
    const [nearest, ...others] = notify;
    if (nearest === undefined) return;
    const text = noticeText(notice);
    this.#add(this.#soon, nearest, text);
    this.#cancelTurn ??= this.#clock.after(0, () => this.flush());
    for (const subject of others) this.#addLater(subject, text);
  }

  /** Tells every dispatcher of `notify` later. */
  tellLater(notify: readonly string[], notice: RequestNotice): void {
    if (notify.length === 0) return;
    const text = noticeText(notice);
    for (const subject of notify) this.#addLater(subject, text);
  }

  /** Ends a step: sends what is due soon. */
  flush(): void {
    this.#cancelTurn?.();
    this.#cancelTurn = undefined;
    for (const [subject, texts] of this.#soon) {
      const later = this.#later.get(subject);
      if (later && later.length + texts.length <= noticesPerMessageMax) {
        this.#later.delete(subject);
        texts.push(...later);
      }
      this.#send(subject, encodeNoticeTexts(texts));
    }
    this.#soon.clear();
  }

  /** Sends everything. */
  close(): void {
    this.flush();
    this.#flushLater();
  }

  #flushLater(): void {
    this.#cancelLater?.();
    this.#cancelLater = undefined;
    for (const [subject, texts] of this.#later) this.#send(subject, encodeNoticeTexts(texts));
    this.#later.clear();
  }

  #addLater(subject: string, text: string): void {
    this.#add(this.#later, subject, text);
    this.#cancelLater ??= this.#clock.after(laterMs, () => this.#flushLater());
  }

  #add(lane: Map<string, string[]>, subject: string, text: string): void {
    const texts = lane.get(subject);
    if (!texts) lane.set(subject, [text]);
    else if (texts.push(text) >= noticesPerMessageMax) {
      lane.delete(subject);
      this.#send(subject, encodeNoticeTexts(texts));
    }
  }
}
