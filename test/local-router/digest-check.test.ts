import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import type { BlockDigest } from "../../src/core/kv-index.ts";
import { digestCheckPeriodMs, startDigestCheck } from "../../src/local-router/digest-check.ts";

const digest = (blocks: number): BlockDigest => ({ blocks, lo: blocks, hi: 7 });

function rig() {
  const clock = new ManualClock();
  const held = new Map<number, BlockDigest>();
  const restored: number[] = [];
  const check = startDigestCheck({
    clock,
    digestOf: (slot) => held.get(slot) ?? digest(0),
    onMismatch: (slot) => restored.push(slot),
  });
  const nextCheck = (): void => clock.advanceTo(clock.nowMs() + digestCheckPeriodMs);
  return { clock, held, restored, check, nextCheck };
}

it("restores a rank whose digest differs at two checks with nothing changing between", () => {
  const { clock, held, restored, check, nextCheck } = rig();
  held.set(3, digest(10));
  check.heard(3, digest(11));
  nextCheck();
  expect(restored).toEqual([]);
  nextCheck();
  expect(restored).toEqual([3]);
  check.close();
  expect(clock.pending()).toBe(0);
});

it("waits while either side still changes, and forgets a mismatch that healed", () => {
  const { held, restored, check, nextCheck } = rig();
  held.set(0, digest(1));
  check.heard(0, digest(2));
  nextCheck();
  held.set(0, digest(3));
  nextCheck();
  check.heard(0, digest(4));
  nextCheck();
  held.set(0, digest(4));
  nextCheck();
  nextCheck();
  expect(restored).toEqual([]);
});

it("asks nothing about a rank that is gone", () => {
  const { restored, check, nextCheck } = rig();
  check.heard(5, digest(9));
  check.forget(5);
  nextCheck();
  nextCheck();
  expect(restored).toEqual([]);
});
