/**
 * One process of the stream bench: `node stream-bench-process.js <role> <url> <inst> <next>`. Roles
 *
 *   relay-worker            answers a JSON request with one JSON message per token
 *   relay-router <next>     opens a stream of its own, parses and prints every message (baseline)
 *   worker                  ours: stream sender, bundles or JSON as the request asks
 *   router <next>           ours: passes the request on, answers with the receipt, sees no token
 *   dispatcher <next>       the routers' dispatcher with a policy that knows one next hop
 *   client                  asks closed-loop and counts tokens
 *
 * The baseline's frames have the fields of ours and are parsed without checks, as cheaply as JSON
 * allows; it has no receipts, acknowledgements or timers. An engine step makes one token for every
 * running stream, one step per loop turn. The parent talks over IPC: `cpu` answers this process's
 * CPU time, `go` (client) runs one window and says `idle` when its last stream has ended.
 */
import { realClock } from "../src/base/clock.ts";
import { osRandom, randomHex128 } from "../src/base/random.ts";
import { encodeReceipt } from "../src/protocol/receipts.ts";
import {
  decodeDispatch,
  encodeDispatch,
  encodeDispatchJson,
} from "../src/protocol/request-frame.ts";
import { attemptNumber, type Dispatch } from "../src/protocol/requests.ts";
import { decodeControl, encodeControlReply } from "../src/protocol/stream-control.ts";
import { decodeJsonFrame } from "../src/protocol/stream-json.ts";
import { controlSubject, generateSubject, type InstanceKind } from "../src/protocol/subjects.ts";
import type { Bus, BusMessage } from "../src/runtime/bus.ts";
import { Dispatcher } from "../src/runtime/dispatcher.ts";
import { connectNatsBus } from "../src/runtime/nats-bus.ts";
import { NoticeOutbox } from "../src/runtime/notice-outbox.ts";
import { createStreamOwner } from "../src/runtime/stream-owner.ts";
import { createStreamSender, type SenderStream } from "../src/runtime/stream-sender.ts";

export type ClientMode = "relay" | "json" | "bundle" | "prompt-json" | "prompt-frame";

export interface Go {
  readonly type: "go";
  readonly mode: ClientMode;
  /** Instance asked: a router, or a worker for no hop. */
  readonly inst: string;
  readonly streams: number;
  /** Tokens of one answer. */
  readonly outputTokens: number;
  readonly warmupMs: number;
  readonly windowMs: number;
}

export interface Counted {
  readonly type: "counted";
  readonly units: number;
  readonly ms: number;
  /** Answers that ended with an error: on a busy machine some are accepted too late. */
  readonly failed: number;
}

const promptTokens = Uint32Array.from({ length: 16 }, (_, index) => index);
const encoder = new TextEncoder();
const decoder = new TextDecoder();
/** Kinds of the instances that are not asked as workers are. */
const kinds: Readonly<Record<string, InstanceKind>> = {
  "dispatcher-a": "global",
  "dispatcher-b": "local",
};
const kindOf = (inst: string): InstanceKind => kinds[inst] ?? "w";
const subjectOf = (inst: string): string => generateSubject(kindOf(inst), inst);

/** Calls `step` once per loop turn while it says that there is work. */
function loop(step: () => boolean): () => void {
  let running = false;
  const turn = (): void => {
    if (step()) setImmediate(turn);
    else running = false;
  };
  return () => {
    if (running) return;
    running = true;
    setImmediate(turn);
  };
}

interface RelayRequest {
  readonly stop_conditions: { readonly max_tokens: number };
  readonly tiergrid: { readonly rid: string; readonly attempt: number };
}

interface RelayStream {
  readonly reply: string;
  readonly ids: { readonly rid: string; readonly attempt: number };
  readonly total: number;
  made: number;
}

function relayWorker(bus: Bus, inst: string): void {
  const running: RelayStream[] = [];
  const wake = loop(() => {
    for (let index = running.length - 1; index >= 0; index--) {
      const stream = running[index]!;
      const { reply, ids, total, made } = stream;
      const frame = { type: "tokens", ...ids, first: made, token_ids: [1000 + made] };
      bus.publish(reply, encoder.encode(JSON.stringify(frame)));
      stream.made += 1;
      if (stream.made < total) continue;
      const end = { type: "end", ...ids, total, finish_reason: "length" };
      bus.publish(reply, encoder.encode(JSON.stringify(end)));
      running.splice(index, 1);
    }
    return running.length > 0;
  });
  bus.subscribe(subjectOf(inst), ({ payload, reply }) => {
    const request: RelayRequest = JSON.parse(decoder.decode(payload));
    const { rid, attempt } = request.tiergrid;
    const total = request.stop_conditions.max_tokens;
    if (reply !== undefined && total > 0) {
      running.push({ reply, ids: { rid, attempt }, total, made: 0 });
    }
    wake();
  });
}

function relayRouter(bus: Bus, inst: string, next: string): void {
  const callers = new Map<string, string>();
  let opened = 0;
  bus.subscribe(`${bus.inboxPrefix}.r.*`, ({ subject, payload }) => {
    const caller = callers.get(subject);
    if (caller === undefined) return;
    const frame: { type: string } = JSON.parse(decoder.decode(payload));
    bus.publish(caller, encoder.encode(JSON.stringify(frame)));
    if (frame.type === "end") callers.delete(subject);
  });
  bus.subscribe(subjectOf(inst), ({ payload, reply }) => {
    const request: unknown = JSON.parse(decoder.decode(payload));
    const stream = `${bus.inboxPrefix}.r.${opened++}`;
    if (reply !== undefined) callers.set(stream, reply);
    const bytes = encoder.encode(JSON.stringify(request));
    bus.publish(subjectOf(next), bytes, { reply: stream });
  });
}

function worker(bus: Bus, inst: string): void {
  const running: { readonly stream: SenderStream; readonly total: number }[] = [];
  const sender = createStreamSender({
    bus,
    clock: realClock,
    inst,
    epoch: "1",
    onCancel: (cancelled) => {
      const index = running.findIndex(({ stream }) => stream === cancelled);
      if (index >= 0) running.splice(index, 1);
    },
  });
  const notices = new NoticeOutbox(realClock, (subject, payload) => bus.publish(subject, payload));
  const wake = loop(() => {
    let made = 0;
    for (let index = running.length - 1; index >= 0; index--) {
      const { stream, total } = running[index]!;
      if (stream.blocked) continue;
      const { rid, attempt, notify } = stream.envelope;
      if (stream.made === 0)
        notices.add(notify, { type: "first_output", rid, attempt, ttft_ms: 1 });
      stream.push({ tokenIds: [1000 + stream.made] });
      made += 1;
      if (stream.made < total) continue;
      stream.end({ finishReason: "length" });
      const told = { outcome: "ok", output_tokens: total } as const;
      notices.add(notify, { type: "finished", rid, attempt, ...told });
      running.splice(index, 1);
    }
    sender.flush();
    notices.flush();
    // Without credit an engine waits for the acknowledgement that wakes it.
    return made > 0;
  });
  bus.subscribe(subjectOf(inst), ({ payload, reply }) => {
    const { envelope, body } = decodeDispatch({ payload, reply }, osRandom);
    const place = { workerId: inst, dpRank: 0 };
    const { attempt, decisions } = envelope;
    const receipt = { attempt, inst, epoch: "1", control: controlSubject("w", inst), ...place };
    if (reply !== undefined && reply !== envelope.stream.subject) {
      bus.publish(reply, encodeReceipt({ type: "accepted", ...receipt, decisions }));
    }
    const total = body.stop_conditions?.max_tokens ?? 0;
    if (total === 0) return;
    const stream = sender.open(envelope, place);
    if (typeof stream === "string") return;
    running.push({ stream, total });
    wake();
  });
  bus.subscribe(controlSubject("w", inst), ({ payload, reply }) => {
    const answer = sender.onControl(decodeControl(payload));
    if (reply !== undefined) bus.publish(reply, encodeControlReply(answer));
    wake();
  });
}

function dispatcher(bus: Bus, inst: string, next: string): void {
  const decision = { tier: "global", decision_id: "d", role: "aggregated" } as const;
  const hop = { inst: next, subject: subjectOf(next), control: controlSubject(kindOf(next), next) };
  new Dispatcher({
    bus,
    clock: realClock,
    random: osRandom,
    gate: { open: true },
    inst,
    level: kindOf(inst) === "global" ? "global" : "local",
    policy: {
      admit: () => undefined,
      plan: ({ body }) => ({ type: "send", ...hop, body, decision }),
      attemptFailed: () => {},
      accepted: () => {},
      noticed: () => {},
      ended: () => {},
    },
  });
}

/** Forwards in the form that came: frames as frames, JSON as JSON. */
function router(bus: Bus, inst: string, next: string): void {
  const decision = { tier: "global", decision_id: "d", role: "aggregated" } as const;
  bus.subscribe(subjectOf(inst), async (message: BusMessage) => {
    const dispatch = decodeDispatch(message, osRandom);
    const { envelope } = dispatch;
    const decisions = [...envelope.decisions, decision];
    const forwarded: Dispatch = { ...dispatch, envelope: { ...envelope, decisions } };
    const isJson = message.payload[0] === 0x7b;
    const bytes = isJson ? encodeDispatchJson(forwarded) : encodeDispatch(forwarded);
    const receipt = await bus.request(subjectOf(next), bytes, { timeoutMs: 10_000 });
    if (message.reply !== undefined) bus.publish(message.reply, receipt.payload);
  });
}

interface Counter {
  units: number;
  /** Streams, or requests, that have not ended. */
  open: number;
  failed: number;
  stopped: boolean;
}

/** One stream ended: another one starts, unless the window is over. */
function ended(counter: Counter, ask: () => void): void {
  if (!counter.stopped) {
    ask();
    return;
  }
  counter.open -= 1;
  if (counter.open === 0) process.send?.({ type: "idle" });
}

/** Our owner: the whole protocol with credit, acknowledgements and timers. */
function bundleClient(bus: Bus): (go: Go, counter: Counter) => void {
  const owner = createStreamOwner({ bus, clock: realClock, random: osRandom });
  return (go, counter) => {
    const ask = (): void => {
      owner.call({
        route: () => ({ inst: go.inst, subject: subjectOf(go.inst) }),
        phase: "aggregated",
        body: { model: "m", stop_conditions: { max_tokens: go.outputTokens } },
        tokens: promptTokens,
        deadlineMs: 60_000,
        firstTokenTimeoutMs: 30_000,
        migration: { limit: 0, allowed: false },
        sink: {
          onAccepted: () => {},
          onOutput: (output) => {
            counter.units += output.tokenIds.length;
          },
          onEnd: () => ended(counter, ask),
          onError: () => {
            counter.failed += 1;
            ended(counter, ask);
          },
        },
      });
    };
    for (let stream = 0; stream < go.streams; stream++) ask();
  };
}

/** A plain client of one JSON message per token: the baseline's (`relay`) or our wire's (`json`). */
function jsonClient(bus: Bus): (go: Go, counter: Counter) => void {
  let asked = 0;
  let current: { go: Go; counter: Counter } | undefined;
  const ask = (go: Go): void => {
    const subject = `${bus.inboxPrefix}.j.${asked++}`;
    const dispatch = dispatchTo(subject, promptTokens, go.outputTokens);
    const next = subjectOf(go.inst);
    if (go.mode === "relay") bus.publish(next, encodeDispatchJson(dispatch), { reply: subject });
    else void bus.request(next, encodeDispatch(dispatch), { timeoutMs: 10_000 });
  };
  bus.subscribe(`${bus.inboxPrefix}.j.*`, ({ payload }) => {
    if (!current) return;
    const { go, counter } = current;
    const frame: { readonly type: string } | undefined =
      go.mode === "json" ? decodeJsonFrame(payload)?.frame : JSON.parse(decoder.decode(payload));
    if (frame?.type === "tokens") counter.units += 1;
    else if (frame?.type === "end" || frame?.type === "error") {
      counter.failed += frame.type === "end" ? 0 : 1;
      ended(counter, () => ask(go));
    }
  });
  return (go, counter) => {
    current = { go, counter };
    for (let stream = 0; stream < go.streams; stream++) ask(go);
  };
}

function dispatchTo(subject: string, tokens: Uint32Array, maxTokens: number): Dispatch {
  return {
    envelope: {
      rid: randomHex128(osRandom),
      attempt: attemptNumber({ call: 1, global: 0, local: 0 }),
      first: 0,
      phase: "aggregated",
      deadlineMs: 60_000,
      stream: { subject, format: "json", key: 0, acks: false },
      notify: [],
      avoid: [],
      decisions: [],
    },
    body: { model: "m", stop_conditions: { max_tokens: maxTokens } },
    tokens,
  };
}

/** Requests of 131,072 tokens that a worker accepts and drops; counts receipts. */
function promptClient(bus: Bus): (go: Go, counter: Counter) => void {
  const tokens = Uint32Array.from({ length: 131_072 }, (_, index) => (index * 7919) % 128_000);
  return (go, counter) => {
    const encode = go.mode === "prompt-json" ? encodeDispatchJson : encodeDispatch;
    const ask = async (): Promise<void> => {
      const bytes = encode(dispatchTo(`${bus.inboxPrefix}.none`, tokens, 0));
      await bus.request(subjectOf(go.inst), bytes, { timeoutMs: 20_000 });
      counter.units += 1;
      ended(counter, () => void ask());
    };
    for (let stream = 0; stream < go.streams; stream++) void ask();
  };
}

function client(bus: Bus): void {
  const [bundle, json, prompt] = [bundleClient(bus), jsonClient(bus), promptClient(bus)];
  process.on("message", (go: Go) => {
    if (go.type !== "go") return;
    const counter: Counter = { units: 0, open: go.streams, failed: 0, stopped: false };
    if (go.mode === "bundle") bundle(go, counter);
    else if (go.mode === "json" || go.mode === "relay") json(go, counter);
    else prompt(go, counter);
    setTimeout(() => {
      process.send?.({ type: "warm" });
      const [startMs, startUnits] = [realClock.nowMs(), counter.units];
      setTimeout(() => {
        const { failed } = counter;
        const [units, ms] = [counter.units - startUnits, realClock.nowMs() - startMs];
        counter.stopped = true;
        process.send?.({ type: "counted", units, ms, failed } satisfies Counted);
      }, go.windowMs);
    }, go.warmupMs);
  });
}

async function main(): Promise<void> {
  const [role = "", url = "", inst = "", next = ""] = process.argv.slice(2);
  const busRole = role === "client" ? "fe" : "wk";
  const bus = await connectNatsBus({
    servers: [url],
    role: busRole,
    clock: realClock,
    random: osRandom,
    failFast: true,
  });
  if (role === "relay-worker") relayWorker(bus, inst);
  else if (role === "relay-router") relayRouter(bus, inst, next);
  else if (role === "worker") worker(bus, inst);
  else if (role === "router") router(bus, inst, next);
  else if (role === "dispatcher") dispatcher(bus, inst, next);
  else client(bus);
  await bus.flush();
  process.on("message", (message: { type: string }) => {
    if (message.type === "cpu") process.send?.({ type: "cpu", ...process.cpuUsage() });
  });
  process.on("disconnect", () => process.exit(0));
  process.send?.({ type: "ready" });
}

await main();
