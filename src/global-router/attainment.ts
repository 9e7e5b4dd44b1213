/**
 * Did requests meet their targets? Counted per grid cell from the `closed` notice of a stream's
 * owner, which has measured TTFT and gaps at the client; routers see no token.
 *
 *   closed{decision_ids, ttft_ms, itl} ──▶ each decision of ours ──▶ outcome, met or missed
 *
 * A decision is counted once: by its notice, or by the dispatcher when nobody will send one.
 */

import type { Clock } from "../base/clock.ts";
import type { ClosedNotice, FinishedNotice } from "../protocol/notices.ts";
import type { Log } from "../runtime/log.ts";
import type { SlaMeasure } from "./cell-latency.ts";
import type { PlaceSeries } from "./cell-series.ts";
import type { DecisionRing } from "./decision-ring.ts";
import { tellDrift } from "./drift.ts";
import type { GridVersions, VersionTally } from "./grid-versions.ts";
import type { PoolDecision } from "./pool-decision.ts";
import type { RequestSeries } from "./request-series.ts";
import type { GlobalMetrics } from "./router-metrics.ts";

export type Outcome = "ok" | "error" | "cancelled" | "lost";

/** Decisions of one notice that are looked at. */
const decisionIdsMax = 16;

/** Where requests are scored: the metrics, and the version of the grid that chose for them. */
export interface Scorer {
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: GlobalMetrics;
  readonly series: RequestSeries;
  readonly versions: GridVersions;
}

/** Counts a live request in the version of the grid that it keeps. */
export function countStart(scorer: Scorer, decision: PoolDecision): void {
  const tally = tallyOf(scorer, decision);
  if (tally) tally.requests++;
}

/** Counts a notice; answers what became of it. */
export function countClosed(
  scorer: Scorer,
  ring: DecisionRing,
  notice: ClosedNotice,
): "applied" | "duplicate" | "unknown" {
  const ids: unknown = notice.decision_ids;
  if (!Array.isArray(ids)) return "unknown";
  let state: "applied" | "duplicate" | "unknown" = "unknown";
  for (let at = 0; at < ids.length && at < decisionIdsMax; at++) {
    const decision = ring.get(String(ids[at]));
    if (!decision) continue;
    if (state === "unknown") state = "duplicate";
    if (decision.counted) continue;
    countEnd(scorer, decision, outcomeOf(notice));
    countTargets(scorer, decision, notice);
    ring.settle(decision);
    state = "applied";
  }
  return state;
}

/** The outcome of a decision by an owner's or a worker's notice. */
export function outcomeOf({ outcome }: ClosedNotice | FinishedNotice): Outcome {
  // The owner goes on with another worker and another decision; this one lost the request.
  if (outcome === "migrated") return "lost";
  return outcome === "ok" || outcome === "cancelled" ? outcome : "error";
}

/** Counts the end of a request that has no measured values; the first end counts. */
export function countEnd(scorer: Scorer, decision: PoolDecision, outcome: Outcome): void {
  if (decision.counted) return;
  decision.counted = true;
  placeOf(scorer, decision).ended(outcome).add(1);
  const tally = tallyOf(scorer, decision);
  if (tally) tally.ended[outcome]++;
}

/** Counts a request that was refused because no pool could meet its targets: a miss of each. */
export function countUnattainable(scorer: Scorer, decision: PoolDecision): void {
  const missed = decision.live?.refusal?.missed ?? [];
  for (const { axis, source } of decision.selection.axes) {
    const target = missed.find((name) => name === axis.name);
    if (target) countTarget(scorer, decision, { target, source, result: "missed" });
  }
}

function countTargets(scorer: Scorer, decision: PoolDecision, notice: ClosedNotice): void {
  for (const { axis, value: targetMs, source } of decision.selection.axes) {
    const target = axis.name;
    if (target !== "ttft" && target !== "itl") continue;
    const measuredMs = target === "ttft" ? notice.ttft_ms : meanItlMs(notice);
    if (typeof measuredMs !== "number" || !Number.isFinite(measuredMs)) continue;
    const result = measuredMs <= targetMs ? "met" : "missed";
    countTarget(scorer, decision, { target, source, result });
    countLatency(scorer, decision, { target, source, measuredMs, targetMs });
  }
}

interface Scored {
  readonly target: SlaMeasure;
  readonly source: string;
}

function countTarget(
  scorer: Scorer,
  decision: PoolDecision,
  { target, source, result }: Scored & { readonly result: "met" | "missed" },
): void {
  placeOf(scorer, decision).target(target, result, isExplicit(source)).add(1);
  const tally = tallyOf(scorer, decision);
  if (tally) tally[target][result]++;
}

/** Puts a measured latency in the book of its cell, while the grid that chose is still in use. */
function countLatency(
  scorer: Scorer,
  decision: PoolDecision,
  {
    target,
    source,
    ...sample
  }: Scored & { readonly measuredMs: number; readonly targetMs: number },
): void {
  const live = scorer.versions.liveOf(decision.active);
  if (!live) return;
  const nowMs = scorer.clock.nowMs();
  const { place, measuredRatio } = placeOf(scorer, decision);
  const predictedMs = predictedOf(decision, target);
  if (predictedMs !== undefined && predictedMs > 0) {
    measuredRatio(target).observe(sample.measuredMs / predictedMs);
  }
  const explicit = isExplicit(source);
  const moved = live.cells.add(place, { target, ...sample, predictedMs, explicit }, nowMs);
  if (moved) tellDrift(scorer, moved);
}

/** What the pool that took the request had quoted for it. */
function predictedOf({ live, result }: PoolDecision, target: SlaMeasure): number | undefined {
  const quote = live?.quotes.find(({ pool }) => pool === result?.pool)?.quote;
  return target === "ttft" ? quote?.predictedTtftMs : quote?.predictedItlMs;
}

function isExplicit(source: string): boolean {
  return source !== "default" && source !== "midpoint";
}

function tallyOf({ versions }: Scorer, { active }: PoolDecision): VersionTally | undefined {
  return versions.find(active.config.version)?.tally;
}

function meanItlMs({ itl }: ClosedNotice): number | undefined {
  return itl && itl.count > 0 ? itl.sum_ms / itl.count : undefined;
}

/** The cell, and the pool that had the request last. */
function placeOf({ series }: Scorer, decision: PoolDecision): PlaceSeries {
  const { selection, result } = decision;
  return series.ofCell(decision).ofPool(result?.pool ?? selection.pool);
}
