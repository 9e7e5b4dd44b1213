/**
 * KV events as bytes: many events of one (worker, dp rank) in one message. Little endian; every part
 * starts on a multiple of 4.
 *
 *   0 magic u16 | 2 version u8 | 3 kind u8 | 4 dp rank u32 | 8 worker id u64
 *   16 event count u32 | 20 source bytes u32 | source utf8, padded to 4 | events
 *
 *   event: type u8 | tier u8 | flags u16 (1 = has a parent) | count u32 | event id u64
 *          parent u64 (only if flagged) | count x (local u64, engine hash u64)    stored
 *                                         count x engine hash u64                 removed
 *
 * Bytes from the bus lie at any offset, so they are copied once to be read as words; the arrays of
 * the decoded events are views of that copy.
 */
import { TiergridError } from "../base/errors.ts";
import type { KvEvent, KvEventBatch } from "./kv-events.ts";
import { storageTiers } from "./kv-events.ts";
import { formatU64, readU64Decimal } from "./u64.ts";

const magic = 0x4b45;
const version = 1;
const eventsKind = 1;
const headWords = 6;
const eventHeadWords = 4;
const eventTypes = ["stored", "removed", "cleared"] as const;
const sourceBytesMax = 256;
const two32 = 4294967296;

/** Bytes of a batch. Throws `malformed_reply` when the worker id or the source cannot travel. */
export function encodeKvEvents(batch: KvEventBatch): Uint8Array {
  const worker = readU64Decimal(batch.workerId);
  const source = Buffer.from(batch.stateSource, "utf8");
  if (!worker) throw bad(`worker id: expected a u64, got ${batch.workerId}`);
  if (source.length > sourceBytesMax) {
    throw bad(`source: at most ${sourceBytesMax} bytes, got ${source.length}`);
  }
  const sourceWords = Math.ceil(source.length / 4);
  let words = headWords + sourceWords;
  for (const event of batch.events) words += wordsOf(event);
  const out = new Uint32Array(words);
  out[0] = (magic | (version << 16) | (eventsKind << 24)) >>> 0;
  out[1] = batch.dpRank;
  out[2] = worker.lo;
  out[3] = worker.hi;
  out[4] = batch.events.length;
  out[5] = source.length;
  const bytes = new Uint8Array(out.buffer);
  bytes.set(source, 4 * headWords);
  let at = headWords + sourceWords;
  for (const event of batch.events) at = writeEvent(out, at, event);
  return bytes;
}

/** Reads a batch. Throws `malformed_reply` for bytes that are not exactly one. */
export function decodeKvEvents(bytes: Uint8Array): KvEventBatch {
  if (bytes.length < 4 * headWords || bytes.length % 4 !== 0) {
    throw bad(`expected a multiple of 4 from ${4 * headWords} bytes, got ${bytes.length}`);
  }
  const words = new Uint32Array(bytes.length / 4);
  new Uint8Array(words.buffer).set(bytes);
  const word = (at: number): number => words[at] ?? 0;
  if (word(0) !== (magic | (version << 16) | (eventsKind << 24)) >>> 0) {
    throw bad(`expected events of version ${version}, got head ${word(0).toString(16)}`);
  }
  const sourceBytes = word(5);
  const sourceWords = Math.ceil(sourceBytes / 4);
  if (sourceBytes > sourceBytesMax || headWords + sourceWords > words.length) {
    throw bad(`source of ${sourceBytes} bytes does not fit`);
  }
  const start = 4 * headWords;
  const stateSource = Buffer.from(words.buffer, start, sourceBytes).toString("utf8");
  const count = word(4);
  let at = headWords + sourceWords;
  if (count * eventHeadWords > words.length - at) throw bad(`${count} events do not fit`);
  const events: KvEvent[] = [];
  for (let left = count; left > 0; left--) {
    const event = readEvent(words, at);
    events.push(event);
    at += wordsOf(event);
  }
  if (at !== words.length) throw bad(`${words.length - at} words behind the last event`);
  return { workerId: formatU64(word(2), word(3)), dpRank: word(1), stateSource, events };
}

function wordsOf(event: KvEvent): number {
  if (event.type === "cleared") return eventHeadWords;
  if (event.type === "removed") return eventHeadWords + event.hashes.length;
  return eventHeadWords + (event.parent ? 2 : 0) + event.blocks.length;
}

function writeEvent(out: Uint32Array, start: number, event: KvEvent): number {
  const tier = event.type === "cleared" ? 0 : storageTiers.indexOf(event.tier);
  const parent = event.type === "stored" ? event.parent : undefined;
  out[start] = eventTypes.indexOf(event.type) | (tier << 8) | (parent ? 1 << 16 : 0);
  out[start + 2] = event.eventId >>> 0;
  out[start + 3] = Math.floor(event.eventId / two32);
  let at = start + eventHeadWords;
  if (event.type === "cleared") return at;
  if (parent) {
    out[at++] = parent.lo;
    out[at++] = parent.hi;
  }
  const lanes = event.type === "stored" ? event.blocks : event.hashes;
  out[start + 1] = lanes.length / (event.type === "stored" ? 4 : 2);
  out.set(lanes, at);
  return at + lanes.length;
}

function readEvent(words: Uint32Array, start: number): KvEvent {
  const word = (at: number): number => words[at] ?? 0;
  if (start + eventHeadWords > words.length) throw bad("an event is cut off");
  const type = eventTypes[word(start) & 0xff];
  const tier = storageTiers[(word(start) >>> 8) & 0xff];
  const flags = word(start) >>> 16;
  const count = word(start + 1);
  const eventId = word(start + 3) * two32 + word(start + 2);
  if (!type || !tier || flags > 1) throw bad(`unknown event head ${word(start).toString(16)}`);
  if (!Number.isSafeInteger(eventId)) throw bad("an event id above 2^53");
  let at = start + eventHeadWords;
  if (type !== "stored" && flags !== 0) throw bad(`a ${type} event with a parent`);
  if (type === "cleared") {
    if (count !== 0) throw bad(`a cleared event with ${count} blocks`);
    return { type, eventId };
  }
  const parent = flags === 1 ? { lo: word(at), hi: word(at + 1) } : undefined;
  if (parent) at += 2;
  const end = at + count * (type === "stored" ? 4 : 2);
  if (end > words.length) throw bad(`${count} blocks do not fit`);
  const lanes = words.subarray(at, end);
  if (type === "removed") return { type, eventId, tier, hashes: lanes };
  return { type, eventId, tier, parent, blocks: lanes };
}

function bad(message: string): TiergridError {
  return new TiergridError("malformed_reply", `KV event frame: ${message}`);
}
