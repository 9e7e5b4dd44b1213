/**
 * Regression of engine times that the workers of a shape share.
 *
 *   y = theta0 * x0 + theta1 * x1 + theta2 * x2 + theta3 * bend        ms
 *   bend = profile's y - mean . (x0, x1, x2)
 *
 * `mean` stands for the profile as a line, `bend` is what the profile has beyond it. Prior of theta
 * is (mean, 1): the profile itself. A profile that is right so stays as it is, one that is wrong by
 * a factor is scaled whole, and of one that is wrong in form the line is learnt without its bend.
 *
 *   (mean, 1) ──prior──▶ fit of the shape ──prior──▶ fit of the worker ──clamp──▶ theta
 *                                ▲                           ▲
 *                                └──────── observation ──────┘
 *
 * Each fit is a ridge regression over forgotten sums: `theta = solve(A + R, b + R * prior)` with
 * `R = pull * diag(1 / sd^2)`. R enters every solve anew, so forgetting cannot wind it up.
 *
 * A worker predicts with its shape's theta until its own observations tell it apart: the departure
 * v = theta(worker) - theta(shape) counts by the share 1 - evidenceMin / (v . A v), or not at all.
 */

export type Coefficients = readonly [number, number, number];
/** x0, x1, x2 and the bend there. */
export type FitPoint = readonly [number, number, number, number];

export interface FitRules {
  readonly forgetWorker: number;
  readonly forgetShape: number;
  /** Predictions below this count as this when their error is weighed, ms. */
  readonly predictionMsMin: number;
  /** Least share of the prior mean that each coefficient may have. */
  readonly shareMin: FitPoint;
}

const places = 4;
const shareMax = 8;
const clip = 4;
const relativeNoise = 0.15;
/** How strongly a worker is held to its shape, and how far it may be from it. */
const workerPull = 4;
const workerSdShare = 0.3;
/** Squares of a departure, in noise units, that chance explains: over 3 sigma in 4 coefficients. */
const evidenceMin = 12;
export const sdMin = 0.001;

/** The fit of a shape: prior of its workers' fits. */
export class SharedFit {
  readonly rules: FitRules;
  readonly mean: Coefficients;
  readonly theta: Float64Array;
  observations = 0;

  readonly #prior: Prior;
  readonly #sums: FitSums;
  readonly #members: WorkerFit[] = [];

  constructor(rules: FitRules, mean: Coefficients, sd: Coefficients) {
    this.rules = rules;
    this.mean = mean;
    this.#prior = { mean: [...mean, 1], sd: [...sd, 1], pull: 1 };
    this.#sums = new FitSums(rules.forgetShape);
    this.theta = Float64Array.from(this.#prior.mean);
  }

  join(): WorkerFit {
    const member = new WorkerFit(this);
    this.#members.push(member);
    return member;
  }

  leave(member: WorkerFit): void {
    this.#members.splice(this.#members.indexOf(member), 1);
  }

  /** The prior of every worker moves with the shape. */
  learn(x: FitPoint, ms: number, weight: number): void {
    this.observations++;
    this.#sums.add(x, ms, weight);
    this.#sums.solve(this.#prior, this.theta);
    this.clamp(this.theta);
    for (const member of this.#members) member.solve();
  }

  clamp(theta: Float64Array): void {
    const { mean } = this.#prior;
    for (let at = 0; at < places; at++) {
      const low = mean[at]! * this.rules.shareMin[at]!;
      theta[at] = Math.min(Math.max(theta[at]!, low), mean[at]! * shareMax);
    }
  }
}

export class WorkerFit {
  readonly theta: Float64Array;

  /** Prediction = used0 * x0 + used1 * x1 + used2 * x2 + used3 * the profile's time. */
  readonly #used: Float64Array = Float64Array.of(0, 0, 0, 1);
  readonly #shared: SharedFit;
  readonly #sums: FitSums;
  readonly #sd = new Float64Array(places);

  constructor(shared: SharedFit) {
    this.#shared = shared;
    this.#sums = new FitSums(shared.rules.forgetWorker);
    this.theta = shared.theta.slice();
    this.#use();
  }

  /** Time at (x0, x1, x2), where the profile says `profileMs`, ms; at least an eighth of that. */
  predictMs(x0: number, x1: number, x2: number, profileMs: number): number {
    const used = this.#used;
    const ms = used[0]! * x0 + used[1]! * x1 + used[2]! * x2 + used[3]! * profileMs;
    return Math.max(ms, profileMs / shareMax);
  }

  /** Learns that `x` took `ms`. */
  observe(x: FitPoint, ms: number): void {
    const shared = this.#shared;
    const predictedMs = product(this.theta, x);
    const clipped = Math.min(Math.max(ms, predictedMs / clip), predictedMs * clip);
    const noise = relativeNoise * Math.max(predictedMs, shared.rules.predictionMsMin);
    const weight = 1 / (noise * noise);
    this.#sums.add(x, clipped, weight);
    shared.learn(x, clipped, weight);
  }

  solve(): void {
    const mean = this.#shared.theta;
    const sd = this.#sd;
    for (let at = 0; at < places; at++) sd[at] = Math.max(sdMin, workerSdShare * mean[at]!);
    this.#sums.solve({ mean, sd, pull: workerPull }, this.theta);
    this.#shared.clamp(this.theta);
    this.#use();
  }

  leave(): void {
    this.#shared.leave(this);
  }

  #use(): void {
    const { theta: common, mean } = this.#shared;
    const { theta } = this;
    const used = this.#used;
    for (let at = 0; at < places; at++) used[at] = theta[at]! - common[at]!;
    const evidence = this.#sums.squares(used);
    const share = evidence > evidenceMin ? 1 - evidenceMin / evidence : 0;
    for (let at = 0; at < places; at++) used[at] = common[at]! + share * used[at]!;
    for (let at = 0; at < mean.length; at++) used[at]! -= used[3]! * mean[at]!;
  }
}

interface Prior {
  readonly mean: ArrayLike<number>;
  readonly sd: ArrayLike<number>;
  readonly pull: number;
}

/** Weighted sums of one regression. */
class FitSums {
  readonly #forget: number;
  /** Sum of x xT, row by row. */
  readonly #a = new Float64Array(places * places);
  readonly #b = new Float64Array(places);

  constructor(forget: number) {
    this.#forget = forget;
  }

  add(x: FitPoint, ms: number, weight: number): void {
    const a = this.#a;
    for (let row = 0; row < places; row++) {
      const weighed = weight * x[row]!;
      for (let column = 0; column < places; column++) {
        const at = row * places + column;
        a[at] = this.#forget * a[at]! + weighed * x[column]!;
      }
      this.#b[row] = this.#forget * this.#b[row]! + weighed * ms;
    }
  }

  /** v . A v: squares of what `v` changes in the observations, in units of their noise. */
  squares(v: Float64Array): number {
    let sum = 0;
    for (let at = 0; at < places * places; at++) {
      sum += this.#a[at]! * v[at >> 2]! * v[at & 3]!;
    }
    return sum;
  }

  /** Writes the ridge estimate under `prior` into `theta`; A + R needs no pivots. */
  solve({ mean, sd, pull }: Prior, theta: Float64Array): void {
    a.set(this.#a);
    for (let at = 0; at < places; at++) {
      const ridge = pull / (sd[at]! * sd[at]!);
      a[at * places + at]! += ridge;
      theta[at] = this.#b[at]! + ridge * mean[at]!;
    }
    for (let pivot = 0; pivot < places; pivot++) {
      for (let row = pivot + 1; row < places; row++) {
        const factor = a[row * places + pivot]! / a[pivot * places + pivot]!;
        for (let column = pivot; column < places; column++) {
          a[row * places + column]! -= factor * a[pivot * places + column]!;
        }
        theta[row]! -= factor * theta[pivot]!;
      }
    }
    for (let row = places - 1; row >= 0; row--) {
      for (let column = row + 1; column < places; column++) {
        theta[row]! -= a[row * places + column]! * theta[column]!;
      }
      theta[row]! /= a[row * places + row]!;
    }
  }
}

/** Matrix of the solve under way. */
const a = new Float64Array(places * places);

function product(theta: Float64Array, x: FitPoint): number {
  return theta[0]! * x[0] + theta[1]! * x[1] + theta[2]! * x[2] + theta[3]! * x[3];
}
