/**
 * Messages and objects that outlive their writers, for one pool. Two implementations, one
 * conformance suite: `nats-durable-log` (JetStream) and `memory-durable-log` (in process).
 *
 *   append ──▶ stream   [ first … last ]     sequences from 1, +1 each, kept for `retentionMs`
 *                 │
 *                 └──▶ consumer per reader: position of the next message, newest acknowledged one
 *   bucket    name -> object (bytes + note)    a put takes effect whole or not at all
 *   locks     name -> owner                    for `lockTtlMs`, unless renewed
 *
 * What every implementation promises:
 *   - A sequence that `append` answered is in the stream until retention or a purge takes it.
 *   - A consumer sees messages in order; after its reader is gone it starts again behind the newest
 *     acknowledged one. Acknowledging a message acknowledges all before it.
 *   - Nothing hangs: every call ends by its own deadline with a `TiergridError`. `not_found`: stream,
 *     bucket or consumer is missing; `config_invalid`: the server keeps no streams; `disconnected`,
 *     `request_timeout`: ask again; `malformed_reply`: an object does not match its own digest.
 */
import { createHash } from "node:crypto";
import { TiergridError } from "../base/errors.ts";
import { durableEventsOfComponent } from "../protocol/subjects.ts";

export const retentionMs = 3_600_000;
export const lockTtlMs = 30_000;
/** Messages that one `next` answers. */
export const batchMessagesMax = 64;
export const consumersMax = 1024;

/** `firstSequence` = `lastSequence` + 1 when the stream is empty. */
export interface StreamState {
  readonly firstSequence: number;
  readonly lastSequence: number;
  readonly messages: number;
}

export interface DurableMessage {
  readonly sequence: number;
  readonly payload: Uint8Array;
}

export interface DurableBatch {
  /** In order; empty when nothing came in time. */
  readonly messages: readonly DurableMessage[];
  /** Acknowledges the whole batch; an acknowledgement that gets lost is made up by a later one. */
  acknowledge(): void;
}

export interface DurableConsumer {
  /** Up to `batchMessagesMax` messages, waiting `waitMs` for the first. One call at a time. */
  next(waitMs: number): Promise<DurableBatch>;
}

export interface ConsumerView {
  readonly name: string;
  /** Everything up to here is acknowledged. */
  readonly acknowledgedSequence: number;
}

export interface DurableObject {
  readonly bytes: Uint8Array;
  /** Short text that its writer stored with it. */
  readonly note: string;
}

export interface DurableLock {
  /** Starts the lock's time anew; false when another owner may have it. */
  renew(): Promise<boolean>;
  release(): Promise<void>;
}

export interface DurableLog {
  /** Makes stream, bucket and lock table where they are missing. */
  open(): Promise<void>;
  /** Stores one message under a subject of the stream; answers its sequence. */
  append(subject: string, payload: Uint8Array): Promise<number>;
  state(): Promise<StreamState>;
  /** Removes every message up to `sequence`. */
  purgeThrough(sequence: number): Promise<void>;
  /** Makes the consumer `name`, or takes the one there is; `fromSequence` counts when it is new. */
  consumer(name: string, fromSequence: number): Promise<DurableConsumer>;
  consumers(): Promise<readonly ConsumerView[]>;
  /** A consumer that is missing is fine. */
  deleteConsumer(name: string): Promise<void>;
  /** The parts follow each other. */
  putObject(name: string, parts: readonly Uint8Array[], note: string): Promise<void>;
  getObject(name: string): Promise<DurableObject | undefined>;
  /** The object's note, without its bytes. */
  noteOf(name: string): Promise<string | undefined>;
  deleteObject(name: string): Promise<void>;
  /** Removes every message and object; sequences go on. */
  reset(): Promise<void>;
  /** Undefined while another owner has it. */
  lock(name: string, owner: string): Promise<DurableLock | undefined>;
  close(): Promise<void>;
}

/** What a pool's stream, bucket and locks are called on the server. */
export interface DurableNames {
  readonly stream: string;
  /** Subjects that the stream keeps. */
  readonly subjects: string;
  readonly bucket: string;
  readonly locks: string;
}

const plainBytesMax = 64;

/** Names for the workers of one component; distinct components have distinct names. */
export function durableNames(namespace: string, component: string): DurableNames {
  const pool = `namespace-${storeToken(namespace)}-component-${storeToken(component)}`;
  return {
    stream: `${pool}-kv-events`,
    subjects: durableEventsOfComponent(namespace, component),
    bucket: `${pool}-radix-bucket`,
    locks: `${pool}-locks`,
  };
}

/**
 * A name in `A-Z a-z 0-9 _`: letters and digits stand for themselves, `-` is `_d`, `_` is `_u`,
 * other UTF-8 bytes are `_x` and two hex digits; results above 64 characters become `_h` and a
 * sha256 in hex. Injective, and free of the `-` that joins names.
 */
export function storeToken(name: string): string {
  if (name === "" || /\p{Surrogate}/u.test(name)) {
    throw new TiergridError("invalid_request", "a name must be well-formed and not empty");
  }
  const bytes = new TextEncoder().encode(name);
  const token = [...bytes].map(tokenOfByte).join("");
  if (token.length <= plainBytesMax) return token;
  return `_h${createHash("sha256").update(bytes).digest("hex")}`;
}

function tokenOfByte(byte: number): string {
  const char = String.fromCharCode(byte);
  if (/[A-Za-z0-9]/.test(char)) return char;
  if (char === "-") return "_d";
  if (char === "_") return "_u";
  return `_x${byte.toString(16).padStart(2, "0")}`;
}
