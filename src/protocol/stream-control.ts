/** Control messages, owner to worker, and their replies, as JSON bytes. */
import { TiergridError } from "../base/errors.ts";
import { isObject, isU32, type JsonObject, shown } from "./request-body.ts";
import { isRid } from "./request-envelope.ts";
import type { ControlMessage, ControlReply, StreamAck } from "./stream-frames.ts";

/** Streams one ack message may name; owners with more send several. */
export const acksPerMessageMax = 1024;

const decoder = new TextDecoder();

export function encodeControl(message: ControlMessage): Uint8Array {
  return Buffer.from(JSON.stringify(message));
}

/** Throws `malformed_reply` unless the payload is a control message; unknown fields are ignored. */
export function decodeControl(payload: Uint8Array): ControlMessage {
  const json = parseObject(payload, "a control message");
  if (json["type"] === "ack") return { type: "ack", acks: acksOf(json["acks"]) };
  const { type, rid, attempt, from } = json;
  if (!isRid(rid) || !isU32(attempt)) fail("a control message names rid and attempt", json);
  if (type === "cancel" || type === "ping") return { type, rid, attempt };
  if (type === "resume" && isU32(from)) return { type, rid, attempt, from };
  return fail("a control message is resume, cancel, ping or ack", json);
}

export function encodeControlReply(reply: ControlReply): Uint8Array {
  return Buffer.from(JSON.stringify(reply));
}

/** Throws `malformed_reply` unless the payload says `ok: true` or `ok: false`. */
export function decodeControlReply(payload: Uint8Array): ControlReply {
  const { ok } = parseObject(payload, "a control reply");
  if (typeof ok !== "boolean") fail("a control reply says ok true or false", ok);
  return { ok };
}

function acksOf(value: unknown): readonly StreamAck[] {
  if (!Array.isArray(value) || value.length > acksPerMessageMax || !value.every(isAck)) {
    fail(`acks is an array of at most ${acksPerMessageMax} {rid, attempt, next}`, value);
  }
  return value;
}

function isAck(value: unknown): value is StreamAck {
  if (!isObject(value)) return false;
  return isRid(value["rid"]) && isU32(value["attempt"]) && isU32(value["next"]);
}

function parseObject(payload: Uint8Array, what: string): JsonObject {
  let json: unknown;
  try {
    json = JSON.parse(decoder.decode(payload));
  } catch {
    fail(`${what} is JSON`, `${payload.length} other bytes`);
  }
  if (!isObject(json)) fail(`${what} is a JSON object`, json);
  return json;
}

function fail(expected: string, found: unknown): never {
  throw new TiergridError("malformed_reply", `${expected}, got ${shown(found)}`);
}
