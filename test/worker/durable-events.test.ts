import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { decodeKvEvents } from "../../src/protocol/kv-event-frame.ts";
import type { KvEvent } from "../../src/protocol/kv-events.ts";
import type { DurableLog } from "../../src/runtime/durable-log.ts";
import { createMemoryDurableStore } from "../../src/runtime/memory-durable-log.ts";
import {
  batchBlocks,
  createDurableEvents,
  type DurableEvents,
  lingerMs,
  pendingEventsMax,
} from "../../src/worker/durable-events.ts";
import { addWorker, ask, bodyOf, newRig, promptOf } from "./worker-rig.ts";

const stored = (eventId: number, blocks: number): KvEvent => {
  const words = new Uint32Array(4 * blocks).fill(eventId + 1);
  return { type: "stored", eventId, tier: "device", parent: undefined, blocks: words };
};

function newWriter() {
  const clock = new ManualClock();
  const store = createMemoryDurableStore(clock);
  const troubles: (string | undefined)[] = [];
  const events = createDurableEvents({
    log: store.connect(),
    clock,
    sourceOf: (dpRank) => ({ workerId: "7", dpRank, stateSource: "e", subject: "tg.evs.a.b.7.0" }),
    onTrouble: (error) => troubles.push(error?.code),
  });
  return { clock, store, events, troubles, log: store.connect() };
}

/** Event ids of each message of the stream. */
async function messagesOf(log: DurableLog, clock: ManualClock): Promise<number[][]> {
  const reading = (async () => {
    const consumer = await log.consumer(`reader-${clock.nowMs()}`, 1);
    const ids: number[][] = [];
    for (;;) {
      const { messages } = await consumer.next(1);
      if (messages.length === 0) return ids;
      for (const { payload } of messages) {
        ids.push(decodeKvEvents(payload).events.map(({ eventId }) => eventId));
      }
    }
  })();
  await clock.runFor(20);
  return reading;
}

const publish = (events: DurableEvents, from: number, count: number, blocks = 1): void =>
  events.publish(
    0,
    Array.from({ length: count }, (_, i) => stored(from + i, blocks)),
  );

it("lets single events gather until the linger or a full batch", async () => {
  const { clock, events, log } = newWriter();
  publish(events, 0, 1);
  await clock.runFor(lingerMs - 1);
  publish(events, 1, 1);
  await clock.runFor(5);
  publish(events, 2, 1);
  publish(events, 3, 1, batchBlocks - 1);
  await clock.runFor(1);
  expect(await messagesOf(log, clock)).toEqual([
    [0, 1],
    [2, 3],
  ]);
  expect(events.totals).toEqual({ events: 4, messages: 2, failures: 0, dropped: 0 });
});

it("sends what comes during an append with the next, in order", async () => {
  const { clock, events, log } = newWriter();
  publish(events, 0, 1, batchBlocks);
  for (let id = 1; id < 6; id++) publish(events, id, 1, batchBlocks);
  await clock.runFor(10);
  expect(await messagesOf(log, clock)).toEqual([[0], [1, 2, 3, 4, 5]]);
});

it("keeps events over an outage, tells of it once and loses none", async () => {
  const { clock, store, events, troubles, log } = newWriter();
  publish(events, 0, 1, batchBlocks);
  await clock.runFor(10);
  store.up = false;
  publish(events, 1, 1, batchBlocks);
  await clock.runFor(5_000);
  publish(events, 2, 3);
  store.up = true;
  await clock.runFor(2_500);
  expect(await messagesOf(log, clock)).toEqual([[0], [1], [2, 3, 4]]);
  expect(troubles).toEqual(["disconnected", undefined]);
  expect(events.totals.failures).toBeGreaterThan(1);
});

it("makes the stream again when it vanished", async () => {
  const { clock, store, events, log } = newWriter();
  publish(events, 0, 1, batchBlocks);
  await clock.runFor(10);
  store.vanish("stream");
  publish(events, 1, 1, batchBlocks);
  await clock.runFor(500);
  expect(await messagesOf(log, clock)).toEqual([[1]]);
});

it("holds a bounded number of events and drops the oldest beyond", async () => {
  const { clock, store, events, log } = newWriter();
  store.up = false;
  publish(events, 0, 1, batchBlocks);
  await clock.runFor(1);
  publish(events, 1, pendingEventsMax);
  expect(events.totals.dropped).toBe(0);
  publish(events, 1 + pendingEventsMax, 1);
  expect(events.totals.dropped).toBe(1);
  store.up = true;
  await clock.runFor(1_000);
  const ids = (await messagesOf(log, clock)).flat();
  expect(ids.length).toBe(1 + pendingEventsMax);
  expect(ids.slice(0, 2)).toEqual([0, 2]);
});

it("sends nothing after its close", async () => {
  const { clock, events, log } = newWriter();
  publish(events, 0, 1, batchBlocks);
  await clock.runFor(10);
  publish(events, 1, 1);
  events.close();
  publish(events, 2, 1, batchBlocks);
  await clock.runFor(1_000);
  expect(clock.pending()).toBe(0);
  expect(await messagesOf(log, clock)).toEqual([[0]]);
});

it("takes the events of a worker in durable mode, and the bus none", async () => {
  const rig = newRig();
  const store = createMemoryDurableStore(rig.clock);
  const heard: string[] = [];
  rig.bus.subscribe("tg.ev.>", ({ subject }) => void heard.push(subject));
  const worker = await addWorker(rig, {}, store.connect());
  ask(rig, { workers: [worker], tokens: promptOf(16), body: bodyOf(5) });
  await rig.clock.runFor(2_000);
  const ids = (await messagesOf(store.connect(), rig.clock)).flat();
  expect(ids.length).toBeGreaterThan(1);
  expect(ids).toEqual(ids.map((_, at) => at));
  expect(heard).toEqual([]);
  expect(await worker.metrics.text()).toMatch(
    /tiergrid_durable_events_total\{outcome="appended"\} \d/,
  );
  await worker.worker.close();
});
