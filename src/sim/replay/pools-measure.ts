/**
 * Replays a trace against layouts of pools, one choice between them after the other: capacity over
 * all classes and over each, and a detailed run. Equal plans give equal reports.
 */
import { mulberry32, type Random } from "../../base/random.ts";
import { plainFit } from "../../core/best-fit.ts";
import { defaultLatencyWeights } from "../../core/latency-cost.ts";
import type { QuoteTargets } from "../../core/quote-choice.ts";
import { type AnswerTimes, drawClasses, meetsDeadline, meetsFirst } from "../attainment.ts";
import type { TraceRequest } from "../mooncake-trace.ts";
import { type CapacitySearch, capacityOf, remembered } from "./capacity.ts";
import { poolChoice } from "./pools-choice.ts";
import type { PoolsClass, PoolsFile, PoolsLayout, Selector } from "./pools-file.ts";
import { priorPools, staticGrid } from "./pools-grid.ts";
import { type PreparedTrace, prepareTrace } from "./prepared-trace.ts";
import { type ReplayOptions, replay } from "./replay.ts";
import type { ReplayRun } from "./replay-run.ts";
import { type RunSummary, rounded, summaryOf } from "./run-summary.ts";

export interface PoolsPlan {
  readonly file: PoolsFile;
  readonly requests: readonly TraceRequest[];
  readonly blockSize: number;
  readonly seed: number;
  readonly spreadMs: number;
  readonly speed: number;
  readonly capacity: CapacitySearch | undefined;
  readonly curveSpeeds: readonly number[];
  readonly eventDelayMs: number;
}

/** One choice on one layout. */
export interface SelectorReport extends RunSummary {
  readonly layout: string;
  readonly selector: string;
  /** × the trace's rate; null = not even the lower bound. */
  readonly capacity?: number | null;
  readonly capacity_every_class?: number | null;
  /** At `capacity`. */
  readonly classes_at_capacity?: readonly number[];
  readonly attainment: number;
  readonly classes: readonly number[];
  readonly pools: readonly PoolShare[];
  readonly curve: readonly { readonly speed: number; readonly attainment: number }[];
}

export interface PoolShare {
  readonly namespace: string;
  readonly label: string;
  /** Of the requests. */
  readonly share: number;
  readonly prefill_utilisation: number;
}

export interface PoolsWatch {
  readonly onRun: (layout: string, selector: string, speed: number) => void;
  readonly onDone: (layout: string, selector: string) => void;
}

/** Met shares, each in 0..1: of all requests, and by class. */
interface ClassShares {
  readonly all: number;
  readonly classes: readonly number[];
}

interface Context {
  readonly plan: PoolsPlan;
  readonly trace: PreparedTrace;
  readonly classOf: Uint8Array;
}

/** Every choice of every layout, in the order of the file; throws `config_invalid` for a grid. */
export async function measurePools(plan: PoolsPlan, watch: PoolsWatch): Promise<SelectorReport[]> {
  const { requests, blockSize, spreadMs, seed, file } = plan;
  const random = mulberry32(seed);
  const trace = prepareTrace(requests, { blockSize, spreadMs, random });
  const context = { plan, trace, classOf: classesOf(file, trace.count, random) };
  const reports: SelectorReport[] = [];
  for (const layout of file.layouts) {
    for (const selector of layout.selectors) {
      reports.push(await measureSelector(context, layout, selector, watch));
      watch.onDone(layout.name, selector.name);
    }
  }
  return reports;
}

/** Classes of the requests in the order of their arrivals. */
function classesOf({ classes, drift }: PoolsFile, count: number, random: Random): Uint8Array {
  const drawn = drawClasses(classes, count, random);
  if (!drift) return drawn;
  const first = Math.round(drift.after * count);
  const later = drift.shares.map((share) => ({ share }));
  drawn.set(drawClasses(later, count - first, random), first);
  return drawn;
}

async function measureSelector(
  context: Context,
  layout: PoolsLayout,
  selector: Selector,
  watch: PoolsWatch,
): Promise<SelectorReport> {
  const { plan, trace } = context;
  const { capacity: search, speed, curveSpeeds } = plan;
  const options = await runOptions(context, layout, selector);
  const runAt = (at: number): ReplayRun => {
    watch.onRun(layout.name, selector.name, at);
    return replay({ ...options(), speed: at });
  };
  const run = runAt(speed);
  const shares = sharesOf(context, run);
  const at = remembered((speed) => sharesOf(context, runAt(speed)));
  at.runs.set(speed, shares);
  const capacity = search && capacityOf(search, at, ({ all }) => all);
  const everyClass = search && capacityOf(search, at, ({ classes }) => Math.min(...classes));
  for (const one of curveSpeeds) at(one);
  return {
    layout: layout.name,
    selector: selector.name,
    ...(search && {
      capacity: capacity ?? null,
      capacity_every_class: everyClass ?? null,
      classes_at_capacity: at(capacity ?? search.speedMin).classes.map(rounded),
    }),
    attainment: rounded(shares.all),
    classes: shares.classes.map(rounded),
    pools: poolShares(layout, run),
    ...summaryOf(trace, run),
    curve: [...at.runs]
      .sort(([one], [other]) => one - other)
      .map(([of, { all }]) => ({ speed: rounded(of), attainment: rounded(all) })),
  };
}

/** Options of one run; each has draws and a choice of its own, all from the plan's seed. */
async function runOptions(
  { plan, trace, classOf }: Context,
  { pools }: PoolsLayout,
  selector: Selector,
): Promise<() => Omit<ReplayOptions, "speed">> {
  const { file, seed, eventDelayMs } = plan;
  const targetsOf = (place: number): QuoteTargets => targetsAt(file, classOf, trace, place);
  const grid = await staticGrid(file.role, pools, selector, file.classes.length);
  const requests = Array.from({ length: trace.count }, (_, place) => {
    const { ttftMs = 0, itlMs } = targetsOf(place);
    return { tokens: trace.inputTokens[place] ?? 0, ttftMs, itlMs, group: classOf[place] ?? 0 };
  });
  const random = mulberry32(seed + gridDraws);
  const prior = priorPools(grid, pools, selector, { requests, random });
  const weights = {
    ...defaultLatencyWeights,
    prefillExternality: file.prefillExternality,
    ...(file.role === "decode" && { decodeHarm: 1 }),
  };
  const policy = selector.sharedCache ? "shared-cache-planned" : "latency";
  const replayPools = pools.map(({ engine, workers, gpus, profile }) => {
    const fit = selector.plainFit ? plainFit : undefined;
    return { engine, workers, gpus, profile, policy, weights, fit } as const;
  });
  return () => {
    const choice = { pools, selector, prior, targetsOf, random: mulberry32(seed + choiceDraws) };
    const pickPool = poolChoice(choice);
    const pickMs = selector.quoteMs;
    return { trace, pools: replayPools, seed, eventDelayMs, pickPool, pickMs };
  };
}

/** Draws of different things come from seeds far apart. */
const gridDraws = 1_000;
const choiceDraws = 2_000;

/** What the request's class promises; its first token by its own length. */
function targetsAt(
  { role, classes }: PoolsFile,
  classOf: Uint8Array,
  trace: PreparedTrace,
  place: number,
): QuoteTargets {
  const row = classes[classOf[place] ?? 0] as PoolsClass;
  const ttftMs = row.baseMs + row.msPerInputToken * (trace.inputTokens[place] ?? 0);
  return { role, ttftMs, itlMs: row.itlMs };
}

function sharesOf({ plan, trace, classOf }: Context, run: ReplayRun): ClassShares {
  const { file } = plan;
  const offered = file.classes.map(() => 0);
  const met = file.classes.map(() => 0);
  for (let place = 0; place < run.count; place++) {
    const group = classOf[place] ?? 0;
    offered[group] = (offered[group] ?? 0) + 1;
    const targets = targetsAt(file, classOf, trace, place);
    if (isMet(targets, answerAt(run, place))) met[group] = (met[group] ?? 0) + 1;
  }
  const total = met.reduce((sum, count) => sum + count, 0);
  return {
    all: total / Math.max(1, run.count),
    classes: met.map((count, group) => (offered[group] ? count / offered[group] : 1)),
  };
}

/** With an ITL target every token counts, in the form `deadline`. */
function isMet({ ttftMs = 0, itlMs }: QuoteTargets, answer: AnswerTimes): boolean {
  if (itlMs === undefined) return meetsFirst(ttftMs, answer);
  return meetsDeadline({ ttftMs, tpotMs: itlMs }, answer);
}

function answerAt(run: ReplayRun, place: number): AnswerTimes {
  return {
    arrivalMs: run.arrivalMs[place] as number,
    firstMs: run.firstMs[place] as number,
    lastMs: run.isWhole(place) ? (run.lastMs[place] as number) : Number.NaN,
    outputTokens: run.tokens[place] as number,
  };
}

function poolShares({ pools }: PoolsLayout, run: ReplayRun): PoolShare[] {
  const counts = pools.map(() => 0);
  for (const pool of run.pool) counts[pool] = (counts[pool] ?? 0) + 1;
  let first = 0;
  return pools.map(({ namespace, label, workers }, at) => {
    const engines = run.engines.slice(first, first + workers);
    first += workers;
    const busyMs = engines.reduce((sum, { prefillMs }) => sum + prefillMs, 0);
    return {
      namespace,
      label,
      share: rounded((counts[at] ?? 0) / Math.max(1, run.count)),
      prefill_utilisation: rounded(busyMs / Math.max(1, workers * run.endMs)),
    };
  });
}
