/**
 * How a router asks a worker for events it missed, and how the worker answers. A query is JSON; an
 * answer is a JSON head and an event frame, cut into chunks below the bus's payload limit:
 *
 *   chunk    magic u16 | version u8 | kind u8 | index u32 | chunks u32 | answer u32 | piece of the answer
 *   answer   head bytes u32 | head JSON, padded to 4 | event frame (kv-event-frame.ts)
 *
 * A worker numbers its answers and keeps the last long one for a while: a router whose chunks went
 * missing asks for these, not for everything anew.
 */
import { TiergridError } from "../base/errors.ts";
import { decodeKvEvents, encodeKvEvents } from "./kv-event-frame.ts";
import type { KvEvent, KvEventBatch } from "./kv-events.ts";
import { formatU64, readU64Json } from "./u64.ts";

export interface KvQuery {
  readonly workerId: string;
  /** First id wanted; undefined = everything the rank holds. */
  readonly startEventId: number | undefined;
  /** Last id wanted; undefined = up to the newest. */
  readonly endEventId: number | undefined;
  /** Only these chunks of an answer under way; a worker that has dropped it answers the query. */
  readonly rest?: KvAnswerRest | undefined;
}

export interface KvAnswerRest {
  readonly answer: number;
  readonly missing: readonly number[];
}

export interface KvChunkHead {
  /** The worker's number of the answer. */
  readonly answer: number;
  readonly index: number;
  readonly chunks: number;
}

export type KvAnswer =
  | { readonly type: "events"; readonly events: readonly KvEvent[] }
  | {
      readonly type: "tree_dump";
      readonly events: readonly KvEvent[];
      /** Newest id the dump contains; null = nothing was ever emitted. */
      readonly lastEventId: number | null;
    }
  | {
      readonly type: "too_new";
      readonly requestedStart: number;
      readonly requestedEnd: number | null;
      readonly newestAvailable: number | null;
    }
  | { readonly type: "invalid_range"; readonly startId: number; readonly endId: number }
  | { readonly type: "error"; readonly message: string };

/** Who answers; the same fields as an event batch. */
export type KvSource = Omit<KvEventBatch, "events">;

const magic = 0x4b51;
const version = 2;
const chunkKind = 2;
const chunkHeadBytes = 16;
const chunkHead = (magic | (version << 16) | (chunkKind << 24)) >>> 0;
/** Chunks of one answer. */
export const answerChunksMax = 65_536;
/** Chunks that one query asks for again. */
export const missingChunksMax = 1024;
/** Bytes of one answer: a dump of 16 M blocks. */
export const answerBytesMax: number = 256 * 1024 * 1024;

export function encodeKvQuery(query: KvQuery): Uint8Array {
  const { workerId, startEventId, endEventId, rest } = query;
  const ids = { worker_id: workerId, start_event_id: startEventId, end_event_id: endEventId };
  const body = rest ? { ...ids, answer: rest.answer, missing: rest.missing } : ids;
  return Buffer.from(JSON.stringify(body));
}

/** Reads a query. Throws `invalid_request`. */
export function decodeKvQuery(bytes: Uint8Array): KvQuery {
  const body = parseObject(bytes);
  const worker = readU64Json(body?.["worker_id"]);
  const startEventId = body?.["start_event_id"] ?? undefined;
  const endEventId = body?.["end_event_id"] ?? undefined;
  if (!worker || !isIdOrAbsent(startEventId) || !isIdOrAbsent(endEventId)) {
    const message = "KV query: expected worker_id and whole start_event_id, end_event_id";
    throw new TiergridError("invalid_request", message);
  }
  const rest = restOf(body);
  return {
    ...{ workerId: formatU64(worker.lo, worker.hi), startEventId, endEventId },
    ...(rest && { rest }),
  };
}

/** What is no list of chunks asks for no rest: the whole answer serves as well. */
function restOf(body: Record<string, unknown> | undefined): KvAnswerRest | undefined {
  const { answer, missing } = body ?? {};
  if (answer === undefined || !isIdOrAbsent(answer) || !Array.isArray(missing)) return undefined;
  const sound = missing.length <= missingChunksMax && missing.every(isIdOrAbsent);
  return sound ? { answer, missing: missing as number[] } : undefined;
}

/** An answer as chunks of at most `chunkBytesMax` bytes. Throws `payload_too_large`. */
export function encodeKvAnswer(
  source: KvSource,
  answer: KvAnswer,
  chunkBytesMax: number,
  answerNumber = 0,
): Uint8Array[] {
  const whole = encodeWhole(source, answer);
  const piece = Math.max(chunkBytesMax - chunkHeadBytes, 1);
  const chunks = Math.ceil(whole.length / piece);
  if (whole.length > answerBytesMax || chunks > answerChunksMax) {
    const message = `KV answer: at most ${answerBytesMax} bytes, got ${whole.length}`;
    throw new TiergridError("payload_too_large", message, { chunks });
  }
  return Array.from({ length: chunks }, (_, index) => {
    const body = whole.subarray(index * piece, (index + 1) * piece);
    const bytes = new Uint8Array(chunkHeadBytes + body.length);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, chunkHead, true);
    view.setUint32(4, index, true);
    view.setUint32(8, chunks, true);
    view.setUint32(12, answerNumber, true);
    bytes.set(body, chunkHeadBytes);
    return bytes;
  });
}

/** Joins the chunks of one answer, in any order. Throws `malformed_reply`. */
export function decodeKvAnswer(chunks: readonly Uint8Array[]): {
  readonly source: KvSource;
  readonly answer: KvAnswer;
} {
  const pieces = new Map<number, Uint8Array>();
  let total = 0;
  for (const chunk of chunks) {
    const { index } = readChunkHead(chunk, chunks.length);
    if (pieces.has(index)) throw bad(`chunk ${index} came twice`);
    pieces.set(index, chunk.subarray(chunkHeadBytes));
    total += chunk.length - chunkHeadBytes;
    if (total > answerBytesMax) throw bad(`at most ${answerBytesMax} bytes, got more`);
  }
  const ordered = Array.from(pieces.keys()).sort((a, b) => a - b);
  return decodeWhole(Buffer.concat(ordered.map((index) => pieces.get(index) ?? new Uint8Array())));
}

/** Which part of which answer the chunk is. Throws `malformed_reply`. */
export function kvChunkHeadOf(chunk: Uint8Array): KvChunkHead {
  return readChunkHead(chunk, undefined);
}

function readChunkHead(chunk: Uint8Array, expected: number | undefined): KvChunkHead {
  if (chunk.length < chunkHeadBytes) throw bad(`a chunk of ${chunk.length} bytes`);
  const view = new DataView(chunk.buffer, chunk.byteOffset, chunk.byteLength);
  const index = view.getUint32(4, true);
  const chunks = view.getUint32(8, true);
  if (view.getUint32(0, true) !== chunkHead) throw bad("unknown chunk head");
  if (chunks > answerChunksMax || index >= chunks) throw bad(`chunk ${index} of ${chunks}`);
  if (expected !== undefined && chunks !== expected) throw bad(`${expected} chunks of ${chunks}`);
  return { answer: view.getUint32(12, true), index, chunks };
}

function encodeWhole(source: KvSource, answer: KvAnswer): Uint8Array {
  const events = "events" in answer ? answer.events : [];
  const head = Buffer.from(JSON.stringify({ ...answer, events: undefined }));
  const frame = encodeKvEvents({ ...source, events });
  const frameAt = 4 + 4 * Math.ceil(head.length / 4);
  const whole = new Uint8Array(frameAt + frame.length);
  new DataView(whole.buffer).setUint32(0, head.length, true);
  whole.set(head, 4);
  whole.set(frame, frameAt);
  return whole;
}

function decodeWhole(whole: Uint8Array): { source: KvSource; answer: KvAnswer } {
  if (whole.length < 4) throw bad(`an answer of ${whole.length} bytes`);
  const view = new DataView(whole.buffer, whole.byteOffset, whole.byteLength);
  const headBytes = view.getUint32(0, true);
  const frameAt = 4 + 4 * Math.ceil(headBytes / 4);
  if (frameAt > whole.length) throw bad(`a head of ${headBytes} bytes does not fit`);
  const head = parseObject(whole.subarray(4, 4 + headBytes));
  const { events, ...source } = decodeKvEvents(whole.subarray(frameAt));
  return { source, answer: readAnswer(head, events) };
}

function readAnswer(
  head: Record<string, unknown> | undefined,
  events: readonly KvEvent[],
): KvAnswer {
  const id = (field: string): number => {
    const value = head?.[field];
    if (!isIdOrAbsent(value) || value === undefined) throw bad(`${field}: expected an event id`);
    return value;
  };
  const idOrNull = (field: string): number | null => (head?.[field] === null ? null : id(field));
  switch (head?.["type"]) {
    case "events":
      return { type: "events", events };
    case "tree_dump":
      return { type: "tree_dump", events, lastEventId: idOrNull("lastEventId") };
    case "too_new":
      return {
        type: "too_new",
        requestedStart: id("requestedStart"),
        requestedEnd: idOrNull("requestedEnd"),
        newestAvailable: idOrNull("newestAvailable"),
      };
    case "invalid_range":
      return { type: "invalid_range", startId: id("startId"), endId: id("endId") };
    case "error":
      return { type: "error", message: String(head["message"] ?? "") };
    default:
      throw bad("unknown answer type");
  }
}

function parseObject(bytes: Uint8Array): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(Buffer.from(bytes).toString("utf8"));
    if (typeof value !== "object" || value === null || Array.isArray(value)) return undefined;
    return value as Record<string, unknown>;
  } catch {
    return undefined;
  }
}

function isIdOrAbsent(value: unknown): value is number | undefined {
  if (value === undefined) return true;
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

function bad(message: string): TiergridError {
  return new TiergridError("malformed_reply", `KV answer: ${message}`);
}
