/**
 * KV events from the durable stream: state that outlives the router.
 *
 *   open ──▶ reset or restore the snapshot ──▶ consumer behind it ──▶ follow: pull, apply, acknowledge
 *    ▲                                                                  │ every second: upkeep
 *    └──────────── 100 ms ◀── stream or consumer missing, bus away ◀────┘
 *
 * - Events keep their numbers: whatever the stream lost, or has twice, is the cursors' business.
 * - Until the snapshot is in, or cannot be had, workers are not asked for their blocks and events from
 *   the bus are let go; both are made up by the cursors afterwards.
 * - One actor applies events and exports the index, so that a snapshot is of one stream sequence.
 * - A rank restored for a worker that does not appear within `absentMsMax` is forgotten; until then
 *   its events count as if the worker were here.
 */
import { type Clock, sleep } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import { decodeKvEvents } from "../protocol/kv-event-frame.ts";
import type { KvEventBatch } from "../protocol/kv-events.ts";
import { heartbeatsOf } from "../protocol/subjects.ts";
import type { Bus } from "../runtime/bus.ts";
import { leaseTiming, watchInstances } from "../runtime/discovery.ts";
import type { DurableConsumer, DurableLog, DurableMessage } from "../runtime/durable-log.ts";
import type { EchoGate } from "../runtime/echo-gate.ts";
import type { Log } from "../runtime/log.ts";
import type { EventIntake, HolderKey } from "./event-intake.ts";
import type { HeldIntake } from "./held-intake.ts";
import {
  discardSnapshot,
  type LoadedSnapshot,
  loadSnapshot,
  purgerLock,
  readsMax,
  restoreSnapshot,
  type SnapshotTables,
  sequenceOfNote,
  snapshotName,
} from "./snapshots.ts";
import {
  consumerNameOf,
  type DurableTotals,
  type StreamUpkeep,
  startUpkeep,
  type UpkeepSettings,
} from "./stream-upkeep.ts";

export const pullMs = 1_000;
export const failurePauseMs = 100;
/** Pause when the server keeps no streams. */
export const refusedPauseMs = 5_000;
const firstWorkerPollMs = 100;
/** Payload applied per turn of the event loop. */
const turnBytesMax = 64 * 1024;

export interface DurableIntakeOptions extends UpkeepSettings {
  readonly tables: SnapshotTables & { readonly intake: EventIntake };
  readonly stream: DurableLog;
  readonly gate: EchoGate;
  readonly bus: Bus;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly inst: string;
  readonly namespace: string;
  /** Forget all state at the start. */
  readonly resetStates: boolean;
  /** True for a rank of a worker that is here. */
  readonly isPresent: (holder: HolderKey) => boolean;
  readonly workerCount: () => number;
}

export interface DurableIntake {
  readonly totals: Readonly<DurableTotals>;
  /** True while events of the stream are followed. */
  readonly following: boolean;
  /** Newest sequence applied; 0 = none. */
  readonly sequence: number;
  readonly upkeep: Pick<StreamUpkeep, "view">;
  /** Ends at once; what is under way ends by its own deadline. */
  close(): Promise<void>;
}

interface Actor extends DurableIntakeOptions {
  readonly totals: DurableTotals;
  readonly held: HeldIntake;
  readonly consumerName: string;
  readonly upkeep: StreamUpkeep;
  readonly abort: AbortController;
  /** Resolves with the abort. */
  readonly ending: Promise<undefined>;
  /** Snapshot restored, reset, or found not to be there. */
  begun: boolean;
  wasReset: boolean;
  following: boolean;
  sequence: number;
  failing: string;
}

/** Starts to follow the stream; `held` is let go when the snapshot is in or cannot be had. */
export function startDurableIntake(options: DurableIntakeOptions, held: HeldIntake): DurableIntake {
  const { bus, clock, gate, namespace } = options;
  const totals = newTotals();
  const consumerName = consumerNameOf(options.inst);
  const routers = watchInstances({
    ...{ bus, clock, gate, subject: heartbeatsOf("local", namespace) },
    accept: (card) => card.kind === "local" && card.namespace === namespace,
  });
  const abort = new AbortController();
  const actor: Actor = {
    ...options,
    ...{ totals, held, consumerName, abort },
    upkeep: startUpkeep({ ...options, totals, consumerName, routers }),
    ending: new Promise((resolve) => {
      abort.signal.addEventListener("abort", () => resolve(undefined), { once: true });
    }),
    begun: false,
    wasReset: false,
    following: false,
    sequence: 0,
    failing: "",
  };
  const ended = act(actor);
  return {
    totals,
    upkeep: actor.upkeep,
    get following() {
      return actor.following;
    },
    get sequence() {
      return actor.sequence;
    },
    async close() {
      abort.abort();
      routers.stop();
      await ended;
      await actor.upkeep.close();
      // What fails here is left to the other routers.
      await options.stream.deleteConsumer(consumerName).catch(() => {});
    },
  };
}

function newTotals(): DurableTotals {
  return {
    applied: 0,
    foreign: 0,
    malformed: 0,
    restoredRanks: 0,
    badSnapshots: 0,
    savedSnapshots: 0,
    failedSnapshots: 0,
    rebuilds: 0,
  };
}

/** Begins and follows, again after every failure, until the router ends. */
async function act(actor: Actor): Promise<void> {
  const { clock, abort, held } = actor;
  while (!abort.signal.aborted) {
    let pauseMs = failurePauseMs;
    try {
      const consumer = await begin(actor);
      held.release();
      await follow(actor, consumer);
    } catch (thrown) {
      const error = toTiergridError(thrown);
      if (error.code === "config_invalid") pauseMs = refusedPauseMs;
      if (!abort.signal.aborted) tellFailure(actor, error);
      // Routing does not wait for a stream: the workers know what they have.
      held.release();
    }
    actor.following = false;
    await sleep(clock, pauseMs, abort.signal);
  }
}

/** One line per kind of failure, until the stream is followed again. */
function tellFailure(actor: Actor, { code, message }: TiergridError): void {
  if (actor.failing === code) return;
  actor.failing = code;
  actor.log.warn("durable KV events: not followed", { error_type: code, error: message });
}

async function begin(actor: Actor): Promise<DurableConsumer> {
  const { stream, consumerName } = actor;
  await stream.open();
  if (!actor.begun) return beginFirst(actor);
  const { lastSequence } = await stream.state();
  if (actor.sequence > lastSequence) rebuild(actor);
  // The old one may wait for acknowledgements of messages that never arrived.
  await stream.deleteConsumer(consumerName);
  return stream.consumer(consumerName, actor.sequence + 1);
}

/**
 * Restores the snapshot once a consumer stands behind it. A purge beyond the snapshot would have left
 * a newer one, and with the consumer there is none: so its note tells whether anything is missing.
 */
async function beginFirst(actor: Actor): Promise<DurableConsumer> {
  const { stream, clock, consumerName } = actor;
  if (actor.resetStates && !actor.wasReset) await reset(actor);
  actor.wasReset = true;
  for (let read = 0; read < readsMax; read++) {
    const loaded = await loadSnapshot(stream, clock);
    const { lastSequence } = await stream.state();
    const told = sequenceOfNote(loaded?.note);
    const sequence = told <= lastSequence ? told : 0;
    const consumer = await stream.consumer(consumerName, sequence + 1);
    if ((await stream.noteOf(snapshotName)) === loaded?.note) {
      actor.sequence = sequence;
      if (loaded) await restore(actor, loaded);
      actor.begun = true;
      return consumer;
    }
    await stream.deleteConsumer(consumerName);
  }
  throw new TiergridError("request_timeout", `the snapshot changed at each of ${readsMax} reads`);
}

async function reset({ stream, upkeep, clock, inst, log }: Actor): Promise<void> {
  await sleep(clock, leaseTiming.readyMs); // Until the other routers have been heard.
  const others = upkeep.otherRouters();
  if (others.length > 0) {
    const note = "their indexes and the stream disagree from here on";
    log.warn("router_reset_states with live replicas", { routers: others.join(","), note });
  }
  await stream.reset();
  log.info("durable state was reset", { inst });
}

async function restore(actor: Actor, { note, bytes }: LoadedSnapshot): Promise<void> {
  const { tables, totals, log, sequence } = actor;
  try {
    const { ranks, fits } = await restoreSnapshot(tables, bytes);
    if (!fits) log.warn("the index has no room for the snapshot; workers are asked instead");
    actor.upkeep.restored(sequence, ranks);
    totals.restoredRanks += ranks.length;
    log.info("snapshot restored", { ranks: ranks.length, sequence });
  } catch (thrown) {
    const error = toTiergridError(thrown);
    if (error.code !== "malformed_reply") throw error;
    totals.badSnapshots++;
    log.warn("snapshot thrown away; workers are asked instead", { error: error.message });
    await discard(actor, note);
  }
}

/** Deletes the bad snapshot, unless another router is replacing it. */
async function discard({ stream, inst }: Actor, note: string): Promise<void> {
  const lock = await stream.lock(purgerLock, inst);
  if (!lock) return;
  await discardSnapshot(stream, note);
  await lock.release();
}

/** The stream began anew: what was between is known to the workers alone. */
function rebuild(actor: Actor): void {
  const { tables, totals, log, upkeep } = actor;
  log.warn("the durable stream began anew; workers are asked for their blocks");
  totals.rebuilds++;
  actor.sequence = 0;
  upkeep.streamLost();
  for (const { slot } of [...tables.intake.ranks()]) tables.intake.onMismatch(slot);
}

async function follow(actor: Actor, consumer: DurableConsumer): Promise<void> {
  const { clock, abort, upkeep, log } = actor;
  while (actor.workerCount() === 0 && upkeep.absent === 0 && !abort.signal.aborted) {
    await upkeep.tickIfDue(actor.sequence);
    await sleep(clock, firstWorkerPollMs, abort.signal);
  }
  if (actor.failing !== "") log.info("durable KV events: followed again");
  actor.failing = "";
  actor.following = true;
  while (!abort.signal.aborted) {
    const batch = await unlessEnded(actor, consumer.next(pullMs));
    if (!batch) return;
    let turnBytes = 0;
    for (const message of batch.messages) {
      apply(actor, message);
      turnBytes += message.payload.length;
      if (turnBytes < turnBytesMax) continue;
      turnBytes = 0;
      await sleep(clock, 0);
    }
    batch.acknowledge();
    await upkeep.tickIfDue(actor.sequence);
  }
}

/** Undefined when the router ends first; what is asked is left to its own end. */
async function unlessEnded<T>({ ending }: Actor, asked: Promise<T>): Promise<T | undefined> {
  asked.catch(() => {});
  return Promise.race([asked, ending]);
}

function apply(actor: Actor, { sequence, payload }: DurableMessage): void {
  const { tables, totals, upkeep } = actor;
  // A message that was delivered before comes again when its acknowledgement got lost.
  actor.sequence = Math.max(actor.sequence, sequence);
  const batch = readBatch(actor, payload);
  if (!batch) return;
  if (actor.isPresent(batch) || upkeep.isAbsent(batch.workerId)) {
    tables.intake.onEvents(batch);
    totals.applied++;
  } else totals.foreign++;
}

function readBatch({ totals, log }: Actor, payload: Uint8Array): KvEventBatch | undefined {
  try {
    return decodeKvEvents(payload);
  } catch (thrown) {
    totals.malformed++;
    const error = toTiergridError(thrown).message;
    if (totals.malformed === 1) log.warn("a message of the stream could not be read", { error });
    return undefined;
  }
}
