import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32, randomInt } from "../../src/base/random.ts";
import { type Hold, LiveBlocks } from "../../src/core/live-blocks.ts";

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
const tree = fc.array(fc.integer({ min: 0, max: 1 }), { minLength: 1, maxLength: 6 });
/** Names of a binary tree's nodes from the root: prefixes as chained hashes have them. */
const chained = tree.map((turns) => turns.map((_, at) => nodeName(turns.slice(0, at + 1))));
const arbitrary = fc.array(fc.integer({ min: 1, max: 9 }), { maxLength: 7 });

const stepOf = (hashes: fc.Arbitrary<number[]>): fc.Arbitrary<Step> =>
  fc.record({
    op: fc.constantFrom("acquire", "acquire", "release", "reweigh"),
    slot: fc.integer({ min: 0, max: slots - 1 }),
    hashes,
    pick: fc.nat(),
    quarters: fc.integer({ min: 0, max: 4 }),
  });

interface Step {
  readonly op: string;
  readonly slot: number;
  readonly hashes: number[];
  readonly pick: number;
  readonly quarters: number;
}

interface Held {
  readonly hashes: number[];
  readonly slot: number;
  readonly hold: Hold;
}

function nodeName(turns: readonly number[]): number {
  return turns.reduce((name, turn) => 2 * name + turn, 1);
}

/** Runs the steps on the blocks, telling `after` what each did; gives everything back at the end. */
function play(
  steps: readonly Step[],
  after: (blocks: LiveBlocks, sums: number[], step: Step, one: Held) => void,
): void {
  const sums: number[] = Array(slots).fill(0);
  const blocks = new LiveBlocks(1000, mulberry32(5), (slot, count, before, weight) => {
    sums[slot]! += count * (weight - before);
  });
  const held: Held[] = [];
  for (const step of steps) {
    const { op, slot, hashes, pick, quarters } = step;
    if (op === "acquire") held.push({ hashes, slot, hold: blocks.acquire(lanes(hashes), slot) });
    const at = op === "acquire" ? held.length - 1 : pick % Math.max(held.length, 1);
    const one = held[at];
    if (!one) continue;
    if (op === "reweigh") blocks.reweigh(one.hold, one.slot, quarters / 4);
    if (op === "release") {
      held.splice(at, 1);
      blocks.release(one.hold, one.slot);
    }
    after(blocks, sums, step, one);
  }
  for (const { hold, slot } of held) blocks.release(hold, slot);
  expect([blocks.size, blocks.runCount]).toEqual([0, 0]);
  expect(sums).toEqual(Array(slots).fill(0));
}

it("agrees with one record per slot and hash, for chained lists", () => {
  const property = fc.property(
    fc.array(stepOf(chained), { maxLength: 80 }),
    chained,
    (steps, query) => {
      const naive = new NaiveBlocks();
      play(steps, (blocks, sums, { op, quarters }, { hashes, slot, hold }) => {
        if (op === "acquire") naive.acquire(hashes, slot);
        else if (op === "release") naive.release(hashes, slot);
        else naive.reweigh(hashes, slot, quarters / 4);
        expect(blocks.size).toBe(naive.live.size);
        for (let of = 0; of < slots; of++) {
          expect(sums[of]).toBe(naive.sum(of));
          expect(sharedOf(blocks, query)[of]).toBe(naive.shared(query, of));
        }
        if (op !== "release") expect(blocks.sequenceOf(hold)).toEqual(lanes(hashes));
      });
    },
  );
  fc.assert(property, { numRuns: 600 });
});

it("gives back what it took of lists that are not chained, and counts no block below one", () => {
  const property = fc.property(
    fc.array(stepOf(fc.oneof(chained, arbitrary)), { maxLength: 60 }),
    (steps) => {
      play(steps, (_, sums) => {
        for (const sum of sums) expect(sum).toBeGreaterThanOrEqual(0);
      });
    },
  );
  fc.assert(property, { numRuns: 500 });
});

it("still finds a prompt whose first hash stood inside another one", () => {
  const blocks = new LiveBlocks(100, mulberry32(1), ignored);
  const around = blocks.acquire(lanes([1, 2, 3]), 0);
  blocks.acquire(lanes([3, 5]), 0);
  blocks.acquire(lanes([1, 2, 4]), 0);
  blocks.release(around, 0);
  expect(sharedOf(blocks, [3, 5])[0]).toBe(2);
});

it("finds where two long prompts part, at any block", () => {
  const blocks = new LiveBlocks(1 << 20, mulberry32(1), ignored);
  const long = Array.from({ length: 130 }, (_, at) => at + 1);
  const hold = blocks.acquire(lanes(long), 0);
  for (let common = 1; common <= 130; common++) {
    const other = [...long.slice(0, common), 1000, 1001];
    expect(sharedOf(blocks, other)[0]).toBe(common);
    const second = blocks.acquire(lanes(other), 1);
    expect(blocks.size).toBe(130 + common + 2);
    expect(blocks.sequenceOf(second)).toEqual(lanes(other));
    blocks.release(second, 1);
  }
  expect(blocks.sequenceOf(hold)).toEqual(lanes(long));
});

it("joins runs that are equal again after a shorter prompt has ended", () => {
  const blocks = new LiveBlocks(1 << 20, mulberry32(1), ignored);
  const long = Array.from({ length: 100 }, (_, at) => at + 1);
  blocks.acquire(lanes(long), 0);
  for (let length = 1; length < 100; length++) {
    const hold = blocks.acquire(lanes(long.slice(0, length)), 1);
    expect(blocks.runCount).toBe(2);
    blocks.release(hold, 1);
  }
  blocks.acquire(lanes(long), 2);
  expect(blocks.runCount).toBe(1);
});

it("finds every block again through growth and removal", () => {
  const random = mulberry32(11);
  const blocks = new LiveBlocks(1 << 20, random, ignored);
  const held: { hashes: number[]; hold: Hold }[] = [];
  for (let round = 0; round < 2000; round++) {
    const first = randomInt(random, 0, 400) * 1000;
    const hashes = Array.from({ length: randomInt(random, 1, 60) }, (_, at) => first + at);
    held.push({ hashes, hold: blocks.acquire(lanes(hashes), 1) });
    if (random() < 0.4) {
      const [gone] = held.splice(randomInt(random, 0, held.length - 1), 1);
      blocks.release(gone!.hold, 1);
    }
  }
  for (const { hashes } of held) expect(sharedOf(blocks, hashes)[1]).toBe(hashes.length);
  for (const { hold } of held) blocks.release(hold, 1);
  expect([blocks.size, blocks.runCount]).toEqual([0, 0]);
});

it("has room up to its maximum", () => {
  const blocks = new LiveBlocks(2, mulberry32(1), ignored);
  blocks.acquire(lanes([1]), 0);
  expect([blocks.hasRoom(1), blocks.hasRoom(2)]).toEqual([true, false]);
});
