/**
 * Every way a request, a config or a bus call can fail, in one table.
 *
 * The code is what travels on the bus, what a metric is labelled with and what the caller sees;
 * the row gives its HTTP status, its metric label and whether the same request may be sent again.
 * A message text is never parsed.
 */

export interface ErrorRow {
  /** Status the frontend answers with. */
  readonly status: number;
  /** True when the same request may succeed elsewhere or later. */
  readonly retryable: boolean;
  /** Value of the `error_type` metric label. */
  readonly errorType: string;
  /** `error.code` of the OpenAI-form body. */
  readonly publicCode: string;
}

const row = (
  status: number,
  retryable: boolean,
  errorType: string,
  publicCode: string,
): ErrorRow => ({ status, retryable, errorType, publicCode });

/** 529 is the overload status of the field; `DYN_HTTP_OVERLOAD_STATUS_CODE` may change it. */
export const defaultOverloadStatus = 529;

export const errorTable = {
  // The request itself.
  invalid_request: row(400, false, "validation", "invalid_request"),
  context_length_exceeded: row(400, false, "validation", "context_length_exceeded"),
  pinned_worker_not_allowed: row(400, false, "validation", "invalid_request"),
  model_not_found: row(404, false, "not_found", "model_not_found"),
  not_found: row(404, false, "not_found", "not_found"),
  method_not_allowed: row(405, false, "validation", "method_not_allowed"),
  duplicate_request: row(409, false, "validation", "duplicate_request"),
  // A hop wants this prompt as tokens; its owner sends them.
  prompt_needed: row(409, false, "validation", "invalid_request"),
  payload_too_large: row(413, false, "validation", "payload_too_large"),
  unsupported_media_type: row(415, false, "validation", "unsupported_media_type"),
  cancelled: row(499, false, "cancelled", "cancelled"),
  not_implemented: row(501, false, "not_implemented", "not_implemented"),
  // Workers exist, but all that may take it are busy.
  overloaded: row(defaultOverloadStatus, true, "overload", "overloaded"),
  all_eligible_workers_overloaded: row(defaultOverloadStatus, true, "overload", "overloaded"),
  pinned_worker_overloaded: row(defaultOverloadStatus, false, "overload", "overloaded"),
  queue_rejected: row(defaultOverloadStatus, true, "overload", "overloaded"),
  do_not_queue: row(defaultOverloadStatus, true, "overload", "overloaded"),
  // No pool can serve it within its latency targets.
  sla_unattainable: row(429, false, "overload", "sla_unattainable"),
  // Nothing to send to.
  no_endpoints: row(503, true, "unavailable", "unavailable"),
  not_ready: row(503, true, "unavailable", "unavailable"),
  pool_unavailable: row(503, true, "unavailable", "unavailable"),
  subscriber_shutdown: row(503, true, "unavailable", "unavailable"),
  worker_draining: row(503, true, "unavailable", "unavailable"),
  worker_lost: row(503, true, "unavailable", "unavailable"),
  poison_request: row(503, false, "unavailable", "unavailable"),
  // The bus.
  disconnected: row(503, true, "unavailable", "unavailable"),
  no_responders: row(503, true, "unavailable", "unavailable"),
  bus_overloaded: row(503, true, "unavailable", "unavailable"),
  bus_closed: row(503, true, "unavailable", "unavailable"),
  prompt_lost: row(503, true, "unavailable", "unavailable"),
  resume_lost: row(503, true, "unavailable", "unavailable"),
  // Time.
  accept_timeout: row(504, true, "response_timeout", "response_timeout"),
  request_timeout: row(504, true, "response_timeout", "response_timeout"),
  stream_idle: row(504, true, "response_timeout", "response_timeout"),
  first_token_timeout: row(504, true, "response_timeout", "response_timeout"),
  deadline_exceeded: row(504, false, "response_timeout", "response_timeout"),
  // Disaggregation.
  no_disaggregated_params: row(503, true, "unavailable", "unavailable"),
  // Ours or the engine's.
  malformed_reply: row(503, true, "unavailable", "unavailable"),
  engine_error: row(500, true, "internal", "internal_error"),
  booking_failed: row(500, true, "internal", "internal_error"),
  config_invalid: row(500, false, "internal", "internal_error"),
  internal_error: row(500, false, "internal", "internal_error"),
} as const satisfies Record<string, ErrorRow>;

export type ErrorCode = keyof typeof errorTable;

export function isErrorCode(value: unknown): value is ErrorCode {
  return typeof value === "string" && Object.hasOwn(errorTable, value);
}

/** Facts about a fault for machines, e.g. `{ bytes: 9e6, max: 8e6 }`. */
export type ErrorDetails = Readonly<Record<string, unknown>>;

/** The one error class. `message` says what was expected and what came. */
export class TiergridError extends Error {
  readonly code: ErrorCode;
  readonly details: ErrorDetails;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message);
    this.name = "TiergridError";
    this.code = code;
    this.details = details;
  }

  get retryable(): boolean {
    return errorTable[this.code].retryable;
  }
}

/** Total: whatever was thrown becomes a `TiergridError`; unknown values become `internal_error`. */
export function toTiergridError(thrown: unknown): TiergridError {
  if (thrown instanceof TiergridError) return thrown;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new TiergridError("internal_error", message);
}
