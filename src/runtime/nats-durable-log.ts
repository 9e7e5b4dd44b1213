/**
 * The durable log on JetStream, over a connection of its own: a large snapshot must not stand in the
 * way of requests. The connection is dialled by the first call that needs it and by each one after
 * a loss; nothing here repeats a call.
 *
 *   call ──▶ life: client, js, jsm ──▶ answer, or an error by the deadline or at the loss
 */
import {
  AckPolicy,
  type Consumer,
  DeliverPolicy,
  type JetStreamClient,
  type JetStreamManager,
  type JsMsg,
  type KV,
  NatsError,
  nanos,
  type ObjectStore,
  RetentionPolicy,
  StorageType,
} from "nats";
import { type Clock, sleep } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import { type Random, randomHex128 } from "../base/random.ts";
import { type BusRole, inboxPrefix } from "../protocol/subjects.ts";
import {
  batchMessagesMax,
  type ConsumerView,
  type DurableBatch,
  type DurableConsumer,
  type DurableLock,
  type DurableLog,
  type DurableNames,
  type DurableObject,
  lockTtlMs,
  retentionMs,
} from "./durable-log.ts";
import type { NatsBusOptions } from "./nats-bus.ts";
import { dialNats, type NatsClient } from "./nats-bus-client.ts";

export interface NatsDurableLogOptions
  extends Pick<NatsBusOptions, "servers" | "credentials" | "tls"> {
  readonly names: DurableNames;
  readonly role: BusRole;
  readonly clock: Clock;
  readonly random: Random;
}

/** Deadline of a call; of one that moves an object. */
const callMs = 5_000;
const objectMs = 60_000;
/** Shortest wait that the client lets a pull have. */
const pullMsMin = 1_000;
/** What an answer may take beyond the wait. */
const pullGraceMs = 1_000;
/** Of a stream; the oldest go first, as with age. */
const messagesMax = 10_000_000;
const objectChunkBytes = 128 * 1024;
const ackPendingMax = 64 * batchMessagesMax;

/** Error codes of the JetStream API. */
const missingCodes: ReadonlySet<number> = new Set([10014, 10037, 10059]);
const notEnabledCode = 10039;
const wrongSequenceCode = 10071;
const noResponders = "503";

interface Life {
  readonly client: NatsClient;
  readonly js: JetStreamClient;
  readonly jsm: JetStreamManager;
  /** Rejects when the connection ends; never resolves. */
  readonly lost: Promise<never>;
}

interface Session extends NatsDurableLogOptions {
  life: Promise<Life> | undefined;
  nextServer: number;
  closed: boolean;
}

/** Opens nothing yet. */
export function createNatsDurableLog(options: NatsDurableLogOptions): DurableLog {
  const session: Session = { ...options, life: undefined, nextServer: 0, closed: false };
  const { names } = options;
  const { stream } = names;
  return {
    open: () => run(session, callMs, (life) => open(life, names)),
    append: (subject, payload) =>
      run(session, callMs, async ({ js }) => {
        const ack = await js.publish(subject, payload, { expect: { streamName: stream } });
        return ack.seq;
      }),
    state: () => run(session, callMs, ({ jsm }) => stateOf(jsm, stream)),
    purgeThrough: (sequence) =>
      run(session, callMs, async ({ jsm }) => {
        await jsm.streams.purge(stream, { seq: sequence + 1 });
      }),
    consumer: (name, fromSequence) =>
      run(session, callMs, async (life) => {
        await makeConsumer(life, stream, name, fromSequence);
        return readerOf(session, stream, name);
      }),
    consumers: () => run(session, callMs, ({ jsm }) => listConsumers(jsm, stream)),
    deleteConsumer: (name) =>
      run(session, callMs, async ({ jsm }) => {
        await unlessMissing(jsm.consumers.delete(stream, name));
      }),
    putObject: (name, parts, note) =>
      run(session, objectMs, async (life) => {
        const bucket = await bucketOf(life, names);
        const meta = { name, description: note, options: { max_chunk_size: objectChunkBytes } };
        await bucket.put(meta, streamOf(parts, options.clock), { timeout: objectMs });
      }),
    getObject: (name) => run(session, objectMs, (life) => getObject(session, life, name)),
    noteOf: (name) =>
      run(session, callMs, async (life) => {
        const info = await (await bucketOf(life, names)).info(name);
        return info && !info.deleted ? (info.description ?? "") : undefined;
      }),
    deleteObject: (name) =>
      run(session, callMs, async (life) => {
        await (await bucketOf(life, names)).delete(name);
      }),
    reset: () =>
      run(session, callMs, async (life) => {
        await life.jsm.streams.purge(stream);
        await (await bucketOf(life, names)).destroy();
        await open(life, names);
      }),
    lock: (name, owner) => run(session, callMs, (life) => takeLock(session, life, name, owner)),
    close: () => close(session),
  };
}

/** Runs `work` on the current connection until the deadline or the loss of the connection. */
async function run<T>(
  session: Session,
  deadlineMs: number,
  work: (life: Life) => Promise<T>,
): Promise<T> {
  const wait = new AbortController();
  const late = sleep(session.clock, deadlineMs, wait.signal).then(() => {
    throw new TiergridError("request_timeout", `JetStream: no answer in ${deadlineMs} ms`);
  });
  // The loser of a race is of no interest, and must not count as unhandled.
  late.catch(() => {});
  try {
    const life = await Promise.race([lifeOf(session), late]);
    const answer = work(life);
    answer.catch(() => {});
    return await Promise.race([answer, life.lost, late]);
  } catch (thrown) {
    throw errorOf(thrown);
  } finally {
    wait.abort();
  }
}

function lifeOf(session: Session): Promise<Life> {
  if (session.closed) throw new TiergridError("bus_closed", "the durable log is closed");
  session.life ??= dial(session).catch((thrown: unknown) => {
    session.life = undefined;
    throw thrown;
  });
  return session.life;
}

async function dial(session: Session): Promise<Life> {
  const { servers, credentials, tls, role, clock, random } = session;
  const server = servers[session.nextServer++ % servers.length];
  if (server === undefined) throw new TiergridError("config_invalid", "no server is given");
  let lose = (_error: TiergridError): void => {};
  const lost = new Promise<never>((_, reject) => {
    lose = reject;
  });
  lost.catch(() => {});
  const client = await dialNats({
    ...{ server, clock, name: `tiergrid-${role}-durable` },
    inboxPrefix: inboxPrefix(role, randomHex128(random).slice(0, 16)),
    ...(credentials ? { credentials } : {}),
    ...(tls ? { tls } : {}),
    onLost: (why) => {
      session.life = undefined;
      lose(new TiergridError("disconnected", `the connection to JetStream was lost: ${why}`));
    },
    onError: () => {}, // A refused permission ends its call by the deadline.
  });
  if (session.closed) client.destroy();
  const limits = { timeout: callMs };
  try {
    const jsm = await client.connection.jetstreamManager(limits);
    return { client, jsm, js: client.connection.jetstream(limits), lost };
  } catch (thrown) {
    client.destroy();
    throw thrown instanceof NatsError && thrown.code === noResponders ? noJetStream() : thrown;
  }
}

async function open({ js, jsm }: Life, names: DurableNames): Promise<void> {
  await jsm.streams.add({
    name: names.stream,
    subjects: [names.subjects],
    retention: RetentionPolicy.Limits,
    storage: StorageType.File,
    max_age: nanos(retentionMs),
    max_msgs: messagesMax,
  });
  await js.views.os(names.bucket, { storage: StorageType.File });
  await js.views.kv(names.locks, { ttl: lockTtlMs, history: 1 });
}

async function stateOf(jsm: JetStreamManager, stream: string) {
  const { state } = await jsm.streams.info(stream);
  const { messages, first_seq, last_seq } = state;
  return {
    firstSequence: messages === 0 ? last_seq + 1 : first_seq,
    lastSequence: last_seq,
    messages,
  };
}

async function makeConsumer(
  { jsm }: Life,
  stream: string,
  name: string,
  fromSequence: number,
): Promise<void> {
  if ((await unlessMissing(jsm.consumers.info(stream, name))) !== undefined) return;
  await jsm.consumers.add(stream, {
    durable_name: name,
    ack_policy: AckPolicy.All,
    deliver_policy: DeliverPolicy.StartSequence,
    opt_start_seq: Math.max(1, fromSequence),
    ack_wait: nanos(objectMs),
    max_ack_pending: ackPendingMax,
    // What no router deletes, the server does.
    inactive_threshold: nanos(retentionMs),
  });
}

/** Keeps its consumer's description for the life of a connection only. */
function readerOf(session: Session, stream: string, name: string): DurableConsumer {
  let bound: { readonly life: Life; readonly consumer: Consumer } | undefined;
  const pull = async (life: Life, waitMs: number): Promise<DurableBatch> => {
    if (bound?.life !== life) {
      bound = { life, consumer: await life.js.consumers.get(stream, name) };
    }
    // What is there at once, else the first to come: no pull is left behind half answered.
    const present = life.js.fetch(stream, name, { batch: batchMessagesMax, no_wait: true });
    const messages: JsMsg[] = [];
    for await (const message of present) messages.push(message);
    if (messages.length > 0) return batchOf(messages);
    const first = await bound.consumer.next({ expires: waitMs });
    return batchOf(first ? [first] : []);
  };
  return {
    async next(wishedMs) {
      const waitMs = Math.max(pullMsMin, wishedMs);
      try {
        return await run(session, waitMs + pullGraceMs, (life) => pull(life, waitMs));
      } catch (thrown) {
        if (errorOf(thrown).code !== "request_timeout") throw thrown;
        // Servers leave pulls from a missing consumer without an answer.
        await run(session, callMs, ({ jsm }) => jsm.consumers.info(stream, name));
        throw thrown;
      }
    },
  };
}

function batchOf(messages: readonly JsMsg[]): DurableBatch {
  return {
    messages: messages.map(({ seq, data }) => ({ sequence: seq, payload: data })),
    acknowledge: () => messages.at(-1)?.ack(),
  };
}

async function listConsumers(jsm: JetStreamManager, stream: string): Promise<ConsumerView[]> {
  const views: ConsumerView[] = [];
  for await (const { name, ack_floor, config } of jsm.consumers.list(stream)) {
    const before = (config.opt_start_seq ?? 1) - 1;
    views.push({ name, acknowledgedSequence: Math.max(before, ack_floor.stream_seq) });
  }
  return views;
}

function bucketOf({ js }: Life, { bucket }: DurableNames): Promise<ObjectStore> {
  return js.views.os(bucket, { storage: StorageType.File });
}

/** A chunk per turn of the event loop: the client hashes what it sends. */
function streamOf(parts: readonly Uint8Array[], clock: Clock): ReadableStream<Uint8Array> {
  let part = 0;
  let at = 0;
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      await sleep(clock, 0);
      const bytes = parts[part];
      if (!bytes) return controller.close();
      const chunk = bytes.subarray(at, at + objectChunkBytes);
      at += chunk.length;
      if (at === bytes.length) {
        part += 1;
        at = 0;
      }
      controller.enqueue(chunk);
    },
  });
}

async function getObject(
  session: Session,
  life: Life,
  name: string,
): Promise<DurableObject | undefined> {
  const found = await (await bucketOf(life, session.names)).get(name);
  if (found === null) return undefined;
  const { size, description } = found.info;
  const bytes = new Uint8Array(size);
  try {
    await readChunks(session, found.data, bytes);
    await found.error;
  } catch (thrown) {
    const message = `object ${name}: ${toTiergridError(thrown).message}`;
    throw new TiergridError("malformed_reply", message);
  }
  return { bytes, note: description ?? "" };
}

/** Fills `bytes`; a chunk that is missing on the server shows as silence. */
async function readChunks(
  { clock }: Session,
  data: ReadableStream<Uint8Array>,
  bytes: Uint8Array,
): Promise<void> {
  const reader = data.getReader();
  let at = 0;
  for (;;) {
    const wait = new AbortController();
    const late = sleep(clock, callMs, wait.signal).then(() => undefined);
    const read = await Promise.race([reader.read(), late]);
    wait.abort();
    if (read?.value) {
      bytes.set(read.value, at);
      at += read.value.length;
    } else if (read?.done && at === bytes.length) return;
    else {
      // Its outcome is the same as ours.
      reader.cancel().catch(() => {});
      throw new Error(`${at} of ${bytes.length} bytes came`);
    }
  }
}

async function takeLock(
  session: Session,
  life: Life,
  name: string,
  owner: string,
): Promise<DurableLock | undefined> {
  const kv = await life.js.views.kv(session.names.locks, { ttl: lockTtlMs, history: 1 });
  const first = await unlessTaken(kv.create(name, owner));
  if (first === undefined) return undefined;
  let revision = first;
  const locks = (): Promise<KV> => life.js.views.kv(session.names.locks, { ttl: lockTtlMs });
  return {
    renew: () =>
      run(session, callMs, async () => {
        const renewed = await unlessTaken((await locks()).update(name, owner, revision));
        revision = renewed ?? revision;
        return renewed !== undefined;
      }),
    release: () =>
      run(session, callMs, async () => {
        await unlessTaken((await locks()).delete(name, { previousSeq: revision }));
      }),
  };
}

async function close(session: Session): Promise<void> {
  session.closed = true;
  const life = await session.life?.catch(() => undefined);
  life?.client.destroy();
}

/** Undefined when the thing asked for does not exist. */
async function unlessMissing<T>(asked: Promise<T>): Promise<T | undefined> {
  try {
    return await asked;
  } catch (thrown) {
    if (errorOf(thrown).code === "not_found") return undefined;
    throw thrown;
  }
}

/** Undefined when the key has another revision than the expected one. */
async function unlessTaken<T>(asked: Promise<T>): Promise<T | undefined> {
  try {
    return await asked;
  } catch (thrown) {
    if (thrown instanceof NatsError && thrown.api_error?.err_code === wrongSequenceCode) {
      return undefined;
    }
    throw thrown;
  }
}

function errorOf(thrown: unknown): TiergridError {
  if (!(thrown instanceof NatsError)) return toTiergridError(thrown);
  const { code, message, api_error } = thrown;
  const text = `JetStream: ${api_error?.description ?? message}`;
  if (api_error?.err_code === notEnabledCode) return noJetStream();
  // Nobody answers for a subject whose stream is missing.
  const missing = code === noResponders || code === "404";
  if (missing || missingCodes.has(api_error?.err_code ?? 0)) {
    return new TiergridError("not_found", text);
  }
  if (code === "TIMEOUT") return new TiergridError("request_timeout", text);
  if (code === "CONNECTION_CLOSED") return new TiergridError("disconnected", text);
  return new TiergridError("internal_error", text);
}

function noJetStream(): TiergridError {
  const message = "durable KV events need JetStream, which the server has not (nats-server -js)";
  return new TiergridError("config_invalid", message);
}
