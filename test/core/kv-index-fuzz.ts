/**
 * Any order of calls against `NaiveIndex`, 10,000 steps a seed, for every implementation of the index
 * and both modes: events of all tiers, restarts, losses, prunes, dumps, exports reloaded elsewhere.
 * `TIERGRID_FUZZ_SEEDS` sets how many seeds; a failing test names its seed.
 */
import { expect, it } from "vitest";
import { mulberry32, type Random, randomInt, randomU32 } from "../../src/base/random.ts";
import { createKvIndex } from "../../src/core/create-kv-index.ts";
import {
  type IndexMode,
  type KvIndex,
  type KvIndexCore,
  type Tier,
  tierCount,
} from "../../src/core/kv-index.ts";
import { loadBlockHasher } from "../../src/protocol/block-hashes.ts";
import { readU64Decimal, type U64 } from "../../src/protocol/u64.ts";
import { type NaiveBlock, NaiveHolder, NaiveIndex } from "./naive-index.ts";

const { chain } = await loadBlockHasher();
const seeds = Number(process.env["TIERGRID_FUZZ_SEEDS"] ?? 2);
const steps = 10_000;
const workers = 24;
/** Blocks one holder keeps before its oldest are pruned. */
const blocksKept = 250;

type Local = readonly [number, number];

/** Prompts by shape, as local hashes. */
const shapes: readonly ((random: Random) => Local[])[] = [
  // A shared system prompt with few continuations.
  (random) => [
    ...Array.from({ length: 6 }, (_, block): Local => [block, 1]),
    ...Array.from({ length: randomInt(random, 0, 6) }, (): Local => [randomInt(random, 0, 3), 2]),
  ],
  // The turns of a few conversations.
  (random) => {
    const chat = randomInt(random, 1, 8);
    return Array.from({ length: randomInt(random, 1, 24) }, (_, turn): Local => [turn, 10 + chat]);
  },
  // Nothing in common.
  (random) => [
    [randomU32(random), 3],
    [randomU32(random), 3],
  ],
  // One deep chain.
  (random) => Array.from({ length: randomInt(random, 1, 60) }, (_, block): Local => [block, 4]),
  // First blocks whose lanes have one XOR: a table with few secrets puts them at one place.
  (random) => {
    const lo = randomInt(random, 0, 40);
    return [[lo, lo ^ 0x5bd1e995]];
  },
];

const u64 = (text: string): U64 => readU64Decimal(text)!;
const decimal = ({ lo, hi }: U64): string => String((BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0));
const lanesOf = (texts: readonly string[]): Uint32Array =>
  Uint32Array.from(texts.flatMap((text) => [u64(text).lo, u64(text).hi]));

class Scenario {
  readonly random: Random;
  readonly naive = new NaiveIndex(chain);
  readonly make: () => KvIndex;
  index: KvIndex;

  constructor(seed: number, mode: IndexMode, core: KvIndexCore | undefined) {
    this.random = mulberry32(seed);
    // Every other seed draws all secrets alike, so that probes and set hashes collide.
    const secrets = seed % 2 === 0 ? mulberry32(seed + 1) : () => 0.37;
    this.make = () => createKvIndex({ mode, random: secrets, chain, holdersMax: workers, core });
    this.index = this.make();
  }

  step(): void {
    const { random } = this;
    const key = `w${randomInt(random, 0, workers - 1)}`;
    const slot = this.index.holder(key, 0);
    const holder = this.naive.holder(key);
    const choice = random();
    if (choice < 0.55) this.#store(slot, holder);
    else if (choice < 0.9) this.#remove(slot, holder);
    else if (choice < 0.97) this.#prune(slot, holder);
    else if (choice < 0.98) this.#restart(slot, key);
    else if (choice < 0.985) this.#lose(slot, key);
    else if (choice < 0.995) this.#dump(slot, key);
    else if (choice < 0.998) this.index.maintain(randomInt(random, 1, 2000));
    else this.#reload();
  }

  #path(): Local[] {
    const shape = shapes[randomInt(this.random, 0, shapes.length - 1)]!;
    return shape(this.random);
  }

  #tier(): Tier {
    return this.random() < 0.7 ? 0 : (randomInt(this.random, 1, tierCount - 1) as Tier);
  }

  /** Names of the blocks of a prompt as the holder's engine gives them. */
  #namesOf(slot: number, locals: readonly Local[]): string[] {
    const { random } = this;
    const paths = this.naive.pathsOf(locals);
    if (this.index.mode === "identity") return paths.map(decimal);
    // One engine of four has sixteen names in all, so that names move from block to block.
    if (slot % 4 === 0) {
      return paths.map(() => decimal({ lo: randomInt(random, 0, 3), hi: randomInt(random, 0, 3) }));
    }
    // Two names a block, now and then, so that stores replace names.
    return paths.map(({ lo, hi }) => decimal({ lo: lo ^ slot, hi: random() < 0.05 ? hi ^ 1 : hi }));
  }

  #store(slot: number, holder: NaiveHolder, staged = false): void {
    const { random } = this;
    const locals = this.#path();
    const from = random() < 0.5 ? 0 : randomInt(random, 0, locals.length - 1);
    const names = this.#namesOf(slot, locals);
    const above = from > 0 ? this.naive.pathsOf(locals)[from - 1] : undefined;
    const parent = above && (holder.entries.get(above)?.name ?? names[from - 1]!);
    const blocks = locals
      .slice(from)
      .map((local, at): NaiveBlock => ({ local, name: names[from + at]! }));
    const lanes = Uint32Array.from(
      blocks.flatMap(({ local, name }) => [...local, u64(name).lo, u64(name).hi]),
    );
    const tier = this.#tier();
    const store = staged ? "storeStaged" : "store";
    const result = this.index[store](
      slot,
      parent === undefined ? undefined : u64(parent),
      lanes,
      tier,
    );
    expectSame(result, this.naive.store(holder, parent, blocks, tier));
  }

  #remove(slot: number, holder: NaiveHolder): void {
    const { random } = this;
    const held = [...holder.pathOf.keys()];
    const names = Array.from({ length: randomInt(random, 1, 6) }, () => {
      const at = randomInt(random, 0, Math.floor(1.1 * held.length));
      return held[at] ?? this.#namesOf(slot, this.#path()).at(-1)!;
    });
    const tier = this.#tier();
    const expected = this.naive.remove(holder, names, tier);
    expectSame(this.index.remove(slot, lanesOf(names), tier), expected);
  }

  /** What an engine does when its memory is full: the oldest blocks go, wherever they are. */
  #prune(slot: number, holder: NaiveHolder): void {
    const names = [...holder.pathOf.keys()].slice(0, Math.max(0, holder.pathOf.size - blocksKept));
    for (let tier = 0; tier < tierCount; tier++) {
      const expected = this.naive.remove(holder, names, tier);
      expectSame(this.index.remove(slot, lanesOf(names), tier as Tier), expected);
    }
  }

  #restart(slot: number, key: string): void {
    this.index.clear(slot);
    this.naive.holders.delete(key);
  }

  /** The worker is gone; it may come back under its id. */
  #lose(slot: number, key: string): void {
    if (this.random() < 0.5) this.index.removeHolder(slot);
    else this.index.removeWorker(key);
    this.naive.holders.delete(key);
    if (this.random() < 0.5) this.index.holder(key, 0, 100);
  }

  /** A dump replaces the holder, or is given up halfway. */
  #dump(slot: number, key: string): void {
    const copy = new NaiveHolder();
    this.index.beginStaged(slot);
    for (let event = randomInt(this.random, 0, 5); event > 0; event--)
      this.#store(slot, copy, true);
    const givenUp = this.random() < 0.3;
    if (givenUp) this.index.dropStaged(slot);
    else {
      this.index.commitStaged(slot);
      this.naive.holders.set(key, copy);
    }
  }

  /** Exports in slices of any size and goes on with another index that was made from them. */
  #reload(): void {
    const before = this.index;
    before.beginExport();
    const after = this.make();
    const slotOf = new Int32Array(before.slots).fill(-1);
    for (let slot = before.slots - 1; slot >= 0; slot--) {
      const id = before.holderAt(slot);
      if (!id) continue;
      const present = after.holder(id.workerKey, id.dpRank);
      after.beginStaged(present, before.blocksOf(slot));
      slotOf[slot] = present;
    }
    const rowsMax = randomInt(this.random, 1, 700);
    for (
      let rows = before.exportRows(rowsMax);
      rows !== "done";
      rows = before.exportRows(rowsMax)
    ) {
      if (rows === "changed") throw new Error("an export that nobody disturbed was given up");
      expect(after.restoreStaged(rows, slotOf)).toBe("ok");
    }
    for (const slot of slotOf) after.commitStaged(slot);
    this.index = after;
  }

  check(): void {
    const { index, naive } = this;
    const locals = this.#path();
    const paths = naive.pathsOf(locals);
    const sequence = Uint32Array.from(paths.flatMap(({ lo, hi }) => [lo, hi]));
    const column = () => new Int32Array(index.slots);
    const [device, slow] = [column(), { host: column(), disk: column() }];
    const deepest = index.match(sequence, paths.length, device, slow);
    expectSame(deepest, Math.max(0, ...device));
    let size = 0;
    for (const [key, holder] of naive.holders) {
      const slot = index.findHolder(key, 0) ?? -1;
      for (const [column, tiers] of [
        [device, [0]],
        [slow.host, [0, 1]],
        [slow.disk, [0, 1, 2, 3]],
      ] as const) {
        expectSame(column[slot] ?? 0, holder.depth(paths, tiers));
      }
      size += holder.entries.size;
    }
    expectSame(index.size, size);
  }

  checkDigests(): void {
    for (const [key, holder] of this.naive.holders) {
      const slot = this.index.findHolder(key, 0);
      if (slot === undefined) expectSame(holder.entries.size, 0);
      else expect(this.index.digestOf(slot)).toEqual(holder.digest());
    }
  }
}

/** As `expect(got).toBe(expected)`, which by itself takes as long as the step that it judges. */
function expectSame(got: unknown, expected: unknown): void {
  if (!Object.is(got, expected)) expect(got).toBe(expected);
}

/** Registers the fuzz of one implementation. */
export function fuzzKvIndex(name: string, core?: KvIndexCore): void {
  const rows = Array.from({ length: seeds }, (_, seed) => seed).flatMap((seed) =>
    (["identity", "opaque"] as const).map((mode) => ({ seed, mode })),
  );
  it.each(rows)(`${name}, $mode: any order of calls is what the rules say, seed $seed`, (row) => {
    const scenario = new Scenario(row.seed, row.mode, core);
    for (let step = 0; step < steps; step++) {
      scenario.step();
      if (step % 5 === 0) scenario.check();
      if (step % 500 === 0) scenario.checkDigests();
    }
    scenario.checkDigests();
    const { index } = scenario;
    for (let worker = 0; worker < workers; worker++) index.removeWorker(`w${worker}`);
    while (index.maintain(1000));
    expect(index.stats()).toMatchObject({ size: 0, blocks: 0, sets: 0, holders: 0 });
  });
}
