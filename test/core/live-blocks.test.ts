import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32, randomInt } from "../../src/base/random.ts";
import { LiveBlocks } from "../../src/core/live-blocks.ts";

const ignored = (): void => undefined;
const lanes = (hashes: readonly number[]): Uint32Array =>
  Uint32Array.from(hashes.flatMap((hash) => [hash, ~hash >>> 0]));

function sharedOf(blocks: LiveBlocks, hashes: readonly number[]): number[] {
  const shared = new Int32Array(slots);
  blocks.sharedPrefix(lanes(hashes), shared);
  return [...shared];
}

/** Blocks as one plain record per (slot, hash). */
class NaiveBlocks {
  readonly live = new Map<string, { refs: number; weight: number }>();
  readonly sums: number[] = Array(slots).fill(0);

  acquire(hashes: readonly number[], slot: number): void {
    for (const hash of hashes) {
      const block = this.live.get(`${slot}/${hash}`);
      if (block) block.refs++;
      else this.live.set(`${slot}/${hash}`, { refs: 1, weight: 1 });
    }
  }

  release(hashes: readonly number[], slot: number): void {
    for (const hash of hashes) {
      const block = this.live.get(`${slot}/${hash}`);
      if (block && --block.refs === 0) this.live.delete(`${slot}/${hash}`);
    }
  }

  reweigh(hashes: readonly number[], slot: number, weight: number): void {
    for (const hash of hashes) {
      const block = this.live.get(`${slot}/${hash}`);
      if (block?.refs === 1) block.weight = weight;
    }
  }

  sum(slot: number): number {
    let sum = 0;
    for (const [name, { weight }] of this.live) if (name.startsWith(`${slot}/`)) sum += weight;
    return sum;
  }

  shared(hashes: readonly number[], slot: number): number {
    const end = hashes.findIndex((hash) => !this.live.has(`${slot}/${hash}`));
    return end < 0 ? hashes.length : end;
  }
}

const slots = 4;
const tree = fc.array(fc.integer({ min: 0, max: 1 }), { minLength: 1, maxLength: 5 });
/** Names of a binary tree's nodes from the root: prefixes as chained hashes have them. */
const chained = tree.map((turns) => turns.map((_, at) => nodeName(turns.slice(0, at + 1))));
const arbitrary = fc.array(fc.integer({ min: 1, max: 9 }), { maxLength: 7 });
const prompt = fc.oneof(chained, arbitrary);
const step = fc.record({
  op: fc.constantFrom("acquire", "acquire", "release", "reweigh"),
  slot: fc.integer({ min: 0, max: slots - 1 }),
  hashes: prompt,
  pick: fc.nat(),
  quarters: fc.integer({ min: 0, max: 4 }),
});

function nodeName(turns: readonly number[]): number {
  return turns.reduce((name, turn) => 2 * name + turn, 1);
}

it("agrees with one record per slot and hash, for chained lists and any others", () => {
  const property = fc.property(fc.array(step, { maxLength: 60 }), prompt, (steps, query) => {
    const sums: number[] = Array(slots).fill(0);
    const blocks = new LiveBlocks(1000, mulberry32(5), (slot, count, before, after) => {
      sums[slot]! += count * (after - before);
    });
    const naive = new NaiveBlocks();
    const held: { hashes: number[]; slot: number }[] = [];
    for (const { op, slot, hashes, pick, quarters } of steps) {
      if (op === "acquire") {
        held.push({ hashes, slot });
        blocks.acquire(lanes(hashes), slot);
        naive.acquire(hashes, slot);
        continue;
      }
      const at = pick % Math.max(held.length, 1);
      const one = held[at];
      if (!one) continue;
      if (op === "reweigh") {
        blocks.reweigh(lanes(one.hashes), one.slot, quarters / 4);
        naive.reweigh(one.hashes, one.slot, quarters / 4);
      } else {
        held.splice(at, 1);
        blocks.release(lanes(one.hashes), one.slot);
        naive.release(one.hashes, one.slot);
      }
      expect(blocks.size).toBe(naive.live.size);
      for (let of = 0; of < slots; of++) {
        expect(sums[of]).toBe(naive.sum(of));
        expect(sharedOf(blocks, query)[of]).toBe(naive.shared(query, of));
      }
    }
    for (const { hashes, slot } of held) blocks.release(lanes(hashes), slot);
    expect(blocks.size).toBe(0);
    expect(blocks.useCount).toBe(0);
    expect(sums).toEqual(Array(slots).fill(0));
  });
  fc.assert(property, { numRuns: 500 });
});

it("joins stretches that are equal again after a shorter prompt has ended", () => {
  const blocks = new LiveBlocks(1 << 20, mulberry32(1), ignored);
  const long = Array.from({ length: 100 }, (_, at) => at + 1);
  blocks.acquire(lanes(long), 0);
  for (let length = 1; length < 100; length++) {
    blocks.acquire(lanes(long.slice(0, length)), 1);
    expect(blocks.useCount).toBe(2);
    blocks.release(lanes(long.slice(0, length)), 1);
  }
  blocks.acquire(lanes(long), 2);
  expect(blocks.useCount).toBe(1);
});

it("finds every block again through growth and removal", () => {
  const random = mulberry32(11);
  const blocks = new LiveBlocks(1 << 20, random, ignored);
  const held: number[][] = [];
  for (let round = 0; round < 400; round++) {
    const first = randomInt(random, 0, 40) * 1000;
    const hashes = Array.from({ length: randomInt(random, 1, 60) }, (_, at) => first + at);
    blocks.acquire(lanes(hashes), 1);
    held.push(hashes);
    if (random() < 0.4)
      blocks.release(lanes(held.splice(randomInt(random, 0, held.length - 1), 1)[0]!), 1);
  }
  for (const hashes of held) expect(sharedOf(blocks, hashes)[1]).toBe(hashes.length);
  for (const hashes of held) blocks.release(lanes(hashes), 1);
  expect([blocks.size, blocks.useCount]).toEqual([0, 0]);
});

it("has room up to its maximum", () => {
  const blocks = new LiveBlocks(2, mulberry32(1), ignored);
  blocks.acquire(lanes([1]), 0);
  expect([blocks.hasRoom(1), blocks.hasRoom(2)]).toEqual([true, false]);
});
