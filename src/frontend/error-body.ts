/**
 * What a failed request looks like to an HTTP client: status, body and headers from an error code.
 *
 * The body carries the fault twice. Older clients of the reference read the flat fields, the OpenAI
 * SDKs read only `error`; without it they show "status code (no body)".
 */
import { STATUS_CODES } from "node:http";
import type { ErrorCode, TiergridError } from "../base/errors.ts";
import { defaultOverloadStatus, errorTable } from "../base/errors.ts";
import type { Random } from "../base/random.ts";

/** One thing wrong with a request; `pointer` is a JSON pointer or a header name. */
export interface Fault {
  readonly pointer: string;
  readonly reason: string;
  readonly message: string;
}

export interface ErrorBody {
  readonly message: string;
  readonly type: string;
  readonly code: number;
  readonly details: Readonly<Record<string, unknown>>;
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string;
  };
}

export interface ErrorAnswer {
  readonly status: number;
  readonly body: ErrorBody;
  readonly headers: Readonly<Record<string, string>>;
}

export interface ErrorAnswerOptions {
  /** Status of every overload code, 400..599. */
  readonly overloadStatus: number;
  readonly random: Random;
}

const retryAfterDefaultMs = 1000;
const retryAfterMaxMs = 600_000;
/** Share of the wait added at random, so that clients do not return together. */
const retryJitter = 0.25;

const extraReasons: Readonly<Record<number, string>> = {
  499: "Client Closed Request",
  529: "Overloaded",
};
/** The details a caller may see; others (subjects, instances) stay inside. */
const publicDetails = [
  ...["errors", "retry_after_ms", "limit", "bytes", "max", "worker_id"],
  ...["best_ttft_ms", "best_itl_ms"],
];
/** SDKs repeat every 5xx by themselves; a repeat of these only adds load. */
const statusesNotToRepeat = new Set([500, 501, 504]);

/** Status, body and headers for `error`. A bug's message is not shown to the caller. */
export function errorAnswer(error: TiergridError, options: ErrorAnswerOptions): ErrorAnswer {
  const status = errorStatus(error.code, options.overloadStatus);
  const { publicCode } = errorTable[error.code];
  const message = error.code === "internal_error" ? "Internal error" : error.message;
  const retryAfterMs = retryAfter(error, options.random);
  const details: Record<string, unknown> = {};
  for (const name of publicDetails) {
    if (error.details[name] !== undefined) details[name] = error.details[name];
  }
  if (retryAfterMs !== undefined) details["retry_after_ms"] = retryAfterMs;
  const param = error.details["param"];
  return {
    status,
    body: {
      message,
      type: reasonPhrase(status),
      code: status,
      details,
      error: {
        message,
        type: nestedType(error.code),
        param: typeof param === "string" ? param : null,
        code: publicCode,
      },
    },
    headers: headersFor(status, retryAfterMs),
  };
}

/** HTTP status of a code; that of overload may be configured. */
export function errorStatus(code: ErrorCode, overloadStatus: number): number {
  const { status } = errorTable[code];
  return status === defaultOverloadStatus ? overloadStatus : status;
}

function reasonPhrase(status: number): string {
  return extraReasons[status] ?? STATUS_CODES[status] ?? "Error";
}

function nestedType(code: ErrorCode): string {
  const { status, errorType } = errorTable[code];
  if (errorType === "overload") return "overloaded_error";
  return status < 500 ? "invalid_request_error" : "server_error";
}

/** Wait before a repeat can help, in ms with jitter; undefined when the code names none. */
function retryAfter(error: TiergridError, random: Random): number | undefined {
  const { errorType } = errorTable[error.code];
  if (errorType !== "overload" && errorType !== "unavailable") return undefined;
  const given = error.details["retryAfterMs"] ?? error.details["retry_after_ms"];
  const known = typeof given === "number" && given > 0 && Number.isFinite(given);
  const base = known ? Math.min(given, retryAfterMaxMs) : retryAfterDefaultMs;
  return Math.round(base * (1 + retryJitter * random()));
}

function headersFor(status: number, retryAfterMs: number | undefined): Record<string, string> {
  const headers: Record<string, string> = {};
  if (retryAfterMs !== undefined) {
    headers["retry-after"] = String(Math.max(1, Math.ceil(retryAfterMs / 1000)));
    headers["retry-after-ms"] = String(retryAfterMs);
  }
  if (statusesNotToRepeat.has(status)) headers["x-should-retry"] = "false";
  return headers;
}
