import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32, type Random, randomInt, randomU32 } from "../../src/base/random.ts";
import { createKvIndex } from "../../src/core/create-kv-index.ts";
import type { IndexMode, KvIndex } from "../../src/core/kv-index.ts";
import { loadBlockHasher } from "../../src/protocol/block-hashes.ts";
import { readU64Decimal, type U64 } from "../../src/protocol/u64.ts";
import vectors from "../golden/radix.json" with { type: "json" };

const { chain } = await loadBlockHasher();

const u64 = (text: string): U64 => {
  const lanes = readU64Decimal(text);
  if (!lanes) throw new Error(`not a u64: ${text}`);
  return lanes;
};
const lanes = (texts: readonly string[]): Uint32Array =>
  Uint32Array.from(texts.flatMap((text) => [u64(text).lo, u64(text).hi]));

function sequenceOf(locals: readonly string[]): Uint32Array {
  const sequence = lanes(locals);
  chain(sequence, 1, locals.length);
  return sequence;
}

interface ScriptEvent {
  worker_id: string;
  dp_rank?: number;
  op: string;
  parent_hash?: string | null;
  blocks?: { block_hash: string; tokens_hash: string }[];
  block_hashes?: string[];
}
interface ScriptStep {
  event?: ScriptEvent;
  query?: string[];
  early_exit?: boolean;
  expected_result?: string;
  expected_overlap?: Record<string, number>;
  expected_blocks_per_holder?: Record<string, number>;
  expected_total?: number;
}

function applyScriptEvent(index: KvIndex, event: ScriptEvent): string {
  if (event.op === "remove_worker") {
    index.removeWorker(event.worker_id);
    return "ok";
  }
  const slot = index.holder(event.worker_id, event.dp_rank ?? 0);
  if (event.op === "cleared") {
    index.clear(slot);
    return "ok";
  }
  if (event.op === "removed") return index.remove(slot, lanes(event.block_hashes!));
  const parent = event.parent_hash == null ? undefined : u64(event.parent_hash);
  const blocks = event.blocks!.flatMap((block) => [block.tokens_hash, block.block_hash]);
  return index.store(slot, parent, lanes(blocks));
}

it.each(vectors.scripts as unknown as { name: string; steps: ScriptStep[] }[])(
  "$name",
  ({ steps }) => {
    const index = createKvIndex({ mode: "opaque", random: mulberry32(7), chain });
    const holders = new Set<string>();
    const nonZero = (countOf: (slot: number) => number): Record<string, number> => {
      const found: Record<string, number> = {};
      for (const key of holders) {
        const [worker, rank] = key.split(":");
        const slot = index.findHolder(worker!, Number(rank));
        const value = slot === undefined ? 0 : countOf(slot);
        if (value > 0) found[key] = value;
      }
      return found;
    };
    for (const step of steps) {
      if (step.event) {
        holders.add(`${step.event.worker_id}:${step.event.dp_rank ?? 0}`);
        expect(applyScriptEvent(index, step.event)).toBe(step.expected_result);
      }
      // The router never exits early, so lower bounds are not part of the index.
      if (step.query && !step.early_exit) {
        const depths = new Int32Array(index.slots);
        index.match(sequenceOf(step.query), step.query.length, depths);
        expect(nonZero((slot) => depths[slot]!)).toEqual(step.expected_overlap);
      }
      if (step.expected_blocks_per_holder) {
        expect(nonZero((slot) => index.blocksOf(slot))).toEqual(step.expected_blocks_per_holder);
        expect(index.size).toBe(step.expected_total);
        while (index.maintain(64));
        if (step.expected_total === 0) expect(index.stats().blocks).toBe(0);
      }
    }
  },
);

/** One holder of the oracle: its names and the paths they stand for, both ways. */
class NaiveHolder {
  readonly pathOf = new Map<string, string>();
  readonly nameOf = new Map<string, string>();

  store(parent: string | undefined, blocks: readonly { local: string; name: string }[]): string {
    const names = blocks.map((block) => block.name);
    if (new Set(names).size < names.length) return "invalid_block";
    if (parent !== undefined && names.includes(parent)) return "invalid_block";
    let path = parent === undefined ? "" : this.pathOf.get(parent);
    if (path === undefined) return "parent_block_not_found";
    for (const { local, name } of blocks) {
      path = `${path}/${local}`;
      this.remove(name);
      const older = this.nameOf.get(path);
      if (older !== undefined) this.pathOf.delete(older);
      this.pathOf.set(name, path);
      this.nameOf.set(path, name);
    }
    return "ok";
  }

  remove(name: string): boolean {
    const path = this.pathOf.get(name);
    if (path === undefined) return false;
    this.pathOf.delete(name);
    return this.nameOf.delete(path);
  }

  depth(locals: readonly string[]): number {
    let path = "";
    const missing = locals.findIndex((local) => {
      path = `${path}/${local}`;
      return !this.nameOf.has(path);
    });
    return missing < 0 ? locals.length : missing;
  }
}

/** Prompts by shape, as lists of local hashes. */
const shapes: Record<string, (random: Random) => string[]> = {
  "shared system prompt": (random) => [
    ...["1", "2", "3", "4"],
    ...Array.from({ length: randomInt(random, 0, 6) }, () => String(randomInt(random, 10, 13))),
  ],
  "multi-turn": (random) => {
    const chat = randomInt(random, 1, 3);
    const turns = randomInt(random, 1, 20);
    return Array.from({ length: turns }, (_, turn) => String(1000 * chat + turn));
  },
  unrelated: (random) => [String(randomU32(random)), String(randomU32(random))],
  "deep chain": (random) =>
    Array.from({ length: randomInt(random, 1, 60) }, (_, block) => String(500_000 + block)),
};

type Naming = (random: Random, path: readonly string[], holder: number) => string;

/** Two names a path, now and then, so that stores replace names. */
const ownNames: Naming = (random, path, holder) => {
  const text = [...path, String(holder), random() < 0.1 ? "2" : "1"];
  return nameOfSequence(text);
};
/** Sixteen names in all, so that names move from block to block. */
const fewNames: Naming = (random) =>
  String(BigInt(randomInt(random, 0, 3)) * 4294967296n + BigInt(randomInt(random, 0, 3)));

function nameOfSequence(locals: readonly string[]): string {
  const sequence = sequenceOf(locals);
  const word = sequence.length - 2;
  return String((BigInt(sequence[word + 1]!) << 32n) | BigInt(sequence[word]!));
}

const holdersMax = 40;

class Scenario {
  readonly random: Random;
  readonly index: KvIndex;
  readonly naive = new Map<number, NaiveHolder>();
  readonly mode: IndexMode;
  readonly naming: Naming;
  readonly shape: (random: Random) => string[];

  constructor(seed: number, mode: IndexMode, naming: Naming, shape: string) {
    this.random = mulberry32(seed);
    this.mode = mode;
    this.naming = mode === "identity" ? (_, path) => nameOfSequence(path) : naming;
    this.shape = shapes[shape]!;
    this.index = createKvIndex({ mode, random: this.random, chain, holdersMax });
  }

  step(): void {
    const worker = randomInt(this.random, 0, holdersMax - 1);
    const slot = this.index.holder(`w${worker}`, 0);
    const known = this.naive.get(worker) ?? new NaiveHolder();
    this.naive.set(worker, known);
    const choice = this.random();
    if (choice < 0.55) this.#store(worker, slot, known);
    else if (choice < 0.95) this.#remove(worker, slot, known);
    else if (choice < 0.98) {
      this.index.clear(slot);
      this.naive.set(worker, new NaiveHolder());
    } else {
      this.index.removeHolder(slot);
      this.naive.delete(worker);
    }
  }

  #store(worker: number, slot: number, known: NaiveHolder): void {
    const path = this.shape(this.random);
    const from = this.random() < 0.5 ? 0 : randomInt(this.random, 0, path.length - 1);
    const nameAt = (end: number) => this.naming(this.random, path.slice(0, end), worker);
    const parentPath = path
      .slice(0, from)
      .map((local) => `/${local}`)
      .join("");
    const parent = from === 0 ? undefined : (known.nameOf.get(parentPath) ?? nameAt(from));
    const blocks = path
      .slice(from)
      .map((local, block) => ({ local, name: nameAt(from + block + 1) }));
    const flat = lanes(blocks.flatMap(({ local, name }) => [local, name]));
    const result = this.index.store(slot, parent === undefined ? undefined : u64(parent), flat);
    expect(result).toBe(known.store(parent, blocks));
  }

  #remove(worker: number, slot: number, known: NaiveHolder): void {
    const held = [...known.pathOf.keys()];
    const names = Array.from({ length: randomInt(this.random, 1, 6) }, () => {
      const at = randomInt(this.random, 0, held.length);
      return held[at] ?? this.naming(this.random, this.shape(this.random), worker);
    });
    const found = names.map((name) => known.remove(name));
    const expected = found.every(Boolean) ? "ok" : "block_not_found";
    expect(this.index.remove(slot, lanes(names))).toBe(expected);
  }

  check(): void {
    const path = this.shape(this.random);
    const depths = new Int32Array(this.index.slots);
    const deepest = this.index.match(sequenceOf(path), path.length, depths);
    expect(deepest).toBe(Math.max(0, ...depths));
    let size = 0;
    for (const [worker, known] of this.naive) {
      const slot = this.index.findHolder(`w${worker}`, 0)!;
      expect(depths[slot]).toBe(known.depth(path));
      expect(this.index.blocksOf(slot)).toBe(known.nameOf.size);
      size += known.nameOf.size;
    }
    expect(this.index.size).toBe(size);
  }
}

const scenarios = Object.keys(shapes).flatMap((shape) => [
  { shape, naming: "own", mode: "opaque" as const },
  { shape, naming: "few", mode: "opaque" as const },
  { shape, naming: "own", mode: "identity" as const },
]);

it.each(scenarios)("$mode index = paths per holder: $shape, $naming names", (row) => {
  fc.assert(
    fc.property(fc.integer(), (seed) => {
      const naming = row.naming === "own" ? ownNames : fewNames;
      const scenario = new Scenario(seed, row.mode, naming, row.shape);
      for (let step = 0; step < 200; step++) {
        scenario.step();
        if (step % 5 === 0) scenario.check();
      }
      const { index } = scenario;
      for (const worker of scenario.naive.keys()) index.removeWorker(`w${worker}`);
      while (index.maintain(100));
      expect(index.stats()).toMatchObject({ size: 0, blocks: 0, sets: 0, holders: 0 });
    }),
    { numRuns: 6 },
  );
});

it("a block held under a new name forgets the old one", () => {
  const index = createKvIndex({ mode: "opaque", random: mulberry32(1), chain });
  const slot = index.holder("1", 0);
  expect(index.store(slot, undefined, lanes(["1", "100"]))).toBe("ok");
  expect(index.store(slot, undefined, lanes(["1", "101"]))).toBe("ok");
  expect(index.remove(slot, lanes(["100"]))).toBe("block_not_found");
  expect(index.blocksOf(slot)).toBe(1);
  expect(index.remove(slot, lanes(["101"]))).toBe("ok");
  expect(index.size).toBe(0);
});

it("replaced names are purged before they pile up", () => {
  const index = createKvIndex({ mode: "opaque", random: mulberry32(1), chain });
  const slot = index.holder("1", 0);
  for (let block = 1; block <= 6000; block++) {
    index.store(slot, undefined, lanes([String(block), String(2 * block)]));
    index.store(slot, undefined, lanes([String(block), String(2 * block + 1)]));
  }
  expect(index.blocksOf(slot)).toBe(6000);
  for (let block = 1; block <= 6000; block++) {
    expect(index.remove(slot, lanes([String(2 * block)]))).toBe("block_not_found");
    expect(index.remove(slot, lanes([String(2 * block + 1)]))).toBe("ok");
  }
  expect(index.size).toBe(0);
});

it("refuses the holder, the block and the set beyond their maximum", () => {
  const options = { mode: "opaque" as const, random: mulberry32(1), chain };
  const few = createKvIndex({ ...options, holdersMax: 2, blocksMax: 2 });
  expect([few.holder("a", 0), few.holder("b", 0), few.holder("c", 0)]).toEqual([0, 1, -1]);
  expect(few.store(0, undefined, lanes(["1", "1", "2", "2"]))).toBe("ok");
  expect(few.store(0, undefined, lanes(["3", "3"]))).toBe("capacity");
  expect(few.size).toBe(2);

  const noSets = createKvIndex({ ...options, setWordsMax: 3 });
  for (const worker of ["a", "b", "c"]) noSets.holder(worker, 0);
  expect(noSets.store(0, undefined, lanes(["1", "1"]))).toBe("ok");
  expect(noSets.store(1, undefined, lanes(["2", "1"]))).toBe("ok");
  expect(noSets.store(2, undefined, lanes(["3", "1"]))).toBe("capacity");
  expect(noSets.remove(2, lanes(["1"]))).toBe("block_not_found");
  expect(noSets.size).toBe(2);
});

it("cleared holders get new bits until the pass over the table gives them back", () => {
  const index = createKvIndex({ mode: "identity", random: mulberry32(3), chain, holdersMax: 3 });
  const depths = new Int32Array(3);
  for (let round = 0; round < 50; round++) {
    const slot = index.holder(`w${round % 3}`, 0);
    index.store(slot, undefined, lanes(["5", "5"]));
    expect(index.match(lanes(["5"]), 1, depths)).toBe(1);
    index.clear(slot);
    expect(index.match(lanes(["5"]), 1, depths)).toBe(0);
  }
  while (index.maintain(10));
  expect(index.stats()).toMatchObject({ size: 0, blocks: 0, sets: 0 });
});

it("grows in slices without losing a block", () => {
  const index = createKvIndex({ mode: "identity", random: mulberry32(5), chain });
  const random = mulberry32(6);
  const slots = [index.holder("a", 0), index.holder("b", 0)];
  const keys = Uint32Array.from({ length: 2 * 50_000 }, () => randomU32(random));
  for (let block = 0; block < 50_000; block++) {
    const key = keys.subarray(2 * block, 2 * block + 2);
    index.store(slots[block % 2]!, undefined, Uint32Array.of(0, 0, key[0]!, key[1]!));
    if (block % 3 === 0) index.remove(slots[block % 2]!, key);
  }
  const depths = new Int32Array(2);
  for (let block = 0; block < 50_000; block++) {
    index.match(keys.subarray(2 * block, 2 * block + 2), 1, depths);
    const expected = [0, 0];
    if (block % 3 !== 0) expected[block % 2] = 1;
    expect([depths[0], depths[1]]).toEqual(expected);
  }
  expect(index.stats().longestProbe).toBeLessThan(128);
});
