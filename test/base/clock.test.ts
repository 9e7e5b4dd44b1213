import { expect, it } from "vitest";
import { CancelSwitch } from "../../src/base/cancel.ts";
import { ManualClock, sleep } from "../../src/base/clock.ts";

it("sleeps until the time has come or the first of its signals aborts", async () => {
  const clock = new ManualClock();
  const [first, second] = [new CancelSwitch(), new CancelSwitch()];
  const woken: string[] = [];
  const note = (name: string) => () => void woken.push(`${name} ${clock.nowMs()}`);
  void sleep(clock, 100).then(note("time"));
  void sleep(clock, 200, first, second).then(note("second"));
  void sleep(clock, 300, undefined, first).then(note("never"));
  await clock.runFor(50);
  second.abort();
  await clock.runFor(100);
  expect(woken).toEqual(["second 50", "time 100"]);
  await clock.runFor(200);
  expect(woken.at(-1)).toBe("never 300");
  expect(clock.pending()).toBe(0);
});

it("does not sleep on a signal that has aborted", async () => {
  const clock = new ManualClock();
  const over = new CancelSwitch();
  over.abort();
  await sleep(clock, 1000, new CancelSwitch(), over);
  expect(clock.pending()).toBe(0);
});
