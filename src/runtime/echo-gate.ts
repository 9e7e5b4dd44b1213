/**
 * Self-echo: is it the others that are silent, or is it our own way to the bus?
 *
 *   beat ──publish──▶ broker ──▶ echo         open:   connected, and no echo is overdue
 *                                             frozen: otherwise; silence of others means nothing
 *
 *   asked       beat ··100·· beat ··100·· beat      an echo is overdue 300 ms after the last one
 *   unasked     beat ······500······ beat           700 ms after it, 200 ms after a beat
 *
 * While the gate is frozen nobody may be judged by silence; listeners of `onThaw` learn how long it
 * was, so that they can extend what they had granted. A pause of the event loop counts as frozen
 * time as well, because beat and echo are late by the same amount.
 *
 * Whoever reads `open` judges by silence, so it beats ten times a second from a reading on, until
 * nobody has read for `askedMs`. What that leaves unseen while nobody reads, a freeze of less than
 * 700 ms, takes less from a lease than its spare: 2.5 s, beats of at most 1.1 s.
 */
import type { CancelTimer, Clock } from "../base/clock.ts";
import type { Bus } from "./bus.ts";

export interface EchoGate {
  readonly open: boolean;
  /** When the freeze began (time of the last echo); undefined while open. */
  readonly frozenSinceMs: number | undefined;
  /** Calls `listener` at the first echo after a freeze; answers the unsubscribe. */
  onThaw(listener: (frozenMs: number) => void): () => void;
  stop(): void;
}

export const echoTiming = {
  periodMs: 100,
  unaskedPeriodMs: 500,
  /** From a beat, sent or due, to the echo that is overdue. */
  overdueMs: 200,
  /** A pause longer than this, from echo to echo, is told. */
  thawAfterMs: 400,
  /** How long a reading counts: whoever looks again and again does so within it. */
  askedMs: 300,
} as const;

/** Starts beating; the gate is frozen until the first echo. */
export function startEchoGate(bus: Bus, clock: Clock): EchoGate {
  const { periodMs, unaskedPeriodMs, overdueMs, thawAfterMs, askedMs } = echoTiming;
  const subject = `${bus.inboxPrefix}.echo`;
  const listeners = new Set<(frozenMs: number) => void>();
  let lastEchoMs = clock.nowMs();
  let echoed = false;
  let askedUntilMs = Number.NEGATIVE_INFINITY;
  /** When the next beat is due, and when its echo, or one of an earlier beat, is overdue. */
  let nextBeatMs = clock.nowMs();
  let overdueAtMs = clock.nowMs();
  let cancel: CancelTimer = () => {};
  const isOpen = (): boolean => echoed && bus.state === "connected" && clock.nowMs() <= overdueAtMs;
  /** No beat is before its time, although a timer may be. */
  const beat = (dueMs: number): void => {
    cancel();
    const nowMs = Math.max(clock.nowMs(), dueMs);
    // Unasked beats keep to multiples of their period, beside what else a process does then.
    const unaskedPauseMs = unaskedPeriodMs - (nowMs % unaskedPeriodMs);
    const pauseMs = nowMs < askedUntilMs ? periodMs : unaskedPauseMs;
    nextBeatMs = nowMs + pauseMs;
    overdueAtMs = Math.min(overdueAtMs, nowMs + overdueMs);
    cancel = clock.after(pauseMs, () => beat(nextBeatMs));
    if (bus.state !== "connected") return;
    try {
      bus.publish(subject, new Uint8Array(0), { traffic: "control" });
    } catch {
      // A beat that the bus refuses is an echo that does not come: the gate freezes by itself.
    }
  };
  const subscription = bus.subscribe(subject, () => {
    const nowMs = clock.nowMs();
    // A longer pause between two beats is our own doing and no part of a freeze.
    const frozenMs = Math.min(nowMs - lastEchoMs, nowMs - overdueAtMs + periodMs + overdueMs);
    lastEchoMs = nowMs;
    echoed = true;
    overdueAtMs = nextBeatMs + overdueMs;
    if (frozenMs <= thawAfterMs) return;
    for (const listener of [...listeners]) listener(frozenMs);
  });
  const unlisten = bus.onState((state) => {
    if (state === "connected") beat(clock.nowMs());
  });
  const asked = (): void => {
    const nowMs = clock.nowMs();
    askedUntilMs = nowMs + askedMs;
    if (nextBeatMs > nowMs + periodMs) beat(nowMs);
  };
  beat(clock.nowMs());
  return {
    get open() {
      asked();
      return isOpen();
    },
    get frozenSinceMs() {
      return isOpen() ? undefined : lastEchoMs;
    },
    onThaw: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    stop: () => {
      cancel();
      unlisten();
      subscription.unsubscribe();
    },
  };
}
