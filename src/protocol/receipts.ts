/** A `Receipt` as JSON bytes. What is not understood is `malformed_reply`, never a success. */
import { isErrorCode, TiergridError } from "../base/errors.ts";
import { isObject, isU32, type JsonObject, shown } from "./request-body.ts";
import { isDecision } from "./request-envelope.ts";
import type { HopDecision, Receipt } from "./requests.ts";

const decoder = new TextDecoder();

export function encodeReceipt(receipt: Receipt): Uint8Array {
  return Buffer.from(JSON.stringify(receiptToJson(receipt)));
}

function receiptToJson(receipt: Receipt): JsonObject {
  if (receipt.type === "accepted") {
    const { type, attempt, inst, epoch, control, workerId, dpRank, decisions } = receipt;
    const worker = { inst, epoch, control, worker_id: workerId, dp_rank: dpRank };
    return { type, attempt, ...worker, decisions };
  }
  const { type, code, message, retryAfterMs, details } = receipt;
  return { type, code, message, retry_after_ms: retryAfterMs, details };
}

/** Throws `malformed_reply` unless the payload is a receipt; unknown fields are ignored. */
export function decodeReceipt(payload: Uint8Array): Receipt {
  let json: unknown;
  try {
    json = JSON.parse(decoder.decode(payload));
  } catch {
    fail(`${payload.length} bytes that are not JSON`);
  }
  if (!isObject(json)) fail(shown(json));
  if (json["type"] === "accepted") return acceptedFromJson(json);
  if (json["type"] === "refused") return refusedFromJson(json);
  return fail(`type ${shown(json["type"])}`);
}

function acceptedFromJson(json: JsonObject): Receipt {
  const { attempt, inst, epoch, control, worker_id, dp_rank, decisions = [] } = json;
  const texts = [inst, epoch, control, worker_id];
  if (!texts.every((value) => typeof value === "string") || !isU32(dp_rank) || !isU32(attempt)) {
    fail(`accepted without attempt, inst, epoch, control, worker_id, dp_rank: ${shown(json)}`);
  }
  if (!Array.isArray(decisions) || !decisions.every(isDecision)) fail("accepted, bad decisions");
  return {
    type: "accepted",
    attempt,
    inst: inst as string,
    epoch: epoch as string,
    control: control as string,
    workerId: worker_id as string,
    dpRank: dp_rank,
    decisions: decisions as readonly HopDecision[],
  };
}

function refusedFromJson(json: JsonObject): Receipt {
  const { code, message = "", retry_after_ms, details } = json;
  if (!isErrorCode(code)) fail(`refused with code ${shown(code)}`);
  return {
    type: "refused",
    code,
    message: typeof message === "string" ? message : shown(message),
    ...(typeof retry_after_ms === "number" ? { retryAfterMs: retry_after_ms } : {}),
    ...(isObject(details) ? { details } : {}),
  };
}

/** The refusal as an error, which has the time to wait among its details. */
export function refusedError(refused: Receipt & { readonly type: "refused" }): TiergridError {
  const { code, message, retryAfterMs, details } = refused;
  const retryAfter = retryAfterMs === undefined ? {} : { retryAfterMs };
  return new TiergridError(code, message, { ...details, ...retryAfter });
}

function fail(found: string): never {
  throw new TiergridError("malformed_reply", `a receipt is accepted or refused, got ${found}`);
}
