/**
 * A whole two-tier fleet in one process: the real frontend, routers and workers, each on a bus
 * connection of its own. Bus, clock and randomness come from outside, so the demo runs it on a
 * nats-server in real time and the simulator on the in-process bus in virtual time.
 *
 *   frontend ── global router ──┬── local router of pool 0 ── workers with mock engines
 *                               └── local router of pool 1 ── ...
 */
import { sleep } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import { mulberry32, randomU32 } from "../base/random.ts";
import type { FrontendSettings } from "../frontend/frontend-parts.ts";
import { type RunningFrontend, startFrontend } from "../frontend/start-frontend.ts";
import { type GlobalRouter, startGlobalRouter } from "../global-router/global-router.ts";
import { poolStates } from "../global-router/router-status.ts";
import { type BlockHasher, loadBlockHasher } from "../protocol/block-hashes.ts";
import type { Bus } from "../runtime/bus.ts";
import {
  bookingMetrics,
  componentMetrics,
  frontendMetrics,
  globalRouterMetrics,
  processMetrics,
} from "../runtime/metric-table.ts";
import { createMetrics, type Metrics } from "../runtime/metrics.ts";
import {
  closePart,
  connectPart,
  type FleetPool,
  type FleetWorker,
  type PoolOptions,
  startPool,
} from "./fleet-pool.ts";

const globalTable = {
  ...frontendMetrics,
  ...globalRouterMetrics,
  ...bookingMetrics,
  ...componentMetrics,
  ...processMetrics,
};

export interface FleetOptions extends PoolOptions {
  /** Absent = on the fast core where that can be had. */
  readonly blockHasher?: BlockHasher;
  readonly frontend?: Partial<FrontendSettings>;
}

export interface Fleet {
  readonly frontend: RunningFrontend;
  readonly frontBus: Bus;
  readonly global: GlobalRouter;
  /** In the order of the pool config: by role, then by index. */
  readonly pools: readonly FleetPool[];
  readonly workers: readonly FleetWorker[];
  /** Of frontend and global router together. */
  readonly metrics: Metrics<typeof globalTable>;
  /** Resolves when every worker can be chosen; rejects with `not_ready` after `timeoutMs`. */
  ready(timeoutMs: number): Promise<void>;
  /** Ends every part; nothing of the fleet is left on the clock afterwards. */
  close(): Promise<void>;
}

export const readyPollMs = 20;

/** Starts every part; they find each other by themselves (`ready`). */
export async function startFleet(options: FleetOptions): Promise<Fleet> {
  const { clock, random, logs, config, model } = options;
  const metrics = createMetrics(globalTable);
  const blockHasher = options.blockHasher ?? (await loadBlockHasher());
  const front = await connectPart(options, "fe", "frontend");
  const frontend = startFrontend({
    ...front,
    clock,
    random: mulberry32(randomU32(random)),
    log: logs("frontend"),
    metrics,
    model,
    acceptTimeoutMs: options.acceptTimeoutMs,
    settings: options.frontend ?? {},
    blockHasher,
    pools: () => poolStates(global.pools()),
  });
  const top = await connectPart(options, "gl", "global");
  const global = startGlobalRouter({
    ...top,
    clock,
    random: mulberry32(randomU32(random)),
    log: logs("global_router"),
    metrics,
    config,
    blockHasher,
    model,
    namespace: "dynamo",
    component: "global_router",
    defaults: { ttftTargetMs: null, itlTargetMs: null },
    acceptTimeoutMs: options.acceptTimeoutMs,
    poolWaitMs: 0,
    requireAllPools: true,
    overloadHoldMs: 1000,
    version: options.version,
  });
  const pools: FleetPool[] = [];
  for (const { role, pools: poolsOfRole } of config.roles) {
    for (const { namespace } of poolsOfRole) {
      pools.push(await startPool(options, { role, namespace, blockHasher }));
    }
  }
  const ready = (): boolean =>
    frontend.ready() && global.ready() && pools.every((pool) => pool.ready());
  return {
    frontend,
    global,
    frontBus: front.bus,
    pools,
    get workers() {
      return pools.flatMap((pool) => pool.workers);
    },
    metrics,
    ready: async (timeoutMs) => {
      const untilMs = clock.nowMs() + timeoutMs;
      while (!ready()) {
        if (clock.nowMs() >= untilMs) throw notReady(pools, timeoutMs);
        await sleep(clock, readyPollMs);
      }
    },
    close: async () => {
      await frontend.close();
      await global.close();
      await Promise.all(pools.map((pool) => pool.close()));
      await Promise.all([closePart(front), closePart(top)]);
    },
  };
}

function notReady(pools: readonly FleetPool[], timeoutMs: number): TiergridError {
  const missing = pools.filter((pool) => !pool.ready()).map(({ namespace }) => namespace);
  const names = missing.length > 0 ? `pools ${missing.join(", ")}` : "the global router";
  return new TiergridError("not_ready", `${names} not ready after ${timeoutMs} ms`);
}
