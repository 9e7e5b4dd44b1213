import fc from "fast-check";
import { expect, it } from "vitest";
import { durableNames, storeToken } from "../../src/runtime/durable-log.ts";

it("names streams and buckets as the reference does, for plain names", () => {
  expect(durableNames("dynamo", "backend")).toEqual({
    stream: "namespace-dynamo-component-backend-kv-events",
    subjects: "tg.evs.dynamo.backend.*.*",
    bucket: "namespace-dynamo-component-backend-radix-bucket",
    locks: "namespace-dynamo-component-backend-locks",
  });
});

it("keeps underscores, dashes and joints apart", () => {
  const names = [
    ["a_b", "c"],
    ["a-b", "c"],
    ["a", "b-component-c"],
    ["a-component-b", "c"],
    ["a_db", "c"],
    ["a.b", "c"],
    ["A", "c"],
    ["a", "c"],
    ["x".repeat(64), "c"],
    ["x".repeat(65), "c"],
  ].map(([namespace = "", component = ""]) => durableNames(namespace, component).stream);
  expect(new Set(names).size).toBe(names.length);
});

it("makes distinct tokens of the allowed characters", () => {
  const name = fc.oneof(
    fc.string({ minLength: 1, unit: fc.constantFrom("a", "d", "u", "x", "_", "-", "2", "é") }),
    fc.string({ minLength: 1, maxLength: 100, unit: "grapheme" }),
  );
  fc.assert(
    fc.property(name, name, (a, b) => {
      expect(storeToken(a)).toMatch(/^[A-Za-z0-9_]{1,66}$/);
      if (a !== b) expect(storeToken(a)).not.toBe(storeToken(b));
    }),
    { seed: 7, numRuns: 2_000 },
  );
});
