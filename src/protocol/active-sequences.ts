/**
 * What the replicas of one pool's local router tell each other: their own bookings, as they change.
 *
 *   tg.as.<pool>.<inst>   deltas   add, first token, free; numbered, at most 256 a message
 *                         heartbeat (JSON): number of the newest deltas, count and digest of the book
 *   tg.asq.<pool>         ask (JSON): who is there? or: the list of one router, part by part
 *
 * Deltas and list parts are one binary frame; little endian, every part on a multiple of 4:
 *
 *   0 magic u16 | 2 version u8 | 3 kind u8 | 4 block size u32 | 8 router u64 | 16 epoch u64
 *   24 seq u64 | 32 sent ms f64 | 40 oldest ms f64 | 48 part u32 | 52 parts u32 | 56 events u32
 *   60 zero u32 | events
 *
 *   event: type u32 | request u64
 *          worker u64 | rank u32 | blocks u32 | private blocks u32 | prefill tokens u32      only add
 *          cached tokens u32 | expected prefill ms f32 | blocks x sequence hash u64
 *
 * Times are on the sender's clock, which never steps and whose zero means nothing.
 */
import { TiergridError } from "../base/errors.ts";
import { isObject, type JsonObject } from "./request-body.ts";
import { formatU64, lanesOfInteger, readU64Decimal } from "./u64.ts";

/** A request as its router has booked it at the start: no output, no guess. */
export interface SequenceBooking {
  /** The router's own number of the booking, never used twice. */
  readonly request: number;
  /** u64 as decimal text. */
  readonly workerId: string;
  readonly dpRank: number;
  /** Sequence hashes of the shareable prompt blocks, lanes interleaved. */
  readonly sequence: Uint32Array;
  readonly privateBlocks: number;
  /** Prompt tokens not computed yet; 0 from the first token on. */
  readonly prefillTokens: number;
  /** Prompt tokens that the worker had cached. */
  readonly cachedTokens: number;
  /** Expected duration of the prefill; 0 = unknown. */
  readonly expectedPrefillMs: number;
}

export type SequenceEvent =
  | { readonly type: "add"; readonly booking: SequenceBooking }
  | { readonly type: "first_token"; readonly request: number }
  | { readonly type: "free"; readonly request: number };

/** Who speaks. */
export interface SequenceSource {
  /** The router's instance, a u64 as decimal text. */
  readonly routerId: string;
  /** 16 hex digits, drawn at each start. */
  readonly epoch: string;
  readonly blockSize: number;
  /** When it was sent. */
  readonly sentMs: number;
  /** Number of these deltas; of a heartbeat or a list, the newest deltas it contains. */
  readonly seq: number;
}

/** Changes, or one part of a router's whole list, which consists of adds. */
export interface SequenceFrame extends SequenceSource {
  readonly type: "deltas" | "list";
  /** When the oldest of the events happened. */
  readonly oldestMs: number;
  readonly part: number;
  readonly parts: number;
  readonly events: readonly SequenceEvent[];
}

export interface SequenceHeartbeat extends SequenceSource {
  readonly type: "heartbeat";
  readonly liveCount: number;
  /** `ReplicaBook.digest`. */
  readonly liveDigest: string;
  /** The last one: the router stops, its bookings are void. */
  readonly goodbye: boolean;
}

/** Wants the whole list of `of` on the reply subject; without `of` a heartbeat of everyone. */
export interface SequenceAsk {
  readonly routerId: string;
  readonly of: string | undefined;
}

export const eventsPerFrameMax = 256;
/** Parts of one list. */
export const listPartsMax = 1024;

const magic = 0x4153;
const version = 1;
const kinds = ["deltas", "list"] as const;
const eventTypes = ["add", "first_token", "free"] as const;
const headWords = 16;
const eventWords = 3;
const addWords = 11;
const two32 = 4294967296;
const openingBrace = 0x7b;

/** Bytes of an event within a frame. */
export function bytesOfEvent(event: SequenceEvent): number {
  return 4 * wordsOf(event);
}

/** Bytes of a frame without events. */
export const frameHeadBytes: number = 4 * headWords;

/** Shareable blocks of one booking that fit into a frame of `frameBytesMax`. */
export function sequenceBlocksMax(frameBytesMax: number): number {
  return Math.floor((frameBytesMax - 4 * (headWords + addWords)) / 8);
}

export function encodeSequenceFrame(frame: SequenceFrame): Uint8Array {
  let words = headWords;
  for (const event of frame.events) words += wordsOf(event);
  const out = new Uint32Array(words);
  const floats = new Float64Array(out.buffer, 0, headWords / 2);
  out[0] = headOf(frame.type);
  out[1] = frame.blockSize;
  const router = lanesOf(frame.routerId);
  out.set([router.lo, router.hi, ...lanesOfEpoch(frame.epoch)], 2);
  setInteger(out, 6, frame.seq);
  floats[4] = frame.sentMs;
  floats[5] = frame.oldestMs;
  out.set([frame.part, frame.parts, frame.events.length], 12);
  let at = headWords;
  for (const event of frame.events) at = writeEvent(out, at, event);
  return new Uint8Array(out.buffer);
}

export function encodeSequenceHeartbeat(heartbeat: SequenceHeartbeat): Uint8Array {
  const wire = {
    type: "heartbeat",
    router_id: heartbeat.routerId,
    epoch: heartbeat.epoch,
    block_size: heartbeat.blockSize,
    sent_ms: heartbeat.sentMs,
    seq: heartbeat.seq,
    live_count: heartbeat.liveCount,
    live_digest: heartbeat.liveDigest,
    ...(heartbeat.goodbye ? { goodbye: true } : {}),
  };
  return Buffer.from(JSON.stringify(wire));
}

export function encodeSequenceAsk({ routerId, of }: SequenceAsk): Uint8Array {
  return Buffer.from(JSON.stringify({ type: "ask", router_id: routerId, of }));
}

/** Reads what a replica published. Throws `malformed_reply`. */
export function decodeSequenceMessage(bytes: Uint8Array): SequenceFrame | SequenceHeartbeat {
  return bytes[0] === openingBrace ? readHeartbeat(bytes) : readFrame(bytes);
}

/** Reads an ask. Throws `malformed_reply`. */
export function decodeSequenceAsk(bytes: Uint8Array): SequenceAsk {
  const wire = parseObject(bytes);
  const { router_id: routerId, of } = wire;
  if (wire["type"] !== "ask" || typeof routerId !== "string") throw bad("an ask names router_id");
  if (of !== undefined && typeof of !== "string") throw bad("of is a router id");
  return { routerId, of };
}

function readHeartbeat(bytes: Uint8Array): SequenceHeartbeat {
  const wire = parseObject(bytes);
  const { router_id: routerId, epoch, live_digest: liveDigest } = wire;
  const sentMs = wire["sent_ms"];
  if (wire["type"] !== "heartbeat") throw bad(`unknown type ${String(wire["type"])}`);
  if (typeof routerId !== "string" || readU64Decimal(routerId) === undefined) {
    throw bad(`router_id: expected a u64, got ${String(routerId)}`);
  }
  if (typeof epoch !== "string" || typeof liveDigest !== "string" || !isFinite64(sentMs)) {
    throw bad("a heartbeat names epoch, live_digest and sent_ms");
  }
  return {
    ...{ type: "heartbeat", routerId, epoch, liveDigest, sentMs },
    blockSize: countOf(wire, "block_size"),
    seq: countOf(wire, "seq"),
    liveCount: countOf(wire, "live_count"),
    goodbye: wire["goodbye"] === true,
  };
}

/** Bytes from the bus lie at any offset, so they are copied to be read as words. */
function readFrame(bytes: Uint8Array): SequenceFrame {
  if (bytes.length < 4 * headWords || bytes.length % 4 !== 0) {
    throw bad(`expected a multiple of 4 from ${4 * headWords} bytes, got ${bytes.length}`);
  }
  const words = new Uint32Array(bytes.length / 4);
  new Uint8Array(words.buffer).set(bytes);
  const floats = new Float64Array(words.buffer, 0, headWords / 2);
  const body = { words, singles: new Float32Array(words.buffer) };
  const word = (at: number): number => words[at] ?? 0;
  const type = kinds.find((kind) => headOf(kind) === word(0));
  if (type === undefined) throw bad(`unknown head ${word(0).toString(16)}`);
  const [sentMs, oldestMs] = [floats[4], floats[5]];
  if (!isFinite64(sentMs) || !isFinite64(oldestMs)) throw bad("a time is not finite");
  const [part, parts, count] = [word(12), word(13), word(14)];
  if (parts > listPartsMax || part >= parts) throw bad(`part ${part} of ${parts}`);
  if (count > eventsPerFrameMax) throw bad(`at most ${eventsPerFrameMax} events, got ${count}`);
  const events: SequenceEvent[] = [];
  let at = headWords;
  for (let left = count; left > 0; left--) {
    const event = readEvent(body, at);
    events.push(event);
    at += wordsOf(event);
  }
  if (at !== words.length) throw bad(`${words.length - at} words behind the last event`);
  return {
    ...{ type, sentMs, oldestMs, part, parts, events },
    routerId: formatU64(word(2), word(3)),
    epoch: epochOfLanes(word(4), word(5)),
    blockSize: word(1),
    seq: integerAt(words, 6),
  };
}

function wordsOf(event: SequenceEvent): number {
  return event.type === "add" ? addWords + event.booking.sequence.length : eventWords;
}

function writeEvent(out: Uint32Array, at: number, event: SequenceEvent): number {
  out[at] = eventTypes.indexOf(event.type);
  if (event.type !== "add") {
    setInteger(out, at + 1, event.request);
    return at + eventWords;
  }
  const { booking } = event;
  const { sequence } = booking;
  const worker = lanesOf(booking.workerId);
  setInteger(out, at + 1, booking.request);
  out.set([worker.lo, worker.hi, booking.dpRank, sequence.length / 2], at + 3);
  out.set([booking.privateBlocks, booking.prefillTokens, booking.cachedTokens], at + 7);
  new Float32Array(out.buffer, 4 * (at + 10), 1)[0] = booking.expectedPrefillMs;
  out.set(sequence, at + addWords);
  return at + addWords + sequence.length;
}

/** A frame's memory, as integers and as floats. */
interface FrameBody {
  readonly words: Uint32Array;
  readonly singles: Float32Array;
}

function readEvent({ words, singles }: FrameBody, at: number): SequenceEvent {
  const type = eventTypes[wordAt(words, at)];
  if (type === undefined) throw bad(`unknown event ${wordAt(words, at)}`);
  const start = at + (type === "add" ? addWords : eventWords);
  if (start > words.length) throw bad("an event is cut off");
  const request = integerAt(words, at + 1);
  if (type !== "add") return { type, request };
  const end = start + 2 * wordAt(words, at + 6);
  if (end > words.length) throw bad(`${wordAt(words, at + 6)} blocks do not fit`);
  const expectedPrefillMs = singles[at + 10];
  if (!isFinite64(expectedPrefillMs)) throw bad("a duration is not finite");
  const booking: SequenceBooking = {
    request,
    workerId: formatU64(wordAt(words, at + 3), wordAt(words, at + 4)),
    dpRank: wordAt(words, at + 5),
    sequence: words.slice(start, end),
    privateBlocks: wordAt(words, at + 7),
    prefillTokens: wordAt(words, at + 8),
    cachedTokens: wordAt(words, at + 9),
    expectedPrefillMs,
  };
  return { type, booking };
}

function wordAt(words: Uint32Array, at: number): number {
  return words[at] ?? 0;
}

function headOf(kind: SequenceFrame["type"]): number {
  return (magic | (version << 16) | (kinds.indexOf(kind) << 24)) >>> 0;
}

function setInteger(out: Uint32Array, at: number, value: number): void {
  const { lo, hi } = lanesOfInteger(value);
  out[at] = lo;
  out[at + 1] = hi;
}

function integerAt(words: Uint32Array, at: number): number {
  const value = (words[at + 1] ?? 0) * two32 + (words[at] ?? 0);
  if (!Number.isSafeInteger(value)) throw bad("a number above 2^53");
  return value;
}

function lanesOf(decimal: string): { readonly lo: number; readonly hi: number } {
  const lanes = readU64Decimal(decimal);
  if (!lanes) throw bad(`expected a u64, got ${decimal}`);
  return lanes;
}

function lanesOfEpoch(epoch: string): [number, number] {
  if (!/^[0-9a-f]{16}$/.test(epoch)) throw bad(`epoch: expected 16 hex digits, got ${epoch}`);
  return [Number.parseInt(epoch.slice(8), 16), Number.parseInt(epoch.slice(0, 8), 16)];
}

function epochOfLanes(lo: number, hi: number): string {
  return hi.toString(16).padStart(8, "0") + lo.toString(16).padStart(8, "0");
}

function parseObject(bytes: Uint8Array): JsonObject {
  let wire: unknown;
  try {
    wire = JSON.parse(Buffer.from(bytes).toString("utf8"));
  } catch {
    throw bad("not JSON");
  }
  if (!isObject(wire)) throw bad("not a JSON object");
  return wire;
}

function countOf(wire: JsonObject, field: string): number {
  const value = wire[field];
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 0) return value;
  throw bad(`${field}: expected a whole number >= 0, got ${String(value)}`);
}

function isFinite64(value: unknown): value is number {
  return typeof value === "number" && Number.isFinite(value);
}

function bad(message: string): TiergridError {
  return new TiergridError("malformed_reply", `active sequences: ${message}`);
}
