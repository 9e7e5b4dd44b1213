/** Keeps a latency book in step with the bookings of its pool. */
import type { LatencyBook } from "./latency-book.ts";
import type { LoadObserver } from "./worker-load.ts";

const noBlocks = new Uint32Array(0);

/** Keeps `book` in step with a `WorkerLoad`, whoever books there. */
export function latencyObserver(book: LatencyBook): LoadObserver {
  return {
    added({ key, slot, nowMs, prefillTokens, cachedTokens = 0, promptHashes, sequence, ...more }) {
      book.dispatched({
        ...{ key, slot, nowMs, cachedTokens },
        deadlineMs: more.deadlineMs,
        mayWait: more.mayWait,
        uncachedTokens: prefillTokens,
        // Blocks that the load tracks it can compare itself.
        sequence: sequence.length === 0 && promptHashes ? promptHashes : noBlocks,
      });
    },
    prefillCompleted: (key, nowMs, cachedTokens) => book.firstToken(key, nowMs, cachedTokens),
    freed: (key, nowMs) => book.finished(key, nowMs),
  };
}
