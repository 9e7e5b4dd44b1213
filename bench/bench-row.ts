/** One line of the bench table: ours against a shipped baseline, measured in one run. */
export interface BenchRow {
  readonly id: string;
  readonly unit: string;
  readonly baseline: number;
  readonly ours: number;
  /** How many times better ours is, whatever the unit's direction. */
  readonly ratio: number;
  readonly target: string;
  readonly note?: string;
}

export interface BenchOptions {
  readonly quick: boolean;
  readonly seed: number;
  /** Groups of rows to measure; undefined for all. */
  readonly groups: readonly string[] | undefined;
}

export interface Pair {
  readonly baseline: number;
  readonly ours: number;
  readonly ratio: number;
}

export const roundsMin = 7;

/**
 * Median of each side and of the per-round ratio. Rounds alternate baseline and candidate, so that a
 * noisy neighbour hits both; the first round warms up and is dropped. `higherIsBetter` tells how
 * `ratio` is formed.
 */
export function medianRatio(
  baseline: () => number,
  ours: () => number,
  higherIsBetter: boolean,
  rounds: number = roundsMin,
): Pair {
  const pairs: Pair[] = [];
  for (let round = 0; round <= rounds; round++) {
    const theirs = baseline();
    const mine = ours();
    const ratio = higherIsBetter ? mine / theirs : theirs / mine;
    if (round > 0) pairs.push({ baseline: theirs, ours: mine, ratio });
  }
  return {
    baseline: median(pairs.map((pair) => pair.baseline)),
    ours: median(pairs.map((pair) => pair.ours)),
    ratio: median(pairs.map((pair) => pair.ratio)),
  };
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

/** Nearest-rank quantile of unsorted values. */
export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN;
}
