/**
 * Did requests meet their targets? Counted per grid cell from the `closed` notice of a stream's
 * owner, which has measured TTFT and gaps at the client; routers see no token.
 *
 *   closed{decision_ids, ttft_ms, itl} ──▶ each decision of ours ──▶ outcome, met or missed
 *
 * A decision is counted once: by its notice, or by the dispatcher when nobody will send one.
 */
import type { ClosedNotice, FinishedNotice } from "../protocol/notices.ts";
import type { DecisionRing, PoolDecision } from "./pool-decision.ts";
import { cellLabel, type GlobalMetrics } from "./router-metrics.ts";

export type Outcome = "ok" | "error" | "cancelled" | "lost";

/** Decisions of one notice that are looked at. */
const decisionIdsMax = 16;

/** Counts a notice; answers what became of it. */
export function countClosed(
  metrics: GlobalMetrics,
  ring: DecisionRing,
  notice: ClosedNotice,
): "applied" | "duplicate" | "unknown" {
  const ids: unknown = notice.decision_ids;
  if (!Array.isArray(ids)) return "unknown";
  const known = ids.slice(0, decisionIdsMax).flatMap((id: unknown) => ring.get(String(id)) ?? []);
  const open = known.filter((decision) => !decision.counted);
  for (const decision of open) {
    countEnd(metrics, decision, outcomeOf(notice));
    countTargets(metrics, decision, notice);
  }
  if (open.length > 0) return "applied";
  return known.length > 0 ? "duplicate" : "unknown";
}

/** The outcome of a decision by an owner's or a worker's notice. */
export function outcomeOf({ outcome }: ClosedNotice | FinishedNotice): Outcome {
  // The owner goes on with another worker and another decision; this one lost the request.
  if (outcome === "migrated") return "lost";
  return outcome === "ok" || outcome === "cancelled" ? outcome : "error";
}

/** Counts the end of a request that has no measured values; the first end counts. */
export function countEnd(metrics: GlobalMetrics, decision: PoolDecision, outcome: Outcome): void {
  if (decision.counted) return;
  decision.counted = true;
  metrics.counter("tiergrid_cell_requests_total", { ...placeOf(decision), outcome }).add(1);
}

function countTargets(metrics: GlobalMetrics, decision: PoolDecision, notice: ClosedNotice): void {
  for (const { axis, value: targetMs, source } of decision.selection.axes) {
    const target = axis.name;
    if (target !== "ttft" && target !== "itl") continue;
    const measuredMs = target === "ttft" ? notice.ttft_ms : meanItlMs(notice);
    if (typeof measuredMs !== "number" || !Number.isFinite(measuredMs)) continue;
    const result = measuredMs <= targetMs ? "met" : "missed";
    const explicit = String(source !== "default" && source !== "midpoint");
    const labels = { ...placeOf(decision), target, result, explicit };
    metrics.counter("tiergrid_cell_sla_total", labels).add(1);
  }
}

function meanItlMs({ itl }: ClosedNotice): number | undefined {
  return itl && itl.count > 0 ? itl.sum_ms / itl.count : undefined;
}

/** The cell, and the pool that had the request last. */
function placeOf({ selection, role, result }: PoolDecision) {
  const pool = role.pools[result?.pool ?? selection.pool]?.namespace ?? "";
  return { role: selection.role, cell: cellLabel(role.grid, selection.cell), pool };
}
