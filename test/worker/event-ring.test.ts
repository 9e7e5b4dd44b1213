import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32, randomInt } from "../../src/base/random.ts";
import { createKvIndex } from "../../src/core/create-kv-index.ts";
import type { Tier } from "../../src/core/kv-index.ts";
import { loadBlockHasher } from "../../src/protocol/block-hashes.ts";
import {
  type KvEvent,
  type RemovedEvent,
  type StorageTier,
  type StoredEvent,
  storageTiers,
} from "../../src/protocol/kv-events.ts";
import { formatU64, readU64Decimal, type U64 } from "../../src/protocol/u64.ts";
import { EventRing } from "../../src/worker/event-ring.ts";
import vectors from "../golden/radix.json" with { type: "json" };

const { chain } = await loadBlockHasher();

const u64 = (text: string): U64 => readU64Decimal(text)!;
const lanes = (texts: readonly string[]): Uint32Array =>
  Uint32Array.from(texts.flatMap((text) => [u64(text).lo, u64(text).hi]));
const ringOf = (ringMax = 1024) =>
  new EventRing({ workerId: "1", chain, random: mulberry32(1), ringMax });

const removed = (
  eventId: number,
  names: string[] = [],
  tier: StorageTier = "device",
): RemovedEvent => ({
  type: "removed",
  eventId,
  tier,
  hashes: lanes(names),
});
const stored = (
  eventId: number,
  parent: string | null,
  blocks: [string, string][],
  tier: StorageTier = "device",
): StoredEvent => ({
  type: "stored",
  eventId,
  tier,
  parent: parent === null ? undefined : u64(parent),
  blocks: lanes(blocks.flat()),
});
const ask = (ring: EventRing, startEventId?: number, endEventId?: number) =>
  ring.answer({ workerId: "1", startEventId, endEventId });

it("answers from the ring, inclusive, with the original ids", () => {
  const ring = ringOf(4);
  for (let id = 0; id < 10; id++) ring.append(removed(id));
  const ids = (start: number, end?: number) => {
    const answer = ask(ring, start, end);
    return answer.type === "events" ? answer.events.map((event) => event.eventId) : answer.type;
  };
  expect(ids(6)).toEqual([6, 7, 8, 9]);
  expect(ids(7, 8)).toEqual([7, 8]);
  expect(ids(9, 50)).toEqual([9]);
  expect(ids(5)).toBe("tree_dump");
  expect(ids(10)).toBe("too_new");
  expect(ids(8, 7)).toBe("invalid_range");
});

it("says what was emitted last: null before the first event", () => {
  const ring = ringOf();
  expect(ask(ring)).toEqual({ type: "tree_dump", events: [], lastEventId: null });
  expect(ask(ring, 0)).toMatchObject({ type: "too_new", newestAvailable: null });
  ring.append(removed(0));
  expect(ask(ring)).toMatchObject({ lastEventId: 0 });
});

it("refuses another worker's query and an id out of order", () => {
  const ring = ringOf();
  const query = { workerId: "2", startEventId: undefined, endEventId: undefined };
  expect(ring.answer(query).type).toBe("error");
  expect(() => ring.append(removed(1))).toThrow("expected id 0, got 1");
});

interface DumpRow {
  worker_id: string;
  parent_hash: string | null;
  block_hash: string;
  tokens_hash: string;
}

function rowsOf(ring: EventRing): Omit<DumpRow, "worker_id">[] {
  const answer = ask(ring);
  if (answer.type !== "tree_dump") throw new Error(answer.type);
  return answer.events.flatMap((event) => {
    if (event.type !== "stored") throw new Error(event.type);
    let parent = event.parent ? formatU64(event.parent.lo, event.parent.hi) : null;
    return Array.from({ length: event.blocks.length / 4 }, (_, block) => {
      const [a, b, c, d] = event.blocks.subarray(4 * block);
      const row = {
        parent_hash: parent,
        block_hash: formatU64(c!, d!),
        tokens_hash: formatU64(a!, b!),
      };
      parent = row.block_hash;
      return row;
    });
  });
}

const dumpScripts = vectors.scripts.filter((script) =>
  script.steps.some((step) => "expected_dump_any_order_parent_before_child" in step),
);

it.each(dumpScripts)("dump of: $name", ({ steps }) => {
  const rings = new Map<string, EventRing>();
  for (const step of steps as unknown as {
    event?: {
      worker_id: string;
      op: string;
      parent_hash?: string | null;
      blocks?: { block_hash: string; tokens_hash: string }[];
      block_hashes?: string[];
    };
    expected_dump_any_order_parent_before_child?: DumpRow[];
  }[]) {
    if (step.event) {
      const { worker_id, op, parent_hash, blocks, block_hashes } = step.event;
      const ring = rings.get(worker_id) ?? ringOf();
      rings.set(worker_id, ring);
      const id = ring.nextEventId;
      if (op === "stored") {
        const pairs = blocks!.map((b): [string, string] => [b.tokens_hash, b.block_hash]);
        ring.append(stored(id, parent_hash ?? null, pairs));
      } else ring.append(removed(id, block_hashes!));
    }
    const expected = step.expected_dump_any_order_parent_before_child;
    if (!expected) continue;
    for (const [worker, ring] of rings) {
      const own = expected.filter((row) => row.worker_id === worker);
      const rows = own.map(({ parent_hash, block_hash, tokens_hash }) => {
        return { parent_hash, block_hash, tokens_hash };
      });
      const text = (all: object[]) => all.map((row) => JSON.stringify(row)).sort();
      expect(text(rowsOf(ring))).toEqual(text(rows));
    }
  }
});

const tierOf = (event: StoredEvent | RemovedEvent) => storageTiers.indexOf(event.tier) as Tier;

/** Random events of one rank, with names that repeat, move and replace each other. */
function randomEvent(seed: number, eventId: number): KvEvent {
  const random = mulberry32(seed);
  const name = () => String(randomInt(random, 1, 40));
  const local = () => String(randomInt(random, 1, 3));
  const choice = random();
  const tier = storageTiers[Math.max(0, randomInt(random, -3, 3))]!;
  if (choice < 0.02) return { type: "cleared", eventId };
  if (choice < 0.4) return removed(eventId, [name(), name()], tier);
  const blocks = Array.from({ length: randomInt(random, 1, 4) }, (): [string, string] => [
    local(),
    name(),
  ]);
  return stored(eventId, random() < 0.4 ? null : name(), blocks, tier);
}

it("dumps a chain as one event, however it was stored", () => {
  const ring = ringOf();
  for (let block = 0; block < 300; block++) {
    ring.append(stored(block, block === 0 ? null : String(block), [["7", String(block + 1)]]));
  }
  const dump = ask(ring);
  if (dump.type !== "tree_dump") throw new Error(dump.type);
  expect(dump.events).toHaveLength(1);
});

it("a dump rebuilds what a router has, and the digests agree", () => {
  fc.assert(
    fc.property(fc.array(fc.integer(), { maxLength: 150 }), (seeds) => {
      const ring = ringOf();
      const index = createKvIndex({ mode: "opaque", random: mulberry32(2), chain });
      const live = index.holder("live", 0);
      const rebuilt = index.holder("rebuilt", 0);
      seeds.forEach((seed, id) => {
        const event = randomEvent(seed, id);
        ring.append(event);
        if (event.type === "cleared") index.clear(live);
        else if (event.type === "removed") index.remove(live, event.hashes, tierOf(event));
        else index.store(live, event.parent, event.blocks, tierOf(event));
      });
      expect(ring.digest()).toEqual(index.digestOf(live));
      const dump = ask(ring);
      if (dump.type !== "tree_dump") throw new Error(dump.type);
      index.beginStaged(rebuilt);
      for (const event of dump.events) {
        if (event.type !== "stored") throw new Error(event.type);
        const { parent, blocks } = event;
        expect(index.storeStaged(rebuilt, parent, blocks, tierOf(event))).toBe("ok");
      }
      index.commitStaged(rebuilt);
      const column = () => new Int32Array(index.slots);
      const [depths, slow] = [column(), { host: column(), disk: column() }];
      for (let prompt = 0; prompt < 81; prompt++) {
        const locals = [0, 1, 2, 3].map((digit) =>
          String(1 + (Math.floor(prompt / 3 ** digit) % 3)),
        );
        const sequence = lanes(locals);
        chain(sequence, 1, 4);
        index.match(sequence, 4, depths, slow);
        for (const runs of [depths, slow.host, slow.disk]) expect(runs[rebuilt]).toBe(runs[live]);
      }
    }),
    { numRuns: 60 },
  );
});
