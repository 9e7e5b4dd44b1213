/**
 * The dispatcher's policy of the global router: a pool for the request by its grid, then another
 * pool or another router of the same pool when an attempt does not get through.
 *
 *   admit ── decidePool ──▶ PoolDecision
 *   plan  ── quotes have a say? ──▶ wait until they are in
 *         ├─ router that did not answer? ──▶ next router of the same pool
 *         └─ firstPool / nextStep ──▶ send | wait for a pool | refuse with the last error
 *
 * `plan` books one attempt in flight on (pool, router); `attemptFailed` or `ended` frees it.
 */
import { type ErrorCode, TiergridError } from "../base/errors.ts";
import {
  type AttemptFailure,
  type AttemptStep,
  attemptFailureOf,
  nextStep,
} from "../core/pool-choice.ts";
import { earn, type RetryBudget, spend } from "../core/retry-budget.ts";
import type { RequestNotice } from "../protocol/notices.ts";
import type { RoutedDispatch } from "../protocol/requests.ts";
import { controlSubject, generateSubject } from "../protocol/subjects.ts";
import type { DispatchEntry, DispatchPolicy, EndCause, Plan } from "../runtime/dispatch-policy.ts";
import type { Log } from "../runtime/log.ts";
import {
  countEnd,
  countStart,
  countUnattainable,
  type Outcome,
  outcomeOf,
  type Scorer,
} from "./attainment.ts";
import type { DecisionRing } from "./decision-ring.ts";
import { takesPrompt } from "./hash-takers.ts";
import {
  type AttemptRecord,
  type DecisionContext,
  decidePool,
  firstPool,
  hopOf,
  type LiveRefusal,
  type PoolDecision,
  poolStates,
  reasonOf,
} from "./pool-decision.ts";
import type { LivePool } from "./pool-health.ts";
import { type QuoteRound, quotedBody, type RoundContext, waitForQuotes } from "./quote-round.ts";
import { countSelection } from "./request-series.ts";
import {
  countMove,
  countSurfaced,
  fillsPool,
  type GlobalMetrics,
  moveCause,
} from "./router-metrics.ts";

export const poolWaitPollMs = 50;

export interface PolicyContext extends DecisionContext, RoundContext {
  readonly ring: DecisionRing;
  readonly scorer: Scorer;
  readonly metrics: GlobalMetrics;
  readonly log: Log;
  readonly budget: RetryBudget;
  readonly poolWaitMs: number;
  /** Told of every end, for the counters of the endpoint that took the request. */
  readonly onEnded: (decision: PoolDecision, durationMs: number, error?: TiergridError) => void;
}

/** An attempt that is out. */
interface OpenAttempt {
  readonly pool: LivePool;
  readonly inst: string;
  readonly step: PoolStep;
  readonly record: AttemptRecord;
  /** True once the router said that it looks for a worker, or found one. */
  heard: boolean;
  /** True once the pool's vitals have its outcome. */
  judged: boolean;
}

type PoolStep = AttemptStep & { readonly type: "attempt" };
type Entry = DispatchEntry<GlobalRequest>;

/** What the policy remembers of one request. */
export interface GlobalRequest extends QuoteRound {
  readonly decision: PoolDecision;
  open: OpenAttempt | undefined;
  /** How the last attempt failed. */
  failed: FailedAttempt | undefined;
  /** Routers that this request need not ask again. */
  readonly failedRouters: string[];
}

interface FailedAttempt {
  readonly step: PoolStep;
  readonly failure: AttemptFailure;
  readonly error: TiergridError;
  /** True when another router of the same pool may be asked. */
  readonly routerFault: boolean;
}

export function createGlobalPolicy(context: PolicyContext): DispatchPolicy<GlobalRequest> {
  return {
    admit: (dispatch) => admit(context, dispatch),
    plan: (entry) => plan(context, entry),
    attemptFailed: (entry, error) => attemptFailed(context, entry.state, error),
    accepted: (entry, waitedMs) => accepted(context, entry.state, waitedMs),
    noticed: (entry, notice) => noticed(context, entry, notice),
    ended: (entry, cause) => ended(context, entry, cause),
  };
}

function admit(context: PolicyContext, dispatch: RoutedDispatch): GlobalRequest {
  const startedMs = context.clock.nowMs();
  const decision = decidePool(dispatch, context);
  earn(context.budget, startedMs);
  const tookMs = context.clock.nowMs() - startedMs;
  countSelection(context.series, context.metrics, decision, tookMs);
  countStart(context.scorer, decision);
  context.ring.add(decision);
  return { decision, woken: undefined, open: undefined, failed: undefined, failedRouters: [] };
}

function plan(context: PolicyContext, entry: Entry): Plan {
  const request = entry.state;
  const { decision, failed } = request;
  const { body, prompt } = entry;
  const waits = prompt && waitForQuotes(context, request, decision, { body, prompt });
  if (waits) return waits;
  if (decision.live?.refusal) return unattainable(decision.live.refusal);
  const again = failed?.routerFault ? otherRouter(context, request, failed.step) : undefined;
  if (failed && again !== undefined) return send(context, entry, failed.step, again);
  const step = failed
    ? nextStep(
        decision.plan,
        failed.step.progress,
        failed.failure,
        poolStates(decision, context.health),
      )
    : firstPool(decision, context.health);
  switch (step.type) {
    case "attempt": {
      if (failed && !mayRepeat(context, decision, failed)) return refuse(failed.error);
      const inst = routerOf(context, request, step);
      if (inst === undefined) return refuse(unavailable(decision, "pool_unavailable"));
      move(context, request, step);
      return send(context, entry, step, inst);
    }
    case "wait":
      return wait(context, entry, step.code);
    case "surface":
      countSurfaced(context.metrics, decision, step.failure);
      return refuse(failed?.error ?? unavailable(decision, "pool_unavailable"));
  }
}

function unattainable({ error, retryAfterMs }: LiveRefusal): Plan {
  return retryAfterMs === undefined ? refuse(error) : { ...refuse(error), retryAfterMs };
}

/**
 * A failed attempt cost the time of a GPU, so there is a budget for making it again; a refusal cost a
 * message.
 */
function mayRepeat(
  { budget, clock, metrics }: PolicyContext,
  { role: { role } }: PoolDecision,
  { failure }: FailedAttempt,
): boolean {
  if (failure !== "fail_before_output" || spend(budget, clock.nowMs())) return true;
  metrics.counter("tiergrid_retry_refused_total", { role, why: "budget" }).add(1);
  return false;
}

function otherRouter(
  { health }: PolicyContext,
  { decision, failedRouters }: GlobalRequest,
  step: PoolStep,
): string | undefined {
  const pool = decision.role.live[step.pool];
  return pool && health.pickRouter(pool, failedRouters);
}

function routerOf(
  context: PolicyContext,
  request: GlobalRequest,
  step: PoolStep,
): string | undefined {
  const pool = request.decision.role.live[step.pool];
  return otherRouter(context, request, step) ?? (pool && context.health.pickInhibited(pool));
}

/** Books the attempt. */
function send(context: PolicyContext, entry: Entry, step: PoolStep, inst: string): Plan {
  const { decision } = entry.state;
  const { clock, health, series, log } = context;
  const pool = decision.role.live[step.pool];
  if (!pool) return refuse(unavailable(decision, "pool_unavailable"));
  if (!takesPrompt(pool, inst, entry.prompt)) {
    return refuse(new TiergridError("prompt_needed", `a router of ${pool.namespace} takes tokens`));
  }
  const reason = reasonOf(decision, step.via);
  const { pool: index, via } = step;
  const startedMs = clock.nowMs();
  const record: AttemptRecord = {
    ...{ pool: index, via, router: inst, startedMs },
    ...{ outcome: null, tookMs: null },
  };
  decision.attempts.push(record);
  decision.result = { pool: index, reason };
  health.began(pool, inst);
  const subject = generateSubject("local", inst);
  entry.state.open = { pool, inst, step, record, heard: false, judged: false };
  series.ofPool(decision.active, pool).selections(reason).add(1);
  const chosen = hopOf(decision, step);
  if (log.isEnabled("debug")) log.debug("pool chosen", { rid: decision.rid, ...chosen });
  const control = controlSubject("local", inst);
  return {
    type: "send",
    inst,
    subject,
    control,
    body: quotedBody(entry.body, decision),
    decision: chosen,
  };
}

/** Counts and logs that a request goes to another pool than it did, or should have. */
function move({ metrics, log, health }: PolicyContext, request: GlobalRequest, step: PoolStep) {
  if (step.via === "selected") return;
  const { decision, failed } = request;
  const { role, live } = decision.role;
  const from = live[failed?.step.pool ?? decision.plan.selected];
  const to = live[step.pool];
  if (!from || !to) return;
  const standing = health.stateOf(from) === "held" ? "held" : "unready";
  const cause = failed ? moveCause(step.via, failed.failure, failed.error.code) : standing;
  const fromPool = from.namespace;
  const toPool = to.namespace;
  countMove(metrics, { role, fromPool, toPool, via: step.via, cause });
  const ids = { rid: decision.rid, decision_id: decision.id };
  log.info("request goes to another pool", {
    ...ids,
    role,
    from_pool: fromPool,
    to_pool: toPool,
    reason: step.via,
    cause,
  });
}

function wait({ clock, metrics, poolWaitMs }: PolicyContext, entry: Entry, code: ErrorCode): Plan {
  const leftMs = entry.receivedMs + poolWaitMs - clock.nowMs();
  if (leftMs > 0) return { type: "wait", waitMs: Math.min(poolWaitPollMs, leftMs) };
  const { decision } = entry.state;
  const refusal = refuse(unavailable(decision, code));
  const pool = decision.role.live[decision.plan.selected];
  if (!pool) return refusal;
  if (decision.plan.hopsMax > 0) {
    const labels = { role: pool.role, pool: pool.namespace };
    metrics.counter("tiergrid_spill_exhausted_total", labels).add(1);
  }
  const heldMs = pool.heldUntilMs - clock.nowMs();
  return heldMs > 0 ? { ...refusal, retryAfterMs: Math.ceil(heldMs) } : refusal;
}

function refuse(error: TiergridError): Plan & { readonly type: "refuse" } {
  return { type: "refuse", error };
}

function unavailable({ role, plan, pools }: PoolDecision, code: ErrorCode) {
  const namespace = role.pools[plan.selected]?.namespace ?? "";
  const state = pools[plan.selected]?.state ?? "unknown";
  const message = `${role.role} pool ${namespace} cannot take the request (${state} at arrival)`;
  return new TiergridError(code, message, { pool: namespace });
}

function attemptFailed(context: PolicyContext, request: GlobalRequest, error: TiergridError) {
  const { open, failedRouters } = request;
  if (!open) return;
  const { health } = context;
  const failure = attemptFailureOf(error.code, false);
  // A router that was heard did answer; then the code tells what its workers did.
  const routerFault = !open.heard && routerFaults.has(error.code);
  if (routerFault) {
    failedRouters.push(open.inst);
    health.inhibit(open.inst, error.code);
    context.metrics.counter("tiergrid_inhibitions_total", { cause: error.code }).add(1);
    const fields = { rid: request.decision.rid, pool: open.pool.namespace, router: open.inst };
    context.log.warn("local router does not take requests", { ...fields, cause: error.code });
  }
  if (failure !== "cancelled") health.failed(open.pool, error);
  // Other routers of the pool see the same workers; the one that is silent is inhibited.
  if (failure === "fail_before_output" && !routerFault) health.broke(open.pool);
  if (fillsPool(error.code)) health.hold(open.pool);
  request.failed = { step: open.step, failure, error, routerFault };
  release(context, request, error.code);
}

/** The router did not answer or is stopping; others of its pool see the same workers. */
const routerFaults: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  "no_responders",
  "accept_timeout",
  "subscriber_shutdown",
]);

/** The router of a request's open attempt is alive and looks for a worker. */
export function heardQueued({ open }: GlobalRequest): void {
  if (open) open.heard = true;
}

function accepted(
  { clock, health, series }: PolicyContext,
  request: GlobalRequest,
  waitedMs: number,
): void {
  const { open, decision } = request;
  if (!open) return;
  const { pool, record } = open;
  open.heard = true;
  record.outcome = "accepted";
  record.tookMs = Math.max(0, clock.nowMs() - waitedMs - record.startedMs);
  health.accepted(pool, record.tookMs);
  series.ofPool(decision.active, pool).acceptSeconds.observe(record.tookMs / 1000);
}

/** Tells the pool's vitals, once per attempt. */
function judge(
  { health }: PolicyContext,
  { open }: GlobalRequest,
  works: boolean,
  ttftMs?: number,
) {
  if (!open || open.judged) return;
  open.judged = true;
  if (works) health.worked(open.pool, ttftMs);
  else health.broke(open.pool);
}

function noticed(context: PolicyContext, entry: Entry, notice: RequestNotice): void {
  const { scorer, series } = context;
  // `closed` is counted where it is scored, since it mostly comes after the end.
  if (notice.type === "closed") return;
  series.notices(notice.type).add(1);
  if (notice.type === "first_output") judge(context, entry.state, true, notice.ttft_ms);
  if (notice.type === "finished" && notice.outcome !== "cancelled") {
    judge(context, entry.state, notice.outcome === "ok");
  }
  // An owner that does not acknowledge is a plain client, which sends no `closed`.
  if (notice.type === "finished" && !entry.envelope.stream.acks) {
    countEnd(scorer, entry.state.decision, outcomeOf(notice));
  }
}

function ended(context: PolicyContext, entry: Entry, cause: EndCause): void {
  const { clock, metrics, ring, scorer, series } = context;
  const { decision, open, failed } = entry.state;
  if (open) {
    if (endOutcomes[cause] === "lost") judge(context, entry.state, false);
    const by = cause === "lost" || cause === "deadline" ? "sweep" : cause;
    series.freed(by).add(1);
    release(context, entry.state, open.record.outcome ?? "cancelled");
  }
  const outcome = endOutcomes[cause];
  if (outcome) countEnd(scorer, decision, outcome);
  if (cause === "refused" && decision.live?.refusal) countUnattainable(scorer, decision);
  decision.ended = true;
  ring.settle(decision);
  const { role } = decision.role;
  if (entry.attempts > 0) series.attempts(role).observe(entry.attempts);
  if (cause === "refused") {
    metrics.counter("dynamo_component_errors_total", { error_type: "generate" }).add(1);
  }
  const durationMs = clock.nowMs() - entry.receivedMs;
  series.durationSeconds.observe(durationMs / 1000);
  context.onEnded(decision, durationMs, cause === "refused" ? failed?.error : undefined);
}

/** Ends that no notice will tell; of the others the owner measures the outcome. */
const endOutcomes: Readonly<Partial<Record<EndCause, Outcome>>> = {
  refused: "error",
  cancelled: "cancelled",
  lost: "lost",
  worker_lost: "lost",
  deadline: "lost",
};

function release(
  { clock, health }: PolicyContext,
  request: GlobalRequest,
  outcome: NonNullable<AttemptRecord["outcome"]>,
): void {
  const { open } = request;
  if (!open) return;
  open.record.outcome = outcome;
  open.record.tookMs ??= clock.nowMs() - open.record.startedMs;
  health.ended(open.pool, open.inst);
  request.open = undefined;
}
