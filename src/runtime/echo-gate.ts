/**
 * Self-echo: is it the others that are silent, or is it our own way to the bus?
 *
 *   beat ──publish──▶ broker ──▶ echo         open:   last echo <= 300 ms old and connected
 *                                             frozen: otherwise; silence of others means nothing
 *
 * While the gate is frozen nobody may be judged by silence; listeners of `onThaw` learn how long it
 * was, so that they can extend what they had granted. A pause of the event loop counts as frozen
 * time as well, because the echo is late by the same amount.
 */
import { type Clock, every } from "../base/clock.ts";
import type { Bus } from "./bus.ts";

export interface EchoGate {
  readonly open: boolean;
  /** When the freeze began (time of the last echo); undefined while open. */
  readonly frozenSinceMs: number | undefined;
  /** Calls `listener` at the first echo after a freeze; answers the unsubscribe. */
  onThaw(listener: (frozenMs: number) => void): () => void;
  stop(): void;
}

export const echoTiming = { periodMs: 100, staleAfterMs: 300, thawAfterMs: 400 } as const;

/** Starts beating; the gate is frozen until the first echo. */
export function startEchoGate(bus: Bus, clock: Clock): EchoGate {
  const subject = `${bus.inboxPrefix}.echo`;
  const listeners = new Set<(frozenMs: number) => void>();
  let lastEchoMs = clock.nowMs();
  let echoed = false;
  const fresh = (): boolean =>
    echoed && bus.state === "connected" && clock.nowMs() - lastEchoMs <= echoTiming.staleAfterMs;
  const subscription = bus.subscribe(subject, () => {
    const pauseMs = clock.nowMs() - lastEchoMs;
    lastEchoMs = clock.nowMs();
    echoed = true;
    if (pauseMs <= echoTiming.thawAfterMs) return;
    for (const listener of [...listeners]) listener(pauseMs);
  });
  const beat = (): void => {
    if (bus.state !== "connected") return;
    try {
      bus.publish(subject, new Uint8Array(0), { traffic: "control" });
    } catch {
      // A beat that the bus refuses is an echo that does not come: the gate freezes by itself.
    }
  };
  beat();
  const cancel = every(clock, echoTiming.periodMs, beat);
  return {
    get open() {
      return fresh();
    },
    get frozenSinceMs() {
      return fresh() ? undefined : lastEchoMs;
    },
    onThaw: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    stop: () => {
      cancel();
      subscription.unsubscribe();
    },
  };
}
