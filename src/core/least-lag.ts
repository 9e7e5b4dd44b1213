/**
 * How late a message is, between two clocks whose offset nobody knows: its lag (received minus sent)
 * over the least lag of the last one to two windows. What even the fastest message needs is taken
 * for the offset and does not count; clocks that drift by 50 ppm shift it by 6 ms at most.
 */

export const lagWindowMs = 60_000;

export class LeastLag {
  #least = Number.POSITIVE_INFINITY;
  #leastBefore = Number.POSITIVE_INFINITY;
  #windowFromMs = Number.NEGATIVE_INFINITY;

  /** Milliseconds that a message of `sentMs` (the sender's clock) came later than the fastest. */
  lateness(sentMs: number, receivedMs: number): number {
    if (receivedMs - this.#windowFromMs >= lagWindowMs) {
      this.#leastBefore = this.#least;
      this.#least = Number.POSITIVE_INFINITY;
      this.#windowFromMs = receivedMs;
    }
    const lagMs = receivedMs - sentMs;
    this.#least = Math.min(this.#least, lagMs);
    return lagMs - Math.min(this.#least, this.#leastBefore);
  }
}
