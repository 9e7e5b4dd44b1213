import { expect, it } from "vitest";
import { mulberry32, randomInt } from "../../src/base/random.ts";
import { defaultLoadLimits } from "../../src/core/worker-load.ts";
import {
  askSpreadMs,
  askTimeoutMs,
  peerSilenceMs,
  peersMax,
} from "../../src/local-router/replica-peers.ts";
import { replicaTiming } from "../../src/local-router/replica-sync.ts";
import {
  decodeSequenceAsk,
  decodeSequenceMessage,
  encodeSequenceAsk,
  encodeSequenceFrame,
  encodeSequenceHeartbeat,
  eventsPerFrameMax,
  type SequenceFrame,
} from "../../src/protocol/active-sequences.ts";
import {
  activeSequencesAskSubject,
  activeSequencesOfPool,
  activeSequencesSubject,
} from "../../src/protocol/subjects.ts";
import { createReplicas, endpoint, type Replica } from "./replica-rig.ts";

const { heartbeatMs } = replicaTiming;

it("shows an add, a first token and an end to the other replica within 5 ms each", async () => {
  const { clock, start } = createReplicas(1);
  const [a, b] = [start(), start()];
  await clock.runFor(100);
  a.book("r1", "1", { blocks: [1, 2, 3], privateBlocks: 2, prefillTokens: 70 });
  await clock.runFor(5);
  expect(b.columns()[1]).toEqual([5, 70, 1]);
  expect(b.relieved).toBe(0);
  a.firstToken("r1");
  await clock.runFor(5);
  expect(b.columns()[1]).toEqual([5, 0, 1]);
  expect(b.relieved).toBe(1);
  a.free("r1");
  await clock.runFor(5);
  expect(b.columns()).toEqual(a.columns());
  expect(b.columns()[1]).toEqual([0, 0, 0]);
});

it("counts a prefix that requests of two replicas share once", async () => {
  const { clock, start } = createReplicas(2);
  const [a, b] = [start(), start()];
  await clock.runFor(100);
  a.book("r1", "0", { blocks: [1, 2, 3] });
  b.book("r1", "0", { blocks: [1, 2, 4, 5] });
  await clock.runFor(5);
  expect(a.columns()[0]).toEqual([5, 0, 2]);
  expect(b.columns()[0]).toEqual([5, 0, 2]);
});

it("ignores its own messages", async () => {
  const { clock, start } = createReplicas(3);
  const a = start();
  await clock.runFor(100);
  a.book("r1", "0", { blocks: [1] });
  await clock.runFor(2 * heartbeatMs);
  expect(a.columns()[0]).toEqual([1, 0, 1]);
  expect(a.sync.counts()).toEqual({ peers: 0, recovering: 0, booked: 0, held: 0 });
});

it("sends what happens in one millisecond in as few messages as the bounds allow", async () => {
  const { clock, network, start } = createReplicas(4);
  const [a, b] = [start(), start()];
  const sizes: number[] = [];
  network.connect({ role: "ob" }).subscribe(activeSequencesOfPool(endpoint), ({ payload }) => {
    if (payload[0] !== 0x7b) sizes.push(payload.length);
  });
  await clock.runFor(100);
  for (let at = 0; at < eventsPerFrameMax + 1; at++) a.book(`r${at}`, "0");
  await clock.runFor(5);
  expect(sizes).toHaveLength(2);
  expect(b.columns()[0]?.[2]).toBe(eventsPerFrameMax + 1);
});

it("keeps every message below the bus's limit, and a prompt beyond it still counts", async () => {
  const { clock, start } = createReplicas(5, 2048);
  const [a, b] = [start(), start()];
  await clock.runFor(100);
  const blocks = Array.from({ length: 500 }, (_, at) => at);
  a.book("long", "0", { blocks });
  for (let at = 0; at < 50; at++) a.book(`r${at}`, "1", { blocks: blocks.slice(0, 100) });
  await clock.runFor(5);
  expect(b.columns()).toEqual(a.columns());
  const late = start();
  await clock.runFor(200);
  expect(late.columns()).toEqual(a.columns());
});

it("gives a new replica the bookings of all others at once", async () => {
  const { clock, start } = createReplicas(6);
  const [a, b] = [start(), start()];
  await clock.runFor(100);
  for (let at = 0; at < 700; at++) a.book(`a${at}`, String(at % 3), { blocks: [at % 9] });
  for (let at = 0; at < 300; at++) b.book(`b${at}`, String(at % 3), { prefillTokens: at });
  b.firstToken("b299");
  await clock.runFor(100);
  const late = start();
  await clock.runFor(200);
  expect(late.columns()).toEqual(a.columns());
  expect(late.resyncs("start")).toBe(2);
  expect(late.sync.counts()).toEqual({ peers: 2, recovering: 0, booked: 1000, held: 0 });
});

it("holds bookings of a worker until discovery knows it, and again when it comes back", async () => {
  const { clock, start } = createReplicas(7);
  const a = start();
  const b = start({ workers: ["0"] });
  await clock.runFor(100);
  a.book("r1", "1", { blocks: [1, 2] });
  await clock.runFor(5);
  expect(b.sync.counts()).toMatchObject({ booked: 0, held: 1 });
  b.meetWorker("1");
  expect(b.columns()[1]).toEqual([2, 0, 1]);
  b.loseWorker("1");
  expect(b.columns()[1]).toEqual([0, 0, 0]);
  expect(b.sync.counts()).toMatchObject({ booked: 0, held: 1 });
  await clock.runFor(3 * heartbeatMs);
  expect(b.resyncs("digest")).toBe(0);
  b.meetWorker("1");
  expect(b.columns()).toEqual(a.columns());
  b.loseWorker("1");
  a.free("r1");
  await clock.runFor(5);
  b.meetWorker("1");
  expect(b.sync.counts()).toMatchObject({ booked: 0, held: 0 });
  expect(b.columns()[1]).toEqual([0, 0, 0]);
});

it("frees a silent replica's bookings after 15 s, but not while its own echo stays away", async () => {
  const { clock, network, start } = createReplicas(8);
  const [a, b, c] = [start(), start(), start()];
  await clock.runFor(100);
  a.book("r1", "0", { blocks: [1] });
  await clock.runFor(100);
  network.faults.cut(c.bus);
  await clock.runFor(3_000);
  await a.crash();
  await clock.runFor(peerSilenceMs - heartbeatMs);
  expect(b.columns()[0]).toEqual([1, 0, 1]);
  await clock.runFor(heartbeatMs + 2_000);
  expect(b.columns()[0]).toEqual([0, 0, 0]);
  expect(b.sync.counts().peers).toBe(0);
  await clock.runFor(60_000);
  expect(c.columns()[0]).toEqual([1, 0, 1]);
  network.faults.heal(c.bus);
  await clock.runFor(peerSilenceMs + 2_000);
  expect(c.columns()[0]).toEqual([0, 0, 0]);
  expect(c.sync.counts().peers).toBe(1);
});

it("drops the bookings of a replica that says goodbye", async () => {
  const { clock, start } = createReplicas(9);
  const [a, b] = [start(), start()];
  await clock.runFor(100);
  a.book("r1", "0", { blocks: [1] });
  await clock.runFor(5);
  a.stop();
  await clock.runFor(5);
  expect(b.columns()[0]).toEqual([0, 0, 0]);
  expect(b.sync.counts().peers).toBe(0);
  b.stop();
  await clock.runFor(peerSilenceMs);
  expect(clock.pending()).toBe(0);
});

it("replaces the bookings of a replica that comes back with another epoch", async () => {
  const { clock, start } = createReplicas(10);
  const a = start({ inst: "77" });
  const b = start();
  await clock.runFor(100);
  a.book("old", "0", { blocks: [1] });
  await clock.runFor(100);
  await a.crash();
  const again = start({ inst: "77" });
  again.book("new", "1", { blocks: [1, 2] });
  await clock.runFor(200);
  expect(b.columns()).toEqual(again.columns());
  expect(b.columns()[0]).toEqual([0, 0, 0]);
  expect(b.resyncs("epoch")).toBe(1);
});

it("keeps a peer's long request beyond the age at which a forgotten one is freed", async () => {
  const { clock, start } = createReplicas(11);
  const [a, b] = [start(), start()];
  await clock.runFor(100);
  a.book("r1", "0", { blocks: [1] });
  await clock.runFor(5);
  for (let minute = 0; minute < 10; minute++) {
    await clock.runFor(60_000);
    b.sync.touch(clock.nowMs());
    expect(b.load.expireStale(clock.nowMs())).toEqual([]);
  }
  expect(b.columns()[0]).toEqual([1, 0, 1]);
});

it("repairs a lost add and a lost end by the next number, and the last ones by the heartbeat", async () => {
  const { clock, network, start } = createReplicas(12);
  const [a, b] = [start(), start()];
  await clock.runFor(100);
  const lose = (loss: number): void =>
    network.faults.setMessageFaults([{ subject: "tg.as.>", loss }]);
  a.book("r1", "0", { blocks: [1] });
  await clock.runFor(5);
  lose(1);
  a.free("r1");
  a.book("r2", "1", { blocks: [2] });
  await clock.runFor(5);
  lose(0);
  expect(b.columns()).not.toEqual(a.columns());
  a.book("r3", "2", { blocks: [3] });
  await clock.runFor(100);
  expect(b.columns()).toEqual(a.columns());
  expect(b.resyncs("gap")).toBe(1);
  lose(1);
  a.free("r3");
  await clock.runFor(5);
  lose(0);
  await clock.runFor(heartbeatMs + 100);
  expect(b.columns()).toEqual(a.columns());
  expect(b.resyncs("gap")).toBe(2);
});

it("asks for a lost message once per replica, not all in the same moment", async () => {
  const { clock, network, start } = createReplicas(22);
  const replicas = Array.from({ length: 8 }, () => start());
  const [first] = replicas;
  await clock.runFor(100);
  const askedMs: number[] = [];
  network.connect({ role: "ob" }).subscribe(activeSequencesAskSubject(endpoint), () => {
    askedMs.push(Math.floor(clock.nowMs()));
  });
  network.faults.setMessageFaults([{ subject: "tg.as.>", loss: 1 }]);
  first?.book("r1", "0", { blocks: [1] });
  await clock.runFor(5);
  network.faults.setMessageFaults([]);
  first?.book("r2", "1", { blocks: [2] });
  await clock.runFor(askTimeoutMs);
  expect(askedMs).toHaveLength(replicas.length - 1);
  expect(new Set(askedMs).size).toBeGreaterThan(4);
  for (const replica of replicas) expect(replica.columns()).toEqual(first?.columns());
});

it("asks again for a list that does not come, then waits for the next heartbeat", async () => {
  const { clock, network, start } = createReplicas(13);
  const a = start();
  await clock.runFor(100);
  a.book("r1", "0", { blocks: [1] });
  await clock.runFor(5);
  network.faults.setMessageFaults([{ subject: "_R.>", loss: 1 }]);
  const b = start();
  await clock.runFor(heartbeatMs + 5 * askTimeoutMs);
  expect(b.columns()[0]).toEqual([0, 0, 0]);
  network.faults.setMessageFaults([]);
  await clock.runFor(heartbeatMs + 2 * askTimeoutMs);
  expect(b.columns()).toEqual(a.columns());
});

it("converges within two heartbeats after messages were lost, doubled and reordered", async () => {
  for (let seed = 100; seed < 112; seed++) {
    const { clock, network, start } = createReplicas(seed);
    const replicas = [start(), start(), start()];
    const random = mulberry32(seed);
    await clock.runFor(100);
    network.faults.setMessageFaults([
      { subject: ">", loss: 0.2, duplication: 0.2, delayMaxMs: 40 },
    ]);
    const live = replicas.map(() => new Map<string, boolean>());
    for (let step = 0; step < 400; step++) {
      change(replicas, live, { step, random });
      await clock.runFor(randomInt(random, 0, 40));
    }
    network.faults.setMessageFaults([]);
    await clock.runFor(2 * heartbeatMs + 500);
    for (const [at, replica] of replicas.entries()) {
      expect(replica.columns(), `seed ${seed}, replica ${at}`).toEqual(replicas[0]?.columns());
      const others = live.reduce((sum, own, other) => sum + (other === at ? 0 : own.size), 0);
      expect(replica.sync.counts()).toEqual({ peers: 2, recovering: 0, booked: others, held: 0 });
    }
    expect(network.faults.counts.lost).toBeGreaterThan(50);
    for (const [at, own] of live.entries()) for (const key of own.keys()) replicas[at]?.free(key);
    await clock.runFor(100);
    for (const { load } of replicas)
      expect([load.requestCount, load.sharedBlockCount]).toEqual([0, 0]);
  }
});

/** One random step of one replica: a new request, a first token or an end. */
function change(
  replicas: readonly Replica[],
  live: readonly Map<string, boolean>[],
  { step, random }: { readonly step: number; readonly random: () => number },
): void {
  const at = randomInt(random, 0, replicas.length - 1);
  const [replica, own] = [replicas[at], live[at]];
  if (!replica || !own) return;
  const keys = [...own.keys()];
  const key = keys[randomInt(random, 0, keys.length)];
  if (key === undefined) {
    const blocks = Array.from({ length: randomInt(random, 0, 9) }, (_, block) => block);
    const prefillTokens = randomInt(random, 0, 2) * 50;
    replica.book(`r${step}`, String(step % 3), { blocks, prefillTokens, privateBlocks: step % 2 });
    own.set(`r${step}`, false);
  } else if (own.get(key)) {
    replica.free(key);
    own.delete(key);
  } else {
    replica.firstToken(key);
    own.set(key, true);
  }
}

const scripted: SequenceFrame = {
  ...{ type: "deltas", routerId: "7", epoch: "00000000000000aa", blockSize: 16, sentMs: 0 },
  ...{ seq: 1, oldestMs: 0, part: 0, parts: 1, events: [] },
};

function booked(request: number, workerId = "0"): SequenceFrame["events"][number] {
  const facts = { prefillTokens: 0, cachedTokens: 0, expectedPrefillMs: 0, privateBlocks: 1 };
  const sequence = new Uint32Array(0);
  return { type: "add", booking: { request, workerId, dpRank: 0, ...facts, sequence } };
}

/** A replica and a stranger on the bus that can claim to be any other one. */
async function withStranger(seed: number) {
  const { clock, network, start } = createReplicas(seed);
  const replica = start();
  const bus = network.connect({ role: "lo" });
  await clock.runFor(100);
  let answers: string | undefined;
  bus.subscribe(activeSequencesAskSubject(endpoint), ({ payload, reply }) => {
    if (decodeSequenceAsk(payload).of === "7") answers = reply;
  });
  const say = async (payload: Uint8Array): Promise<void> => {
    bus.publish(activeSequencesSubject(endpoint, "7"), payload);
    await clock.runFor(1);
  };
  const answer = async (change: Partial<SequenceFrame>): Promise<void> => {
    const list = { ...scripted, type: "list", ...change } as const;
    bus.publish(answers ?? "", encodeSequenceFrame(list));
    await clock.runFor(1);
  };
  return { clock, replica, say, answer };
}

it("puts a list together from parts of one number, and takes the deltas behind it", async () => {
  const { clock, replica, say, answer } = await withStranger(19);
  const deltas = (seq: number, ...events: SequenceFrame["events"]): Promise<void> =>
    say(encodeSequenceFrame({ ...scripted, seq, events }));
  await deltas(10, booked(10));
  await clock.runFor(askSpreadMs);
  await answer({ seq: 10, part: 0, parts: 2, events: [booked(1), booked(2)] });
  await deltas(12, { type: "free", request: 2 }, booked(12));
  await deltas(11, { type: "free", request: 1 }, booked(11));
  // The first answer's other part is lost; the next answer is cut elsewhere.
  await answer({ seq: 11, part: 1, parts: 2, events: [booked(2)] });
  expect(replica.sync.counts().recovering).toBe(1);
  await answer({ seq: 10, part: 1, parts: 2, events: [booked(3)] });
  expect(replica.sync.counts().recovering).toBe(1);
  await answer({ seq: 11, part: 0, parts: 2, events: [booked(10), booked(11)] });
  expect(replica.sync.counts()).toEqual({ peers: 1, recovering: 0, booked: 3, held: 0 });
  for (const request of [10, 11, 12]) expect(replica.load.has(`7-${request}`)).toBe(true);
  await deltas(13, booked(13));
  expect(replica.sync.counts()).toMatchObject({ recovering: 0, booked: 4 });
});

it("asks again when deltas are missing between a list and what came behind it", async () => {
  const { clock, replica, say, answer } = await withStranger(20);
  await say(encodeSequenceFrame({ ...scripted, seq: 10, events: [booked(10)] }));
  await clock.runFor(askSpreadMs);
  await answer({ seq: 8, events: [booked(8)] });
  expect(replica.sync.counts().recovering).toBe(1);
  await clock.runFor(askSpreadMs);
  await answer({ seq: 10, events: [booked(8), booked(10)] });
  expect(replica.sync.counts()).toMatchObject({ recovering: 0, booked: 2 });
});

it("says in every heartbeat and list what the deltas before it add up to", async () => {
  const { clock, network, start, random } = createReplicas(21);
  const replica = start();
  const observer = network.connect({ role: "ob" });
  const live = new Set<number>();
  let seq = 0;
  let compared = 0;
  const wrong: unknown[] = [];
  const hear = ({ payload }: { readonly payload: Uint8Array }): void => {
    const message = decodeSequenceMessage(payload);
    if (message.type === "deltas") {
      seq = message.seq;
      for (const event of message.events) {
        if (event.type === "add") live.add(event.booking.request);
        if (event.type === "free") live.delete(event.request);
      }
      return;
    }
    compared++;
    const count = message.type === "heartbeat" ? message.liveCount : message.events.length;
    if (message.seq !== seq || count !== live.size) wrong.push([message, seq, live.size]);
  };
  const reply = `${observer.inboxPrefix}.as`;
  observer.subscribe(activeSequencesOfPool(endpoint), hear);
  observer.subscribe(reply, hear);
  const open: string[] = [];
  for (let step = 0; step < 500; step++) {
    const key = open.length > 9 || random() < 0.4 ? open.shift() : undefined;
    if (key === undefined) {
      replica.book(`r${step}`, "0");
      open.push(`r${step}`);
    } else replica.free(key);
    const of = random() < 0.5 ? replica.inst : undefined;
    const ask = encodeSequenceAsk({ routerId: "7", of });
    if (random() < 0.3) observer.publish(activeSequencesAskSubject(endpoint), ask, { reply });
    await clock.runFor(random() < 0.5 ? 0 : 0.4);
  }
  await clock.runFor(heartbeatMs);
  expect(wrong).toEqual([]);
  expect(compared).toBeGreaterThan(100);
});

it("replaces a book whose digest differs at two heartbeats in a row", async () => {
  const { clock, replica, say } = await withStranger(14);
  await say(encodeSequenceFrame({ ...scripted, events: [booked(1)] }));
  const { type: _, oldestMs, part, parts, events, ...source } = scripted;
  const beat = (liveDigest: string): Promise<void> =>
    say(
      encodeSequenceHeartbeat({
        ...{ type: "heartbeat", ...source, liveCount: 1, liveDigest, goodbye: false },
      }),
    );
  await beat("wrong");
  await clock.runFor(heartbeatMs);
  expect(replica.resyncs("digest")).toBe(0);
  await beat("wrong");
  expect(replica.resyncs("digest")).toBe(1);
});

it("refuses what cannot be read, another block size, and replicas beyond the maximum", async () => {
  const { replica, say } = await withStranger(15);
  await say(Buffer.from("nonsense"));
  await say(encodeSequenceFrame({ ...scripted, blockSize: 32, events: [booked(1)] }));
  expect([replica.dropped("malformed"), replica.dropped("block_size")]).toEqual([1, 1]);
  for (let peer = 1; peer <= peersMax + 1; peer++) {
    await say(encodeSequenceFrame({ ...scripted, routerId: String(peer), events: [booked(1)] }));
  }
  expect(replica.sync.counts()).toMatchObject({ peers: peersMax, booked: peersMax });
  expect(replica.dropped("capacity")).toBe(1);
});

it("takes deltas once", async () => {
  const { replica, say } = await withStranger(16);
  const bytes = encodeSequenceFrame({ ...scripted, events: [booked(1)] });
  await say(bytes);
  await say(bytes);
  expect(replica.columns()[0]).toEqual([1, 0, 1]);
  expect(replica.dropped("duplicate")).toBe(1);
});

it("warns once of changes that come more than 100 ms late, whatever the clocks' offset", async () => {
  const { clock, replica, say } = await withStranger(17);
  const theirs = (agoMs: number): number => clock.nowMs() - 1e6 - agoMs;
  const tell = (seq: number, sentAgoMs: number, waitedMs: number): Promise<void> => {
    const sentMs = theirs(sentAgoMs);
    return say(encodeSequenceFrame({ ...scripted, seq, sentMs, oldestMs: sentMs - waitedMs }));
  };
  const warnings = (): string[] => replica.lines.filter((line) => line.includes("come late"));
  await tell(1, 3, 1);
  await tell(2, 90, 0);
  expect(warnings()).toEqual([]);
  await tell(3, 80, 60);
  await tell(4, 400, 0);
  expect(warnings()).toHaveLength(1);
  expect(JSON.parse(warnings()[0] ?? "")).toMatchObject({ router_id: "7", age_ms: 137 });
});

it("counts what the load book has no room for as held, and does not ask for it for ever", async () => {
  const { clock, start } = createReplicas(18);
  const a = start();
  const b = start({ limits: { ...defaultLoadLimits, requestsMax: 1 } });
  await clock.runFor(100);
  a.book("r1", "0");
  a.book("r2", "0");
  await clock.runFor(3 * heartbeatMs);
  expect(b.sync.counts()).toMatchObject({ booked: 1, held: 1 });
  expect(b.resyncs("digest") + b.resyncs("gap")).toBe(0);
});
