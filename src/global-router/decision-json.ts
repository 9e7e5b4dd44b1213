/** A decision of the global router as `explain` answers it, without the second tier. */
import type { Quote } from "../core/quote-choice.ts";
import { cellText, type PoolSelection } from "../core/sla-grid.ts";
import type { PoolDecision } from "./pool-decision.ts";

/** Schema `tiergrid.explain/1`, without the second tier; `dryRun` when nothing was sent. */
export function explainDecision(decision: PoolDecision, model: string, dryRun: boolean) {
  const { selection, plan, role, active, result } = decision;
  const namespaceOf = (pool: number): string | null => role.pools[pool]?.namespace ?? null;
  return {
    schema: "tiergrid.explain/1",
    decision_id: decision.id,
    request_id: decision.requestId,
    rid: decision.rid,
    at: new Date(decision.atWallMs).toISOString(),
    model,
    mode: active.config.mode,
    role: selection.role,
    config_version: active.config.version,
    dry_run: dryRun,
    axes: selection.axes.map(axisJson),
    grid: {
      cell: cellText(selection.cell),
      grid_pool: selection.gridPool,
      namespace: namespaceOf(selection.gridPool),
    },
    override: overrideJson(selection, decision.query.priority),
    live: liveJson(decision),
    pools: poolsJson(decision),
    order: {
      retry_order: [plan.selected, ...plan.retryPools],
      spill_order: plan.spillPools,
      hops_allowed: plan.hopsMax,
      attempts: decision.attempts.map(({ pool, via, router, outcome, tookMs }) => ({
        pool,
        via,
        router,
        outcome,
        ms: tookMs,
      })),
    },
    result: result && { ...result, namespace: namespaceOf(result.pool) },
    notes: selection.axes.flatMap(({ axis, clamped }) =>
      clamped === null ? [] : [`axis ${axis.name} clamped ${clamped}`],
    ),
  };
}

export function axisJson({ axis, value, source, index, cellLow, cellHigh, clamped }: Reading) {
  return {
    name: axis.name,
    value,
    source,
    min: axis.min,
    max: axis.max,
    resolution: axis.cells,
    spacing: axis.spacing,
    index,
    cell_low: cellLow,
    cell_high: cellHigh,
    clamped,
    distance_to_edges: { low: value - cellLow, high: cellHigh - value },
  };
}

type Reading = PoolSelection["axes"][number];

export function overrideJson({ override }: PoolSelection, priority: number | null) {
  if (!override) return null;
  const { rule, minPriority, maxPriority, targetPool } = override;
  return { priority, rule, min: minPriority, max: maxPriority, target_pool: targetPool };
}

function poolsJson({ role, pools }: PoolDecision) {
  return role.pools.flatMap(({ index, namespace, priority }) => {
    const standing = pools[index];
    if (!standing) return [];
    const { state, workersReady: workers_ready, inFlight: inflight } = standing;
    const eligible = state === "ready";
    const why_not = eligible ? null : state;
    return [{ index, namespace, priority, state, workers_ready, inflight, eligible, why_not }];
  });
}

/** The choice as a part of `explain`. */
function liveJson({ live, role, selection }: PoolDecision): object | null {
  if (!live) return null;
  const { targets, quotes, outcome, why, tookMs } = live;
  const { selection: mode, quoteDeadlineMs } = role.quoting;
  return {
    mode,
    outcome,
    why,
    grid_pool: selection.gridPool,
    targets: { ttft_ms: targets.ttftMs ?? null, itl_ms: targets.itlMs ?? null },
    quote_deadline_ms: quoteDeadlineMs,
    ms: tookMs,
    quotes: quotes.map(({ pool, router, outcome: ended, why: code, scored, ...rest }) => ({
      pool,
      namespace: role.pools[pool]?.namespace ?? null,
      router,
      outcome: ended,
      why: code,
      ms: rest.tookMs,
      score: scored?.score ?? null,
      meets: scored?.meets ?? null,
      ...(rest.quote && { quote: quoteFields(rest.quote) }),
    })),
  };
}

function quoteFields(quote: Quote): object {
  return {
    predicted_ttft_ms: quote.predictedTtftMs,
    predicted_itl_ms: quote.predictedItlMs,
    queue_ms: quote.queueMs,
    cached_tokens: quote.cachedTokens,
    prefill_gpu_ms: quote.prefillGpuMs,
    decode_gpu_ms: quote.decodeGpuMs,
    gpus: quote.gpus,
  };
}
