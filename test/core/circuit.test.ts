import { expect, it } from "vitest";
import {
  type Circuit,
  circuitLimits,
  failed,
  failureShare,
  mayTry,
  newCircuit,
  succeeded,
  tried,
} from "../../src/core/circuit.ts";
import { addSample, halfLifeMs, meanOf, newMean, weightOf } from "../../src/core/decayed-mean.ts";
import {
  budgetLimits,
  earn,
  newRetryBudget,
  retriesLeft,
  spend,
} from "../../src/core/retry-budget.ts";

const { failuresMax, openMs, openMsMax, probeMs } = circuitLimits;

function opened(atMs: number): Circuit {
  const circuit = newCircuit();
  for (let count = 0; count < failuresMax; count++) failed(circuit, atMs);
  return circuit;
}

it("opens at so many failures in a row, and not one sooner", () => {
  const circuit = newCircuit();
  for (let count = 1; count < failuresMax; count++) failed(circuit, 0);
  expect([circuit.state, mayTry(circuit, 0)]).toEqual(["closed", true]);
  succeeded(circuit, 0);
  for (let count = 1; count < failuresMax; count++) failed(circuit, 0);
  expect(circuit.state).toBe("closed");
  failed(circuit, 0);
  expect([circuit.state, mayTry(circuit, 0)]).toEqual(["open", false]);
});

it("opens at half failures among enough recent attempts, and not when they are old", () => {
  const mixed = (rounds: number, stepMs: number): Circuit => {
    const circuit = newCircuit();
    for (let round = 0; round < rounds; round++) {
      succeeded(circuit, round * stepMs);
      failed(circuit, round * stepMs);
    }
    return circuit;
  };
  expect(mixed(9, 0).state).toBe("closed");
  expect(mixed(10, 0).state).toBe("open");
  expect(mixed(1000, 5_000).state).toBe("closed");
});

it("lets one attempt through when its time is over, twice as long after each failure", () => {
  const circuit = opened(0);
  expect([mayTry(circuit, openMs - 1), mayTry(circuit, openMs)]).toEqual([false, true]);
  let atMs = openMs;
  for (let waitMs = 2 * openMs; waitMs <= 2 * openMsMax; waitMs *= 2) {
    tried(circuit, atMs);
    expect(mayTry(circuit, atMs)).toBe(false);
    failed(circuit, atMs);
    const expectedMs = Math.min(waitMs, openMsMax);
    expect(mayTry(circuit, atMs + expectedMs - 1)).toBe(false);
    expect(mayTry(circuit, atMs + expectedMs)).toBe(true);
    atMs += expectedMs;
  }
  tried(circuit, atMs);
  succeeded(circuit, atMs);
  expect([circuit.state, circuit.failuresInRow, circuit.openMs]).toEqual(["closed", 0, openMs]);
  expect(failureShare(circuit, atMs)).toBe(null);
});

it("tries again when nothing was heard of a probe", () => {
  const circuit = opened(0);
  tried(circuit, openMs);
  expect(mayTry(circuit, openMs + probeMs - 1)).toBe(false);
  expect(mayTry(circuit, openMs + probeMs)).toBe(true);
});

it("does not let older attempts close or lengthen what is open", () => {
  const circuit = opened(0);
  succeeded(circuit, 10);
  failed(circuit, 20);
  expect([circuit.state, circuit.untilMs]).toEqual(["open", openMs]);
});

it("forgets half of a sample in a half-life", () => {
  const mean = newMean();
  expect(meanOf(mean, 5)).toBe(null);
  addSample(mean, 100, 0);
  addSample(mean, 40, halfLifeMs);
  expect(meanOf(mean, halfLifeMs)).toBeCloseTo((100 / 2 + 40) / 1.5, 9);
  expect(weightOf(mean, 2 * halfLifeMs)).toBeCloseTo(0.75, 9);
  expect(meanOf(mean, 2 * halfLifeMs)).toBeCloseTo(60, 9);
  expect(meanOf(mean, 20 * halfLifeMs)).toBe(null);
});

it("gives retries a share of the requests, and a few a second without any", () => {
  const { idle, max, perRequest, perSecond } = budgetLimits;
  const budget = newRetryBudget(0);
  for (let count = 0; count < idle; count++) expect(spend(budget, 0)).toBe(true);
  expect(spend(budget, 0)).toBe(false);
  expect(spend(budget, 1000 / perSecond - 1)).toBe(false);
  expect(spend(budget, 1000 / perSecond + 1)).toBe(true);
  expect(retriesLeft(budget, 60_000)).toBe(idle);
  for (let count = 0; count < 100; count++) earn(budget, 60_000);
  expect(budget.tokens).toBeCloseTo(idle + 100 * perRequest, 9);
  for (let count = 0; count < 10_000; count++) earn(budget, 60_000);
  expect(retriesLeft(budget, 120_000)).toBe(max);
});
