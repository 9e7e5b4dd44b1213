/**
 * The envelope as JSON: the `tiergrid` object of a request, snake_case. And what holds for its fields
 * in any form: a hop trusts nothing in them, subjects must be of the kind they are used for, and
 * every list has a bound.
 */
import { TiergridError } from "../base/errors.ts";
import { type Random, randomHex128 } from "../base/random.ts";
import { isObject, isU32, type JsonObject, shown } from "./request-body.ts";
import {
  attemptNumber,
  type Envelope,
  type HopDecision,
  type Phase,
  type StreamAddress,
} from "./requests.ts";
import { isForeignReply, noticeSubject } from "./subjects.ts";

export const notifyMax = 8;
export const avoidMax = 64;
export const decisionsMax = 16;
/** Time an answer may take when its caller does not say. */
export const requestDeadlineMs = 600_000;
export const firstAttempt = attemptNumber({ call: 1, global: 0, local: 0 });

export function envelopeToJson(envelope: Envelope): JsonObject {
  return {
    rid: envelope.rid,
    attempt: envelope.attempt,
    first: envelope.first,
    phase: envelope.phase,
    deadline_ms: envelope.deadlineMs,
    stream: envelope.stream,
    ...(envelope.promptFrom === undefined ? {} : { prompt_from: envelope.promptFrom }),
    notify: envelope.notify,
    ...(envelope.progress ? { progress: true } : {}),
    ...(envelope.acceptNotice ? { accept_notice: true } : {}),
    avoid: envelope.avoid,
    decisions: envelope.decisions,
  };
}

/**
 * Reads a `tiergrid` object. What it leaves out gets a default: a new `rid`, and `reply` (the reply
 * subject of the message) as a JSON stream. Throws `invalid_request` naming the field.
 */
export function envelopeFromJson(
  value: unknown,
  reply: string | undefined,
  random: Random,
): Envelope {
  if (value !== undefined && !isObject(value)) fail("", "an object", value);
  const json: JsonObject = value ?? {};
  const { attempt = firstAttempt, first = 0, phase = "aggregated" } = json;
  const { rid, stream, prompt_from: promptFrom, deadline_ms = requestDeadlineMs } = json;
  const { notify = [], progress = false, accept_notice = false, avoid = [], decisions = [] } = json;
  return {
    rid: rid === undefined ? randomHex128(random) : ridOf(rid),
    attempt: attemptOf(attempt),
    first: u32Of("first", first),
    phase: phaseOf(phase),
    deadlineMs: deadlineOf(deadline_ms),
    stream: stream === undefined ? replyStream(reply) : streamOf(stream),
    promptFrom: promptFrom === undefined ? undefined : inboxOf("prompt_from", promptFrom),
    notify: notifyOf(notify),
    progress: flagOf("progress", progress),
    acceptNotice: flagOf("accept_notice", accept_notice),
    avoid: avoidOf(avoid),
    decisions: decisionsOf(decisions),
  };
}

export function isRid(value: unknown): value is string {
  return typeof value === "string" && /^[0-9a-f]{32}$/.test(value);
}

export function isDecision(value: unknown): value is HopDecision {
  return isObject(value) && typeof value["decision_id"] === "string";
}

function replyStream(reply: string | undefined): StreamAddress {
  if (reply === undefined) fail("stream", "given when the message has no reply subject", undefined);
  return streamOf({ subject: reply, format: "json", key: 0, acks: false });
}

function streamOf(value: unknown): StreamAddress {
  if (!isObject(value)) fail("stream", "an object", value);
  const { format = "json", key = 0, acks = false } = value;
  const subject = inboxOf("stream.subject", value["subject"]);
  if (format !== "bundle" && format !== "json") fail("stream.format", "bundle or json", format);
  return { subject, format, key: u32Of("stream.key", key), acks: flagOf("stream.acks", acks) };
}

/** Throws, as those below do, `invalid_request` naming the field. */
export function inboxOf(field: string, value: unknown): string {
  if (typeof value !== "string" || !isForeignReply(value)) fail(field, "an inbox subject", value);
  return value;
}

function flagOf(field: string, value: unknown): boolean {
  if (typeof value !== "boolean") fail(field, "a boolean", value);
  return value;
}

function ridOf(value: unknown): string {
  if (!isRid(value)) fail("rid", "32 hex digits", value);
  return value;
}

export function attemptOf(value: unknown): number {
  const attempt = u32Of("attempt", value);
  if (attempt < firstAttempt) fail("attempt", `>= ${firstAttempt}`, value);
  return attempt;
}

export function phaseOf(value: unknown): Phase {
  if (value === "prefill" || value === "decode" || value === "aggregated") return value;
  return fail("phase", "prefill, decode or aggregated", value);
}

export function deadlineOf(value: unknown): number {
  if (typeof value !== "number" || !(value > 0) || !Number.isFinite(value)) {
    fail("deadline_ms", "a positive number", value);
  }
  return value;
}

function u32Of(field: string, value: unknown): number {
  if (!isU32(value)) fail(field, "an integer in [0, 4294967295]", value);
  return value;
}

export function notifyOf(value: unknown): readonly string[] {
  return listOf("notify", value, notifyMax, isNoticeSubject) as readonly string[];
}

export function avoidOf(value: unknown): readonly string[] {
  return listOf("avoid", value, avoidMax, isName) as readonly string[];
}

export function decisionsOf(value: unknown): readonly HopDecision[] {
  return listOf("decisions", value, decisionsMax, isDecision) as readonly HopDecision[];
}

function listOf(
  field: string,
  value: unknown,
  max: number,
  holds: (item: unknown) => boolean,
): readonly unknown[] {
  if (!Array.isArray(value) || value.length > max || !value.every(holds)) {
    fail(field, `an array of at most ${max} valid items`, value);
  }
  return value;
}

function isName(value: unknown): boolean {
  return typeof value === "string" && value !== "" && value.length <= 1024;
}

const noticePrefix = noticeSubject("x").slice(0, -1);

function isNoticeSubject(value: unknown): boolean {
  if (typeof value !== "string" || !value.startsWith(noticePrefix)) return false;
  return /^[A-Za-z0-9_=-]{1,64}$/.test(value.slice(noticePrefix.length));
}

function fail(field: string, expected: string, found: unknown): never {
  const path = field === "" ? "tiergrid" : `tiergrid.${field}`;
  const message = `${path} must be ${expected}, got ${shown(found)}`;
  throw new TiergridError("invalid_request", message, { field: path });
}
