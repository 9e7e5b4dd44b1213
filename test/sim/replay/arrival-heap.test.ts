import fc from "fast-check";
import { expect, it } from "vitest";
import { ArrivalHeap } from "../../../src/sim/replay/arrival-heap.ts";

it("gives arrivals by time, equal ones as they were added", () => {
  const step = fc.oneof(fc.constant("take" as const), fc.integer({ min: 0, max: 9 }));
  fc.assert(
    fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
      const heap = new ArrivalHeap(steps.length);
      let waiting: { place: number; atMs: number }[] = [];
      for (const [place, what] of steps.entries()) {
        if (what === "take") {
          const sorted = waiting.toSorted((a, b) => a.atMs - b.atMs);
          expect(heap.nextMs).toBe(sorted[0]?.atMs ?? Number.POSITIVE_INFINITY);
          expect(heap.take()).toBe(sorted[0]?.place ?? -1);
          waiting = waiting.filter(({ place: other }) => other !== sorted[0]?.place);
        } else {
          heap.add(place, what);
          waiting.push({ place, atMs: what });
        }
        expect(heap.size).toBe(waiting.length);
      }
    }),
    { seed: 11, numRuns: 300 },
  );
});
