/**
 * How long a worker's engine takes, learnt from what its router sees.
 *
 *   P = a + b * tokens / 10^3 + c * attention / 10^6      ms of one prefill pass
 *   D = d0 + d1 * K / C + d2 * n                          ms of one decode step
 *
 *   profile ──prior──▶ fit of the shape ──prior──▶ fit of the worker ──clamp──▶ coefficients
 *                             ▲                          ▲
 *                             └──────── observation ─────┘
 *
 * A shape is what engines of one kind share (model, engine, GPU layout); its workers differ little,
 * so a worker without observations follows its shape. Until the shape has seen one the profile
 * itself answers, and again for a worker whose predictions are worse than useless.
 *
 * Each fit is a ridge regression over forgotten sums: `theta = solve(A + R, b + R * prior)` with
 * `R = pull * diag(1 / sd^2)`. R enters every solve anew, so forgetting cannot wind it up.
 */
import type { DecodeWork, PerfModel } from "./perf-model.ts";

/** What an engine's router needs to know of it beside its speed. */
export interface EngineLimits {
  /** Tokens that fit its KV blocks; Infinity = unknown. */
  readonly capacityTokens: number;
  /** Prompt tokens of one pass. */
  readonly batchTokens: number;
}

export type Coefficients = readonly [number, number, number];

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

interface FitRules {
  readonly forgetWorker: number;
  readonly forgetShape: number;
  /** Predictions below this count as this when their error is weighed, ms. */
  readonly predictionMsMin: number;
  /** Least share of the prior mean that each coefficient may have. */
  readonly shareMin: Coefficients;
}

const prefillRules: FitRules = {
  forgetWorker: 0.98,
  forgetShape: 0.995,
  predictionMsMin: 20,
  shareMin: [1 / 8, 1 / 8, 0],
};
const decodeRules: FitRules = {
  forgetWorker: 0.99,
  forgetShape: 0.998,
  predictionMsMin: 2,
  shareMin: [1 / 8, 1 / 8, 1 / 8],
};

const shareMax = 8;
const clip = 4;
const relativeNoise = 0.15;
/** How strongly a worker is held to its shape, and how far it may be from it. */
const workerPull = 4;
const workerSdShare = 0.3;
const sdMin = 0.001;
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
    if (!this.#isFitted()) return this.shape.profile.prefillMs(tokens, attention);
    const { theta } = this.prefill;
    return theta[0]! + theta[1]! * (tokens / 1e3) + theta[2]! * (attention / 1e6);
  }

  /** Time of one decode step of `sequences` > 0, ms. */
  decodeMs(sequences: number, activeKvTokens: number): number {
    const { shape } = this;
    if (shape.decode.observations === 0) {
      const work = this.#work;
      work.sequences = sequences;
      work.activeKvTokens = activeKvTokens;
      work.contextTokens = activeKvTokens;
      return shape.profile.decodeMs(work);
    }
    const { theta } = this.decode;
    const usage = activeKvTokens / shape.limits.capacityTokens;
    return theta[0]! + theta[1]! * usage + theta[2]! * sequences;
  }

  observePeriod({ passes, tokens, attention, ms }: PrefillPeriod): void {
    if (!this.shape.learns) return;
    const x = [passes, tokens / 1e3, attention / 1e6] as const;
    const predictedMs = this.prefill.observe(x, ms);
    this.#errors[this.#periods++ % errorsKept] = Math.abs(predictedMs - ms) / ms;
    this.#medianError = median(this.#errors.slice(0, Math.min(this.#periods, errorsKept)));
  }

  observeGap({ sequences, activeKvTokens, ms }: DecodeGap): void {
    if (!this.shape.learns) return;
    this.decode.observe([1, activeKvTokens / this.shape.limits.capacityTokens, sequences], ms);
  }

  /** Takes the worker out of its shape; what the shape learnt from it stays. */
  leave(): void {
    this.prefill.leave();
    this.decode.leave();
  }

  /** A median over few periods would still hold the errors of the profile. */
  #isFitted(): boolean {
    if (this.shape.prefill.observations === 0) return false;
    return this.#periods < errorsKept || this.#medianError <= medianErrorMax;
  }
}

/** The fit of a shape: prior of its workers' fits. */
class SharedFit {
  readonly rules: FitRules;
  readonly mean: Coefficients;
  readonly sums: FitSums;
  readonly theta: Float64Array;
  readonly members: WorkerFit[] = [];
  observations = 0;

  readonly #sd: Coefficients;

  constructor(rules: FitRules, mean: Coefficients, sd: Coefficients) {
    this.rules = rules;
    this.mean = mean;
    this.#sd = sd;
    this.sums = new FitSums(rules.forgetShape);
    this.theta = Float64Array.from(mean);
  }

  join(): WorkerFit {
    const member = new WorkerFit(this);
    this.members.push(member);
    return member;
  }

  /** The prior of every worker moves with the shape. */
  solve(): void {
    this.sums.solve({ mean: this.mean, sd: this.#sd, pull: 1 }, this.theta);
    this.clamp(this.theta);
    for (const member of this.members) member.solve();
  }

  clamp(theta: Float64Array): void {
    const { mean, rules } = this;
    for (let at = 0; at < 3; at++) {
      const low = mean[at]! * rules.shareMin[at]!;
      theta[at] = Math.min(Math.max(theta[at]!, low), mean[at]! * shareMax);
    }
  }
}

class WorkerFit {
  readonly theta: Float64Array;

  readonly #shared: SharedFit;
  readonly #sums: FitSums;
  readonly #sd = new Float64Array(3);

  constructor(shared: SharedFit) {
    this.#shared = shared;
    this.#sums = new FitSums(shared.rules.forgetWorker);
    this.theta = shared.theta.slice();
  }

  /** Learns that `x` took `ms` and answers what had been predicted, ms. */
  observe(x: Coefficients, ms: number): number {
    const shared = this.#shared;
    const { theta } = this;
    const predictedMs = theta[0]! * x[0] + theta[1]! * x[1] + theta[2]! * x[2];
    const clipped = Math.min(Math.max(ms, predictedMs / clip), predictedMs * clip);
    const noise = relativeNoise * Math.max(predictedMs, shared.rules.predictionMsMin);
    const weight = 1 / (noise * noise);
    this.#sums.add(x, clipped, weight);
    shared.sums.add(x, clipped, weight);
    shared.observations++;
    shared.solve();
    return predictedMs;
  }

  solve(): void {
    const mean = this.#shared.theta;
    const sd = this.#sd;
    for (let at = 0; at < 3; at++) sd[at] = Math.max(sdMin, workerSdShare * mean[at]!);
    this.#sums.solve({ mean, sd, pull: workerPull }, this.theta);
    this.#shared.clamp(this.theta);
  }

  leave(): void {
    const { members } = this.#shared;
    members.splice(members.indexOf(this), 1);
  }
}

interface Prior {
  readonly mean: ArrayLike<number>;
  readonly sd: ArrayLike<number>;
  readonly pull: number;
}

/** Weighted sums of one regression in three coefficients. */
class FitSums {
  readonly #forget: number;
  /** Upper triangle of the sum of x xT: 00 01 02 11 12 22. */
  readonly #a = new Float64Array(6);
  readonly #b = new Float64Array(3);

  constructor(forget: number) {
    this.#forget = forget;
  }

  add([x, y, z]: Coefficients, ms: number, weight: number): void {
    const products = [x * x, x * y, x * z, y * y, y * z, z * z];
    for (let at = 0; at < 6; at++)
      this.#a[at] = this.#forget * this.#a[at]! + weight * products[at]!;
    const sides = [x * ms, y * ms, z * ms];
    for (let at = 0; at < 3; at++) this.#b[at] = this.#forget * this.#b[at]! + weight * sides[at]!;
  }

  /** Writes the ridge estimate under `prior` into `theta`: a symmetric 3 x 3 solve by LDL. */
  solve({ mean, sd, pull }: Prior, theta: Float64Array): void {
    const r0 = pull / (sd[0]! * sd[0]!);
    const r1 = pull / (sd[1]! * sd[1]!);
    const r2 = pull / (sd[2]! * sd[2]!);
    const a = this.#a;
    const b = this.#b;
    const d0 = a[0]! + r0;
    const l10 = a[1]! / d0;
    const l20 = a[2]! / d0;
    const d1 = a[3]! + r1 - l10 * a[1]!;
    const l21 = (a[4]! - l10 * a[2]!) / d1;
    const d2 = a[5]! + r2 - l20 * a[2]! - l21 * l21 * d1;
    const y0 = b[0]! + r0 * mean[0]!;
    const y1 = b[1]! + r1 * mean[1]! - l10 * y0;
    const y2 = b[2]! + r2 * mean[2]! - l20 * y0 - l21 * y1;
    theta[2] = y2 / d2;
    theta[1] = y1 / d1 - l21 * theta[2]!;
    theta[0] = y0 / d0 - l10 * theta[1]! - l20 * theta[2]!;
  }
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
