/**
 * Stream frames as JSON, one frame per message, snake_case: what a plain NATS client reads. The
 * same fields, without the numbers that stand in a record's header, make up the JSON of a bundle
 * record (`stream-bundle.ts`).
 *
 *   {"type":"accepted","rid","attempt","epoch","inst","control","notify","worker_id","dp_rank",
 *    "decisions"}
 *   {"type":"tokens","rid","attempt","first","token_ids":[..],"text"?,"disaggregated_params"?,..}
 *   {"type":"heartbeat","rid","attempt","next","phase"}
 *   {"type":"end","rid","attempt","total","finish_reason","stop_reason"?,"usage"?,"rest"?}
 *   {"type":"error","rid","attempt","code","message","retryable","started"}
 *
 * Other fields of a tokens frame are the engine's own (log_probs, ...) and pass through.
 */
import { errorTable, isErrorCode, TiergridError } from "../base/errors.ts";
import { isObject, isU32, type JsonObject, shown } from "./request-body.ts";
import { isDecision, isRid } from "./request-envelope.ts";
import type {
  AcceptedFrame,
  CompletionUsage,
  EndFrame,
  EngineOutput,
  ErrorFrame,
  FinishReason,
  StreamFrame,
  TokensFrame,
  WaitPhase,
} from "./stream-frames.ts";

export const finishReasons: readonly FinishReason[] = [
  "eos",
  "stop",
  "length",
  "cancelled",
  "content_filter",
];
export const waitPhases: readonly WaitPhase[] = ["queued", "prefill", "decode"];

const decoder = new TextDecoder();

export interface AddressedFrame {
  readonly rid: string;
  readonly frame: StreamFrame;
}

export function encodeJsonFrame(rid: string, frame: StreamFrame): Uint8Array {
  const plain = frame.type === "tokens" && outputExtras(frame.output) === undefined;
  return Buffer.from(plain ? tokensText(rid, frame) : JSON.stringify(frameToJson(rid, frame)));
}

/** Most frames by far; hex digits and numbers need no escaping. */
function tokensText(rid: string, { attempt, first, output }: TokensFrame): string {
  const ids = output.tokenIds.join(",");
  const head = `{"type":"tokens","rid":"${rid}","attempt":${attempt}`;
  return `${head},"first":${first},"token_ids":[${ids}]}`;
}

/** Undefined for a frame type of a newer version; throws `malformed_reply` on anything else. */
export function decodeJsonFrame(payload: Uint8Array): AddressedFrame | undefined {
  const json = parseFrameObject(payload);
  const { type, rid, attempt } = json;
  if (typeof type !== "string" || !isRid(rid) || !isU32(attempt)) {
    fail("a frame names type, rid and attempt", json);
  }
  const frame = frameFromJson(type, attempt, json);
  return frame && { rid, frame };
}

export function parseFrameObject(payload: Uint8Array): JsonObject {
  let json: unknown;
  try {
    json = JSON.parse(decoder.decode(payload));
  } catch {
    fail("a frame is JSON", `${payload.length} other bytes`);
  }
  if (!isObject(json)) fail("a frame is a JSON object", json);
  return json;
}

function frameToJson(rid: string, frame: StreamFrame): JsonObject {
  const head = { type: frame.type, rid, attempt: frame.attempt };
  switch (frame.type) {
    case "tokens":
      return { ...outputToJson(frame.output), ...head, first: frame.first };
    case "accepted":
      return { ...head, ...acceptedFields(frame) };
    case "heartbeat":
      return { ...head, next: frame.next, phase: frame.phase };
    case "end":
      return { ...head, total: frame.total, ...endFields(frame) };
    case "error":
      return { ...head, ...errorFields(frame) };
  }
}

function frameFromJson(type: string, attempt: number, json: JsonObject): StreamFrame | undefined {
  switch (type) {
    case "tokens":
      return { type, attempt, first: countOf(json, "first"), output: tokensOutput(json) };
    case "accepted":
      return acceptedFrame(attempt, json);
    case "heartbeat":
      return { type, attempt, next: countOf(json, "next"), phase: phaseOf(json["phase"]) };
    case "end":
      return endFrame(attempt, countOf(json, "total"), json);
    case "error":
      return errorFrame(attempt, json);
    default:
      return undefined;
  }
}

export function acceptedFields(frame: AcceptedFrame): JsonObject {
  const { epoch, inst, control, notify, workerId, dpRank, decisions } = frame;
  return { epoch, inst, control, notify, worker_id: workerId, dp_rank: dpRank, decisions };
}

export function acceptedFrame(attempt: number, json: JsonObject): AcceptedFrame {
  const { epoch, inst, control, notify = [], worker_id, dp_rank, decisions = [] } = json;
  const texts = [epoch, inst, control, worker_id];
  if (!texts.every((value) => typeof value === "string") || !isU32(dp_rank)) {
    fail("accepted names epoch, inst, control, worker_id and dp_rank", json);
  }
  if (!Array.isArray(notify) || !notify.every((subject) => typeof subject === "string")) {
    fail("notify is an array of subjects", notify);
  }
  if (!Array.isArray(decisions) || !decisions.every(isDecision)) {
    fail("decisions is an array of decisions", decisions);
  }
  return {
    type: "accepted",
    attempt,
    epoch: epoch as string,
    inst: inst as string,
    control: control as string,
    notify,
    workerId: worker_id as string,
    dpRank: dp_rank,
    decisions,
  };
}

export function endFields(frame: EndFrame): JsonObject {
  const { finishReason, stopReason, usage, rest } = frame;
  const fields = { finish_reason: finishReason, stop_reason: stopReason, usage };
  return rest ? { ...fields, rest: outputToJson(rest) } : fields;
}

export function endFrame(attempt: number, total: number, json: JsonObject): EndFrame {
  const { finish_reason, stop_reason, usage, rest } = json;
  const finishReason = finishReasons.find((reason) => reason === finish_reason);
  if (finishReason === undefined) fail(`finish_reason is ${finishReasons.join(", ")}`, json);
  const hasStop = typeof stop_reason === "string" || typeof stop_reason === "number";
  return {
    type: "end",
    attempt,
    total,
    finishReason,
    ...(hasStop ? { stopReason: stop_reason } : {}),
    ...(usage === undefined ? {} : { usage: usageOf(usage) }),
    ...(isObject(rest) ? { rest: outputFromJson(rest) } : {}),
  };
}

export function errorFields(frame: ErrorFrame): JsonObject {
  const { code, message, retryable, started } = frame;
  return { code, message, retryable, started };
}

/** A code this version does not know reads as `internal_error`; `retryable` stays as sent. */
export function errorFrame(attempt: number, json: JsonObject): ErrorFrame {
  const { message, retryable, started } = json;
  const code = isErrorCode(json["code"]) ? json["code"] : "internal_error";
  return {
    type: "error",
    attempt,
    code,
    message: typeof message === "string" ? message : shown(json["code"]),
    retryable: typeof retryable === "boolean" ? retryable : errorTable[code].retryable,
    started: started !== false,
  };
}

/** Fields of an output beside its tokens; undefined when there are none. */
export function outputExtras(output: EngineOutput): JsonObject | undefined {
  const { text, disaggregatedParams, extra } = output;
  if (text === undefined && disaggregatedParams === undefined && !extra) return undefined;
  return { ...extra, text, disaggregated_params: disaggregatedParams };
}

export function outputFromExtras(tokenIds: readonly number[], json: JsonObject): EngineOutput {
  const { text, disaggregated_params, type, rid, attempt, first, token_ids, ...extra } = json;
  return {
    tokenIds,
    ...(typeof text === "string" ? { text } : {}),
    ...(disaggregated_params == null ? {} : { disaggregatedParams: disaggregated_params }),
    ...(Object.keys(extra).length > 0 ? { extra } : {}),
  };
}

function outputToJson(output: EngineOutput): JsonObject {
  return { ...outputExtras(output), token_ids: output.tokenIds };
}

function outputFromJson(json: JsonObject): EngineOutput {
  return outputFromExtras(tokenIdsOf(json), json);
}

/** type, rid, attempt, first and token_ids: a tokens frame without them is none. */
const plainTokensFields = 5;

/** Output of a tokens frame whose other fields were read; most have none beyond. */
function tokensOutput(json: JsonObject): EngineOutput {
  const tokenIds = tokenIdsOf(json);
  const plain = Object.keys(json).length === plainTokensFields;
  return plain ? { tokenIds } : outputFromExtras(tokenIds, json);
}

function tokenIdsOf(json: JsonObject): readonly number[] {
  const tokenIds = json["token_ids"];
  if (!Array.isArray(tokenIds) || !tokenIds.every(isU32)) {
    fail("token_ids is an array of integers in [0, 4294967295]", tokenIds);
  }
  return tokenIds;
}

function usageOf(value: unknown): CompletionUsage {
  if (!isObject(value) || !isU32(value["prompt_tokens"]) || !isU32(value["completion_tokens"])) {
    fail("usage names prompt_tokens and completion_tokens", value);
  }
  return value as unknown as CompletionUsage;
}

function phaseOf(value: unknown): WaitPhase {
  return waitPhases.find((phase) => phase === value) ?? fail("a phase", value);
}

function countOf(json: JsonObject, field: string): number {
  const value = json[field];
  return isU32(value) ? value : fail(`${field} is an integer in [0, 4294967295]`, value);
}

function fail(expected: string, found: unknown): never {
  throw new TiergridError("malformed_reply", `${expected}, got ${shown(found)}`);
}
