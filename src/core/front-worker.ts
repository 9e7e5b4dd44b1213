/**
 * What a prompt takes from everybody else by the worker it occupies: until when the pool has none
 * that is free. Only the worker with the shortest wait matters for that, the front.
 *
 *   waitMs     [ 200, 1800, 4000 ]     a prompt of 2,500 ms
 *   on the front, the next free worker is there at min(1800, 200 + 2500) instead of 200 ms
 *   heldMs     [ 1600,   0,    0 ]
 *
 * A prompt with time to spare is better queued behind others than run on the last free worker, where
 * requests that have none need it.
 */
export interface FrontWorker {
  /** -1 = no worker was seen. */
  slot: number;
  waitMs: number;
  /** Wait of the second; Infinity = there is none. */
  nextWaitMs: number;
  /** Time of the prompt alone on the front. */
  ownMs: number;
}

export function noFront(front: FrontWorker): void {
  front.slot = -1;
  front.waitMs = Number.POSITIVE_INFINITY;
  front.nextWaitMs = Number.POSITIVE_INFINITY;
  front.ownMs = 0;
}

/** Takes one more worker into account: what is queued there, and the prompt alone, in ms. */
export function seeWorker(front: FrontWorker, slot: number, waitMs: number, ownMs: number): void {
  if (waitMs >= front.waitMs) {
    if (waitMs < front.nextWaitMs) front.nextWaitMs = waitMs;
    return;
  }
  front.nextWaitMs = front.waitMs;
  front.slot = slot;
  front.waitMs = waitMs;
  front.ownMs = ownMs;
}

/** How much later the pool has a free worker if the prompt takes the front; 0 without a second. */
export function heldMs({ waitMs, nextWaitMs, ownMs }: FrontWorker): number {
  return nextWaitMs === Number.POSITIVE_INFINITY ? 0 : Math.min(nextWaitMs - waitMs, ownMs);
}
