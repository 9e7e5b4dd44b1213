/** Gaps between the tokens of one answer, counted into the buckets of the standard ITL histogram. */
import type { ItlSummary } from "../protocol/notices.ts";
import { buckets } from "./metric-buckets.ts";

/** Upper bounds in ms; one more bucket takes what is above the last. */
export const itlBoundsMs: readonly number[] = buckets.itl.map((seconds) => seconds * 1000);

export class ItlRecorder {
  readonly #counts: number[] = new Array<number>(itlBoundsMs.length + 1).fill(0);
  #count = 0;
  #sumMs = 0;

  /** `tokens` came together `gapMs` after the token before: each took an equal share. */
  observe(gapMs: number, tokens: number): void {
    const shareMs = gapMs / tokens;
    let bucket = 0;
    while (bucket < itlBoundsMs.length && shareMs > (itlBoundsMs[bucket] as number)) bucket += 1;
    this.#counts[bucket] = (this.#counts[bucket] ?? 0) + tokens;
    this.#count += tokens;
    this.#sumMs += gapMs;
  }

  summary(): ItlSummary {
    return { count: this.#count, sum_ms: this.#sumMs, buckets: [...this.#counts] };
  }
}
