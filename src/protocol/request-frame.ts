/**
 * A `Dispatch` as bytes. Two forms, told apart by the first byte:
 *
 *   JSON    {"token_ids": [...], ...body, "tiergrid": {envelope}}       any client
 *   frame   header 40 bytes | JSON {...body, "tiergrid"} padded to 4 | count x u32 tokens
 *
 *   header, little endian
 *    0 magic u16 "TG"    2 version u8          3 kind u8 (1 tokens)   4 islTokens u32
 *    8 expectedOutputTokens u32 (2^32-1 none) 12 ttftTargetMs f32 (NaN none)
 *   16 itlTargetMs f32  20 strictPriority u32 24 priorityJumpSeconds f32
 *   28 jsonBytes u32    32 count u32          36 blockSize u16 (0 unsaid)   38 flags u16 (0)
 *
 * The header repeats fields of the JSON, so that a hop may decide without parsing it; the hop that
 * parses both rejects a difference. 128 k tokens are 0.5 MB and one copy here, 0.8 MB and 131,072
 * parsed numbers in JSON. A hop that forwards re-encodes the JSON part and copies the token bytes.
 * Words are written through typed arrays: hosts are little endian, as is every platform of Node 20.
 */
import { TiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import { checkRequestBody, isObject, isU32, type JsonObject, shown } from "./request-body.ts";
import { envelopeFromJson, envelopeText, envelopeToJson } from "./request-envelope.ts";
import type { Dispatch, RequestBody } from "./requests.ts";

/** What every frame with this header starts with. */
export const requestFrame = {
  magic: 0x4754,
  version: 1,
  kindTokens: 1,
  kindHashes: 2,
  headerBytes: 40,
} as const;
const { magic, version, kindTokens, headerBytes: requestHeaderBytes } = requestFrame;
const none = 0xffffffff;

/** The header being written; encoding is synchronous and copies it. */
const headerBytes = new Uint8Array(requestHeaderBytes);
const headerView = new DataView(headerBytes.buffer);
const decoder = new TextDecoder("utf-8", { fatal: true });

/**
 * The binary frame; the tokens are copied, nothing of `dispatch` is kept. `bodyText` is the body as
 * `readDispatch` found it: a hop that does not change it need not print it.
 */
export function encodeDispatch(dispatch: Dispatch, bodyText?: string): Uint8Array {
  const { body, envelope, tokens } = dispatch;
  const fields = bodyText ?? JSON.stringify(body).slice(0, -1);
  const comma = fields === "{" ? "" : ",";
  const json = `${fields}${comma}"tiergrid":${envelopeText(envelope)}}`;
  const jsonBytes = Buffer.byteLength(json);
  const tokensAt = requestHeaderBytes + padded(jsonBytes);
  const bytes = Buffer.allocUnsafe(tokensAt + 4 * tokens.length);
  writeHeader(body, jsonBytes, tokens.length);
  bytes.set(headerBytes);
  bytes.write(json, requestHeaderBytes, "utf8");
  for (let at = requestHeaderBytes + jsonBytes; at < tokensAt; at++) bytes[at] = 0x20;
  bytes.set(new Uint8Array(tokens.buffer, tokens.byteOffset, 4 * tokens.length), tokensAt);
  return bytes;
}

/** The JSON form. */
export function encodeDispatchJson(dispatch: Dispatch): Uint8Array {
  const { body, envelope, tokens } = dispatch;
  const json = { token_ids: Array.from(tokens), ...body, tiergrid: envelopeToJson(envelope) };
  return Buffer.from(JSON.stringify(json));
}

/** A message that carries a dispatch; without an envelope, `reply` is the stream. */
export interface DispatchMessage {
  readonly payload: Uint8Array;
  readonly reply: string | undefined;
}

/**
 * Reads either form; a plain client's missing `rid` is drawn from `random`. The tokens are a copy,
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
  const { body, bodyText, tiergrid, tokens } = isFrame(payload)
    ? readFrame(payload)
    : readJson(payload);
  const envelope = envelopeFromJson(tiergrid, reply, random);
  return { dispatch: { envelope, body, tokens }, bodyText };
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

function isFrame(payload: Uint8Array): boolean {
  return payload[0] === (magic & 0xff) && payload[1] === magic >> 8;
}

interface JsonParts {
  readonly body: JsonObject;
  readonly bodyText: string | undefined;
  readonly tiergrid: unknown;
}

interface DispatchParts extends JsonParts {
  readonly tokens: Uint32Array;
}

function readJson(payload: Uint8Array): DispatchParts {
  const { token_ids, tiergrid, ...body } = parseJson(textOf(payload));
  checkRequestBody(body);
  return { body, bodyText: undefined, tiergrid, tokens: tokensFromJson(token_ids) };
}

function readFrame(payload: Uint8Array): DispatchParts {
  const header = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  const { jsonBytes, count } = checkHeader(header);
  const tokensAt = requestHeaderBytes + padded(jsonBytes);
  if (payload.length !== tokensAt + 4 * count) {
    fail(`a frame of ${tokensAt} bytes and ${count} tokens of 4, got ${payload.length} bytes`);
  }
  const text = textOf(payload.subarray(requestHeaderBytes, requestHeaderBytes + jsonBytes));
  const { body, bodyText, tiergrid } = halvesOf(text) ?? wholeOf(text);
  if (body["token_ids"] !== undefined) fail("packed tokens or token_ids, got both");
  checkRequestBody(body);
  checkRepeated(header, body, count);
  const tokens = packedTokens(payload.subarray(tokensAt), count);
  return { body, bodyText, tiergrid, tokens };
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

/** Counts of a frame's parts; throws unless magic, version, kind and counts can be read. */
function checkHeader(header: DataView): { jsonBytes: number; count: number } {
  if (header.byteLength < requestHeaderBytes) {
    fail(`a frame header of ${requestHeaderBytes} bytes, got ${header.byteLength}`);
  }
  if (header.getUint8(2) !== version) fail(`frame version ${version}, got ${header.getUint8(2)}`);
  if (header.getUint8(3) !== kindTokens) fail(`frame kind 1 (tokens), got ${header.getUint8(3)}`);
  const count = header.getUint32(32, true);
  if (count === 0) fail("at least one token, got none");
  return { jsonBytes: header.getUint32(28, true), count };
}

function writeHeader(body: RequestBody, jsonBytes: number, count: number): void {
  headerView.setUint16(0, magic, true);
  headerView.setUint8(2, version);
  headerView.setUint8(3, kindTokens);
  headerView.setUint32(4, count, true);
  headerView.setUint32(8, u32Or(body.routing?.expected_output_tokens, none), true);
  headerView.setFloat32(12, body.router?.ttft_target ?? Number.NaN, true);
  headerView.setFloat32(16, body.router?.itl_target ?? Number.NaN, true);
  headerView.setUint32(20, u32Or(body.routing?.strict_priority, 0), true);
  headerView.setFloat32(24, body.routing?.priority_jump ?? 0, true);
  headerView.setUint32(28, jsonBytes, true);
  headerView.setUint32(32, count, true);
}

/** Throws when the header's copies of JSON fields differ from the JSON. */
function checkRepeated(header: DataView, body: RequestBody, count: number): void {
  const { routing, router } = body;
  sameField("islTokens", header.getUint32(4, true), count);
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

function packedTokens(bytes: Uint8Array, count: number): Uint32Array {
  if (bytes.byteOffset % 4 === 0) return new Uint32Array(bytes.buffer, bytes.byteOffset, count);
  const tokens = new Uint32Array(count);
  new Uint8Array(tokens.buffer).set(bytes);
  return tokens;
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

const padded = (bytes: number): number => 4 * Math.ceil(bytes / 4);
const u32Or = (value: number | null | undefined, absent: number): number => value ?? absent;
const f32Or = (value: number | null | undefined, absent: number): number =>
  Math.fround(value ?? absent);

function fail(message: string, field?: string): never {
  const text = field === undefined ? `a request must be ${message}` : message;
  throw new TiergridError("invalid_request", text, field === undefined ? {} : { field });
}
