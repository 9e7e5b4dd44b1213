/** What every implementation of the KV index does, by vectors and by example; see also the fuzz. */
import { expect, it } from "vitest";
import { mulberry32, randomU32 } from "../../src/base/random.ts";
import { createKvIndex } from "../../src/core/create-kv-index.ts";
import {
  type IndexMode,
  type KvIndex,
  type KvIndexCore,
  type KvIndexOptions,
  rowWords,
  type SlowDepths,
} from "../../src/core/kv-index.ts";
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

function columns(index: KvIndex): [Int32Array, SlowDepths] {
  const column = () => new Int32Array(index.slots);
  return [column(), { host: column(), disk: column() }];
}

/** Registers the conformance tests of one implementation. */
export function testKvIndex(name: string, core?: KvIndexCore): void {
  const make = (mode: IndexMode, seed: number, limits: Partial<KvIndexOptions> = {}): KvIndex =>
    createKvIndex({ mode, random: mulberry32(seed), chain, core, ...limits });

  it.each(vectors.scripts as unknown as { name: string; steps: ScriptStep[] }[])(
    `${name}: $name`,
    ({ steps }) => {
      const index = make("opaque", 7);
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

  it(`${name}: a block held under a new name forgets the old one`, () => {
    const index = make("opaque", 1);
    const slot = index.holder("1", 0);
    expect(index.store(slot, undefined, lanes(["1", "100"]))).toBe("ok");
    expect(index.store(slot, undefined, lanes(["1", "101"]))).toBe("ok");
    expect(index.remove(slot, lanes(["100"]))).toBe("block_not_found");
    expect(index.blocksOf(slot)).toBe(1);
    expect(index.remove(slot, lanes(["101"]))).toBe("ok");
    expect(index.size).toBe(0);
  });

  it(`${name}: replaced names are purged before they pile up`, () => {
    const index = make("opaque", 1);
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

  it(`${name}: refuses the holder, the block and the set beyond their maximum`, () => {
    const few = make("opaque", 1, { holdersMax: 2, blocksMax: 2 });
    expect([few.holder("a", 0), few.holder("b", 0), few.holder("c", 0)]).toEqual([0, 1, -1]);
    expect(few.store(0, undefined, lanes(["1", "1", "2", "2"]))).toBe("ok");
    expect(few.store(0, undefined, lanes(["3", "3"]))).toBe("capacity");
    expect(few.size).toBe(2);

    const noSets = make("opaque", 1, { setWordsMax: 3 });
    for (const worker of ["a", "b", "c"]) noSets.holder(worker, 0);
    expect(noSets.store(0, undefined, lanes(["1", "1"]))).toBe("ok");
    expect(noSets.store(1, undefined, lanes(["2", "1"]))).toBe("ok");
    expect(noSets.store(2, undefined, lanes(["3", "1"]))).toBe("capacity");
    expect(noSets.remove(2, lanes(["1"]))).toBe("block_not_found");
    expect(noSets.size).toBe(2);
  });

  it(`${name}: cleared holders get new bits until the pass over the table gives them back`, () => {
    const index = make("identity", 3, { holdersMax: 3 });
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

  it(`${name}: grows in slices without losing a block`, () => {
    const index = make("identity", 5);
    const random = mulberry32(6);
    const slots = [index.holder("a", 0), index.holder("b", 0)];
    const keys = Uint32Array.from({ length: 2 * 50_000 }, () => randomU32(random));
    for (let block = 0; block < 50_000; block++) {
      const key = keys.subarray(2 * block, 2 * block + 2);
      index.store(slots[block % 2]!, undefined, Uint32Array.of(0, 0, key[0]!, key[1]!));
      if (block % 3 === 0) index.remove(slots[block % 2]!, key);
    }
    const depths = new Int32Array(2);
    const wrong: number[] = [];
    for (let block = 0; block < 50_000; block++) {
      index.match(keys.subarray(2 * block, 2 * block + 2), 1, depths);
      const held = block % 3 === 0 ? 0 : 1;
      if (depths[block % 2] !== held || depths[1 - (block % 2)] !== 0) wrong.push(block);
    }
    expect(wrong).toEqual([]);
    expect(index.stats().longestProbe).toBeLessThan(128);
  });

  it(`${name}: overlap of slower tiers is cumulative, removal touches one tier`, () => {
    const index = make("opaque", 1);
    const slot = index.holder("1", 0);
    const other = index.holder("2", 0);
    const path = ["1", "2", "3", "4", "5"];
    const depthsOf = (): number[] => {
      const [device, slow] = columns(index);
      index.match(sequenceOf(path), path.length, device, slow);
      return [device[slot]!, slow.host[slot]!, slow.disk[slot]!];
    };
    expect(index.store(slot, undefined, lanes(["1", "10", "2", "20"]))).toBe("ok");
    expect(index.slowTiers).toBe(false);
    expect(index.store(slot, u64("20"), lanes(["3", "30"]), 1)).toBe("ok");
    expect(index.store(slot, u64("30"), lanes(["4", "40"]), 2)).toBe("ok");
    expect(index.store(slot, u64("40"), lanes(["5", "50"]), 3)).toBe("ok");
    expect(index.slowTiers).toBe(true);
    expect(depthsOf()).toEqual([2, 3, 5]);
    expect([index.blocksOf(slot), index.size]).toEqual([5, 5]);
    // The same block in one more tier is no new block.
    expect(index.store(slot, undefined, lanes(["1", "10"]), 1)).toBe("ok");
    expect(index.size).toBe(5);
    expect(index.remove(slot, lanes(["10"]))).toBe("ok");
    expect(depthsOf()).toEqual([0, 3, 5]);
    expect(index.remove(slot, lanes(["10"]))).toBe("block_not_found");
    expect(index.remove(slot, lanes(["10"]), 1)).toBe("ok");
    expect(depthsOf()).toEqual([0, 0, 0]);
    expect([index.blocksOf(slot), index.blocksOf(other)]).toEqual([4, 0]);
    index.clear(slot);
    expect([...depthsOf(), index.size]).toEqual([0, 0, 0, 0]);
    while (index.maintain(100));
    expect(index.stats()).toMatchObject({ blocks: 0, sets: 0 });
  });

  it(`${name}: a block that moves to another path leaves every tier of the old one`, () => {
    const index = make("opaque", 1);
    const slot = index.holder("1", 0);
    for (const tier of [0, 1, 3] as const) index.store(slot, undefined, lanes(["1", "9"]), tier);
    index.store(slot, undefined, lanes(["2", "9"]), 1);
    const [device, slow] = columns(index);
    expect(index.match(sequenceOf(["1"]), 1, device, slow)).toBe(0);
    expect([slow.host[slot], slow.disk[slot]]).toEqual([0, 0]);
    expect(index.match(sequenceOf(["2"]), 1, device, slow)).toBe(0);
    expect([slow.host[slot], slow.disk[slot], index.size]).toEqual([1, 1, 1]);
  });

  it.each(["opaque", "identity"] as const)(
    `${name}, %s: rows restore a holder under another slot, removals by name included`,
    (mode) => {
      const before = make(mode, 1);
      before.holder("gone", 0);
      const slot = before.holder("kept", 2);
      before.store(0, undefined, lanes(["1", "1"]));
      before.store(slot, undefined, lanes(["1", "1", "2", mode === "opaque" ? "22" : "2"]));
      before.store(slot, undefined, lanes(["1", "1"]), 2);
      before.beginExport();
      const rows: number[] = [];
      for (let slice = before.exportRows(1); slice !== "done"; slice = before.exportRows(1)) {
        if (slice === "changed") throw new Error("changed by nobody");
        rows.push(...slice);
      }
      expect(rows.length % rowWords(mode)).toBe(0);
      const after = make(mode, 2);
      const restored = after.holder("kept", 2);
      after.beginStaged(restored, 2);
      expect(after.restoreStaged(Uint32Array.from(rows), Int32Array.of(-1, restored))).toBe("ok");
      expect(after.blocksOf(restored)).toBe(0);
      after.commitStaged(restored);
      expect(after.digestOf(restored)).toEqual(before.digestOf(slot));
      expect(after.remove(restored, lanes(["1"]))).toBe("ok");
      expect(after.remove(restored, lanes(["1"]), 2)).toBe("ok");
      expect(after.remove(restored, lanes([mode === "opaque" ? "22" : "2"]))).toBe("ok");
      expect(after.size).toBe(0);
    },
  );

  it(`${name}: a change ends an export, a match and the upkeep do not`, () => {
    const index = make("opaque", 1);
    const slot = index.holder("1", 0);
    for (let block = 1; block < 300; block++) {
      index.store(slot, undefined, lanes([String(block), String(block)]));
    }
    expect(index.exportRows(10)).toBe("changed");
    const changes: (() => void)[] = [
      () => index.store(slot, undefined, lanes(["900", "900"])),
      () => index.remove(slot, lanes(["900"])),
      () => index.beginStaged(slot),
      () => index.storeStaged(slot, undefined, lanes(["1", "1"])),
      () => index.dropStaged(slot),
      () => index.holder("2", 0),
      () => index.removeHolder(1),
      () => index.clear(slot),
    ];
    for (const change of changes) {
      index.beginExport();
      expect(index.exportRows(10)).toBeInstanceOf(Uint32Array);
      const [device] = columns(index);
      index.match(sequenceOf(["1"]), 1, device);
      index.maintain(100);
      expect(index.exportRows(10)).toBeInstanceOf(Uint32Array);
      change();
      expect(index.exportRows(10)).toBe("changed");
    }
  });
}
