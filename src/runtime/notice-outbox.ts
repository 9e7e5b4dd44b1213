/**
 * Notices on their way to dispatchers, gathered by subject: those of one engine step, or of one loop
 * turn, travel to a dispatcher as one message, since a message costs more than what stands in it.
 *
 *   tg.nt.7   first_output a, finished b, finished c   ──flush──▶ one message
 *   tg.nt.9   first_output a                           ──flush──▶ one message
 *
 * Invariant: what was added leaves with the next `flush`, or when the loop turn ends; a full message
 * leaves at once.
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

export class NoticeOutbox {
  readonly #clock: Clock;
  readonly #send: SendNotices;
  readonly #texts = new Map<string, string[]>();
  #cancelTurn: CancelTimer | undefined;

  constructor(clock: Clock, send: SendNotices) {
    this.#clock = clock;
    this.#send = send;
  }

  add(subjects: readonly string[], notice: RequestNotice): void {
    if (subjects.length === 0) return;
    const text = noticeText(notice);
    for (const subject of subjects) this.#add(subject, text);
    this.#cancelTurn ??= this.#clock.after(0, () => this.flush());
  }

  flush(): void {
    this.#cancelTurn?.();
    this.#cancelTurn = undefined;
    if (this.#texts.size === 0) return;
    for (const [subject, texts] of this.#texts) this.#send(subject, encodeNoticeTexts(texts));
    this.#texts.clear();
  }

  #add(subject: string, text: string): void {
    const texts = this.#texts.get(subject);
    if (!texts) this.#texts.set(subject, [text]);
    else if (texts.push(text) >= noticesPerMessageMax) {
      this.#texts.delete(subject);
      this.#send(subject, encodeNoticeTexts(texts));
    }
  }
}
