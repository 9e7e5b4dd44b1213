/**
 * Tells when latencies have left the band around their reference for good, and when they are back.
 * Two CUSUMs (Page 1954) on the logarithm of the latency:
 *
 *   samples ──▶ batches ──▶ learning: mean, spread of the first `referenceBatches`
 *               (5 s)   └─▶ z = (batch - mean) / spread
 *
 *   in_band   up   = max(0, up + (z - edge))     up   >= threshold ──▶ slower
 *             down = max(0, down + (-z - edge))  down >= threshold ──▶ faster
 *   slower    back = max(0, back + (edge - z))   back >= threshold ──▶ in_band   (faster: -z)
 *
 * - A batch is the mean of what came within 5 s, so that one stall, which delays many requests at
 *   once, is one observation. A sparse stream has one sample a batch.
 * - `spread` is the standard deviation of the batches widened by their lag-1 correlation, since a
 *   queue makes neighbours alike; `edge` is the band in units of it, and at least 0.5.
 * - What one batch adds or takes is at most `evidenceMax`: six batches at least make a change.
 */

export const driftLimits = {
  batchMs: 5000,
  referenceBatches: 120,
  /** Latencies within this factor of the reference are in the band. */
  bandRatio: 1.25,
  edgeMin: 0.5,
  threshold: 12,
  evidenceMax: 2,
  /** Least spread of log latency that is believed; 0.05 is 5 %. */
  spreadMin: 0.05,
  correlationMax: 0.8,
} as const;

export type DriftState = "learning" | "in_band" | "slower" | "faster";

export class DriftDetector {
  #state: DriftState = "learning";
  /** The batch that is open. */
  #batchStartMs = 0;
  #batchSum = 0;
  #batchCount = 0;
  /** Welford's mean and squares of the reference, the products of neighbours, and the last batch. */
  #learnt = 0;
  #mean = 0;
  #squares = 0;
  #first = 0;
  #last = 0;
  #neighbours = 0;
  /** Of the reference once it is learnt. */
  #spread = 1;
  #edge = 1;
  /** Evidence: leaving upwards and downwards, or (in `#up`) coming back. */
  #up = 0;
  #down = 0;
  /** The batches since there was no evidence. */
  #runSum = 0;
  #runCount = 0;
  #currentMs = Number.NaN;

  get state(): DriftState {
    return this.#state;
  }

  /** Geometric mean of the reference in ms; NaN while it is being learnt. */
  get referenceMs(): number {
    return this.#state === "learning" ? Number.NaN : Math.exp(this.#mean);
  }

  /** Geometric mean in ms of what led to the last change of state; NaN before the first. */
  get currentMs(): number {
    return this.#currentMs;
  }

  /** Takes a latency measured at `nowMs`; answers the state when it left the band or came back. */
  add(latencyMs: number, nowMs: number): DriftState | undefined {
    const closed = this.#batchCount > 0 && nowMs - this.#batchStartMs >= driftLimits.batchMs;
    const changed = closed ? this.#take(this.#batchSum / this.#batchCount) : undefined;
    if (closed || this.#batchCount === 0) {
      this.#batchStartMs = nowMs;
      this.#batchSum = 0;
      this.#batchCount = 0;
    }
    this.#batchSum += Math.log(Math.max(latencyMs, latencyMinMs));
    this.#batchCount++;
    return changed;
  }

  #take(batch: number): DriftState | undefined {
    if (this.#state === "learning") return this.#learn(batch);
    const z = (batch - this.#mean) / this.#spread;
    if (this.#up === 0 && this.#down === 0) {
      this.#runSum = 0;
      this.#runCount = 0;
    }
    this.#runSum += batch;
    this.#runCount++;
    if (this.#state === "in_band") {
      this.#up = gathered(this.#up, z - this.#edge);
      this.#down = gathered(this.#down, -z - this.#edge);
      if (this.#up >= driftLimits.threshold) return this.#become("slower");
      return this.#down >= driftLimits.threshold ? this.#become("faster") : undefined;
    }
    this.#up = gathered(this.#up, this.#edge - (this.#state === "slower" ? z : -z));
    return this.#up >= driftLimits.threshold ? this.#become("in_band") : undefined;
  }

  #learn(batch: number): undefined {
    if (this.#learnt === 0) this.#first = batch;
    else this.#neighbours += this.#last * batch;
    this.#last = batch;
    this.#learnt++;
    const off = batch - this.#mean;
    this.#mean += off / this.#learnt;
    this.#squares += off * (batch - this.#mean);
    if (this.#learnt < driftLimits.referenceBatches) return undefined;
    const { bandRatio, correlationMax, edgeMin, spreadMin } = driftLimits;
    const correlation = Math.min(Math.max(this.#lagOne(), 0), correlationMax);
    const deviation = Math.sqrt(this.#squares / (this.#learnt - 1));
    const widened = deviation * Math.sqrt((1 + correlation) / (1 - correlation));
    this.#spread = Math.max(widened, spreadMin);
    this.#edge = Math.max(Math.log(bandRatio) / this.#spread, edgeMin);
    this.#become("in_band");
    return undefined;
  }

  /** Correlation of neighbouring batches of the reference. */
  #lagOne(): number {
    const count = this.#learnt;
    const inner = 2 * count * this.#mean - this.#first - this.#last;
    const covariance = this.#neighbours - this.#mean * inner + (count - 1) * this.#mean ** 2;
    return this.#squares > 0 ? covariance / this.#squares : 0;
  }

  #become(state: DriftState): DriftState {
    this.#state = state;
    if (this.#runCount > 0) this.#currentMs = Math.exp(this.#runSum / this.#runCount);
    this.#up = 0;
    this.#down = 0;
    return state;
  }
}

/** Shorter latencies have a logarithm that means nothing. */
const latencyMinMs = 0.01;

function gathered(evidence: number, more: number): number {
  const { evidenceMax } = driftLimits;
  return Math.max(0, evidence + Math.min(Math.max(more, -evidenceMax), evidenceMax));
}
