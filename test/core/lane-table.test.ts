import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32, randomInt, randomU32 } from "../../src/base/random.ts";
import { LaneTable } from "../../src/core/lane-table.ts";

it("holds what a Map holds, through growth, deletions and misses", () => {
  fc.assert(
    fc.property(fc.integer(), fc.constantFrom(3 as const, 4 as const), (seed, slotWords) => {
      const random = mulberry32(seed);
      const table = new LaneTable(slotWords, 4, random);
      const map = new Map<string, number>();
      const keys = randomInt(random, 20, 3000);
      for (let step = 0; step < 2000; step++) {
        const lo = randomInt(random, 0, keys) | 0;
        const hi = (lo % 3) - 1;
        const text = `${lo}:${hi}`;
        const at = table.find(lo, hi);
        expect(at < 0 ? undefined : table.words[at + 2]).toBe(map.get(text));
        if (at >= 0 && random() < 0.4) {
          table.removeAt(at);
          map.delete(text);
        } else if (at < 0 && random() < 0.8) {
          table.reserve(1);
          table.words[table.insert(lo, hi) + 2] = step + 1;
          map.set(text, step + 1);
        }
        expect(table.count).toBe(map.size);
      }
      for (const [text, value] of map) {
        const [lo, hi] = text.split(":").map(Number);
        expect(table.get(lo!, hi!)).toBe(value);
      }
    }),
    { numRuns: 10 },
  );
});

it("keeps the load at or below three quarters and moves old slots in slices", () => {
  const table = new LaneTable(3, 1000, mulberry32(1));
  let sawMigration = false;
  for (let key = 0; key < 20_000; key++) {
    table.reserve(1);
    table.words[table.insert(key, -key) + 2] = key + 1;
    sawMigration ||= table.migrating;
    expect(table.count).toBeLessThanOrEqual(0.75 * table.capacity);
  }
  expect(sawMigration).toBe(true);
  for (let key = 0; key < 20_000; key++) expect(table.get(key, -key)).toBe(key + 1);
});

it("a scan that starts over behind shifted slots sees every slot", () => {
  const random = mulberry32(9);
  const table = new LaneTable(3, 500, random);
  const kept = new Set<number>();
  table.reserve(400);
  for (let key = 0; key < 400; key++) table.words[table.insert(key, key) + 2] = key + 1;
  while (table.migrate(100));
  for (let key = 0; key < 400; key++) kept.add(key + 1);
  const seen = new Set<number>();
  table.scanAt = 0;
  while (table.scanAt < table.capacity) {
    const value = table.words[3 * table.scanAt + 2]!;
    if (value !== 0) seen.add(value);
    table.scanAt++;
    const key = randomInt(random, 0, 399);
    const at = table.find(key, key);
    if (at < 0) continue;
    kept.delete(key + 1);
    table.removeAt(at);
  }
  for (const value of kept) expect(seen.has(value)).toBe(true);
});

it("never starts a growth while another is under way, whatever the probes", () => {
  const random = mulberry32(9);
  const table = new LaneTable(3, 1024, mulberry32(3));
  let growths = 0;
  for (let key = 0; key < 400_000; key += 100) {
    const { capacity, migrating } = table;
    table.reserve(100);
    if (table.capacity !== capacity) {
      expect(migrating).toBe(false);
      growths++;
    }
    for (let one = 0; one < 100; one++) {
      const [lo, hi] = [randomU32(random), randomU32(random)];
      if (table.find(lo, hi) < 0) table.insert(lo, hi);
    }
  }
  expect(growths).toBeGreaterThan(10);
  expect(table.count).toBe(400_000);
});

it("spreads keys that were made for one place by new secrets", () => {
  // The first table's secrets are known; then keys with one XOR of their lanes share a home.
  const draws = mulberry32(4);
  let drawn = 0;
  const table = new LaneTable(3, 4096, () => (drawn++ < 4 ? 0 : draws()));
  let longest = 0;
  for (let lo = 1; lo <= 300; lo++) {
    table.reserve(1);
    expect(table.find(lo, lo ^ 77)).toBe(-1);
    table.insert(lo, lo ^ 77);
    longest = Math.max(longest, table.longestProbe);
  }
  while (table.migrate(1));
  expect(longest).toBe(129);
  expect(table.longestProbe).toBeLessThan(20);
  for (let lo = 1; lo <= 300; lo++) expect(table.find(lo, lo ^ 77)).toBeGreaterThanOrEqual(0);
});
