/**
 * The baseline of the stream bench: requests and tokens relayed by two routers.
 *
 *   client ──JSON──▶ router a ──JSON──▶ router b ──JSON──▶ worker
 *      ◀──a message per token── parse, print ◀── parse, print ◀──┘
 *
 * Each router opens a stream of its own for every request. Messages have the fields of ours and are
 * parsed without checks; there are no receipts, acknowledgements or timers. It runs on two wires:
 * `plainWire` is the public client of NATS as its documentation says, and owes nothing to our code;
 * `busWire` is our bus. One wildcard subscription holds all streams of a process on either.
 */
import { connect, createInbox, type Msg } from "nats";
import { type Random, randomHex128 } from "../../src/base/random.ts";
import type { Bus } from "../../src/runtime/bus.ts";
import { loop } from "../stream-bench-go.ts";

/** JSON messages. */
export interface RelayWire {
  /** Prefix of this connection's own subjects. */
  readonly inbox: string;
  send(subject: string, message: unknown, reply?: string): void;
  /** `receive` gets the parsed message. */
  listen(subject: string, receive: Receive): void;
  flush(): Promise<void>;
}

type Receive = (message: unknown, subject: string, reply: string | undefined) => void;

export async function plainWire(url: string): Promise<RelayWire> {
  const connection = await connect({ servers: url });
  return {
    inbox: createInbox(),
    send(subject, message, reply) {
      connection.publish(subject, JSON.stringify(message), reply === undefined ? {} : { reply });
    },
    listen(subject, receive) {
      const callback = (_: unknown, message: Msg): void =>
        receive(message.json(), message.subject, message.reply);
      connection.subscribe(subject, { callback });
    },
    flush: () => connection.flush(),
  };
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();
/** The baseline cannot repair a message that the bus sheds; of long answers up to 11 MB wait. */
const unshed = { traffic: "control" } as const;

export function busWire(bus: Bus): RelayWire {
  return {
    inbox: `${bus.inboxPrefix}.relay`,
    send(subject, message, reply) {
      const options = reply === undefined ? unshed : { ...unshed, reply };
      bus.publish(subject, encoder.encode(JSON.stringify(message)), options);
    },
    listen(subject, receive) {
      bus.subscribe(subject, (message) => {
        receive(JSON.parse(decoder.decode(message.payload)), message.subject, message.reply);
      });
    },
    flush: () => bus.flush(),
  };
}

interface RelayRequest {
  readonly rid: string;
  readonly attempt: number;
  readonly model: string;
  readonly stop_conditions: { readonly max_tokens: number };
  readonly token_ids: readonly number[];
}

/** What a relay and a client look at in a frame. */
interface RelayFrame {
  readonly type: "tokens" | "end";
}

interface RelayStream {
  readonly reply: string;
  readonly ids: { readonly rid: string; readonly attempt: number };
  readonly total: number;
  made: number;
}

const subjectOf = (inst: string): string => `tg.relay.${inst}`;

/** Makes one token a loop turn for every running stream, and one message of it. */
export function relayWorker(wire: RelayWire, inst: string): void {
  const running: RelayStream[] = [];
  const wake = loop(() => {
    for (let index = running.length - 1; index >= 0; index--) {
      const stream = running[index]!;
      const { reply, ids, total, made } = stream;
      wire.send(reply, { type: "tokens", ...ids, first: made, token_ids: [1000 + made] });
      stream.made += 1;
      if (stream.made < total) continue;
      wire.send(reply, { type: "end", ...ids, total, finish_reason: "length" });
      running.splice(index, 1);
    }
    return running.length > 0;
  });
  wire.listen(subjectOf(inst), (message, _, reply) => {
    const { rid, attempt, stop_conditions } = message as RelayRequest;
    const ids = { rid, attempt };
    const total = stop_conditions.max_tokens;
    if (reply === undefined) return;
    if (total === 0) wire.send(reply, { type: "end", ...ids, total, finish_reason: "length" });
    else {
      running.push({ reply, ids, total, made: 0 });
      wake();
    }
  });
}

/** Passes requests on to `next`, and every message of their streams back. */
export function relayRouter(wire: RelayWire, inst: string, next: string): void {
  const callers = new Map<string, string>();
  let opened = 0;
  wire.listen(`${wire.inbox}.*`, (message, subject) => {
    const caller = callers.get(subject);
    if (caller === undefined) return;
    wire.send(caller, message);
    if ((message as RelayFrame).type === "end") callers.delete(subject);
  });
  wire.listen(subjectOf(inst), (message, _, reply) => {
    const stream = `${wire.inbox}.${opened++}`;
    if (reply !== undefined) callers.set(stream, reply);
    wire.send(subjectOf(next), message, stream);
  });
}

export interface RelayAsk {
  readonly inst: string;
  readonly maxTokens: number;
  readonly tokenIds: readonly number[];
}

/** A client of many streams; `token` and `end` are called for each of them. */
export function relayClient(
  wire: RelayWire,
  random: Random,
): (ask: RelayAsk, token: () => void, end: () => void) => void {
  interface Open {
    readonly token: () => void;
    readonly end: () => void;
  }
  const open = new Map<string, Open>();
  let asked = 0;
  wire.listen(`${wire.inbox}.*`, (message, subject) => {
    const stream = open.get(subject);
    if ((message as RelayFrame).type === "tokens") stream?.token();
    else if (open.delete(subject)) stream?.end();
  });
  return ({ inst, maxTokens, tokenIds }, token, end) => {
    const subject = `${wire.inbox}.${asked++}`;
    const rid = randomHex128(random);
    const limits = { stop_conditions: { max_tokens: maxTokens } };
    open.set(subject, { token, end });
    const request = { rid, attempt: 1_048_576, model: "m", ...limits, token_ids: tokenIds };
    wire.send(subjectOf(inst), request satisfies RelayRequest, subject);
  };
}
