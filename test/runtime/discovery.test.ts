import fc from "fast-check";
import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { allHeartbeats, heartbeatSubject, heartbeatsOf } from "../../src/protocol/subjects.ts";
import { type Announcer, announce } from "../../src/runtime/announce.ts";
import type { Bus } from "../../src/runtime/bus.ts";
import { instancesMax, leaseTiming, watchInstances } from "../../src/runtime/discovery.ts";
import { startEchoGate } from "../../src/runtime/echo-gate.ts";
import {
  decodeHeartbeat,
  encodeHeartbeat,
  type Heartbeat,
  type InstanceCard,
  repeats,
  steadyPart,
} from "../../src/runtime/instance-card.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";
import { sampleCard } from "./sample-card.ts";

const epochs = ["aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc", "dddddddddddddddd"];

function rig(accept?: (card: InstanceCard) => boolean) {
  const clock = new ManualClock();
  const random = mulberry32(3);
  const network = createMemoryNetwork({ clock, random });
  const watcher = network.connect({ role: "lo" });
  const gate = startEchoGate(watcher, clock);
  clock.advanceTo(0);
  const table = watchInstances({ bus: watcher, clock, gate, ...(accept ? { accept } : {}) });
  const changes: string[] = [];
  table.onChange(({ type, card }) => void changes.push(`${type} ${card.inst}`));
  const start = (inst: string, change: () => Partial<InstanceCard> = () => ({})) => {
    const bus = network.connect({ role: "wk" });
    return { bus, ...announce({ bus, clock, random, card: () => sampleCard(inst, change()) }) };
  };
  const run = (ms: number): void => clock.advanceTo(clock.nowMs() + ms);
  return { clock, network, watcher, gate, table, changes, start, run };
}
const beat = (bus: Bus, card: InstanceCard, goodbye = false): void =>
  bus.publish(heartbeatSubject(card), encodeHeartbeat({ card, goodbye }));

it("lists an instance at its first heartbeat and keeps it as long as it beats", () => {
  const { table, changes, start, run } = rig();
  start("1");
  run(0);
  expect([...table.instances()].map(({ card }) => card)).toEqual([sampleCard("1")]);
  expect(table.isUsable("1")).toBe(true);
  run(60_000);
  expect(changes).toEqual(["up 1"]);
});

it("beats every second within 10 %", () => {
  const { clock, watcher, start, run } = rig();
  const atMs: number[] = [];
  watcher.subscribe(allHeartbeats, () => void atMs.push(clock.nowMs()));
  start("1");
  run(100_000);
  const gaps = atMs.slice(1).map((ms, index) => ms - atMs[index]!);
  expect(Math.min(...gaps)).toBeGreaterThanOrEqual(900);
  expect(Math.max(...gaps)).toBeLessThanOrEqual(1100);
  expect(Math.max(...gaps) - Math.min(...gaps)).toBeGreaterThan(50);
});

it("finds each silent instance in time and looks once a second while none is silent", () => {
  const { clock, watcher, gate, start, run } = rig();
  const looks = { count: 0 };
  const counting = {
    nowMs: () => clock.nowMs(),
    wallMs: () => clock.wallMs(),
    after: (delayMs: number, fire: () => void) => {
      looks.count += 1;
      return clock.after(delayMs, fire);
    },
  };
  const table = watchInstances({ bus: watcher, clock: counting, gate });
  const late: number[] = [];
  const seenMs = new Map<string, number>();
  table.onChange(({ type, card }) => {
    if (type !== "suspect" && type !== "gone") return;
    const lastMs = table.get(card.inst)?.lastSeenMs ?? seenMs.get(card.inst)!;
    seenMs.set(card.inst, lastMs);
    const limitMs = type === "gone" ? leaseTiming.goneMs : leaseTiming.suspectMs;
    late.push(clock.nowMs() - lastMs - limitMs);
  });
  const random = mulberry32(11);
  const workers = Array.from({ length: 20 }, (_, inst) => start(`${inst}`));
  run(60_000);
  // The first look is out of step, and ready() has a timer.
  expect(looks.count).toBeLessThanOrEqual(63);
  for (const worker of workers) {
    worker.stop();
    run(300 * random());
  }
  run(leaseTiming.goneMs + leaseTiming.sweepMs);
  expect(late.length).toBe(2 * workers.length);
  expect(Math.min(...late)).toBeGreaterThan(0);
  expect(Math.max(...late)).toBeLessThanOrEqual(leaseTiming.sweepMs);
  table.stop();
});

it("suspects after 2.5 s of silence, forgets after 6 s, and takes a comeback", () => {
  const { table, changes, start, run, watcher } = rig();
  const worker = start("1");
  run(0);
  worker.stop();
  run(leaseTiming.suspectMs);
  expect(table.isUsable("1")).toBe(true);
  run(leaseTiming.sweepMs);
  expect(table.get("1")?.health).toBe("suspect");
  expect(table.isUsable("1")).toBe(false);
  beat(watcher, sampleCard("1"));
  run(0);
  expect(table.isUsable("1")).toBe(true);
  run(leaseTiming.goneMs + leaseTiming.sweepMs);
  expect(table.get("1")).toBeUndefined();
  expect([...table.instances()]).toEqual([]);
  beat(watcher, sampleCard("1"));
  run(0);
  const expected = ["up 1", "suspect 1", "changed 1", "suspect 1", "gone 1", "up 1"];
  expect(changes).toEqual(expected);
});

it("forgets at once after goodbye, and that life does not come back", () => {
  const { table, changes, start, run, watcher } = rig();
  const worker = start("1");
  run(0);
  worker.goodbye();
  run(0);
  expect(table.get("1")).toBeUndefined();
  beat(watcher, sampleCard("1"));
  run(5000);
  expect(changes).toEqual(["up 1", "gone 1"]);
  beat(watcher, sampleCard("1", { epoch: epochs[1]! }));
  run(0);
  expect(changes).toEqual(["up 1", "gone 1", "up 1"]);
});

it("tells a new life as restarted and ignores the old one's late messages", () => {
  const { table, changes, run, watcher } = rig();
  beat(watcher, sampleCard("1"));
  beat(watcher, sampleCard("1", { epoch: epochs[1]! }));
  beat(watcher, sampleCard("1"));
  beat(watcher, sampleCard("1"), true);
  run(0);
  expect(changes).toEqual(["up 1", "restarted 1"]);
  expect(table.get("1")?.card.epoch).toBe(epochs[1]);
});

it("tells draining at once and what changed by value, but not load", () => {
  const { table, changes, start, run } = rig();
  let change: Partial<InstanceCard> = {};
  const worker = start("1", () => change);
  run(0);
  for (const next of [
    { load: { running: 1, waiting: 2, kvUsedBlocks: 3 } },
    { protocolVersions: [1] },
    { totalKvBlocks: 5 },
    { totalKvBlocks: 5, digests: [{ dpRank: 0, blockCount: 1, xor: "00000000000000ff" }] },
    { totalKvBlocks: 5 },
    { totalKvBlocks: 5, state: "draining" as const },
  ]) {
    change = next;
    worker.beatNow();
    run(0);
  }
  expect(changes).toEqual(["up 1", "changed 1", "changed 1", "draining 1"]);
  expect(table.isUsable("1")).toBe(false);
  expect(table.get("1")).toBeDefined();
});

it("finds who is there without waiting for a heartbeat, and again after an outage", async () => {
  const { clock, network, start, run } = rig();
  start("1");
  start("2");
  run(500);
  const bus = network.connect({ role: "gl" });
  const table = watchInstances({ bus, clock, gate: startEchoGate(bus, clock) });
  run(0);
  expect([...table.instances()].length).toBe(2);
  await table.ready();
});

it("is ready after 2 s when nobody is there", async () => {
  const { clock, table } = rig();
  let ready = false;
  void table.ready().then(() => {
    ready = true;
  });
  await clock.runFor(leaseTiming.readyMs - 1);
  expect(ready).toBe(false);
  await clock.runFor(1);
  expect(ready).toBe(true);
});

it("judges nobody while its own way to the bus is frozen, and grants the time afterwards", () => {
  const { network, table, changes, watcher, start, run } = rig();
  const silent = start("1");
  start("2");
  run(5000);
  silent.stop();
  run(1000);
  network.faults.freeze(watcher);
  run(30_000);
  expect(changes).toEqual(["up 1", "up 2"]);
  network.faults.thaw(watcher);
  run(1500);
  expect(changes).toEqual(["up 1", "up 2"]);
  run(10_000);
  expect(changes).toEqual(["up 1", "up 2", "suspect 1", "gone 1"]);
  expect(table.isUsable("2")).toBe(true);
});

it("grants at most one heartbeat beyond the thaw, however long the freeze was", () => {
  const { network, changes, watcher, run } = rig();
  run(5000);
  network.faults.freeze(watcher);
  // Held back, and ahead of the echo that thaws.
  beat(watcher, sampleCard("1"));
  run(30_000);
  network.faults.thaw(watcher);
  run(leaseTiming.heartbeatMs + leaseTiming.suspectMs);
  expect(changes).toEqual(["up 1"]);
  run(leaseTiming.sweepMs * 2);
  expect(changes).toEqual(["up 1", "suspect 1"]);
});

it("suspects nobody over a broker outage of a minute", () => {
  const { network, changes, start, run } = rig();
  start("1");
  run(5000);
  network.faults.brokerDown();
  run(60_000);
  network.faults.brokerUp();
  run(20_000);
  expect(changes).toEqual(["up 1"]);
});

it("inhibits for 5 s, doubling to 60 s, and starts again after a quiet minute", () => {
  const { table, start, run } = rig();
  start("1");
  run(0);
  const lengthsMs = [1, 2, 3, 4, 5, 6].map(() => {
    table.inhibit("1", "accept_timeout");
    table.inhibit("1", "accept_timeout");
    expect(table.inhibition("1")).toBe("accept_timeout");
    let ms = 0;
    for (; !table.isUsable("1"); ms += 100) run(100);
    return ms;
  });
  expect(lengthsMs).toEqual([5000, 10_000, 20_000, 40_000, 60_000, 60_000]);
  expect(table.inhibition("1")).toBeUndefined();
  run(60_000);
  table.inhibit("1", "worker_lost");
  run(5000);
  expect(table.isUsable("1")).toBe(true);
  table.inhibit("unknown", "worker_lost");
});

it("holds out an instance that goes down three times in a minute", () => {
  const { table, run, watcher } = rig();
  for (const epoch of epochs) {
    beat(watcher, sampleCard("1", { epoch }));
    run(1000);
  }
  expect(table.inhibition("1")).toBe("flapping");
  expect(table.isUsable("1")).toBe(false);
  for (let second = 0; second < 9; second++) {
    beat(watcher, sampleCard("1", { epoch: epochs[3]! }));
    run(1000);
  }
  expect(table.isUsable("1")).toBe(true);
});

it("lists only accepted cards", () => {
  const { table, start, run } = rig((card) => card.namespace === "pool-2");
  start("1");
  start("2", () => ({ namespace: "pool-2" }));
  start("3", () => ({ namespace: "pool-22" }));
  run(0);
  expect([...table.instances()].map(({ card }) => card.inst)).toEqual(["2"]);
});

it("holds at most 10,000 instances and lets a gone one make room", () => {
  const { table, run, watcher } = rig();
  for (let index = 0; index <= instancesMax; index++) beat(watcher, sampleCard(`${index}`));
  run(0);
  expect([...table.instances()].length).toBe(instancesMax);
  expect(table.counts.refused).toBe(1);
  beat(watcher, sampleCard("5"), true);
  beat(watcher, sampleCard(`${instancesMax}`));
  run(0);
  expect(table.get(`${instancesMax}`)).toBeDefined();
  expect([...table.instances()].length).toBe(instancesMax);
});

it("forgets a gone instance's past after five minutes", () => {
  const { table, changes, run, watcher } = rig();
  beat(watcher, sampleCard("1"));
  beat(watcher, sampleCard("1"), true);
  run(leaseTiming.memoryMs + leaseTiming.sweepMs * 2);
  beat(watcher, sampleCard("1"));
  run(0);
  expect(changes.at(-1)).toBe("up 1");
  expect(table.get("1")).toBeDefined();
});

it("counts a heartbeat on another instance's subject as malformed", () => {
  const { table, run, watcher } = rig();
  watcher.publish(
    heartbeatSubject(sampleCard("2")),
    encodeHeartbeat({ card: sampleCard("1"), goodbye: false }),
  );
  run(0);
  expect(table.counts.malformed).toBe(1);
  expect([...table.instances()]).toEqual([]);
});

it("hears the kind and namespace it listens to, and no other", () => {
  const { clock, network, start, run } = rig();
  const bus = network.connect({ role: "lo" });
  const gate = { open: true, frozenSinceMs: undefined, onThaw: () => () => {}, stop: () => {} };
  const subject = heartbeatsOf("w", "pool 1");
  watchInstances({ bus, clock, gate, subject, accept: () => true });
  const inPool = { namespace: "pool 1" };
  const beating = [
    start("1", () => inPool),
    start("2", () => ({ ...inPool, kind: "local" as const })),
    start("3"),
  ];
  run(0);
  const before = bus.totals.messagesIn;
  for (const { beatNow } of beating) beatNow();
  run(0);
  expect(bus.totals.messagesIn - before).toBe(1);
});

it("reads a beat only when it says something else than the one before", () => {
  let reads = 0;
  const { table, changes, run, watcher } = rig(() => ++reads > 0);
  const load = { running: 1, waiting: 2, kvUsedBlocks: 3 };
  const steps: readonly [read: number, change: Partial<InstanceCard>, goodbye?: boolean][] = [
    [1, { load }],
    [0, { load }],
    [0, { load: { ...load, waiting: 12_345 } }],
    [1, { load, digests: [{ dpRank: 0, blockCount: 1, xor: "00000000000000ff" }] }],
    [1, { load }],
    [0, { load }],
    [1, { load, model: "n" }],
    [0, { load, model: "n" }],
    [1, { load, model: "n" }, true],
    [1, { load, model: "n" }],
    [1, { load, epoch: epochs[1]! }],
    [0, { load, epoch: epochs[1]! }],
  ];
  for (const [read, change, goodbye] of steps) {
    const before = reads;
    beat(watcher, sampleCard("1", change), goodbye);
    run(2000);
    expect(reads - before).toBe(read);
  }
  expect(changes).toEqual(["up 1", "changed 1", "changed 1", "gone 1", "up 1"]);
  run(501);
  expect(changes.at(-1)).toBe("suspect 1");
  beat(watcher, sampleCard("1", { load, epoch: epochs[1]! }));
  run(0);
  expect(changes.at(-1)).toBe("changed 1");
  expect(table.isUsable("1")).toBe(true);
});

it("takes no beat for a repetition that differs in more than load", () => {
  const count = fc.integer({ min: 0, max: 2 });
  const load = fc.record({ running: count, waiting: count, kvUsedBlocks: count });
  const nested = fc.constantFrom<unknown>(
    undefined,
    { load: { a: 1 } },
    { load: 1 },
    {
      a: { load: { b: 1 } },
    },
  );
  const digest = { dpRank: 0, blockCount: 1, xor: "00000000000000ff" };
  const heartbeat = fc
    .record({
      epoch: fc.constantFrom(...epochs.slice(0, 2)),
      model: fc.constantFrom("m", ',"load":{"', "}}"),
      perfModel: nested,
      load: fc.option(load, { nil: undefined }),
      digests: fc.constantFrom(undefined, [], [digest]),
      goodbye: fc.boolean(),
    })
    .map(({ goodbye, ...change }): Heartbeat => {
      const set = Object.entries(change).filter(([, value]) => value !== undefined);
      return { card: sampleCard("1", Object.fromEntries(set)), goodbye };
    });
  const withoutLoad = ({ card, goodbye }: Heartbeat): string => {
    const { load: _load, ...steady } = card;
    return JSON.stringify([steady, goodbye, card.load === undefined]);
  };
  fc.assert(
    fc.property(heartbeat, heartbeat, fc.option(fc.nat(1_000)), (before, after, cutAt) => {
      const whole = encodeHeartbeat(after);
      const payload = cutAt === null ? whole : whole.subarray(0, cutAt);
      const isRepeated = repeats(steadyPart(encodeHeartbeat(before)), payload);
      if (isRepeated) expect(decodeHeartbeat(payload)).toEqual(after);
      if (isRepeated) expect(withoutLoad(after)).toBe(withoutLoad(before));
      const plain = payload === whole && !after.goodbye && after.card.digests === undefined;
      if (plain && withoutLoad(before) === withoutLoad(after)) expect(isRepeated).toBe(true);
    }),
    { seed: 5, numRuns: 3_000 },
  );
});

it("leaves no timer behind", () => {
  const { clock, gate, table, start, run } = rig();
  const workers: Announcer[] = [start("1"), start("2")];
  run(3000);
  workers[0]?.goodbye();
  workers[1]?.stop();
  table.stop();
  gate.stop();
  run(0);
  expect(clock.pending()).toBe(0);
});

it("carries every field of a card and ignores unknown ones", () => {
  const card = sampleCard("7", {
    kind: "local",
    role: "decode",
    state: "starting",
    workersReady: 3,
    load: { running: 1, waiting: 2, kvUsedBlocks: 3 },
    digests: [{ dpRank: 1, blockCount: 9, xor: "0123456789abcdef" }],
  });
  expect(decodeHeartbeat(encodeHeartbeat({ card, goodbye: true }))).toEqual({
    card,
    goodbye: true,
  });
  const wire = JSON.parse(new TextDecoder().decode(encodeHeartbeat({ card, goodbye: false })));
  expect(wire).toMatchObject({ worker_id: "7", max_num_batched_tokens: 8192 });
  const more = new TextEncoder().encode(JSON.stringify({ ...wire, newer: 1 }));
  expect(decodeHeartbeat(more)).toEqual({ card, goodbye: false });
});

it("never throws on hostile bytes or fields", () => {
  const wire = JSON.parse(
    new TextDecoder().decode(encodeHeartbeat({ card: sampleCard("1"), goodbye: false })),
  );
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      expect(decodeHeartbeat(bytes)).toBeUndefined();
    }),
  );
  fc.assert(
    fc.property(fc.constantFrom(...Object.keys(wire)), fc.jsonValue(), (field, value) => {
      const text = JSON.stringify({ ...wire, [field]: value });
      const heartbeat = decodeHeartbeat(new TextEncoder().encode(text));
      if (heartbeat) expect(decodeHeartbeat(encodeHeartbeat(heartbeat))).toEqual(heartbeat);
    }),
  );
});
