/**
 * A `Dispatch` whose envelope is JSON. Two forms, told apart by the first byte:
 *
 *   JSON    {"token_ids": [...], ...body, "tiergrid": {envelope}}       any client
 *   frame   header | JSON {...body, "tiergrid"} | the prompt's words    version 1: `frame-layout.ts`
 *
 * Frames of version 1 are read and not written: an owner may be older than the routers and workers.
 */
import { TiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import { type Frame, frameLayout, isFrame, splitFrame } from "./frame-layout.ts";
import { checkRequestBody, isObject, isU32, type JsonObject, shown } from "./request-body.ts";
import { envelopeFromJson, envelopeToJson } from "./request-envelope.ts";
import type { Dispatch, Prompt, RoutedEnvelope, TokenDispatch } from "./requests.ts";

/** A message that carries a dispatch; without an envelope, `reply` is the stream. */
export interface DispatchMessage {
  readonly payload: Uint8Array;
  readonly reply: string | undefined;
}

/** The JSON form, which has no hashes. */
export function encodeDispatchJson(dispatch: TokenDispatch): Uint8Array {
  const { body, envelope, prompt } = dispatch;
  const token_ids = Array.from(prompt.tokens);
  return Buffer.from(JSON.stringify({ token_ids, ...body, tiergrid: envelopeToJson(envelope) }));
}

/** Reads either form, as `decodeDispatch` says. */
export function decodeJsonDispatch({ payload, reply }: DispatchMessage, random: Random): Dispatch {
  const { prompt, body, tiergrid } = isFrame(payload) ? readFrame(payload) : readJson(payload);
  checkRequestBody(body);
  const envelope = envelopeFromJson(tiergrid, reply, random);
  checkSource(prompt, envelope);
  return { envelope, body, prompt };
}

interface DispatchParts {
  readonly prompt: Prompt;
  readonly body: JsonObject;
  readonly tiergrid: unknown;
}

function readJson(payload: Uint8Array): DispatchParts {
  const { token_ids, tiergrid, ...body } = parseJson(textOf(payload));
  return { prompt: { type: "tokens", tokens: tokensFromJson(token_ids) }, body, tiergrid };
}

function readFrame(payload: Uint8Array): DispatchParts {
  const frame = splitFrame(payload, (expected, found) => fail(`${expected}, got ${found}`));
  const prompt = promptOf(frame);
  const { tiergrid, ...body } = parseJson(textOf(frame.json));
  if (body["token_ids"] !== undefined) fail("packed tokens or token_ids, got both");
  return { prompt, body, tiergrid };
}

/** The words of a frame as a prompt; throws unless they are a whole one. */
export function promptOf({ kind, islTokens, blockSize, words }: Omit<Frame, "json">): Prompt {
  if (islTokens === 0) fail("at least one token, got none");
  if (kind === frameLayout.kindTokens) {
    if (islTokens !== words.length) fail(`${islTokens} tokens, got ${words.length}`);
    return { type: "tokens", tokens: words };
  }
  if (blockSize === 0) fail("hashes with their block size, got 0");
  const blocks = Math.floor(islTokens / blockSize);
  if (words.length !== 2 * blocks) {
    const found = `${words.length / 2} hashes`;
    fail(`${blocks} hashes for ${islTokens} tokens in blocks of ${blockSize}, got ${found}`);
  }
  return { type: "hashes", islTokens, blockSize, localHashes: words };
}

/** Who sends hashes says where the tokens are. */
export function checkSource(prompt: Prompt, { promptFrom }: RoutedEnvelope): void {
  if (prompt.type === "tokens" || promptFrom !== undefined) return;
  const field = "tiergrid.prompt_from";
  fail(`${field} must be given with a prompt as hashes, got nothing`, field);
}

function tokensFromJson(value: unknown): Uint32Array {
  if (!Array.isArray(value) || value.length === 0) {
    fail(`token_ids must be a non-empty array of integers, got ${shown(value)}`, "token_ids");
  }
  const tokens = new Uint32Array(value.length);
  for (let index = 0; index < value.length; index++) {
    const token: unknown = value[index];
    if (!isU32(token)) {
      const expected = "an integer in [0, 4294967295]";
      fail(`token_ids[${index}] must be ${expected}, got ${shown(token)}`, "token_ids");
    }
    tokens[index] = token;
  }
  return tokens;
}

/**
 * True when the sender of a message that `decodeDispatch` refused waits for a receipt: it speaks
 * frames, or names a stream. Any other sender follows its reply subject.
 */
export function awaitsReceipt(payload: Uint8Array): boolean {
  if (isFrame(payload)) return true;
  try {
    const { tiergrid } = parseJson(textOf(payload));
    return isObject(tiergrid) && tiergrid["stream"] !== undefined;
  } catch {
    return false;
  }
}

const decoder = new TextDecoder("utf-8", { fatal: true });

/** UTF-8 as text. */
export function textOf(bytes: Uint8Array): string {
  try {
    return decoder.decode(bytes);
  } catch {
    return notJson(bytes.length);
  }
}

/** The JSON object that `text` is. */
export function parseJson(text: string): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    notJson(Buffer.byteLength(text));
  }
  if (!isObject(value)) fail(`a JSON object, got ${shown(value)}`);
  return value;
}

function notJson(bytes: number): never {
  fail(`a JSON object, got ${bytes} bytes that are not JSON`);
}

/** Throws `invalid_request`; without a field, `message` goes on from "a request must be". */
export function fail(message: string, field?: string): never {
  const text = field === undefined ? `a request must be ${message}` : message;
  throw new TiergridError("invalid_request", text, field === undefined ? {} : { field });
}
