/**
 * The best-fit rule: of what meets the target the cheapest in GPU time, else the least late. It holds
 * between workers of a pool and between pools, so that the best of the best is the best of all.
 */

/** Predictions are held to the target with this margin. */
export const targetMargin = 1.1;

/** Scores from here on are those of a missed target. */
export const lateScore = 1e9;

/** A fit that makes a queued request late comes after all that make none late, in GPU ms. */
const brokenPromise = 1e6;
const latePerMs = 1000;

/** What may be tuned of the best fit. */
export interface FitRules {
  /** Of the predicted latency, on all of the worker's GPUs, beside the GPU time. */
  readonly latencyShare: number;
  /** Of the time by which a long prompt delays the worker that would be free first. */
  readonly frontShare: number;
  /** Prefill queues are planned pass by pass, and first tokens that are expected in time kept so. */
  readonly keepsPromises: boolean;
  /**
   * Prompts with a target wait in the router while their worker has enough to do, and go in the order
   * of their deadlines. Takes planned queues.
   */
  readonly holds: boolean;
}

/** The rule as it was published. */
export const plainFit: FitRules = {
  latencyShare: 0.1,
  frontShare: 0,
  keepsPromises: false,
  holds: false,
};

export const defaultFit: FitRules = {
  latencyShare: 0.1,
  frontShare: 0.5,
  keepsPromises: true,
  holds: true,
};

/** How far `predictedMs` with its margin is beyond `targetMs`; 0 when it meets it. */
export function latenessMs(predictedMs: number, targetMs: number): number {
  return Math.max(0, targetMargin * predictedMs - targetMs);
}

/** What is compared; lower wins. `gpuMs` is GPU time on all of the worker's `gpus`. */
export interface Fit {
  readonly predictedMs: number;
  readonly gpuMs: number;
  readonly gpus: number;
  /** A first token that was expected in time would be late. */
  readonly breaksPromise?: boolean;
}

/** Score of `fit` under a target in ms; below 10^9 exactly when the target is met. */
export function bestFitScore(
  { predictedMs, gpuMs, gpus, breaksPromise = false }: Fit,
  targetMs: number,
  latencyShare: number = plainFit.latencyShare,
): number {
  const late = latenessMs(predictedMs, targetMs);
  const broken = breaksPromise ? brokenPromise : 0;
  if (late > 0) return lateScore + latePerMs * late + broken;
  return gpuMs + latencyShare * predictedMs * gpus + broken;
}
