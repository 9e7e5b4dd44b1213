import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { createKvIndex } from "../../src/core/create-kv-index.ts";
import { stageDump } from "../../src/local-router/staged-dump.ts";
import { loadBlockHasher } from "../../src/protocol/block-hashes.ts";
import type { KvEvent } from "../../src/protocol/kv-events.ts";

const { chain } = await loadBlockHasher();

/** Roots of `blocks` blocks each, every engine hash its own. */
function chains(count: number, blocks: number): KvEvent[] {
  return Array.from({ length: count }, (_, event) => ({
    type: "stored",
    eventId: event,
    tier: "device",
    parent: undefined,
    blocks: Uint32Array.from({ length: 4 * blocks }, (_, word) =>
      word % 2 === 0 ? event * blocks + (word >> 2) + 1 : 0,
    ),
  }));
}

/** Blocks in the copy at the end of each turn. */
async function turnsOf(events: readonly KvEvent[]): Promise<number[]> {
  const index = createKvIndex({ mode: "opaque", random: mulberry32(1), chain });
  const slot = index.holder("1", 0);
  const turns: number[] = [];
  let stored = 0;
  const staged = {
    beginStaged: (of: number) => index.beginStaged(of),
    storeStaged(...args: Parameters<typeof index.storeStaged>) {
      stored += args[2].length / 4;
      return index.storeStaged(...args);
    },
  };
  const manual = new ManualClock();
  const clock = {
    nowMs: () => manual.nowMs(),
    wallMs: () => manual.wallMs(),
    after(delayMs: number, fire: () => void) {
      turns.push(stored);
      return manual.after(delayMs, fire);
    },
  };
  const refused = stageDump({ index: staged, clock }, slot, events, new AbortController().signal);
  await manual.runFor(1);
  expect(await refused).toBe(0);
  index.commitStaged(slot);
  expect(index.blocksOf(slot)).toBe(stored);
  return [...turns, stored];
}

it("applies at most 64 events of a dump in a turn", async () => {
  const turns = await turnsOf(chains(130, 1));
  expect(turns).toEqual([64, 128, 130]);
});

it("begins no event in a turn that has reached 2,048 blocks", async () => {
  const turns = await turnsOf(chains(6, 1024));
  expect(turns).toEqual([2048, 4096, 6144]);
});
