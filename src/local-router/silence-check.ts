/**
 * Workers that announce KV events, end requests, and yet send no event: their engine publishes
 * nothing, or to somebody else, and they are routed by load alone.
 *
 *   per worker   events heard, requests ended ──every 60 s──▶ none heard, some ended? ──▶ silent
 *
 * A silent worker stays so until an event of it is heard.
 */
import { type CancelTimer, type Clock, every } from "../base/clock.ts";
import type { Log } from "../runtime/log.ts";
import type { PoolWorker } from "./worker-directory.ts";

export const silenceCheckPeriodMs = 60_000;

export interface SilenceCheckOptions {
  readonly clock: Clock;
  readonly log: Log;
  readonly workers: () => Iterable<PoolWorker>;
  /** Events heard of a worker, all ranks and its whole life. */
  readonly eventsOf: (workerId: string) => number;
}

export interface SilenceCheck {
  /** A request of the worker ended with an answer. */
  ended(workerId: string): void;
  /** Silent workers at the last check. */
  readonly count: number;
  close(): void;
}

interface Watched {
  ended: number;
  heard: number;
  silent: boolean;
}

export function startSilenceCheck(options: SilenceCheckOptions): SilenceCheck {
  let watched = new Map<string, Watched>();
  let count = 0;
  const check = (): void => {
    const present = new Map<string, Watched>();
    count = 0;
    for (const { inst, card } of options.workers()) {
      if (!card.kvEvents) continue;
      const worker = watched.get(inst);
      if (worker) judge(options, inst, worker);
      if (worker?.silent) count++;
      present.set(inst, worker ?? { ended: 0, heard: options.eventsOf(inst), silent: false });
    }
    watched = present;
  };
  const close: CancelTimer = every(options.clock, silenceCheckPeriodMs, check);
  return {
    ended(workerId) {
      // A worker that the last check did not see yet has not been watched for long enough.
      const worker = watched.get(workerId);
      if (worker) worker.ended++;
    },
    get count() {
      return count;
    },
    close,
  };
}

function judge({ log, eventsOf }: SilenceCheckOptions, inst: string, worker: Watched): void {
  const heard = eventsOf(inst);
  const wasSilent = worker.silent;
  if (heard !== worker.heard) worker.silent = false;
  else if (worker.ended > 0) worker.silent = true;
  worker.heard = heard;
  worker.ended = 0;
  if (worker.silent && !wasSilent) {
    const seconds = silenceCheckPeriodMs / 1000;
    log.warn("worker sends no KV events", { worker_id: inst, seconds });
  }
}
