/**
 * One open event stream: events in, socket writes out.
 *
 *   send ──▶ gathered ──(first: at once; then: once per loop turn)──▶ transport ──▶ client
 *                ▲                                                        │
 *                └──── waits here while the transport is full ◀───────────┘
 *
 * A socket write costs some 7 µs whatever its size, so only fewer writes help: events of one loop
 * turn go out together, each still its own event.
 *   - While the transport is full nothing is written and the source is paused. What the source's
 *     credit still lets through gathers: some 50 kB of single tokens.
 *   - At most `gatheredCharsMax` gather; more, or 30 s without progress, cuts the client off.
 *   - After `end`, a cut or the client's leaving nothing is written and no timer is left.
 */
import type { CancelTimer, Clock } from "../base/clock.ts";

/** Where the text goes; implementations in `sse-transports.ts`. */
export interface SseTransport {
  /** Takes `text`; false = full, `onDrain` will be called. Never throws. */
  write(text: string): boolean;
  end(): void;
  /** Cuts the connection; the client sees a broken answer. */
  destroy(): void;
  onDrain(listener: () => void): void;
  /** Called once when the client is gone before `end` was taken. */
  onGone(listener: () => void): void;
}

/** Why a stream ended without `end`. */
export type SseLoss = "client_gone" | "stalled";

export interface SseOptions {
  readonly clock: Clock;
  readonly keepAliveMs: number;
  /** The client reads too slowly: stop the source until `resume`. */
  readonly pause: () => void;
  readonly resume: () => void;
  /** Called at most once; the source should be cancelled. */
  readonly lost: (why: SseLoss) => void;
}

export interface SseWriter {
  /** Queues one or more whole events (`data: …\n\n`). Ignored once the stream is over. */
  send(events: string): void;
  /** Writes what is gathered and ends the answer. */
  end(): void;
  readonly open: boolean;
}

export const sseHeaders: Readonly<Record<string, string>> = {
  "content-type": "text/event-stream; charset=utf-8",
  "cache-control": "no-cache",
  "x-accel-buffering": "no",
};

/** The source's whole credit, 256 frames, at 16 kB each. */
export const gatheredCharsMax = 4 * 1024 * 1024;
export const writeStallMs = 30_000;
export const keepAliveDefaultMs = 15_000;
const keepAliveComment = ": keep-alive\n\n";

/** Starts writing to `transport`, whose headers are already set. */
export function createSseWriter(transport: SseTransport, options: SseOptions): SseWriter {
  const { clock } = options;
  let gathered = "";
  let started = false;
  let full = false;
  let ending = false;
  let open = true;
  let writtenAtMs = clock.nowMs();
  let cancelFlush: CancelTimer | undefined;
  let cancelStall: CancelTimer | undefined;
  let cancelKeepAlive: CancelTimer | undefined;

  const close = (): void => {
    open = false;
    gathered = "";
    cancelFlush?.();
    cancelStall?.();
    cancelKeepAlive?.();
  };
  const lose = (why: SseLoss): void => {
    if (!open) return;
    close();
    if (why === "stalled") transport.destroy();
    options.lost(why);
  };
  const write = (text: string): void => {
    writtenAtMs = clock.nowMs();
    if (transport.write(text) || !open) return;
    full = true;
    cancelStall = clock.after(writeStallMs, () => lose("stalled"));
    if (!ending) options.pause();
  };
  const flush = (): void => {
    cancelFlush = undefined;
    if (!open || full) return;
    const text = gathered;
    gathered = "";
    if (text !== "") write(text);
    if (ending && open && !full) {
      close();
      transport.end();
    }
  };
  const keepAlive = (): void => {
    const quietMs = clock.nowMs() - writtenAtMs;
    if (quietMs >= options.keepAliveMs && !full) write(keepAliveComment);
    const nextMs = quietMs >= options.keepAliveMs ? 0 : quietMs;
    if (open) cancelKeepAlive = clock.after(options.keepAliveMs - nextMs, keepAlive);
  };

  transport.onGone(() => lose("client_gone"));
  transport.onDrain(() => {
    if (!open || !full) return;
    full = false;
    cancelStall?.();
    if (!ending) options.resume();
    flush();
  });
  cancelKeepAlive = clock.after(options.keepAliveMs, keepAlive);

  return {
    get open() {
      return open;
    },
    send(events) {
      if (!open || ending) return;
      gathered += events;
      if (gathered.length > gatheredCharsMax) return lose("stalled");
      if (!started) {
        started = true;
        flush();
      } else if (!full) cancelFlush ??= clock.after(0, flush);
    },
    end() {
      if (!open || ending) return;
      ending = true;
      flush();
    },
  };
}
