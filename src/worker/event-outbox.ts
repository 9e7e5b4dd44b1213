/**
 * KV events on their way to the routers, gathered by rank, since a message costs its reader more than
 * the events in it:
 *
 *   pass ──add──▶ waiting[rank]   17, 18, 19 ──┬─ next multiple of `lingerMs` on the clock ──▶ send
 *                                              └─ `messageBytesMax` would be passed, `flush`
 *
 * - Whoever shares the clock sends at the same times: what all engines of a process say is one write.
 * - Events of a rank leave in the order of `add`; with `lingerMs` 0 each call's events leave with it.
 */
import type { CancelTimer, Clock } from "../base/clock.ts";
import type { KvEvent } from "../protocol/kv-events.ts";

/** Bytes of events in one message, unless a single event is larger. */
export const messageBytesMax: number = 512 * 1024;
const eventHeadBytes = 32;

interface Waiting {
  readonly events: KvEvent[];
  bytes: number;
}

export class EventOutbox {
  readonly #clock: Clock;
  readonly #lingerMs: number;
  readonly #send: (dpRank: number, events: readonly KvEvent[]) => void;
  readonly #waiting = new Map<number, Waiting>();
  #cancelTimer: CancelTimer | undefined;

  /** `send` must not throw. */
  constructor(
    clock: Clock,
    lingerMs: number,
    send: (dpRank: number, events: readonly KvEvent[]) => void,
  ) {
    this.#clock = clock;
    this.#lingerMs = lingerMs;
    this.#send = send;
  }

  add(dpRank: number, events: readonly KvEvent[]): void {
    for (const event of events) {
      const bytes = bytesOf(event);
      const waiting = this.#waiting.get(dpRank);
      if (waiting && waiting.bytes + bytes <= messageBytesMax) {
        waiting.events.push(event);
        waiting.bytes += bytes;
        continue;
      }
      if (waiting) this.#send(dpRank, waiting.events);
      this.#waiting.set(dpRank, { events: [event], bytes });
    }
    if (this.#lingerMs === 0) this.flush();
    else if (this.#waiting.size > 0) {
      this.#cancelTimer ??= this.#clock.after(this.#lingerMs, () => this.flush());
    }
  }

  /** Sends everything. */
  flush(): void {
    this.close();
    for (const [dpRank, { events }] of this.#waiting) this.#send(dpRank, events);
    this.#waiting.clear();
  }

  /** Ends the timer; what waits is not sent. */
  close(): void {
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
  }
}

function bytesOf(event: KvEvent): number {
  if (event.type === "cleared") return eventHeadBytes;
  return eventHeadBytes + (event.type === "stored" ? event.blocks : event.hashes).byteLength;
}
