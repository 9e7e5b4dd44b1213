/** How a dispatcher answers: a receipt to whoever waits for one, else frames on the stream. */
import { TiergridError } from "../base/errors.ts";
import { encodeNotice } from "../protocol/notices.ts";
import { encodeReceipt } from "../protocol/receipts.ts";
import type { Receipt, RoutedEnvelope } from "../protocol/requests.ts";
import type { ErrorFrame } from "../protocol/stream-frames.ts";
import type { Bus, BusMessage } from "./bus.ts";
import { publishFrame, publishQuietly } from "./dispatch-offer.ts";
import type { DispatchEntry, DispatcherTotals } from "./dispatch-policy.ts";

/**
 * `payload` is the receipt as it came from below: it is passed on as it is. No receipt: a worker
 * accepted, and the owner hears it from there.
 */
export type Answer = (receipt: Receipt | undefined, payload?: Uint8Array) => void;

/** The way to answer the sender of `message`; refusals are counted. */
export function answerTo(
  bus: Bus,
  message: BusMessage,
  envelope: RoutedEnvelope,
  totals: DispatcherTotals,
): Answer {
  const wantsReceipt = message.reply !== undefined && message.reply !== envelope.stream.subject;
  return (receipt, payload) => {
    if (!receipt) return;
    if (receipt.type === "refused") totals.refused += 1;
    if (wantsReceipt) publishQuietly(bus, message.reply, payload ?? encodeReceipt(receipt));
    else if (receipt.type === "refused") {
      const error = new TiergridError(receipt.code, receipt.message);
      publishFrame(bus, envelope, errorFrame(envelope.attempt, error));
    }
  };
}

/** Tells the owner, and the dispatcher above, that a request without a worker is alive. */
export function sayQueued(bus: Bus, { rid, attempt, envelope }: DispatchEntry<unknown>): void {
  const next = envelope.first;
  publishFrame(bus, envelope, { type: "heartbeat", attempt, next, phase: "queued" });
  const [above] = envelope.notify;
  publishQuietly(bus, above, encodeNotice({ type: "queued", rid, attempt, position: 0 }));
}

export function errorFrame(
  attempt: number,
  { code, message, retryable }: TiergridError,
): ErrorFrame {
  return { type: "error", attempt, code, message, retryable, started: false };
}

function retryAfter(retryAfterMs: number | undefined): { retryAfterMs?: number } {
  return retryAfterMs === undefined ? {} : { retryAfterMs };
}

export function refusal(error: TiergridError, retryAfterMs?: number): Receipt {
  const { code, message, details } = error;
  return { type: "refused", code, message, details, ...retryAfter(retryAfterMs) };
}
