/**
 * Who is alive, by leases on the receiver's monotonic clock.
 *
 *               beat            2.5 s silence          6 s silence, goodbye
 *   (unknown) ───────▶ ready ─────────────────▶ suspect ───────────▶ gone
 *                        ▲ ◀──────── beat ─────────┘                  │ beat: up again,
 *                        └────────────────────────────────────────────┘ unless goodbye was said
 *
 * Invariants: time passes for a lease only while the echo gate is open; an epoch that was replaced
 * or said goodbye never counts again; a gone instance is kept, unlisted, for its past epochs and
 * flaps until `memoryMs`; at most `instancesMax` leases, the oldest gone one making room first.
 * "Usable" is narrower than listed: ready in health and in its own words, and not inhibited.
 */
import { isDeepStrictEqual } from "node:util";
import type { CancelTimer, Clock } from "../base/clock.ts";
import { everyInStep } from "../base/tick-clock.ts";
import { allHeartbeats, heartbeatSubject, whoSubject } from "../protocol/subjects.ts";
import type { Bus } from "./bus.ts";
import type { EchoGate } from "./echo-gate.ts";
import { type Hold, newHold, prolong } from "./hold.ts";
import {
  decodeHeartbeat,
  type Heartbeat,
  type InstanceCard,
  repeats,
  steadyPart,
} from "./instance-card.ts";

export const leaseTiming = {
  heartbeatMs: 1000,
  /** Part of a period by which a beat may come early or late. */
  heartbeatJitter: 0.1,
  suspectMs: 2500,
  goneMs: 6000,
  /** Looks for leases that ran out: their period, and the least time until one besides. */
  lookMs: 1000,
  sweepMs: 100,
  readyMs: 2000,
  inhibitMs: 5000,
  inhibitMaxMs: 60_000,
  flapWindowMs: 60_000,
  flapHoldMs: 10_000,
  flapHoldMaxMs: 300_000,
  /** How long a gone instance's past is remembered. */
  memoryMs: 300_000,
} as const;

/** Downs within the window that make an instance flapping. */
const flapsMax = 3;
const pastEpochsMax = 8;
export const instancesMax = 10_000;

export type Health = "ready" | "suspect";

export interface Instance {
  /** As it was last told; the load in it is of some beat since. */
  readonly card: InstanceCard;
  readonly health: Health;
  /** When the health last changed. */
  readonly sinceMs: number;
  readonly lastSeenMs: number;
}

/** `changed`: another card (load alone is none), or back from suspect. */
export type ChangeType = "up" | "changed" | "suspect" | "gone" | "restarted" | "draining";

export interface Change {
  readonly type: ChangeType;
  readonly card: InstanceCard;
}

export interface LiveTable {
  /** Everything not gone, usable or not. */
  instances(): Iterable<Instance>;
  get(inst: string): Instance | undefined;
  /** Answers the unsubscribe. */
  onChange(listener: (change: Change) => void): () => void;
  /** Keeps requests away: 5 s, twice as long each further time, at most 60 s. */
  inhibit(inst: string, cause: string): void;
  /** Why an instance gets no request: the cause of an inhibition; undefined when none is on. */
  inhibition(inst: string): string | undefined;
  isUsable(inst: string): boolean;
  /** Resolves at the first heartbeat, or after 2 s. */
  ready(): Promise<void>;
  readonly counts: { readonly malformed: number; readonly refused: number };
  stop(): void;
}

/** An instance with what the table remembers of it. */
interface Lease extends Instance {
  card: InstanceCard;
  health: Health;
  sinceMs: number;
  lastSeenMs: number;
  gone: boolean;
  /** Silence is reckoned from here: the last beat, or later after a thaw. */
  leaseFromMs: number;
  /** Of the last beat that was read. */
  steady: Uint8Array;
  readonly pastEpochs: string[];
  readonly downsAtMs: number[];
  readonly inhibited: Hold;
  readonly flapping: Hold;
}

interface Watch {
  readonly clock: Clock;
  readonly gate: EchoGate;
  readonly accept: (card: InstanceCard) => boolean;
  readonly leases: Map<string, Lease>;
  readonly listeners: Set<(change: Change) => void>;
  readonly counts: { malformed: number; refused: number };
}

/** Listens to heartbeats, asks who is there, and keeps the table until `stop`. */
export function watchInstances(options: {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly gate: EchoGate;
  /** Subject of the heartbeats to hear, absent = all; whom to list of those and of who answers. */
  readonly subject?: string;
  readonly accept?: (card: InstanceCard) => boolean;
}): LiveTable {
  const { bus, clock, gate, subject: heard = allHeartbeats, accept = () => true } = options;
  const watch: Watch = {
    clock,
    gate,
    accept,
    leases: new Map(),
    listeners: new Set(),
    counts: { malformed: 0, refused: 0 },
  };
  const first = firstAnswer(clock);
  const receive = (payload: Uint8Array, subject: string | undefined): void => {
    if (subject !== undefined && beatsOn(watch, subject, payload)) return;
    const heartbeat = decodeHeartbeat(payload);
    if (!heartbeat || (subject !== undefined && subject !== heartbeatSubject(heartbeat.card))) {
      watch.counts.malformed += 1;
    } else if (accept(heartbeat.card)) {
      hear(watch, heartbeat, payload);
      first.resolve();
    }
  };
  const answers = `${bus.inboxPrefix}.who`;
  const ask = (): void => {
    if (bus.state !== "connected") return;
    try {
      bus.publish(whoSubject, new Uint8Array(0), { reply: answers, traffic: "control" });
    } catch {
      // Refused by an overloaded bus: the periodic heartbeats tell the same within a second.
    }
  };
  const subscriptions = [
    bus.subscribe(heard, (message) => receive(message.payload, message.subject)),
    // An empty answer is the server's: nobody is there yet.
    bus.subscribe(answers, ({ payload }) => {
      if (payload.length > 0) receive(payload, undefined);
    }),
  ];
  const endings = [
    bus.onState((state) => {
      if (state === "connected") ask();
    }),
    gate.onThaw((frozenMs) => {
      extendLeases(watch, frozenMs);
      ask();
    }),
    sweepWhenDue(watch),
    first.cancel,
  ];
  ask();
  return tableOf(watch, first.promise, () => {
    for (const subscription of subscriptions) subscription.unsubscribe();
    for (const end of endings) end();
  });
}

function firstAnswer(clock: Clock): {
  readonly promise: Promise<void>;
  readonly resolve: () => void;
  readonly cancel: () => void;
} {
  let resolve = (): void => {};
  const promise = new Promise<void>((done) => {
    resolve = done;
  });
  const cancelTimer = clock.after(leaseTiming.readyMs, resolve);
  const cancel = (): void => {
    cancelTimer();
    resolve();
  };
  return { promise, resolve: cancel, cancel };
}

function tableOf(watch: Watch, ready: Promise<void>, stop: () => void): LiveTable {
  const live = (inst: string): Lease | undefined => {
    const lease = watch.leases.get(inst);
    return lease?.gone ? undefined : lease;
  };
  const holdOf = (lease: Lease): Hold | undefined => {
    const nowMs = watch.clock.nowMs();
    return [lease.inhibited, lease.flapping].find((hold) => nowMs < hold.untilMs);
  };
  return {
    *instances() {
      for (const lease of watch.leases.values()) if (!lease.gone) yield lease;
    },
    get: live,
    onChange: (listener) => {
      watch.listeners.add(listener);
      return () => watch.listeners.delete(listener);
    },
    inhibit: (inst, cause) => {
      const lease = live(inst);
      const { inhibitMs, inhibitMaxMs } = leaseTiming;
      if (lease) prolong(lease.inhibited, watch.clock.nowMs(), inhibitMs, inhibitMaxMs);
      if (lease) lease.inhibited.cause = cause;
    },
    inhibition: (inst) => {
      const lease = live(inst);
      return lease && holdOf(lease)?.cause;
    },
    isUsable: (inst) => {
      const lease = live(inst);
      if (lease?.health !== "ready" || lease.card.state !== "ready") return false;
      return holdOf(lease) === undefined;
    },
    ready: () => ready,
    counts: watch.counts,
    stop,
  };
}

/** True for a beat of a ready instance whose bytes, which name it, say what its last one said. */
function beatsOn(watch: Watch, subject: string, payload: Uint8Array): boolean {
  const lease = watch.leases.get(subject.slice(subject.lastIndexOf(".") + 1));
  if (!lease || lease.gone || lease.health !== "ready") return false;
  if (!repeats(lease.steady, payload)) return false;
  heardAt(lease, watch.clock.nowMs());
  return true;
}

function heardAt(lease: Lease, nowMs: number): void {
  lease.lastSeenMs = nowMs;
  // A beat that was held back by the same freeze does not take away what the thaw granted.
  lease.leaseFromMs = Math.max(lease.leaseFromMs, nowMs);
}

function hear(watch: Watch, { card, goodbye }: Heartbeat, payload: Uint8Array): void {
  const lease = watch.leases.get(card.inst);
  if (!lease) {
    if (!goodbye) add(watch, card, payload);
    return;
  }
  if (lease.pastEpochs.includes(card.epoch)) return;
  const nowMs = watch.clock.nowMs();
  const before = { card: lease.card, health: lease.health, gone: lease.gone };
  const restarted = card.epoch !== before.card.epoch;
  if (restarted) retireEpoch(lease, before.card.epoch);
  if (goodbye) {
    retireEpoch(lease, card.epoch);
    if (!before.gone) fall(watch, lease, "gone");
    return;
  }
  lease.card = card;
  lease.steady = steadyPart(payload);
  heardAt(lease, nowMs);
  lease.gone = false;
  if (before.gone || restarted || before.health !== "ready") {
    lease.health = "ready";
    lease.sinceMs = nowMs;
  }
  if (before.gone) tell(watch, "up", card);
  else if (restarted) {
    countDown(lease, nowMs);
    tell(watch, "restarted", card);
  } else if (card.state === "draining" && before.card.state !== "draining") {
    tell(watch, "draining", card);
  } else if (before.health !== "ready" || differs(before.card, card)) tell(watch, "changed", card);
}

function add(watch: Watch, card: InstanceCard, payload: Uint8Array): void {
  if (watch.leases.size >= instancesMax && !forgetOneGone(watch)) {
    watch.counts.refused += 1;
    return;
  }
  const nowMs = watch.clock.nowMs();
  watch.leases.set(card.inst, {
    card,
    health: "ready",
    sinceMs: nowMs,
    lastSeenMs: nowMs,
    gone: false,
    leaseFromMs: nowMs,
    steady: steadyPart(payload),
    pastEpochs: [],
    downsAtMs: [],
    inhibited: newHold(""),
    flapping: newHold("flapping"),
  });
  tell(watch, "up", card);
}

/** The lease that is gone longest: leases keep the order of their first beat, so look at all. */
function forgetOneGone(watch: Watch): boolean {
  let oldest: Lease | undefined;
  for (const lease of watch.leases.values()) {
    if (lease.gone && (!oldest || lease.sinceMs < oldest.sinceMs)) oldest = lease;
  }
  return oldest !== undefined && watch.leases.delete(oldest.card.inst);
}

function retireEpoch(lease: Lease, epoch: string): void {
  if (lease.pastEpochs.includes(epoch)) return;
  lease.pastEpochs.push(epoch);
  if (lease.pastEpochs.length > pastEpochsMax) lease.pastEpochs.shift();
}

/** By value, without what changes in every beat; a beat without digests says nothing of them. */
function differs(before: InstanceCard, after: InstanceCard): boolean {
  const { load: _load, digests: had, ...was } = before;
  const { load: _loadAfter, digests: has, ...is } = after;
  return !isDeepStrictEqual(was, is) || (has !== undefined && !isDeepStrictEqual(had, has));
}

/** Looks in step with the process, and when a lease may run out before; answers the cancel. */
function sweepWhenDue(watch: Watch): CancelTimer {
  let cancelled = false;
  let cancelLook: CancelTimer = () => {};
  const look = (): void => {
    cancelLook();
    const leftMs = sweep(watch);
    if (!cancelled && leftMs < leaseTiming.lookMs) cancelLook = watch.clock.after(leftMs, look);
  };
  const cancelLooks = everyInStep(watch.clock, leaseTiming.lookMs, look);
  return () => {
    cancelled = true;
    cancelLook();
    cancelLooks();
  };
}

/**
 * Silence turns into suspect and gone; not while our own way to the bus is in doubt. Answers how long
 * no lease can run out: at most `suspectMs`, which is what a lease that begins meanwhile has.
 */
function sweep(watch: Watch): number {
  const { suspectMs, goneMs, memoryMs, sweepMs } = leaseTiming;
  const nowMs = watch.clock.nowMs();
  let leastLeftMs: number = suspectMs;
  for (const [inst, lease] of watch.leases) {
    const silentMs = nowMs - lease.leaseFromMs;
    if (lease.gone) {
      if (nowMs - lease.sinceMs > memoryMs) watch.leases.delete(inst);
    } else if (silentMs > limitMsOf(lease) && !watch.gate.open) return sweepMs;
    else if (silentMs > goneMs) fall(watch, lease, "gone");
    else if (silentMs > suspectMs && lease.health === "ready") fall(watch, lease, "suspect");
    const leftMs = lease.gone ? lease.sinceMs + memoryMs - nowMs : limitMsOf(lease) - silentMs;
    leastLeftMs = Math.min(leastLeftMs, leftMs);
  }
  // A lease runs out beyond its limit, not at it.
  return Math.max(sweepMs, leastLeftMs + 1);
}

/** Silence that a lease may have before it falls. */
function limitMsOf({ health }: Lease): number {
  return health === "ready" ? leaseTiming.suspectMs : leaseTiming.goneMs;
}

function fall(watch: Watch, lease: Lease, to: "suspect" | "gone"): void {
  const nowMs = watch.clock.nowMs();
  // A suspect that goes on to gone is one flap, not two.
  if (lease.health === "ready") countDown(lease, nowMs);
  lease.health = "suspect";
  lease.gone = to === "gone";
  lease.sinceMs = nowMs;
  tell(watch, to, lease.card);
}

function countDown(lease: Lease, nowMs: number): void {
  const { downsAtMs } = lease;
  downsAtMs.push(nowMs);
  while ((downsAtMs[0] ?? nowMs) < nowMs - leaseTiming.flapWindowMs) downsAtMs.shift();
  if (downsAtMs.length < flapsMax) return;
  downsAtMs.length = 0;
  prolong(lease.flapping, nowMs, leaseTiming.flapHoldMs, leaseTiming.flapHoldMaxMs);
}

/** Every lease runs on by the frozen time and one heartbeat, but not beyond one from the present. */
function extendLeases(watch: Watch, frozenMs: number): void {
  const { heartbeatMs } = leaseTiming;
  const mostMs = watch.clock.nowMs() + heartbeatMs;
  for (const lease of watch.leases.values()) {
    lease.leaseFromMs = Math.min(lease.leaseFromMs + frozenMs + heartbeatMs, mostMs);
  }
}

function tell(watch: Watch, type: ChangeType, card: InstanceCard): void {
  for (const listener of [...watch.listeners]) listener({ type, card });
}
