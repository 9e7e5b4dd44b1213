/**
 * The KV index in plain TypeScript.
 *
 *   blocks (BlockHolders)       names (EngineNames, one per holder, opaque mode only)
 *   own key -> set of holders    engine hash -> own key
 *
 * - A cleared or removed holder is gone at once; what it leaves behind is cleaned up in slices.
 * - Keys are passed on as signed lanes (`| 0`): V8 boxes unsigned ones above 2^31 at every call.
 * - Every call that may change or move a row ends an export under way.
 */
import type { Random } from "../base/random.ts";
import type { U64 } from "../protocol/u64.ts";
import { BlockHolders } from "./block-holders.ts";
import { EngineNames } from "./engine-names.ts";
import { HolderStore } from "./holder-store.ts";
import { digestOf, type IndexHolder, SetRuns } from "./index-holder.ts";
import {
  type BlockDigest,
  blocksMaxDefault,
  type HolderId,
  holdersMaxDefault,
  type IndexMode,
  type IndexStats,
  type KvIndex,
  type KvIndexOptions,
  type RemoveResult,
  rowWords,
  type SlowDepths,
  type StoreResult,
  type Tier,
} from "./kv-index.ts";
import { RowExport } from "./row-export.ts";

export const holderNamesMin = 64;
/** Largest name table made on a worker's word alone; beyond, it grows with what is stored. */
export const expectedBlocksMax: number = 1 << 20;

export class ColumnIndex implements KvIndex {
  readonly mode: IndexMode;
  readonly holdersMax: number;
  readonly #random: Random;
  readonly #blocks: BlockHolders;
  readonly #store: HolderStore;
  readonly #runs: SetRuns = new SetRuns();
  readonly #holders: (IndexHolder | undefined)[] = [];
  readonly #slotOf = new Map<string, number>();
  readonly #freeSlots: number[] = [];
  readonly #staged = new Map<number, IndexHolder>();
  #export: RowExport | undefined;

  constructor(options: KvIndexOptions) {
    this.mode = options.mode;
    this.#random = options.random;
    this.holdersMax = options.holdersMax ?? holdersMaxDefault;
    this.#blocks = new BlockHolders(options.random, this.holdersMax, options.setWordsMax);
    this.#store = new HolderStore(options, this.#blocks, options.blocksMax ?? blocksMaxDefault);
  }

  get size(): number {
    return this.#store.size;
  }

  get duplicateStores(): number {
    return this.#store.duplicateStores;
  }

  get slowTiers(): boolean {
    return this.#store.slowTiers;
  }

  holder(workerKey: string, dpRank: number, expectedBlocks: number = holderNamesMin): number {
    const key = `${workerKey}:${dpRank}`;
    const known = this.#slotOf.get(key);
    if (known !== undefined) return known;
    if (this.#slotOf.size >= this.holdersMax) return -1;
    this.#export = undefined;
    const slot = this.#freeSlots.pop() ?? this.#holders.length;
    this.#holders[slot] = this.#newHolder(slot, { workerKey, dpRank }, expectedBlocks, true);
    this.#slotOf.set(key, slot);
    return slot;
  }

  findHolder(workerKey: string, dpRank: number): number | undefined {
    return this.#slotOf.get(`${workerKey}:${dpRank}`);
  }

  holderAt(slot: number): HolderId | undefined {
    return this.#holders[slot];
  }

  get slots(): number {
    return this.#holders.length;
  }

  blocksOf(slot: number): number {
    return this.#holders[slot]?.blocks ?? 0;
  }

  digestOf(slot: number): BlockDigest {
    return digestOf(this.#holders[slot]);
  }

  store(slot: number, parent: U64 | undefined, blocks: Uint32Array, tier: Tier = 0): StoreResult {
    const holder = this.#holders[slot];
    if (!holder) return "ok";
    this.#export = undefined;
    return this.#store.store(holder, parent, blocks, tier);
  }

  remove(slot: number, hashes: Uint32Array, tier: Tier = 0): RemoveResult {
    const holder = this.#holders[slot];
    if (!holder) return hashes.length === 0 ? "ok" : "block_not_found";
    this.#export = undefined;
    return this.#store.remove(holder, hashes, tier);
  }

  clear(slot: number): void {
    const holder = this.#holders[slot];
    if (!holder) return;
    this.#export = undefined;
    if (holder.names && holder.names.count > 0) holder.names = this.#newNames(holder.blocks);
    if (holder.blocks === 0) return;
    this.#store.retire(holder);
    holder.bit = this.#blocks.takeBit(slot, true);
  }

  beginStaged(slot: number, expectedBlocks?: number): void {
    const holder = this.#holders[slot];
    if (!holder) return;
    this.dropStaged(slot);
    this.#export = undefined;
    const expected = expectedBlocks ?? holder.blocks;
    this.#staged.set(slot, this.#newHolder(slot, holder, expected, false));
  }

  storeStaged(
    slot: number,
    parent: U64 | undefined,
    blocks: Uint32Array,
    tier: Tier = 0,
  ): StoreResult {
    const copy = this.#staged.get(slot);
    if (!copy) return "ok";
    this.#export = undefined;
    return this.#store.store(copy, parent, blocks, tier);
  }

  restoreStaged(rows: Uint32Array, slotOf: Int32Array): StoreResult {
    this.#export = undefined;
    const words = rowWords(this.mode);
    const count = Math.floor(rows.length / words);
    if (!this.#store.hasRoomFor(count)) return "capacity";
    this.#blocks.advance(count);
    for (let at = 0; at < count * words; at += words) {
      const copy = this.#staged.get(slotOf[rows[at]! >>> 4] ?? -1);
      if (copy && !this.#store.restore(copy, rows, at)) return "capacity";
    }
    return "ok";
  }

  commitStaged(slot: number): void {
    const holder = this.#holders[slot];
    const copy = this.#staged.get(slot);
    if (!holder || !copy) return;
    this.#export = undefined;
    this.#staged.delete(slot);
    this.#store.retire(holder);
    this.#blocks.setLive(copy.bit, true);
    this.#holders[slot] = copy;
  }

  dropStaged(slot: number): void {
    const copy = this.#staged.get(slot);
    if (!copy) return;
    this.#export = undefined;
    this.#staged.delete(slot);
    this.#store.retire(copy);
  }

  removeHolder(slot: number): void {
    const holder = this.#holders[slot];
    if (!holder) return;
    this.dropStaged(slot);
    this.#export = undefined;
    this.#store.retire(holder);
    this.#holders[slot] = undefined;
    this.#slotOf.delete(`${holder.workerKey}:${holder.dpRank}`);
    this.#freeSlots.push(slot);
  }

  removeWorker(workerKey: string): void {
    for (const holder of this.#holders) {
      if (holder?.workerKey === workerKey) this.removeHolder(holder.slot);
    }
  }

  beginExport(): void {
    this.#export = new RowExport(this.mode, this.#blocks, this.#holders);
  }

  exportRows(rowsMax: number): Uint32Array | "done" | "changed" {
    if (!this.#export) return "changed";
    const rows = this.#export.next(rowsMax);
    if (rows) return rows;
    this.#export = undefined;
    return "done";
  }

  match(sequence: Uint32Array, blocks: number, depths: Int32Array, slow?: SlowDepths): number {
    const deepest = this.#blocks.match(sequence, blocks, depths);
    if (slow) this.#matchSlow(sequence, blocks, depths, slow);
    return deepest;
  }

  maintain(slots: number): boolean {
    return this.#export !== undefined || this.#blocks.maintain(slots);
  }

  stats(): IndexStats {
    let bytes = this.#blocks.table.bytes + this.#blocks.sets.bytes;
    for (const holder of this.#holders) bytes += holder?.names?.bytes ?? 0;
    for (const copy of this.#staged.values()) bytes += copy.names?.bytes ?? 0;
    return {
      size: this.size,
      blocks: this.#blocks.table.count,
      sets: this.#blocks.sets.count,
      bytes,
      longestProbe: this.#blocks.table.longestProbe,
      holders: this.#slotOf.size,
      duplicateStores: this.duplicateStores,
    };
  }

  /** Depths over slow tiers start from those over the device, which most holders share. */
  #matchSlow(sequence: Uint32Array, blocks: number, depths: Int32Array, slow: SlowDepths): void {
    if (this.slowTiers) this.#runs.read(this.#blocks, sequence, blocks);
    for (let slot = 0; slot < this.#holders.length; slot++) {
      const holder = this.#holders[slot];
      slow.host[slot] = depths[slot]!;
      slow.disk[slot] = depths[slot]!;
      if (holder?.slowBits) this.#runs.write(this.#blocks, holder, slow);
    }
  }

  #newHolder(slot: number, id: HolderId, expectedBlocks: number, live: boolean): IndexHolder {
    const { workerKey, dpRank } = id;
    const bit = this.#blocks.takeBit(slot, live);
    const names = this.#newNames(Math.min(expectedBlocks, expectedBlocksMax));
    const empty = { slowBits: undefined, blocks: 0, xorLo: 0, xorHi: 0 };
    return { slot, workerKey, dpRank, bit, ...empty, names };
  }

  #newNames(expectedBlocks: number): EngineNames | undefined {
    if (this.mode === "identity") return undefined;
    return new EngineNames(Math.max(holderNamesMin, expectedBlocks), this.#random);
  }
}
