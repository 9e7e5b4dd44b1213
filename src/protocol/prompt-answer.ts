/**
 * How a worker gets the tokens of a prompt that came as hashes: it asks at the dispatch's
 * `tiergrid.prompt_from`, with a reply subject.
 *
 *   question  JSON {"rid", "attempt"}
 *   answer    0 magic u16 "TP"  2 version u8  3 kind u8 (0 no prompt, 1 tokens)
 *             4 count u32       8 count x u32 tokens                        little endian
 *
 * Kind 0: the owner has no such call, or a newer one; nobody wants the attempt any more.
 */
import { TiergridError } from "../base/errors.ts";
import { wordsOf } from "./frame-layout.ts";
import { isU32, readJsonObject, shown } from "./request-body.ts";
import { isRid } from "./request-envelope.ts";

export interface PromptQuestion {
  readonly rid: string;
  readonly attempt: number;
}

const magic = 0x5054;
const version = 1;
const kindNone = 0;
const kindTokens = 1;
const headerBytes = 8;

export function encodePromptQuestion({ rid, attempt }: PromptQuestion): Uint8Array {
  return Buffer.from(`{"rid":"${rid}","attempt":${attempt}}`);
}

/** Throws `invalid_request`. */
export function decodePromptQuestion(payload: Uint8Array): PromptQuestion {
  const { rid, attempt } = readJsonObject(payload, "a question for a prompt");
  if (isRid(rid) && isU32(attempt)) return { rid, attempt };
  const found = `${shown(rid)} and ${shown(attempt)}`;
  const message = `a question for a prompt must be {rid, attempt}, got ${found}`;
  throw new TiergridError("invalid_request", message);
}

/** Bytes of the answer with that many tokens. */
export const promptAnswerBytes = (tokens: number): number => headerBytes + 4 * tokens;

/** The answer; undefined = there is no such prompt. */
export function encodePromptAnswer(tokens: Uint32Array | undefined): Uint8Array {
  const count = tokens?.length ?? 0;
  const bytes = Buffer.allocUnsafe(promptAnswerBytes(count));
  const header = new DataView(bytes.buffer, bytes.byteOffset, headerBytes);
  header.setUint16(0, magic, true);
  header.setUint8(2, version);
  header.setUint8(3, tokens ? kindTokens : kindNone);
  header.setUint32(4, count, true);
  if (tokens) bytes.set(new Uint8Array(tokens.buffer, tokens.byteOffset, 4 * count), headerBytes);
  return bytes;
}

/** The tokens, which may be a view of the payload, or undefined; throws `malformed_reply`. */
export function decodePromptAnswer(payload: Uint8Array): Uint32Array | undefined {
  if (payload.length < headerBytes) throw malformed(`${headerBytes} bytes`, payload.length);
  const header = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  if (header.getUint16(0, true) !== magic) throw malformed("TP", header.getUint16(0, true));
  if (header.getUint8(2) !== version) throw malformed(`version ${version}`, header.getUint8(2));
  const kind = header.getUint8(3);
  if (kind !== kindNone && kind !== kindTokens) throw malformed("kind 0 or 1", kind);
  const count = header.getUint32(4, true);
  const expectedBytes = promptAnswerBytes(kind === kindTokens ? count : 0);
  if (payload.length !== expectedBytes) throw malformed(`${expectedBytes} bytes`, payload.length);
  return kind === kindTokens ? wordsOf(payload, headerBytes) : undefined;
}

function malformed(expected: string, found: number): TiergridError {
  const message = `an answer with a prompt must have ${expected}, got ${found}`;
  return new TiergridError("malformed_reply", message);
}
