/**
 * Picks one of `count` candidates by cost. Every function answers an index into `costs`, or -1 when
 * no cost is finite; a non-finite cost never wins. Draws come from `random` in candidate order, so
 * one seed gives the same picks on every machine.
 */
import type { Random } from "../base/random.ts";

/** Lowest cost; exact ties uniformly at random (the n-th tied one replaces with chance 1/n). */
export function pickLowest(costs: Float64Array, count: number, random: Random): number {
  let best = Number.POSITIVE_INFINITY;
  let picked = -1;
  let tied = 1;
  for (let at = 0; at < count; at++) {
    const cost = costs[at]!;
    if (cost > best) continue;
    if (cost < best) {
      // A cost of -Infinity is below everything and still no candidate.
      if (cost === Number.NEGATIVE_INFINITY) continue;
      best = cost;
      picked = at;
      tied = 1;
    } else if (cost === best && picked >= 0) {
      tied++;
      if (Math.floor(random() * tied) === 0) picked = at;
    }
  }
  return picked;
}

/**
 * Samples by softmax: `p_i ~ exp(-(cost_i - min) / ((max - min) * temperature))`, uniform when all
 * are equal. `weights` is scratch of at least `count`.
 */
export function pickSoftmax(
  costs: Float64Array,
  count: number,
  temperature: number,
  random: Random,
  weights: Float64Array,
): number {
  const total = softmaxWeights(costs, count, temperature, weights);
  const drawn = random() * total;
  let sum = 0;
  let last = -1;
  for (let at = 0; at < count; at++) {
    const weight = weights[at]!;
    if (weight === 0) continue;
    sum += weight;
    last = at;
    if (sum > drawn) return at;
  }
  return last;
}

/** Writes the unnormalised softmax weights (1 at the lowest cost) and answers their sum. */
export function softmaxWeights(
  costs: Float64Array,
  count: number,
  temperature: number,
  weights: Float64Array,
): number {
  let min = Number.POSITIVE_INFINITY;
  let max = Number.NEGATIVE_INFINITY;
  for (let at = 0; at < count; at++) {
    const cost = costs[at]!;
    if (!Number.isFinite(cost)) continue;
    if (cost < min) min = cost;
    if (cost > max) max = cost;
  }
  // Two finite costs may be further apart than the largest double; halves are not.
  const unit = max - min === Number.POSITIVE_INFINITY ? 0.5 : 1;
  const steepness = 1 / ((max * unit - min * unit) * temperature);
  let total = 0;
  for (let at = 0; at < count; at++) {
    const cost = costs[at]!;
    let weight = 0;
    if (cost === min) weight = 1;
    else if (Number.isFinite(cost)) weight = Math.exp((min * unit - cost * unit) * steepness);
    weights[at] = weight;
    total += weight;
  }
  return total;
}

/** Uniform over the candidates, costs ignored. */
export function pickRandom(count: number, random: Random): number {
  return count === 0 ? -1 : Math.floor(random() * count);
}
