/**
 * Requests that have their worker and wait here for their turn there (`core/prefill-queue.ts`): booked
 * when they came, sent when their worker is about to be free for them.
 *
 *   choose, book ──▶ wait ──turn──▶ send
 *        ▲             │
 *        └─worker left─┘
 *
 * - Only the next one of a worker has a time; it is asked anew whenever that may have come closer.
 * - Bounded by `heldPerWorkerMax`. Each looks by itself once a second, were every sign lost.
 */
import { CancelSwitch } from "../base/cancel.ts";
import type { Clock } from "../base/clock.ts";
import type { LatencyBook } from "../core/latency-book.ts";
import type { WorkerLoad } from "../core/worker-load.ts";
import type { Plan } from "../runtime/dispatch-policy.ts";
import type { LocalMetrics } from "./local-metrics.ts";
import type { WorkerDirectory } from "./worker-directory.ts";

/** Longest sleep of a held request. */
export const heldRecheckMs = 1_000;

/** `gone`: the booking is not there any more, its worker left. */
export type Turn = { readonly type: "go" | "gone" } | Extract<Plan, { readonly type: "wait" }>;

export interface HeldDispatch {
  /** What the request booked under `key` may do at this moment; asked again after each wait. */
  ask(key: string): Turn;
  /** The request is over, or another booking takes its place. */
  leave(key: string): void;
  /** Sends all that is held: nobody is to wait any longer. */
  sendAll(): void;
}

export interface HeldDispatchOptions {
  readonly clock: Clock;
  readonly load: WorkerLoad;
  readonly directory: Pick<WorkerDirectory, "listen" | "workers">;
  readonly metrics: LocalMetrics;
}

interface Waiting {
  readonly sinceMs: number;
  readonly wakesMs: number;
  readonly woken: CancelSwitch;
}

/** Undefined when the book holds nothing back. */
export function startHeldDispatch(
  { clock, load, directory, metrics }: HeldDispatchOptions,
  book: LatencyBook | undefined,
): HeldDispatch | undefined {
  if (!book?.holds) return undefined;
  const waiting = new Map<string, Waiting>();
  const held = metrics.histogram("tiergrid_hold_seconds");
  metrics.onScrape(() => metrics.gauge("tiergrid_held_requests").set(book.heldCount));
  const wakeAll = (): void => {
    for (const { woken } of waiting.values()) woken.abort();
  };
  book.onTurns = (slot) => {
    const key = book.nextHeld(slot);
    const next = key === undefined ? undefined : waiting.get(key);
    if (key === undefined || !next) return;
    if ((book.releaseAtMs(key, clock.nowMs()) ?? 0) < next.wakesMs) next.woken.abort();
  };
  directory.listen({ removed: wakeAll });
  return {
    ask(key) {
      const nowMs = clock.nowMs();
      const atMs = book.releaseAtMs(key, nowMs);
      const sinceMs = waiting.get(key)?.sinceMs ?? nowMs;
      if (atMs === undefined || atMs <= nowMs) {
        if (waiting.delete(key)) held.observe((nowMs - sinceMs) / 1000);
        if (!load.has(key)) return gone;
        book.release(key, nowMs);
        return go;
      }
      const wakesMs = Math.min(atMs, nowMs + heldRecheckMs);
      const woken = new CancelSwitch();
      waiting.set(key, { sinceMs, wakesMs, woken });
      return { type: "wait", waitMs: wakesMs - nowMs, woken };
    },
    leave: (key) => void waiting.delete(key),
    sendAll() {
      const slots = [...directory.workers.values()].flatMap((worker) => worker.slots);
      for (const slot of slots) {
        for (let key = book.nextHeld(slot); key !== undefined; key = book.nextHeld(slot)) {
          book.release(key, clock.nowMs());
        }
      }
      wakeAll();
    },
  };
}

const go: Turn = { type: "go" };
const gone: Turn = { type: "gone" };
