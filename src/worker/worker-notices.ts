/**
 * What a worker tells the dispatchers above it, nearest first. None of these messages may be
 * relied on: `active` lists and the dispatchers' own timers repair what a lost one breaks.
 */
import type { Clock } from "../base/clock.ts";
import type { TiergridError } from "../base/errors.ts";
import { type AcceptedNotice, encodeNotice } from "../protocol/notices.ts";
import type { Envelope } from "../protocol/requests.ts";
import type { Bus } from "../runtime/bus.ts";
import { publishQuietly, reportFailed } from "../runtime/dispatch-offer.ts";

export const noticeTiming = {
  /** How often each dispatcher hears which requests still run for it. */
  activePeriodMs: 5_000,
  /** Limit of a dispatcher's answer to `failed`. */
  failedTimeoutMs: 300,
} as const;

/** Requests of one `active` notice; more travel in further notices. */
export const activeRequestsMax = 4_096;

/** Tells how long it waited when it is sent, not when it is made. */
export function acceptedNotice(
  { clock, inst }: { readonly clock: Clock; readonly inst: string },
  { rid, attempt }: Envelope,
): AcceptedNotice {
  const acceptedMs = clock.nowMs();
  return {
    ...{ type: "accepted", rid, attempt, inst },
    get waited_ms() {
      return clock.nowMs() - acceptedMs;
    },
  };
}

/**
 * Offers an attempt that died before its first output back to its dispatchers, one after the other;
 * answers whether one of them goes on with the request.
 */
export async function offerBack(
  bus: Bus,
  { rid, attempt, notify }: Envelope,
  error: TiergridError,
): Promise<boolean> {
  const timeoutMs = noticeTiming.failedTimeoutMs;
  for (const subject of notify) {
    if (await reportFailed(bus, subject, { rid, attempt, error, timeoutMs })) return true;
  }
  return false;
}

/** Tells each dispatcher which of its requests this worker still has. */
export function notifyActive(bus: Bus, inst: string, envelopes: Iterable<Envelope>): void {
  const byDispatcher = new Map<string, { rid: string; attempt: number }[]>();
  for (const { rid, attempt, notify } of envelopes) {
    for (const subject of notify) {
      const requests = byDispatcher.get(subject);
      if (requests) requests.push({ rid, attempt });
      else byDispatcher.set(subject, [{ rid, attempt }]);
    }
  }
  for (const [subject, requests] of byDispatcher) {
    for (let start = 0; start < requests.length; start += activeRequestsMax) {
      const part = requests.slice(start, start + activeRequestsMax);
      publishQuietly(bus, subject, encodeNotice({ type: "active", inst, requests: part }));
    }
  }
}
