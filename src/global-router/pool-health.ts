/**
 * How the pools are, as the heartbeats of their local routers tell.
 *
 *   config (role, namespace) ──▶ LivePool ── routers   local routers of that namespace, role, model
 *                                        └── strays    routers there that serve something else
 *
 *   connecting ──first heartbeat──▶ no_workers ◀──────▶ ready ◀──▶ held (overload, with an expiry)
 *   gone ◀──6 s, goodbye── suspect ◀──2.5 s, inhibited──┤
 *                          failing ◀──attempts fail────┘   until an attempt works
 *
 * - A pool is ready when a usable router of it reports a worker, not when a process is up.
 * - `held` and inhibitions expire by themselves; whoever sets one cannot forget to lift it.
 * - A pool that a reload drops lives on in the requests that use it, until their last `ended`.
 */
import type { CancelTimer, Clock } from "../base/clock.ts";
import type { TiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import { everyInStep } from "../base/tick-clock.ts";
import { type PoolConfig, type RolePools, rolePools } from "../config/pool-config.ts";
import { failed, mayTry, succeeded, tried } from "../core/circuit.ts";
import { addSample } from "../core/decayed-mean.ts";
import type { PoolState } from "../core/pool-choice.ts";
import type { Role } from "../core/sla-grid.ts";
import type { Phase } from "../protocol/requests.ts";
import type { Instance, LiveTable } from "../runtime/discovery.ts";
import type { InstanceCard } from "../runtime/instance-card.ts";
import type { Log } from "../runtime/log.ts";
import { newVitals, type PoolVitals, type VitalsView, vitalsView } from "./pool-vitals.ts";

export const poolConditions = [
  "connecting",
  "no_workers",
  "ready",
  "held",
  "failing",
  "suspect",
  "draining",
  "mismatch",
  "gone",
] as const;
export type PoolCondition = (typeof poolConditions)[number];

export const poolTiming = { lookPeriodMs: 1_000, reminderMs: 30_000 } as const;

/** What a pool's routers and workers do for requests of a grid. */
export const phaseOfRole: Readonly<Record<Role, Phase>> = {
  prefill: "prefill",
  decode: "decode",
  agg: "aggregated",
};

/** A pool of the config as it lives; its place in the config may change, it itself does not. */
export interface LivePool {
  readonly role: Role;
  readonly namespace: string;
  /** Attempts sent and not ended, by router instance; no zero entries. */
  readonly inFlightOf: Map<string, number>;
  readonly vitals: PoolVitals;
  routers: readonly Instance[];
  strays: readonly Instance[];
  heard: boolean;
  heldUntilMs: number;
  lastError: string | null;
  /** The condition that was last told, since when, and when the log last had it. */
  told: PoolCondition;
  toldSinceMs: number;
  loggedAtMs: number;
}

/** One role of the config in force, with its pools in config order. */
export interface ActiveRole extends RolePools {
  readonly live: readonly LivePool[];
}

/** A config in force. A request keeps the one it started with. */
export interface ActiveConfig {
  readonly config: PoolConfig;
  readonly roles: ReadonlyMap<Role, ActiveRole>;
}

/** What a decision keeps of a pool. */
export interface PoolStanding {
  readonly state: PoolCondition;
  readonly workersReady: number;
  /** Attempts sent and not ended. */
  readonly inFlight: number;
}

/** A pool as `pool_info` shows it, with its vitals. */
export interface PoolView {
  readonly index: number;
  readonly namespace: string;
  readonly priority: number;
  /** Name for people, where the config has one. */
  readonly label?: string;
  readonly state: PoolCondition;
  readonly since_ms: number;
  readonly routers: number;
  readonly workers_ready: number;
  readonly inflight: number;
  /** Milliseconds left of an overload hold. */
  readonly held_until_ms: number | null;
  readonly last_error: string | null;
}

export interface PoolHealthOptions {
  readonly clock: Clock;
  readonly random: Random;
  readonly table: LiveTable;
  readonly log: Log;
  readonly model: string;
  readonly overloadHoldMs: number;
  /** Told of every change of condition, after it is in force. */
  readonly onCondition: (pool: LivePool, condition: PoolCondition) => void;
}

export class PoolHealth {
  readonly #options: PoolHealthOptions;
  readonly #endings: CancelTimer[];
  #pools: readonly LivePool[] = [];

  constructor(options: PoolHealthOptions) {
    this.#options = options;
    const { clock, table } = options;
    this.#endings = [
      table.onChange(({ card }) => {
        for (const pool of this.#pools) if (pool.namespace === card.namespace) this.#refresh(pool);
      }),
      everyInStep(clock, poolTiming.lookPeriodMs, () => {
        for (const pool of this.#pools) this.#look(pool);
      }),
    ];
  }

  /**
   * Makes the pools of a config live, and lets go of others than those of `beside`; pools that were
   * live keep their state.
   */
  activate(config: PoolConfig, beside?: ActiveConfig): ActiveConfig {
    const before = new Map(this.#pools.map((pool) => [`${pool.role} ${pool.namespace}`, pool]));
    const roles = new Map<Role, ActiveRole>();
    for (const { role } of config.roles) {
      const pools = rolePools(config, role);
      const live = pools.pools.map(
        ({ namespace }) => before.get(`${role} ${namespace}`) ?? this.#newPool(role, namespace),
      );
      roles.set(role, { ...pools, live });
    }
    const active = { config, roles };
    this.keepOnly(beside ? [active, beside] : [active]);
    return active;
  }

  /** Lets go of every pool that none of these configs has. */
  keepOnly(configs: readonly ActiveConfig[]): void {
    const pools = configs.flatMap(({ roles }) => [...roles.values()].flatMap(({ live }) => live));
    this.#pools = [...new Set(pools)];
    for (const pool of this.#pools) this.#refresh(pool);
  }

  /** Pools of the configs that get requests. */
  get pools(): readonly LivePool[] {
    return this.#pools;
  }

  conditionOf(pool: LivePool): PoolCondition {
    if (pool.routers.length === 0) {
      if (pool.strays.length > 0) return "mismatch";
      return pool.heard ? "gone" : "connecting";
    }
    let place = preference.length - 1;
    for (const router of pool.routers) {
      place = Math.min(place, preference.indexOf(this.#routerCondition(router)));
    }
    const best = preference[place] ?? "suspect";
    if (best === "ready" && pool.vitals.circuit.state !== "closed") return "failing";
    const held = best === "ready" && pool.heldUntilMs > this.#options.clock.nowMs();
    return held ? "held" : best;
  }

  /** The condition as the attempt loop sees it; what keeps failing is ready when a probe is due. */
  stateOf(pool: LivePool): PoolState {
    const condition = this.conditionOf(pool);
    if (condition === "failing") {
      return mayTry(pool.vitals.circuit, this.#options.clock.nowMs()) ? "ready" : "unready";
    }
    return condition === "ready" || condition === "held" ? condition : "unready";
  }

  /** The usable router with workers and the fewest attempts in flight, ties random. */
  pickRouter(pool: LivePool, skipped: readonly string[]): string | undefined {
    const usable = pool.routers.filter(
      (router) => this.#routerCondition(router) === "ready" && !skipped.includes(router.card.inst),
    );
    return this.#fewestInFlight(pool, usable);
  }

  /** True when requests reach workers, which may fail them. */
  isServing(pool: LivePool): boolean {
    return this.conditionOf(pool) === "failing" || this.stateOf(pool) !== "unready";
  }

  /** True when a request that has nowhere else to go may be sent there all the same. */
  mayInsist(pool: LivePool): boolean {
    return this.conditionOf(pool) === "failing" || this.pickInhibited(pool) !== undefined;
  }

  /** A router that is alive but inhibited, for a request that has nowhere else to go. */
  pickInhibited(pool: LivePool): string | undefined {
    const { table } = this.#options;
    const alive = pool.routers.filter(
      ({ card, health }) =>
        health === "ready" &&
        card.state === "ready" &&
        (card.workersReady ?? 0) > 0 &&
        table.inhibition(card.inst) !== undefined,
    );
    return this.#fewestInFlight(pool, alive);
  }

  began(pool: LivePool, inst: string): void {
    pool.inFlightOf.set(inst, (pool.inFlightOf.get(inst) ?? 0) + 1);
    tried(pool.vitals.circuit, this.#options.clock.nowMs());
  }

  ended(pool: LivePool, inst: string): void {
    const left = (pool.inFlightOf.get(inst) ?? 0) - 1;
    if (left > 0) pool.inFlightOf.set(inst, left);
    else pool.inFlightOf.delete(inst);
  }

  accepted(pool: LivePool, tookMs: number): void {
    pool.lastError = null;
    addSample(pool.vitals.acceptMs, tookMs, this.#options.clock.nowMs());
  }

  /** An attempt had its first output, `ttftMs` after it reached the worker where that is known. */
  worked({ vitals }: LivePool, ttftMs?: number): void {
    const nowMs = this.#options.clock.nowMs();
    succeeded(vitals.circuit, nowMs);
    if (ttftMs !== undefined) addSample(vitals.ttftMs, ttftMs, nowMs);
  }

  /** An attempt was lost after the pool was asked, not refused by it. */
  broke(pool: LivePool): void {
    failed(pool.vitals.circuit, this.#options.clock.nowMs());
    this.#look(pool);
  }

  failed(pool: LivePool, { code, message }: TiergridError): void {
    pool.lastError = `${code}: ${message}`;
  }

  /** Passes the pool over for a while: it refused for lack of room. */
  hold(pool: LivePool): void {
    const { clock, overloadHoldMs } = this.#options;
    pool.heldUntilMs = clock.nowMs() + overloadHoldMs;
    this.#look(pool);
  }

  /** Keeps requests away from a router that did not answer. */
  inhibit(inst: string, cause: string): void {
    this.#options.table.inhibit(inst, cause);
  }

  vitalsOf({ vitals }: LivePool): VitalsView {
    return vitalsView(vitals, this.#options.clock.nowMs());
  }

  standing(pool: LivePool): PoolStanding {
    const state = this.conditionOf(pool);
    return { state, workersReady: workersOf(pool), inFlight: inFlightOf(pool) };
  }

  view(
    pool: LivePool,
    { index, priority, label }: Pick<PoolView, "index" | "priority" | "label">,
  ): PoolView {
    const nowMs = this.#options.clock.nowMs();
    return {
      index,
      namespace: pool.namespace,
      priority,
      ...(label !== undefined && { label }),
      state: this.conditionOf(pool),
      since_ms: Math.round(nowMs - pool.toldSinceMs),
      routers: pool.routers.length,
      workers_ready: workersOf(pool),
      inflight: inFlightOf(pool),
      held_until_ms: pool.heldUntilMs > nowMs ? Math.ceil(pool.heldUntilMs - nowMs) : null,
      last_error: pool.lastError,
    };
  }

  close(): void {
    for (const end of this.#endings) end();
  }

  #newPool(role: Role, namespace: string): LivePool {
    const nowMs = this.#options.clock.nowMs();
    return {
      role,
      namespace,
      inFlightOf: new Map(),
      vitals: newVitals(),
      routers: [],
      strays: [],
      heard: false,
      heldUntilMs: Number.NEGATIVE_INFINITY,
      lastError: null,
      told: "connecting",
      toldSinceMs: nowMs,
      loggedAtMs: nowMs,
    };
  }

  #fewestInFlight(pool: LivePool, routers: readonly Instance[]): string | undefined {
    let fewest = Number.POSITIVE_INFINITY;
    let tied: string[] = [];
    for (const { card } of routers) {
      const count = pool.inFlightOf.get(card.inst) ?? 0;
      if (count > fewest) continue;
      tied = count < fewest ? [card.inst] : [...tied, card.inst];
      fewest = count;
    }
    if (tied.length < 2) return tied[0];
    return tied[Math.floor(this.#options.random() * tied.length)];
  }

  #routerCondition({ card, health }: Instance): PoolCondition {
    if (health !== "ready") return "suspect";
    if (card.state === "draining") return "draining";
    if (card.state === "starting" || !card.workersReady) return "no_workers";
    return this.#options.table.isUsable(card.inst) ? "ready" : "suspect";
  }

  #refresh(pool: LivePool): void {
    const { table, model } = this.#options;
    const there = [...table.instances()].filter(
      ({ card }) => card.kind === "local" && card.namespace === pool.namespace,
    );
    const phase = phaseOfRole[pool.role];
    // A local router knows its model from its workers; before the first it names none.
    const fits = (card: InstanceCard): boolean =>
      card.role === phase && (card.model === "" || card.model === model);
    const wanted = (card: InstanceCard): boolean =>
      this.#pools.some(
        ({ role, namespace }) =>
          namespace === card.namespace && role !== pool.role && phaseOfRole[role] === card.role,
      );
    pool.routers = there.filter(({ card }) => fits(card));
    pool.strays = there.filter(({ card }) => !fits(card) && !wanted(card));
    pool.heard ||= pool.routers.length > 0;
    const [stray] = pool.strays;
    if (stray && pool.routers.length === 0) {
      const { inst, role, model: served } = stray.card;
      pool.lastError = `router ${inst} serves ${role} of "${served}", not ${phase} of "${model}"`;
    }
    this.#look(pool);
  }

  /** Tells a change of condition at once, and what keeps failing every 30 s. */
  #look(pool: LivePool): void {
    const { clock, log, onCondition } = this.#options;
    const nowMs = clock.nowMs();
    const condition = this.conditionOf(pool);
    const failing = condition !== "ready" && condition !== "held";
    const changed = condition !== pool.told;
    if (!changed && !(failing && nowMs - pool.loggedAtMs >= poolTiming.reminderMs)) return;
    pool.loggedAtMs = nowMs;
    if (changed) pool.toldSinceMs = nowMs;
    pool.told = condition;
    const error = failing && pool.lastError !== null ? { error: pool.lastError } : {};
    const workers = workersOf(pool);
    const fields = { role: pool.role, pool: pool.namespace, state: condition, workers, ...error };
    if (failing) log.warn(changed ? "pool is not ready" : "pool is still not ready", fields);
    else log.info(condition === "held" ? "pool is held for overload" : "pool is ready", fields);
    if (changed) onCondition(pool, condition);
  }
}

/** Best first: what a pool with several routers is. */
const preference: readonly PoolCondition[] = ["ready", "no_workers", "suspect", "draining"];

/** Workers the pool's routers accept; routers of one pool see the same workers. */
export function workersOf(pool: LivePool): number {
  return pool.routers.reduce((most, { card }) => Math.max(most, card.workersReady ?? 0), 0);
}

export function inFlightOf(pool: LivePool): number {
  let sum = 0;
  for (const count of pool.inFlightOf.values()) sum += count;
  return sum;
}
