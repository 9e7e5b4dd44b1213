import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { silenceCheckPeriodMs, startSilenceCheck } from "../../src/local-router/silence-check.ts";
import { silentLog } from "../../src/runtime/log.ts";

function rig() {
  const clock = new ManualClock();
  const heard = new Map<string, number>();
  const warned: unknown[] = [];
  const present = new Map([
    ["1", true],
    ["2", true],
    ["3", false],
  ]);
  const workers = () =>
    [...present].map(([inst, kvEvents]) => ({ inst, card: { kvEvents } }) as never);
  const log = { ...silentLog, warn: (_: string, fields?: object) => void warned.push(fields) };
  const eventsOf = (workerId: string) => heard.get(workerId) ?? 0;
  const check = startSilenceCheck({ clock, log, workers, eventsOf });
  const nextCheck = (): void => clock.advanceTo(clock.nowMs() + silenceCheckPeriodMs);
  return { clock, heard, warned, present, check, nextCheck };
}

it("finds a worker silent that ends requests for a whole period without an event", () => {
  const { heard, warned, check, nextCheck } = rig();
  check.ended("1");
  nextCheck();
  expect(check.count).toBe(0);
  for (const workerId of ["1", "2", "3"]) check.ended(workerId);
  heard.set("2", 5);
  nextCheck();
  expect(check.count).toBe(1);
  nextCheck();
  expect([check.count, warned.length]).toEqual([1, 1]);
  expect(warned[0]).toMatchObject({ worker_id: "1" });
  heard.set("1", 1);
  check.ended("1");
  nextCheck();
  expect(check.count).toBe(0);
});

it("holds an idle worker for no silent one, and forgets those that left", () => {
  const { clock, present, check, nextCheck } = rig();
  for (let round = 0; round < 3; round++) nextCheck();
  expect(check.count).toBe(0);
  check.ended("1");
  nextCheck();
  expect(check.count).toBe(1);
  present.delete("1");
  nextCheck();
  expect(check.count).toBe(0);
  check.close();
  expect(clock.pending()).toBe(0);
});
