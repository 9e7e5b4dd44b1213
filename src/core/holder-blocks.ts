/**
 * All blocks of one holder with what a dump needs: a worker's own index, per rank.
 *
 *   names (EngineNames)           table (LaneTable)     columns, 7 words per slot
 *   engine hash -> own key  ──▶   own key -> slot  ──▶  [ engine hash | local | parent's own | state ]
 *
 * - `state` = kind | tiers << 2, with bit 1 << tier per storage tier that has the block.
 * - Same rules and results as `KvIndex.store` and `remove` in opaque mode; own keys are chained.
 * - A block knows its parent by own key, so the dump names the parent as the engine does at the time.
 */
import type { Random } from "../base/random.ts";
import { type StoredEvent, storageTiers } from "../protocol/kv-events.ts";
import type { U64 } from "../protocol/u64.ts";
import { grownUint32 } from "./column.ts";
import { EngineNames } from "./engine-names.ts";
import type { BlockDigest, ChainHashes, RemoveResult, StoreResult, Tier } from "./kv-index.ts";
import { LaneTable } from "./lane-table.ts";
import { RepeatCheck } from "./repeat-check.ts";

const slotWords = 7;
const free = 0;
const root = 1;
const inner = 2;
const kindBits = 3;
const tierShift = 2;
const runBlocksMax = 4096;

export class HolderBlocks {
  readonly #random: Random;
  readonly #chain: ChainHashes;
  readonly #repeatCheck: RepeatCheck;
  #names: EngineNames;
  #table: LaneTable;
  #columns: Uint32Array = new Uint32Array(64 * slotWords);
  #used = 0;
  #freeSlots: number[] = [];
  #own: Uint32Array = new Uint32Array(128);
  #xorLo = 0;
  #xorHi = 0;

  constructor(chain: ChainHashes, random: Random) {
    this.#chain = chain;
    this.#random = random;
    this.#repeatCheck = new RepeatCheck(random);
    this.#names = new EngineNames(64, random);
    this.#table = new LaneTable(3, 64, random);
  }

  digest(): BlockDigest {
    return { blocks: this.#table.count, lo: this.#xorLo >>> 0, hi: this.#xorHi >>> 0 };
  }

  /** Stores blocks, four words each, behind `parent`; see `KvIndex.store`. */
  store(
    parent: U64 | undefined,
    blocks: Uint32Array,
    tier: Tier,
  ): Exclude<StoreResult, "capacity"> {
    const count = blocks.length >>> 2;
    if (count === 0) return "ok";
    if (this.#repeatCheck.breaksRules(parent, blocks)) return "invalid_block";
    this.#names.reserve(count);
    this.#table.reserve(count);
    if (this.#own.length < 2 * count + 2) this.#own = grownUint32(this.#own, 4 * count + 2);
    const own = this.#own;
    if (parent) {
      const at = this.#names.find(parent.lo, parent.hi);
      if (at < 0 || this.#names.isReplaced(at)) return "parent_block_not_found";
      own[0] = this.#names.ownLo;
      own[1] = this.#names.ownHi;
    }
    for (let block = 0; block < count; block++) {
      own[2 * block + 2] = blocks[4 * block]!;
      own[2 * block + 3] = blocks[4 * block + 1]!;
    }
    this.#chain(own, parent ? 1 : 2, count + 1);
    const tiers = 1 << (tier + tierShift);
    for (let block = 1; block <= count; block++) {
      const kind = block > 1 || parent !== undefined ? inner : root;
      this.#storeBlock(blocks, block, kind | tiers);
    }
    return "ok";
  }

  /** Removes blocks of one tier by engine hash, two words each. */
  remove(hashes: Uint32Array, tier: Tier): RemoveResult {
    let result: RemoveResult = "ok";
    for (let word = 0; word + 1 < hashes.length; word += 2) {
      const at = this.#names.find(hashes[word]!, hashes[word + 1]!);
      if (at >= 0 && this.#names.isReplaced(at)) this.#names.removeAt(at);
      else if (at >= 0 && this.#dropTier(at, tier)) continue;
      result = "block_not_found";
    }
    return result;
  }

  clear(): void {
    this.#names = new EngineNames(64, this.#random);
    this.#table = new LaneTable(3, 64, this.#random);
    this.#used = 0;
    this.#freeSlots = [];
    this.#xorLo = 0;
    this.#xorHi = 0;
  }

  /**
   * Stored events that rebuild the holder, parents before children; their ids, from 0, mean nothing.
   * Blocks that no chain of held blocks connects to a first block are left out.
   */
  dump(): StoredEvent[] {
    const events: StoredEvent[] = [];
    const reached = new Uint8Array(this.#used);
    // Children mostly have later slots than their parents: from the end, a run is a whole chain.
    for (let slot = this.#used - 1; slot >= 0; slot--) {
      if (this.#kind(slot) !== free && reached[slot] === 0) this.#dumpRun(slot, reached, events);
    }
    return events;
  }

  /** Walks up from a slot to a root or to a block already dumped, then writes the way down. */
  #dumpRun(start: number, reached: Uint8Array, events: StoredEvent[]): void {
    const way: number[] = [];
    let above = start;
    while (above >= 0 && reached[above] === 0) {
      way.push(above);
      if (this.#kind(above) === root) break;
      const parentSlot = this.#parentOf(above);
      above = parentSlot;
    }
    const isRoot = above >= 0 && reached[above] === 0;
    const isHeld = isRoot || (above >= 0 && reached[above] === 1);
    for (const slot of way) reached[slot] = isHeld ? 1 : 2;
    if (!isHeld) return;
    way.reverse();
    let parent = isRoot ? undefined : this.#nameOf(above);
    for (let from = 0; from < way.length; ) {
      const run = this.#runAt(way, from);
      const blocks = this.#blocksOf(run);
      for (const [tier, name] of storageTiers.entries()) {
        if (((this.#tiers(run[0]!) >>> tier) & 1) === 0) continue;
        events.push({ type: "stored", eventId: events.length, tier: name, parent, blocks });
      }
      parent = this.#nameOf(run.at(-1)!);
      from += run.length;
    }
  }

  /** The slots of `way` from `from` that one event can store: of equal tiers, and not too many. */
  #runAt(way: readonly number[], from: number): number[] {
    const tiers = this.#tiers(way[from]!);
    let end = from + 1;
    while (end < way.length && end < from + runBlocksMax && this.#tiers(way[end]!) === tiers) end++;
    return way.slice(from, end);
  }

  #blocksOf(run: readonly number[]): Uint32Array {
    const blocks = new Uint32Array(4 * run.length);
    for (let block = 0; block < run.length; block++) {
      const at = slotWords * run[block]!;
      blocks[4 * block] = this.#columns[at + 2]!;
      blocks[4 * block + 1] = this.#columns[at + 3]!;
      blocks[4 * block + 2] = this.#columns[at]!;
      blocks[4 * block + 3] = this.#columns[at + 1]!;
    }
    return blocks;
  }

  #storeBlock(blocks: Uint32Array, block: number, state: number): void {
    const names = this.#names;
    const lo = this.#own[2 * block]! | 0;
    const hi = this.#own[2 * block + 1]! | 0;
    const nameLo = blocks[4 * block - 2]! | 0;
    const nameHi = blocks[4 * block - 1]! | 0;
    let at = names.find(nameLo, nameHi);
    let wasReplaced = false;
    if (at < 0) at = names.insert(nameLo, nameHi, lo, hi);
    else {
      wasReplaced = names.isReplaced(at);
      if (names.ownLo !== lo || names.ownHi !== hi) {
        if (!wasReplaced) this.#drop(names.ownLo, names.ownHi);
        names.repoint(at, lo, hi);
        wasReplaced = false;
      } else if (!wasReplaced) {
        this.#columns[slotWords * this.#slotOf(lo, hi) + 6]! |= state;
        return;
      }
    }
    const found = this.#table.find(lo, hi);
    names.makeCurrent(at, found >= 0, wasReplaced);
    const slot = found >= 0 ? this.#table.words[found + 2]! : this.#newSlot(lo, hi);
    const column = slotWords * slot;
    this.#columns[column] = nameLo;
    this.#columns[column + 1] = nameHi;
    this.#columns[column + 2] = blocks[4 * block - 4]!;
    this.#columns[column + 3] = blocks[4 * block - 3]!;
    this.#columns[column + 4] = this.#own[2 * block - 2]!;
    this.#columns[column + 5] = this.#own[2 * block - 1]!;
    this.#columns[column + 6] = (found >= 0 ? this.#columns[column + 6]! : free) | state;
  }

  #newSlot(lo: number, hi: number): number {
    const slot = this.#freeSlots.pop() ?? this.#used++;
    if (this.#used * slotWords > this.#columns.length) {
      this.#columns = grownUint32(this.#columns, 2 * this.#columns.length);
    }
    this.#table.words[this.#table.insert(lo, hi) + 2] = slot;
    this.#xorLo ^= lo;
    this.#xorHi ^= hi;
    return slot;
  }

  /** Takes the block of the name at `at` out of a tier; false when it is not in it. */
  #dropTier(at: number, tier: Tier): boolean {
    const { ownLo, ownHi } = this.#names;
    const state = slotWords * this.#slotOf(ownLo, ownHi) + 6;
    const bit = 1 << (tier + tierShift);
    if ((this.#columns[state]! & bit) === 0) return false;
    this.#columns[state]! &= ~bit;
    if (this.#columns[state]! >>> tierShift === 0) {
      this.#drop(ownLo, ownHi);
      this.#names.removeAt(at);
    }
    return true;
  }

  #drop(lo: number, hi: number): void {
    const at = this.#table.find(lo, hi);
    if (at < 0) return;
    const slot = this.#table.words[at + 2]!;
    this.#columns[slotWords * slot + 6] = free;
    this.#freeSlots.push(slot);
    this.#table.removeAt(at);
    this.#xorLo ^= lo;
    this.#xorHi ^= hi;
  }

  #kind(slot: number): number {
    return this.#columns[slotWords * slot + 6]! & kindBits;
  }

  #tiers(slot: number): number {
    return this.#columns[slotWords * slot + 6]! >>> tierShift;
  }

  /** Slot of the parent, or -1 when it is not held. */
  #parentOf(slot: number): number {
    const column = slotWords * slot;
    return this.#slotOf(this.#columns[column + 4]!, this.#columns[column + 5]!);
  }

  /** Slot of a block, or -1 when it is not held. */
  #slotOf(lo: number, hi: number): number {
    const at = this.#table.find(lo, hi);
    return at < 0 ? -1 : this.#table.words[at + 2]!;
  }

  #nameOf(slot: number): U64 {
    const column = slotWords * slot;
    return { lo: this.#columns[column]!, hi: this.#columns[column + 1]! };
  }
}
