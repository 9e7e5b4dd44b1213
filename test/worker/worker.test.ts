import { expect, it } from "vitest";
import { decodeReceipt } from "../../src/protocol/receipts.ts";
import { encodeDispatch } from "../../src/protocol/request-frame.ts";
import { attemptNumber, type Envelope, type Receipt } from "../../src/protocol/requests.ts";
import { readBundle } from "../../src/protocol/stream-bundle.ts";
import { encodeControl } from "../../src/protocol/stream-control.ts";
import type { StreamFrame } from "../../src/protocol/stream-frames.ts";
import { controlSubject, endpointSubject, generateSubject } from "../../src/protocol/subjects.ts";
import { watchInstances } from "../../src/runtime/discovery.ts";
import { startEchoGate } from "../../src/runtime/echo-gate.ts";
import { acceptedWithinMs } from "../../src/runtime/notice-outbox.ts";
import {
  addDispatcher,
  addWorker,
  ask,
  bodyOf,
  endpoint,
  launchWorker,
  newRig,
  promptOf,
  type Rig,
  type RigWorker,
  tokensOf,
} from "./worker-rig.ts";

const attempt = (call: number, global = 0, local = 0) => attemptNumber({ call, global, local });

function envelopeOf(bus: Rig["bus"], more: Partial<Envelope> = {}): Envelope {
  return {
    rid: "0123456789abcdef0123456789abcdef",
    attempt: attempt(1),
    first: 0,
    phase: "aggregated",
    deadlineMs: 60_000,
    stream: { subject: `${bus.inboxPrefix}.t`, format: "bundle", key: 5, acks: false },
    notify: [],
    avoid: [],
    decisions: [],
    ...more,
  };
}

/** Sends a dispatch as a router does; the receipts arrive in `receipts`. */
function offer(
  { bus }: Rig,
  { worker }: RigWorker,
  envelope: Envelope,
  { maxTokens = 4, promptTokens = 6 } = {},
): Receipt[] {
  const receipts: Receipt[] = [];
  const reply = `${bus.inboxPrefix}.r${envelope.attempt}`;
  bus.subscribe(reply, ({ payload }) => void receipts.push(decodeReceipt(payload)));
  const prompt = { type: "tokens", tokens: promptOf(promptTokens) } as const;
  const dispatch = { envelope, body: bodyOf(maxTokens), prompt };
  bus.publish(generateSubject("w", worker.inst), encodeDispatch(dispatch), { reply });
  return receipts;
}

interface Frames {
  readonly frames: StreamFrame[];
  /** Streams named in each message that carried tokens. */
  readonly messages: number[][];
}

function follow({ bus }: Rig, subject: string): Frames {
  const heard: Frames = { frames: [], messages: [] };
  bus.subscribe(subject, ({ payload }) => {
    const keys: number[] = [];
    readBundle(payload, (key, frame) => {
      heard.frames.push(frame);
      if (frame.type === "tokens") keys.push(key);
    });
    if (keys.length > 0) heard.messages.push(keys);
  });
  return heard;
}

it("streams exact tokens to the owner and counts them in the end frame", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const answer = ask(rig, { workers: [one], tokens: promptOf(9), body: bodyOf(20) });
  await rig.clock.runFor(1_000);
  expect(answer.tokens).toEqual(tokensOf(9, 20));
  expect(answer.errors).toEqual([]);
  expect(answer.ends).toMatchObject([
    {
      total: 20,
      finishReason: "length",
      usage: {
        prompt_tokens: 9,
        completion_tokens: 20,
        prompt_tokens_details: { cached_tokens: 0 },
      },
    },
  ]);
  const again = ask(rig, { workers: [one], tokens: promptOf(9), body: bodyOf(2) });
  await rig.clock.runFor(1_000);
  expect(again.ends[0]?.usage?.prompt_tokens_details).toEqual({ cached_tokens: 8 });
  expect(one.worker.active()).toBe(0);
});

it("sends one message per engine step and owner", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const subjects = [`${rig.bus.inboxPrefix}.a`, `${rig.bus.inboxPrefix}.b`];
  const heard = subjects.map((subject) => follow(rig, subject));
  for (let n = 0; n < 6; n++) {
    const rid = String(n).padStart(32, "0");
    const stream = { subject: subjects[n % 2]!, format: "bundle", key: n, acks: false } as const;
    offer(rig, one, envelopeOf(rig.bus, { rid, stream }), { maxTokens: 8, promptTokens: 4 });
  }
  await rig.clock.runFor(1_000);
  for (const [owner, { messages, frames }] of heard.entries()) {
    expect(messages).toEqual(Array(8).fill([owner, owner + 2, owner + 4]));
    expect(frames.filter(({ type }) => type === "end")).toHaveLength(3);
  }
});

it("answers with a receipt and tells dispatchers of first output, progress and the end", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const [near, far] = [addDispatcher(rig, "near"), addDispatcher(rig, "far")];
  const notify = [near.subject, far.subject];
  const asked = envelopeOf(rig.bus, { notify, progress: true });
  const receipts = offer(rig, one, asked, { maxTokens: 7 });
  await rig.clock.runFor(1_000);
  const { inst } = one.worker;
  expect(receipts).toMatchObject([
    { type: "accepted", attempt: attempt(1), inst, workerId: inst, dpRank: 0 },
  ]);
  // The first pass takes 10 + 6 + 6 ms, blocks hold 4 tokens: output 3 and 7 begin a block.
  expect(near.ofType("first_output")).toMatchObject([{ ttft_ms: 22, cached_tokens: 0 }]);
  expect(near.ofType("progress").map(({ output_tokens }) => output_tokens)).toEqual([3, 7]);
  const finished = { outcome: "ok", output_tokens: 7, finish_reason: "length" };
  expect(near.ofType("finished")).toMatchObject([{ ...finished, itl: { count: 6, sum_ms: 36 } }]);
  expect(far.notices.map(({ type }) => type)).toEqual(["first_output", "finished"]);
});

it("tells every dispatcher of its acceptance where nobody waits for a receipt", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const [near, far] = [addDispatcher(rig, "near"), addDispatcher(rig, "far")];
  const notify = [near.subject, far.subject];
  const asked = envelopeOf(rig.bus, { notify, acceptNotice: true });
  const receipts = offer(rig, one, asked);
  await rig.clock.runFor(acceptedWithinMs + 1);
  const { inst } = one.worker;
  const accepted = { type: "accepted", attempt: attempt(1), inst, waited_ms: acceptedWithinMs };
  expect([near.notices, far.notices]).toMatchObject([[accepted], [accepted]]);
  await rig.clock.runFor(1_000);
  expect(near.notices.map(({ type }) => type)).toEqual(["accepted", "first_output", "finished"]);
  expect(receipts).toEqual([]);
  // A refusal is a receipt in any case.
  one.engine.setFaults({ rejectRate: 1 });
  const refused = offer(rig, one, { ...asked, attempt: attempt(2) });
  await rig.clock.runFor(10);
  expect(refused).toMatchObject([{ type: "refused", code: "overloaded" }]);
});

it("says that it accepted before it offers a request back", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const near = addDispatcher(rig, "near");
  offer(rig, one, envelopeOf(rig.bus, { notify: [near.subject], acceptNotice: true }));
  await rig.clock.runFor(1);
  const drained = one.worker.drain(0);
  await rig.clock.runFor(8_000);
  await drained;
  expect(near.notices.map(({ type }) => type).slice(0, 2)).toEqual(["accepted", "failed"]);
});

it("tells no progress to a dispatcher that did not ask for it", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const near = addDispatcher(rig, "near");
  offer(rig, one, envelopeOf(rig.bus, { notify: [near.subject] }), { maxTokens: 7 });
  await rig.clock.runFor(1_000);
  expect(near.notices.map(({ type }) => type)).toEqual(["first_output", "finished"]);
});

it("names its running requests to every dispatcher each 5 s", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const near = addDispatcher(rig, "near");
  offer(rig, one, envelopeOf(rig.bus, { notify: [near.subject] }), { maxTokens: 1_500 });
  await rig.clock.runFor(5_500);
  const { rid } = envelopeOf(rig.bus);
  const requests = [{ rid, attempt: attempt(1) }];
  expect(near.ofType("active")).toEqual([{ type: "active", inst: one.worker.inst, requests }]);
  await rig.clock.runFor(10_000);
  expect(near.ofType("active")).toHaveLength(1);
});

it("refuses what it cannot run, with the reason", async () => {
  const rig = newRig();
  const starting = launchWorker(rig, { startup_time: 5 });
  const early = offer(rig, starting, envelopeOf(rig.bus));
  await rig.clock.runFor(10);
  expect(early).toMatchObject([{ type: "refused", code: "not_ready" }]);
  const one = await addWorker(rig, { max_model_len: 16 });
  const long = offer(rig, one, envelopeOf(rig.bus), { promptTokens: 16 });
  one.engine.setFaults({ rejectRate: 1 });
  const full = offer(rig, one, envelopeOf(rig.bus, { attempt: attempt(2) }));
  const prefiller = await addWorker(rig, { worker_type: "prefill" });
  const wrongLeg = offer(rig, prefiller, envelopeOf(rig.bus, { attempt: attempt(3) }));
  await rig.clock.runFor(100);
  expect(long).toMatchObject([{ type: "refused", code: "context_length_exceeded" }]);
  expect(full).toMatchObject([{ type: "refused", code: "overloaded" }]);
  expect(wrongLeg).toMatchObject([{ type: "refused", code: "invalid_request" }]);
  expect(one.worker.active() + prefiller.worker.active()).toBe(0);
});

it("serves plain clients at its public endpoint: frames on their reply subject", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const heard: Record<string, unknown>[] = [];
  const reply = `${rig.bus.inboxPrefix}.plain`;
  rig.bus.subscribe(reply, ({ payload }) => {
    heard.push(JSON.parse(new TextDecoder().decode(payload)));
  });
  const send = (request: object) =>
    rig.bus.publish(endpointSubject(endpoint), new TextEncoder().encode(JSON.stringify(request)), {
      reply,
    });
  send({ token_ids: [1, 2, 3], stop_conditions: { max_tokens: 2 }, sampling_options: { seed: 7 } });
  await rig.clock.runFor(100);
  expect(heard.map(({ type }) => type)).toEqual(["accepted", "tokens", "tokens", "end"]);
  expect(heard.flatMap(({ token_ids = [] }) => token_ids)).toEqual(tokensOf(3, 2));
  one.engine.setFaults({ rejectRate: 1 });
  send({ token_ids: [1, 2, 3] });
  await rig.clock.runFor(100);
  expect(heard.at(-1)).toMatchObject({ type: "error", code: "overloaded", retryable: true });
});

it("ignores a known attempt and lets a newer one replace an older", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const near = addDispatcher(rig, "near");
  const notify = [near.subject];
  const heard = follow(rig, `${rig.bus.inboxPrefix}.t`);
  offer(rig, one, envelopeOf(rig.bus, { notify, attempt: attempt(1, 1) }), { maxTokens: 50 });
  await rig.clock.runFor(50);
  one.engine.setFaults({ rejectRate: 1 });
  const twice = offer(rig, one, envelopeOf(rig.bus, { notify, attempt: attempt(1, 1) }));
  const older = offer(rig, one, envelopeOf(rig.bus, { notify, attempt: attempt(1) }));
  await rig.clock.runFor(10);
  expect(twice).toHaveLength(0);
  one.engine.setFaults({ rejectRate: 0 });
  expect(older).toMatchObject([{ type: "refused", code: "duplicate_request" }]);
  expect(one.worker.active()).toBe(1);
  const newer = offer(rig, one, envelopeOf(rig.bus, { notify, attempt: attempt(2) }));
  await rig.clock.runFor(2);
  expect(newer).toMatchObject([{ type: "accepted", attempt: attempt(2) }]);
  expect(near.ofType("finished")).toMatchObject([{ attempt: attempt(1, 1), outcome: "migrated" }]);
  expect(one.worker.active()).toBe(1);
  const before = heard.frames.length;
  await rig.clock.runFor(1_000);
  expect(heard.frames.slice(before).every((frame) => frame.attempt === attempt(2))).toBe(true);
  expect(one.engine.load()[0]).toMatchObject({ running: 0, activeBlocks: 0 });
});

it("does not run a finished attempt again", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  offer(rig, one, envelopeOf(rig.bus));
  await rig.clock.runFor(500);
  const again = offer(rig, one, envelopeOf(rig.bus), { maxTokens: 500 });
  await rig.clock.runFor(100);
  expect(again).toHaveLength(0);
  expect(one.worker.active()).toBe(0);
  expect(one.engine.load()[0]).toMatchObject({ running: 0, waiting: 0 });
});

it("stops the engine at once when the owner cancels", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const near = addDispatcher(rig, "near");
  const envelope = envelopeOf(rig.bus, { notify: [near.subject] });
  offer(rig, one, envelope, { maxTokens: 500 });
  await rig.clock.runFor(100);
  expect(one.engine.load()[0]?.running).toBe(1);
  const { rid } = envelope;
  const cancel = encodeControl({ type: "cancel", rid, attempt: attempt(1) });
  rig.bus.publish(controlSubject("w", one.worker.inst), cancel);
  await rig.clock.runFor(10);
  expect(one.worker.active()).toBe(0);
  expect(one.engine.load()[0]).toMatchObject({ running: 0, waiting: 0, activeBlocks: 0 });
  expect(near.ofType("finished")).toMatchObject([{ outcome: "cancelled" }]);
  expect(await one.metrics.text()).toContain("dynamo_component_cancellation_total 1");
});

it("stops the engine for an owner that went away without a word", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const subject = `${rig.bus.inboxPrefix}.t`;
  const stream = { subject, format: "bundle", key: 1, acks: true } as const;
  offer(rig, one, envelopeOf(rig.bus, { stream }), { maxTokens: 4_000 });
  await rig.clock.runFor(9_500);
  expect(one.worker.active()).toBe(1);
  await rig.clock.runFor(1_000);
  expect(one.worker.active()).toBe(0);
  expect(one.engine.load()[0]?.running).toBe(0);
  const text = await one.metrics.text();
  expect(text).toContain("tiergrid_stream_orphans_total 1");
  expect(text).toContain("tiergrid_stream_credit_stalls_total 1");
});

it("hands a prefill to a decode worker so that every token comes once", async () => {
  const rig = newRig();
  const prefiller = await addWorker(rig, { worker_type: "prefill" });
  const decoder = await addWorker(rig, { worker_type: "decode" });
  const tokens = promptOf(10);
  const prefill = { workers: [prefiller], tokens, body: bodyOf(12), phase: "prefill" } as const;
  const first = ask(rig, prefill);
  await rig.clock.runFor(500);
  expect(first.ends).toHaveLength(1);
  const params = first.outputs[0]?.disaggregatedParams;
  expect(params).toMatchObject({ engine: "mock", isl: 10, first_token: tokensOf(10, 1)[0] });
  const prefill_result = { disaggregated_params: params };
  const body = bodyOf(12, { prefill_result });
  const second = ask(rig, { workers: [decoder], tokens, body, phase: "decode" });
  await rig.clock.runFor(500);
  expect(second.tokens).toEqual(tokensOf(10, 12));
  expect(second.ends).toMatchObject([{ total: 12, usage: { completion_tokens: 12 } }]);
  expect(prefiller.engine.load()[0]?.activeBlocks).toBe(0);
});

it("numbers a migrated answer from where it was", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const heard = follow(rig, `${rig.bus.inboxPrefix}.t`);
  offer(rig, one, envelopeOf(rig.bus, { first: 30, attempt: attempt(2) }), { maxTokens: 3 });
  await rig.clock.runFor(100);
  const firsts = heard.frames.flatMap((frame) => (frame.type === "tokens" ? [frame.first] : []));
  expect(firsts).toEqual([30, 31, 32]);
  expect(heard.frames.at(-1)).toMatchObject({ type: "end", total: 33 });
});

it("registers, shows its load and says goodbye", async () => {
  const rig = newRig();
  const { bus, clock } = rig;
  const table = watchInstances({ bus, clock, gate: startEchoGate(bus, clock) });
  const one = await addWorker(rig);
  const { inst } = one.worker;
  await clock.runFor(10);
  expect(one.worker.ready()).toBe(true);
  expect(table.isUsable(inst)).toBe(true);
  expect(table.get(inst)?.card).toMatchObject({ kind: "w", workerId: inst, blockSize: 4 });
  const answer = ask(rig, { workers: [one], tokens: promptOf(8), body: bodyOf(4_000) });
  await clock.runFor(500);
  const digests: unknown[] = [];
  for (let second = 0; second < 20; second++) {
    await clock.runFor(1_000);
    const card = table.get(inst)?.card;
    expect(card?.load?.running).toBe(1);
    if (card?.digests) digests.push(card.digests[0]);
  }
  expect(digests.length).toBeGreaterThanOrEqual(2);
  expect(digests.length).toBeLessThanOrEqual(6);
  answer.call.cancel();
  await one.worker.close();
  await clock.runFor(10);
  expect(table.get(inst)).toBe(undefined);
  expect(one.worker.health()).toMatchObject({ ready: false, body: { state: "closed", active: 0 } });
});
