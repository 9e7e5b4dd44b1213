/**
 * How long a worker's engine takes, learnt from what its router sees.
 *
 *   P = a + b * tokens / 10^3 + c * attention / 10^6 + w * bend      ms of one prefill pass
 *   D = d0 + d1 * K / C + d2 * n + w * bend                          ms of one decode step
 *
 * `bend` is what the profile has beyond such a line (`latency-fit.ts`): 0 where it is one. A shape
 * is what engines of one kind share (model, engine, GPU layout); its workers differ little, so a
 * worker whose observations say nothing else follows its shape. Until the shape has seen one the
 * profile itself answers, and again for a worker whose predictions are worse than useless.
 */
import {
  type Coefficients,
  type FitPoint,
  type FitRules,
  SharedFit,
  sdMin,
  type WorkerFit,
} from "./latency-fit.ts";
import type { DecodeWork, PerfModel } from "./perf-model.ts";

/** What an engine's router needs to know of it beside its speed. */
export interface EngineLimits {
  /** Tokens that fit its KV blocks; Infinity = unknown. */
  readonly capacityTokens: number;
  /** Prompt tokens of one pass. */
  readonly batchTokens: number;
}

/** Where predictions come from: fits, the worker's own profile, or the one assumed for it. */
export type ModelSource = "calibrated" | "profile" | "default";

/** Observed busy period of a prefill queue, without its decode work. */
export interface PrefillPeriod {
  readonly passes: number;
  readonly tokens: number;
  /** Sum of u * (c + u / 2) over the prompts, u computed after c cached tokens. */
  readonly attention: number;
  readonly ms: number;
}

/** Observed mean time between two tokens of a stream while nothing was prefilled. */
export interface DecodeGap {
  readonly sequences: number;
  readonly activeKvTokens: number;
  readonly ms: number;
}

const prefillRules: FitRules = {
  forgetWorker: 0.98,
  forgetShape: 0.995,
  predictionMsMin: 20,
  shareMin: [1 / 8, 1 / 8, 0, 0],
};
const decodeRules: FitRules = {
  forgetWorker: 0.99,
  forgetShape: 0.998,
  predictionMsMin: 2,
  shareMin: [1 / 8, 1 / 8, 1 / 8, 0],
};

/** Attention coefficient of a profile that has none, ms per 10^6 token^2. */
const attentionUnknown = 0.84;
/** Decode cost of one more sequence, ms; profiles hardly tell it. */
const sequencePrior: { readonly mean: number; readonly sd: number } = { mean: 0.02, sd: 0.1 };
/** Periods whose errors are kept, and the median above which the fit is not believed. */
const errorsKept = 64;
const medianErrorMax = 0.5;
/** Mean context of a sequence when a profile is asked for its decode prior. */
const contextTokensTypical = 2048;

/** Calibration that the workers of one shape share. */
export class ShapeLatency {
  readonly profile: PerfModel;
  readonly limits: EngineLimits;
  readonly prefill: SharedFit;
  readonly decode: SharedFit;
  /** True when nobody gave a profile for these engines. */
  readonly assumed: boolean;
  /** False: the profile answers for ever, and observations change nothing. */
  readonly learns: boolean;

  constructor(profile: PerfModel, limits: EngineLimits, assumed = false, learns = true) {
    this.profile = profile;
    this.limits = limits;
    this.assumed = assumed;
    this.learns = learns;
    const prefillMean = prefillPrior(profile, limits.batchTokens);
    this.prefill = new SharedFit(prefillRules, prefillMean, prefillMean);
    const [d0, d1] = decodePrior(profile, limits.capacityTokens);
    const { mean, sd } = sequencePrior;
    this.decode = new SharedFit(decodeRules, [d0, d1, mean], [d0, d1, sd]);
  }
}

/** Predictions for one worker; valid until the next observation on its shape. */
export class WorkerLatency {
  readonly shape: ShapeLatency;
  readonly prefill: WorkerFit;
  readonly decode: WorkerFit;

  readonly #errors = new Float64Array(errorsKept);
  readonly #work: { -readonly [Field in keyof DecodeWork]: DecodeWork[Field] };
  #periods = 0;
  #medianError = 0;

  constructor(shape: ShapeLatency) {
    this.shape = shape;
    this.prefill = shape.prefill.join();
    this.decode = shape.decode.join();
    const capacityKvTokens = shape.limits.capacityTokens;
    this.#work = { sequences: 0, activeKvTokens: 0, capacityKvTokens, contextTokens: 0 };
  }

  /** Periods observed on this worker. */
  get periods(): number {
    return this.#periods;
  }

  /** Median of |predicted - observed| / observed over the last periods; 0 before the first. */
  get medianError(): number {
    return this.#medianError;
  }

  get source(): ModelSource {
    if (this.#isFitted()) return "calibrated";
    return this.shape.assumed ? "default" : "profile";
  }

  /** Time of one pass over `tokens` new prompt tokens, ms; `attention` as in `PrefillPeriod`. */
  prefillMs(tokens: number, attention: number): number {
    if (tokens === 0) return 0;
    const profileMs = this.shape.profile.prefillMs(tokens, attention);
    if (!this.#isFitted()) return profileMs;
    return this.prefill.predictMs(1, tokens / 1e3, attention / 1e6, profileMs);
  }

  /** Time of one decode step of `sequences` > 0, ms. */
  decodeMs(sequences: number, activeKvTokens: number): number {
    const { shape } = this;
    const profileMs = this.#profileDecodeMs(sequences, activeKvTokens);
    if (shape.decode.observations === 0) return profileMs;
    const usage = activeKvTokens / shape.limits.capacityTokens;
    return this.decode.predictMs(1, usage, sequences, profileMs);
  }

  observePeriod(period: PrefillPeriod): void {
    if (!this.shape.learns) return;
    const { passes, tokens, attention, ms } = period;
    const x = [passes, tokens / 1e3, attention / 1e6] as const;
    const profileMs = profilePeriodMs(this.shape, period);
    const predictedMs = this.prefill.predictMs(...x, profileMs);
    this.prefill.observe(bentPoint(this.shape.prefill, x, profileMs), ms);
    this.#errors[this.#periods++ % errorsKept] = Math.abs(predictedMs - ms) / ms;
    this.#medianError = median(this.#errors.slice(0, Math.min(this.#periods, errorsKept)));
  }

  observeGap({ sequences, activeKvTokens, ms }: DecodeGap): void {
    if (!this.shape.learns) return;
    const { decode, limits } = this.shape;
    const x = [1, activeKvTokens / limits.capacityTokens, sequences] as const;
    const profileMs = this.#profileDecodeMs(sequences, activeKvTokens);
    this.decode.observe(bentPoint(decode, x, profileMs), ms);
  }

  /** Takes the worker out of its shape; what the shape learnt from it stays. */
  leave(): void {
    this.prefill.leave();
    this.decode.leave();
  }

  #profileDecodeMs(sequences: number, activeKvTokens: number): number {
    const work = this.#work;
    work.sequences = sequences;
    work.activeKvTokens = activeKvTokens;
    work.contextTokens = activeKvTokens;
    return this.shape.profile.decodeMs(work);
  }

  /** A median over few periods would still hold the errors of the profile. */
  #isFitted(): boolean {
    if (this.shape.prefill.observations === 0) return false;
    return this.#periods < errorsKept || this.#medianError <= medianErrorMax;
  }
}

/** The profile's time for a period: full passes, and equal shares of the rest in the others. */
function profilePeriodMs({ profile, limits }: ShapeLatency, period: PrefillPeriod): number {
  const { passes, tokens, attention } = period;
  const { batchTokens } = limits;
  const perToken = attention / tokens;
  const fullPasses = Math.min(Math.floor(tokens / batchTokens), passes);
  const fullMs = fullPasses * profile.prefillMs(batchTokens, perToken * batchTokens);
  const others = passes - fullPasses;
  if (others === 0) return fullMs;
  const rest = (tokens - fullPasses * batchTokens) / others;
  return fullMs + others * profile.prefillMs(rest, perToken * rest);
}

function bentPoint({ mean }: SharedFit, [x, y, z]: Coefficients, profileMs: number): FitPoint {
  return [x, y, z, profileMs - (mean[0] * x + mean[1] * y + mean[2] * z)];
}

/** Coefficients a, b, c that stand for a profile whose passes hold up to `batchTokens`. */
export function prefillPrior(profile: PerfModel, batchTokens: number): Coefficients {
  const a = Math.max(profile.prefillMs(1, 0), sdMin);
  const full = profile.prefillMs(batchTokens, 0) - a;
  const fullAttention = (batchTokens * batchTokens) / 2 / 1e6;
  const known = profile.prefillMs(1, 1e6) - profile.prefillMs(1, 0);
  if (known > 0) return [a, Math.max(full / (batchTokens / 1e3), sdMin), known];
  // Of an engine too fast for the usual coefficient, attention is half of a full pass at most.
  const c = Math.min(attentionUnknown, Math.max(full / 2 / fullAttention, sdMin));
  return [a, Math.max((full - c * fullAttention) / (batchTokens / 1e3), sdMin), c];
}

/** Coefficients d0, d1 that stand for a profile, without what one more sequence costs. */
function decodePrior(profile: PerfModel, capacityTokens: number): readonly [number, number] {
  const stepMs = (sequences: number, tokens: number): number =>
    profile.decodeMs({
      sequences,
      activeKvTokens: tokens,
      capacityKvTokens: capacityTokens,
      contextTokens: tokens,
    });
  if (!Number.isFinite(capacityTokens)) return [Math.max(stepMs(1, 0), sdMin), sdMin];
  const half = capacityTokens / 2;
  const sequences = Math.max(1, Math.ceil(half / contextTokensTypical));
  const d0 = Math.max(stepMs(1, 0), sdMin);
  const sequencesMs = (sequences - 1) * (stepMs(2, 0) - stepMs(1, 0));
  return [d0, Math.max((stepMs(sequences, half) - sequencesMs - d0) / 0.5, sdMin)];
}

/** Sorts `values`. */
function median(values: Float64Array): number {
  values.sort();
  const middle = values.length >> 1;
  if (values.length % 2 === 1) return values[middle]!;
  return (values[middle - 1]! + values[middle]!) / 2;
}
