/** What is particular to the index on the fast core; what every index does is in `kv-index.test.ts`. */
import { expect, it } from "vitest";
import { loadFastCore } from "../../src/base/fast-core.ts";
import { mulberry32, type Random, randomInt, randomU32 } from "../../src/base/random.ts";
import { createKvIndex } from "../../src/core/create-kv-index.ts";
import type { IndexMode, KvIndex, KvIndexOptions, Tier } from "../../src/core/kv-index.ts";
import { wasmIndexCore } from "../../src/core/wasm-index.ts";
import { loadBlockHasher } from "../../src/protocol/block-hashes.ts";
import type { U64 } from "../../src/protocol/u64.ts";

const { core } = await loadFastCore("wasm");
const { chain } = await loadBlockHasher();
const wasm = wasmIndexCore(core!);
const modes = ["identity", "opaque"] as const;

function make(mode: IndexMode, options: Partial<KvIndexOptions> = {}): KvIndex {
  return createKvIndex({ mode, random: mulberry32(1), chain, core: wasm, ...options });
}

function randomLanes(random: Random, words: number): Uint32Array {
  return Uint32Array.from({ length: words }, () => randomU32(random));
}

/** The same calls on both implementations: every answer, depth and digest is the same. */
class Twins {
  readonly random: Random;
  readonly mode: IndexMode;
  readonly both: readonly KvIndex[];
  /** Runs of blocks stored so far: the event's lanes and its place behind a parent. */
  readonly runs: { readonly blocks: Uint32Array; readonly parent: U64 | undefined }[] = [];

  constructor(seed: number, mode: IndexMode) {
    this.random = mulberry32(seed);
    this.mode = mode;
    this.both = [make(mode), createKvIndex({ mode, random: mulberry32(2), chain })];
  }

  same<Answer>(call: (index: KvIndex) => Answer): Answer {
    const [one, other] = this.both.map(call);
    expect(one).toEqual(other);
    return one!;
  }

  step(): void {
    const { random } = this;
    const worker = `w${randomInt(random, 0, 15)}`;
    const slot = this.same((index) => index.holder(worker, 0));
    const tier = (random() < 0.8 ? 0 : randomInt(random, 1, 3)) as Tier;
    const run = random() < 0.6 ? this.runs[randomInt(random, 0, this.runs.length)] : undefined;
    const choice = random();
    if (choice < 0.6) {
      const { blocks, parent } = run ?? this.#newRun();
      this.same((index) => index.store(slot, parent, blocks, tier));
    } else if (choice < 0.95 && run) {
      const names = run.blocks.filter((_, word) => (word & 2) !== 0);
      const end = 2 * randomInt(random, 1, names.length / 2);
      this.same((index) => index.remove(slot, names.subarray(0, end), tier));
    } else if (choice < 0.97) this.same((index) => index.clear(slot));
    else if (choice < 0.99) this.same((index) => index.removeHolder(slot));
  }

  /** Continues an older run or starts a sequence; some engine hashes are another run's. */
  #newRun(): Twins["runs"][number] {
    const { random } = this;
    const blocks = randomLanes(random, 4 * randomInt(random, 1, 400));
    const before = this.runs[randomInt(random, 0, 2 * this.runs.length)];
    const last = before?.blocks.subarray(-2);
    if (before && random() < 0.2) blocks.set(before.blocks.subarray(2, 4), 2);
    const parent = last && { lo: last[0]!, hi: last[1]! };
    this.runs.push({ blocks, parent });
    return { blocks, parent };
  }

  check(): void {
    const run = this.runs[randomInt(this.random, 0, this.runs.length - 1)]!;
    const sequence = run.blocks.filter(
      (_, word) => (word & 2) === (this.mode === "opaque" ? 0 : 2),
    );
    if (this.mode === "opaque") chain(sequence, 1, sequence.length / 2);
    this.same((index) => {
      const column = (): Int32Array => new Int32Array(index.slots);
      const columns = [column(), column(), column()] as const;
      const [device, host, disk] = columns;
      return [index.match(sequence, sequence.length / 2, device, { host, disk }), columns];
    });
    this.same((index) => index.size);
    this.same((index) => index.duplicateStores);
    this.same((index) => Array.from({ length: index.slots }, (_, slot) => index.digestOf(slot)));
  }
}

it.each(modes.flatMap((mode) => [1, 2].map((seed) => ({ mode, seed }))))(
  "$mode: large events and growing tables do what the TypeScript columns do, seed $seed",
  ({ mode, seed }) => {
    const twins = new Twins(seed, mode);
    for (let step = 0; step < 1200; step++) {
      twins.step();
      if (step % 25 === 24 && twins.runs.length > 0) twins.check();
    }
    twins.same((index) => {
      while (index.maintain(10_000));
      const { size, blocks, sets, holders } = index.stats();
      return { size, blocks, sets, holders };
    });
  },
);

it.each(modes)("%s: memory of holders that come and go is used again", (mode) => {
  const index = make(mode);
  const random = mulberry32(4);
  let afterFirst = 0;
  for (let round = 0; round < 60; round++) {
    const slots = ["a", "b", "c"].map((worker) => index.holder(worker, 0, 2000));
    for (let event = 0; event < 60; event++) {
      index.store(slots[event % 3]!, undefined, randomLanes(random, 4 * 100));
    }
    for (const slot of slots) index.removeHolder(slot);
    while (index.maintain(1000));
    expect(index.stats()).toMatchObject({ size: 0, blocks: 0, sets: 0 });
    if (round === 5) afterFirst = index.stats().bytes;
  }
  expect(index.stats().bytes).toBeLessThanOrEqual(afterFirst);
});

it("takes the largest event and prompts beyond its first area, and refuses one block more", () => {
  const random = mulberry32(5);
  const index = make("identity");
  const slot = index.holder("a", 0);
  const blocks = randomLanes(random, 4 * 65_537);
  expect(index.store(slot, undefined, blocks)).toBe("invalid_block");
  expect(index.store(slot, undefined, blocks.subarray(4))).toBe("ok");
  const names = blocks.subarray(4).filter((_, word) => (word & 2) !== 0);
  const depths = new Int32Array(1);
  expect(index.match(names, 65_536, depths)).toBe(65_536);
  // More hashes than one call takes.
  const twice = new Uint32Array(2 * names.length);
  twice.set(names);
  twice.set(names, names.length);
  expect(index.remove(slot, twice)).toBe("block_not_found");
  expect(index.size).toBe(0);
});

it("looks at no word behind the arrays it is given", () => {
  const index = make("identity");
  const slot = index.holder("a", 0);
  expect(index.store(slot, undefined, Uint32Array.of(1, 1, 7, 7, 2, 2))).toBe("ok");
  expect(index.size).toBe(1);
  const depths = new Int32Array(1);
  expect(index.match(Uint32Array.of(7, 7), 9, depths)).toBe(1);
  expect(index.remove(slot, Uint32Array.of(7))).toBe("ok");
  expect(index.size).toBe(1);
});
