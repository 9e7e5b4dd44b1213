import fc from "fast-check";
import { expect, it } from "vitest";
import { heldMs, noFront, seeWorker } from "../../src/core/front-worker.ts";

function frontOf(waitsMs: readonly number[], ownMs: number) {
  const front = { slot: 7, waitMs: 7, nextWaitMs: 7, ownMs: 7 };
  noFront(front);
  for (const [slot, waitMs] of waitsMs.entries()) seeWorker(front, slot, waitMs, ownMs);
  return front;
}

it("charges the front worker for the time until the next one is free", () => {
  const front = frontOf([1800, 200, 4000], 2500);
  expect(front.slot).toBe(1);
  expect(heldMs(front)).toBe(1600);
  expect(heldMs(frontOf([1800, 200, 4000], 300))).toBe(300);
});

it("charges nothing while two workers are free, or where there is no other", () => {
  expect(heldMs(frontOf([0, 0, 900], 2500))).toBe(0);
  expect(heldMs(frontOf([400], 2500))).toBe(0);
  expect(frontOf([], 2500).slot).toBe(-1);
});

it("finds by how much the least wait of the pool grows", () => {
  const waits = fc.array(fc.nat({ max: 20 }), { minLength: 2, maxLength: 6 });
  fc.assert(
    fc.property(waits, fc.nat({ max: 20 }), (waitsMs, ownMs) => {
      const front = frontOf(waitsMs, ownMs);
      const after = waitsMs.map((waitMs, slot) => (slot === front.slot ? waitMs + ownMs : waitMs));
      expect(heldMs(front)).toBe(Math.min(...after) - Math.min(...waitsMs));
    }),
  );
});
