/** A local router and scripted workers on the in-process bus, under one manual clock. */
import { ManualClock } from "../../src/base/clock.ts";
import { mulberry32, randomHex128 } from "../../src/base/random.ts";
import { loadKvRouterConfig } from "../../src/config/kv-router-config.ts";
import { noBusyThresholds } from "../../src/core/worker-roster.ts";
import { localRouterTable } from "../../src/local-router/local-metrics.ts";
import { type LocalRouterOptions, startLocalRouter } from "../../src/local-router/local-router.ts";
import { type BlockHasher, loadBlockHasher } from "../../src/protocol/block-hashes.ts";
import { encodeKvEvents } from "../../src/protocol/kv-event-frame.ts";
import type { KvEvent, StorageTier } from "../../src/protocol/kv-events.ts";
import { decodeKvQuery, encodeKvAnswer } from "../../src/protocol/kv-query.ts";
import { encodeNotice, type Notice } from "../../src/protocol/notices.ts";
import { decodeReceipt, encodeReceipt } from "../../src/protocol/receipts.ts";
import { decodeDispatch, encodeDispatch } from "../../src/protocol/request-frame.ts";
import type {
  Dispatch,
  Envelope,
  Prompt,
  Receipt,
  RequestBody,
} from "../../src/protocol/requests.ts";
import { decodeControl } from "../../src/protocol/stream-control.ts";
import type { ControlMessage } from "../../src/protocol/stream-frames.ts";
import {
  controlSubject,
  endpointSubject,
  generateSubject,
  kvEventSubject,
  kvQuerySubject,
} from "../../src/protocol/subjects.ts";
import { announce } from "../../src/runtime/announce.ts";
import type { BusMessage } from "../../src/runtime/bus.ts";
import { startEchoGate } from "../../src/runtime/echo-gate.ts";
import type { InstanceCard } from "../../src/runtime/instance-card.ts";
import { silentLog } from "../../src/runtime/log.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";
import { createMetrics } from "../../src/runtime/metrics.ts";
import { EventRing } from "../../src/worker/event-ring.ts";
import { sampleCard } from "../runtime/sample-card.ts";

export const blockSize = 16;
const firstAttempt = 1 << 20;
export const blockHasher: BlockHasher = await loadBlockHasher();

export type Manner = "accept" | "overloaded" | "invalid" | "mute";

export function configOf(settings: object = {}): LocalRouterOptions["config"] {
  const loaded = loadKvRouterConfig([settings]);
  if (!loaded.ok) throw new Error(JSON.stringify(loaded.faults));
  return loaded.config;
}

/** `blocks` blocks of tokens that only prompts of the same `family` share. */
export function promptOf(family: number, blocks: number): Uint32Array {
  return Uint32Array.from({ length: blocks * blockSize }, (_, at) => family * 100_000 + at);
}

export function startPool(seed: number, change: Partial<LocalRouterOptions> = {}) {
  const clock = new ManualClock();
  const random = mulberry32(seed);
  const network = createMemoryNetwork({ clock, random });
  const bus = network.connect({ role: "lo" });
  const client = network.connect({ role: "fe" });
  const metrics = createMetrics(localRouterTable);
  const gate = startEchoGate(bus, clock);
  const router = startLocalRouter({
    ...{ bus, clock, random, gate, log: silentLog, metrics, blockHasher, blockSize },
    endpoint: { namespace: "pool", component: "backend", endpoint: "generate" },
    role: "aggregated",
    config: configOf(),
    policy: "blocks",
    thresholds: noBusyThresholds,
    minInitialWorkers: 0,
    acceptTimeoutMs: 300,
    version: "1.0.0",
    ...change,
  });
  const settled = async <T>(promise: Promise<T>): Promise<T> => {
    let done = false;
    const end = (): void => {
      done = true;
    };
    promise.then(end, end);
    await clock.runUntil(() => done, 20_000);
    return promise;
  };
  const send = (
    sent: Uint32Array | Prompt,
    body: RequestBody = {},
    envelope: Partial<Envelope> = {},
  ) => {
    const prompt = sent instanceof Uint32Array ? { type: "tokens", tokens: sent } : sent;
    const stream = { subject: `${client.inboxPrefix}.s`, format: "json", key: 0, acks: false };
    const dispatch = {
      envelope: {
        ...{ rid: randomHex128(random), attempt: firstAttempt, first: 0, phase: "aggregated" },
        ...{ deadlineMs: 60_000, stream, notify: [], avoid: [], decisions: [] },
        ...envelope,
      },
      body,
      prompt,
    } as Dispatch;
    const receipt = client
      .request(generateSubject("local", router.inst), encodeDispatch(dispatch), {
        timeoutMs: 10_000,
      })
      .then(({ payload }) => decodeReceipt(payload));
    return { rid: dispatch.envelope.rid, receipt: settled(receipt) };
  };
  const question = async (endpoint: string, json: unknown): Promise<never> => {
    const subject = endpointSubject({ namespace: "pool", component: "router", endpoint });
    const payload = new TextEncoder().encode(JSON.stringify(json));
    const reply = await settled(client.request(subject, payload, { timeoutMs: 1000 }));
    return JSON.parse(new TextDecoder().decode(reply.payload)) as never;
  };
  const worker = (inst: string, given: WorkerScript = {}) =>
    startWorker({ clock, random, network }, inst, given);
  return { clock, random, network, router, metrics, client, send, question, worker, settled };
}

export interface WorkerScript {
  readonly manner?: Manner;
  readonly card?: Partial<InstanceCard>;
}

interface Place {
  readonly clock: ManualClock;
  readonly random: () => number;
  readonly network: ReturnType<typeof createMemoryNetwork>;
}

/** A worker that accepts, refuses or keeps silent, and says what it is told to say. */
function startWorker({ clock, random, network }: Place, inst: string, script: WorkerScript) {
  const bus = network.connect({ role: "wk" });
  const state = { manner: script.manner ?? "accept", card: script.card ?? {} };
  const taken: Dispatch[] = [];
  const controls: ControlMessage[] = [];
  const ring = new EventRing({ workerId: inst, chain: blockHasher.chain, random });
  const card = (): InstanceCard => ({ ...plainCard(inst), ...state.card });
  const { dpStart, dpSize } = card();
  bus.subscribe(controlSubject("w", inst), ({ payload }) => {
    controls.push(decodeControl(payload));
  });
  bus.subscribe(generateSubject("w", inst), (message: BusMessage) => {
    const dispatch = decodeDispatch(message, random);
    taken.push(dispatch);
    const receipt = receiptOf(state.manner, inst, dispatch);
    if (receipt && message.reply) bus.publish(message.reply, encodeReceipt(receipt));
  });
  for (let rank = dpStart; rank < dpStart + dpSize; rank++) {
    bus.subscribe(kvQuerySubject(inst, rank), ({ payload, reply }) => {
      if (reply === undefined) return;
      const source = { workerId: inst, dpRank: rank, stateSource: card().epoch };
      const answer = ring.answer(decodeKvQuery(payload));
      for (const chunk of encodeKvAnswer(source, answer, 4096)) bus.publish(reply, chunk);
    });
  }
  const announcer = announce({ bus, clock, random, card });
  /** Caches the whole prompt; `lost` = the routers are not told. */
  const cache = (prompt: Uint32Array, lost = false, tier: StorageTier = "device"): void => {
    const { local, sequence, blocks } = blockHasher.hashBlocks(prompt, blockSize);
    const words = new Uint32Array(4 * blocks);
    for (let block = 0; block < blocks; block++) {
      words.set(local.subarray(2 * block, 2 * block + 2), 4 * block);
      words.set(sequence.subarray(2 * block, 2 * block + 2), 4 * block + 2);
    }
    const event: KvEvent = {
      ...{ type: "stored", eventId: ring.nextEventId, tier, parent: undefined },
      blocks: words,
    };
    ring.append(event);
    const batch = { workerId: inst, dpRank: 0, stateSource: card().epoch, events: [event] };
    if (!lost) bus.publish(kvEventSubject("pool", inst, 0), encodeKvEvents(batch));
  };
  const tell = (notice: Notice): void => {
    const [subject] = taken.at(-1)?.envelope.notify ?? [];
    if (subject) bus.publish(subject, encodeNotice(notice));
  };
  const finish = (rid: string): void => {
    const attempt = taken.find(({ envelope }) => envelope.rid === rid)?.envelope.attempt ?? 0;
    tell({ type: "finished", rid, attempt, outcome: "ok", output_tokens: 10 });
  };
  return { inst, bus, state, taken, controls, announcer, cache, tell, finish };
}

function plainCard(inst: string): InstanceCard {
  return sampleCard(inst, { epoch: "00000000000000aa", namespace: "pool", blockSize });
}

function receiptOf(manner: Manner, inst: string, { envelope }: Dispatch): Receipt | undefined {
  if (manner === "mute") return undefined;
  if (manner !== "accept") {
    const code = manner === "overloaded" ? "overloaded" : "invalid_request";
    return { type: "refused", code, message: `worker ${inst} says no` };
  }
  const { attempt, decisions } = envelope;
  const control = controlSubject("w", inst);
  const worker = { inst, epoch: "00000000000000aa", control, workerId: inst };
  return { type: "accepted", attempt, ...worker, dpRank: 0, decisions };
}
