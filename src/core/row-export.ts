/**
 * An export of a `ColumnIndex`'s rows in slices; the format is that of `rowWords`. The places of its
 * walk mean the same from slice to slice because the index ends an export with any change.
 *
 *   opaque     holder by holder, along its name table; tiers from the block table
 *   identity   along the block table; one row per bit of a block's set
 */
import type { BlockHolders } from "./block-holders.ts";
import { grownUint32 } from "./column.ts";
import type { EngineNames } from "./engine-names.ts";
import { bitOf, type IndexHolder, tiersOf } from "./index-holder.ts";
import { type IndexMode, rowWords, tierCount } from "./kv-index.ts";

/** Places of a table looked at per row asked for, so that empty stretches cost no more. */
const placesPerRow = 4;

export class RowExport {
  readonly #blocks: BlockHolders;
  readonly #holders: readonly (IndexHolder | undefined)[];
  readonly #words: number;
  /** First word of a row by bit: slot << 4 | tier bit; 0 = the bit is not exported. */
  readonly #headOfBit: Uint32Array;
  #slot = 0;
  #place = 0;
  #rows: Uint32Array = new Uint32Array(0);
  #used = 0;

  constructor(
    mode: IndexMode,
    blocks: BlockHolders,
    holders: readonly (IndexHolder | undefined)[],
  ) {
    this.#blocks = blocks;
    this.#holders = holders;
    this.#words = rowWords(mode);
    this.#headOfBit = new Uint32Array(32 * blocks.sets.wordsPerSet);
    for (const holder of holders) {
      for (let tier = 0; holder && tier < tierCount; tier++) {
        const bit = bitOf(holder, tier);
        if (bit >= 0) this.#headOfBit[bit] = (holder.slot << 4) | (1 << tier);
      }
    }
  }

  /** About `rowsMax` rows, possibly none; undefined after the last. */
  next(rowsMax: number): Uint32Array | undefined {
    this.#rows = new Uint32Array(this.#words * rowsMax);
    this.#used = 0;
    const places = placesPerRow * rowsMax;
    const more =
      this.#words === 3 ? this.#walkBlocks(places, rowsMax) : this.#walkNames(places, rowsMax);
    if (!more && this.#used === 0) return undefined;
    return this.#rows.subarray(0, this.#used);
  }

  #walkBlocks(places: number, rowsMax: number): boolean {
    const { table } = this.#blocks;
    if (table.migrating && table.migrate(places)) return true;
    const end = Math.min(table.capacity, this.#place + places);
    for (; this.#place < end && this.#used < 3 * rowsMax; this.#place++) {
      const at = 3 * this.#place;
      const set = table.words[at + 2]!;
      if (set !== 0) this.#pushSet(set, table.keyLo(at), table.keyHi(at));
    }
    return this.#place < table.capacity;
  }

  #pushSet(set: number, lo: number, hi: number): void {
    const { words, wordsPerSet } = this.#blocks.sets;
    for (let word = 0; word < wordsPerSet; word++) {
      for (let bits = words[set * wordsPerSet + word]!; bits !== 0; bits &= bits - 1) {
        const head = this.#headOfBit[32 * word + 31 - Math.clz32(bits & -bits)]!;
        if (head !== 0) this.#push(head, lo, hi);
      }
    }
  }

  #walkNames(places: number, rowsMax: number): boolean {
    let left = places;
    while (this.#slot < this.#holders.length && left > 0 && this.#used < 5 * rowsMax) {
      const holder = this.#holders[this.#slot];
      const walked = holder?.names ? this.#walkHolder(holder, holder.names, left, rowsMax) : -1;
      if (walked < 0) {
        this.#slot++;
        this.#place = 0;
      } else left -= walked;
    }
    return this.#slot < this.#holders.length;
  }

  /** Answers how many places it walked, at least one; -1 at the end of the holder. */
  #walkHolder(holder: IndexHolder, names: EngineNames, places: number, rowsMax: number): number {
    const { table } = names;
    if (table.migrating && table.migrate(places)) return places;
    const from = this.#place;
    const end = Math.min(table.capacity, from + places);
    for (; this.#place < end && this.#used < 5 * rowsMax; this.#place++) {
      const at = 4 * this.#place;
      if (table.isFree(at) || names.isReplaced(at)) continue;
      const lo = table.words[at + 2]!;
      const hi = table.words[at + 3]!;
      const tiers = holder.slowBits ? tiersOf(this.#blocks, holder, lo, hi) : 1;
      this.#push((holder.slot << 4) | tiers, lo, hi);
      this.#rows[this.#used - 2] = table.keyLo(at);
      this.#rows[this.#used - 1] = table.keyHi(at);
    }
    return this.#place === from ? -1 : this.#place - from;
  }

  #push(head: number, lo: number, hi: number): void {
    const words = this.#words;
    // The last block of a slice may have more holders than there is room for.
    if (this.#used + words > this.#rows.length) {
      this.#rows = grownUint32(this.#rows, 2 * this.#rows.length + words);
    }
    this.#rows[this.#used] = head;
    this.#rows[this.#used + 1] = lo;
    this.#rows[this.#used + 2] = hi;
    this.#used += words;
  }
}
