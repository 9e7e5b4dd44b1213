/**
 * A running estimate of the p99 of gaps in ms, in constant space: steps up by 0.99 of a step for a
 * larger gap and down by 0.01 for a smaller one, which balances where 1 % are larger (stochastic
 * approximation of a quantile). The step is a tenth of the estimate, so that it follows the scale.
 */
export class GapQuantile {
  #p99Ms = 0;

  get p99Ms(): number {
    return this.#p99Ms;
  }

  observe(gapMs: number): void {
    const stepMs = 0.1 * this.#p99Ms + 0.1;
    if (gapMs > this.#p99Ms) this.#p99Ms = Math.min(gapMs, this.#p99Ms + 0.99 * stepMs);
    else this.#p99Ms = Math.max(gapMs, this.#p99Ms - 0.01 * stepMs);
  }
}
