/**
 * Capacity: the highest speed at which a share of the requests offered still meets its objective, by
 * bisection between two bounds. Every run that is made is kept, so forms share runs.
 */
import type { Attainment } from "./slo.ts";

export interface CapacitySearch {
  readonly speedMin: number;
  readonly speedMax: number;
  readonly steps: number;
  /** Share in 0..1 that has to be met. */
  readonly share: number;
}

export const capacityDefaults = { steps: 7, share: 0.95 } as const;

/** Attainment at a speed; asked at most once per speed. */
export type AttainmentAt<Shares = Attainment> = (speed: number) => Shares;

/** Runs a speed once, whoever asks. */
export function remembered<Shares>(
  at: AttainmentAt<Shares>,
): AttainmentAt<Shares> & { readonly runs: Map<number, Shares> } {
  const runs = new Map<number, Shares>();
  const ask = (speed: number): Shares => {
    const known = runs.get(speed);
    if (known) return known;
    const found = at(speed);
    runs.set(speed, found);
    return found;
  };
  return Object.assign(ask, { runs });
}

/** Resolution of a search: the distance of the last two speeds it may tell apart. */
export function stepOf({ speedMin, speedMax, steps }: CapacitySearch): number {
  return (speedMax - speedMin) / 2 ** steps;
}

/**
 * The highest speed the search saw met; null when not even `speedMin` is. At the upper bound less
 * one step the capacity may be higher than the bounds allow to see.
 */
export function capacityOf<Shares>(
  search: CapacitySearch,
  at: AttainmentAt<Shares>,
  met: (shares: Shares) => number | undefined,
): number | null {
  let low = search.speedMin;
  let high = search.speedMax;
  const passes = (speed: number): boolean => (met(at(speed)) ?? 0) >= search.share;
  for (let step = 0; step < search.steps; step++) {
    const middle = (low + high) / 2;
    if (passes(middle)) low = middle;
    else high = middle;
  }
  return low > search.speedMin || passes(low) ? low : null;
}
