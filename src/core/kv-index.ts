/**
 * Which blocks each holder (worker, dp rank) has in device memory, for all holders of a pool.
 *
 *   blocks (BlockHolders)       names (EngineNames, one per holder, opaque mode only)
 *   own key -> set of holders    engine hash -> own key
 *
 * - The own key of a block is its sequence hash. Mode `identity`: engines name blocks by it, so
 *   there are no names. Mode `opaque`: own keys are chained from the local hashes of an event.
 * - A cleared or removed holder is gone at once; what it leaves behind is cleaned up in slices.
 * - Keys are passed on as signed lanes (`| 0`): V8 boxes unsigned ones above 2^31 at every call.
 * - `size` = pairs (holder, block), staged copies included; a block on 3 holders counts 3.
 */
import type { Random } from "../base/random.ts";
import type { U64 } from "../protocol/u64.ts";
import { BlockHolders } from "./block-holders.ts";
import { grownUint32 } from "./column.ts";
import { EngineNames } from "./engine-names.ts";
import { setsFull } from "./holder-sets.ts";
import { RepeatCheck } from "./repeat-check.ts";

export type IndexMode = "opaque" | "identity";

export type StoreResult = "ok" | "parent_block_not_found" | "invalid_block" | "capacity";
export type RemoveResult = "ok" | "block_not_found";

/** Chains `hashes` entries [from, to) in place, each from the entry before it. */
export type ChainHashes = (hashes: Uint32Array, from: number, to: number) => void;

export interface KvIndexOptions {
  readonly mode: IndexMode;
  readonly random: Random;
  readonly chain: ChainHashes;
  /** Holders at once. */
  readonly holdersMax?: number;
  /** Distinct blocks; a store beyond answers `capacity`. */
  readonly blocksMax?: number;
  /** Words in all interned sets. */
  readonly setWordsMax?: number;
}

export const holdersMaxDefault = 4096;
export const blocksMaxDefault: number = 1 << 26;
const holderNamesMin = 64;
/** Largest name table made on a worker's word alone; beyond, it grows with what is stored. */
const expectedBlocksMax: number = 1 << 20;

interface Holder {
  readonly slot: number;
  readonly workerKey: string;
  readonly dpRank: number;
  bit: number;
  blocks: number;
  xorLo: number;
  xorHi: number;
  names: EngineNames | undefined;
}

/** Equal digests mean equal blocks, but for chance. */
export interface BlockDigest {
  readonly blocks: number;
  readonly lo: number;
  readonly hi: number;
}

export interface IndexStats {
  /** (holder, block) pairs. */
  readonly size: number;
  /** Distinct blocks, those of removed holders included until they are swept. */
  readonly blocks: number;
  readonly sets: number;
  readonly bytes: number;
  readonly longestProbe: number;
  readonly holders: number;
  readonly duplicateStores: number;
}

export class KvIndex {
  readonly mode: IndexMode;
  readonly holdersMax: number;
  size = 0;
  duplicateStores = 0;

  readonly #random: Random;
  readonly #chain: ChainHashes;
  readonly #blocksMax: number;
  readonly #blocks: BlockHolders;
  readonly #repeatCheck: RepeatCheck;
  readonly #holders: (Holder | undefined)[] = [];
  readonly #slotOf = new Map<string, number>();
  readonly #freeSlots: number[] = [];
  readonly #staged = new Map<number, Holder>();
  #own: Uint32Array = new Uint32Array(128);

  constructor(options: KvIndexOptions) {
    this.mode = options.mode;
    this.#random = options.random;
    this.#chain = options.chain;
    this.holdersMax = options.holdersMax ?? holdersMaxDefault;
    this.#blocksMax = options.blocksMax ?? blocksMaxDefault;
    // Twice the holders: while one pass takes bits out, every holder may be cleared once more.
    this.#blocks = new BlockHolders(options.random, 2 * this.holdersMax, options.setWordsMax);
    this.#repeatCheck = new RepeatCheck(options.random);
  }

  /**
   * Slot of a holder, handed out on first sight and again after `removeHolder`; -1 when
   * `holdersMax` are present. `expectedBlocks` sizes its name table.
   */
  holder(workerKey: string, dpRank: number, expectedBlocks: number = holderNamesMin): number {
    const key = `${workerKey}:${dpRank}`;
    const known = this.#slotOf.get(key);
    if (known !== undefined) return known;
    if (this.#slotOf.size >= this.holdersMax) return -1;
    const slot = this.#freeSlots.pop() ?? this.#holders.length;
    const bit = this.#blocks.takeBit(slot);
    const names = this.#newNames(Math.min(expectedBlocks, expectedBlocksMax));
    this.#holders[slot] = { slot, workerKey, dpRank, bit, blocks: 0, xorLo: 0, xorHi: 0, names };
    this.#slotOf.set(key, slot);
    return slot;
  }

  findHolder(workerKey: string, dpRank: number): number | undefined {
    return this.#slotOf.get(`${workerKey}:${dpRank}`);
  }

  /** Slots ever handed out at once: the length a `depths` column needs. */
  get slots(): number {
    return this.#holders.length;
  }

  /** Blocks that a holder has; 0 for an unknown slot. */
  blocksOf(slot: number): number {
    return this.#holders[slot]?.blocks ?? 0;
  }

  /** Number and XOR of a holder's own keys, to compare with the worker's own digest. */
  digestOf(slot: number): BlockDigest {
    const holder = this.#holders[slot];
    if (!holder) return { blocks: 0, lo: 0, hi: 0 };
    return { blocks: holder.blocks, lo: holder.xorLo >>> 0, hi: holder.xorHi >>> 0 };
  }

  /**
   * Stores blocks behind `parent` (undefined = at the start of a sequence). `blocks` has four words
   * per block: local hash lo, hi, engine hash lo, hi. On any result but `ok` and `capacity` nothing
   * has changed.
   */
  store(slot: number, parent: U64 | undefined, blocks: Uint32Array): StoreResult {
    const holder = this.#holders[slot];
    return holder ? this.#storeInto(holder, parent, blocks) : "ok";
  }

  /** Removes blocks by engine hash, two words each; unknown ones are skipped and reported. */
  remove(slot: number, hashes: Uint32Array): RemoveResult {
    const holder = this.#holders[slot];
    if (!holder) return hashes.length === 0 ? "ok" : "block_not_found";
    this.#blocks.advance(0);
    let result: RemoveResult = "ok";
    for (let word = 0; word + 1 < hashes.length; word += 2) {
      const lo = hashes[word]! | 0;
      const hi = hashes[word + 1]! | 0;
      const removed = holder.names
        ? this.#removeNamed(holder, holder.names, lo, hi)
        : this.#drop(holder, lo, hi);
      if (!removed) result = "block_not_found";
    }
    return result;
  }

  /** Forgets all blocks of a holder; the holder keeps its slot. */
  clear(slot: number): void {
    const holder = this.#holders[slot];
    if (!holder) return;
    if (holder.names && holder.names.count > 0) holder.names = this.#newNames(holder.blocks);
    if (holder.blocks === 0) return;
    this.#retireBit(holder);
    holder.bit = this.#blocks.takeBit(slot);
  }

  /**
   * Starts a second, invisible copy of a holder, filled by `storeStaged`; a copy under way is thrown
   * away. `commitStaged` lets it take the holder's place in one step, whatever its size.
   */
  beginStaged(slot: number): void {
    const holder = this.#holders[slot];
    if (!holder) return;
    this.dropStaged(slot);
    const bit = this.#blocks.takeBit(slot);
    this.#blocks.setLive(bit, false);
    const names = this.#newNames(holder.blocks);
    this.#staged.set(slot, { ...holder, bit, blocks: 0, xorLo: 0, xorHi: 0, names });
  }

  storeStaged(slot: number, parent: U64 | undefined, blocks: Uint32Array): StoreResult {
    const copy = this.#staged.get(slot);
    return copy ? this.#storeInto(copy, parent, blocks) : "ok";
  }

  commitStaged(slot: number): void {
    const holder = this.#holders[slot];
    const copy = this.#staged.get(slot);
    if (!holder || !copy) return;
    this.#staged.delete(slot);
    this.#retireBit(holder);
    this.#blocks.setLive(copy.bit, true);
    this.#holders[slot] = copy;
  }

  dropStaged(slot: number): void {
    const copy = this.#staged.get(slot);
    if (!copy) return;
    this.#staged.delete(slot);
    this.#retireBit(copy);
  }

  /** Forgets a holder; its slot may be handed out again. */
  removeHolder(slot: number): void {
    const holder = this.#holders[slot];
    if (!holder) return;
    this.dropStaged(slot);
    this.#retireBit(holder);
    this.#holders[slot] = undefined;
    this.#slotOf.delete(`${holder.workerKey}:${holder.dpRank}`);
    this.#freeSlots.push(slot);
  }

  /** Forgets all ranks of a worker. */
  removeWorker(workerKey: string): void {
    for (const holder of this.#holders) {
      if (holder?.workerKey === workerKey) this.removeHolder(holder.slot);
    }
  }

  /**
   * Writes, per holder slot, how many consecutive blocks of the prompt from the first it holds, and
   * answers the largest. `sequence` has two words per block; `depths` is at least `slots` long.
   */
  match(sequence: Uint32Array, blocks: number, depths: Int32Array): number {
    return this.#blocks.match(sequence, blocks, depths);
  }

  /** Advances growth and the clean-up of removed holders by up to `slots`; true while work is left. */
  maintain(slots: number): boolean {
    return this.#blocks.maintain(slots);
  }

  stats(): IndexStats {
    let bytes = this.#blocks.table.bytes + this.#blocks.sets.bytes;
    for (const holder of this.#holders) bytes += holder?.names?.bytes ?? 0;
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

  #storeInto(holder: Holder, parent: U64 | undefined, blocks: Uint32Array): StoreResult {
    const count = blocks.length >>> 2;
    if (count === 0) return "ok";
    if (this.#repeatCheck.breaksRules(parent, blocks)) return "invalid_block";
    if (this.#blocks.table.count + count > this.#blocksMax) return "capacity";
    this.#blocks.advance(count);
    holder.names?.reserve(count);
    if (parent && !this.#loadParent(holder, parent)) return "parent_block_not_found";
    this.#chainOwnKeys(parent !== undefined, blocks, count);
    const own = this.#own;
    for (let block = 1; block <= count; block++) {
      const stored = holder.names
        ? this.#storeNamed(holder, holder.names, blocks, block)
        : this.#add(holder, own[2 * block]! | 0, own[2 * block + 1]! | 0);
      if (stored === setsFull) return "capacity";
      if (stored === 0) this.duplicateStores++;
    }
    return "ok";
  }

  /** Puts the own key of `parent` into entry 0 of `#own`; false when the holder lacks it. */
  #loadParent(holder: Holder, parent: U64): boolean {
    const own = this.#own;
    const names = holder.names;
    if (!names) return this.#blocks.has(holder.bit, parent.lo, parent.hi);
    const at = names.find(parent.lo, parent.hi);
    if (at < 0 || names.isReplaced(at)) return false;
    own[0] = names.ownLo;
    own[1] = names.ownHi;
    return true;
  }

  /** Entries [1, count] of `#own` become the own keys of the event's blocks. */
  #chainOwnKeys(hasParent: boolean, blocks: Uint32Array, count: number): void {
    if (this.#own.length < 2 * count + 2) this.#own = grownUint32(this.#own, 4 * count + 2);
    const own = this.#own;
    const from = this.mode === "identity" ? 2 : 0;
    for (let block = 0; block < count; block++) {
      own[2 * block + 2] = blocks[4 * block + from]!;
      own[2 * block + 3] = blocks[4 * block + from + 1]!;
    }
    if (this.mode === "opaque") this.#chain(own, hasParent ? 1 : 2, count + 1);
  }

  /** Stores block `block` (from 1) of the event: 1 = stored, 0 = was held already, `setsFull`. */
  #storeNamed(holder: Holder, names: EngineNames, blocks: Uint32Array, block: number): number {
    const lo = this.#own[2 * block]! | 0;
    const hi = this.#own[2 * block + 1]! | 0;
    const nameLo = blocks[4 * block - 2]! | 0;
    const nameHi = blocks[4 * block - 1]! | 0;
    let at = names.find(nameLo, nameHi);
    let wasReplaced = false;
    if (at < 0) {
      at = names.insert(nameLo, nameHi, lo, hi);
    } else {
      wasReplaced = names.isReplaced(at);
      if (names.ownLo !== lo || names.ownHi !== hi) {
        // The engine names another block by this hash: the last store wins.
        if (!wasReplaced) this.#drop(holder, names.ownLo, names.ownHi);
        names.repoint(at, lo, hi);
        wasReplaced = false;
      } else if (!wasReplaced) return 0;
    }
    const added = this.#add(holder, lo, hi);
    if (added === setsFull) names.removeAt(at);
    else names.makeCurrent(at, added === 0, wasReplaced);
    return added;
  }

  #removeNamed(holder: Holder, names: EngineNames, lo: number, hi: number): boolean {
    const at = names.find(lo, hi);
    if (at < 0) return false;
    const replaced = names.isReplaced(at);
    if (!replaced) this.#drop(holder, names.ownLo, names.ownHi);
    names.removeAt(at);
    return !replaced;
  }

  #newNames(expectedBlocks: number): EngineNames | undefined {
    if (this.mode === "identity") return undefined;
    return new EngineNames(Math.max(holderNamesMin, expectedBlocks), this.#random);
  }

  #retireBit(holder: Holder): void {
    this.#blocks.retireBit(holder.bit, holder.blocks === 0);
    this.size -= holder.blocks;
    holder.blocks = 0;
    holder.xorLo = 0;
    holder.xorHi = 0;
  }

  #add(holder: Holder, lo: number, hi: number): number {
    const added = this.#blocks.add(holder.bit, lo, hi);
    if (added !== 1) return added;
    holder.blocks++;
    holder.xorLo ^= lo;
    holder.xorHi ^= hi;
    this.size++;
    return 1;
  }

  #drop(holder: Holder, lo: number, hi: number): boolean {
    if (!this.#blocks.drop(holder.bit, lo, hi)) return false;
    holder.blocks--;
    holder.xorLo ^= lo;
    holder.xorHi ^= hi;
    this.size--;
    return true;
  }
}
