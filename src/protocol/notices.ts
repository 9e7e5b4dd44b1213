/**
 * Lifecycle notices: how dispatchers, which see no token, learn what became of a request.
 *
 * Sent to every subject of the request's `notify` list (`failed`: to the nearest, as a request).
 * Idempotent per (rid, attempt, type); they may come late, twice and in any order. Those that every
 * request makes travel together, as `notice-frame.ts` packs them; of the others each is a message of
 * JSON. JSON is understood of them all, one notice or an array.
 */
import { type ErrorCode, isErrorCode, TiergridError } from "../base/errors.ts";
import { isObject } from "./request-body.ts";
import type { FinishReason } from "./stream-frames.ts";

/** Inter-token gaps of one answer: counts per bucket of the standard ITL histogram. */
export interface ItlSummary {
  readonly count: number;
  readonly sum_ms: number;
  readonly buckets: readonly number[];
}

export type FinishedOutcome = "ok" | "error" | "cancelled" | "migrated";

interface NoticeOf<Type extends string> {
  readonly type: Type;
  readonly rid: string;
  readonly attempt: number;
}

/** A dispatcher below still looks for a worker: its answer comes later than the accept timeout. */
export interface QueuedNotice extends NoticeOf<"queued"> {
  /** Requests ahead of this one; 0 when it only waits for a hop's answer. */
  readonly position: number;
}
/** A worker took the request, where the envelope asks for a notice instead of a receipt. */
export interface AcceptedNotice extends NoticeOf<"accepted"> {
  readonly inst: string;
  /** From acceptance until the notice was sent. */
  readonly waited_ms: number;
}
/** The worker's first token left: its prefill is done. */
export interface FirstOutputNotice extends NoticeOf<"first_output"> {
  readonly ttft_ms: number;
  readonly cached_tokens?: number | undefined;
}
/** Output grew over a block boundary; only where the envelope asks for `progress`. */
export interface ProgressNotice extends NoticeOf<"progress"> {
  readonly output_tokens: number;
}
/** The worker is done with the request. */
export interface FinishedNotice extends NoticeOf<"finished"> {
  readonly outcome: FinishedOutcome;
  readonly output_tokens: number;
  readonly finish_reason?: FinishReason | undefined;
  readonly itl?: ItlSummary | undefined;
}
/** The attempt died before its first output; the dispatcher may try again. A request with reply. */
export interface FailedNotice extends NoticeOf<"failed"> {
  readonly code: ErrorCode;
  readonly message: string;
  readonly worker_lost: boolean;
}
/** The owner is done with the answer; measured values as the client saw them. */
export interface ClosedNotice extends NoticeOf<"closed"> {
  readonly outcome: "ok" | "error" | "cancelled" | "migrated";
  readonly ttft_ms?: number | undefined;
  readonly itl?: ItlSummary | undefined;
  readonly output_tokens: number;
  readonly decision_ids: readonly string[];
}
/** Every 5 s, worker to each dispatcher: the requests it still runs for it. */
export interface ActiveNotice {
  readonly type: "active";
  readonly inst: string;
  readonly requests: readonly { readonly rid: string; readonly attempt: number }[];
}

export type RequestNotice =
  | QueuedNotice
  | AcceptedNotice
  | FirstOutputNotice
  | ProgressNotice
  | FinishedNotice
  | FailedNotice
  | ClosedNotice;
export type Notice = RequestNotice | ActiveNotice;

/** Answer to a `failed` notice: `taken` when the dispatcher goes on with the request itself. */
export interface FailedReply {
  readonly taken: boolean;
}

const noticeTypes = new Set([
  "queued",
  "accepted",
  "first_output",
  "progress",
  "finished",
  "failed",
  "closed",
  "active",
]);

/** Notices of one message. */
export const noticesPerMessageMax = 256;

const decoder = new TextDecoder();

/** One notice as a message. */
export function encodeNotice(notice: Notice): Uint8Array {
  return Buffer.from(JSON.stringify(notice));
}

/** The notices of a JSON message; throws `malformed_reply` when one of them is not a notice. */
export function noticesFromJson(payload: Uint8Array): readonly Notice[] {
  const json = parsed(payload);
  if (!Array.isArray(json)) return [noticeOf(json)];
  if (json.length > noticesPerMessageMax) {
    const message = `a message has at most ${noticesPerMessageMax} notices, got ${json.length}`;
    throw new TiergridError("malformed_reply", message);
  }
  return json.map(noticeOf);
}

function noticeOf(value: unknown): Notice {
  if (!isObject(value)) throw new TiergridError("malformed_reply", "a notice is a JSON object");
  const type = value["type"];
  if (typeof type !== "string" || !noticeTypes.has(type)) {
    throw new TiergridError("malformed_reply", `not a notice type: ${String(type)}`);
  }
  if (type === "active") {
    if (typeof value["inst"] !== "string" || !Array.isArray(value["requests"])) {
      throw new TiergridError("malformed_reply", "an active notice names inst and requests");
    }
    return value as unknown as ActiveNotice;
  }
  if (typeof value["rid"] !== "string" || !Number.isInteger(value["attempt"])) {
    throw new TiergridError("malformed_reply", `a ${type} notice names rid and attempt`);
  }
  if (type === "accepted" && (typeof value["inst"] !== "string" || value["inst"] === "")) {
    throw new TiergridError("malformed_reply", "an accepted notice names inst");
  }
  if (type === "failed" && !isErrorCode(value["code"])) {
    return { ...value, code: "internal_error" } as unknown as FailedNotice;
  }
  return value as unknown as RequestNotice;
}

function parsed(payload: Uint8Array): unknown {
  try {
    return JSON.parse(decoder.decode(payload));
  } catch {
    throw new TiergridError("malformed_reply", "a notice is a JSON object; this is not JSON");
  }
}
