/** A run in numbers, under the names of the JSON report; null = nothing to measure. */
import type { PreparedTrace } from "./prepared-trace.ts";
import { type ReplayRun, windowMs } from "./replay-run.ts";

export interface RunSummary {
  readonly requests: number;
  /** Prompt tokens the engines found in their caches, of all of them. */
  readonly hit_ratio: number;
  readonly ttft_ms: Quantiles<"mean" | "p50" | "p90" | "p99">;
  readonly tpot_ms: Quantiles<"p50" | "p99">;
  readonly itl_ms: Quantiles<"p99" | "p999">;
  /** |predicted - actual| / actual of the time to first token; null where nothing is predicted. */
  readonly ttft_prediction_error: Quantiles<"p50" | "p90">;
  /** Largest over mean of the workers' computed prompt tokens, over the run. */
  readonly imbalance: number | null;
  /** The same in windows of 30 s, their mean. */
  readonly imbalance_30s: number | null;
  readonly prefill_utilisation: number;
  readonly rejected: number;
  readonly unfinished: number;
  readonly preemptions: number;
  readonly evicted_blocks: number;
  readonly span_s: number;
}

export type Quantiles<Name extends string> = { readonly [Each in Name]: number | null };

export function summaryOf(trace: PreparedTrace, run: ReplayRun): RunSummary {
  const { ttft, tpot } = latenciesOf(run);
  const errors = predictionErrors(run);
  const spanMs = run.endMs - leastOf(run.arrivalMs);
  let promptTokens = 0;
  let cachedTokens = 0;
  let whole = 0;
  for (let place = 0; place < run.count; place++) {
    promptTokens += trace.inputTokens[place] as number;
    cachedTokens += run.cached[place] as number;
    if (run.isWhole(place)) whole++;
  }
  const total = (field: keyof ReplayRun["engines"][number]): number =>
    run.engines.reduce((sum, engine) => sum + engine[field], 0);
  const computed = run.engines.map(({ computedTokens }) => computedTokens);
  return {
    requests: run.count,
    hit_ratio: rounded(cachedTokens / Math.max(1, promptTokens)),
    ttft_ms: {
      mean: meanOf(ttft),
      p50: quantileOf(ttft, 0.5),
      p90: quantileOf(ttft, 0.9),
      p99: quantileOf(ttft, 0.99),
    },
    tpot_ms: { p50: quantileOf(tpot, 0.5), p99: quantileOf(tpot, 0.99) },
    itl_ms: { p99: known(run.itl.quantile(0.99)), p999: known(run.itl.quantile(0.999)) },
    ttft_prediction_error: { p50: quantileOf(errors, 0.5), p90: quantileOf(errors, 0.9) },
    imbalance: imbalanceOf(computed),
    imbalance_30s: meanImbalance(windowsOfArrivals(run)),
    prefill_utilisation: rounded(total("prefillMs") / Math.max(1, spanMs * run.engines.length)),
    rejected: run.rejected,
    unfinished: run.count - whole - run.rejected,
    preemptions: total("preemptions"),
    evicted_blocks: total("evictedBlocks"),
    span_s: rounded(spanMs / 1000),
  };
}

/** Wall time of the decisions; differs from run to run. */
export function decisionTimes(run: ReplayRun): Quantiles<"mean" | "p50" | "p99"> {
  const sorted = Float64Array.from(run.decisionMs, (ms) => ms * 1000).sort();
  return { mean: meanOf(sorted), p50: quantileOf(sorted, 0.5), p99: quantileOf(sorted, 0.99) };
}

/** Times to the first token, and per token after it, both ascending. */
function latenciesOf(run: ReplayRun): { ttft: Float64Array; tpot: Float64Array } {
  const ttft = new Float64Array(run.count);
  const tpot = new Float64Array(run.count);
  let first = 0;
  let later = 0;
  for (let place = 0; place < run.count; place++) {
    const firstMs = run.firstMs[place] as number;
    const tokens = run.tokens[place] as number;
    if (Number.isNaN(firstMs)) continue;
    ttft[first++] = firstMs - (run.arrivalMs[place] as number);
    if (tokens > 1) tpot[later++] = ((run.lastMs[place] as number) - firstMs) / (tokens - 1);
  }
  return { ttft: ttft.subarray(0, first).sort(), tpot: tpot.subarray(0, later).sort() };
}

function predictionErrors(run: ReplayRun): Float64Array {
  const errors = run.predictedMs.map((predictedMs, place) => {
    const actualMs = (run.firstMs[place] as number) - (run.arrivalMs[place] as number);
    return Math.abs(predictedMs - actualMs) / actualMs;
  });
  return errors.filter((error) => !Number.isNaN(error)).sort();
}

/** Nearest rank of ascending values. */
export function quantileOf(sorted: Float64Array, q: number): number | null {
  const rank = Math.max(1, Math.ceil(q * sorted.length));
  return known(sorted[rank - 1]);
}

function meanOf(values: Float64Array): number | null {
  if (values.length === 0) return null;
  return known(values.reduce((sum, value) => sum + value, 0) / values.length);
}

function imbalanceOf(tokens: ArrayLike<number>): number | null {
  let sum = 0;
  let most = 0;
  for (let at = 0; at < tokens.length; at++) {
    sum += tokens[at] as number;
    most = Math.max(most, tokens[at] as number);
  }
  return sum === 0 ? null : rounded((most * tokens.length) / sum);
}

function meanImbalance(windows: readonly Float64Array[]): number | null {
  const known = windows.map(imbalanceOf).filter((imbalance) => imbalance !== null);
  if (known.length === 0) return null;
  return rounded(known.reduce((sum, imbalance) => sum + imbalance, 0) / known.length);
}

/** Without the windows after the last arrival, in which few workers still have work. */
function windowsOfArrivals({ windows, arrivalMs }: ReplayRun): Float64Array[] {
  const lastMs = arrivalMs.reduce((last, ms) => (ms > last ? ms : last), 0);
  return windows.slice(0, Math.floor(lastMs / windowMs) + 1);
}

function leastOf(values: Float64Array): number {
  let least = Number.POSITIVE_INFINITY;
  for (const value of values) if (value < least) least = value;
  return Number.isFinite(least) ? least : 0;
}

function known(value: number | undefined): number | null {
  return value === undefined ? null : rounded(value);
}

/** Four digits behind the point. */
export function rounded(value: number): number {
  return Math.round(value * 1e4) / 1e4;
}
