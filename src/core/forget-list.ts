/**
 * Blocks of holders (worker, dp rank) in the order in which they are forgotten.
 *
 *   first ──▶ entry ──▶ … ──▶ last        forgetAtMs ascending
 *   pages     [ hash lo | hash hi | slot | position | before | after ]   6 words per entry
 *   tables    per holder: hash -> entry
 *
 * - Entries of one time: larger position first, so that a prompt loses its tail before its prefix;
 *   then larger hash, larger worker id, larger rank first, all unsigned.
 * - Time to live is one constant, so what is put again goes to the end and the list needs no heap: an
 *   entry is looked for from the end, or from the block of the same prompt put just before.
 * - A removed entry has no slot and waits in a chain for its next use. Pages are never moved, so that
 *   growth copies nothing.
 */
import type { Random } from "../base/random.ts";
import { LaneTable } from "./lane-table.ts";

/** No entry. */
export const nowhere = -1;

const pageShift = 12;
const pageEntries = 1 << pageShift;
const entryWords = 6;
const loWord = 0;
const hiWord = 1;
const slotWord = 2;
const positionWord = 3;
const beforeWord = 4;
const afterWord = 5;
const holderEntriesAtStart = 64;

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
  readonly #pages: Int32Array[] = [];
  readonly #timePages: Float64Array[] = [];

  constructor(random: Random) {
    this.#random = random;
  }

  /** `workerId` is a u64 as a decimal. */
  addHolder(slot: number, workerId: string, dpRank: number): void {
    const entryOf = new LaneTable(3, holderEntriesAtStart, this.#random);
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
      this.#set(entry, loWord, lo);
      this.#set(entry, hiWord, hi);
      this.#set(entry, slotWord, slot);
      this.size++;
    }
    this.#set(entry, positionWord, position);
    this.#timePages[entry >>> pageShift]![entry & (pageEntries - 1)] = forgetAtMs;
    this.#link(entry);
  }

  remove(entry: number): void {
    const { entryOf } = this.#holders[this.slotOf(entry)]!;
    entryOf.removeAt(entryOf.find(this.loOf(entry), this.hiOf(entry)));
    this.#unlink(entry);
    this.#set(entry, slotWord, nowhere);
    this.#set(entry, afterWord, this.#free);
    this.#free = entry;
    this.size--;
  }

  loOf(entry: number): number {
    return this.#get(entry, loWord);
  }

  hiOf(entry: number): number {
    return this.#get(entry, hiWord);
  }

  slotOf(entry: number): number {
    return this.#get(entry, slotWord);
  }

  positionOf(entry: number): number {
    return this.#get(entry, positionWord);
  }

  forgetAtMsOf(entry: number): number {
    return this.#timePages[entry >>> pageShift]![entry & (pageEntries - 1)]!;
  }

  get bytes(): number {
    let bytes = this.#pages.length * pageEntries * (4 * entryWords + 8);
    for (const holder of this.#holders) bytes += holder?.entryOf.bytes ?? 0;
    return bytes;
  }

  #take(): number {
    const free = this.#free;
    if (free !== nowhere) {
      this.#free = this.#get(free, afterWord);
      return free;
    }
    if (this.#used === this.#pages.length * pageEntries) {
      this.#pages.push(new Int32Array(pageEntries * entryWords));
      this.#timePages.push(new Float64Array(pageEntries));
    }
    return this.#used++;
  }

  #get(entry: number, word: number): number {
    return this.#pages[entry >>> pageShift]![(entry & (pageEntries - 1)) * entryWords + word]!;
  }

  #set(entry: number, word: number, value: number): void {
    this.#pages[entry >>> pageShift]![(entry & (pageEntries - 1)) * entryWords + word] = value;
  }

  #link(entry: number): void {
    const recent = this.#recent;
    let before = recent !== nowhere && this.#isLater(recent, entry) ? recent : this.#last;
    while (before !== nowhere && this.#isLater(before, entry))
      before = this.#get(before, beforeWord);
    const after = before === nowhere ? this.first : this.#get(before, afterWord);
    this.#join(before, entry);
    this.#join(entry, after);
    this.#recent = entry;
  }

  #unlink(entry: number): void {
    this.#join(this.#get(entry, beforeWord), this.#get(entry, afterWord));
    if (this.#recent === entry) this.#recent = nowhere;
  }

  /** Makes two entries neighbours; nowhere stands for the ends of the list. */
  #join(before: number, after: number): void {
    if (before === nowhere) this.first = after;
    else this.#set(before, afterWord, after);
    if (after === nowhere) this.#last = before;
    else this.#set(after, beforeWord, before);
  }

  /** True when `entry` is forgotten after `other`. */
  #isLater(entry: number, other: number): boolean {
    const ms = this.forgetAtMsOf(entry);
    const otherMs = this.forgetAtMsOf(other);
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
