/**
 * The best-fit rule: of what meets the target the cheapest in GPU time, else the least late. It holds
 * between workers of a pool and between pools, so that the best of the best is the best of all.
 */

/** Predictions are held to the target with this margin. */
export const targetMargin = 1.1;

/** Scores from here on are those of a missed target. */
export const lateScore = 1e9;

const latencyShare = 0.1;
const latePerMs = 1000;

/** How far `predictedMs` with its margin is beyond `targetMs`; 0 when it meets it. */
export function latenessMs(predictedMs: number, targetMs: number): number {
  return Math.max(0, targetMargin * predictedMs - targetMs);
}

/** What is compared; lower wins. `gpuMs` is GPU time on all of the worker's `gpus`. */
export interface Fit {
  readonly predictedMs: number;
  readonly gpuMs: number;
  readonly gpus: number;
}

/** Score of `fit` under a target in ms; below 10^9 exactly when the target is met. */
export function bestFitScore({ predictedMs, gpuMs, gpus }: Fit, targetMs: number): number {
  const late = latenessMs(predictedMs, targetMs);
  if (late > 0) return lateScore + latePerMs * late;
  return gpuMs + latencyShare * predictedMs * gpus;
}
