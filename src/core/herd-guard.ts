/**
 * Keeps one worker from getting most of the requests, for what it has cached or for what it lacks.
 * A candidate is crowded, and left out, while its load is more than twice what the others have on
 * average and something to spare:
 *
 *   requests    [ 70,  20,   0,  10 ]    the first may have 2 * 10 + 24
 *   candidates  [  0,   1,   2,   3 ] ─▶ [ 1, 2, 3 ]
 *
 * The least loaded candidate is never crowded, so one always stays. Of n candidates none is given a
 * request while it has more than 2 / (n + 1) of the load and the spare.
 */
import type { CostMode, LoadColumns } from "./worker-cost.ts";

const crowdFactor = 2;
export const spareRequests = 24;
/** More than all but the longest prompts, so that one prompt is no crowd. */
export const spareTokens = 98_304;

/**
 * Takes the crowded out of the first `count` candidates, keeping their order, and answers how many
 * stay. Requests in flight count in both cost modes; tokens to compute only in `blocks`, because
 * `latency` prices the wait for them.
 */
export function leaveOutCrowded(
  candidates: Int32Array,
  count: number,
  load: Pick<LoadColumns, "activeRequests" | "prefillTokens">,
  costMode: CostMode["name"],
): number {
  const { activeRequests, prefillTokens } = load;
  let place = 0;
  for (; place < count; place++) {
    const slot = candidates[place]!;
    if (activeRequests[slot]! > spareRequests || prefillTokens[slot]! > spareTokens) break;
  }
  // A limit is never below what is spared: mostly one look at both columns is enough.
  if (place === count) return count;
  const stay = withoutCrowded(candidates, count, activeRequests, spareRequests);
  if (costMode === "latency") return stay;
  return withoutCrowded(candidates, stay, prefillTokens, spareTokens);
}

function withoutCrowded(
  candidates: Int32Array,
  count: number,
  load: Float64Array | Int32Array,
  spare: number,
): number {
  let total = 0;
  let most = 0;
  for (let place = 0; place < count; place++) {
    const own = load[candidates[place]!]!;
    total += own;
    if (own > most) most = own;
  }
  // own <= factor * (total - own) / (count - 1) + spare, solved for own.
  const others = count - 1;
  const limit = (crowdFactor * total + spare * others) / (others + crowdFactor);
  if (most <= limit || count < 2) return count;
  let stay = 0;
  for (let place = 0; place < count; place++) {
    const slot = candidates[place]!;
    if (load[slot]! <= limit) candidates[stay++] = slot;
  }
  return stay;
}
