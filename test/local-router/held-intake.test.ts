import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { createKvIndex } from "../../src/core/create-kv-index.ts";
import { createEventIntake } from "../../src/local-router/event-intake.ts";
import { holdIntake } from "../../src/local-router/held-intake.ts";
import { loadBlockHasher } from "../../src/protocol/block-hashes.ts";

const { chain } = await loadBlockHasher();

function newHeld() {
  const clock = new ManualClock();
  const index = createKvIndex({ mode: "opaque", random: mulberry32(1), chain });
  const asked: string[] = [];
  const intake = createEventIntake({
    ...{ index, clock },
    query: async ({ workerId }) => {
      asked.push(workerId);
      return { type: "tree_dump", events: [], lastEventId: null };
    },
  });
  return { clock, held: holdIntake(intake), asked };
}

const rankOf = (workerId: string, dpRank = 0) => ({ workerId, dpRank });

it("asks discovered ranks only when it is let go, and each once", async () => {
  const { clock, held, asked } = newHeld();
  held.onDiscovered(rankOf("1"));
  held.onDiscovered(rankOf("1"));
  held.onDiscovered(rankOf("2"));
  await clock.runFor(100);
  expect(asked).toEqual([]);
  held.release();
  held.release();
  await clock.runFor(100);
  expect(asked).toEqual(["1", "2"]);
  held.onDiscovered(rankOf("3"));
  await clock.runFor(100);
  expect(asked).toEqual(["1", "2", "3"]);
});

it("does not ask who left meanwhile, nor whom a snapshot knew", async () => {
  const { clock, held, asked } = newHeld();
  held.onDiscovered(rankOf("1", 0));
  held.onDiscovered(rankOf("1", 1));
  held.onDiscovered(rankOf("11"));
  held.onDiscovered(rankOf("2"));
  held.onDiscovered(rankOf("3", 0));
  held.onDiscovered(rankOf("3", 1));
  held.removeWorker("1");
  held.removeHolder(rankOf("3", 1));
  held.rankOf(rankOf("2"), 1)?.cursor.resume(5, "a");
  held.release();
  await clock.runFor(100);
  expect(asked).toEqual(["11", "3"]);
});

it("lets events go while it is held", async () => {
  const { clock, held } = newHeld();
  const batch = { ...rankOf("1"), stateSource: "", events: [] };
  held.onEvents({ ...batch, events: [{ type: "cleared", eventId: 4 }] });
  expect([...held.ranks()]).toEqual([]);
  held.release();
  held.onEvents({ ...batch, events: [{ type: "cleared", eventId: 5 }] });
  await clock.runFor(1);
  expect(held.rankOf(rankOf("1"), 1)?.cursor.last).toBe(5);
});
