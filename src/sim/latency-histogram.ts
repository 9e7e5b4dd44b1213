/**
 * Quantiles of any number of durations in fixed memory: bucket b counts the durations in
 * [minMs * growth^b, minMs * growth^(b+1)), so a quantile is exact to `growth - 1`, here 2 %.
 */
const minMs = 0.01;
const maxMs = 10_000_000;
const growth = 1.02;
const buckets = Math.ceil(Math.log(maxMs / minMs) / Math.log(growth)) + 1;

export class LatencyHistogram {
  readonly #counts = new Float64Array(buckets);
  #total = 0;

  get total(): number {
    return this.#total;
  }

  /** Counts `times` durations of `ms`; those beyond the ends count at the ends. */
  add(ms: number, times = 1): void {
    const place = Math.floor(Math.log(Math.max(ms, minMs) / minMs) / Math.log(growth));
    const bucket = Math.min(place, buckets - 1);
    this.#counts[bucket] = (this.#counts[bucket] ?? 0) + times;
    this.#total += times;
  }

  /** The duration that a share `q` in [0, 1] does not exceed; undefined when nothing was counted. */
  quantile(q: number): number | undefined {
    if (this.#total === 0) return undefined;
    const rank = q * this.#total;
    let below = 0;
    for (let bucket = 0; bucket < buckets; bucket++) {
      below += this.#counts[bucket] ?? 0;
      if (below >= rank && below > 0) return minMs * growth ** (bucket + 0.5);
    }
    return maxMs;
  }
}
