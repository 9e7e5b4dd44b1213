/**
 * What a whole replay is asked for, and the work of one policy: a run at the plan's speed, a curve
 * over speeds, capacities by bisection. Plain values, so that a thread can be given a plan; the
 * result of a policy depends on the plan alone.
 */
import type { Clock } from "../../base/clock.ts";
import { mulberry32 } from "../../base/random.ts";
import { type PerfModel, readPerfModel } from "../../core/perf-model.ts";
import { type MockEngineConfig, readMockEngineConfig } from "../../worker/mock-engine-config.ts";
import { drawClasses, type SloClass, type SloForm, type SloTargets } from "../attainment.ts";
import type { TraceRequest } from "../mooncake-trace.ts";
import { type BusiestShares, busiestShares } from "./busiest-worker.ts";
import { type CapacitySearch, capacityOf, remembered } from "./capacity.ts";
import type { PolicyName } from "./policy-table.ts";
import { type PreparedTrace, prepareTrace } from "./prepared-trace.ts";
import { type ReplayOptions, replay } from "./replay.ts";
import type { LateWorkers } from "./replay-router.ts";
import type { ReplayRun } from "./replay-run.ts";
import {
  decisionTimes,
  type Quantiles,
  type RunSummary,
  rounded,
  summaryOf,
} from "./run-summary.ts";
import { type Attainment, attainmentOf, type Slo } from "./slo.ts";

export interface ReplayPlan {
  readonly requests: readonly TraceRequest[];
  /** Options of the mock engine, by their names in a file. */
  readonly engine: Readonly<Record<string, unknown>>;
  /** Perf model the router believes at first, as in a file; undefined = the engine's own. */
  readonly profile: unknown;
  readonly workers: number;
  readonly late?: LateWorkers | undefined;
  readonly herdGuard?: boolean | undefined;
  readonly policies: readonly PolicyName[];
  readonly seed: number;
  readonly spreadMs: number;
  readonly speed: number;
  readonly targets: SloTargets;
  readonly prefillTtftMs: number;
  readonly classes: readonly SloClass[];
  readonly capacity: CapacityPlan | undefined;
  readonly curveSpeeds: readonly number[];
  readonly reportPeriodMs: number;
  readonly eventDelayMs: number;
  /** Take wall times, which differ from run to run. */
  readonly timings: boolean;
}

export interface CapacityPlan {
  readonly search: CapacitySearch;
  /** Bounds for engines that only prefill. */
  readonly prefillSearch: CapacitySearch;
  readonly forms: readonly SloForm[];
}

/** One row of a load curve. */
export interface CurvePoint {
  readonly speed: number;
  readonly pair: number;
  readonly deadline: number;
}

export interface PolicyReport extends RunSummary {
  readonly busiest_worker: BusiestShares;
  /** × the trace's rate; null = not even the lower bound. */
  readonly capacity_pair?: number | null;
  readonly capacity_deadline?: number | null;
  readonly capacity_prefill?: number | null;
  readonly capacity_scaled?: number | null;
  readonly capacity_every_class?: number | null;
  /** By class, at `capacity_scaled`. */
  readonly classes_at_capacity?: readonly number[];
  readonly attainment: AttainmentRow;
  readonly curve: readonly CurvePoint[];
  readonly decision_us?: Quantiles<"mean" | "p50" | "p99">;
}

export interface AttainmentRow {
  readonly pair: number;
  readonly deadline: number;
  readonly prefill: number;
  readonly classes?: readonly number[];
}

/** What the runs of a plan share. */
export interface PlanContext {
  readonly plan: ReplayPlan;
  readonly trace: PreparedTrace;
  readonly slo: Slo;
  readonly engine: MockEngineConfig;
  readonly prefillEngine: MockEngineConfig;
  readonly profile: PerfModel | undefined;
}

/** Checks the engine and prepares the trace; throws `config_invalid`. */
export function openPlan(plan: ReplayPlan): PlanContext {
  const engine = readMockEngineConfig(plan.engine);
  const { requests, spreadMs, seed, targets, prefillTtftMs, classes } = plan;
  const { blockSize } = engine;
  const random = mulberry32(seed);
  const trace = prepareTrace(requests, { blockSize, spreadMs, random });
  const classOf =
    classes.length === 0 ? new Uint8Array(0) : drawClasses(classes, trace.count, random);
  return {
    plan,
    trace,
    slo: { targets, prefillTtftMs, classes, classOf },
    engine,
    prefillEngine: readMockEngineConfig({ ...plan.engine, worker_type: "prefill" }),
    profile: plan.profile === undefined ? undefined : readPerfModel(plan.profile),
  };
}

/** Runs all that the plan asks of one policy; `onRun` hears of every run. */
export function measurePolicy(
  context: PlanContext,
  policy: PolicyName,
  onRun: (speed: number) => void,
  clock: Clock,
): PolicyReport {
  const { plan, trace, slo, engine, profile } = context;
  const stopwatch = plan.timings ? clock : undefined;
  const runAt = (speed: number, config: MockEngineConfig, more?: RunDetails): ReplayRun => {
    onRun(speed);
    const { workers, late, herdGuard, seed, reportPeriodMs, eventDelayMs } = plan;
    const pools = [{ engine: config, workers, late, herdGuard, policy, profile }];
    return replay({ trace, pools, speed, seed, reportPeriodMs, eventDelayMs, ...more });
  };
  const run = runAt(plan.speed, engine, { predictions: !plan.timings, stopwatch });
  const attained = attainmentOf(slo, trace, run);
  const at = remembered((speed) => attainmentOf(slo, trace, runAt(speed, engine)));
  at.runs.set(plan.speed, attained);
  const prefillAt = remembered((speed) =>
    attainmentOf(slo, trace, runAt(speed, context.prefillEngine)),
  );
  const capacities = plan.capacity ? capacitiesOf(plan.capacity, at, prefillAt) : {};
  for (const speed of plan.curveSpeeds) at(speed);
  return {
    ...capacities,
    ...summaryOf(trace, run),
    busiest_worker: busiestShares(trace, run),
    attainment: rowOf(attained),
    curve: curveOf(at.runs),
    ...(plan.timings ? { decision_us: decisionTimes(run) } : {}),
  };
}

type RunDetails = Pick<ReplayOptions, "predictions" | "stopwatch">;
type Asked = ReturnType<typeof remembered<Attainment>>;

function capacitiesOf(
  { search, prefillSearch, forms }: CapacityPlan,
  at: Asked,
  prefillAt: Asked,
): Partial<PolicyReport> {
  const found: { -readonly [Name in keyof PolicyReport]?: PolicyReport[Name] } = {};
  for (const form of forms) {
    switch (form) {
      case "pair":
        found.capacity_pair = capacityOf(search, at, ({ pair }) => pair);
        break;
      case "deadline":
        found.capacity_deadline = capacityOf(search, at, ({ deadline }) => deadline);
        break;
      case "prefill":
        found.capacity_prefill = capacityOf(prefillSearch, prefillAt, ({ prefill }) => prefill);
        break;
      case "scaled": {
        const speed = capacityOf(prefillSearch, prefillAt, ({ scaled }) => scaled);
        found.capacity_scaled = speed;
        found.capacity_every_class = capacityOf(prefillSearch, prefillAt, ({ classes }) =>
          Math.min(...classes),
        );
        found.classes_at_capacity = prefillAt(speed ?? prefillSearch.speedMin).classes.map(rounded);
        break;
      }
    }
  }
  return found;
}

function rowOf({ pair, deadline, prefill, classes }: Attainment): AttainmentRow {
  const row = { pair: rounded(pair), deadline: rounded(deadline), prefill: rounded(prefill) };
  return classes.length === 0 ? row : { ...row, classes: classes.map(rounded) };
}

function curveOf(runs: ReadonlyMap<number, Attainment>): CurvePoint[] {
  return [...runs]
    .sort(([one], [other]) => one - other)
    .map(([speed, { pair, deadline }]) => ({
      speed: rounded(speed),
      pair: rounded(pair),
      deadline: rounded(deadline),
    }));
}
