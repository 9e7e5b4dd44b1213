/**
 * One process of the stream bench: `node stream-bench-process.js <role> <url> <inst> <next>`. Roles
 *
 *   plain-worker, plain-router <next>, plain-client   the baseline: `baselines/relay.ts`
 *   relay-worker, relay-router <next>                 the same on our bus; `client` asks
 *   worker                  ours: stream sender, bundles or JSON as the request asks
 *   router <next>           ours: passes the request on, and a receipt back where one comes; sees no token
 *   dispatcher <next>       the routers' dispatcher with a policy that knows one next hop
 *   client                  asks and counts: `stream-bench-client.ts`
 *   sink                    readers of server-sent events: `stream-bench-sse.ts`
 *
 * An engine step makes one token for every running stream, one step per loop turn; an answer that
 * asks for a paced engine gets its first token at once and one every 20 ms. The parent talks over
 * IPC: `cpu` answers this process's CPU time, `go` (clients) runs one window and says `idle` when
 * its last stream has ended.
 */
import { realClock } from "../src/base/clock.ts";
import { osRandom } from "../src/base/random.ts";
import { isFrame } from "../src/protocol/frame-layout.ts";
import { encodeReceipt } from "../src/protocol/receipts.ts";
import { decodeDispatch, passFrame, readDispatch } from "../src/protocol/request-frame.ts";
import { encodeDispatchJson } from "../src/protocol/request-json.ts";
import type { Envelope } from "../src/protocol/requests.ts";
import { decodeControl, encodeControlReply } from "../src/protocol/stream-control.ts";
import { controlSubject, noticeSubject } from "../src/protocol/subjects.ts";
import type { Bus, BusMessage } from "../src/runtime/bus.ts";
import { Dispatcher } from "../src/runtime/dispatcher.ts";
import { connectNatsBus } from "../src/runtime/nats-bus.ts";
import { acceptedWithinMs, NoticeOutbox } from "../src/runtime/notice-outbox.ts";
import { letHeapGrow } from "../src/runtime/process.ts";
import { createStreamSender, type SenderStream } from "../src/runtime/stream-sender.ts";
import { busWire, plainWire, type RelayWire, relayRouter, relayWorker } from "./baselines/relay.ts";
import { client, plainClient } from "./stream-bench-client.ts";
import { acceptTimeoutMs, kindOf, loop, pacedStepMs, subjectOf } from "./stream-bench-go.ts";
import { sink } from "./stream-bench-sse.ts";

interface Running {
  readonly stream: SenderStream;
  readonly total: number;
}

function worker(bus: Bus, inst: string): void {
  /** Streams that get a token every loop turn, or every paced step. */
  const [running, paced]: [Running[], Running[]] = [[], []];
  const sender = createStreamSender({
    bus,
    clock: realClock,
    inst,
    epoch: "1",
    onCancel: (cancelled) => {
      for (const list of [running, paced]) {
        const index = list.findIndex(({ stream }) => stream === cancelled);
        if (index >= 0) list.splice(index, 1);
      }
    },
  });
  const notices = new NoticeOutbox(realClock, (subject, payload) => bus.publish(subject, payload));
  const make = ({ stream, total }: Running): void => {
    const { rid, attempt } = stream.envelope;
    const notify = toldBy(stream.envelope);
    if (stream.made === 0) {
      notices.tell(notify, { type: "first_output", rid, attempt, ttft_ms: 1 });
    }
    stream.push({ tokenIds: [1000 + stream.made] });
    if (stream.made < total) return;
    stream.end({ finishReason: "length" });
    const told = { outcome: "ok", output_tokens: total } as const;
    notices.tell(notify, { type: "finished", rid, attempt, ...told });
  };
  const flush = (): void => {
    sender.flush();
    notices.flush();
  };
  const step = (list: Running[]): number => {
    let made = 0;
    for (let index = list.length - 1; index >= 0; index--) {
      const one = list[index]!;
      if (one.stream.blocked) continue;
      make(one);
      made += 1;
      if (one.stream.made >= one.total) list.splice(index, 1);
    }
    flush();
    return made;
  };
  // Without credit an engine waits for the acknowledgement that wakes it.
  const wake = loop(() => step(running) > 0);
  setInterval(() => step(paced), pacedStepMs);
  bus.subscribe(subjectOf(inst), ({ payload, reply }) => {
    const { envelope, body } = decodeDispatch({ payload, reply }, osRandom);
    const place = { workerId: inst, dpRank: 0 };
    const { rid, attempt, decisions } = envelope;
    const receipt = { attempt, inst, epoch: "1", control: controlSubject("w", inst), ...place };
    if (envelope.acceptNotice) {
      const accepted = { type: "accepted", rid, attempt, inst, waited_ms: 0 } as const;
      notices.tellLater(toldBy(envelope), accepted, acceptedWithinMs);
    } else if (reply !== undefined && reply !== envelope.stream.subject) {
      bus.publish(reply, encodeReceipt({ type: "accepted", ...receipt, decisions }));
    }
    const total = body.stop_conditions?.max_tokens ?? 0;
    if (total === 0) return;
    const stream = sender.open(envelope, place);
    if (typeof stream === "string") return;
    const one = { stream, total };
    if (body.extra_args?.["paced"] === true) {
      make(one);
      flush();
      paced.push(one);
      return;
    }
    running.push(one);
    wake();
  });
  bus.subscribe(controlSubject("w", inst), ({ payload, reply }) => {
    const answer = sender.onControl(decodeControl(payload));
    if (reply !== undefined) bus.publish(reply, encodeControlReply(answer));
    wake();
  });
}

/** Dispatchers hear notices; bare routers keep no books. */
function toldBy({ notify }: Envelope): readonly string[] {
  return notify.filter((subject) => subject.includes("dispatcher"));
}

const decision = { tier: "global", decision_id: "d", role: "aggregated" } as const;

function dispatcher(bus: Bus, inst: string, next: string): void {
  const hop = { inst: next, subject: subjectOf(next), control: controlSubject(kindOf(next), next) };
  new Dispatcher({
    bus,
    clock: realClock,
    random: osRandom,
    gate: { open: true },
    acceptTimeoutMs,
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

/** Forwards in the form that came, the body as it stands: frames as frames, JSON as JSON. */
function router(bus: Bus, inst: string, next: string): void {
  bus.subscribe(subjectOf(inst), async (message: BusMessage) => {
    if (!isFrame(message.payload)) {
      await passWithReceipt(bus, message, next, passedJson(message));
      return;
    }
    const { dispatch, frame } = readDispatch(message, osRandom);
    const { attempt, phase, deadlineMs, acceptNotice } = dispatch.envelope;
    const own = { progress: false, decision, noticeSubject: noticeSubject(inst), body: undefined };
    const bytes = passFrame(frame, { attempt, phase, deadlineMs, ...own });
    const { reply } = message;
    // Without books, a refusal goes straight to who asked.
    if (!acceptNotice) await passWithReceipt(bus, message, next, bytes);
    else bus.publish(subjectOf(next), bytes, reply === undefined ? {} : { reply });
  });
}

async function passWithReceipt(bus: Bus, message: BusMessage, next: string, bytes: Uint8Array) {
  const receipt = await bus.request(subjectOf(next), bytes, { timeoutMs: 10_000 });
  if (message.reply !== undefined) bus.publish(message.reply, receipt.payload);
}

function passedJson(message: BusMessage): Uint8Array {
  const { prompt, envelope, body } = decodeDispatch(message, osRandom);
  if (prompt.type === "hashes") throw new Error("JSON carries tokens");
  const decisions = [...envelope.decisions, decision];
  return encodeDispatchJson({ envelope: { ...envelope, decisions }, body, prompt });
}

async function main(): Promise<void> {
  // As every process of the product does; the baseline's too.
  letHeapGrow();
  const [role = "", url = "", inst = "", next = ""] = process.argv.slice(2);
  if (role === "sink") {
    sink(Number(url), Number(inst));
    return;
  }
  if (role.startsWith("plain-")) {
    const wire = await plainWire(url);
    if (role === "plain-client") plainClient(wire);
    else relay(role, wire, inst, next);
    await wire.flush();
    ready();
    return;
  }
  const busRole = role === "client" ? "fe" : "wk";
  const bus = await connectNatsBus({
    servers: [url],
    role: busRole,
    clock: realClock,
    random: osRandom,
    failFast: true,
  });
  if (role.startsWith("relay-")) relay(role, busWire(bus), inst, next);
  else if (role === "worker") worker(bus, inst);
  else if (role === "router") router(bus, inst, next);
  else if (role === "dispatcher") dispatcher(bus, inst, next);
  else client(bus);
  await bus.flush();
  ready();
}

function relay(role: string, wire: RelayWire, inst: string, next: string): void {
  if (role.endsWith("worker")) relayWorker(wire, inst);
  else relayRouter(wire, inst, next);
}

function ready(): void {
  process.on("message", (message: { type: string }) => {
    if (message.type === "cpu") process.send?.({ type: "cpu", ...process.cpuUsage() });
  });
  process.on("disconnect", () => process.exit(0));
  process.send?.({ type: "ready" });
}

await main();
