/**
 * What a request may do when its pool does not take it: the order of other pools, and the loop of
 * attempts as a pure state machine. The shell tells it pool states and outcomes and carries out
 * the step it answers.
 *
 *   selected pool ──ready──▶ attempt ──ok──▶ done
 *        │ unready, held       │  ▲
 *        ▼                     │  └─────────────────────┐
 *   spill pool, else ──────────┼──▶ refused: spill pool, else retry pool, else surface
 *   retry pool, else wait      ├──▶ failed before output: retry pool, else surface
 *                              └──▶ anything else: surface
 *
 * Invariants: a pool is attempted at most once; spill hops never exceed `hopsMax`; both lists are
 * those of the selected pool, wherever the request is. Pool priority: lower = faster.
 */
import { type ErrorCode, errorTable, TiergridError } from "../base/errors.ts";

export interface SpillRules {
  readonly enabled: boolean;
  readonly allowPeers: boolean;
  readonly allowSlower: boolean;
  readonly hopsMax: number;
}

/** Where a request of `selected` may go; built once per pool when a config loads. */
export interface PoolPlan {
  readonly selected: number;
  /** Pools after `selected` for a failed attempt; empty with retry off. */
  readonly retryPools: readonly number[];
  /** Pools instead of an unready or overloaded one; empty with spill off. */
  readonly spillPools: readonly number[];
  readonly hopsMax: number;
}

/** `held`: ready, but refused for load less than the overload hold ago. */
export type PoolState = "ready" | "held" | "unready";
export type PoolStateOf = (pool: number) => PoolState;

/** How an attempt ended, other than `ok`. */
export type AttemptFailure =
  | "refused_overloaded"
  | "refused_unavailable"
  | "fail_before_output"
  | "fail_after_output"
  | "cancelled"
  | "deadline_exceeded"
  | "invalid_request";

export type AttemptVia = "selected" | "spill" | "retry";

/** What one request has tried so far. */
export interface AttemptProgress {
  readonly tried: readonly number[];
  readonly hops: number;
}

export type AttemptStep =
  | {
      readonly type: "attempt";
      readonly pool: number;
      readonly via: AttemptVia;
      readonly progress: AttemptProgress;
    }
  /** Ask again on a change of pool state; when waiting is over, fail with `code`. */
  | { readonly type: "wait"; readonly pool: number; readonly code: ErrorCode }
  /** The last error goes to the caller. */
  | { readonly type: "surface"; readonly failure: AttemptFailure };

/** First step of a request, and again after each wait: nothing has been tried. */
export function firstStep(plan: PoolPlan, stateOf: PoolStateOf): AttemptStep {
  const state = stateOf(plan.selected);
  // A hold steers requests to spill pools; where none can exist it would only refuse work.
  const spills = plan.hopsMax > 0 && plan.spillPools.length > 0;
  if (state === "ready" || (state === "held" && !spills)) {
    return attempt(plan.selected, "selected", noneTried);
  }
  return (
    spillStep(plan, noneTried, stateOf) ??
    retryStep(plan, noneTried, stateOf) ?? {
      type: "wait",
      pool: plan.selected,
      code: state === "held" ? "overloaded" : "pool_unavailable",
    }
  );
}

/** Step after an attempt ended with `failure`; `progress` is that of the attempt. */
export function nextStep(
  plan: PoolPlan,
  progress: AttemptProgress,
  failure: AttemptFailure,
  stateOf: PoolStateOf,
): AttemptStep {
  switch (failure) {
    case "refused_overloaded":
    case "refused_unavailable":
      return (
        spillStep(plan, progress, stateOf) ??
        retryStep(plan, progress, stateOf) ?? { type: "surface", failure }
      );
    case "fail_before_output":
      return retryStep(plan, progress, stateOf) ?? { type: "surface", failure };
    case "fail_after_output":
    case "cancelled":
    case "deadline_exceeded":
    case "invalid_request":
      return { type: "surface", failure };
  }
}

/** Class of an attempt that ended with `code`; `started` = the first output item exists. */
export function attemptFailureOf(code: ErrorCode, started: boolean): AttemptFailure {
  if (code === "cancelled" || code === "deadline_exceeded") return code;
  if (started) return "fail_after_output";
  if (unavailableCodes.has(code)) return "refused_unavailable";
  const { errorType } = errorTable[code];
  if (errorType === "overload") return "refused_overloaded";
  if (errorType === "validation" || code === "poison_request") return "invalid_request";
  return "fail_before_output";
}

/** Plans of every pool of a role, by pool index. */
export function planPools(
  priorities: readonly number[],
  retryEnabled: boolean,
  spill: SpillRules,
): PoolPlan[] {
  return priorities.map((_, selected) => ({
    selected,
    retryPools: retryOrder(selected, priorities, retryEnabled).slice(1),
    spillPools: spill.enabled ? spillOrder(selected, priorities, spill) : [],
    hopsMax: spill.enabled ? spill.hopsMax : 0,
  }));
}

/**
 * `selected`, then every strictly faster pool, nearest priority first, ties in pool order.
 * Throws `internal_error` when `selected` is not a pool.
 */
export function retryOrder(
  selected: number,
  priorities: readonly number[],
  enabled: boolean,
): number[] {
  const own = priorityOf(selected, priorities);
  if (!enabled) return [selected];
  return [selected, ...nearestPools(priorities, own, (priority) => priority < own)];
}

/** Peers in pool order, then faster pools, then slower ones, each nearest first. */
export function spillOrder(
  selected: number,
  priorities: readonly number[],
  spill: Pick<SpillRules, "allowPeers" | "allowSlower">,
): number[] {
  const own = priorityOf(selected, priorities);
  const peers = nearestPools(priorities, own, (priority) => priority === own);
  return [
    ...(spill.allowPeers ? peers.filter((pool) => pool !== selected) : []),
    ...nearestPools(priorities, own, (priority) => priority < own),
    ...(spill.allowSlower ? nearestPools(priorities, own, (priority) => priority > own) : []),
  ];
}

/** Priorities of `pools` pools when the config names none: each slower than the one before. */
export function defaultPriorities(pools: number): number[] {
  return Array.from({ length: pools }, (_, pool) => pool);
}

/** True for a request priority: an integer in i32. */
export function isRequestPriority(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) === ((value as number) | 0);
}

const noneTried: AttemptProgress = Object.freeze({ tried: Object.freeze([]), hops: 0 });

/** Refusals for lack of workers; every other 503 is a failure of the attempt. */
const unavailableCodes: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  "no_endpoints",
  "not_ready",
  "pool_unavailable",
  "subscriber_shutdown",
  // No engine has worked on it.
  "prompt_lost",
]);

function spillStep(
  plan: PoolPlan,
  progress: AttemptProgress,
  stateOf: PoolStateOf,
): AttemptStep | undefined {
  if (progress.hops >= plan.hopsMax) return undefined;
  for (const pool of plan.spillPools) {
    if (stateOf(pool) !== "ready" || progress.tried.includes(pool)) continue;
    return attempt(pool, "spill", { tried: progress.tried, hops: progress.hops + 1 });
  }
  return undefined;
}

/** A held pool may be retried: the hold only keeps spilled requests away from it. */
function retryStep(
  plan: PoolPlan,
  progress: AttemptProgress,
  stateOf: PoolStateOf,
): AttemptStep | undefined {
  for (const pool of plan.retryPools) {
    if (stateOf(pool) === "unready" || progress.tried.includes(pool)) continue;
    return attempt(pool, "retry", progress);
  }
  return undefined;
}

function attempt(pool: number, via: AttemptVia, before: AttemptProgress): AttemptStep {
  const progress = { tried: [...before.tried, pool], hops: before.hops };
  return { type: "attempt", pool, via, progress };
}

function priorityOf(selected: number, priorities: readonly number[]): number {
  const own = priorities[selected];
  if (own !== undefined) return own;
  const pools = priorities.length;
  throw new TiergridError(
    "internal_error",
    `selected pool ${selected} out of range (${pools} pools)`,
    { selected, pools },
  );
}

/** Pools whose priority passes `keep`, nearest to `own` first; the sort is stable. */
function nearestPools(
  priorities: readonly number[],
  own: number,
  keep: (priority: number) => boolean,
): number[] {
  const distance = (pool: number): number => Math.abs(priorities[pool]! - own);
  return defaultPriorities(priorities.length)
    .filter((pool) => keep(priorities[pool]!))
    .sort((a, b) => distance(a) - distance(b));
}
