/**
 * A `Dispatch` as bytes. Two forms, told apart by the first byte:
 *
 *   JSON    {"token_ids": [...], ...body, "tiergrid": {envelope}}       any client
 *   frame   header | JSON {...body, "tiergrid"} | the prompt's words    `frame-layout.ts`
 *
 *   kind    1  the tokens
 *           2  local hashes of the full blocks; `tiergrid.prompt_from` hands out the tokens
 *
 * The header repeats fields of the JSON, so that a hop may decide without parsing it; the hop that
 * parses both rejects a difference. 128 k tokens are 0.5 MB and one copy here, 0.8 MB and 131,072
 * parsed numbers in JSON. A hop that forwards re-encodes the JSON part and copies the words.
 */
import { TiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import {
  encodeFrame,
  type Frame,
  type FrameWords,
  frameLayout,
  isFrame,
  splitFrame,
} from "./frame-layout.ts";
import { checkRequestBody, isObject, isU32, type JsonObject, shown } from "./request-body.ts";
import { envelopeFromJson, envelopeText, envelopeToJson } from "./request-envelope.ts";
import type { Dispatch, Envelope, Prompt, RequestBody, TokenDispatch } from "./requests.ts";

const { kindTokens, kindHashes } = frameLayout;
const none = 0xffffffff;

const decoder = new TextDecoder("utf-8", { fatal: true });

/**
 * The binary frame; the words are copied, nothing of `dispatch` is kept. `bodyText` is the body as
 * `readDispatch` found it: a hop that does not change it need not print it.
 */
export function encodeDispatch(dispatch: Dispatch, bodyText?: string): Uint8Array {
  const { body, envelope, prompt } = dispatch;
  const fields = bodyText ?? JSON.stringify(body).slice(0, -1);
  const comma = fields === "{" ? "" : ",";
  const json = `${fields}${comma}"tiergrid":${envelopeText(envelope)}}`;
  return encodeFrame(json, frameWordsOf(prompt), (header) => writeHints(header, body));
}

function frameWordsOf(prompt: Prompt): FrameWords {
  if (prompt.type === "hashes") {
    const { islTokens, blockSize, localHashes: words } = prompt;
    return { kind: kindHashes, islTokens, blockSize, words };
  }
  const { tokens: words } = prompt;
  return { kind: kindTokens, islTokens: words.length, blockSize: 0, words };
}

/** The JSON form, which has no hashes. */
export function encodeDispatchJson(dispatch: TokenDispatch): Uint8Array {
  const { body, envelope, prompt } = dispatch;
  const token_ids = Array.from(prompt.tokens);
  return Buffer.from(JSON.stringify({ token_ids, ...body, tiergrid: envelopeToJson(envelope) }));
}

/** A message that carries a dispatch; without an envelope, `reply` is the stream. */
export interface DispatchMessage {
  readonly payload: Uint8Array;
  readonly reply: string | undefined;
}

/**
 * Reads either form; a plain client's missing `rid` is drawn from `random`. The prompt is a copy,
 * or a view of the payload where it is aligned. Throws `invalid_request` saying what was expected.
 */
export function decodeDispatch(message: DispatchMessage, random: Random): Dispatch {
  return readDispatch(message, random).dispatch;
}

/** A dispatch, and its body as it stands in a frame of ours, without the closing brace. */
export interface ReadDispatch {
  readonly dispatch: Dispatch;
  readonly bodyText: string | undefined;
}

/** `decodeDispatch`, for a hop that passes the request on. */
export function readDispatch({ payload, reply }: DispatchMessage, random: Random): ReadDispatch {
  const { body, bodyText, tiergrid, prompt } = isFrame(payload)
    ? readFrame(payload)
    : readJson(payload);
  const envelope = envelopeFromJson(tiergrid, reply, random);
  checkSource(prompt, envelope);
  return { dispatch: { envelope, body, prompt }, bodyText };
}

/** Who sends hashes says where the tokens are. */
function checkSource(prompt: Prompt, { promptFrom }: Envelope): void {
  if (prompt.type === "tokens" || promptFrom !== undefined) return;
  const field = "tiergrid.prompt_from";
  fail(`${field} must be given with a prompt as hashes, got nothing`, field);
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

interface JsonParts {
  readonly body: JsonObject;
  readonly bodyText: string | undefined;
  readonly tiergrid: unknown;
}

interface DispatchParts extends JsonParts {
  readonly prompt: Prompt;
}

function readJson(payload: Uint8Array): DispatchParts {
  const { token_ids, tiergrid, ...body } = parseJson(textOf(payload));
  checkRequestBody(body);
  const prompt = { type: "tokens", tokens: tokensFromJson(token_ids) } as const;
  return { body, bodyText: undefined, tiergrid, prompt };
}

function readFrame(payload: Uint8Array): DispatchParts {
  const frame = splitFrame(payload, (expected, found) => fail(`${expected}, got ${found}`));
  const prompt = promptOf(frame);
  const { body, bodyText, tiergrid } = partsOf(textOf(frame.json));
  if (body["token_ids"] !== undefined) fail("packed tokens or token_ids, got both");
  checkRequestBody(body);
  checkRepeated(frame.header, body);
  return { body, bodyText, tiergrid, prompt };
}

function partsOf(text: string): JsonParts {
  return halvesOf(text) ?? wholeOf(text);
}

/** Throws unless the words are a whole prompt. */
function promptOf({ kind, islTokens, blockSize, words }: Frame): Prompt {
  if (islTokens === 0) fail("at least one token, got none");
  if (kind === kindTokens) {
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

/** How our frames go on after the body's fields. */
const envelopeKey = ',"tiergrid":';

/**
 * Both halves of `{…body,"tiergrid":…}`, each parsed alone: where both are JSON, so is the whole, with
 * these fields. Undefined for any other text.
 */
function halvesOf(text: string): JsonParts | undefined {
  const at = text.indexOf(envelopeKey);
  if (at < 0 || !text.endsWith("}")) return undefined;
  const bodyText = text.slice(0, at);
  try {
    const body: unknown = JSON.parse(`${bodyText}}`);
    if (!isObject(body) || body["tiergrid"] !== undefined) return undefined;
    const tiergrid: unknown = JSON.parse(text.slice(at + envelopeKey.length, -1));
    return { body, bodyText, tiergrid };
  } catch {
    // The key stood elsewhere, or this is no JSON: reading the whole tells which.
    return undefined;
  }
}

function wholeOf(text: string): JsonParts {
  const { tiergrid, ...body } = parseJson(text);
  return { body, bodyText: undefined, tiergrid };
}

function writeHints(header: DataView, { routing, router }: RequestBody): void {
  header.setUint32(8, u32Or(routing?.expected_output_tokens, none), true);
  header.setFloat32(12, router?.ttft_target ?? Number.NaN, true);
  header.setFloat32(16, router?.itl_target ?? Number.NaN, true);
  header.setUint32(20, u32Or(routing?.strict_priority, 0), true);
  header.setFloat32(24, routing?.priority_jump ?? 0, true);
}

/** Throws when the header's copies of JSON fields differ from the JSON. */
function checkRepeated(header: DataView, { routing, router }: RequestBody): void {
  const expectedOutput = u32Or(routing?.expected_output_tokens, none);
  sameField("expectedOutputTokens", header.getUint32(8, true), expectedOutput);
  sameField("ttftTargetMs", header.getFloat32(12, true), f32Or(router?.ttft_target, Number.NaN));
  sameField("itlTargetMs", header.getFloat32(16, true), f32Or(router?.itl_target, Number.NaN));
  sameField("strictPriority", header.getUint32(20, true), u32Or(routing?.strict_priority, 0));
  sameField("priorityJumpSeconds", header.getFloat32(24, true), f32Or(routing?.priority_jump, 0));
}

function sameField(field: string, inHeader: number, inJson: number): void {
  if (Object.is(inHeader, inJson)) return;
  fail(`the same ${field} in header and JSON, got ${inHeader} and ${inJson}`);
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

function textOf(bytes: Uint8Array): string {
  try {
    return decoder.decode(bytes);
  } catch {
    return notJson(bytes.length);
  }
}

function parseJson(text: string): JsonObject {
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

const u32Or = (value: number | null | undefined, absent: number): number => value ?? absent;
const f32Or = (value: number | null | undefined, absent: number): number =>
  Math.fround(value ?? absent);

function fail(message: string, field?: string): never {
  const text = field === undefined ? `a request must be ${message}` : message;
  throw new TiergridError("invalid_request", text, field === undefined ? {} : { field });
}
