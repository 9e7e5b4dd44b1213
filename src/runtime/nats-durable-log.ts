/**
 * The durable log on JetStream, over a connection of its own: a large snapshot must not stand in the
 * way of requests. Nothing here repeats a call.
 *
 *   stream     file storage, `retentionMs`    consumers   pull, acknowledge all before
 *   bucket     object store, in chunks        locks       key-value bucket that forgets by itself
 */

import { createHash } from "node:crypto";
import {
  AckPolicy,
  type Consumer,
  DeliverPolicy,
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
import { TiergridError } from "../base/errors.ts";
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
  type StreamState,
} from "./durable-log.ts";
import {
  type Connection,
  call,
  callMs,
  hangUp,
  type JetStreamAccess,
  jetStreamErrorOf,
  type Life,
  newConnection,
  unlessMissing,
} from "./nats-durable-connection.ts";

export interface NatsDurableLogOptions extends JetStreamAccess {
  readonly names: DurableNames;
}

/** Deadline of a call that moves an object. */
const objectMs = 60_000;
/** Shortest wait that the client lets a pull have. */
const pullMsMin = 1_000;
/** What an answer may take beyond the wait. */
const pullGraceMs = 1_000;
/** Of a stream; the oldest go first, as with age. */
const messagesMax = 10_000_000;
const objectChunkBytes = 64 * 1024;
const chunksPerPull = 16;
const ackPendingMax = 64 * batchMessagesMax;

/** Error code of the JetStream API. */
const wrongSequenceCode = 10071;

interface Session extends Connection {
  readonly names: DurableNames;
}

/** Opens nothing yet. */
export function createNatsDurableLog(options: NatsDurableLogOptions): DurableLog {
  const session: Session = Object.assign(newConnection(options), { names: options.names });
  const { names } = options;
  const { stream } = names;
  return {
    open: () => call(session, callMs, (life) => open(life, names)),
    append: (subject, payload) =>
      call(session, callMs, async ({ js }) => {
        const ack = await js.publish(subject, payload, { expect: { streamName: stream } });
        return ack.seq;
      }),
    state: () => call(session, callMs, ({ jsm }) => stateOf(jsm, stream)),
    purgeThrough: (sequence) =>
      call(session, callMs, async ({ jsm }) => {
        await jsm.streams.purge(stream, { seq: sequence + 1 });
      }),
    consumer: (name, fromSequence) =>
      call(session, callMs, async (life) => {
        await makeConsumer(life, stream, name, fromSequence);
        return readerOf(session, stream, name);
      }),
    consumers: () => call(session, callMs, ({ jsm }) => listConsumers(jsm, stream)),
    deleteConsumer: (name) =>
      call(session, callMs, async ({ jsm }) => {
        await unlessMissing(jsm.consumers.delete(stream, name));
      }),
    putObject: (name, parts, note) =>
      call(session, objectMs, async (life) => {
        const bucket = await bucketOf(life, names);
        const meta = { name, description: note, options: { max_chunk_size: objectChunkBytes } };
        await bucket.put(meta, streamOf(parts, options.clock), { timeout: objectMs });
      }),
    getObject: (name) => call(session, objectMs, (life) => getObject(session, life, name)),
    noteOf: (name) =>
      call(session, callMs, async (life) => {
        const info = await (await bucketOf(life, names)).info(name);
        return info && !info.deleted ? (info.description ?? "") : undefined;
      }),
    deleteObject: (name) =>
      call(session, callMs, async (life) => {
        await (await bucketOf(life, names)).delete(name);
      }),
    reset: () =>
      call(session, callMs, async (life) => {
        await life.jsm.streams.purge(stream);
        await (await bucketOf(life, names)).destroy();
        await open(life, names);
      }),
    lock: (name, owner) => call(session, callMs, (life) => takeLock(session, life, name, owner)),
    close: () => hangUp(session),
  };
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

async function stateOf(jsm: JetStreamManager, stream: string): Promise<StreamState> {
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
        return await call(session, waitMs + pullGraceMs, (life) => pull(life, waitMs));
      } catch (thrown) {
        if (jetStreamErrorOf(thrown).code !== "request_timeout") throw thrown;
        // Servers leave pulls from a missing consumer without an answer.
        await call(session, callMs, ({ jsm }) => jsm.consumers.info(stream, name));
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

/**
 * Reads an object a few chunks per turn; the client itself would hash all of them in one. A chunk that
 * is missing on the server shows as an early end.
 */
async function getObject(
  { names, clock }: Session,
  life: Life,
  name: string,
): Promise<DurableObject | undefined> {
  const info = await (await bucketOf(life, names)).info(name);
  if (!info || info.deleted) return undefined;
  const stream = `OBJ_${names.bucket}`;
  const consumer = await life.jsm.consumers.add(stream, {
    filter_subject: `$O.${names.bucket}.C.${info.nuid}`,
    ack_policy: AckPolicy.None,
    inactive_threshold: nanos(objectMs),
  });
  const bytes = new Uint8Array(info.size);
  const hash = createHash("sha256");
  let at = 0;
  for (let before = -1; at < bytes.length && at > before; await sleep(clock, 0)) {
    before = at;
    const pull = { batch: chunksPerPull, no_wait: true };
    for await (const { data } of life.js.fetch(stream, consumer.name, pull)) {
      if (at + data.length <= bytes.length) bytes.set(data, at);
      at += data.length;
      hash.update(data);
    }
  }
  await life.jsm.consumers.delete(stream, consumer.name);
  const digest = `SHA-256=${hash.digest("base64url")}`;
  if (at === bytes.length && info.digest.replace(/=+$/, "") === digest) {
    return { bytes, note: info.description ?? "" };
  }
  const message = `object ${name}: ${at} of ${bytes.length} bytes came, or others than were put`;
  throw new TiergridError("malformed_reply", message);
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
      call(session, callMs, async () => {
        const renewed = await unlessTaken((await locks()).update(name, owner, revision));
        revision = renewed ?? revision;
        return renewed !== undefined;
      }),
    release: () =>
      call(session, callMs, async () => {
        await unlessTaken((await locks()).delete(name, { previousSeq: revision }));
      }),
  };
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
