/**
 * A question to a local router that carries the hashes of a prompt instead of its tokens: 8 bytes a
 * block where tokens are 4 bytes each, so a prompt of any length fits one small message.
 *
 *   JSON    {"local_hashes": ["123", …], "num_tokens": n, …body}
 *   frame   header 40 bytes | JSON {…body} padded to 4 | count x (lo u32, hi u32)
 *
 * The header is that of `request-frame.ts` with kind 2: bytes 4 islTokens, 28 jsonBytes, 32 count,
 * 36 blockSize; the fields between repeat nothing and are zero. LoRA, salt and media must be in the
 * hashes already. The sender's hashes are believed: they decide where a request goes, never what it
 * computes.
 */
import { TiergridError } from "../base/errors.ts";
import { checkRequestBody, type JsonObject, readJsonObject, shown } from "./request-body.ts";
import { requestFrame } from "./request-frame.ts";
import type { RequestBody } from "./requests.ts";
import { readU64Json } from "./u64.ts";

/** Blocks of one question. */
export const questionHashesMax = 1 << 20;

export interface HashQuestion {
  readonly body: RequestBody;
  readonly islTokens: number;
  /** Tokens per block that were hashed; undefined when the sender did not say. */
  readonly blockSize: number | undefined;
  /** Hash of each full block alone, 2 u32 per block; may be a view of the payload. */
  readonly localHashes: Uint32Array;
}

/** The binary frame. */
export function encodeHashQuestion(question: HashQuestion): Uint8Array {
  const { body, islTokens, blockSize, localHashes } = question;
  const json = Buffer.from(JSON.stringify(body));
  const hashesAt = requestFrame.headerBytes + 4 * Math.ceil(json.length / 4);
  const bytes = new Uint8Array(hashesAt + 4 * localHashes.length);
  const header = new DataView(bytes.buffer);
  header.setUint16(0, requestFrame.magic, true);
  header.setUint8(2, requestFrame.version);
  header.setUint8(3, requestFrame.kindHashes);
  header.setUint32(4, islTokens, true);
  header.setUint32(28, json.length, true);
  header.setUint32(32, localHashes.length / 2, true);
  header.setUint16(36, blockSize ?? 0, true);
  bytes.set(json, requestFrame.headerBytes);
  bytes.fill(0x20, requestFrame.headerBytes + json.length, hashesAt);
  bytes.set(
    new Uint8Array(localHashes.buffer, localHashes.byteOffset, 4 * localHashes.length),
    hashesAt,
  );
  return bytes;
}

/** Undefined when the payload carries no hashes; throws `invalid_request` when it does, wrongly. */
export function decodeHashQuestion(payload: Uint8Array): HashQuestion | undefined {
  if (isHashFrame(payload)) return readFrame(payload);
  if (!Buffer.from(payload.buffer, payload.byteOffset, payload.length).includes('"local_hashes"')) {
    return undefined;
  }
  const json = readJsonObject(payload, subject);
  return json["local_hashes"] === undefined ? undefined : readJson(json);
}

function isHashFrame(payload: Uint8Array): boolean {
  const { magic, kindHashes } = requestFrame;
  return payload[0] === (magic & 0xff) && payload[1] === magic >> 8 && payload[3] === kindHashes;
}

function readFrame(payload: Uint8Array): HashQuestion {
  const { headerBytes, version } = requestFrame;
  if (payload.length < headerBytes) throw wrong(`a header of ${headerBytes} bytes`, payload.length);
  const header = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  if (header.getUint8(2) !== version) throw wrong(`frame version ${version}`, header.getUint8(2));
  const jsonBytes = header.getUint32(28, true);
  const count = header.getUint32(32, true);
  const hashesAt = headerBytes + 4 * Math.ceil(jsonBytes / 4);
  if (payload.length !== hashesAt + 8 * count) {
    throw wrong(`${hashesAt} bytes and ${count} hashes of 8`, payload.length);
  }
  const body = readJsonObject(payload.subarray(headerBytes, headerBytes + jsonBytes), subject);
  const localHashes = wordsOf(payload.subarray(hashesAt));
  const blockSize = header.getUint16(36, true) || undefined;
  return checked(body, { islTokens: header.getUint32(4, true), blockSize, localHashes });
}

/** The bytes as words: a view where they lie on a multiple of 4, as most large ones do, else a copy. */
function wordsOf(bytes: Uint8Array): Uint32Array {
  const { buffer, byteOffset } = bytes.byteOffset % 4 === 0 ? bytes : new Uint8Array(bytes);
  return new Uint32Array(buffer, byteOffset, bytes.length / 4);
}

function readJson({ local_hashes, num_tokens, block_size, ...body }: JsonObject): HashQuestion {
  if (!Array.isArray(local_hashes) || local_hashes.length > questionHashesMax) {
    throw wrong(`local_hashes to be an array of at most ${questionHashesMax}`, local_hashes);
  }
  const localHashes = new Uint32Array(2 * local_hashes.length);
  for (const [block, hash] of local_hashes.entries()) {
    const lanes = readU64Json(hash);
    if (!lanes) throw wrong(`local_hashes[${block}] to be an unsigned 64-bit integer`, hash);
    localHashes[2 * block] = lanes.lo;
    localHashes[2 * block + 1] = lanes.hi;
  }
  const blockSize = block_size === undefined ? undefined : Number(block_size);
  return checked(body, { islTokens: Number(num_tokens), blockSize, localHashes });
}

function checked(body: JsonObject, rest: Omit<HashQuestion, "body">): HashQuestion {
  if (!Number.isSafeInteger(rest.islTokens) || rest.islTokens <= 0) {
    throw wrong("num_tokens to be an integer > 0", rest.islTokens);
  }
  checkRequestBody(body);
  return { body, ...rest };
}

const subject = "a question by hashes";

function wrong(expected: string, found: unknown): TiergridError {
  const message = `${subject} needs ${expected}, got ${shown(found)}`;
  return new TiergridError("invalid_request", message);
}
