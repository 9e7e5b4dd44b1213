import { expect, it } from "vitest";
import { mulberry32, randomInt } from "../../src/base/random.ts";
import { createKvIndex } from "../../src/core/create-kv-index.ts";
import { decodeKvEvents } from "../../src/protocol/kv-event-frame.ts";
import type { KvEvent, KvEventBatch } from "../../src/protocol/kv-events.ts";
import { decodeKvAnswer, encodeKvQuery, type KvAnswer } from "../../src/protocol/kv-query.ts";
import { decodeLoadSample, type LoadSample } from "../../src/protocol/load-sample.ts";
import {
  kvEventsOfNamespace,
  kvQuerySubject,
  loadOfNamespace,
} from "../../src/protocol/subjects.ts";
import { loadPeriodMs } from "../../src/worker/load-reports.ts";
import {
  addWorker,
  ask,
  bodyOf,
  endpoint,
  hasher,
  newRig,
  promptOf,
  type Rig,
  type RigWorker,
} from "./worker-rig.ts";

function hearEvents({ bus }: Rig): KvEventBatch[] {
  const batches: KvEventBatch[] = [];
  bus.subscribe(kvEventsOfNamespace(endpoint.namespace), ({ payload }) => {
    batches.push(decodeKvEvents(payload));
  });
  return batches;
}

/** Asks one rank as a router does. */
async function recover(
  { bus, clock }: Rig,
  { worker }: RigWorker,
  startEventId: number | undefined,
  dpRank = 0,
): Promise<KvAnswer> {
  const chunks: Uint8Array[] = [];
  const reply = `${bus.inboxPrefix}.q${dpRank}.${startEventId}`;
  const subscription = bus.subscribe(reply, ({ payload }) => void chunks.push(payload));
  const query = encodeKvQuery({ workerId: worker.inst, startEventId, endEventId: undefined });
  bus.publish(kvQuerySubject(worker.inst, dpRank), query, { reply });
  await clock.runFor(10);
  subscription.unsubscribe();
  return decodeKvAnswer(chunks).answer;
}

/** Blocks a router's index has after these events, as sorted sequence hashes. */
function blocksAfter(events: readonly KvEvent[]): string[] {
  const blocks = new Set<string>();
  for (const event of events) {
    if (event.type === "cleared") blocks.clear();
    else if (event.type === "removed") {
      for (const name of names(event.hashes, 0, 2)) expect(blocks.delete(name)).toBe(true);
    } else for (const name of names(event.blocks, 2, 4)) blocks.add(name);
  }
  return [...blocks].sort();
}

function names(lanes: Uint32Array, first: number, width: number): string[] {
  const found: string[] = [];
  for (let at = first; at < lanes.length; at += width) found.push(`${lanes[at + 1]}:${lanes[at]}`);
  return found;
}

/** Random conversations with shared beginnings on an engine of 60 blocks, each rank its own. */
async function runLoad(rig: Rig, one: RigWorker, seed: number): Promise<void> {
  const random = mulberry32(seed);
  for (let n = 0; n < 60; n++) {
    const shared = promptOf(4 * randomInt(random, 1, 8), 1_000 * randomInt(random, 1, 4));
    const own = promptOf(randomInt(random, 1, 20), 50_000 + 100 * n);
    const tokens = Uint32Array.of(...shared, ...own);
    const dp_rank = randomInt(random, 0, 1);
    const body = bodyOf(randomInt(random, 1, 30), { routing: { dp_rank } });
    const answer = ask(rig, { workers: [one], tokens, body });
    await rig.clock.runFor(randomInt(random, 0, 60));
    if (random() < 0.1) answer.call.cancel();
  }
  await rig.clock.runFor(20_000);
  expect(one.worker.active()).toBe(0);
}

it("tells routers exactly what each rank has cached, live, by ring and by dump", async () => {
  const rig = newRig();
  const one = await addWorker(rig, { dp_size: 2, num_gpu_blocks: 60 });
  const batches = hearEvents(rig);
  await runLoad(rig, one, 11);
  for (const dpRank of [0, 1]) {
    const events = batches.filter((batch) => batch.dpRank === dpRank).flatMap((b) => b.events);
    expect(events.map(({ eventId }) => eventId)).toEqual(events.map((_, index) => index));
    expect(events.some(({ type }) => type === "removed")).toBe(true);
    const dump = await recover(rig, one, undefined, dpRank);
    if (dump.type !== "tree_dump") throw new Error(dump.type);
    expect(dump.lastEventId).toBe(events.length - 1);
    expect(blocksAfter(dump.events)).toEqual(blocksAfter(events));
    const ring = await recover(rig, one, events.length - 5, dpRank);
    expect(ring).toEqual({ type: "events", events: events.slice(-5) });
    // A router that restores from the dump has as many blocks as the worker.
    const index = createKvIndex({ mode: "identity", random: mulberry32(1), chain: hasher.chain });
    const slot = index.holder(one.worker.inst, dpRank, 60);
    for (const event of dump.events) {
      if (event.type === "stored") index.store(slot, event.parent, event.blocks);
    }
    expect(index.blocksOf(slot)).toBe(blocksAfter(events).length);
  }
  expect(one.worker.health().body).toMatchObject({ kv_events_refused: 0 });
  const sources = new Set(batches.map(({ stateSource }) => stateSource));
  expect(sources.size).toBe(1);
});

it("never says that a block is cached which the engine does not take from its cache", async () => {
  const rig = newRig();
  const one = await addWorker(rig, { dp_size: 2, num_gpu_blocks: 60 });
  await runLoad(rig, one, 12);
  for (let first = 1_000; first <= 4_000; first += 1_000) {
    const dump = await recover(rig, one, undefined, 0);
    if (dump.type !== "tree_dump") throw new Error(dump.type);
    const known = new Set(blocksAfter(dump.events));
    const tokens = promptOf(33, first);
    const hashes = names(hasher.hashBlocks(tokens, 4).sequence, 0, 2);
    const depth = hashes.findIndex((name) => !known.has(name));
    const body = bodyOf(1, { routing: { dp_rank: 0 } });
    const answer = ask(rig, { workers: [one], tokens, body });
    await rig.clock.runFor(500);
    const cached_tokens = 4 * (depth < 0 ? hashes.length : depth);
    expect(answer.ends[0]?.usage?.prompt_tokens_details).toEqual({ cached_tokens });
  }
});

it("numbers events before they get lost, so that routers see the gap and can ask", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const batches = hearEvents(rig);
  const body = bodyOf(1);
  ask(rig, { workers: [one], tokens: promptOf(8), body });
  await rig.clock.runFor(100);
  one.engine.setFaults({ dropKvEvents: 1 });
  ask(rig, { workers: [one], tokens: promptOf(8, 500), body });
  await rig.clock.runFor(100);
  one.engine.setFaults({ dropKvEvents: 0 });
  ask(rig, { workers: [one], tokens: promptOf(8, 900), body });
  await rig.clock.runFor(100);
  const ids = batches.flatMap(({ events }) => events.map(({ eventId }) => eventId));
  const whole = await recover(rig, one, 0);
  if (whole.type !== "events") throw new Error(whole.type);
  const missing = whole.events.filter(({ eventId }) => !ids.includes(eventId));
  expect(missing.length).toBeGreaterThan(0);
  expect(ids.at(-1)).toBe(whole.events.at(-1)?.eventId);
  expect(missing.every(({ eventId }) => eventId > 0 && eventId < (ids.at(-1) ?? 0))).toBe(true);
});

it("sends the events that wait before it answers about them", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const batches = hearEvents(rig);
  ask(rig, { workers: [one], tokens: promptOf(40), body: bodyOf(40) });
  let waited = 0;
  for (let look = 0; look < 20; look++) {
    await rig.clock.runFor(7);
    const before = batches.length;
    const ring = await recover(rig, one, 0);
    if (ring.type !== "events") continue;
    waited += batches.length - before;
    const ids = batches.flatMap(({ events }) => events.map(({ eventId }) => eventId));
    expect(ids.at(-1)).toBe(ring.events.at(-1)?.eventId);
  }
  expect(waited).toBeGreaterThan(3);
});

it("refuses a query that is not one, or not for it", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const chunks: Uint8Array[] = [];
  const reply = `${rig.bus.inboxPrefix}.q`;
  rig.bus.subscribe(reply, ({ payload }) => void chunks.push(payload));
  const subject = kvQuerySubject(one.worker.inst, 0);
  rig.bus.publish(subject, new TextEncoder().encode("?"), { reply });
  await rig.clock.runFor(10);
  expect(decodeKvAnswer(chunks.splice(0)).answer).toMatchObject({ type: "error" });
  const query = encodeKvQuery({ workerId: "77", startEventId: 0, endEventId: undefined });
  rig.bus.publish(subject, query, { reply });
  await rig.clock.runFor(10);
  expect(decodeKvAnswer(chunks).answer).toMatchObject({ type: "error" });
});

it("publishes a rank's load at most every 250 ms, and its last value in the end", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const heard: { readonly atMs: number; readonly sample: LoadSample | undefined }[] = [];
  rig.bus.subscribe(loadOfNamespace(endpoint.namespace), ({ payload }) => {
    heard.push({ atMs: rig.clock.nowMs(), sample: decodeLoadSample(payload) });
  });
  const answer = ask(rig, { workers: [one], tokens: promptOf(40), body: bodyOf(400) });
  await rig.clock.runFor(1_500);
  expect(heard.length).toBeGreaterThanOrEqual(5);
  expect(heard.length).toBeLessThanOrEqual(6);
  for (const [index, { atMs }] of heard.slice(1).entries()) {
    expect(atMs - (heard[index]?.atMs ?? 0)).toBeGreaterThanOrEqual(loadPeriodMs - 1);
  }
  expect(heard.at(-1)?.sample?.kvUsedBlocks).toBeGreaterThan(10);
  answer.call.cancel();
  await rig.clock.runFor(2 * loadPeriodMs);
  expect(heard.at(-1)?.sample).toMatchObject({ workerId: one.worker.inst, kvUsedBlocks: 0 });
});
