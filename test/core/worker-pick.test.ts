import { expect, it } from "vitest";
import { mulberry32, type Random } from "../../src/base/random.ts";
import { pickLowest, pickRandom, pickSoftmax, softmaxWeights } from "../../src/core/worker-pick.ts";
import golden from "../golden/softmax.json" with { type: "json" };

function softmaxPick(costs: readonly number[], temperature: number, random: Random): number {
  const scratch = new Float64Array(costs.length);
  return pickSoftmax(Float64Array.from(costs), costs.length, temperature, random, scratch);
}

for (const { name, costs, temperature, expected_probabilities } of golden.probabilities) {
  it(`gives the softmax probabilities of the vectors: ${name}`, () => {
    const weights = new Float64Array(costs.length);
    const total = softmaxWeights(Float64Array.from(costs), costs.length, temperature, weights);
    for (const [at, expected] of expected_probabilities.entries()) {
      expect(Math.abs(weights[at]! / total - expected)).toBeLessThanOrEqual(golden.tolerance);
    }
  });
}

it("samples the index of the vectors, never one of probability 0", () => {
  for (const sample of golden.samples) {
    const probabilities = golden.probabilities.find(({ name }) => name === sample.case)!;
    const { costs, temperature } = probabilities;
    expect(softmaxPick(costs, temperature, () => sample.u)).toBe(sample.expected_index);
  }
});

it("gives a draw on the edge of two candidates to the second", () => {
  expect(softmaxPick([4, 4, 4, 4], 1, () => 0.25)).toBe(1);
  expect(softmaxPick([4, 4, 4, 4], 1, () => 0.75)).toBe(3);
});

it("picks only the lowest cost at temperature 0, and every tied one in time", () => {
  const random = mulberry32(5);
  for (const { costs, expected_minimum_indexes } of golden.greedy_temperature_0) {
    const picked = new Set<number>();
    for (let round = 0; round < 120; round++) {
      picked.add(pickLowest(Float64Array.from(costs), costs.length, random));
    }
    expect([...picked].sort()).toEqual(expected_minimum_indexes);
  }
});

it("replaces a tied candidate by the draws of the vectors", () => {
  for (const { costs, draws, expected_index } of golden.reservoir_ties.cases) {
    let next = 0;
    const random: Random = () => {
      const { bound, draw } = draws[next++]!;
      return (draw + 0.5) / bound;
    };
    expect(pickLowest(Float64Array.from(costs), costs.length, random)).toBe(expected_index);
    expect(next).toBe(draws.length);
  }
});

it("never picks a cost that is not finite", () => {
  const { NaN: nan, POSITIVE_INFINITY: infinity } = Number;
  const costs = [nan, infinity, 4, -infinity, 5];
  const random = mulberry32(6);
  for (let round = 0; round < 50; round++) {
    expect(pickLowest(Float64Array.from(costs), 5, random)).toBe(2);
    expect([2, 4]).toContain(softmaxPick(costs, 1, random));
  }
  expect(pickLowest(Float64Array.of(nan, infinity), 2, random)).toBe(-1);
  expect(softmaxPick([nan, -infinity], 1, random)).toBe(-1);
});

it("samples with the frequencies of the probabilities", () => {
  const random = mulberry32(7);
  const seen = [0, 0, 0];
  const draws = 30_000;
  for (let round = 0; round < draws; round++) seen[softmaxPick([18, 10, 11], 1, random)]!++;
  const expected = golden.probabilities[0]!.expected_probabilities;
  for (const [at, count] of seen.entries()) {
    expect(Math.abs(count / draws - expected[at]!)).toBeLessThan(0.01);
  }
});

it("picks uniformly when costs are ignored", () => {
  const random = mulberry32(8);
  const picked = new Set(Array.from({ length: 100 }, () => pickRandom(3, random)));
  expect([...picked].sort()).toEqual([0, 1, 2]);
  expect(pickRandom(0, random)).toBe(-1);
});
