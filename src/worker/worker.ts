/**
 * The worker: an engine on the bus.
 *
 *   tg.w.<inst>.gen, public endpoint ──▶ jobs ──submit──▶ engine
 *   tg.w.<inst>.ctl ────────────────────▶ │ ◀────step────── │
 *   stream owners ◀──── one bundle per step                 │
 *   routers ◀── notices, KV events, load, heartbeats ───────┘
 *
 *   starting ──engine up──▶ ready ──drain──▶ draining ──▶ closed
 *                             └── engine dies ──▶ dead, `died` resolves
 */
import { type CancelTimer, type Clock, every, sleep } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import { type Random, randomId } from "../base/random.ts";
import type { BlockHasher } from "../protocol/block-hashes.ts";
import { durableEventSubject, type EndpointPath } from "../protocol/subjects.ts";
import { type Announcer, announce, newEpoch } from "../runtime/announce.ts";
import type { Bus } from "../runtime/bus.ts";
import { leaseTiming } from "../runtime/discovery.ts";
import type { DurableLog } from "../runtime/durable-log.ts";
import type { Health } from "../runtime/health-server.ts";
import type { Log } from "../runtime/log.ts";
import type { EchoGate } from "../runtime/stream-defaults.ts";
import { createDurableEvents, type DurableEvents } from "./durable-events.ts";
import type { Engine } from "./engine.ts";
import { EngineEvents, eventLingerMsDefault } from "./engine-events.ts";
import { createLoadReports, type LoadReports } from "./load-reports.ts";
import { digestBeats, type WorkerState, workerCardOf } from "./worker-card.ts";
import { serveWorker, type WorkerEndpoints } from "./worker-endpoints.ts";
import { WorkerJobs } from "./worker-jobs.ts";
import {
  collectDurableEvents,
  collectWorker,
  countFetches,
  type WorkerMetrics,
} from "./worker-metrics.ts";
import { noticeTiming } from "./worker-notices.ts";

export interface WorkerOptions {
  readonly bus: Bus;
  readonly clock: Clock;
  /** For messages that may wait; shared, a process sends them together. Absent = `clock`. */
  readonly ticks?: Clock;
  readonly random: Random;
  readonly gate: EchoGate;
  readonly log: Log;
  readonly metrics: WorkerMetrics;
  readonly engine: Engine;
  /** Where the worker serves; its namespace is its pool. */
  readonly endpoint: EndpointPath;
  readonly blockHasher: Pick<BlockHasher, "chain">;
  /** Semantic version of this build. */
  readonly version: string;
  /** What requests may require or prefer of this worker. */
  readonly taints?: readonly string[];
  /** Fault switch: true when the KV events of a pass get lost behind the worker. */
  readonly losesKvEvents?: () => boolean;
  /** How long KV events may wait for others; absent = `eventLingerMsDefault`. */
  readonly eventLingerMs?: number;
  /** Durable mode: KV events go into this log; the caller closes it. */
  readonly durableLog?: DurableLog | undefined;
}

export interface Worker {
  readonly inst: string;
  /** Resolves when the engine serves or is known never to. */
  readonly started: Promise<void>;
  /** Resolves when the engine is dead: this worker has no further use. */
  readonly died: Promise<TiergridError>;
  ready(): boolean;
  health(): Health;
  /** Requests that run. */
  active(): number;
  /**
   * Refuses new requests at once, lets running ones finish until `graceMs`, hands the rest to their
   * dispatchers or owners with `worker_draining`, and closes.
   */
  drain(graceMs: number): Promise<void>;
  /** Ends everything at once. Idempotent. */
  close(): Promise<void>;
}

export const workerTiming = {
  drainPollMs: 20,
  /** Time that owners get to acknowledge the ends of their streams. */
  lastWordsMs: 1_000,
} as const;

interface Parts {
  readonly options: WorkerOptions;
  readonly inst: string;
  readonly epoch: string;
  readonly jobs: WorkerJobs;
  readonly events: EngineEvents;
  readonly loads: LoadReports;
  state: WorkerState;
}

interface Running extends Parts {
  readonly endpoints: WorkerEndpoints;
  readonly announcer: Announcer;
  readonly cancelActive: CancelTimer;
  readonly die: (error: TiergridError) => void;
}

/** Registers at once; requests are taken when the engine has started. */
export function startWorker(options: WorkerOptions): Worker {
  const { bus, clock, ticks = clock, random, engine } = options;
  const parts = partsOf(options);
  const { inst, jobs } = parts;
  collectWorker(options.metrics, clock, engine, jobs);
  let die = (_error: TiergridError): void => {};
  const died = new Promise<TiergridError>((resolve) => {
    die = resolve;
  });
  const running: Running = Object.assign(parts, {
    endpoints: endpointsOf(parts),
    announcer: announce({ bus, clock: ticks, random, card: () => cardOf(parts) }),
    cancelActive: every(ticks, noticeTiming.activePeriodMs, () => jobs.tellActive()),
    die,
  });
  return {
    inst,
    started: startEngine(running),
    died,
    ready: () => isReady(running),
    health: () => healthOf(running),
    active: () => jobs.active,
    drain: (graceMs) => drain(running, graceMs),
    close: () => close(running),
  };
}

function partsOf(options: WorkerOptions): Parts {
  const { bus, clock, ticks = clock, random, gate, engine, metrics, losesKvEvents } = options;
  const { namespace } = options.endpoint;
  const inst = String(randomId(random));
  const epoch = newEpoch(random);
  const loads = createLoadReports({ bus, clock: ticks, namespace, inst });
  const duration = metrics.histogram("dynamo_component_request_duration_seconds");
  const jobs = new WorkerJobs({
    bus,
    clock,
    ticks,
    gate,
    engine,
    inst,
    epoch,
    onDropped: () => engine.load().forEach(loads.report),
    onFinished: (_outcome, durationMs) => duration.observe(durationMs / 1000),
    onFetched: countFetches(metrics),
  });
  const events = new EngineEvents({
    bus,
    clock,
    random,
    chain: options.blockHasher.chain,
    namespace,
    inst,
    epoch,
    card: engine.card,
    ticks,
    lingerMs: options.eventLingerMs ?? eventLingerMsDefault,
    loses: losesKvEvents ?? (() => false),
    durable: durableOf(options, inst, epoch),
  });
  return { options, inst, epoch, jobs, events, loads, state: "starting" };
}

function durableOf(options: WorkerOptions, inst: string, epoch: string): DurableEvents | undefined {
  const { durableLog, clock, endpoint, log, metrics } = options;
  if (!durableLog) return undefined;
  const durable = createDurableEvents({
    log: durableLog,
    clock,
    sourceOf: (dpRank) => ({
      workerId: inst,
      dpRank,
      stateSource: epoch,
      subject: durableEventSubject(endpoint, inst, dpRank),
    }),
    onTrouble(error) {
      if (error) log.warn("KV events wait: the stream takes none", { error: error.message });
      else log.info("the stream takes KV events again");
    },
  });
  collectDurableEvents(metrics, durable);
  return durable;
}

function endpointsOf(parts: Parts): WorkerEndpoints {
  const { options, inst, jobs } = parts;
  const { bus, clock, random, metrics, endpoint, version, engine } = options;
  const { model, role } = engine.card;
  const state = (): WorkerState => parts.state;
  return serveWorker({
    bus,
    clock,
    random,
    metrics,
    inst,
    endpoint,
    version,
    model,
    role,
    jobs,
    state,
  });
}

function cardOf({ options, inst, epoch, events, state }: Parts) {
  const { clock, endpoint, engine, taints } = options;
  const beat = Math.floor(clock.nowMs() / leaseTiming.heartbeatMs);
  const digests = beat % digestBeats === 0 ? events.digests() : undefined;
  return workerCardOf({ inst, epoch, endpoint, engine, state, digests, taints });
}

async function startEngine(running: Running): Promise<void> {
  const { options, inst, jobs, events, loads, announcer, endpoints } = running;
  const { engine, log } = options;
  try {
    await engine.start({
      onStep: (step) => jobs.onStep(step),
      onKvEvents: (dpRank, batch) => events.publish(dpRank, batch),
      onLoad: loads.report,
      onDeath: (error) => void onDeath(running, error), // Ends in `died`.
    });
  } catch (thrown) {
    return onDeath(running, toTiergridError(thrown));
  }
  if (running.state !== "starting") return;
  running.state = "ready";
  endpoints.open();
  announcer.beatNow();
  log.info("worker ready", { worker_id: inst, model: engine.card.model });
}

/** Dispatchers take the requests back while the worker is still known; only then it says goodbye. */
async function onDeath(running: Running, error: TiergridError): Promise<void> {
  const { options, inst, jobs, endpoints, announcer, die } = running;
  if (running.state === "closed" || running.state === "dead") return;
  running.state = "dead";
  const fields = { worker_id: inst, error_type: error.code, error: error.message };
  options.log.error("engine died", fields);
  endpoints.leave();
  announcer.beatNow();
  await jobs.failAll(error);
  announcer.goodbye();
  die(error);
}

async function drain(running: Running, graceMs: number): Promise<void> {
  const { options, inst, jobs, endpoints, announcer } = running;
  const { log } = options;
  if (running.state === "closed") return;
  if (running.state !== "dead") running.state = "draining";
  endpoints.leave();
  announcer.beatNow();
  await waitUntil(options.clock, () => jobs.active === 0, graceMs);
  if (jobs.active > 0) {
    log.warn("drain: grace is over", { worker_id: inst, requests: jobs.active });
    await jobs.failAll(new TiergridError("worker_draining", "this worker is stopping"));
  }
  await waitUntil(options.clock, () => jobs.heldStreams === 0, workerTiming.lastWordsMs);
  await close(running);
}

async function close(running: Running): Promise<void> {
  const { options, inst, jobs, events, loads, endpoints, announcer, cancelActive } = running;
  if (running.state === "closed") return;
  running.state = "closed";
  jobs.close();
  announcer.goodbye();
  endpoints.close();
  events.close();
  loads.close();
  cancelActive();
  await options.engine.stop();
  options.log.info("worker closed", { worker_id: inst });
}

async function waitUntil(clock: Clock, done: () => boolean, maxMs: number): Promise<void> {
  const untilMs = clock.nowMs() + maxMs;
  while (!done() && clock.nowMs() < untilMs) await sleep(clock, workerTiming.drainPollMs);
}

function isReady({ state, options }: Parts): boolean {
  return state === "ready" && options.bus.state === "connected";
}

function healthOf(parts: Parts): Health {
  const { inst, state, jobs, events, options } = parts;
  const { model, role } = options.engine.card;
  const { active } = jobs;
  const body = { state, worker_id: inst, model, role, active, kv_events_refused: events.refused };
  return { ready: isReady(parts), body };
}
