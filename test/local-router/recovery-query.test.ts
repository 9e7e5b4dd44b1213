import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import {
  createRecoveryQuery,
  querySilenceMs,
  silencesMax,
} from "../../src/local-router/recovery-query.ts";
import { decodeKvQuery, type KvQuery } from "../../src/protocol/kv-query.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";
import { EngineEvents } from "../../src/worker/engine-events.ts";
import { blockHasher } from "./pool-rig.ts";

const holder = { workerId: "17", dpRank: 0 };

/** Chunks of the worker's dump. */
const dumpChunks = 6;

/** A worker whose dumps take six chunks, behind a bus that loses what `loses` says. */
function rig() {
  const clock = new ManualClock();
  const random = mulberry32(1);
  const network = createMemoryNetwork({ clock, random });
  const [bus, workerBus] = [network.connect({ role: "lo" }), network.connect({ role: "wk" })];
  const published: number[] = [];
  const faults = { loses: (_chunk: number): boolean => false };
  const events = new EngineEvents({
    bus: {
      ...workerBus,
      subscribe: workerBus.subscribe.bind(workerBus),
      publish(subject: string, payload: Uint8Array): void {
        if (!subject.includes(".kvq.")) return;
        published.push(payload.length);
        if (!faults.loses(published.length)) workerBus.publish(subject, payload);
      },
      maxPayloadBytes: 200 * 1024,
    } as typeof workerBus,
    ...{ clock, random, chain: blockHasher.chain, namespace: "pool", inst: "17", epoch: "aa" },
    card: { dpStart: 0, dpSize: 1 },
    lingerMs: 0,
    loses: () => false,
    durable: undefined,
  });
  const lanes = Uint32Array.from({ length: 140_000 }, (_, at) => at + 1);
  for (let from = 0; from < lanes.length; from += 20_000) {
    const hashes = lanes.subarray(from, from + 20_000);
    events.publish(0, [
      { type: "stored", parent: undefined, sequenceHashes: hashes, localHashes: hashes },
    ]);
  }
  const query = createRecoveryQuery(bus, clock);
  return { clock, network, workerBus, events, published, faults, query };
}

const neverAborted = new AbortController().signal;

it("asks for the chunks that went missing, not for the whole dump again", async () => {
  const { clock, published, faults, query } = rig();
  faults.loses = (chunk) => chunk === 2;
  const asked = query(holder, undefined, neverAborted);
  await clock.runFor(querySilenceMs - 1);
  expect(published.length).toBe(dumpChunks);
  await clock.runFor(100);
  expect(published.length).toBe(dumpChunks + 1);
  const answer = await asked;
  if (answer.type !== "tree_dump") throw new Error(answer.type);
  const blocks = answer.events.map((event) =>
    event.type === "stored" ? event.blocks.length / 4 : 0,
  );
  expect(blocks.reduce((sum, count) => sum + count)).toBe(70_000);
  expect(clock.pending()).toBe(1);
});

it("starts over when the worker has dropped the answer, and holds no timer afterwards", async () => {
  const { clock, published, faults, query, events } = rig();
  faults.loses = (chunk) => chunk === 3;
  const first = query(holder, undefined, neverAborted);
  await clock.runFor(10);
  // Another router's dump takes the first one's place.
  const second = query({ ...holder }, undefined, neverAborted);
  await clock.runFor(10);
  expect((await second).type).toBe("tree_dump");
  await clock.runFor(querySilenceMs);
  expect((await first).type).toBe("tree_dump");
  expect(published.length).toBe(3 * dumpChunks);
  events.close();
  expect(clock.pending()).toBe(0);
});

it("gives up after silences in a row, however much it has", async () => {
  const { clock, published, faults, query } = rig();
  faults.loses = (chunk) => chunk !== 1;
  const asked = query(holder, undefined, neverAborted);
  const failed = expect(asked).rejects.toMatchObject({ code: "request_timeout" });
  await clock.runFor((silencesMax + 1) * querySilenceMs);
  await failed;
  expect(published.length).toBe(dumpChunks + (dumpChunks - 1) * silencesMax);
});

it("fails after one silence when nothing came, and at once when it is given up", async () => {
  const { clock, query } = rig();
  const nobody = query({ workerId: "99", dpRank: 0 }, undefined, neverAborted);
  const unanswered = expect(nobody).rejects.toMatchObject({ code: "request_timeout" });
  await clock.runFor(querySilenceMs);
  await unanswered;
  const abort = new AbortController();
  const given = query(holder, 5, abort.signal);
  const cancelled = expect(given).rejects.toMatchObject({ code: "cancelled" });
  abort.abort();
  await cancelled;
});

it("a query for the rest survives its text, and an unsound one is a query for all", () => {
  const query: KvQuery = { workerId: "1", startEventId: 3, endEventId: undefined };
  const text = (json: object) => decodeKvQuery(new TextEncoder().encode(JSON.stringify(json)));
  expect(text({ worker_id: "1", start_event_id: 3, answer: 2, missing: [0, 9] })).toEqual({
    ...query,
    rest: { answer: 2, missing: [0, 9] },
  });
  for (const missing of [undefined, "x", [-1], [1.5], Array.from({ length: 1025 }, () => 0)]) {
    expect(text({ worker_id: "1", start_event_id: 3, answer: 2, missing })).toEqual(query);
  }
});
