/**
 * Blocks of holders (worker, dp rank) in the order in which they are forgotten.
 *
 *   first ──▶ entry ──▶ … ──▶ last        forgetAtMs ascending
 *   columns   [ hash lo | hash hi | slot | position | before | after ]   6 words per entry
 *   tables    per holder: hash -> entry
 *
 * - Entries of one time: larger position first, so that a prompt loses its tail before its prefix;
 *   then larger hash, larger worker id, larger rank first, all unsigned.
 * - Time to live is one constant, so what is put again goes to the end and the list needs no heap: an
 *   entry is looked for from the end, or from the block of the same prompt put just before.
 * - A removed entry has no slot and waits in a chain for its next use.
 */
import type { Random } from "../base/random.ts";
import { grownFloat64, grownInt32 } from "./column.ts";
import { LaneTable } from "./lane-table.ts";

/** No entry. */
export const nowhere = -1;

const entryWords = 6;
const hiWord = 1;
const slotWord = 2;
const positionWord = 3;
const beforeWord = 4;
const afterWord = 5;
const entriesAtStart = 64;

interface ListHolder {
  readonly workerId: bigint;
  readonly dpRank: number;
  readonly entryOf: LaneTable;
}

export class ForgetList {
  size = 0;
  /** Entry that is forgotten next. */
  first: number = nowhere;

  readonly #random: Random;
  readonly #holders: (ListHolder | undefined)[] = [];
  #last = nowhere;
  /** Entry put last; blocks of one prompt come one before the other. */
  #recent = nowhere;
  #free = nowhere;
  #used = 0;
  #words: Int32Array = new Int32Array(entriesAtStart * entryWords);
  #forgetAtMs: Float64Array = new Float64Array(entriesAtStart);

  constructor(random: Random) {
    this.#random = random;
  }

  /** `workerId` is a u64 as a decimal. */
  addHolder(slot: number, workerId: string, dpRank: number): void {
    const entryOf = new LaneTable(3, entriesAtStart, this.#random);
    this.#holders[slot] = { workerId: BigInt(workerId), dpRank, entryOf };
  }

  /** Forgets a holder and its entries; `removed` is told their hashes. */
  removeHolder(slot: number, removed: (lo: number, hi: number) => void): void {
    // In the order of the columns, which is much faster to walk than the list.
    for (let entry = 0; entry < this.#used; entry++) {
      if (this.slotOf(entry) !== slot) continue;
      removed(this.loOf(entry), this.hiOf(entry));
      this.remove(entry);
    }
    this.#holders[slot] = undefined;
  }

  /** Entries of a holder. */
  countOf(slot: number): number {
    return this.#holders[slot]?.entryOf.count ?? 0;
  }

  /** Adds a block of a known holder, or gives it another time. Hashes are signed lanes (`| 0`). */
  put(slot: number, lo: number, hi: number, position: number, forgetAtMs: number): void {
    const { entryOf } = this.#holders[slot]!;
    const at = entryOf.find(lo, hi);
    let entry: number;
    if (at >= 0) {
      entry = entryOf.words[at + 2]!;
      this.#unlink(entry);
    } else {
      entry = this.#take();
      entryOf.reserve(1);
      const place = entryOf.insert(lo, hi);
      entryOf.words[place + 2] = entry;
      this.#words[entry * entryWords] = lo;
      this.#words[entry * entryWords + hiWord] = hi;
      this.#words[entry * entryWords + slotWord] = slot;
      this.size++;
    }
    this.#words[entry * entryWords + positionWord] = position;
    this.#forgetAtMs[entry] = forgetAtMs;
    this.#link(entry);
  }

  remove(entry: number): void {
    const { entryOf } = this.#holders[this.slotOf(entry)]!;
    entryOf.removeAt(entryOf.find(this.loOf(entry), this.hiOf(entry)));
    this.#unlink(entry);
    this.#words[entry * entryWords + slotWord] = nowhere;
    this.#words[entry * entryWords + afterWord] = this.#free;
    this.#free = entry;
    this.size--;
  }

  loOf(entry: number): number {
    return this.#words[entry * entryWords]!;
  }

  hiOf(entry: number): number {
    return this.#words[entry * entryWords + hiWord]!;
  }

  slotOf(entry: number): number {
    return this.#words[entry * entryWords + slotWord]!;
  }

  positionOf(entry: number): number {
    return this.#words[entry * entryWords + positionWord]!;
  }

  forgetAtMsOf(entry: number): number {
    return this.#forgetAtMs[entry]!;
  }

  get bytes(): number {
    let bytes = this.#words.byteLength + this.#forgetAtMs.byteLength;
    for (const holder of this.#holders) bytes += holder?.entryOf.bytes ?? 0;
    return bytes;
  }

  #take(): number {
    const free = this.#free;
    if (free !== nowhere) {
      this.#free = this.#words[free * entryWords + afterWord]!;
      return free;
    }
    if (this.#used === this.#forgetAtMs.length) {
      this.#words = grownInt32(this.#words, 2 * this.#words.length);
      this.#forgetAtMs = grownFloat64(this.#forgetAtMs, 2 * this.#forgetAtMs.length);
    }
    return this.#used++;
  }

  #link(entry: number): void {
    const words = this.#words;
    const recent = this.#recent;
    let before = recent !== nowhere && this.#isLater(recent, entry) ? recent : this.#last;
    while (before !== nowhere && this.#isLater(before, entry)) {
      before = words[before * entryWords + beforeWord]!;
    }
    const after = before === nowhere ? this.first : words[before * entryWords + afterWord]!;
    words[entry * entryWords + beforeWord] = before;
    words[entry * entryWords + afterWord] = after;
    if (before === nowhere) this.first = entry;
    else words[before * entryWords + afterWord] = entry;
    if (after === nowhere) this.#last = entry;
    else words[after * entryWords + beforeWord] = entry;
    this.#recent = entry;
  }

  #unlink(entry: number): void {
    const words = this.#words;
    const before = words[entry * entryWords + beforeWord]!;
    const after = words[entry * entryWords + afterWord]!;
    if (before === nowhere) this.first = after;
    else words[before * entryWords + afterWord] = after;
    if (after === nowhere) this.#last = before;
    else words[after * entryWords + beforeWord] = before;
    if (this.#recent === entry) this.#recent = nowhere;
  }

  /** True when `entry` is forgotten after `other`. */
  #isLater(entry: number, other: number): boolean {
    const ms = this.#forgetAtMs[entry]!;
    const otherMs = this.#forgetAtMs[other]!;
    if (ms !== otherMs) return ms > otherMs;
    const position = this.positionOf(entry);
    const otherPosition = this.positionOf(other);
    if (position !== otherPosition) return position < otherPosition;
    const hi = this.hiOf(entry) >>> 0;
    const otherHi = this.hiOf(other) >>> 0;
    if (hi !== otherHi) return hi < otherHi;
    const lo = this.loOf(entry) >>> 0;
    const otherLo = this.loOf(other) >>> 0;
    if (lo !== otherLo) return lo < otherLo;
    const holder = this.#holders[this.slotOf(entry)]!;
    const otherHolder = this.#holders[this.slotOf(other)]!;
    if (holder.workerId !== otherHolder.workerId) return holder.workerId < otherHolder.workerId;
    return holder.dpRank < otherHolder.dpRank;
  }
}

/** Entries that pruning leaves; `sizeMax * ratio` in plain double arithmetic. */
export function pruneTarget(sizeMax: number, ratio: number): number {
  return Math.floor(sizeMax * ratio);
}
