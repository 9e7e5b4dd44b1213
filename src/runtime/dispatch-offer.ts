/**
 * One offer of a request to one hop: publish, wait for the receipt. And the small messages that
 * dispatchers send around it, none of which may throw: timers repair what a lost one breaks.
 */
import type { CancelSignal } from "../base/cancel.ts";
import type { CancelTimer, Clock } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import { type Random, randomHex128 } from "../base/random.ts";
import { encodeNotice, type RequestNotice } from "../protocol/notices.ts";
import { decodeReceipt, encodeReceipt } from "../protocol/receipts.ts";
import { firstAttempt } from "../protocol/request-envelope.ts";
import { passFrame } from "../protocol/request-frame.ts";
import { awaitsReceipt, type DispatchMessage } from "../protocol/request-json.ts";
import type { Receipt, RoutedEnvelope } from "../protocol/requests.ts";
import { encodeControl } from "../protocol/stream-control.ts";
import type { StreamFrame } from "../protocol/stream-frames.ts";
import { encodeStreamFrame } from "../protocol/stream-message.ts";
import type { Bus, BusMessage } from "./bus.ts";
import type { Acceptance, DispatchEntry, OpenOffer, SendPlan } from "./dispatch-policy.ts";

export type OfferOutcome =
  | {
      readonly accepted: Acceptance;
      /** The receipt's bytes, to pass on; absent when a notice told it, and nobody waits for one. */
      readonly receipt?: PassedReceipt;
    }
  | { readonly error: TiergridError; readonly retryAfterMs?: number };

/** A receipt from below and its bytes. */
export interface PassedReceipt {
  readonly receipt: Receipt;
  readonly payload: Uint8Array;
}

export interface OfferOptions {
  readonly bus: Bus;
  readonly clock: Clock;
  /** While closed, a hop's silence proves nothing. */
  readonly gate: { readonly open: boolean };
  readonly subject: string;
  readonly payload: Uint8Array;
  /** Silence allowed before the hop answers; `extend` starts it anew. */
  readonly acceptTimeoutMs: number;
  /** Time left until the request's deadline. */
  readonly leftMs: number;
  readonly signal: CancelSignal;
}

/** The request as the next hop gets it; `noticeSubject` is the sender's. */
export function encodeForward(
  { envelope, attempt, body, frame }: DispatchEntry<unknown>,
  plan: SendPlan,
  leftMs: number,
  noticeSubject: string,
): Uint8Array {
  if (!frame) throw new TiergridError("internal_error", "the prompt is gone");
  return passFrame(frame, {
    attempt,
    phase: envelope.phase,
    deadlineMs: Math.max(1, Math.floor(leftMs)),
    progress: plan.progress === true,
    decision: plan.decision,
    noticeSubject,
    body: plan.body === body ? undefined : plan.body,
  });
}

/** Longer than the gate needs to see that an echo is overdue, and less than a reading of it counts. */
const gateAskedMs = 250;

/** Sends an encoded dispatch; `settled` is called once, later, and must not throw. */
export function offerDispatch(
  options: OfferOptions,
  settled: (outcome: OfferOutcome) => void,
): OpenOffer {
  const { bus, clock, gate, subject, payload, acceptTimeoutMs, leftMs, signal } = options;
  const deadlineAtMs = clock.nowMs() + leftMs;
  // The gate is asked early enough to know at the verdict whether our own way is in doubt.
  const askedMs = Math.min(gateAskedMs, acceptTimeoutMs);
  let open = true;
  let giveUp = (): void => {};
  let cancelTimer: CancelTimer = () => {};
  const end = (outcome: OfferOutcome): void => {
    if (!open) return;
    open = false;
    cancelTimer();
    giveUp();
    signal.removeEventListener("abort", cancelled);
    settled(outcome);
  };
  /** For what happens within a call of the dispatcher. */
  const endLater = (error: TiergridError): void => queueMicrotask(() => end({ error }));
  const cancelled = (): void => endLater(cancelledError());
  const arm = (waitMs: number, next: () => void): void => {
    cancelTimer = clock.after(Math.min(waitMs, Math.max(0, deadlineAtMs - clock.nowMs())), next);
  };
  const awaitAnswer = (): void => arm(acceptTimeoutMs - askedMs, ask);
  const ask = (): void => (gate.open ? arm(askedMs, judge) : again());
  const judge = (): void => (gate.open ? silent() : again());
  const again = (): void => (clock.nowMs() < deadlineAtMs ? awaitAnswer() : silent());
  const silent = (): void => {
    const message = `no answer within ${acceptTimeoutMs} ms from ${subject}`;
    end({ error: new TiergridError("accept_timeout", message) });
  };
  awaitAnswer();
  if (signal.aborted) cancelled();
  else {
    signal.addEventListener("abort", cancelled, { once: true });
    const asker = {
      onReply: (reply: BusMessage) => end(outcomeOf(reply.payload)),
      onError: (error: TiergridError) => end({ error }),
    };
    try {
      giveUp = bus.ask(subject, payload, {}, asker);
    } catch (thrown) {
      endLater(toTiergridError(thrown));
    }
  }
  return {
    extend() {
      cancelTimer();
      again();
    },
    accept: (accepted) => end({ accepted }),
  };
}

function outcomeOf(payload: Uint8Array): OfferOutcome {
  try {
    const receipt = decodeReceipt(payload);
    if (receipt.type === "accepted") return { accepted: receipt, receipt: { receipt, payload } };
    const error = new TiergridError(receipt.code, receipt.message, receipt.details);
    return receipt.retryAfterMs === undefined
      ? { error }
      : { error, retryAfterMs: receipt.retryAfterMs };
  } catch (thrown) {
    return { error: toTiergridError(thrown) };
  }
}

/** Publishes; a bus that is down loses the message, as the network would. */
export function publishQuietly(bus: Bus, subject: string | undefined, payload: Uint8Array): void {
  if (subject === undefined) return;
  try {
    bus.publish(subject, payload);
  } catch {
    // Owners, workers and dispatchers all hold timers for messages that do not come.
  }
}

export function cancelledError(): TiergridError {
  return new TiergridError("cancelled", "the caller cancelled the request");
}

/** One frame on the owner's stream, from a dispatcher. */
export function publishFrame(bus: Bus, envelope: RoutedEnvelope, frame: StreamFrame): void {
  const { stream, rid } = envelope;
  publishQuietly(bus, stream.subject, encodeStreamFrame(stream, rid, frame));
}

/**
 * Refuses a message that cannot be read, at its reply subject: with a receipt when its sender waits
 * for one, else with an error frame under a `rid` of its own.
 */
export function refuseUnread(
  bus: Bus,
  { payload, reply }: DispatchMessage,
  random: Random,
  { code, message, details, retryable }: TiergridError,
): void {
  if (reply === undefined) return;
  if (awaitsReceipt(payload)) {
    publishQuietly(bus, reply, encodeReceipt({ type: "refused", code, message, details }));
    return;
  }
  const stream = { subject: reply, format: "json", key: 0, acks: false } as const;
  const frame = { type: "error", attempt: firstAttempt, code, message, retryable } as const;
  const encoded = encodeStreamFrame(stream, randomHex128(random), { ...frame, started: false });
  publishQuietly(bus, reply, encoded);
}

/** Tells a hop or a worker to drop the attempt. */
export function sendCancel(bus: Bus, control: string, rid: string, attempt: number): void {
  publishQuietly(bus, control, encodeControl({ type: "cancel", rid, attempt }));
}

export interface FailedAttempt {
  readonly rid: string;
  readonly attempt: number;
  readonly error: TiergridError;
  readonly timeoutMs: number;
}

/** Asks a dispatcher to take a request back that died before its first output. */
export async function reportFailed(
  bus: Bus,
  subject: string,
  { rid, attempt, error, timeoutMs }: FailedAttempt,
): Promise<boolean> {
  const { code, message } = error;
  const worker_lost = code === "worker_lost";
  const notice: RequestNotice = { type: "failed", rid, attempt, code, message, worker_lost };
  try {
    const reply = await bus.request(subject, encodeNotice(notice), { timeoutMs });
    return JSON.parse(new TextDecoder().decode(reply.payload)).taken === true;
  } catch {
    return false;
  }
}

/** The answer to a `failed` notice. */
export function encodeTaken(taken: boolean): Uint8Array {
  return new TextEncoder().encode(JSON.stringify({ taken }));
}
