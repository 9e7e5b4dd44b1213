/**
 * The KV router of one pool: finds the worker of an endpoint that has most of a prompt's blocks for
 * the least load, offers it the request, and keeps the books until the answer is over.
 *
 *   tg.ep.<ns>.router.generate ─┐
 *   tg.local.<inst>.gen ────────┴▶ dispatcher ──plan──▶ policy ──▶ choice: index, load, roster
 *                                      │                             ▲
 *                                      ▼ offer                       │ events, samples, heartbeats
 *                                    worker ─────────────────▶ directory
 *
 * This file only wires; each part says what it does.
 */
import { type Clock, every } from "../base/clock.ts";
import { mulberry32, type Random, randomId, randomU32 } from "../base/random.ts";
import { subscribesToKvEvents } from "../config/kv-router-config.ts";
import type { QueueOrder } from "../core/admission-queue.ts";
import { choiceTables, latencyChoiceTables } from "../core/choice.ts";
import { createKvIndex } from "../core/create-kv-index.ts";
import type { IndexMode, IndexStats, KvIndexCore, KvIndexOptions } from "../core/kv-index.ts";
import { defaultLoadLimits, WorkerLoad } from "../core/worker-load.ts";
import { type BusyThresholds, WorkerRoster } from "../core/worker-roster.ts";
import type { EndpointPath } from "../protocol/subjects.ts";
import type { Bus } from "../runtime/bus.ts";
import type { DispatcherTotals } from "../runtime/dispatch-policy.ts";
import { Dispatcher } from "../runtime/dispatcher.ts";
import type { EchoGate } from "../runtime/echo-gate.ts";
import type { Log } from "../runtime/log.ts";
import { type Administered, administer, serveThresholds } from "./admin-routes.ts";
import { startAdmission } from "./admission.ts";
import { DecisionRing, decisionsKeptDefault } from "./decision-ring.ts";
import { startDigestCheck } from "./digest-check.ts";
import {
  type DurableModeOptions,
  type DurableModeTables,
  durableLogOf,
  startDurableMode,
} from "./durable-mode.ts";
import { createEventIntake, type HolderStates } from "./event-intake.ts";
import { collectEventsAtScrape } from "./event-metrics.ts";
import { startHeldDispatch } from "./held-dispatch.ts";
import { type HeldIntake, holdIntake } from "./held-intake.ts";
import { type LatencyTables, startLatencyTables } from "./latency-tables.ts";
import {
  collectAtScrape,
  type LocalMetrics,
  type LocalSeries,
  localSeries,
  workerSeries,
} from "./local-metrics.ts";
import { createLocalPolicy, type LocalRequest } from "./local-policy.ts";
import { startPresence } from "./local-presence.ts";
import { type Prediction, startPrediction } from "./prediction.ts";
import { createRecoveryQuery } from "./recovery-query.ts";
import type { PeerCounts } from "./replica-peers.ts";
import {
  type BookingListener,
  nobodyListens,
  type ReplicaSync,
  startReplicaSync,
} from "./replica-sync.ts";
import type { CallerBookings } from "./route-endpoint.ts";
import type { PoolRules } from "./route-query.ts";
import { type SilenceCheck, startSilenceCheck } from "./silence-check.ts";
import { createWorkerChoice, type WorkerChoice } from "./worker-choice.ts";
import { type OverlapTables, type WorkerDirectory, watchWorkers } from "./worker-directory.ts";

export interface LocalRouterOptions extends PoolRules, Pick<DurableModeOptions, "durableLog"> {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly ticks?: Clock;
  readonly random: Random;
  readonly gate: EchoGate;
  readonly log: Log;
  readonly metrics: LocalMetrics;
  /** Where the pool's workers serve. */
  readonly endpoint: EndpointPath;
  readonly thresholds: BusyThresholds;
  /** Workers to have seen before serving; at least one unless the config skips that wait. */
  readonly minInitialWorkers: number;
  readonly acceptTimeoutMs: number;
  /** Semantic version of this build. */
  readonly version: string;
  /** `identity` only when every engine names blocks by the router's own hashes. */
  readonly indexMode?: IndexMode;
  /** Absent = the index in TypeScript. */
  readonly indexCore?: KvIndexCore;
  readonly indexLimits?: Pick<KvIndexOptions, "blocksMax" | "holdersMax">;
  /** Decisions that can be asked for later; absent = `decisionsKeptDefault`, 0 = none. */
  readonly decisionsKept?: number;
  /** Absent = the config's policy. */
  readonly queueOrder?: QueueOrder;
}

/** One data-parallel rank as it stands in the books. */
export interface HolderView {
  readonly workerId: string;
  readonly dpRank: number;
  readonly selectable: boolean;
  readonly cachedBlocks: number;
  readonly activeBlocks: number;
  readonly activeRequests: number;
}

export interface LocalRouter {
  readonly inst: string;
  /** True once it may serve and while a worker takes requests. */
  ready(): boolean;
  holders(): readonly HolderView[];
  /** What operators read and change while it runs. */
  readonly admin: Administered;
  /** Undefined when no KV events are followed. */
  readonly overlap: OverlapTables | undefined;
  readonly totals: Readonly<DispatcherTotals>;
  readonly stats: LocalStats;
  /** Takes no new requests; resolves when every open one has found its worker, or at `graceMs`. */
  drain(graceMs: number): Promise<void>;
  /** Ends at once; answers under way go on between workers and owners. */
  close(): Promise<void>;
}

export interface LocalStats {
  /** Requests in the dispatcher's books. */
  readonly openRequests: number;
  /** Those of them that wait for room, or for their turn at their worker. */
  readonly waiting: number;
  readonly bookings: number;
  /** Distinct (block, holder) pairs booked. */
  readonly bookedBlocks: number;
  /** Requests the latency model follows; 0 in cost mode `blocks`. */
  readonly latencyRequests: number;
  readonly index: IndexStats | undefined;
  /** Blocks that workers are believed to have because prompts were sent to them. */
  readonly predictedBlocks: number;
  /** The pool's other routers and their bookings, which are among `bookings`. */
  readonly replicas: PeerCounts | undefined;
  /** Ranks by the state of their event stream. */
  readonly streams: HolderStates | undefined;
}

/** What the router knows: load, cached blocks, workers. */
interface Tables extends DurableModeTables {
  readonly roster: WorkerRoster;
  readonly load: WorkerLoad;
  /** Undefined in cost mode `blocks`. */
  readonly latency: LatencyTables | undefined;
  readonly prediction: Prediction | undefined;
  readonly silence: SilenceCheck | undefined;
}

/** Starts the router; it serves as soon as it has seen enough workers. */
export function startLocalRouter(options: LocalRouterOptions): LocalRouter {
  const { random, clock, metrics, endpoint } = options;
  const inst = String(randomId(random));
  const tables = createTables(options);
  const { roster, load, latency, overlap, prediction, directory, silence } = tables;
  const durable = startDurableMode(options, tables, inst);
  const series = localSeries(metrics);
  const sync = options.config.routerReplicaSync
    ? startReplicaSync({ ...options, inst, load, directory })
    : undefined;
  const bookings: BookingListener = sync ?? nobodyListens;
  const { decisionsKept: kept = decisionsKeptDefault, config } = options;
  const decisions = kept > 0 ? new DecisionRing(kept, config.routerCostMode) : undefined;
  const choice = choiceOf(options, tables, series, { bookings, decisions });
  const admission = startAdmission({ ...options, rules: options, choice, load, directory });
  const serving = servingLatch(options, directory);
  const perWorker = workerSeries(metrics, options.role);
  const { namespace } = endpoint;
  const held = startHeldDispatch({ clock, load, directory, metrics }, latency?.cost.book);
  const policy = createLocalPolicy({
    ...{ inst, namespace, clock, metrics, series, serving, choice, load, directory, bookings },
    ...{ admission, held, rules: options },
    latency: latency?.cost.book,
    workerSeries: perWorker,
    onAnswered: (workerId) => silence?.ended(workerId),
  });
  const dispatcher = new Dispatcher({ ...options, inst, level: "local", policy });
  const presence = startPresence({
    ...{ ...options, inst, roster, choice, directory, serving, dispatcher, decisions },
    latency: latency?.cost,
    followsEvents: overlap !== undefined,
    predicts: prediction !== undefined,
    admission,
    bookings: callerBookings(options, load, bookings),
  });
  directory.listen({
    added(worker) {
      perWorker.registered(worker);
      sync?.workerAdded(worker);
    },
    removed(worker) {
      dispatcher.workerGone(worker.inst);
      perWorker.removed(worker);
    },
    changed: presence.beat,
    refused: (reason) => metrics.counter("tiergrid_workers_refused_total", { reason }).add(),
  });
  const admin = administer(options, { roster, directory, choice, serving });
  const thresholds = serveThresholds(options.bus, inst, admin);
  const { entries, totals } = dispatcher;
  collectMetrics(options, tables, dispatcher, sync);
  const cancelSweep = every(clock, defaultLoadLimits.staleCheckMs, () =>
    sweepBookings(options, load, dispatcher, sync),
  );
  return {
    inst,
    ready: () => presence.state() === "ready" && directory.selectableCount > 0,
    holders: () => holderViews(tables),
    admin,
    overlap,
    totals,
    get stats() {
      const waiting = (admission?.pending.count ?? 0) + (latency?.cost.book.heldCount ?? 0);
      return { ...statsOf(tables, entries.size, sync), waiting };
    },
    async drain(graceMs) {
      presence.drain();
      held?.sendAll();
      await dispatcher.drain(graceMs);
    },
    async close() {
      cancelSweep();
      thresholds.unsubscribe();
      presence.end();
      dispatcher.close();
      sync?.close();
      closeTables(tables);
      await durable?.close();
    },
  };
}

function collectMetrics(
  { metrics, clock, role }: LocalRouterOptions,
  { load, directory, overlap, silence }: Tables,
  { entries, totals }: Dispatcher<LocalRequest>,
  sync: ReplicaSync | undefined,
): void {
  collectAtScrape(metrics, {
    ...{ clock, role, load, totals },
    ownBookings: () => load.requestCount - (sync?.counts().booked ?? 0),
    openRequests: () => entries.size,
    workers: () => directory.workers.values(),
  });
  if (overlap && silence) collectEventsAtScrape(metrics, { ...overlap, silence });
}

function statsOf(
  { load, latency, overlap, prediction }: Tables,
  openRequests: number,
  sync: ReplicaSync | undefined,
): Omit<LocalStats, "waiting"> {
  return {
    openRequests,
    bookings: load.requestCount,
    bookedBlocks: load.sharedBlockCount,
    latencyRequests: latency?.cost.book.requestCount ?? 0,
    index: overlap?.index.stats(),
    predictedBlocks: prediction?.index.size ?? 0,
    replicas: sync?.counts(),
    streams: overlap?.intake.holderStates(),
  };
}

function callerBookings(
  { clock }: LocalRouterOptions,
  load: WorkerLoad,
  { firstToken, freed }: BookingListener,
): CallerBookings {
  return {
    prefilled(key) {
      firstToken(key);
      return load.markPrefillCompleted(key, clock.nowMs()) === "ok";
    },
    freed(key) {
      freed(key);
      return load.free(key, clock.nowMs()) === "ok";
    },
  };
}

function createTables(options: LocalRouterOptions): Tables {
  const { random, bus, clock, config, blockHasher, indexMode = "opaque" } = options;
  const roster = new WorkerRoster(options.thresholds);
  const load = new WorkerLoad(random);
  const latency = startLatencyTables(options, load);
  let overlap: OverlapTables | undefined;
  let held: HeldIntake | undefined;
  if (subscribesToKvEvents(config)) {
    const index = createKvIndex({
      mode: indexMode,
      ...{ random, core: options.indexCore, chain: blockHasher.chain, ...options.indexLimits },
    });
    const query = createRecoveryQuery(bus, clock);
    const recovery = options.metrics.histogram("tiergrid_index_recovery_seconds");
    const onRecovered = (tookMs: number): void => recovery.observe(tookMs / 1000);
    const events = createEventIntake({ index, clock, query, onRecovered });
    held = durableLogOf(options) && holdIntake(events);
    const intake = held ?? events;
    const digests = startDigestCheck({
      clock,
      digestOf: (slot) => index.digestOf(slot),
      onMismatch: (slot) => intake.onMismatch(slot),
    });
    overlap = { index, intake, digests };
  }
  const directory = watchWorkers({ ...options, roster, load, overlap });
  latency?.follow(directory);
  const workers = () => directory.workers.values();
  const silence =
    overlap && startSilenceCheck({ ...options, workers, eventsOf: overlap.intake.eventsOf });
  const prediction = startPrediction({ ...options, directory });
  return { roster, load, latency, overlap, held, prediction, directory, silence };
}

function closeTables({ directory, overlap, prediction, silence }: Tables): void {
  directory.close();
  prediction?.close();
  silence?.close();
  overlap?.digests.close();
  overlap?.intake.close();
}

/** Who is told of choices. */
interface ChoiceListeners {
  readonly bookings: BookingListener;
  readonly decisions: DecisionRing | undefined;
}

function choiceOf(
  { clock, random }: LocalRouterOptions,
  { roster, load, latency, directory, overlap, prediction }: Tables,
  series: LocalSeries,
  { bookings, decisions }: ChoiceListeners,
): WorkerChoice {
  const context = {
    clock,
    random,
    tables: latency ? latencyChoiceTables(roster, load, latency.cost) : choiceTables(roster, load),
    directory,
    index: overlap?.index,
    predicted: prediction?.index,
    onBooked: bookings.added,
    decisions,
    onTimes(matchMs: number, totalMs: number): void {
      series.matchMs.observe(matchMs);
      series.schedulingMs.observe(totalMs - matchMs);
      series.totalMs.observe(totalMs);
    },
  };
  return createWorkerChoice(context, mulberry32(randomU32(random)));
}

/** True from the moment that enough workers were there at once. */
function servingLatch(
  { config, minInitialWorkers }: LocalRouterOptions,
  directory: WorkerDirectory,
): () => boolean {
  const workersMin = config.skipInitialWorkerWait ? 0 : Math.max(1, minInitialWorkers);
  let serving = false;
  return () => {
    serving ||= directory.selectableCount >= workersMin;
    return serving;
  };
}

/**
 * Frees bookings that nothing has named for long. Whatever the dispatcher still has in its books is
 * alive, because it drops what its workers stop naming.
 */
function sweepBookings(
  { clock, metrics, log }: LocalRouterOptions,
  load: WorkerLoad,
  { entries }: Dispatcher<LocalRequest>,
  sync: ReplicaSync | undefined,
): void {
  const nowMs = clock.nowMs();
  for (const { state } of entries.values()) {
    if (state.booking) load.touch(state.booking.key, nowMs);
  }
  sync?.touch(nowMs);
  const stale = load.expireStale(nowMs);
  for (const key of stale) sync?.freed(key);
  if (stale.length === 0) return;
  metrics.counter("tiergrid_bookings_freed_total", { by: "stale" }).add(stale.length);
  log.warn("stale bookings freed", { count: stale.length, first: stale[0] });
}

function holderViews({ directory, overlap, prediction, load }: Tables): readonly HolderView[] {
  return [...directory.workers.values()].flatMap(({ inst, card, slots, selectable }) =>
    slots.map((slot, at) => ({
      workerId: inst,
      dpRank: card.dpStart + at,
      selectable,
      cachedBlocks: (overlap ?? prediction)?.index.blocksOf(slot) ?? 0,
      activeBlocks: load.activeBlocks[slot] ?? 0,
      activeRequests: load.activeRequests[slot] ?? 0,
    })),
  );
}
