import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import { ForgetList, nowhere, pruneTarget } from "../../src/core/forget-list.ts";
import { PredictedIndex, type PredictedIndexOptions } from "../../src/core/predicted-index.ts";
import { loadBlockHasher } from "../../src/protocol/block-hashes.ts";
import { readU64Decimal } from "../../src/protocol/u64.ts";
import golden from "../golden/prune.json" with { type: "json" };

const blockHasher = await loadBlockHasher();

interface GoldenEntry {
  readonly key: string;
  readonly worker_id: string;
  readonly dp_rank: number;
  readonly seq_position: number;
}

interface BookStep {
  readonly at_secs?: number;
  readonly insert?: readonly GoldenEntry[];
  readonly op?: string;
  readonly current_size?: number;
  readonly expected_removed_in_order?: readonly GoldenEntry[];
  readonly expected_left?: number;
}

interface RoutedPrompt {
  readonly tokens: readonly number[];
  readonly lora_name?: string;
  readonly worker_id?: string;
  readonly dp_rank?: number;
}

interface IndexStep {
  readonly at_secs: number;
  readonly query?: RoutedPrompt;
  readonly route?: RoutedPrompt;
  readonly remove_worker?: string;
  readonly expected_overlap?: Readonly<Record<string, number>>;
  readonly expected_pruned?: number;
  readonly expected_total?: number;
}

/** Numbers holders as they come. */
function slotBook(added: (slot: number, workerId: string, dpRank: number) => void) {
  const names: string[] = [];
  return {
    names,
    slotOf(workerId: string, dpRank: number): number {
      const name = `${workerId}:${dpRank}`;
      const known = names.indexOf(name);
      if (known >= 0) return known;
      names.push(name);
      added(names.length - 1, workerId, dpRank);
      return names.length - 1;
    },
  };
}

/** Entries to prune: none while `size` is within its maximum. */
function pruneCount(size: number, sizeMax: number, ratio: number): number {
  return size > sizeMax ? size - pruneTarget(sizeMax, ratio) : 0;
}

for (const { name, config, steps } of golden.prune_manager) {
  it(`forgets in the order of the vectors: ${name}`, () => {
    const list = new ForgetList(mulberry32(1));
    const entries = new Map<string, GoldenEntry>();
    const book = slotBook((slot, workerId, dpRank) => list.addHolder(slot, workerId, dpRank));
    const nameOf = (lo: number, hi: number, slot: number): string => `${lo} ${hi} ${slot}`;
    const removeFirst = (): GoldenEntry | undefined => {
      const entry = list.first;
      const removed = entries.get(nameOf(list.loOf(entry), list.hiOf(entry), list.slotOf(entry)));
      list.remove(entry);
      return removed;
    };
    for (const step of steps as readonly BookStep[]) {
      const nowMs = (step.at_secs ?? 0) * 1000;
      for (const entry of step.insert ?? []) {
        const { lo, hi } = readU64Decimal(entry.key) ?? { lo: 0, hi: 0 };
        const slot = book.slotOf(entry.worker_id, entry.dp_rank);
        entries.set(nameOf(lo | 0, hi | 0, slot), entry);
        list.put(slot, lo | 0, hi | 0, entry.seq_position, nowMs + config.ttl_secs * 1000);
      }
      const removed: (GoldenEntry | undefined)[] = [];
      if (step.op === "pop_expired") {
        while (list.first !== nowhere && list.forgetAtMsOf(list.first) <= nowMs) {
          removed.push(removeFirst());
        }
      }
      if (step.op === "prune") {
        const { max_tree_size: sizeMax, prune_target_ratio: ratio } = config;
        const excess = pruneCount(step.current_size ?? 0, sizeMax, ratio);
        for (let left = excess; left > 0; left--) removed.push(removeFirst());
      }
      if (step.expected_removed_in_order) expect(removed).toEqual(step.expected_removed_in_order);
      if (step.expected_left !== undefined) expect(list.size).toBe(step.expected_left);
    }
  });
}

it("has the prune targets of the vectors", () => {
  for (const { max_tree_size: sizeMax, prune_target_ratio, expected_target } of golden.targets) {
    expect(pruneTarget(sizeMax, prune_target_ratio)).toBe(expected_target);
  }
});

const plain: PredictedIndexOptions = {
  random: mulberry32(1),
  policy: "ttl",
  ttlMs: 120_000,
  sizeMax: 1000,
  pruneTargetRatio: 0.8,
};

/** Overlaps by holder name, holders without any left out. */
function overlapsOf(index: PredictedIndex, names: readonly string[], query: Query, nowMs: number) {
  const depths = new Int32Array(Math.max(index.slots, 1));
  index.match(query.sequence, query.blocks, depths, nowMs);
  const found = names.map((name, slot) => [name, depths[slot] ?? 0] as const);
  return Object.fromEntries(found.filter(([, depth]) => depth > 0));
}

interface Query {
  readonly sequence: Uint32Array;
  readonly blocks: number;
}

for (const { name, config, steps } of golden.end_to_end) {
  it(`predicts what the vectors predict: ${name}`, () => {
    const index = new PredictedIndex({
      ...plain,
      ttlMs: config.ttl_secs * 1000,
      sizeMax: config.max_tree_size,
      pruneTargetRatio: config.prune_target_ratio,
    });
    const book = slotBook((slot, workerId, dpRank) => index.addHolder(slot, workerId, dpRank, 0));
    const hashed = ({ tokens, lora_name: loraName }: RoutedPrompt): Query =>
      blockHasher.hashBlocks(Uint32Array.from(tokens), config.block_size, { loraName });
    for (const step of steps as readonly IndexStep[]) {
      const nowMs = step.at_secs * 1000;
      if (step.route) {
        const slot = book.slotOf(step.route.worker_id ?? "", step.route.dp_rank ?? 0);
        const { sequence, blocks } = hashed(step.route);
        expect(index.record(slot, sequence, blocks, nowMs)).toBe(step.expected_pruned);
        expect(index.size).toBe(step.expected_total);
      }
      if (step.query) {
        expect(overlapsOf(index, book.names, hashed(step.query), nowMs)).toEqual(
          step.expected_overlap,
        );
      }
      const gone = step.remove_worker;
      if (gone === undefined) continue;
      for (const [slot, holder] of book.names.entries()) {
        if (holder.startsWith(`${gone}:`)) index.removeHolder(slot);
      }
    }
  });
}

/** Hashes of the first `blocks` blocks of a prompt; prompts share `trunk` blocks. */
function promptOf(family: number, blocks: number, trunk: number): Query {
  const sequence = new Uint32Array(2 * blocks);
  for (let block = 0; block < blocks; block++) {
    sequence[2 * block] = block;
    sequence[2 * block + 1] = block < trunk ? 0xffffffff : family;
  }
  return { sequence, blocks };
}

/** The rules once more, as a list that is sorted whenever somebody asks. */
class NaiveIndex {
  entries: { slot: number; block: string; position: number; forgetAtMs: number }[] = [];
  readonly #options: PredictedIndexOptions;
  readonly #cacheBlocks: readonly number[];

  constructor(options: PredictedIndexOptions, cacheBlocks: readonly number[]) {
    this.#options = options;
    this.#cacheBlocks = cacheBlocks;
  }

  record(slot: number, { sequence, blocks }: Query, nowMs: number): void {
    const { policy, ttlMs, sizeMax, pruneTargetRatio } = this.#options;
    this.expire(nowMs);
    for (let position = 0; position < blocks; position++) {
      const block = nameOf(sequence, position);
      this.entries = this.entries.filter((one) => one.slot !== slot || one.block !== block);
      const forgetAtMs = nowMs + (policy === "ttl" ? ttlMs : 0);
      this.entries.push({ slot, block, position, forgetAtMs });
    }
    this.entries.sort(byForgetting);
    if (policy === "ttl") {
      this.entries.splice(0, pruneCount(this.entries.length, sizeMax, pruneTargetRatio));
      return;
    }
    const own = this.entries.filter((one) => one.slot === slot);
    const excess = own.slice(0, Math.max(own.length - (this.#cacheBlocks[slot] ?? 0), 0));
    this.entries = this.entries.filter((one) => !excess.includes(one));
  }

  expire(nowMs: number): void {
    if (this.#options.policy === "lru") return;
    this.entries = this.entries.filter((one) => one.forgetAtMs > nowMs);
  }

  match({ sequence, blocks }: Query, slot: number, nowMs: number): number {
    this.expire(nowMs);
    const own = new Set(this.entries.flatMap((one) => (one.slot === slot ? [one.block] : [])));
    let depth = 0;
    while (depth < blocks && own.has(nameOf(sequence, depth))) depth++;
    return depth;
  }
}

type NaiveEntry = NaiveIndex["entries"][number];

const nameOf = (sequence: Uint32Array, position: number): string =>
  `${(BigInt(sequence[2 * position + 1] ?? 0) << 32n) | BigInt(sequence[2 * position] ?? 0)}`;

function byForgetting(a: NaiveEntry, b: NaiveEntry): number {
  if (a.forgetAtMs !== b.forgetAtMs) return a.forgetAtMs - b.forgetAtMs;
  if (a.position !== b.position) return b.position - a.position;
  if (a.block !== b.block) return BigInt(a.block) < BigInt(b.block) ? 1 : -1;
  return b.slot - a.slot;
}

const holders = 4;
const step = fc.record({
  waitMs: fc.constantFrom(0, 0, 1, 40, 99, 100),
  slot: fc.nat(holders - 1),
  family: fc.nat(3),
  blocks: fc.nat(12),
  trunk: fc.constantFrom(0, 3),
  act: fc.constantFrom("record", "record", "record", "match", "remove"),
});

for (const policy of ["ttl", "lru"] as const) {
  it(`forgets like a list that is sorted at every step: ${policy}`, () => {
    const run = fc.property(fc.array(step, { maxLength: 60 }), fc.nat(), (steps, seed) => {
      const options = { ...plain, policy, ttlMs: 100, sizeMax: 30, pruneTargetRatio: 0.6 };
      const cacheBlocks = [5, 8, 13, 30];
      const index = new PredictedIndex({ ...options, random: mulberry32(seed) });
      const naive = new NaiveIndex(options, cacheBlocks);
      for (const [slot, blocks] of cacheBlocks.entries()) index.addHolder(slot, "7", slot, blocks);
      let nowMs = 0;
      for (const { waitMs, slot, family, blocks, trunk, act } of steps) {
        nowMs += waitMs;
        const query = promptOf(family, blocks, trunk);
        if (act === "record") {
          index.record(slot, query.sequence, blocks, nowMs);
          naive.record(slot, query, nowMs);
        }
        if (act === "remove") {
          index.removeHolder(slot);
          index.addHolder(slot, "7", slot, cacheBlocks[slot] ?? 0);
          naive.entries = naive.entries.filter((one) => one.slot !== slot);
        }
        const depths = new Int32Array(holders);
        index.match(query.sequence, blocks, depths, nowMs);
        expect([...depths]).toEqual(cacheBlocks.map((_, at) => naive.match(query, at, nowMs)));
        expect(index.size).toBe(naive.entries.length);
        expect(index.blocksOf(slot)).toBe(naive.entries.filter((one) => one.slot === slot).length);
      }
    });
    fc.assert(run, { seed: 7, numRuns: 200 });
  });
}

it("keeps to its size, however many prompts come", () => {
  const index = new PredictedIndex({ ...plain, random: mulberry32(3), sizeMax: 500 });
  index.addHolder(0, "1", 0, 0);
  for (let family = 0; family < 1000; family++) {
    const { sequence, blocks } = promptOf(family, 20, 0);
    index.record(0, sequence, blocks, family);
    expect(index.size).toBeLessThanOrEqual(500);
  }
  const { bytes } = index;
  for (let family = 0; family < 1000; family++) {
    index.record(0, promptOf(family, 20, 0).sequence, 20, 1000 + family);
  }
  expect(index.bytes).toBe(bytes);
  expect(index.totals.pruneRuns).toBeGreaterThan(10);
  expect(index.expire(1e9)).toBeGreaterThan(0);
  expect(index.size).toBe(0);
});

it("prunes much in slices and stays within its maximum and one prompt", () => {
  const sizeMax = 40_000;
  const index = new PredictedIndex({
    ...plain,
    random: mulberry32(4),
    sizeMax,
    pruneTargetRatio: 0,
  });
  index.addHolder(0, "1", 0, 0);
  const pruned: number[] = [];
  for (let family = 0; index.totals.pruneRuns === 0; family++) {
    const { sequence, blocks } = promptOf(family, 1000, 0);
    pruned.push(index.record(0, sequence, blocks, family));
    expect(index.size).toBeLessThanOrEqual(sizeMax + blocks);
  }
  expect(pruned.filter((count) => count > 0).slice(0, -1)).toEqual(Array(38).fill(2048));
  expect(index.size).toBe(0);
});

it("ignores prompts for a holder it does not know", () => {
  const index = new PredictedIndex(plain);
  expect(index.record(3, promptOf(1, 4, 0).sequence, 4, 0)).toBe(0);
  expect(index.size).toBe(0);
});
