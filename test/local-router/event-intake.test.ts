import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { createKvIndex } from "../../src/core/create-kv-index.ts";
import {
  attemptsMax,
  createEventIntake,
  type RecoveryQuery,
  recoveriesMax,
} from "../../src/local-router/event-intake.ts";
import { loadBlockHasher } from "../../src/protocol/block-hashes.ts";
import type { KvEvent } from "../../src/protocol/kv-events.ts";
import { EventRing } from "../../src/worker/event-ring.ts";

const { chain } = await loadBlockHasher();

function fleet(query?: RecoveryQuery) {
  const clock = new ManualClock();
  const index = createKvIndex({ mode: "opaque", random: mulberry32(1), chain });
  const rings = new Map<string, EventRing>();
  const ringOf = (workerId: string): EventRing => {
    const ring = rings.get(workerId) ?? new EventRing({ workerId, chain, random: mulberry32(2) });
    rings.set(workerId, ring);
    return ring;
  };
  const answer: RecoveryQuery = async ({ workerId }, startEventId) =>
    ringOf(workerId).answer({ workerId, startEventId, endEventId: undefined });
  const intake = createEventIntake({ index, clock, query: query ?? answer });
  /** Stores block `n` of a worker's one chain; `lost` = the message never arrives. */
  const store = (workerId: string, n: number, lost = false): void => {
    const ring = ringOf(workerId);
    const event: KvEvent = {
      type: "stored",
      eventId: ring.nextEventId,
      tier: "device",
      parent: n === 0 ? undefined : { lo: 1000 + n - 1, hi: 0 },
      blocks: Uint32Array.of(n + 1, 0, 1000 + n, 0),
    };
    ring.append(event);
    if (!lost) intake.onEvents({ workerId, dpRank: 0, stateSource: "", events: [event] });
  };
  const blocksOf = (workerId: string) => index.blocksOf(index.findHolder(workerId, 0) ?? -1);
  return { clock, index, intake, store, blocksOf, ringOf };
}

it("restores a discovered worker, then follows its events", async () => {
  const { clock, intake, store, blocksOf } = fleet();
  store("1", 0, true);
  store("1", 1, true);
  intake.onDiscovered({ workerId: "1", dpRank: 0 });
  expect(intake.holderStates()).toMatchObject({ recovering: 1 });
  await clock.runFor(10);
  expect(blocksOf("1")).toBe(2);
  store("1", 2);
  expect(blocksOf("1")).toBe(3);
  expect(intake.holderStates()).toEqual({ initial: 0, recovering: 0, synced: 1, degraded: 0 });
});

it("fills a gap of lost events from the worker", async () => {
  const { clock, intake, store, blocksOf } = fleet();
  for (let n = 0; n < 30; n++) {
    store("1", n, n > 5 && n % 7 !== 0);
    await clock.runFor(1);
  }
  store("1", 30);
  await clock.runFor(10);
  expect(blocksOf("1")).toBe(31);
  expect(intake.counters.recoveries).toBeGreaterThan(1);
});

it("replaces a holder by a large dump in one step, however many turns it takes", async () => {
  const { clock, intake, index, store, blocksOf, ringOf } = fleet();
  for (let n = 0; n < 5; n++) store("1", n);
  await clock.runFor(1);
  // 200 roots make 200 dump events: several slices.
  for (let root = 0; root < 200; root++) {
    const ring = ringOf("1");
    const blocks = Uint32Array.of(5000 + root, 0, 9000 + root, 0);
    const eventId = ring.nextEventId;
    ring.append({ type: "stored", eventId, tier: "device", parent: undefined, blocks });
  }
  for (let filler = 0; filler < 1100; filler++) {
    const eventId = ringOf("1").nextEventId;
    ringOf("1").append({ type: "removed", eventId, tier: "device", hashes: new Uint32Array(0) });
  }
  store("1", 5);
  const seen = new Set<number>();
  while (intake.holderStates().recovering > 0) {
    seen.add(blocksOf("1"));
    await new Promise((resolve) => setImmediate(resolve));
    clock.advanceTo(clock.nowMs());
  }
  expect([...seen]).toEqual([5]);
  expect(blocksOf("1")).toBe(206);
  while (index.maintain(1000));
  expect(index.size).toBe(206);
});

it("tries eight times within 25.4 s, goes on degraded, restores in the background", async () => {
  let attempts = 0;
  let healed = false;
  const { clock, intake, store, blocksOf } = fleet(async () => {
    attempts++;
    if (!healed) throw new Error("no responders");
    return { type: "tree_dump", events: [], lastEventId: 1 };
  });
  store("1", 0);
  await clock.runFor(25_399);
  expect(attempts).toBe(attemptsMax - 1);
  await clock.runFor(1);
  expect(attempts).toBe(attemptsMax);
  expect(intake.counters).toMatchObject({ recoveryFailures: attemptsMax, outcomes: { failed: 1 } });
  expect(intake.holderStates()).toMatchObject({ degraded: 1 });
  expect(blocksOf("1")).toBe(1);
  store("1", 1);
  expect(blocksOf("1")).toBe(2);
  healed = true;
  await clock.runFor(30_000);
  expect(intake.holderStates()).toMatchObject({ synced: 1 });
  expect(blocksOf("1")).toBe(0);
});

it("runs at most sixteen recoveries at once and serves the others in turn", async () => {
  let open = 0;
  let most = 0;
  const { clock, intake } = fleet(async () => {
    most = Math.max(most, ++open);
    await new Promise((resolve) => setImmediate(resolve));
    open--;
    return { type: "tree_dump", events: [], lastEventId: null };
  });
  for (let worker = 0; worker < 50; worker++) {
    intake.onDiscovered({ workerId: String(worker), dpRank: 0 });
  }
  for (let turn = 0; turn < 20; turn++) await clock.runFor(1);
  expect(most).toBe(recoveriesMax);
  expect(intake.holderStates()).toMatchObject({ synced: 50 });
});

it("a removed worker leaves no block, no timer and no answer behind", async () => {
  let answer: (() => void) | undefined;
  const { clock, index, intake, store } = fleet(
    () =>
      new Promise((resolve) => {
        answer = () => resolve({ type: "tree_dump", events: [], lastEventId: 7 });
      }),
  );
  store("1", 0);
  intake.onDiscovered({ workerId: "1", dpRank: 1 });
  intake.removeWorker("1");
  answer?.();
  await clock.runFor(100);
  expect(index.stats()).toMatchObject({ holders: 0, size: 0, blocks: 0 });
  expect(intake.holderStates()).toEqual({ initial: 0, recovering: 0, synced: 0, degraded: 0 });
  expect(clock.pending()).toBe(0);
  expect(intake.counters.outcomes).toMatchObject({ cancelled: 1, tree_dump: 0 });
});

it("close ends recoveries and timers", async () => {
  const { clock, intake, store } = fleet(async () => {
    throw new Error("unreachable");
  });
  store("1", 0);
  await clock.runFor(1000);
  intake.close();
  await clock.runFor(1);
  expect(clock.pending()).toBe(0);
});

it("follows blocks through the tiers, and restores them there", async () => {
  const { clock, index, intake, store, blocksOf, ringOf } = fleet();
  store("1", 0);
  await clock.runFor(1);
  const send = (event: KvEvent, lost = false): void => {
    ringOf("1").append(event);
    if (!lost) intake.onEvents({ workerId: "1", dpRank: 0, stateSource: "", events: [event] });
  };
  const slot = index.findHolder("1", 0) ?? -1;
  const depths = (): number[] => {
    const column = () => new Int32Array(index.slots);
    const [device, slow] = [column(), { host: column(), disk: column() }];
    index.match(Uint32Array.of(1, 0), 1, device, slow);
    return [device, slow.host, slow.disk].map((runs) => runs[slot] ?? -1);
  };
  const block = { parent: undefined, blocks: Uint32Array.of(1, 0, 1000, 0) };
  const hashes = Uint32Array.of(1000, 0);
  send({ type: "stored", eventId: 1, tier: "external", ...block });
  send({ type: "removed", eventId: 2, tier: "device", hashes });
  expect(depths()).toEqual([0, 0, 1]);
  send({ type: "removed", eventId: 3, tier: "host_pinned", hashes });
  expect(intake.counters.events.removed.block_not_found).toBe(1);
  send({ type: "stored", eventId: 4, tier: "host_pinned", ...block }, true);
  intake.onMismatch(slot);
  await clock.runFor(10);
  expect(depths()).toEqual([0, 1, 1]);
  expect(blocksOf("1")).toBe(1);
  expect(ringOf("1").digest()).toEqual(index.digestOf(slot));
});

it("counts events by type and result, and recoveries by their cause", async () => {
  const { clock, intake, store } = fleet();
  intake.onDiscovered({ workerId: "1", dpRank: 0 });
  await clock.runFor(10);
  store("1", 0);
  store("1", 1, true);
  store("1", 2);
  await clock.runFor(10);
  const send = (event: KvEvent, stateSource = "") =>
    intake.onEvents({ workerId: "1", dpRank: 0, stateSource, events: [event] });
  const hashes = Uint32Array.of(77, 0);
  send({ type: "removed", eventId: 3, tier: "device", hashes });
  const parent = { lo: 77, hi: 0 };
  send({ type: "stored", eventId: 4, tier: "device", parent, blocks: Uint32Array.of(1, 0, 2, 0) });
  send({ type: "cleared", eventId: 5 });
  const { events, resyncs } = intake.counters;
  expect(events.stored).toMatchObject({ ok: 3, parent_block_not_found: 1 });
  expect(events.removed).toMatchObject({ ok: 0, block_not_found: 1 });
  expect(events.cleared).toMatchObject({ ok: 1 });
  expect(resyncs).toMatchObject({ discovered: 1, gap: 1, restarted: 0 });
  expect(intake.counters.outcomes).toMatchObject({ tree_dump: 1, events: 1, failed: 0 });
  send({ type: "removed", eventId: 6, tier: "device", hashes }, "life a");
  send({ type: "removed", eventId: 7, tier: "device", hashes }, "life b");
  expect(resyncs).toMatchObject({ gap: 1, restarted: 1 });
  expect(intake.eventsOf("1")).toBe(7);
  expect(intake.eventsOf("2")).toBe(0);
});
