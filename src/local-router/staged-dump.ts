/** A worker's dump of one rank, on its way into the index. */
import { type Clock, sleep } from "../base/clock.ts";
import type { KvIndex, Tier } from "../core/kv-index.ts";
import {
  type KvEvent,
  type RemovedEvent,
  type StoredEvent,
  storageTiers,
} from "../protocol/kv-events.ts";

/** A turn of the event loop takes at most so many events of a dump, */
const sliceEventsMax = 64;
/** and none after it has reached so many blocks; one event has up to 4,096. */
const sliceBlocks = 2048;

export interface StagedDumpOptions {
  readonly index: Pick<KvIndex, "beginStaged" | "storeStaged">;
  readonly clock: Clock;
}

/**
 * Fills the holder's invisible copy, a slice per turn of the event loop; answers how many events the
 * index refused. Aborted, it leaves the copy as it is.
 */
export async function stageDump(
  { index, clock }: StagedDumpOptions,
  slot: number,
  events: readonly KvEvent[],
  signal: AbortSignal,
): Promise<number> {
  if (signal.aborted) return 0;
  index.beginStaged(slot);
  let refused = 0;
  for (let from = 0; from < events.length; ) {
    if (from > 0) await sleep(clock, 0, signal);
    if (signal.aborted) return refused;
    const end = sliceEnd(events, from);
    for (const event of events.slice(from, end)) {
      if (event.type !== "stored") continue;
      const { parent, blocks } = event;
      if (index.storeStaged(slot, parent, blocks, tierOf(event)) !== "ok") refused++;
    }
    from = end;
  }
  return refused;
}

export function tierOf(event: StoredEvent | RemovedEvent): Tier {
  return storageTiers.indexOf(event.tier) as Tier;
}

function sliceEnd(events: readonly KvEvent[], from: number): number {
  const endMax = Math.min(from + sliceEventsMax, events.length);
  let blocks = 0;
  let end = from;
  while (end < endMax && blocks < sliceBlocks) {
    const event = events[end++];
    if (event?.type === "stored") blocks += event.blocks.length / 4;
  }
  return end;
}
