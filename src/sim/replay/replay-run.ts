/**
 * What one run leaves behind, a column per fact and a place per request.
 *
 *   place          0       1       2
 *   arrivalMs   [  0.0,  12.5,   13.0 ]
 *   firstMs     [ 31.2,  80.0,    NaN ]   NaN = never came
 *   lastMs      [ 90.1,  99.3,    NaN ]   latest token
 *   tokens      [    9,     3,      0 ]   output tokens that came
 *   wanted      [    9,     7,      5 ]   output tokens of a whole answer
 *   cached      [  512,     0,      0 ]   prompt tokens the engine found in its cache
 *   worker      [    0,     3,     -1 ]
 */
import { LatencyHistogram } from "../latency-histogram.ts";

/** Width of the windows in which imbalance is averaged. */
export const windowMs = 30_000;

export class ReplayRun {
  readonly count: number;
  readonly arrivalMs: Float64Array;
  readonly firstMs: Float64Array;
  readonly lastMs: Float64Array;
  readonly tokens: Float64Array;
  readonly wanted: Float64Array;
  readonly cached: Float64Array;
  readonly worker: Int32Array;
  /** First tokens as the router predicted them, ms from the arrival; only with `predictions`. */
  readonly predictedMs: Float64Array;
  readonly pool: Int32Array;
  /** Gaps between the tokens of an answer. */
  readonly itl = new LatencyHistogram();
  /** Computed prompt tokens by window, then by engine. */
  readonly windows: Float64Array[] = [];
  readonly engines: EngineTotals[] = [];
  rejected = 0;
  endMs = 0;
  /** Wall time of each decision in ms; empty unless the run was told to take times. */
  readonly decisionMs: number[] = [];

  constructor(count: number) {
    this.count = count;
    this.arrivalMs = new Float64Array(count).fill(Number.NaN);
    this.firstMs = new Float64Array(count).fill(Number.NaN);
    this.lastMs = new Float64Array(count).fill(Number.NaN);
    this.tokens = new Float64Array(count);
    this.wanted = new Float64Array(count);
    this.cached = new Float64Array(count);
    this.worker = new Int32Array(count).fill(-1);
    this.predictedMs = new Float64Array(count).fill(Number.NaN);
    this.pool = new Int32Array(count);
  }

  /** All tokens of the answer came. */
  isWhole(place: number): boolean {
    return this.tokens[place] === this.wanted[place];
  }
}

export interface EngineTotals {
  readonly prefillMs: number;
  readonly computedTokens: number;
  readonly preemptions: number;
  readonly evictedBlocks: number;
}
