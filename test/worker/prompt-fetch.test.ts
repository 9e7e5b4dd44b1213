import { expect, it } from "vitest";
import { encodePromptAnswer } from "../../src/protocol/prompt-answer.ts";
import { hashPrompt } from "../../src/protocol/prompt-hashes.ts";
import { encodeDispatch } from "../../src/protocol/request-frame.ts";
import { attemptNumber } from "../../src/protocol/requests.ts";
import { readBundle } from "../../src/protocol/stream-bundle.ts";
import type { StreamFrame } from "../../src/protocol/stream-frames.ts";
import { generateSubject } from "../../src/protocol/subjects.ts";
import { promptFetch } from "../../src/worker/prompt-fetch.ts";
import {
  addDispatcher,
  addWorker,
  ask,
  bodyOf,
  type Dispatcher,
  expectQuiet,
  hasher,
  newRig,
  promptOf,
  type Rig,
  type RigWorker,
  tokensOf,
} from "./worker-rig.ts";

const triesMs = promptFetch.triesMax * promptFetch.tryMs;

/** Faults of the questions for prompts, which carry their answers' fate. */
function disturb({ network, bus }: Rig, fault: { loss?: number; delayMinMs?: number }): void {
  network.faults.setMessageFaults([{ subject: `${bus.inboxPrefix}.p`, ...fault }]);
}

it("runs a prompt that came as hashes on its owner's tokens", async () => {
  const rig = newRig();
  const workers = [await addWorker(rig)];
  const hashed = ask(rig, { workers, tokens: promptOf(9), body: bodyOf(20), hashed: true });
  await rig.clock.runFor(1_000);
  expect(hashed.tokens).toEqual(tokensOf(9, 20));
  expect(rig.owner.totals).toMatchObject({ hashedDispatches: 1, promptsHandedOut: 1 });
  const whole = ask(rig, { workers, tokens: promptOf(9), body: bodyOf(2) });
  await rig.clock.runFor(1_000);
  // The cache knows the blocks: the tokens were the same.
  expect(whole.ends[0]?.usage?.prompt_tokens_details).toEqual({ cached_tokens: 8 });
  expect(rig.owner.totals.promptsHandedOut).toBe(1);
  expect(await workers[0]!.metrics.text()).toContain(
    'tiergrid_prompt_fetches_total{outcome="tokens"} 1',
  );
  await expectQuiet(rig, workers);
});

it("asks again for prompts whose questions or answers are lost, late or come twice", async () => {
  const rig = newRig();
  const workers = [await addWorker(rig), await addWorker(rig)];
  const { network, bus, clock } = rig;
  const [{ bus: first }, { bus: second }] = workers as [RigWorker, RigWorker];
  const fault = { loss: 0.3, duplication: 0.3, delayMaxMs: 1_500 };
  network.faults.setMessageFaults(
    [`${bus.inboxPrefix}.p`, `${first.inboxPrefix}.rq.>`, `${second.inboxPrefix}.rq.>`].map(
      (subject) => ({ subject, ...fault }),
    ),
  );
  const answers = Array.from({ length: 40 }, (_, at) =>
    ask(rig, {
      workers: at % 2 === 0 ? workers : workers.toReversed(),
      tokens: promptOf(9 + at),
      body: bodyOf(10),
      hashed: true,
    }),
  );
  await clock.runFor(40_000);
  for (const [at, answer] of answers.entries()) {
    expect(answer.errors).toEqual([]);
    expect(answer.tokens).toEqual(tokensOf(9 + at, 10));
  }
  expect(network.faults.counts.lost).toBeGreaterThan(0);
  expect(network.faults.counts.duplicated).toBeGreaterThan(0);
  await expectQuiet(rig, workers);
});

it("gives an attempt back whose prompt never comes; the owner then sends the tokens", async () => {
  const rig = newRig();
  const workers = [await addWorker(rig), await addWorker(rig)];
  disturb(rig, { loss: 1 });
  const answer = ask(rig, { workers, tokens: promptOf(9), body: bodyOf(5), hashed: true });
  await rig.clock.runFor(triesMs - 1);
  expect(workers[0]!.worker.active()).toBe(1);
  expect(workers[0]!.engine.load()[0]).toMatchObject({ running: 0, waiting: 0 });
  await rig.clock.runFor(2_000);
  expect(answer.tokens).toEqual(tokensOf(9, 5));
  expect(rig.owner.totals).toMatchObject({ dispatches: 2, hashedDispatches: 1, migrations: 0 });
  await expectQuiet(rig, workers);
});

it("gets prompt and tokens so far after a migration in the midst of an answer", async () => {
  const rig = newRig();
  const workers = [await addWorker(rig), await addWorker(rig)];
  workers[0]!.engine.setFaults({ errorAfterTokens: 20 });
  const tokens = promptOf(10);
  const answer = ask(rig, { workers, tokens, body: bodyOf(60), migrations: 1, hashed: true });
  await rig.clock.runFor(3_000);
  expect(answer.tokens).toEqual(tokensOf(10, 60));
  expect(rig.owner.totals).toMatchObject({ migrations: 1, promptsHandedOut: 2 });
  await expectQuiet(rig, workers);
});

it.each(["cancel", "drain", "close"] as const)(
  "lets go of everything at a %s while it asks",
  async (how) => {
    const rig = newRig();
    const one = await addWorker(rig);
    disturb(rig, { delayMinMs: 900 });
    const body = bodyOf(5);
    const answer = ask(rig, { workers: [one], tokens: promptOf(9), body, hashed: true });
    await rig.clock.runFor(400);
    expect(one.worker.active()).toBe(1);
    if (how === "cancel") answer.call.cancel();
    else if (how === "drain") void one.worker.drain(100);
    else void one.worker.close();
    await rig.clock.runFor(200);
    const given = 'tiergrid_prompt_fetches_total{outcome="unwanted"} 1';
    expect(await one.metrics.text()).toContain(given);
    await rig.clock.runFor(3_000);
    expect(answer.tokens).toEqual([]);
    expect(answer.errors).toHaveLength(1);
    await expectQuiet(rig, [one]);
  },
);

it("drops a request whose owner is gone, without troubling its dispatchers", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const near = addDispatcher(rig, "near", true);
  offerHashed(rig, one, { notify: [near], from: `${rig.bus.inboxPrefix}.nobody` });
  await rig.clock.runFor(100);
  expect(one.worker.active()).toBe(1);
  await rig.clock.runFor(triesMs);
  expect(one.worker.active()).toBe(0);
  expect(near.ofType("failed")).toEqual([]);
  expect(near.ofType("finished")).toMatchObject([{ outcome: "cancelled", output_tokens: 0 }]);
  await expectQuiet(rig, [one]);
});

it("drops an attempt that its owner no longer knows", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const from = `${rig.bus.inboxPrefix}.other`;
  rig.bus.subscribe(from, ({ reply }) => rig.bus.publish(reply!, encodePromptAnswer(undefined)));
  const frames = offerHashed(rig, one, { notify: [], from });
  await rig.clock.runFor(100);
  expect(frames.map(({ type }) => type)).toEqual(["accepted"]);
  await expectQuiet(rig, [one]);
});

it("fails an attempt whose prompt has another length than it was announced with", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  const from = `${rig.bus.inboxPrefix}.other`;
  rig.bus.subscribe(from, ({ reply }) => rig.bus.publish(reply!, encodePromptAnswer(promptOf(8))));
  const frames = offerHashed(rig, one, { notify: [], from });
  await rig.clock.runFor(100);
  expect(frames.at(-1)).toMatchObject({
    type: "error",
    code: "invalid_request",
    message: "a prompt of 9 tokens was announced, 8 came",
    retryable: false,
  });
  await expectQuiet(rig, [one]);
});

it("tells the dispatcher when the engine refuses the request behind the prompt", async () => {
  const rig = newRig();
  const one = await addWorker(rig);
  one.engine.setFaults({ rejectRate: 1 });
  const near = addDispatcher(rig, "near", true);
  const from = `${rig.bus.inboxPrefix}.other`;
  rig.bus.subscribe(from, ({ reply }) => rig.bus.publish(reply!, encodePromptAnswer(promptOf(9))));
  offerHashed(rig, one, { notify: [near], from });
  await rig.clock.runFor(500);
  expect(near.ofType("failed")).toMatchObject([{ code: "overloaded" }]);
  await expectQuiet(rig, [one]);
});

/** Sends a prompt of 9 tokens as hashes; `from` hands it out. Answers the frames that come. */
function offerHashed(
  { bus }: Rig,
  { worker }: RigWorker,
  { notify, from }: { readonly notify: readonly Dispatcher[]; readonly from: string },
): StreamFrame[] {
  const frames: StreamFrame[] = [];
  const subject = `${bus.inboxPrefix}.frames`;
  bus.subscribe(subject, ({ payload }) => {
    readBundle(payload, (_key, frame) => frames.push(frame));
  });
  const envelope = {
    ...{ rid: "e".repeat(32), attempt: attemptNumber({ call: 1, global: 0, local: 0 }), first: 0 },
    phase: "aggregated",
    ...{ deadlineMs: 60_000, promptFrom: from, avoid: [], decisions: [] },
    stream: { subject, format: "bundle", key: 1, acks: false },
    notify: notify.map((dispatcher) => dispatcher.subject),
  } as const;
  const { islTokens, local: localHashes } = hashPrompt(hasher, {}, promptOf(9), 4);
  const prompt = { type: "hashes", islTokens, blockSize: 4, localHashes } as const;
  const reply = `${bus.inboxPrefix}.receipt`;
  const payload = encodeDispatch({ envelope, body: bodyOf(5), prompt });
  bus.publish(generateSubject("w", worker.inst), payload, { reply });
  return frames;
}
