import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { TiergridError } from "../../src/base/errors.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { encodeNotices } from "../../src/protocol/notice-frame.ts";
import { encodeNotice, type Notice } from "../../src/protocol/notices.ts";
import { decodeReceipt, encodeReceipt } from "../../src/protocol/receipts.ts";
import { decodeDispatch, encodeDispatch } from "../../src/protocol/request-frame.ts";
import {
  attemptNumber,
  type Dispatch,
  type Receipt,
  type RequestBody,
} from "../../src/protocol/requests.ts";
import { decodeControl, encodeControl } from "../../src/protocol/stream-control.ts";
import type { ControlMessage, StreamFrame } from "../../src/protocol/stream-frames.ts";
import { decodeJsonFrame } from "../../src/protocol/stream-json.ts";
import { controlSubject, generateSubject, noticeSubject } from "../../src/protocol/subjects.ts";
import type { DispatchPolicy, Plan } from "../../src/runtime/dispatch-policy.ts";
import { Dispatcher, dispatcherDefaults } from "../../src/runtime/dispatcher.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";

/** `swift`: the answer is over before its receipt arrives. */
type Hop = "accept" | "swift" | "refuse" | "invalid" | "mute";
interface State {
  readonly tried: string[];
  booked: boolean;
  readonly ends: string[];
  lastError?: TiergridError;
}

const rid = "0123456789abcdef0123456789abcdef";
const firstCall = attemptNumber({ call: 1, global: 0, local: 0 });

/** A dispatcher whose policy tries the hops in order, each a worker that answers as told. */
function rig(hops: readonly Hop[]) {
  const clock = new ManualClock();
  const random = mulberry32(5);
  const network = createMemoryNetwork({ clock, random });
  const bus = network.connect({ role: "lo" });
  const outside = network.connect({ role: "wk" });
  const states: State[] = [];
  const gate = { open: true };
  const waits = { count: 0 };
  /** What the policy sends instead of the body that came. */
  const bodies: { sent?: RequestBody } = {};
  const policy: DispatchPolicy<State> = {
    admit() {
      const state: State = { tried: [], booked: false, ends: [] };
      states.push(state);
      return state;
    },
    plan({ state, body }): Plan {
      if (waits.count > 0) {
        waits.count -= 1;
        return { type: "wait", waitMs: 50 };
      }
      const inst = hops.map((_, index) => String(index)).find((at) => !state.tried.includes(at));
      const error = state.lastError ?? new TiergridError("no_endpoints", "nobody");
      if (inst === undefined || !error.retryable) return { type: "refuse", error };
      state.booked = true;
      state.tried.push(inst);
      const subject = generateSubject("w", inst);
      const control = controlSubject("w", inst);
      const decision = { tier: "local", decision_id: inst, role: "aggregated" } as const;
      return { type: "send", inst, subject, control, body: bodies.sent ?? body, decision };
    },
    attemptFailed({ state }, error) {
      state.booked = false;
      state.lastError = error;
    },
    accepted() {},
    noticed() {},
    ended({ state }, cause) {
      state.booked = false;
      state.ends.push(cause);
    },
  };
  const dispatcher = new Dispatcher({
    bus,
    clock,
    random,
    gate,
    inst: "9",
    level: "local",
    policy,
  });
  const seen: Dispatch[] = [];
  const controls: (ControlMessage & { readonly hop: string })[] = [];
  hops.forEach((hop, index) => {
    const inst = String(index);
    outside.subscribe(controlSubject("w", inst), ({ payload }) => {
      controls.push({ ...decodeControl(payload), hop: inst });
    });
    outside.subscribe(generateSubject("w", inst), (message) => {
      const dispatch = decodeDispatch(message, random);
      seen.push(dispatch);
      const receipt = receiptOf(hop, inst, dispatch);
      const { reply } = message;
      if (!receipt || !reply) return;
      const answer = (): void => outside.publish(reply, encodeReceipt(receipt));
      if (hop !== "swift") return answer();
      outside.publish(noticeSubject("9"), encodeNotice(finished(dispatch.envelope.attempt)));
      clock.after(20, answer);
    });
  });
  const frames: StreamFrame[] = [];
  outside.subscribe(`${outside.inboxPrefix}.stream`, ({ payload }) => {
    const addressed = decodeJsonFrame(payload);
    if (addressed) frames.push(addressed.frame);
  });
  const ask = (change: Partial<Dispatch["envelope"]> = {}, body = {}): Promise<Receipt> => {
    const stream = {
      subject: `${outside.inboxPrefix}.stream`,
      format: "json",
      key: 0,
      acks: false,
    };
    const envelope = {
      ...{ rid, attempt: firstCall, first: 0, phase: "aggregated", deadlineMs: 60_000, stream },
      ...{ notify: [], avoid: [], decisions: [] },
      ...change,
    } as Dispatch["envelope"];
    const prompt = { type: "tokens", tokens: Uint32Array.of(1, 2, 3) } as const;
    const payload = encodeDispatch({ envelope, body, prompt });
    return outside
      .request(generateSubject("local", "9"), payload, { timeoutMs: 10_000 })
      .then((reply) => decodeReceipt(reply.payload));
  };
  const tell = (notice: Notice): void => {
    outside.publish(noticeSubject("9"), encodeNotice(notice));
  };
  const fail = (attempt: number, code: "engine_error" | "invalid_request" = "engine_error") =>
    outside
      .request(
        noticeSubject("9"),
        encodeNotice({
          type: "failed",
          rid,
          attempt,
          code,
          message: "it broke",
          worker_lost: false,
        }),
        { timeoutMs: 1000 },
      )
      .then(({ payload }) => JSON.parse(new TextDecoder().decode(payload)).taken as boolean);
  const run = async <T>(promise: Promise<T>, ms = 5000): Promise<T> => {
    let settled = false;
    const done = (): void => {
      settled = true;
    };
    promise.then(done, done);
    await clock.runUntil(() => settled, ms);
    return promise;
  };
  const shared = { clock, random, dispatcher, states, seen, controls, frames, gate, waits };
  return { ...shared, bodies, outside, ask, tell, fail, run };
}

function receiptOf(hop: Hop, inst: string, { envelope }: Dispatch): Receipt | undefined {
  if (hop === "mute") return undefined;
  if (hop !== "accept" && hop !== "swift") {
    const code = hop === "refuse" ? "overloaded" : "invalid_request";
    return { type: "refused", code, message: `hop ${inst} says no` };
  }
  const { attempt, decisions } = envelope;
  const epoch = "e";
  const control = controlSubject("w", inst);
  return { type: "accepted", attempt, inst, epoch, control, workerId: inst, dpRank: 0, decisions };
}

const finished = (attempt: number): Notice => ({
  ...{ type: "finished", rid, attempt, outcome: "ok", output_tokens: 3 },
});

it("sends the next hop the body that came, or the one its policy made of it", async () => {
  const { ask, run, seen, bodies } = rig(["accept"]);
  const body = { model: "m", routing: { dp_rank: 0 }, extra_args: { tiergrid: "é" } };
  await run(ask({}, body));
  expect(seen[0]?.body).toEqual(body);
  bodies.sent = { ...body, routing: { dp_rank: 3 } };
  await run(ask({ rid: rid.replace("0", "f") }, body));
  expect(seen[1]?.body).toEqual(bodies.sent);
});

it("passes the worker's acceptance on and puts itself in front of the notify list", async () => {
  const { ask, run, seen, dispatcher, tell, clock, states } = rig(["accept"]);
  const receipt = await run(ask({ notify: [noticeSubject("8")] }));
  expect(receipt).toMatchObject({ type: "accepted", inst: "0", attempt: firstCall });
  expect(seen[0]?.envelope.notify).toEqual([noticeSubject("9"), noticeSubject("8")]);
  expect(seen[0]?.envelope.decisions.map((decision) => decision.decision_id)).toEqual(["0"]);
  expect(dispatcher.entries.size).toBe(1);
  tell(finished(firstCall));
  await clock.runFor(10);
  expect(dispatcher.entries.size).toBe(0);
  expect(states[0]).toMatchObject({ booked: false, ends: ["finished"] });
});

it("takes notices as records, and counts a message that it cannot read", async () => {
  const { ask, run, outside, dispatcher, clock, states } = rig(["accept"]);
  await run(ask());
  const ended = encodeNotices([
    { type: "first_output", rid, attempt: firstCall, ttft_ms: 1 },
    { type: "finished", rid, attempt: firstCall, outcome: "ok", output_tokens: 3 },
  ]);
  outside.publish(noticeSubject("9"), ended.subarray(0, -1));
  await clock.runFor(10);
  expect([dispatcher.totals.lateNotices, dispatcher.entries.size]).toEqual([1, 1]);
  outside.publish(noticeSubject("9"), ended);
  await clock.runFor(10);
  expect(states[0]).toMatchObject({ booked: false, ends: ["finished"] });
});

it("passes the acceptance of an answer on that was over before its receipt came", async () => {
  const { ask, run, dispatcher, states } = rig(["swift"]);
  expect(await run(ask())).toMatchObject({ type: "accepted", inst: "0" });
  expect(dispatcher.entries.size).toBe(0);
  expect(states[0]).toMatchObject({ booked: false, ends: ["finished"] });
});

it("hears of an acceptance by a notice where the owner waits for no receipt", async () => {
  const { ask, seen, dispatcher, tell, clock, states, controls } = rig(["mute", "accept"]);
  const receipts: Receipt[] = [];
  void ask({ acceptNotice: true }).then((receipt) => receipts.push(receipt));
  await clock.runFor(200);
  expect(seen.map(({ envelope }) => envelope.acceptNotice)).toEqual([true]);
  tell({ type: "accepted", rid, attempt: firstCall, inst: "0", waited_ms: 9 });
  // Twice is once, and silence is over.
  tell({ type: "accepted", rid, attempt: firstCall, inst: "0", waited_ms: 9 });
  await clock.runFor(1_000);
  const [entry] = dispatcher.entries.values();
  expect(entry).toMatchObject({ phase: "accepted", worker: { inst: "0" } });
  expect([seen.length, controls.length, receipts.length]).toEqual([1, 0, 0]);
  tell(finished(firstCall));
  await clock.runFor(10);
  expect([dispatcher.entries.size, states[0]?.ends]).toEqual([0, ["finished"]]);
});

it("does not take the acceptance of an attempt it gave up for that of the next", async () => {
  const { ask, dispatcher, tell, clock, outside, seen } = rig(["mute", "mute"]);
  const late = ask({ acceptNotice: true });
  await clock.runFor(400);
  expect(seen).toHaveLength(2);
  tell({ type: "accepted", rid, attempt: firstCall, inst: "0", waited_ms: 9 });
  outside.publish(
    noticeSubject("9"),
    Buffer.from(JSON.stringify({ type: "accepted", rid, attempt: firstCall + 1 })),
  );
  await clock.runFor(10);
  expect([...dispatcher.entries.values()].map(({ phase }) => phase)).toEqual(["open"]);
  expect(dispatcher.totals.lateNotices).toBe(2);
  await clock.runFor(1_000);
  expect(await late).toMatchObject({ type: "refused", code: "accept_timeout" });
});

it("offers a refused request to the next hop, under a higher attempt", async () => {
  const { ask, run, seen } = rig(["refuse", "accept"]);
  expect(await run(ask())).toMatchObject({ type: "accepted", inst: "1" });
  expect(seen.map(({ envelope }) => envelope.attempt)).toEqual([firstCall, firstCall + 1]);
});

it("cancels a silent hop before it asks the next", async () => {
  const { ask, run, controls } = rig(["mute", "accept"]);
  expect(await run(ask())).toMatchObject({ type: "accepted", inst: "1" });
  expect(controls).toMatchObject([{ type: "cancel", hop: "0", attempt: firstCall }]);
});

it("does not take a hop for silent while its own bus is in doubt", async () => {
  const { ask, clock, gate, controls } = rig(["mute", "accept"]);
  gate.open = false;
  const answer = ask();
  await clock.runFor(10 * dispatcherDefaults.acceptTimeoutMs);
  expect(controls).toEqual([]);
  gate.open = true;
  await clock.runFor(2 * dispatcherDefaults.acceptTimeoutMs);
  expect(controls).toMatchObject([{ type: "cancel", hop: "0" }]);
  expect(await answer).toMatchObject({ type: "accepted", inst: "1" });
});

it("refuses with the last hop's reason when nobody is left, and books nothing", async () => {
  const { ask, run, states, dispatcher } = rig(["refuse", "refuse"]);
  const receipt = await run(ask());
  expect(receipt).toMatchObject({ type: "refused", code: "overloaded", message: "hop 1 says no" });
  expect(states[0]).toMatchObject({ booked: false, ends: ["refused"] });
  expect(dispatcher.entries.size).toBe(0);
});

it("does not raise the attempt while it waits for a hop", async () => {
  const { ask, run, seen, waits, fail, clock } = rig(["accept", "accept"]);
  await run(ask());
  waits.count = 20;
  expect(await run(fail(firstCall))).toBe(true);
  await clock.runFor(2000);
  expect(seen.map(({ envelope }) => envelope.attempt)).toEqual([firstCall, firstCall + 1]);
});

it("tells the owner while it waits that the request is alive", async () => {
  const { ask, run, frames, waits } = rig(["accept"]);
  waits.count = 20;
  await run(ask());
  expect(frames.length).toBeGreaterThanOrEqual(3);
  expect(frames[0]).toMatchObject({ type: "heartbeat", phase: "queued" });
});

it("takes a request back that failed before its first output", async () => {
  const { ask, run, fail, seen, clock } = rig(["accept", "accept"]);
  await run(ask());
  expect(await run(fail(firstCall))).toBe(true);
  await clock.runFor(100);
  expect(seen.map(({ envelope }) => envelope.attempt)).toEqual([firstCall, firstCall + 1]);
});

it("does not take a request back once output has left the worker", async () => {
  const { ask, run, fail, tell, clock } = rig(["accept", "accept"]);
  await run(ask());
  tell({ type: "first_output", rid, attempt: firstCall, ttft_ms: 5 });
  await clock.runFor(10);
  expect(await run(fail(firstCall))).toBe(false);
});

it("passes a failure up when no hop is left, else tells the owner", async () => {
  const above = noticeSubject("8");
  for (const taken of [true, false]) {
    const { ask, run, fail, outside, frames, clock, states } = rig(["accept"]);
    const asked: string[] = [];
    outside.subscribe(above, ({ payload, reply }) => {
      const notice = JSON.parse(new TextDecoder().decode(payload)) as Notice;
      if (notice.type !== "failed") return;
      asked.push(notice.code);
      if (reply) outside.publish(reply, new TextEncoder().encode(JSON.stringify({ taken })));
    });
    await run(ask({ notify: [above] }));
    expect(await run(fail(firstCall))).toBe(true);
    await clock.runFor(1000);
    expect(asked).toEqual(["engine_error"]);
    const errors = frames.filter(({ type }) => type === "error");
    expect(errors).toMatchObject(taken ? [] : [{ code: "engine_error", started: false }]);
    expect(states[0]).toMatchObject({ booked: false, ends: ["refused"] });
  }
});

it("lets a newer call replace an older one and stops the older attempt", async () => {
  const { ask, run, controls, states, dispatcher } = rig(["accept", "accept"]);
  await run(ask());
  const second = attemptNumber({ call: 2, global: 0, local: 0 });
  expect(await run(ask({ attempt: second }))).toMatchObject({ type: "accepted" });
  expect(controls).toMatchObject([{ type: "cancel", attempt: firstCall, hop: "0" }]);
  expect(states[0]?.ends).toEqual(["superseded"]);
  expect(dispatcher.entries.size).toBe(1);
  const older = await run(ask({ attempt: firstCall }));
  expect(older).toMatchObject({ type: "refused", code: "duplicate_request" });
});

it("answers a request that is delivered twice only once", async () => {
  const { ask, run, clock, states, dispatcher } = rig(["accept", "accept"]);
  expect(await run(ask())).toMatchObject({ type: "accepted" });
  let answered = false;
  void ask().then(
    () => {
      answered = true;
    },
    () => {},
  );
  await clock.runFor(100);
  expect(answered).toBe(false);
  expect(states).toHaveLength(1);
  expect(dispatcher.entries.size).toBe(1);
});

it("cancels a request that no hop has accepted", async () => {
  const { ask, run, outside, clock, controls, states } = rig(["mute"]);
  const receipt = ask();
  await clock.runFor(50);
  const cancel = encodeControl({ type: "cancel", rid, attempt: firstCall });
  outside.publish(controlSubject("local", "9"), cancel);
  expect(await run(receipt)).toMatchObject({ type: "refused", code: "cancelled" });
  expect(controls).toMatchObject([{ type: "cancel", hop: "0" }]);
  expect(states[0]).toMatchObject({ booked: false, ends: ["cancelled"] });
});

it("frees as lost what nothing has named for 12 s, but not while its own bus is in doubt", async () => {
  const { ask, run, clock, tell, gate, states, dispatcher } = rig(["accept"]);
  await run(ask());
  for (let beat = 0; beat < 6; beat++) {
    await clock.runFor(5000);
    tell({ type: "active", inst: "0", requests: [{ rid, attempt: firstCall }] });
  }
  expect(dispatcher.entries.size).toBe(1);
  gate.open = false;
  await clock.runFor(20_000);
  expect(dispatcher.entries.size).toBe(1);
  gate.open = true;
  await clock.runFor(11_000);
  expect(dispatcher.entries.size).toBe(1);
  await clock.runFor(3000);
  expect(states[0]?.ends).toEqual(["lost"]);
});

it("ends the entries of a worker that is gone", async () => {
  const { ask, run, dispatcher, states } = rig(["accept"]);
  await run(ask());
  dispatcher.workerGone("0");
  expect(states[0]).toMatchObject({ booked: false, ends: ["worker_lost"] });
});

it("refuses what it cannot read, and new requests while it drains", async () => {
  const { run, outside, dispatcher, ask } = rig(["accept"]);
  const answerTo = async (text: string): Promise<Uint8Array> => {
    const payload = new TextEncoder().encode(text);
    const reply = outside.request(generateSubject("local", "9"), payload, { timeoutMs: 1000 });
    return (await run(reply)).payload;
  };
  const refused = { type: "refused", code: "invalid_request" };
  for (const text of ['{"tiergrid":{"stream":{"subject":"_INBOX.x"}}}', "TG"]) {
    expect(decodeReceipt(await answerTo(text))).toMatchObject(refused);
  }
  // Who names no stream follows its reply subject.
  for (const text of ["{}", "{", '{"tiergrid":7}']) {
    const frame = { type: "error", code: "invalid_request", started: false };
    expect(decodeJsonFrame(await answerTo(text))).toMatchObject({ frame });
  }
  await run(dispatcher.drain(1000));
  expect(await run(ask())).toMatchObject({ type: "refused", code: "subscriber_shutdown" });
});

it("leaves answers under way alone when it closes", async () => {
  const { ask, run, clock, controls, dispatcher, states } = rig(["accept"]);
  await run(ask());
  dispatcher.close();
  await clock.runFor(100);
  expect(controls).toEqual([]);
  expect(states[0]).toMatchObject({ booked: false });
  expect(clock.pending()).toBe(0);
});
