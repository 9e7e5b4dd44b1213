import fc from "fast-check";
import { expect, it } from "vitest";
import { type Clock, every, ManualClock } from "../../src/base/clock.ts";
import { everyInStep, tickClock } from "../../src/base/tick-clock.ts";

it("fires timers of one tick together, in the order of their calls", () => {
  const clock = new ManualClock();
  const ticks = tickClock(clock, 50);
  const fired: string[] = [];
  const note = (name: string) => () => void fired.push(`${name} at ${ticks.nowMs()}`);
  clock.advanceTo(12);
  ticks.after(30, note("late"));
  ticks.after(1, note("soon"));
  ticks.after(38.5, note("beyond"));
  expect(clock.pending()).toBe(2);
  clock.advanceTo(200);
  expect(fired).toEqual(["late at 50", "soon at 50", "beyond at 100"]);
  expect(clock.pending()).toBe(0);
});

it("fires a timer of 0 ms without waiting for a tick", () => {
  const clock = new ManualClock();
  clock.advanceTo(7);
  let firedMs = -1;
  tickClock(clock, 50).after(0, () => {
    firedMs = clock.nowMs();
  });
  clock.advanceTo(8);
  expect(firedMs).toBe(7);
});

it("keeps the timer below while one that shares it is left, and a timer may cancel the next", () => {
  const clock = new ManualClock();
  const ticks = tickClock(clock, 10);
  let fired = 0;
  const cancelFirst = ticks.after(5, () => fired++);
  const cancelSecond = ticks.after(5, () => fired++);
  cancelFirst();
  cancelFirst();
  expect(clock.pending()).toBe(1);
  cancelSecond();
  expect(clock.pending()).toBe(0);
  let cancelThird = (): void => {};
  ticks.after(5, () => cancelThird());
  cancelThird = ticks.after(5, () => fired++);
  clock.advanceTo(100);
  expect(fired).toBe(0);
});

it("is never early and less than a tick late, whatever is asked when", () => {
  const timer = fc.record({
    atMs: fc.integer({ min: 0, max: 500 }),
    delayMs: fc.integer({ min: 1, max: 300 }),
    cancelled: fc.boolean(),
  });
  fc.assert(
    fc.property(
      fc.array(timer, { maxLength: 40 }),
      fc.integer({ min: 1, max: 60 }),
      (all, tickMs) => {
        const clock = new ManualClock();
        const ticks = tickClock(clock, tickMs);
        let left = 0;
        for (const { atMs, delayMs, cancelled } of all.toSorted((a, b) => a.atMs - b.atMs)) {
          clock.advanceTo(atMs);
          const cancel = ticks.after(delayMs, () => {
            const lateMs = clock.nowMs() - atMs - delayMs;
            expect(cancelled).toBe(false);
            expect(lateMs).toBeGreaterThanOrEqual(0);
            expect(lateMs).toBeLessThan(tickMs);
            left--;
          });
          if (cancelled) cancel();
          else left++;
        }
        clock.advanceTo(1_000);
        expect(left).toBe(0);
        expect(clock.pending()).toBe(0);
      },
    ),
    { seed: 4, numRuns: 200 },
  );
});

/** Timers of this clock fire late by `held`. */
function heldBack(clock: ManualClock, held: { ms: number }): Clock {
  return {
    nowMs: () => clock.nowMs() + held.ms,
    wallMs: () => clock.wallMs(),
    after: (delayMs, fire) => clock.after(delayMs, fire),
  };
}

it("tells how late each tick is, once for all its timers", () => {
  const clock = new ManualClock();
  const late: number[] = [];
  const held = { ms: 0 };
  const ticks = tickClock(heldBack(clock, held), 50, (lateMs) => void late.push(lateMs));
  ticks.after(40, () => {});
  ticks.after(40, () => {});
  clock.advanceTo(100);
  ticks.after(40, () => {});
  held.ms = 60;
  clock.advanceTo(200);
  expect(late).toEqual([0, 60]);
});

it("keeps the length of periods however late their ticks are", () => {
  const clock = new ManualClock();
  const held = { ms: 0 };
  const ticks = tickClock(heldBack(clock, held), 50);
  let count = 0;
  held.ms = 3;
  every(ticks, 100, () => {
    count++;
    held.ms = 3 + (count % 40);
  });
  clock.advanceTo(10_000);
  expect(count).toBe(99);
});

it("repeats at multiples of the period wherever it began, with all that does so in one wake", () => {
  const clock = new ManualClock();
  let readings = 0;
  // Time passes between two readings, as it does on a real clock.
  const real: Clock = {
    nowMs: () => clock.nowMs() + 0.001 * readings++,
    wallMs: () => clock.wallMs(),
    after: (delayMs, fire) => clock.after(delayMs, fire),
  };
  let wakes = 0;
  const ticks = tickClock(real, 50, () => void wakes++);
  const firedMs: number[] = [];
  for (const beginMs of [0, 170, 449]) {
    clock.advanceTo(beginMs);
    everyInStep(ticks, 200, () => void firedMs.push(Math.round(real.nowMs())));
  }
  clock.advanceTo(1_050);
  expect(firedMs).toEqual([200, 200, 400, 400, 600, 600, 600, 800, 800, 800, 1000, 1000, 1000]);
  expect(wakes).toBe(5);
});

it("stops repeating in step before the first time and within any", () => {
  const clock = new ManualClock();
  let count = 0;
  everyInStep(clock, 100, () => count++)();
  const stop = everyInStep(clock, 100, () => {
    if (++count === 3) stop();
  });
  clock.advanceTo(1_000);
  expect(count).toBe(3);
  expect(clock.pending()).toBe(0);
});
