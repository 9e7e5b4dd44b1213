/** Owner and senders on the in-process bus: every answer ends once, exact, and leaves nothing. */
import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { TiergridError } from "../../src/base/errors.ts";
import { mulberry32, randomInt } from "../../src/base/random.ts";
import { decodeNotices } from "../../src/protocol/notice-frame.ts";
import { encodeReceipt } from "../../src/protocol/receipts.ts";
import { decodeDispatch, encodeDispatch } from "../../src/protocol/request-frame.ts";
import { readBundle } from "../../src/protocol/stream-bundle.ts";
import type { StreamFrame } from "../../src/protocol/stream-frames.ts";
import { generateSubject, noticeSubject } from "../../src/protocol/subjects.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";
import { streamDefaults } from "../../src/runtime/stream-defaults.ts";
import {
  type CancelCause,
  createStreamSender,
  type SenderStream,
} from "../../src/runtime/stream-sender.ts";
import {
  type Answer,
  ask,
  exactTokens,
  expectNothingLeft,
  expectWhole,
  routeInOrder,
  routeTo,
  startFleet,
} from "./stream-fleet.ts";

it("streams an answer and leaves nothing behind", async () => {
  const fleet = startFleet(1, [{}]);
  const answer = ask(fleet);
  await fleet.clock.runFor(2_000);
  expectWhole(answer);
  await answer.call.done;
  expect(answer.accepted).toEqual(["w0"]);
  expect(answer.ends[0]).toMatchObject({ total: 50, finishReason: "length" });
  expect(fleet.workers[0]!.sender.held).toBe(0);
  expect(fleet.owner.totals).toMatchObject({ dispatches: 1, migrations: 0, gaps: 0, skipped: 0 });
  await expectNothingLeft(fleet);
});

it("carries every stream of a step to one owner in one message", async () => {
  const fleet = startFleet(1, [{}]);
  const answers = Array.from({ length: 40 }, () => ask(fleet));
  await fleet.clock.runFor(2_000);
  for (const answer of answers) expectWhole(answer);
  // One `accepted` per stream, then one message per step.
  expect(fleet.workers[0]!.sender.totals.messages).toBeLessThanOrEqual(40 + 52);
});

it("moves to another worker when one dies, with every token exactly once", async () => {
  const fleet = startFleet(2, [{}, {}]);
  const answers = Array.from({ length: 8 }, () => ask(fleet));
  await fleet.clock.runFor(400);
  await fleet.workers[0]!.kill();
  await fleet.clock.runFor(3_000);
  for (const answer of answers) expectWhole(answer);
  expect(fleet.owner.totals.migrations).toBe(8);
  const [moved] = fleet.workers[1]!.dispatches;
  const made = moved!.envelope.first;
  expect(moved!.envelope.avoid).toEqual(["w0"]);
  expect(moved!.body.stop_conditions).toEqual({
    max_tokens: 50 - made,
    min_tokens: Math.max(0, 4 - made),
  });
  const { prompt } = moved!;
  const tail = prompt.type === "tokens" ? prompt.tokens.slice(5) : [];
  expect([...tail]).toEqual(exactTokens(answers[0]!, made));
});

it("tries the next worker when one is silent or gone before it accepted", async () => {
  const fleet = startFleet(3, [{ mute: true }, {}, {}]);
  await fleet.workers[1]!.kill();
  const answer = ask(fleet);
  await fleet.clock.runFor(3_000);
  expectWhole(answer);
  expect(answer.accepted).toEqual(["w2"]);
  expect(fleet.owner.totals).toMatchObject({ dispatches: 3, migrations: 0 });
  await expectNothingLeft(fleet);
});

it("ends with the refusal when nobody else can be asked", async () => {
  const fleet = startFleet(3, []);
  const router = fleet.network.connect({ role: "gl" });
  const receipt = {
    type: "refused",
    code: "queue_rejected",
    message: "the queue is full",
    retryAfterMs: 700,
  } as const;
  router.subscribe(generateSubject("global", "g1"), ({ reply }) => {
    if (reply) router.publish(reply, encodeReceipt(receipt));
  });
  const route = { inst: "g1", subject: generateSubject("global", "g1") };
  const answer = ask(fleet, { route: (avoid) => (avoid.length === 0 ? route : undefined) });
  await fleet.clock.runFor(10);
  expect(answer.errors).toMatchObject([
    { code: "queue_rejected", message: "the queue is full", details: { retryAfterMs: 700 } },
  ]);
  const nobody = ask(fleet, { route: () => undefined });
  expect(nobody.errors).toMatchObject([{ code: "no_endpoints" }]);
  expect(fleet.owner.open).toBe(0);
});

it("does not ask again after an error that another worker would repeat", async () => {
  const fleet = startFleet(3, [{ failAfter: 3 }, { failAfter: 3 }]);
  const rule = { limit: 0, allowed: true };
  const answer = ask(fleet, { migration: rule });
  await fleet.clock.runFor(1_000);
  expect(answer.errors).toMatchObject([{ code: "engine_error" }]);
  expect(answer.tokens).toEqual(exactTokens(answer, 3));
  const migrating = ask(fleet, { migration: { limit: 3, allowed: true } });
  const guided = ask(fleet, { migration: { limit: 3, allowed: false } });
  const long = ask(fleet, { migration: { limit: 3, allowed: true, maxSeqTokens: 7 } });
  await fleet.clock.runFor(3_000);
  expect(migrating.tokens).toEqual(exactTokens(migrating, 12));
  expect(migrating.errors).toHaveLength(1);
  expect(guided.tokens).toHaveLength(3);
  expect(long.tokens).toHaveLength(3);
  await expectNothingLeft(fleet);
});

it("ends at the limit when only the end was lost with the worker", async () => {
  const fleet = startFleet(4, [{}]);
  const answer = ask(fleet, { maxTokens: 10 });
  await fleet.clock.runUntil(() => answer.tokens.length === 9, 5_000);
  fleet.network.faults.setMessageFaults([{ subject: "_R.fe.*.s", loss: 1 }]);
  await fleet.clock.runUntil(() => fleet.workers[0]!.sender.active().length === 0, 5_000);
  fleet.network.faults.setMessageFaults([]);
  await fleet.clock.runUntil(() => answer.tokens.length === 10, 1_000);
  await fleet.workers[0]!.kill();
  await fleet.clock.runFor(4_000);
  expectWhole(answer, 10);
});

it("cancels at the worker, wherever the request is", async () => {
  const fleet = startFleet(5, [{}]);
  const running = ask(fleet);
  await fleet.clock.runFor(200);
  const early = ask(fleet);
  early.call.cancel();
  running.call.cancel();
  running.call.cancel();
  const aborted = new AbortController();
  const never = ask(fleet, { signal: AbortSignal.abort() });
  const later = ask(fleet, { signal: aborted.signal });
  await fleet.clock.runFor(100);
  aborted.abort();
  await fleet.clock.runFor(100);
  for (const answer of [running, early, never, later]) {
    expect(answer.errors).toMatchObject([{ code: "cancelled" }]);
    expect(answer.ends).toEqual([]);
  }
  expect(fleet.workers[0]!.cancels).toContain("cancelled");
  expect(fleet.workers[0]!.sender.active()).toEqual([]);
  await expectNothingLeft(fleet);
});

it("ends by the deadline, with an error, and tells the worker", async () => {
  const fleet = startFleet(6, [{ itlMs: 100 }]);
  const answer = ask(fleet, { deadlineMs: 1_000 });
  await fleet.clock.runFor(1_000);
  expect(answer.errors).toMatchObject([{ code: "deadline_exceeded" }]);
  await fleet.clock.runFor(10);
  expect(fleet.workers[0]!.cancels).toHaveLength(1);
});

it("stops the worker while it is paused, and loses nothing", async () => {
  const fleet = startFleet(7, [{ itlMs: 5 }]);
  const answer = ask(fleet, { maxTokens: 1_000 });
  await fleet.clock.runFor(100);
  answer.call.pause();
  await fleet.clock.runFor(8_000);
  const before = answer.tokens.length;
  expect(before).toBeLessThan(300);
  await fleet.clock.runFor(8_000);
  expect(answer.tokens).toHaveLength(before);
  answer.call.resume();
  await fleet.clock.runFor(8_000);
  expectWhole(answer, 1_000);
  expect(fleet.owner.totals.migrations).toBe(0);
});

it("stops a worker whose owner has gone, and one whose owner stays paused", async () => {
  const fleet = startFleet(8, [{ itlMs: 5 }]);
  const options = { maxTokens: 1_000, deadlineMs: 600_000 };
  const paused = ask(fleet, options);
  paused.call.pause();
  await fleet.clock.runFor(33_000);
  expect(fleet.workers[0]!.cancels).toEqual(["stalled"]);
  expect(paused.errors).toMatchObject([{ code: "cancelled" }]);
  ask(fleet, { ...options, maxTokens: 100_000 });
  await fleet.clock.runFor(100);
  await fleet.bus.close();
  await fleet.clock.runFor(10_200);
  expect(fleet.workers[0]!.cancels).toEqual(["stalled", "orphaned"]);
});

it("refuses a request that took workers down, for a minute", async () => {
  const fleet = startFleet(9, [{}, {}, {}, {}, {}]);
  const crash = async (answer: Answer): Promise<void> => {
    for (const worker of fleet.workers) {
      const runs = () => answer.errors.length > 0 || worker.sender.active().length > 0;
      await fleet.clock.runUntil(runs, 3_000);
      await fleet.clock.runFor(100);
      if (answer.errors.length > 0) return;
      await worker.kill();
    }
  };
  const poison = ask(fleet, { promptTokens: 3, migration: { limit: 10, allowed: true } });
  await crash(poison);
  expect(poison.errors).toMatchObject([{ code: "poison_request" }]);
  const [again, other] = [ask(fleet, { promptTokens: 3 }), ask(fleet, { promptTokens: 4 })];
  expect(again.errors).toMatchObject([{ code: "poison_request" }]);
  await fleet.clock.runFor(3_000);
  expectWhole(other);
  await fleet.clock.runFor(60_000);
  const later = ask(fleet, { promptTokens: 3 });
  await fleet.clock.runFor(3_000);
  expectWhole(later);
});

it("tells the dispatchers how the answer went", async () => {
  const fleet = startFleet(10, [{}]);
  const router = fleet.network.connect({ role: "gl" });
  const closed: unknown[] = [];
  router.subscribe(noticeSubject("g1"), ({ payload }) => {
    closed.push(...decodeNotices(payload));
  });
  const decision = { tier: "global", decision_id: "d9", role: "aggregated" } as const;
  router.subscribe(generateSubject("global", "g1"), ({ payload, reply }) => {
    const dispatch = decodeDispatch({ payload, reply }, fleet.random);
    const notify = [noticeSubject("g1")];
    const envelope = { ...dispatch.envelope, notify, decisions: [decision] };
    const next = encodeDispatch({ ...dispatch, envelope });
    router.publish(routeTo("w0").subject, next, reply ? { reply } : {});
  });
  const route = { inst: "g1", subject: generateSubject("global", "g1") };
  const answer = ask(fleet, { route: () => route, priorDecisionIds: ["d1"] });
  await fleet.clock.runFor(2_000);
  expectWhole(answer);
  expect(closed).toMatchObject([
    {
      type: "closed",
      rid: answer.call.rid,
      outcome: "ok",
      ttft_ms: expect.any(Number),
      output_tokens: 50,
      decision_ids: ["d1", "d9"],
      itl: { count: 49, sum_ms: 980, buckets: [0, 0, 0, 0, 0, 49, 0, 0, 0, 0, 0, 0, 0, 0] },
    },
  ]);
});

it("answers at once while the broker is down, and carries running answers over the outage", async () => {
  const fleet = startFleet(11, [{}, {}]);
  const running = ask(fleet);
  await fleet.clock.runFor(300);
  fleet.network.faults.brokerDown();
  const refused = ask(fleet);
  await fleet.clock.runFor(50);
  expect(refused.errors).toMatchObject([{ code: "disconnected" }]);
  await fleet.clock.runFor(450);
  fleet.network.faults.brokerUp();
  await fleet.clock.runFor(4_000);
  expectWhole(running);
  expect(fleet.owner.totals.migrations).toBe(0);
});

it("moves nothing while the broker hangs, and goes on as soon as it wakes", async () => {
  const fleet = startFleet(13, [{}, {}]);
  const { network, clock } = fleet;
  const everybody = [fleet.bus, ...fleet.workers.map(({ bus }) => bus)];
  const answers = Array.from({ length: 6 }, (_, index) =>
    ask(fleet, { maxTokens: 400, route: routeInOrder(fleet, index) }),
  );
  await clock.runFor(500);
  const before = answers.map(({ tokens }) => tokens.length);
  network.faults.freeze(...everybody);
  await clock.runFor(4_000);
  expect(answers.map(({ tokens }) => tokens.length)).toEqual(before);
  network.faults.thaw(...everybody);
  await clock.runFor(300);
  for (const [index, { tokens }] of answers.entries()) {
    expect(tokens.length).toBeGreaterThan(before[index]! + 150);
  }
  await clock.runFor(10_000);
  for (const answer of answers) expectWhole(answer, 400);
  expect(fleet.owner.totals).toMatchObject({ migrations: 0, dispatches: 6 });
});

it("goes on soon after acknowledgements were lost until the credit was used up", async () => {
  const fleet = startFleet(21, [{ itlMs: 5 }]);
  const { network, clock } = fleet;
  const answers = Array.from({ length: 8 }, () => ask(fleet, { maxTokens: 400 }));
  await clock.runFor(300);
  network.faults.setMessageFaults([{ subject: "tg.w.*.ctl", loss: 1 }]);
  await clock.runFor(2_000);
  const stuck = answers.map(({ tokens }) => tokens.length);
  for (const count of stuck) expect(count).toBeLessThan(350);
  network.faults.setMessageFaults([]);
  // A heartbeat, and the acknowledgement that answers it.
  await clock.runFor(streamDefaults.heartbeatMs + streamDefaults.ackMs + 100);
  for (const [index, { tokens }] of answers.entries()) {
    expect(tokens.length).toBeGreaterThan(stuck[index]!);
  }
  await clock.runFor(3_000);
  for (const answer of answers) expectWhole(answer, 400);
  expect(fleet.owner.totals).toMatchObject({ migrations: 0, dispatches: 8 });
});

it("moves when a worker freezes for long, and not when it freezes for a moment", async () => {
  const fleet = startFleet(14, [{}, {}]);
  const { network, clock, workers } = fleet;
  const answer = ask(fleet, { maxTokens: 300 });
  await clock.runFor(500);
  network.faults.freeze(workers[0]!.bus);
  await clock.runFor(600);
  network.faults.thaw(workers[0]!.bus);
  await clock.runFor(500);
  expect(fleet.owner.totals.migrations).toBe(0);
  network.faults.cut(workers[0]!.bus);
  await clock.runFor(1_500);
  network.faults.heal(workers[0]!.bus);
  await clock.runFor(8_000);
  expectWhole(answer, 300);
  expect(fleet.owner.totals.migrations).toBe(1);
});

it("fails a stream whose frame is larger than the bus takes, and only that", async () => {
  const clock = new ManualClock();
  const random = mulberry32(1);
  const network = createMemoryNetwork({ clock, random, maxPayloadBytes: 100_000 });
  const causes: CancelCause[] = [];
  const sender = createStreamSender({
    bus: network.connect({ role: "wk" }),
    clock,
    inst: "w",
    epoch: "1",
    onCancel: (_stream, cause) => causes.push(cause),
  });
  const frames: StreamFrame[] = [];
  network.connect({ role: "fe" }).subscribe("_R.fe.me.s", ({ payload }) => {
    readBundle(payload, (_key, frame) => frames.push(frame));
  });
  const open = (key: number): SenderStream => {
    const stream = { subject: "_R.fe.me.s", format: "bundle", key, acks: true } as const;
    const { envelope } = decodeDispatch(
      { payload: new TextEncoder().encode('{"token_ids":[1]}'), reply: "_R.fe.me.s" },
      random,
    );
    return sender.open({ ...envelope, stream }, { workerId: "1", dpRank: 0 }) as SenderStream;
  };
  const [small, large] = [open(1), open(2)];
  small.push({ tokenIds: [1] });
  large.push({ tokenIds: [2], text: "x".repeat(200_000) });
  small.push({ tokenIds: [3] });
  sender.flush();
  large.push({ tokenIds: [4] });
  sender.flush();
  await clock.runFor(60);
  expect(causes).toEqual(["oversized"]);
  const seen = frames.filter(({ type }) => type !== "accepted");
  expect(seen).toMatchObject([{ first: 0 }, { first: 1 }, { code: "payload_too_large" }]);
  sender.close();
  expect(causes).toEqual(["oversized", "closing"]);
});

it("ends the call, and only that, whose sink throws", async () => {
  const fleet = startFleet(12, [{}]);
  const good = ask(fleet);
  const errors: TiergridError[] = [];
  fleet.owner.call({
    route: routeInOrder(fleet),
    phase: "aggregated",
    body: {},
    tokens: Uint32Array.of(1),
    deadlineMs: 10_000,
    firstTokenTimeoutMs: 5_000,
    migration: { limit: 3, allowed: true },
    sink: {
      onAccepted: () => {},
      onOutput: () => {
        throw new TiergridError("internal_error", "a broken sink");
      },
      onEnd: () => expect.unreachable(),
      onError: (error) => errors.push(error),
    },
  });
  await fleet.clock.runFor(2_000);
  expect(errors).toMatchObject([{ message: "a broken sink" }]);
  expectWhole(good);
});

/** A random mix of answers and faults; every answer must be exact or cleanly refused. */
async function runStorm(seed: number): Promise<void> {
  const fleet = startFleet(seed, [{}, { itlMs: 7 }, { itlMs: 35 }, { failAfter: 20 }]);
  const { random, network, clock } = fleet;
  const inbox = "_R.fe.*.s";
  const rules = [
    { subject: inbox, loss: random() * 0.2, duplication: random() * 0.2, delayMaxMs: 60 },
    { subject: "tg.w.*.ctl", loss: random() * 0.2, delayMaxMs: 30 },
  ];
  network.faults.setMessageFaults(rules);
  const answers = Array.from({ length: 6 }, (_, index) =>
    ask(fleet, {
      promptTokens: 2 + index,
      maxTokens: randomInt(random, 1, 120),
      route: routeInOrder(fleet, index),
      migration: { limit: 6, allowed: true },
    }),
  );
  await clock.runFor(randomInt(random, 0, 900));
  const victim = fleet.workers[randomInt(random, 0, 3)]!;
  if (random() < 0.5) await victim.kill();
  else {
    network.faults.freeze(victim.bus);
    clock.after(randomInt(random, 100, 3_000), () => network.faults.thaw(victim.bus));
  }
  if (random() < 0.3) {
    network.faults.brokerDown();
    clock.after(randomInt(random, 50, 700), () => network.faults.brokerUp());
  }
  await clock.runFor(59_990);
  for (const answer of answers) {
    expect(answer.ends.length + answer.errors.length).toBe(1);
    expect(answer.tokens).toEqual(exactTokens(answer));
    if (answer.ends[0]) expect(answer.tokens).toHaveLength(answer.ends[0].total);
  }
  network.faults.setMessageFaults([]);
  await expectNothingLeft(fleet);
}

it("keeps every answer exact under loss, doubling, delay, freezes, deaths and broker restarts", async () => {
  const start = Number(process.env["SEED"] ?? 1);
  for (let seed = start; seed < start + 15; seed++) {
    await runStorm(seed).catch((error) => {
      throw new Error(`SEED=${seed}`, { cause: error });
    });
  }
});
