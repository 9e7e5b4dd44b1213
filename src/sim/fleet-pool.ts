/** One pool of a fleet: its local router and its workers with mock engines. */
import type { Clock } from "../base/clock.ts";
import { mulberry32, type Random, randomU32 } from "../base/random.ts";
import type { KvRouterConfig } from "../config/kv-router-config.ts";
import type { PoolConfig } from "../config/pool-config.ts";
import type { WorkerPolicy } from "../core/choice.ts";
import type { KvIndexCore } from "../core/kv-index.ts";
import type { Role } from "../core/sla-grid.ts";
import { phaseOfRole } from "../global-router/pool-health.ts";
import { localRouterTable } from "../local-router/local-metrics.ts";
import { type LocalRouter, startLocalRouter } from "../local-router/local-router.ts";
import type { BlockHasher } from "../protocol/block-hashes.ts";
import type { BusRole, EndpointPath } from "../protocol/subjects.ts";
import type { Bus } from "../runtime/bus.ts";
import type { DurableLog } from "../runtime/durable-log.ts";
import { type EchoGate, startEchoGate } from "../runtime/echo-gate.ts";
import type { CardRole } from "../runtime/instance-card.ts";
import type { LogFactory } from "../runtime/log.ts";
import { componentMetrics, workerMetrics } from "../runtime/metric-table.ts";
import { createMetrics } from "../runtime/metrics.ts";
import { MockDriver } from "../worker/mock-driver.ts";
import type { MockEngineConfig } from "../worker/mock-engine-config.ts";
import { startWorker, type Worker } from "../worker/worker.ts";

export interface PoolOptions {
  /** A new connection for each part; `name` says which. */
  readonly connect: (role: BusRole, name: string) => Promise<Bus>;
  readonly clock: Clock;
  readonly random: Random;
  readonly logs: LogFactory;
  readonly config: PoolConfig;
  readonly kvRouter: KvRouterConfig;
  readonly workerPolicy: WorkerPolicy;
  /** Absent = in TypeScript: another core draws otherwise, and one seed must give one run. */
  readonly indexCore?: KvIndexCore | undefined;
  /** Engines of a pool, one worker each; their role must be the pool's. */
  readonly enginesOf: (role: CardRole, namespace: string) => readonly MockEngineConfig[];
  /** Replicas of each pool's router; 1 by default. */
  readonly routersPerPool?: number;
  /** Durable mode: a log of an endpoint's workers, for one part. */
  readonly durableLogOf?: ((endpoint: EndpointPath, role: BusRole) => DurableLog) | undefined;
  readonly model: string;
  readonly acceptTimeoutMs: number;
  /** Semantic version of this build. */
  readonly version: string;
}

export interface FleetWorker {
  readonly namespace: string;
  /** The worker's own connection, for faults. */
  readonly bus: Bus;
  readonly worker: Worker;
  readonly engine: MockDriver;
  /** Disappears without a word, as a crash would. */
  kill(): Promise<void>;
  close(): Promise<void>;
}

export interface FleetPool {
  readonly role: CardRole;
  readonly namespace: string;
  /** The routers that run; another one in a place after `restartRouter`. */
  readonly routers: readonly PoolRouter[];
  /** The first of them. */
  readonly router: LocalRouter;
  readonly workers: readonly FleetWorker[];
  /** Kills the router at `place` without a word and starts a new one, which knows nothing. */
  restartRouter(place: number): Promise<void>;
  /** Kills the worker at `place` without a word and starts a new one in its place. */
  replaceWorker(place: number): Promise<void>;
  /** True while every router can choose every worker. */
  ready(): boolean;
  close(): Promise<void>;
}

/** A connection and its self-echo. */
export interface Part {
  readonly bus: Bus;
  readonly gate: EchoGate;
}

/** A new connection with its echo. */
export async function connectPart(
  { connect, clock }: Pick<PoolOptions, "connect" | "clock">,
  role: BusRole,
  name: string,
): Promise<Part> {
  const bus = await connect(role, name);
  return { bus, gate: startEchoGate(bus, clock) };
}

export async function closePart({ gate, bus }: Part): Promise<void> {
  gate.stop();
  await bus.close();
}

interface PoolPlace {
  readonly role: Role;
  readonly namespace: string;
  readonly blockHasher: BlockHasher;
}

export async function startPool(options: PoolOptions, place: PoolPlace): Promise<FleetPool> {
  const { namespace, blockHasher } = place;
  const role = phaseOfRole[place.role];
  const endpoint: EndpointPath = {
    namespace,
    component: role === "prefill" ? "prefill" : "backend",
    endpoint: "generate",
  };
  const engines = options.enginesOf(role, namespace);
  const startRouter = (): Promise<PoolRouter> =>
    startPoolRouter(options, { endpoint, role, engines, blockHasher });
  const first = await startRouter();
  const routers = [first];
  while (routers.length < (options.routersPerPool ?? 1)) routers.push(await startRouter());
  const workers: FleetWorker[] = [];
  for (const engine of engines) {
    workers.push(await startPoolWorker(options, endpoint, engine, blockHasher));
  }
  const selectable = ({ router }: PoolRouter): number =>
    router.holders().filter((holder) => holder.selectable).length;
  const ranks = engines.reduce((sum, engine) => sum + engine.dpSize, 0);
  return {
    role,
    namespace,
    workers,
    routers,
    get router() {
      return (routers[0] ?? first).router;
    },
    ready: () => routers.every((place) => place.router.ready() && selectable(place) >= ranks),
    restartRouter: async (at) => {
      const killed = routers[at];
      if (!killed) return;
      await killed.durableLog?.close();
      await closePart(killed.part);
      await killed.router.close();
      routers[at] = await startRouter();
    },
    replaceWorker: async (at) => {
      const engine = engines[at];
      if (!engine) return;
      await workers[at]?.kill();
      workers[at] = await startPoolWorker(options, endpoint, engine, blockHasher);
    },
    close: async () => {
      await Promise.all(workers.map((worker) => worker.close()));
      await Promise.all(routers.map(closeRouter));
    },
  };
}

export interface PoolRouter {
  readonly part: Part;
  readonly router: LocalRouter;
  readonly durableLog: DurableLog | undefined;
}

async function closeRouter({ router, part, durableLog }: PoolRouter): Promise<void> {
  await router.close();
  await durableLog?.close();
  await closePart(part);
}

interface RouterPlace {
  readonly endpoint: EndpointPath;
  readonly role: CardRole;
  readonly engines: readonly MockEngineConfig[];
  readonly blockHasher: BlockHasher;
}

async function startPoolRouter(options: PoolOptions, place: RouterPlace): Promise<PoolRouter> {
  const { clock, random, logs, kvRouter, workerPolicy, acceptTimeoutMs, version } = options;
  const { endpoint, role, engines, blockHasher } = place;
  const { namespace } = endpoint;
  const part = await connectPart(options, "lo", namespace);
  const durableLog = options.durableLogOf?.(endpoint, "lo");
  const router = startLocalRouter({
    ...part,
    clock,
    random: mulberry32(randomU32(random)),
    log: logs(`router.${namespace}`),
    metrics: createMetrics(localRouterTable),
    endpoint,
    role,
    blockSize: engines[0]?.blockSize ?? 1,
    config: kvRouter,
    durableLog,
    policy: workerPolicy,
    blockHasher,
    ...(options.indexCore && { indexCore: options.indexCore }),
    thresholds: {
      activeDecodeBlocks: null,
      activePrefillTokens: null,
      activePrefillTokensFrac: null,
    },
    minInitialWorkers: engines.length,
    acceptTimeoutMs,
    version,
  });
  return { part, router, durableLog };
}

async function startPoolWorker(
  options: PoolOptions,
  endpoint: EndpointPath,
  config: MockEngineConfig,
  blockHasher: BlockHasher,
): Promise<FleetWorker> {
  const { clock, random, logs, model, version } = options;
  const { namespace } = endpoint;
  const part = await connectPart(options, "wk", `${namespace}-worker`);
  const durableLog = options.durableLogOf?.(endpoint, "wk");
  const engine = new MockDriver({
    name: namespace,
    model,
    config,
    clock,
    random: mulberry32(randomU32(random)),
    hasher: blockHasher,
  });
  const worker = startWorker({
    ...part,
    clock,
    random: mulberry32(randomU32(random)),
    log: logs(`worker.${namespace}`),
    metrics: createMetrics({ ...workerMetrics, ...componentMetrics }),
    engine,
    endpoint,
    blockHasher,
    durableLog,
    version,
  });
  return {
    namespace,
    bus: part.bus,
    worker,
    engine,
    kill: async () => {
      await durableLog?.close();
      await closePart(part);
      await worker.close();
    },
    close: async () => {
      await worker.close();
      await durableLog?.close();
      await closePart(part);
    },
  };
}
