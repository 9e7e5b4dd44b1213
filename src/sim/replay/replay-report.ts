/** The whole result of a replay, as `--json` prints it: equal plans give equal bytes. */
import type { SloClass } from "../attainment.ts";
import { boundsOf, type ReplayBounds } from "./bounds.ts";
import { stepOf } from "./capacity.ts";
import { type BoundName, boundPolicies, isBound, type PolicyName } from "./policy-table.ts";
import { type CapacityPlan, openPlan, type PolicyReport, type ReplayPlan } from "./replay-plan.ts";

export interface ReplayReport {
  readonly trace: {
    readonly name: string;
    readonly requests: number;
    readonly input_tokens: number;
    readonly output_tokens: number;
    readonly spread_ms: number;
  };
  readonly pool: {
    readonly workers: number;
    readonly block_size: number;
    readonly blocks: number;
    readonly batch_tokens: number;
    readonly report_period_ms: number;
    readonly event_delay_ms: number;
  };
  readonly seed: number;
  readonly speed: number;
  readonly targets: {
    readonly ttft_ms: number;
    readonly tpot_ms: number;
    readonly prefill_ttft_ms: number;
    readonly classes?: readonly SloClass[];
  };
  readonly capacity?: CapacityNote;
  readonly policies: Readonly<Record<string, PolicyReport>>;
  readonly bounds: ReplayBounds & { readonly [Name in BoundName]?: PolicyReport };
}

export interface CapacityNote {
  readonly share: number;
  readonly speed_min: number;
  readonly speed_max: number;
  readonly step: number;
  readonly prefill_speed_max: number;
  readonly prefill_step: number;
}

export function reportOf(
  plan: ReplayPlan,
  traceName: string,
  found: ReadonlyMap<PolicyName, PolicyReport>,
): ReplayReport {
  const { engine, trace } = openPlan(plan);
  const { workers, targets, prefillTtftMs, classes } = plan;
  const sum = (values: Float64Array): number => values.reduce((total, value) => total + value, 0);
  const bounds = boundsOf({
    requests: trace.requests,
    engine,
    workers,
    ttftMs: [targets.ttftMs, prefillTtftMs],
  });
  return {
    trace: {
      name: traceName,
      requests: trace.count,
      input_tokens: sum(trace.inputTokens),
      output_tokens: sum(trace.outputTokens),
      spread_ms: plan.spreadMs,
    },
    pool: {
      workers,
      block_size: engine.blockSize,
      blocks: engine.numGpuBlocks,
      batch_tokens: engine.maxNumBatchedTokens,
      report_period_ms: plan.reportPeriodMs,
      event_delay_ms: plan.eventDelayMs,
    },
    seed: plan.seed,
    speed: plan.speed,
    targets: {
      ttft_ms: targets.ttftMs,
      tpot_ms: targets.tpotMs,
      prefill_ttft_ms: prefillTtftMs,
      ...(classes.length > 0 ? { classes } : {}),
    },
    ...(plan.capacity ? { capacity: noteOf(plan.capacity) } : {}),
    policies: Object.fromEntries([...found].filter(([name]) => !isBound(name))),
    bounds: { ...bounds, ...sharedCaches(found) },
  };
}

function sharedCaches(
  found: ReadonlyMap<PolicyName, PolicyReport>,
): Partial<Record<BoundName, PolicyReport>> {
  const rows = Object.entries(boundPolicies).map(([name, policy]) => [name, found.get(policy)]);
  return Object.fromEntries(rows.filter(([, report]) => report !== undefined));
}

function noteOf({ search, prefillSearch }: CapacityPlan): CapacityNote {
  return {
    share: search.share,
    speed_min: search.speedMin,
    speed_max: search.speedMax,
    step: stepOf(search),
    prefill_speed_max: prefillSearch.speedMax,
    prefill_step: stepOf(prefillSearch),
  };
}
