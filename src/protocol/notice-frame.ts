/**
 * The notices that every request makes, gathered on their way and sent as records. Little endian:
 *
 *   header   magic u16 "TN"   version u8 (1)   kind u8 (0)
 *   record    0 type u8   1 outcome u8   2 finishReason u8 (0 unsaid)   3 buckets u8 (0 no itl)
 *             4 attempt u32   8 tokens u32   12 ids u32   16 ttftMs f64 (NaN unsaid)
 *            24 rid, 32 hex digits
 *            56 [count u32   sumMs f64   buckets x u32]   ids x (bytes u32, UTF-8)
 *
 *   type             tokens                          other fields in use
 *   1 first_output   cached, 2^32-1 unsaid           ttftMs
 *   2 progress       output so far
 *   3 finished       output                          outcome, finishReason, itl
 *   4 closed         output                          outcome, ttftMs, itl, decision ids
 *   5 accepted       0                               ttftMs: waited, ids: the worker's instance
 *
 * Invariants: a message is a header and 1 to `noticesPerMessageMax` records, of which the last ends
 * it; a length is checked before what it spans is read; fields that a type does not use are 0, or
 * unsaid.
 */
import { TiergridError } from "../base/errors.ts";
import {
  type AcceptedNotice,
  type ClosedNotice,
  type FinishedNotice,
  type FinishedOutcome,
  type FirstOutputNotice,
  type ItlSummary,
  type Notice,
  noticesFromJson,
  noticesPerMessageMax,
  type ProgressNotice,
} from "./notices.ts";
import { isU32 } from "./request-body.ts";
import type { FinishReason } from "./stream-frames.ts";

/** What a request tells while nothing goes wrong; other notices are rare and travel as JSON. */
export type CourseNotice =
  | AcceptedNotice
  | FirstOutputNotice
  | ProgressNotice
  | FinishedNotice
  | ClosedNotice;

const magic = 0x4e54;
const version = 1;
const headerBytes = 4;
const recordBytes = 56;
const ridAt = 24;
const itlBytes = 12;
const recordTypes = { first_output: 1, progress: 2, finished: 3, closed: 4, accepted: 5 } as const;
const outcomes: readonly FinishedOutcome[] = ["ok", "error", "cancelled", "migrated"];
const finishReasons: readonly (FinishReason | undefined)[] = [
  undefined,
  "eos",
  "stop",
  "length",
  "cancelled",
  "content_filter",
];
const tokensUnsaid = 0xffff_ffff;
const noIds: readonly string[] = [];

/** One message of 1 to `noticesPerMessageMax` notices, whose `rid`s are 32 hex digits. */
export function encodeNotices(notices: readonly CourseNotice[]): Uint8Array {
  let size = headerBytes;
  for (const notice of notices) size += bytesOf(notice);
  const bytes = Buffer.allocUnsafe(size);
  bytes.writeUInt16LE(magic, 0);
  bytes.writeUInt16LE(version, 2);
  let at = headerBytes;
  for (const notice of notices) at = writeNotice(bytes, at, notice);
  return bytes;
}

function bytesOf(notice: CourseNotice): number {
  const itl = itlOf(notice);
  let size = recordBytes + (itl ? itlBytes + 4 * itl.buckets.length : 0);
  for (const id of idsOf(notice)) size += 4 + Buffer.byteLength(id);
  return size;
}

/** Answers where the record ends. */
function writeNotice(bytes: Buffer, at: number, notice: CourseNotice): number {
  const { type, rid, attempt } = notice;
  const itl = itlOf(notice);
  const ids = idsOf(notice);
  bytes[at] = recordTypes[type];
  bytes[at + 1] = "outcome" in notice ? outcomes.indexOf(notice.outcome) : 0;
  bytes[at + 2] = type === "finished" ? finishReasons.indexOf(notice.finish_reason) : 0;
  bytes[at + 3] = itl?.buckets.length ?? 0;
  bytes.writeUInt32LE(attempt, at + 4);
  const tokens = tokensOf(notice);
  bytes.writeUInt32LE(isU32(tokens) ? tokens : tokensUnsaid, at + 8);
  bytes.writeUInt32LE(ids.length, at + 12);
  bytes.writeDoubleLE(timeOf(notice) ?? NaN, at + 16);
  bytes.write(rid, at + ridAt, "latin1");
  let end = at + recordBytes;
  if (itl) end = writeItl(bytes, end, itl);
  for (const id of ids) {
    const idBytes = bytes.write(id, end + 4);
    end = bytes.writeUInt32LE(idBytes, end) + idBytes;
  }
  return end;
}

function writeItl(bytes: Buffer, at: number, { count, sum_ms, buckets }: ItlSummary): number {
  bytes.writeUInt32LE(count, at);
  let end = bytes.writeDoubleLE(sum_ms, at + 4);
  for (const inBucket of buckets) end = bytes.writeUInt32LE(inBucket, end);
  return end;
}

function tokensOf(notice: CourseNotice): number | undefined {
  if (notice.type === "accepted") return 0;
  return notice.type === "first_output" ? notice.cached_tokens : notice.output_tokens;
}

function timeOf(notice: CourseNotice): number | undefined {
  if (notice.type === "accepted") return notice.waited_ms;
  return "ttft_ms" in notice ? notice.ttft_ms : undefined;
}

function itlOf(notice: CourseNotice): ItlSummary | undefined {
  return notice.type === "finished" || notice.type === "closed" ? notice.itl : undefined;
}

function idsOf(notice: CourseNotice): readonly string[] {
  if (notice.type === "accepted") return [notice.inst];
  return notice.type === "closed" ? notice.decision_ids : noIds;
}

/** Where the next field lies. */
interface Cursor {
  readonly bytes: Buffer;
  at: number;
}

/**
 * The notices of a message, records or JSON; throws `malformed_reply` when one of them is not a
 * notice.
 */
export function decodeNotices(payload: Uint8Array): readonly Notice[] {
  if (payload[0] !== (magic & 0xff)) return noticesFromJson(payload);
  const bytes = Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength);
  if (bytes.length <= headerBytes || bytes.readUInt16LE(0) !== magic) {
    fail(`a header of ${headerBytes} bytes and records`, `${bytes.length} other bytes`);
  }
  if (bytes.readUInt16LE(2) !== version) fail(`version ${version} kind 0`, bytes.readUInt16LE(2));
  const notices: CourseNotice[] = [];
  const cursor: Cursor = { bytes, at: headerBytes };
  while (cursor.at < bytes.length) {
    if (notices.length === noticesPerMessageMax) fail(`at most ${noticesPerMessageMax}`, "more");
    notices.push(readNotice(cursor));
  }
  return notices;
}

function readNotice(cursor: Cursor): CourseNotice {
  const { bytes } = cursor;
  const at = taken(cursor, recordBytes);
  const attempt = bytes.readUInt32LE(at + 4);
  const tokens = bytes.readUInt32LE(at + 8);
  const ttftMs = bytes.readDoubleLE(at + 16);
  const rid = bytes.toString("latin1", at + ridAt, at + recordBytes);
  switch (bytes[at]) {
    case recordTypes.first_output: {
      const cached_tokens = tokens === tokensUnsaid ? undefined : tokens;
      return { type: "first_output", rid, attempt, ttft_ms: ttftMs, cached_tokens };
    }
    case recordTypes.progress:
      return { type: "progress", rid, attempt, output_tokens: tokens };
    case recordTypes.finished: {
      const outcome = outcomeAt(bytes, at + 1);
      const finish_reason = finishReasons[bytes.readUInt8(at + 2)];
      const itl = readItl(cursor, bytes.readUInt8(at + 3));
      return { type: "finished", rid, attempt, outcome, output_tokens: tokens, finish_reason, itl };
    }
    case recordTypes.closed: {
      const outcome = outcomeAt(bytes, at + 1);
      const ttft_ms = Number.isNaN(ttftMs) ? undefined : ttftMs;
      const itl = readItl(cursor, bytes.readUInt8(at + 3));
      const decision_ids = readIds(cursor, bytes.readUInt32LE(at + 12));
      const output_tokens = tokens;
      return { type: "closed", rid, attempt, outcome, output_tokens, ttft_ms, itl, decision_ids };
    }
    case recordTypes.accepted: {
      const [inst] = readIds(cursor, bytes.readUInt32LE(at + 12));
      if (!inst) fail("the instance that accepted", "none");
      return { type: "accepted", rid, attempt, inst, waited_ms: ttftMs };
    }
    default:
      return fail("a type of 1 to 5", bytes[at]);
  }
}

function outcomeAt(bytes: Buffer, at: number): FinishedOutcome {
  return outcomes[bytes.readUInt8(at)] ?? fail("an outcome of 0 to 3", bytes.readUInt8(at));
}

function readItl(cursor: Cursor, bucketCount: number): ItlSummary | undefined {
  if (bucketCount === 0) return undefined;
  const { bytes } = cursor;
  const at = taken(cursor, itlBytes + 4 * bucketCount);
  const buckets: number[] = [];
  for (let bucket = at + itlBytes; bucket < cursor.at; bucket += 4) {
    buckets.push(bytes.readUInt32LE(bucket));
  }
  return { count: bytes.readUInt32LE(at), sum_ms: bytes.readDoubleLE(at + 4), buckets };
}

function readIds(cursor: Cursor, count: number): readonly string[] {
  const ids: string[] = [];
  while (ids.length < count) {
    const idBytes = cursor.bytes.readUInt32LE(taken(cursor, 4));
    const at = taken(cursor, idBytes);
    ids.push(cursor.bytes.toString("utf8", at, cursor.at));
  }
  return ids;
}

/** Where the next `count` bytes begin; throws unless they are there. */
function taken(cursor: Cursor, count: number): number {
  const { at, bytes } = cursor;
  if (count > bytes.length - at) fail(`${count} bytes from ${at}`, bytes.length - at);
  cursor.at = at + count;
  return at;
}

function fail(expected: string, found: unknown): never {
  const message = `a message of notices has ${expected}, got ${String(found)}`;
  throw new TiergridError("malformed_reply", message);
}
