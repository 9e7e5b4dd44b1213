/**
 * Which holders have which block, as sets of bits; the shared part of the index.
 *
 *   table (LaneTable)                       sets (HolderSets)          slotOfBit
 *   own key = sequence hash -> set id  ──▶  words per set id   bit ──▶ holder slot
 *
 * - A present key proves the content of the whole prefix, so there is no tree. It does not prove
 *   that a holder has the prefix: `match` intersects the sets of all blocks from the first.
 * - A retired bit is masked at once (`#live`) and costs nothing; slices of `maintain` take it out of
 *   the sets, and only after a whole pass over the table is it handed out again.
 */
import type { Random } from "../base/random.ts";
import { grownInt32, grownUint32 } from "./column.ts";
import { HolderSets, setsFull } from "./holder-sets.ts";
import { LaneTable } from "./lane-table.ts";

/** Slots looked at per event by a pass over the table. */
const sweepSlots = 512;
const tableSlotsMin = 1024;

export class BlockHolders {
  readonly table: LaneTable;
  readonly sets: HolderSets;
  readonly #retiredMax: number;
  #bits = 0;
  readonly #freeBits: number[] = [];
  #slotOfBit: Int32Array = new Int32Array(32);
  #live: Uint32Array = new Uint32Array(1);
  #active: Uint32Array = new Uint32Array(1);
  // Bits that wait for a pass, and those that the present pass takes out.
  #retired: number[] = [];
  #sweeping: number[] = [];
  #sweepMask: Uint32Array = new Uint32Array(1);

  /** Up to `retiredMax` bits wait for a pass over the table. */
  constructor(random: Random, retiredMax: number, setWordsMax?: number) {
    this.table = new LaneTable(3, tableSlotsMin, random);
    this.sets = new HolderSets(random, setWordsMax);
    this.#retiredMax = retiredMax;
  }

  /** Adds a bit to the block's set: 1 = added, 0 = was in it, `setsFull`. Room was reserved. */
  add(bit: number, lo: number, hi: number): number {
    const table = this.table;
    const sets = this.sets;
    let at = table.find(lo, hi);
    const before = at < 0 ? 0 : table.words[at + 2]!;
    if (at >= 0 && sets.has(before, bit)) return 0;
    const after = sets.flip(before, bit);
    if (after === setsFull) return setsFull;
    if (at < 0) at = table.insert(lo, hi);
    table.words[at + 2] = after;
    sets.retain(after);
    if (before !== 0) sets.release(before);
    return 1;
  }

  /** Takes a bit out of the block's set; false when it was not in it. */
  drop(bit: number, lo: number, hi: number): boolean {
    const at = this.table.find(lo, hi);
    if (at < 0 || !this.sets.has(this.table.words[at + 2]!, bit)) return false;
    this.#takeOut(at, bit);
    return true;
  }

  /**
   * Writes, per holder slot, how many consecutive blocks from the first it holds; answers the
   * largest.
   */
  match(sequence: Uint32Array, blocks: number, depths: Int32Array): number {
    depths.fill(0);
    const table = this.table;
    let set = blocks > 0 ? table.get(sequence[0]! | 0, sequence[1]! | 0) : 0;
    if (set === 0 || !this.#enter(set)) return 0;
    for (let block = 1; block < blocks; block++) {
      const next = table.get(sequence[2 * block]! | 0, sequence[2 * block + 1]! | 0);
      if (next === set) continue;
      if (next === 0) {
        this.#writeActive(depths, block);
        return block;
      }
      if (!this.#intersect(next, depths, block)) return block;
      set = next;
    }
    this.#writeActive(depths, blocks);
    return blocks;
  }

  /**
   * A bit for a holder slot; `live` = `match` sees it. Finishes the pass at once when as many bits
   * wait for it as the pool may have holders.
   */
  takeBit(slot: number, live: boolean): number {
    if (this.#freeBits.length === 0 && this.#retired.length >= this.#retiredMax) {
      while (this.maintain(Number.POSITIVE_INFINITY));
    }
    const bit = this.#freeBits.pop() ?? this.#bits++;
    const words = Math.ceil(this.#bits / 32);
    if (words > this.#live.length) {
      this.#live = grownUint32(this.#live, words);
      this.#sweepMask = grownUint32(this.#sweepMask, words);
      this.#active = grownUint32(this.#active, words);
      this.#slotOfBit = grownInt32(this.#slotOfBit, 32 * words);
    }
    this.sets.reserveBits(this.#bits);
    this.#slotOfBit[bit] = slot;
    this.setLive(bit, live);
    return bit;
  }

  /** Whether `match` sees the bit. */
  setLive(bit: number, live: boolean): void {
    const mask = 1 << (bit & 31);
    if (live) this.#live[bit >>> 5]! |= mask;
    else this.#live[bit >>> 5]! &= ~mask;
  }

  /** Masks a bit at once; `unused` = no set has it. */
  retireBit(bit: number, unused: boolean): void {
    this.setLive(bit, false);
    (unused ? this.#freeBits : this.#retired).push(bit);
  }

  /** Work that every event pays for: room for its blocks, a slice of growth, a slice of a pass. */
  advance(blocks: number): void {
    this.table.reserve(blocks);
    if (this.#sweeping.length + this.#retired.length > 0) this.maintain(sweepSlots);
  }

  /** Advances growth and the pass over retired bits by up to `slots`; true while work is left. */
  maintain(slots: number): boolean {
    if (this.table.migrating && this.table.migrate(slots)) return true;
    return this.#sweep(slots);
  }

  /** Takes a bit out of the set at `at`; true when the slot went with its last member. */
  #takeOut(at: number, bit: number): boolean {
    const before = this.table.words[at + 2]!;
    const after = this.sets.flip(before, bit);
    if (after === 0) this.table.removeAt(at);
    else {
      this.table.words[at + 2] = after;
      this.sets.retain(after);
    }
    this.sets.release(before);
    return after === 0;
  }

  /** One slice of the pass that takes retired bits out of every set; true while work is left. */
  #sweep(slots: number): boolean {
    const table = this.table;
    if (this.#sweeping.length === 0) {
      if (this.#retired.length === 0) return false;
      this.#sweeping = this.#retired;
      this.#retired = [];
      for (const bit of this.#sweeping) this.#sweepMask[bit >>> 5]! |= 1 << (bit & 31);
      table.scanAt = 0;
    }
    for (let left = slots; left > 0; left--) {
      if (table.scanAt >= table.capacity) return this.#endSweep();
      const at = 3 * table.scanAt;
      const set = table.words[at + 2]!;
      if (set === 0 || !this.sets.meets(set, this.#sweepMask) || !this.#sweepSlot(at)) {
        table.scanAt++;
      }
    }
    return true;
  }

  #sweepSlot(at: number): boolean {
    for (const bit of this.#sweeping) {
      if (this.sets.has(this.table.words[at + 2]!, bit) && this.#takeOut(at, bit)) return true;
    }
    return false;
  }

  #endSweep(): boolean {
    for (const bit of this.#sweeping) this.#freeBits.push(bit);
    this.#sweeping = [];
    this.#sweepMask.fill(0);
    return this.#retired.length > 0;
  }

  /** The active holders become those of `set` that are live; false when there is none. */
  #enter(set: number): boolean {
    const { words, wordsPerSet } = this.sets;
    let any = 0;
    for (let word = 0; word < wordsPerSet; word++) {
      const bits = words[set * wordsPerSet + word]! & this.#live[word]!;
      this.#active[word] = bits;
      any |= bits;
    }
    return any !== 0;
  }

  /** Active holders outside `set` leave with `depth`; false when nobody is left. */
  #intersect(set: number, depths: Int32Array, depth: number): boolean {
    const { words, wordsPerSet } = this.sets;
    const active = this.#active;
    let any = 0;
    for (let word = 0; word < wordsPerSet; word++) {
      const before = active[word]!;
      const stay = before & words[set * wordsPerSet + word]!;
      if (stay !== (before | 0)) this.#write(depths, depth, word, before & ~stay);
      active[word] = stay;
      any |= stay;
    }
    return any !== 0;
  }

  #writeActive(depths: Int32Array, depth: number): void {
    const { wordsPerSet } = this.sets;
    for (let word = 0; word < wordsPerSet; word++) {
      this.#write(depths, depth, word, this.#active[word]!);
    }
  }

  #write(depths: Int32Array, depth: number, word: number, members: number): void {
    for (let bits = members; bits !== 0; bits &= bits - 1) {
      const bit = 32 * word + 31 - Math.clz32(bits & -bits);
      depths[this.#slotOfBit[bit]!] = depth;
    }
  }
}
