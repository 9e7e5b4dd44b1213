import fc from "fast-check";
import { expect, it } from "vitest";
import { KeyedSlots } from "../../src/core/keyed-slots.ts";

const key = fc.constantFrom("a", "b", "c", "d", "e");
const step = fc.record({ type: fc.constantFrom("set", "set", "delete"), key, value: fc.nat() });

it("answers like a map, whatever comes and goes", () => {
  const property = fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
    const slots = new KeyedSlots<{ readonly value: number }>();
    const oracle = new Map<string, { readonly value: number }>();
    for (const { type, key, value } of steps) {
      if (type === "delete") expect(slots.delete(key)).toBe(oracle.delete(key));
      else {
        slots.set(key, { value });
        oracle.set(key, { value });
      }
      expect(slots.size).toBe(oracle.size);
      expect([...slots.values()]).toEqual([...oracle.values()]);
      for (const name of ["a", "b", "c", "d", "e", "f"]) {
        expect([slots.has(name), slots.get(name)]).toEqual([oracle.has(name), oracle.get(name)]);
      }
    }
  });
  fc.assert(property, { seed: 21, numRuns: 500 });
});

it("goes on over values whose keys are deleted on the way", () => {
  const slots = new KeyedSlots<string>();
  for (const name of ["a", "b", "c", "d"]) slots.set(name, name);
  const seen: string[] = [];
  for (const name of slots.values()) {
    seen.push(name);
    slots.delete(name);
    slots.delete("c");
  }
  expect([seen, slots.size]).toEqual([["a", "b", "d"], 0]);
});
