/** What a candidate's cost is made of, by cost mode; for explanations. */
export type CostTerms = BlocksTerms | LatencyTerms;

/** Blocks of prompt. */
export interface BlocksTerms {
  readonly mode: "blocks";
  readonly rawPrefillBlocks: number;
  readonly creditDecay: number;
  readonly overlapCreditBlocks: number;
  readonly potentialDecodeBlocks: number;
  readonly activeRequestTerm: number;
  readonly taintFactor: number;
  readonly cost: number;
}

/** Milliseconds and tokens; the formulas are those of `latency-cost.ts`. */
export interface LatencyTerms {
  readonly mode: "latency";
  readonly cachedTokens: number;
  readonly uncachedTokens: number;
  /** Done of the queue's head since its pass began. */
  readonly progressTokens: number;
  /** Left to compute before this request. */
  readonly queuedTokens: number;
  readonly passes: number;
  readonly prefillMs: number;
  readonly ownPrefillMs: number;
  /** Loading of blocks from slower tiers. */
  readonly tierMs: number;
  /** One decode step without the request. */
  readonly decodeStepMs: number;
  /** One decode step with it: the predicted ITL. */
  readonly itlMs: number;
  /** The predicted TTFT. */
  readonly ttftMs: number;
  /** By their weights: prefill that others wait for, decode time taken from them, full KV memory. */
  readonly delayMs: number;
  readonly harmMs: number;
  readonly fullMs: number;
  readonly taintFactor: number;
  readonly prefillGpuMs: number;
  readonly decodeGpuMs: number;
  /** Under a target: a first token that was expected in time would be late. */
  readonly breaksPromise: boolean;
  /** Under a target: how long it would wait in the router with its worker chosen. */
  readonly heldMs: number;
  /** Under a target: for holding the worker that would be free first. */
  readonly frontGpuMs: number;
  /** The weighted sum, before taints. */
  readonly costMs: number;
  /** What is compared: the weighted sum with taints, or the best-fit score and `frontGpuMs`. */
  readonly cost: number;
}
