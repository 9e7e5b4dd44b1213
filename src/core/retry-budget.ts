/**
 * How many failed attempts may be made again: a share of the requests, and a few a second however
 * few requests there are. When everything fails, retries thus add a fifth to the load, not a
 * multiple of it.
 *
 *   request ──+ 0.2──▶ ┌────────┐ ──1──▶ retry
 *   time ──+ 10 a s──▶ └────────┘        time fills it up to 10 only
 */
export const budgetLimits = {
  perRequest: 0.2,
  perSecond: 10,
  /** Filled by time up to here, at the start too. */
  idle: 10,
  /** Filled by requests up to here. */
  max: 100,
} as const;

export interface RetryBudget {
  tokens: number;
  atMs: number;
}

export function newRetryBudget(nowMs: number): RetryBudget {
  return { tokens: budgetLimits.idle, atMs: nowMs };
}

/** A request came. */
export function earn(budget: RetryBudget, nowMs: number): void {
  refill(budget, nowMs);
  const { perRequest, max } = budgetLimits;
  budget.tokens = Math.min(max, budget.tokens + perRequest);
}

/** Takes a retry out of the budget; false when there is none. */
export function spend(budget: RetryBudget, nowMs: number): boolean {
  refill(budget, nowMs);
  if (budget.tokens < 1) return false;
  budget.tokens -= 1;
  return true;
}

/** Whole retries left. */
export function retriesLeft(budget: RetryBudget, nowMs: number): number {
  refill(budget, nowMs);
  return Math.floor(budget.tokens);
}

function refill(budget: RetryBudget, nowMs: number): void {
  const { perSecond, idle } = budgetLimits;
  const earned = ((nowMs - budget.atMs) / 1000) * perSecond;
  budget.atMs = nowMs;
  if (budget.tokens < idle) budget.tokens = Math.min(idle, budget.tokens + earned);
}
