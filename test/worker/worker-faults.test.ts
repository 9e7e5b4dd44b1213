import { expect, it } from "vitest";
import { decodeReceipt } from "../../src/protocol/receipts.ts";
import { encodeDispatch } from "../../src/protocol/request-frame.ts";
import { attemptNumber, type Receipt } from "../../src/protocol/requests.ts";
import { readBundle } from "../../src/protocol/stream-bundle.ts";
import type { StreamFrame } from "../../src/protocol/stream-frames.ts";
import { allHeartbeats, generateSubject } from "../../src/protocol/subjects.ts";
import { decodeHeartbeat, type Heartbeat } from "../../src/runtime/instance-card.ts";
import {
  addDispatcher,
  addWorker,
  ask,
  bodyOf,
  type Dispatcher,
  expectQuiet,
  newRig,
  promptOf,
  type Rig,
  type RigWorker,
  tokensOf,
} from "./worker-rig.ts";

const attempt = attemptNumber({ call: 1, global: 0, local: 0 });

interface Routed {
  readonly receipts: Receipt[];
  readonly frames: StreamFrame[];
}

/** Sends a request that names its dispatchers, and follows its stream. */
function route(
  { bus }: Rig,
  { worker }: RigWorker,
  dispatchers: readonly Dispatcher[],
  { maxTokens = 20, prompt = promptOf(6), rid = "f".repeat(32) } = {},
): Routed {
  const routed: Routed = { receipts: [], frames: [] };
  const [subject, reply] = [`${bus.inboxPrefix}.s${rid}`, `${bus.inboxPrefix}.r${rid}`];
  bus.subscribe(reply, ({ payload }) => void routed.receipts.push(decodeReceipt(payload)));
  bus.subscribe(subject, ({ payload }) => {
    readBundle(payload, (_key, frame) => routed.frames.push(frame));
  });
  const envelope = {
    rid,
    attempt,
    first: 0,
    phase: "aggregated",
    deadlineMs: 60_000,
    stream: { subject, format: "bundle", key: 1, acks: false },
    notify: dispatchers.map((dispatcher) => dispatcher.subject),
    avoid: [],
    decisions: [],
  } as const;
  const tokens = { type: "tokens", tokens: prompt } as const;
  const dispatch = { envelope, body: bodyOf(maxTokens), prompt: tokens };
  bus.publish(generateSubject("w", worker.inst), encodeDispatch(dispatch), { reply });
  return routed;
}

function hearHeartbeats({ bus }: Rig): Heartbeat[] {
  const heard: Heartbeat[] = [];
  bus.subscribe(allHeartbeats, ({ payload }) => {
    const beat = decodeHeartbeat(payload);
    if (beat) heard.push(beat);
  });
  return heard;
}

it("gives an attempt that died before output back to the nearest dispatcher, silently", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const [near, far] = [addDispatcher(rig, "near", true), addDispatcher(rig, "far", true)];
  one.engine.setFaults({ crashOnMarker: [7, 7] });
  const { frames } = route(rig, one, [near, far], { prompt: Uint32Array.of(1, 7, 7) });
  await rig.clock.runFor(2_000);
  expect(near.ofType("failed")).toMatchObject([
    { code: "worker_lost", worker_lost: true, attempt },
  ]);
  expect(near.ofType("finished")).toEqual([]);
  expect(far.notices).toEqual([]);
  expect(frames.map(({ type }) => type)).toEqual(["accepted"]);
  expect((await one.worker.died).code).toBe("worker_lost");
  await expectQuiet(rig, [one]);
});

it("asks the next dispatcher when the nearest is silent, and tells the owner when none takes it", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const [near, far] = [addDispatcher(rig, "near"), addDispatcher(rig, "far", false)];
  one.engine.setFaults({ crashOnMarker: [7, 7] });
  const { frames } = route(rig, one, [near, far], { prompt: Uint32Array.of(1, 7, 7) });
  await rig.clock.runFor(2_000);
  expect([near, far].map((heard) => heard.ofType("failed").length)).toEqual([1, 1]);
  const error = { type: "error", code: "worker_lost", retryable: true, started: false };
  expect(frames.at(-1)).toMatchObject(error);
  expect(far.ofType("finished")).toMatchObject([{ outcome: "error", output_tokens: 0 }]);
  await expectQuiet(rig, [one]);
});

it("reports a fault after output to the owner, not to the dispatchers", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const near = addDispatcher(rig, "near", true);
  one.engine.setFaults({ errorAfterTokens: 3 });
  const { frames } = route(rig, one, [near]);
  await rig.clock.runFor(1_000);
  expect(near.ofType("failed")).toEqual([]);
  expect(near.ofType("finished")).toMatchObject([{ outcome: "error", output_tokens: 3 }]);
  expect(frames.at(-1)).toMatchObject({ type: "error", code: "engine_error", started: true });
  await expectQuiet(rig, [one]);
});

it("lets owners migrate from a dying engine with exact tokens, and says goodbye", async () => {
  const rig = newRig();
  const workers = [await addWorker(rig), await addWorker(rig)];
  const beats = hearHeartbeats(rig);
  const [dying] = workers as [RigWorker, RigWorker];
  const call = { workers, body: bodyOf(200), migrations: 3 };
  const answers = [9, 30].map((isl) => ask(rig, { ...call, tokens: promptOf(isl) }));
  await rig.clock.runFor(300);
  dying.engine.setFaults({ crashOnMarker: [7, 7] });
  ask(rig, { ...call, migrations: 0, tokens: Uint32Array.of(7, 7) });
  await rig.clock.runFor(5_000);
  expect(answers.map(({ errors }) => errors)).toEqual([[], []]);
  expect(answers.map(({ tokens }) => tokens)).toEqual([tokensOf(9, 200), tokensOf(30, 200)]);
  const last = beats.filter(({ card }) => card.inst === dying.worker.inst).at(-1);
  expect(last).toMatchObject({ goodbye: true, card: { state: "draining" } });
  expect(dying.worker.ready()).toBe(false);
  await expectQuiet(rig, workers);
});

it("keeps a hung engine's stream alive with heartbeats until the owner gives up", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  one.engine.setFaults({ hangAfterTokens: 5 });
  const answer = ask(rig, { workers: [one], tokens: promptOf(9), body: bodyOf(50) });
  await rig.clock.runFor(20_000);
  expect(answer.tokens).toEqual(tokensOf(9, 5));
  expect(answer.errors).toEqual([]);
  await rig.clock.runFor(20_000);
  expect(answer.errors.map(({ code }) => code)).toEqual(["stream_idle"]);
  expect(one.worker.active()).toBe(0);
  await expectQuiet(rig, [one]);
});

it("ends a request at its deadline", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const near = addDispatcher(rig, "near");
  one.engine.setFaults({ freeze: true });
  const { frames } = route(rig, one, [near]);
  await rig.clock.runFor(60_200);
  expect(frames.at(-1)).toMatchObject({ type: "error", code: "deadline_exceeded" });
  expect(near.ofType("finished")).toMatchObject([{ outcome: "error" }]);
  one.engine.setFaults({ freeze: false });
  await expectQuiet(rig, [one]);
});

it("drains: refuses new requests, finishes what fits in the grace", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const beats = hearHeartbeats(rig);
  const answer = ask(rig, { workers: [one], tokens: promptOf(9), body: bodyOf(50) });
  await rig.clock.runFor(50);
  const drained = one.worker.drain(5_000);
  await rig.clock.runFor(10);
  expect(beats.at(-1)).toMatchObject({ goodbye: false, card: { state: "draining" } });
  const { receipts } = route(rig, one, []);
  await rig.clock.runFor(3_000);
  await drained;
  expect(receipts).toMatchObject([{ type: "refused", code: "worker_draining" }]);
  expect(answer.tokens).toEqual(tokensOf(9, 50));
  expect(answer.ends).toHaveLength(1);
  expect(beats.at(-1)).toMatchObject({ goodbye: true });
  await expectQuiet(rig, [one]);
});

it("drains: at the end of the grace owners migrate the rest", async () => {
  const rig = newRig();
  const workers = [await addWorker(rig), await addWorker(rig)];
  const [leaving, staying] = workers as [RigWorker, RigWorker];
  const body = bodyOf(400);
  const answer = ask(rig, { workers, tokens: promptOf(9), body, migrations: 3 });
  const near = addDispatcher(rig, "near", true);
  leaving.engine.setFaults({ slowFactor: 10 });
  await rig.clock.runFor(200);
  // This one waits behind a slow pass, without output when the grace ends.
  const { frames } = route(rig, leaving, [near], { prompt: promptOf(90, 900) });
  await rig.clock.runFor(10);
  const drained = leaving.worker.drain(500);
  await rig.clock.runFor(4_000);
  await drained;
  expect(leaving.worker.active()).toBe(0);
  expect(near.ofType("failed")).toMatchObject([{ code: "worker_draining" }]);
  expect(frames.filter(({ type }) => type === "error")).toEqual([]);
  await rig.clock.runFor(4_000);
  expect(answer.errors).toEqual([]);
  expect(answer.tokens).toEqual(tokensOf(9, 400));
  expect(staying.worker.active()).toBe(0);
  await expectQuiet(rig, workers);
});
