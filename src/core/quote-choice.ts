/**
 * The live choice between pools: the quote that fits a request's targets best.
 *
 *   prefill   TTFT against its target      GPU time of the prefill
 *   decode    ITL against its target       GPU time of the decoding
 *   agg       TTFT, then ITL too           both
 *
 * Each is scored by `best-fit.ts` with GPU time at the pool's price, so that the best quote is the
 * best fit over all workers. In an agg pool a missed ITL counts as late as well, 1 a millisecond
 * where TTFT counts 1,000.
 *
 *   scores   [0, 1e9)  meets  ·  [1e9, 2e9)  in time but for the margin: least late
 *            [2e9, ..  beyond its TTFT target everywhere: `LateRule`
 */
import {
  bestFitScore,
  defaultFit,
  latenessMs,
  lateScore,
  plainFit,
  targetMargin,
} from "./best-fit.ts";
import type { Role } from "./sla-grid.ts";

/** What a pool says it would take; GPU time is that of all GPUs of the worker together. */
export interface Quote {
  readonly predictedTtftMs: number;
  readonly predictedItlMs: number;
  /** The part of the TTFT that others cause. */
  readonly queueMs: number;
  readonly cachedTokens: number;
  readonly prefillGpuMs: number;
  readonly decodeGpuMs: number;
  /** GPUs of one worker. */
  readonly gpus: number;
  /** A first token that the pool expects in time would be late. */
  readonly breaksPromise: boolean;
  /** How long after its arrival it counts. */
  readonly validForMs: number;
}

/** Targets of one request in ms; undefined = the role's grid has no such axis. */
export interface QuoteTargets {
  readonly role: Role;
  readonly ttftMs: number | undefined;
  readonly itlMs: number | undefined;
}

/** What the config says of a pool's machines. */
export interface PoolPrice {
  /** Price of a GPU second over that of the dearest pool of the role, in (0, 1]. */
  readonly costShare: number;
  /** GPUs of one worker in place of the quote's own count. */
  readonly gpus: number | undefined;
}

export interface PoolQuote {
  readonly pool: number;
  readonly quote: Quote;
  readonly price: PoolPrice;
}

export interface QuoteScore {
  /** Lower is better; below `lateScore` exactly when every target is met. */
  readonly score: number;
  readonly meets: boolean;
  readonly missed: readonly ("ttft" | "itl")[];
}

/**
 * Which quote a request gets that no pool serves within its TTFT target. `cheapest`: it is late in
 * any case, and takes nothing from requests that can still be in time. `least_late`: the least late.
 */
export type LateRule = "cheapest" | "least_late";

/** How quotes are compared. */
export interface LiveRules {
  readonly lateRule: LateRule;
  /** As in the pools' own `FitRules`, or the best quote is not the best worker. */
  readonly latencyShare: number;
}

/** The rule as it was published. */
export const plainLive: LiveRules = {
  lateRule: "least_late",
  latencyShare: plainFit.latencyShare,
};

export const defaultLive: LiveRules = {
  lateRule: "cheapest",
  latencyShare: defaultFit.latencyShare,
};

/** Scores from here on are those of a target missed even without the margin. */
const hopelessScore = 2 * lateScore;

/** Score of a quote under `targets`. */
export function scoreQuote(
  { quote, price }: Omit<PoolQuote, "pool">,
  targets: QuoteTargets,
  { lateRule, latencyShare }: LiveRules = defaultLive,
) {
  const { role, ttftMs = Infinity, itlMs = Infinity } = targets;
  const decode = role === "decode";
  const predictedMs = decode ? quote.predictedItlMs : quote.predictedTtftMs;
  const targetMs = decode ? itlMs : ttftMs;
  const gpus = (price.gpus ?? quote.gpus) * price.costShare;
  const gpuMs = (gpuMsOf(role, quote) / quote.gpus) * gpus;
  const { breaksPromise } = quote;
  const fit = { predictedMs, gpuMs, gpus, breaksPromise };
  // Without a target the fit is judged by its cost alone. A late decode step is late at every token.
  const hopeless = lateRule === "cheapest" && !decode && predictedMs > targetMs;
  const score = hopeless
    ? hopelessScore + bestFitScore(fit, Number.POSITIVE_INFINITY, latencyShare)
    : bestFitScore(fit, targetMs, latencyShare);
  const late = latenessMs(predictedMs, targetMs) > 0;
  // Between tokens nothing queues up: the prediction is held to the target as it is.
  const itlLateMs = role === "agg" ? Math.max(0, quote.predictedItlMs - itlMs) : 0;
  const missed: ("ttft" | "itl")[] = late ? [decode ? "itl" : "ttft"] : [];
  if (itlLateMs > 0) missed.push("itl");
  const whole = itlLateMs > 0 ? Math.max(score, lateScore) + itlLateMs : score;
  return { score: whole, meets: missed.length === 0, missed } satisfies QuoteScore;
}

/** The lowest score; ties go to `prior`, then to the lower pool. Undefined without any. */
export function bestQuote<Scored extends { readonly pool: number; readonly score: number }>(
  scored: readonly Scored[],
  prior: number,
): Scored | undefined {
  const rank = ({ pool }: Scored): number => (pool === prior ? -1 : pool);
  let best: Scored | undefined;
  for (const quote of scored) {
    const wins =
      !best || quote.score < best.score || (quote.score === best.score && rank(quote) < rank(best));
    if (wins) best = quote;
  }
  return best;
}

/**
 * Milliseconds until a pool's queue is short enough for the TTFT target, if nothing joins it;
 * undefined when the queue is not what makes it late.
 */
export function queueWaitMs(quote: Quote, { role, ttftMs }: QuoteTargets): number | undefined {
  if (role === "decode" || ttftMs === undefined) return undefined;
  const beyondMs = quote.predictedTtftMs - ttftMs / targetMargin;
  return beyondMs > 0 && beyondMs <= quote.queueMs ? beyondMs : undefined;
}

/** Prices of a role's pools, by index; equal where the config names no cost. */
export function poolPrices(
  pools: readonly { readonly costPerSecond?: number; readonly gpus?: number }[],
): PoolPrice[] {
  const dearest = Math.max(...pools.map(({ costPerSecond = 1 }) => costPerSecond));
  return pools.map(({ costPerSecond = 1, gpus }) => ({ costShare: costPerSecond / dearest, gpus }));
}

function gpuMsOf(role: Role, { prefillGpuMs, decodeGpuMs }: Quote): number {
  if (role === "agg") return prefillGpuMs + decodeGpuMs;
  return role === "decode" ? decodeGpuMs : prefillGpuMs;
}
