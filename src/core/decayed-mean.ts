/**
 * A mean that forgets: a sample counts half after `halfLifeMs`, a quarter after twice that. Two
 * numbers and a time, whatever the rate of samples.
 */
export interface DecayedMean {
  sum: number;
  /** Samples, each by its age. */
  weight: number;
  atMs: number;
}

export const halfLifeMs = 10_000;

/** Below this many samples there is nothing to tell. */
const weightMin = 0.01;

export function newMean(): DecayedMean {
  return { sum: 0, weight: 0, atMs: 0 };
}

export function addSample(mean: DecayedMean, value: number, nowMs: number): void {
  const kept = keptShare(mean, nowMs);
  mean.sum = mean.sum * kept + value;
  mean.weight = mean.weight * kept + 1;
  mean.atMs = nowMs;
}

/** Number of samples at `nowMs`, each by its age. */
export function weightOf(mean: DecayedMean, nowMs: number): number {
  return mean.weight * keptShare(mean, nowMs);
}

/** The mean, or null when its samples are forgotten. */
export function meanOf(mean: DecayedMean, nowMs: number): number | null {
  return weightOf(mean, nowMs) < weightMin ? null : mean.sum / mean.weight;
}

function keptShare({ atMs }: DecayedMean, nowMs: number): number {
  return 2 ** (-Math.max(0, nowMs - atMs) / halfLifeMs);
}
