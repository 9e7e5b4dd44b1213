/**
 * Bundles: the frames of one engine step for one owner, in one binary message. Little endian.
 *
 *   header   magic u16 "TB"   version u8   kind u8 (0)   epoch u64 (mixed from its text)
 *   record   key u32   first u32   attempt u32   type u8   detail u8   n u16      16 bytes
 *            [jsonBytes u32]                         when bit 7 of type is set
 *            tokens u32 x n   [JSON, padded to 4]
 *
 *   type        first         detail   JSON
 *   0 tokens    first index            text, disaggregated_params, the engine's own fields: rare
 *   1 end       total                  finish_reason, stop_reason, usage, rest
 *   2 error                            code, message, retryable, started
 *   3 heartbeat next index    phase
 *   4 accepted                         epoch, inst, control, notify, worker_id, dp_rank, decisions
 *
 * One token is 20 bytes. A record of an unknown type is skipped and counted: its length does not
 * depend on the type. Messages hold at most 64 KB and split between records; a single record above
 * that travels alone.
 */
import { TiergridError } from "../base/errors.ts";
import type { JsonObject } from "./request-body.ts";
import type { StreamFrame, TokensFrame } from "./stream-frames.ts";
import {
  acceptedFields,
  acceptedFrame,
  endFields,
  endFrame,
  errorFields,
  errorFrame,
  outputExtras,
  outputFromExtras,
  parseFrameObject,
  waitPhases,
} from "./stream-json.ts";

const magic = 0x4254;
const version = 1;
const headerBytes = 12;
const recordBytes = 16;
const hasJson = 0x80;
export const bundleBytesMax = 65_536;
/** Tokens one record can carry. */
export const recordTokensMax = 65_535;

const recordTypes = { tokens: 0, end: 1, error: 2, heartbeat: 3, accepted: 4 } as const;

/**
 * Gathers frames into messages. The buffer is reused; `take` answers a copy, so that what was
 * published never changes.
 */
export class BundleWriter {
  readonly #epoch: readonly [number, number];
  #words = new Uint32Array(bundleBytesMax / 4);
  #bytes = new Uint8Array(this.#words.buffer);
  /** Next word to write; the header's words are written once. */
  #next = headerBytes / 4;

  constructor(epoch: string) {
    this.#epoch = mixedEpoch(epoch);
    this.#writeHeader();
  }

  get empty(): boolean {
    return this.#next === headerBytes / 4;
  }

  /** Size of the message so far. */
  get bytes(): number {
    return 4 * this.#next;
  }

  /** Adds a frame; false when it must wait for the next message: `take` first, then add again. */
  add(key: number, frame: StreamFrame): boolean {
    const json = fieldsOf(frame);
    const jsonBytes = json && Buffer.from(JSON.stringify(json));
    const tokenIds = frame.type === "tokens" ? frame.output.tokenIds : noTokens;
    if (tokenIds.length > recordTokensMax) {
      const message = `a record has at most ${recordTokensMax} tokens, got ${tokenIds.length}`;
      throw new TiergridError("internal_error", message);
    }
    const jsonWords = jsonBytes ? 1 + Math.ceil(jsonBytes.length / 4) : 0;
    const end = this.#next + recordBytes / 4 + tokenIds.length + jsonWords;
    if (end > bundleBytesMax / 4) {
      if (!this.empty) return false;
      this.#grow(end);
    }
    this.#writeRecord(key, frame, jsonBytes !== undefined);
    if (jsonBytes) this.#words[this.#next++] = jsonBytes.length;
    for (let index = 0; index < tokenIds.length; index++) {
      this.#words[this.#next++] = tokenIds[index] as number;
    }
    if (jsonBytes) {
      this.#words[end - 1] = 0;
      this.#bytes.set(jsonBytes, 4 * this.#next);
    }
    this.#next = end;
    return true;
  }

  /** The message so far, copied; the writer starts the next one. */
  take(): Uint8Array {
    const message = Buffer.from(this.#bytes.subarray(0, 4 * this.#next));
    this.#next = headerBytes / 4;
    return message;
  }

  #writeRecord(key: number, frame: StreamFrame, withJson: boolean): void {
    const detail = frame.type === "heartbeat" ? waitPhases.indexOf(frame.phase) : 0;
    const count = frame.type === "tokens" ? frame.output.tokenIds.length : 0;
    const type = recordTypes[frame.type] | (withJson ? hasJson : 0);
    this.#words[this.#next++] = key;
    this.#words[this.#next++] = indexOf(frame);
    this.#words[this.#next++] = frame.attempt;
    this.#words[this.#next++] = type | (detail << 8) | (count << 16);
  }

  #grow(words: number): void {
    this.#words = new Uint32Array(words);
    this.#bytes = new Uint8Array(this.#words.buffer);
    this.#writeHeader();
  }

  #writeHeader(): void {
    this.#words[0] = magic | (version << 16);
    this.#words[1] = this.#epoch[0];
    this.#words[2] = this.#epoch[1];
  }
}

export type BundleVisitor = (key: number, frame: StreamFrame) => void;

/**
 * Calls `visit` for every record in order; answers how many records of unknown type it skipped.
 * Throws `malformed_reply` at the first record that cannot be read, after visiting those before it.
 */
export function readBundle(payload: Uint8Array, visit: BundleVisitor): number {
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  if (payload.length < headerBytes || view.getUint16(0, true) !== magic) {
    fail(`a bundle has a header of ${headerBytes} bytes, got ${payload.length} other bytes`);
  }
  if (view.getUint8(2) !== version || view.getUint8(3) !== 0) {
    fail(`bundle version ${version}, got ${view.getUint8(2)} kind ${view.getUint8(3)}`);
  }
  let skipped = 0;
  let at = headerBytes;
  while (at < payload.length) {
    const end = recordEnd(view, at);
    const frame = readRecord(view, at, end);
    if (frame) visit(view.getUint32(at, true), frame);
    else skipped += 1;
    at = end;
  }
  return skipped;
}

/** Offset behind the record at `at`. */
function recordEnd(view: DataView, at: number): number {
  const left = view.byteLength - at;
  if (left < recordBytes) fail(`a record has ${recordBytes} bytes, got ${left}`);
  let end = at + recordBytes + 4 * view.getUint16(at + 14, true);
  if (view.getUint8(at + 12) & hasJson) {
    if (left < recordBytes + 4)
      fail(`a record with JSON has ${recordBytes + 4} bytes, got ${left}`);
    end += 4 + 4 * Math.ceil(view.getUint32(at + 16, true) / 4);
  }
  if (end > view.byteLength) fail(`a record of ${end - at} bytes, got ${left}`);
  return end;
}

function readRecord(view: DataView, at: number, end: number): StreamFrame | undefined {
  const index = view.getUint32(at + 4, true);
  const attempt = view.getUint32(at + 8, true);
  const typeByte = view.getUint8(at + 12);
  const json = typeByte & hasJson ? jsonOf(view, at, end) : noFields;
  switch (typeByte & ~hasJson) {
    case recordTypes.tokens:
      return tokensFrame(view, at, json);
    case recordTypes.end:
      return endFrame(attempt, index, json);
    case recordTypes.error:
      return errorFrame(attempt, json);
    case recordTypes.heartbeat: {
      const phase = waitPhases[view.getUint8(at + 13)];
      return phase && { type: "heartbeat", attempt, next: index, phase };
    }
    case recordTypes.accepted:
      return acceptedFrame(attempt, json);
    default:
      return undefined;
  }
}

function tokensFrame(view: DataView, at: number, json: JsonObject): TokensFrame {
  const count = view.getUint16(at + 14, true);
  const from = at + recordBytes + (json === noFields ? 0 : 4);
  const tokenIds: number[] = [];
  for (let index = 0; index < count; index++) {
    tokenIds.push(view.getUint32(from + 4 * index, true));
  }
  const output = json === noFields ? { tokenIds } : outputFromExtras(tokenIds, json);
  const attempt = view.getUint32(at + 8, true);
  return { type: "tokens", attempt, first: view.getUint32(at + 4, true), output };
}

function jsonOf(view: DataView, at: number, end: number): JsonObject {
  const jsonBytes = view.getUint32(at + 16, true);
  const from = end - 4 * Math.ceil(jsonBytes / 4);
  return parseFrameObject(new Uint8Array(view.buffer, view.byteOffset + from, jsonBytes));
}

function indexOf(frame: StreamFrame): number {
  switch (frame.type) {
    case "tokens":
      return frame.first;
    case "heartbeat":
      return frame.next;
    case "end":
      return frame.total;
    case "accepted":
    case "error":
      return 0;
  }
}

const noTokens: readonly number[] = [];
const noFields: JsonObject = {};

/** What of a frame travels as JSON; undefined when its record's numbers say it all. */
function fieldsOf(frame: StreamFrame): JsonObject | undefined {
  switch (frame.type) {
    case "tokens":
      return outputExtras(frame.output);
    case "accepted":
      return acceptedFields(frame);
    case "end":
      return endFields(frame);
    case "error":
      return errorFields(frame);
    case "heartbeat":
      return undefined;
  }
}

/** Two words that tell a worker's lives apart; FNV-1a over the epoch's text, two offsets. */
function mixedEpoch(epoch: string): readonly [number, number] {
  let low = 0x811c9dc5;
  let high = 0x01000193;
  for (let index = 0; index < epoch.length; index++) {
    low = Math.imul(low ^ epoch.charCodeAt(index), 0x01000193);
    high = Math.imul(high ^ epoch.charCodeAt(index), 0x85ebca6b);
  }
  return [low >>> 0, high >>> 0];
}

function fail(message: string): never {
  throw new TiergridError("malformed_reply", message);
}
