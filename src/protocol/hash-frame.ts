/**
 * A question to a local router that carries the hashes of a prompt instead of its tokens: 8 bytes a
 * block where tokens are 4 bytes each, so a prompt of any length fits one small message.
 *
 *   JSON    {"local_hashes": ["123", …], "num_tokens": n, …body}
 *   frame   header | JSON {…body} | count x (lo u32, hi u32)        `frame-layout.ts`, kind 2
 *
 * The header's fields that repeat others are zero. LoRA, salt and media must be in the
 * hashes already. The sender's hashes are believed: they decide where a request goes, never what it
 * computes.
 */
import { TiergridError } from "../base/errors.ts";
import { encodeFrame, frameLayout, isHashFrame, splitFrame } from "./frame-layout.ts";
import { checkRequestBody, type JsonObject, readJsonObject, shown } from "./request-body.ts";
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
  const { body, islTokens, blockSize = 0, localHashes: words } = question;
  const { kindHashes: kind } = frameLayout;
  return encodeFrame(JSON.stringify(body), { kind, islTokens, blockSize, words });
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

function readFrame(payload: Uint8Array): HashQuestion {
  const frame = splitFrame(payload, (expected, found) => {
    throw wrong(expected, found);
  });
  const { islTokens, blockSize, words: localHashes } = frame;
  const body = readJsonObject(frame.json, subject);
  return checked(body, { islTokens, blockSize: blockSize || undefined, localHashes });
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
