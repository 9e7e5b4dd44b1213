/** What a global router says of itself: readiness, `/health`, `pool_info`, its card. */
import type { Clock } from "../base/clock.ts";
import { type RetryBudget, retriesLeft } from "../core/retry-budget.ts";
import type { Bus } from "../runtime/bus.ts";
import type { Health } from "../runtime/health-server.ts";
import type { InstanceCard } from "../runtime/instance-card.ts";
import type { GridControl, LastReload } from "./grid-control.ts";
import { commonHashes } from "./hash-takers.ts";
import { type ActiveConfig, type PoolHealth, type PoolView, workersOf } from "./pool-health.ts";
import type { VitalsView } from "./pool-vitals.ts";

/** The settings a status depends on. */
export interface StatusSettings {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly model: string;
  readonly namespace: string;
  readonly component: string;
  readonly poolWaitMs: number;
  readonly requireAllPools: boolean;
}

/** What changes while the router runs. */
export interface RouterState {
  readonly active: ActiveConfig;
  draining: boolean;
}

/** One running router, as far as its status goes. */
export interface StatusSource {
  readonly options: StatusSettings;
  readonly inst: string;
  readonly health: PoolHealth;
  readonly grids: GridControl;
  readonly budget: RetryBudget;
  readonly state: RouterState;
}

export type PoolReport = PoolView & VitalsView;

/** The answer of `pool_info`. */
export interface PoolInfo {
  readonly model_name: string;
  readonly mode: "disagg" | "agg";
  readonly enable_priority_retry: boolean;
  readonly config: {
    readonly version: string;
    readonly loaded_at: string;
    readonly warnings: number;
    readonly last_reload: LastReload | null;
    readonly canary: { readonly version: string; readonly percent: number } | null;
  };
  /** Failed attempts that may be made again at this moment. */
  readonly retries_left: number;
  readonly roles: Readonly<Record<string, { readonly pools: readonly PoolReport[] }>>;
}

/** Every pool with its state, in one list. */
export function poolStates(pools: PoolInfo): readonly object[] {
  return Object.entries(pools.roles).flatMap(([role, ofRole]) =>
    ofRole.pools.map(({ index, namespace, state }) => ({ role, index, namespace, state })),
  );
}

/** How many pools of a role take requests. */
function servingPools({
  health,
  state,
}: StatusSource): { role: string; serving: number; all: number }[] {
  return [...state.active.roles.values()].map(({ role, live }) => ({
    role,
    serving: live.filter((pool) => health.isServing(pool)).length,
    all: live.length,
  }));
}

export function isReady(source: StatusSource): boolean {
  const { options, state } = source;
  if (state.draining || options.bus.state !== "connected") return false;
  return servingPools(source).every(({ serving, all }) =>
    options.requireAllPools ? serving === all : serving > 0,
  );
}

/**
 * The card frontends find the model by. It is ready when the phase that answers has a pool: a
 * missing prefill pool has a fallback, and a router that waits for pools wants the requests.
 */
export function cardOf(source: StatusSource, epoch: string): () => InstanceCard {
  const { options, inst, state } = source;
  const { model, namespace, component, poolWaitMs } = options;
  return () => {
    const agg = state.active.config.mode === "agg";
    const answering = servingPools(source).find(({ role }) => role === "agg" || role === "decode");
    const ready = poolWaitMs > 0 || (answering?.serving ?? 0) > 0;
    const live = [...state.active.roles.values()].flatMap((role) => role.live);
    const cards = live.flatMap((pool) => pool.routers.map((router) => router.card));
    const contextLengths = cards.map(({ contextLength }) => contextLength).filter((n) => n > 0);
    return {
      inst,
      epoch,
      kind: "global",
      namespace,
      component,
      endpoint: agg ? "generate" : "decode_generate",
      model,
      role: agg ? "aggregated" : "decode",
      workerId: inst,
      dpStart: 0,
      dpSize: 1,
      blockSize: cards.find(({ blockSize }) => blockSize > 0)?.blockSize ?? 0,
      totalKvBlocks: 0,
      maxNumBatchedTokens: 0,
      contextLength: contextLengths.length > 0 ? Math.min(...contextLengths) : 0,
      state: state.draining ? "draining" : ready ? "ready" : "starting",
      protocolVersions: [1],
      identityHashes: false,
      kvEvents: false,
      promptHashes: commonHashes(cards),
      workersReady: live.reduce((sum, pool) => sum + workersOf(pool), 0),
    };
  };
}

export function healthOf(source: StatusSource): Health {
  const { state } = source;
  const roles = servingPools(source);
  const endpoints = roles.map(({ role, serving }) => {
    const endpoint = role === "agg" ? "generate" : `${role}_generate`;
    return [endpoint, serving > 0 && !state.draining ? "ready" : "notready"];
  });
  const pools = poolStates(poolInfo(source));
  return { ready: isReady(source), body: { endpoints: Object.fromEntries(endpoints), pools } };
}

export function poolInfo({ options, health, grids, budget }: StatusSource): PoolInfo {
  const { inForce, trial } = grids.versions;
  const { config, roles } = inForce.active;
  const reports = [...roles.values()].map((role) => {
    const pools = role.live.map((pool, index) => ({
      ...health.view(pool, { priority: index, ...role.pools[index], index }),
      ...health.vitalsOf(pool),
    }));
    return [role.role, { pools }];
  });
  return {
    model_name: options.model,
    mode: config.mode,
    enable_priority_retry: config.enablePriorityRetry,
    config: {
      version: config.version,
      loaded_at: new Date(inForce.sinceWallMs).toISOString(),
      warnings: inForce.kept.warnings,
      last_reload: grids.lastReload,
      canary: trial ? { version: trial.kept.version, percent: trial.percent } : null,
    },
    retries_left: retriesLeft(budget, options.clock.nowMs()),
    roles: Object.fromEntries(reports),
  };
}
