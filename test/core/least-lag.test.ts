import { expect, it } from "vitest";
import { LeastLag, lagWindowMs } from "../../src/core/least-lag.ts";

it("measures lateness over the fastest message, whatever the clocks' offset", () => {
  for (const offsetMs of [0, -1e9, 123_456.5]) {
    const lag = new LeastLag();
    const arrive = (sentMs: number, wayMs: number): number =>
      lag.lateness(sentMs + offsetMs, sentMs + wayMs);
    expect(arrive(0, 7)).toBeCloseTo(0);
    expect(arrive(10, 2)).toBeCloseTo(0);
    expect(arrive(20, 52)).toBeCloseTo(50);
    expect(arrive(30, 2)).toBeCloseTo(0);
  }
});

it("forgets a fast message after two windows, so that drifting clocks do not look late", () => {
  const lag = new LeastLag();
  lag.lateness(0, 0);
  expect(lag.lateness(lagWindowMs, lagWindowMs + 5)).toBeCloseTo(5);
  expect(lag.lateness(2 * lagWindowMs, 2 * lagWindowMs + 10)).toBeCloseTo(5);
  expect(lag.lateness(3 * lagWindowMs, 3 * lagWindowMs + 15)).toBeCloseTo(5);
});
