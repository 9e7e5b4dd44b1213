/**
 * One decision of the global router: what it read from a request, which pool that gave, and what
 * became of it. A live request and `explain` make it with the same code; it is the object that
 * `explain` shows, and the ring keeps the last ones.
 */
import type { Clock } from "../base/clock.ts";
import { type ErrorCode, TiergridError } from "../base/errors.ts";
import { type Random, randomHex128 } from "../base/random.ts";
import {
  type AttemptStep,
  type AttemptVia,
  firstStep,
  isRequestPriority,
  type PoolPlan,
  type PoolStateOf,
} from "../core/pool-choice.ts";
import type { QuoteScore, QuoteTargets } from "../core/quote-choice.ts";
import {
  cellText,
  flatCell,
  type GridQuery,
  type PoolSelection,
  type Role,
  selectPool,
} from "../core/sla-grid.ts";
import { resolveSlaTargets, type SlaDefaults } from "../core/sla-targets.ts";
import {
  type HopDecision,
  islTokensOf,
  type Phase,
  type RoutedDispatch,
} from "../protocol/requests.ts";
import type { ActiveConfig, ActiveRole, PoolHealth, PoolStanding } from "./pool-health.ts";
import type { QuoteRecord } from "./pool-quotes.ts";

export const decisionReasons = ["grid", "override", "live", "spill", "retry"] as const;
export type DecisionReason = (typeof decisionReasons)[number];

/** `prior`: no quote decided, the grid's pool stands. */
export type LiveOutcome = "kept" | "left" | "prior" | "refused";

/** What the live choice found, as `explain` shows it. */
export interface LiveRecord {
  readonly targets: QuoteTargets;
  readonly quotes: readonly (QuoteRecord & { readonly scored: QuoteScore | undefined })[];
  readonly outcome: LiveOutcome;
  /** Why nobody was asked, where nobody was. */
  readonly why: string | null;
  readonly tookMs: number;
  /** Where a request goes that left the grid. */
  readonly plan: PoolPlan | undefined;
  readonly refusal: LiveRefusal | undefined;
}

export interface LiveRefusal {
  readonly error: TiergridError;
  readonly retryAfterMs: number | undefined;
  /** Targets that even the best quote misses. */
  readonly missed: readonly ("ttft" | "itl")[];
}

export interface AttemptRecord {
  readonly pool: number;
  readonly via: AttemptVia;
  /** Instance of the local router that was asked. */
  readonly router: string;
  readonly startedMs: number;
  /** Null while the attempt is open. */
  outcome: "accepted" | "cancelled" | ErrorCode | null;
  tookMs: number | null;
}

export interface PoolDecision {
  readonly id: string;
  readonly rid: string;
  readonly requestId: string | null;
  readonly atWallMs: number;
  readonly phase: Phase;
  readonly active: ActiveConfig;
  readonly role: ActiveRole;
  /** What the grid was asked; `selection` and, without quotes, `plan` follow from it. */
  readonly query: GridQuery;
  readonly selection: PoolSelection;
  plan: PoolPlan;
  /** What quotes had to say; undefined until they came, and where they have no say. */
  live: LiveRecord | undefined;
  /** The role's pools as they stood when the request arrived, in config order. */
  readonly pools: readonly PoolStanding[];
  readonly attempts: AttemptRecord[];
  /** The latest pool; undefined while none could be tried. */
  result: { readonly pool: number; readonly reason: DecisionReason } | undefined;
  /** True once its request is out of the books. */
  ended: boolean;
  /** True once its end was counted. */
  counted: boolean;
}

export interface DecisionContext {
  readonly clock: Clock;
  readonly random: Random;
  readonly health: PoolHealth;
  readonly defaults: SlaDefaults;
  /** The config that serves a request; without one, the config in force. */
  readonly active: (rid?: string) => ActiveConfig;
}

const roleOfPhase: Readonly<Record<Phase, Role>> = {
  prefill: "prefill",
  decode: "decode",
  aggregated: "agg",
};

/**
 * Reads a request and selects its pool; books nothing. Throws `invalid_request` for a phase that
 * the mode does not have, targets that cannot be read (all at once) and a priority outside i32.
 */
export function decidePool(dispatch: RoutedDispatch, context: DecisionContext): PoolDecision {
  const { envelope, body, prompt } = dispatch;
  const { clock, random, health, defaults } = context;
  const active = context.active(envelope.rid);
  const role = roleIn(active, envelope.phase);
  if (!role) {
    const message = `this router is in ${active.config.mode} mode, which has no ${envelope.phase}`;
    throw new TiergridError("invalid_request", message, { field: "tiergrid.phase" });
  }
  const priority = body.routing?.priority ?? null;
  if (priority !== null && !isRequestPriority(priority)) {
    const message = `routing.priority must be an integer in i32, got ${String(priority)}`;
    throw new TiergridError("invalid_request", message, { field: "routing.priority" });
  }
  const targets = resolveSlaTargets(body, defaults);
  if (!targets.ok) {
    const message = targets.faults.map((fault) => fault.message).join("; ");
    throw new TiergridError("invalid_request", message, { faults: targets.faults });
  }
  const { ttft, itl } = targets;
  const query = { tokens: islTokensOf(prompt), ttft, itl, priority };
  const { selection, plan } = selectIn(role, query);
  return {
    id: randomHex128(random),
    rid: envelope.rid,
    requestId: body.request_id ?? null,
    atWallMs: clock.wallMs(),
    phase: envelope.phase,
    active,
    role,
    query,
    selection,
    plan,
    live: undefined,
    pools: role.live.map((pool) => health.standing(pool)),
    attempts: [],
    result: undefined,
    ended: false,
    counted: false,
  };
}

/** The role of a config that serves a phase; undefined where its mode has none. */
export function roleIn({ roles }: ActiveConfig, phase: Phase): ActiveRole | undefined {
  return roles.get(roleOfPhase[phase]);
}

/** The pool for a query, and where its requests may go: the cell says so for its own pool. */
export function selectIn(
  role: ActiveRole,
  query: GridQuery,
): Pick<PoolDecision, "selection" | "plan"> {
  const selection = selectPool(role.grid, query);
  const { pool, gridPool, cell } = selection;
  const own = role.cellPlans && pool === gridPool;
  const plan = own ? role.cellPlans?.[flatCell(role.grid, cell)] : role.plans[pool];
  if (!plan) throw new TiergridError("internal_error", `pool ${pool} has no plan`);
  return { selection, plan };
}

/** Puts what quotes found in force. */
export function takeLive(decision: PoolDecision, live: LiveRecord): void {
  decision.live = live;
  if (live.plan) decision.plan = live.plan;
}

/** The first pool of a decision, or why it must wait. */
export function firstPool(decision: PoolDecision, health: PoolHealth): AttemptStep {
  const step = firstStep(decision.plan, poolStates(decision, health));
  if (step.type !== "wait") return step;
  // Inhibition and failures steer requests elsewhere; without an elsewhere a try beats a refusal.
  const pool = decision.role.live[step.pool];
  if (!pool || !health.mayInsist(pool)) return step;
  const progress = { tried: [step.pool], hops: 0 };
  return { type: "attempt", pool: step.pool, via: "selected", progress };
}

export function poolStates({ role }: PoolDecision, health: PoolHealth): PoolStateOf {
  return (index) => {
    const pool = role.live[index];
    return pool ? health.stateOf(pool) : "unready";
  };
}

export function reasonOf(decision: PoolDecision, via: AttemptVia): DecisionReason {
  if (via !== "selected") return via;
  return decision.live?.outcome === "left" ? "live" : decision.selection.reason;
}

/** What travels with an attempt on `pool`. */
export function hopOf(
  decision: PoolDecision,
  { pool, via }: { readonly pool: number; readonly via: AttemptVia },
): HopDecision {
  const { role, selection, active } = decision;
  const namespace = role.pools[pool]?.namespace;
  return {
    tier: "global",
    decision_id: decision.id,
    role: decision.phase,
    ...(namespace !== undefined && { pool: namespace }),
    cell: cellText(selection.cell),
    reason: reasonOf(decision, via),
    config_version: active.config.version,
  };
}
