import fc from "fast-check";
import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { tickClock } from "../../src/base/tick-clock.ts";
import type { KvEvent } from "../../src/protocol/kv-events.ts";
import { EventOutbox, messageBytesMax } from "../../src/worker/event-outbox.ts";

interface Message {
  readonly atMs: number;
  readonly dpRank: number;
  readonly ids: readonly number[];
  readonly bytes: number;
}

function rig(lingerMs: number) {
  const clock = new ManualClock();
  const sent: Message[] = [];
  const outbox = new EventOutbox(clock, lingerMs, (dpRank, events) => {
    const ids = events.map(({ eventId }) => eventId);
    sent.push({ atMs: clock.nowMs(), dpRank, ids, bytes: bytesOf(events) });
  });
  return { clock, sent, outbox };
}

function bytesOf(events: readonly KvEvent[]): number {
  return events.reduce(
    (sum, event) => sum + 32 + (event.type === "removed" ? event.hashes : none).byteLength,
    0,
  );
}

const none = new Uint32Array(0);

function removal(eventId: number, blocks = 1): KvEvent {
  return { type: "removed", eventId, tier: "device", hashes: new Uint32Array(2 * blocks) };
}

it("sends the events of several passes together, a message per rank", () => {
  const { clock, sent, outbox } = rig(50);
  outbox.add(0, [removal(0)]);
  clock.advanceTo(20);
  outbox.add(1, [removal(0)]);
  outbox.add(0, [removal(1), removal(2)]);
  clock.advanceTo(49);
  expect(sent).toEqual([]);
  clock.advanceTo(500);
  expect(sent).toMatchObject([
    { atMs: 50, dpRank: 0, ids: [0, 1, 2] },
    { atMs: 50, dpRank: 1, ids: [0] },
  ]);
  expect(clock.pending()).toBe(0);
});

it("sends each pass by itself when nothing may wait", () => {
  const { clock, sent, outbox } = rig(0);
  outbox.add(0, [removal(0), removal(1)]);
  outbox.add(0, [removal(2)]);
  expect(sent.map(({ ids }) => ids)).toEqual([[0, 1], [2]]);
  expect(clock.pending()).toBe(0);
});

it("sends what waits at a flush, and nothing after a close", () => {
  const { clock, sent, outbox } = rig(50);
  outbox.add(0, [removal(0)]);
  outbox.flush();
  expect(sent.map(({ ids }) => ids)).toEqual([[0]]);
  outbox.add(0, [removal(1)]);
  outbox.close();
  clock.advanceTo(500);
  expect(sent).toHaveLength(1);
  expect(clock.pending()).toBe(0);
});

it("fills a message to the maximum and not beyond it; a larger event travels alone", () => {
  const blocksMax = (messageBytesMax - 32 - 40) / 8;
  const { sent, outbox } = rig(50);
  outbox.add(0, [removal(0), removal(1, blocksMax)]);
  expect(sent).toEqual([]);
  outbox.add(0, [removal(2)]);
  expect(sent).toMatchObject([{ ids: [0, 1], bytes: messageBytesMax }]);
  outbox.add(0, [removal(3, 2 * blocksMax), removal(4)]);
  expect(sent.slice(1).map(({ ids }) => ids)).toEqual([[2], [3]]);
});

it("keeps every event and each rank's order, and lets none wait longer than the linger", () => {
  const pass = fc.record({
    gapMs: fc.integer({ min: 0, max: 80 }),
    dpRank: fc.integer({ min: 0, max: 2 }),
    sizes: fc.array(fc.integer({ min: 1, max: 40_000 }), { maxLength: 4 }),
  });
  fc.assert(
    fc.property(fc.array(pass, { maxLength: 30 }), (passes) => {
      const { clock, sent, outbox } = rig(50);
      const ids = [0, 0, 0];
      const madeMs = new Map<string, number>();
      for (const { gapMs, dpRank, sizes } of passes) {
        clock.advanceTo(clock.nowMs() + gapMs);
        const events = sizes.map((size) => removal(ids[dpRank]!++, size));
        for (const { eventId } of events) madeMs.set(`${dpRank} ${eventId}`, clock.nowMs());
        outbox.add(dpRank, events);
      }
      clock.advanceTo(clock.nowMs() + 50);
      for (const dpRank of [0, 1, 2]) {
        const heard = sent.filter((message) => message.dpRank === dpRank).flatMap((m) => m.ids);
        expect(heard).toEqual(Array.from({ length: ids[dpRank]! }, (_, id) => id));
      }
      for (const { atMs, dpRank, ids: heard, bytes } of sent) {
        expect(bytes <= messageBytesMax || heard.length === 1).toBe(true);
        for (const id of heard) {
          expect(atMs - (madeMs.get(`${dpRank} ${id}`) ?? 0)).toBeLessThanOrEqual(50);
        }
      }
    }),
    { seed: 7, numRuns: 100 },
  );
});

it("leaves with the other engines of its process on a tick clock", () => {
  const clock = new ManualClock();
  const ticks = tickClock(clock, 50);
  const sentMs: number[] = [];
  const outboxes = [0, 1].map(() => new EventOutbox(ticks, 50, () => sentMs.push(clock.nowMs())));
  outboxes[0]?.add(0, [removal(0)]);
  clock.advanceTo(30);
  outboxes[1]?.add(0, [removal(0)]);
  clock.advanceTo(40);
  outboxes[0]?.add(0, [removal(1)]);
  clock.advanceTo(60);
  outboxes[0]?.add(0, [removal(2)]);
  clock.advanceTo(1_000);
  expect(sentMs).toEqual([50, 100, 150]);
});
