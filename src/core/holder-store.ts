/**
 * Writes the blocks of one holder at a time into the shared table of a `ColumnIndex`, by the rules of
 * its mode:
 *
 *   event blocks ──chain──▶ own keys ──▶ names of the holder (opaque) ──▶ bits in the sets of blocks
 *
 * - An event that is refused for its content changes nothing; one that is refused for want of room
 *   has stored the blocks before.
 * - `size` = pairs (holder, block) of all holders written to.
 */
import type { U64 } from "../protocol/u64.ts";
import type { BlockHolders } from "./block-holders.ts";
import { grownUint32 } from "./column.ts";
import type { EngineNames } from "./engine-names.ts";
import { setsFull } from "./holder-sets.ts";
import { bitFor, bitOf, type IndexHolder, retireBits, tiersOf } from "./index-holder.ts";
import {
  type ChainHashes,
  type IndexMode,
  type KvIndexOptions,
  type RemoveResult,
  type StoreResult,
  type Tier,
  tierCount,
} from "./kv-index.ts";
import { RepeatCheck } from "./repeat-check.ts";

/** What `#add` (beside `setsFull`) and `#drop` did: nothing, all, or to one of several tiers. */
const nothing = 0;
const wholeBlock = 1;
const oneTier = 2;

export class HolderStore {
  size = 0;
  duplicateStores = 0;
  /** Whether a block was ever stored in another tier than the device. */
  slowTiers = false;

  readonly #mode: IndexMode;
  readonly #chain: ChainHashes;
  readonly #blocks: BlockHolders;
  readonly #blocksMax: number;
  readonly #repeatCheck: RepeatCheck;
  #own: Uint32Array = new Uint32Array(128);
  /** One block as in an event, to restore by. */
  readonly #restored: Uint32Array = new Uint32Array(4);

  constructor({ mode, chain, random }: KvIndexOptions, blocks: BlockHolders, blocksMax: number) {
    this.#mode = mode;
    this.#chain = chain;
    this.#blocks = blocks;
    this.#blocksMax = blocksMax;
    this.#repeatCheck = new RepeatCheck(random);
  }

  /** See `KvIndex.store`. */
  store(
    holder: IndexHolder,
    parent: U64 | undefined,
    blocks: Uint32Array,
    tier: Tier,
  ): StoreResult {
    const count = blocks.length >>> 2;
    if (count === 0) return "ok";
    if (this.#repeatCheck.breaksRules(parent, blocks)) return "invalid_block";
    if (!this.hasRoomFor(count)) return "capacity";
    this.#blocks.advance(count);
    holder.names?.reserve(count);
    if (parent && !this.#loadParent(holder, parent)) return "parent_block_not_found";
    this.#chainOwnKeys(parent !== undefined, blocks, count);
    for (let block = 1; block <= count; block++) {
      const stored = this.#storeBlock(holder, blocks, block, tier);
      if (stored === setsFull) return "capacity";
      if (stored === nothing) this.duplicateStores++;
    }
    return "ok";
  }

  /** See `KvIndex.remove`. */
  remove(holder: IndexHolder, hashes: Uint32Array, tier: Tier): RemoveResult {
    this.#blocks.advance(0);
    let result: RemoveResult = "ok";
    for (let word = 0; word + 1 < hashes.length; word += 2) {
      const lo = hashes[word]! | 0;
      const hi = hashes[word + 1]! | 0;
      const removed = holder.names
        ? this.#removeNamed(holder, holder.names, lo, hi, tier)
        : this.#drop(holder, lo, hi, tier) !== nothing;
      if (!removed) result = "block_not_found";
    }
    return result;
  }

  /** Stores the block of the row at word `at`, four-bit tiers first; false = no room for a set. */
  restore(holder: IndexHolder, rows: Uint32Array, at: number): boolean {
    const block = this.#restored;
    this.#own[2] = rows[at + 1]!;
    this.#own[3] = rows[at + 2]!;
    if (holder.names) {
      holder.names.reserve(1);
      block[2] = rows[at + 3]!;
      block[3] = rows[at + 4]!;
    }
    for (let tier = 0; tier < tierCount; tier++) {
      if (((rows[at]! >>> tier) & 1) === 0) continue;
      if (this.#storeBlock(holder, block, 1, tier as Tier) === setsFull) return false;
    }
    return true;
  }

  /** Forgets all blocks of a holder, and its bits. */
  retire(holder: IndexHolder): void {
    retireBits(this.#blocks, holder);
    this.size -= holder.blocks;
    holder.blocks = 0;
    holder.xorLo = 0;
    holder.xorHi = 0;
  }

  hasRoomFor(blocks: number): boolean {
    return this.#blocks.table.count + blocks <= this.#blocksMax;
  }

  /** Puts the own key of `parent` into entry 0 of `#own`; false when the holder lacks it. */
  #loadParent(holder: IndexHolder, parent: U64): boolean {
    const own = this.#own;
    const names = holder.names;
    if (!names) return tiersOf(this.#blocks, holder, parent.lo | 0, parent.hi | 0) !== 0;
    const at = names.find(parent.lo | 0, parent.hi | 0);
    if (at < 0 || names.isReplaced(at)) return false;
    own[0] = names.ownLo;
    own[1] = names.ownHi;
    return true;
  }

  /** Entries [1, count] of `#own` become the own keys of the event's blocks. */
  #chainOwnKeys(hasParent: boolean, blocks: Uint32Array, count: number): void {
    if (this.#own.length < 2 * count + 2) this.#own = grownUint32(this.#own, 4 * count + 2);
    const own = this.#own;
    const from = this.#mode === "identity" ? 2 : 0;
    for (let block = 0; block < count; block++) {
      own[2 * block + 2] = blocks[4 * block + from]!;
      own[2 * block + 3] = blocks[4 * block + from + 1]!;
    }
    if (this.#mode === "opaque") this.#chain(own, hasParent ? 1 : 2, count + 1);
  }

  /** Stores block `block` (from 1) of the event, whose own key is entry `block` of `#own`. */
  #storeBlock(holder: IndexHolder, blocks: Uint32Array, block: number, tier: Tier): number {
    const lo = this.#own[2 * block]! | 0;
    const hi = this.#own[2 * block + 1]! | 0;
    const { names } = holder;
    if (!names) return this.#add(holder, lo, hi, tier);
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
        if (!wasReplaced) this.#dropAll(holder, names.ownLo, names.ownHi);
        names.repoint(at, lo, hi);
        wasReplaced = false;
      } else if (!wasReplaced) return this.#add(holder, lo, hi, tier);
    }
    const added = this.#add(holder, lo, hi, tier);
    if (added === setsFull) names.removeAt(at);
    else names.makeCurrent(at, added !== wholeBlock, wasReplaced);
    return added;
  }

  #removeNamed(
    holder: IndexHolder,
    names: EngineNames,
    lo: number,
    hi: number,
    tier: Tier,
  ): boolean {
    const at = names.find(lo, hi);
    if (at < 0) return false;
    if (names.isReplaced(at)) {
      names.removeAt(at);
      return false;
    }
    const dropped = this.#drop(holder, names.ownLo, names.ownHi, tier);
    if (dropped === wholeBlock) names.removeAt(at);
    return dropped !== nothing;
  }

  #add(holder: IndexHolder, lo: number, hi: number, tier: Tier): number {
    if (tier !== 0) this.slowTiers = true;
    const bit = bitFor(this.#blocks, holder, tier);
    const elsewhere = holder.slowBits && tiersOf(this.#blocks, holder, lo, hi) !== 0;
    const added = this.#blocks.add(bit, lo, hi);
    if (added !== wholeBlock) return added;
    if (elsewhere) return oneTier;
    this.#count(holder, lo, hi, 1);
    return wholeBlock;
  }

  #drop(holder: IndexHolder, lo: number, hi: number, tier: Tier): number {
    const bit = bitOf(holder, tier);
    if (bit < 0 || !this.#blocks.drop(bit, lo, hi)) return nothing;
    if (holder.slowBits && tiersOf(this.#blocks, holder, lo, hi) !== 0) return oneTier;
    this.#count(holder, lo, hi, -1);
    return wholeBlock;
  }

  #dropAll(holder: IndexHolder, lo: number, hi: number): void {
    for (let tier = 0; tier < tierCount; tier++) this.#drop(holder, lo, hi, tier as Tier);
  }

  #count(holder: IndexHolder, lo: number, hi: number, blocks: 1 | -1): void {
    holder.blocks += blocks;
    holder.xorLo ^= lo;
    holder.xorHi ^= hi;
    this.size += blocks;
  }
}
