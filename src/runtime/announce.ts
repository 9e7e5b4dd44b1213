/** Heartbeats of one instance: periodic, on request, and the last one. */
import type { Clock } from "../base/clock.ts";
import { type Random, randomHex128 } from "../base/random.ts";
import { heartbeatSubject, whoSubject } from "../protocol/subjects.ts";
import type { Bus } from "./bus.ts";
import { leaseTiming } from "./discovery.ts";
import { encodeHeartbeat, type InstanceCard } from "./instance-card.ts";

export interface Announcer {
  /** A heartbeat at once, e.g. after `state` changed. */
  beatNow(): void;
  /** The last words; whoever hears them forgets the instance at once. Ends the heartbeats. */
  goodbye(): void;
  /** Ends the heartbeats without a word, as a crash would. */
  stop(): void;
}

/** A new life's epoch. */
export const newEpoch = (random: Random): string => randomHex128(random).slice(0, 16);

/** Beats at once and every second +- 10 %, and answers `tg.who`; `card` is read for each beat. */
export function announce(options: {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly random: Random;
  readonly card: () => InstanceCard;
}): Announcer {
  const { bus, clock, random, card } = options;
  let stopped = false;
  let cancel = (): void => {};
  const say = (subject: string, goodbye: boolean): void => {
    if (stopped || bus.state !== "connected") return;
    try {
      bus.publish(subject, encodeHeartbeat({ card: card(), goodbye }), { traffic: "control" });
    } catch {
      // A beat that the bus refuses is lost like any other; the next one follows in a second.
    }
  };
  const beatNow = (): void => say(heartbeatSubject(card()), false);
  const arm = (): void => {
    const spread = 1 + leaseTiming.heartbeatJitter * (2 * random() - 1);
    cancel = clock.after(leaseTiming.heartbeatMs * spread, () => {
      beatNow();
      arm();
    });
  };
  const asked = bus.subscribe(whoSubject, ({ reply }) => {
    if (reply !== undefined) say(reply, false);
  });
  const unlisten = bus.onState((state) => {
    if (state === "connected") beatNow();
  });
  const stop = (): void => {
    stopped = true;
    cancel();
    asked.unsubscribe();
    unlisten();
  };
  beatNow();
  arm();
  return {
    beatNow,
    goodbye: () => {
      say(heartbeatSubject(card()), true);
      stop();
    },
    stop,
  };
}
