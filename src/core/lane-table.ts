/**
 * Open-addressing table from a 64-bit key to one or two 32-bit words, in one typed array.
 *
 *   slot      [ key lo ^ secret | key hi ^ secret | value | second value (if slotWords = 4) ]
 *   empty     both key words 0; a deleted slot leaves no trace (backward shift)
 *   growth    a second, larger array; every `reserve` moves a slice of the old one over
 *
 *   old     [ dead dead dead | k v   ·   k v   k v ]      moved slots are dead, probes walk past
 *                            ^ #oldAt
 *   current [ k v   ·   k v   ·    ·   k v   ·   · ]
 *
 * - Keys come from outside; home slots depend on secrets drawn from `random`, so nobody can aim many
 *   keys at one run. Stored key words are XORed with a secret, so the two reserved keys (empty, dead)
 *   are values nobody can aim at either; they are treated as their neighbours.
 * - Load stays at or below 3/4. A probe longer than 128 grows a table above half load, as chance makes
 *   some there, and rebuilds one below with new secrets.
 * - Near growth a large table makes the pages of the next array in slices; new keys would make them at
 *   once, thousands in the first event.
 * - Growth keeps the secrets: slots move in order, and a slice touches few pages of the new array.
 * - Offsets that `find` and `insert` answer are valid until the next call that changes the table.
 */
import type { Random } from "../base/random.ts";
import { randomU32 } from "../base/random.ts";

const loadMax = 0.75;
const loadAfterGrowth = 0.5;
const probeMax = 128;
/** From this load on, a large table has the pages of the next array made, a few per call. */
const loadToPrepare = 0.63;
const preparedBytesMin = 1 << 21;
const pageWords = 1024;
const pagesPerCall = 32;
/** Slots moved per call, or per key to come if more: a growth ends before the next can begin. */
const sliceSlots = 256;
const movedPerKey = 5;
const dead = -1;
const noWords = new Int32Array(0);

export class LaneTable {
  /** Slots' words; `find` and `insert` answer offsets into it. */
  words: Int32Array;
  capacity: number;
  count = 0;
  longestProbe = 0;
  /** Next slot a caller's scan will look at; moved back when a shift carries a slot past it. */
  scanAt = 0;

  readonly #slotWords: number;
  readonly #random: Random;
  readonly #secretLo: number;
  readonly #secretHi: number;
  #mulLo: number;
  #mulHi: number;
  #scale: number;
  // Where the last `find` missed: an `insert` of that key need not probe again.
  #missAt = -1;
  #missLo = 0;
  #missHi = 0;
  #next: Int32Array = noWords;
  #preparedTo = 0;
  #old: Int32Array = noWords;
  #oldCapacity = 0;
  #oldAt = 0;
  #oldMulLo = 0;
  #oldMulHi = 0;
  #oldScale = 0;

  constructor(slotWords: 3 | 4, slots: number, random: Random) {
    this.#slotWords = slotWords;
    this.#random = random;
    this.#secretLo = randomU32(random) | 0;
    this.#secretHi = randomU32(random) | 0;
    this.#mulLo = randomU32(random) | 1;
    this.#mulHi = randomU32(random) | 1;
    this.capacity = Math.max(16, Math.ceil(slots / loadMax));
    this.#scale = this.capacity / 4294967296;
    this.words = new Int32Array(this.capacity * slotWords);
  }

  get bytes(): number {
    return this.words.byteLength + this.#old.byteLength + this.#next.byteLength;
  }

  get migrating(): boolean {
    return this.#oldCapacity > 0;
  }

  /** Offset of the key's slot, or -1. */
  find(lo: number, hi: number): number {
    const a = this.#storedLo(lo, hi);
    const b = hi ^ this.#secretHi;
    const words = this.words;
    const width = this.#slotWords;
    const end = words.length;
    let offset = width * home(a, b, this.#mulLo, this.#mulHi, this.#scale);
    for (;;) {
      const wordLo = words[offset]!;
      const wordHi = words[offset + 1]!;
      if (wordLo === a && wordHi === b) return offset;
      if ((wordLo | wordHi) === 0) break;
      offset += width;
      if (offset === end) offset = 0;
    }
    const found = this.#oldCapacity === 0 ? -1 : this.#bringOver(a, b);
    if (found < 0) {
      this.#missAt = offset;
      this.#missLo = a;
      this.#missHi = b;
    }
    return found;
  }

  /** First value word of the key's slot, or 0. */
  get(lo: number, hi: number): number {
    const offset = this.find(lo, hi);
    return offset < 0 ? 0 : this.words[offset + 2]!;
  }

  /** Adds a slot for a key that is absent; the caller has reserved it and writes its values. */
  insert(lo: number, hi: number): number {
    this.count++;
    return this.#place(this.#storedLo(lo, hi), hi ^ this.#secretHi);
  }

  /** Deletes the slot at `offset`; slots behind it move up. */
  removeAt(offset: number): void {
    const words = this.words;
    const width = this.#slotWords;
    const end = words.length;
    let gap = offset;
    let at = offset;
    for (;;) {
      at += width;
      if (at === end) at = 0;
      const a = words[at]!;
      const b = words[at + 1]!;
      if ((a | b) === 0) break;
      const wanted = width * home(a, b, this.#mulLo, this.#mulHi, this.#scale);
      // The slot may fill the gap unless its home lies behind the gap, cyclically.
      const stays = gap <= at ? wanted > gap && wanted <= at : wanted > gap || wanted <= at;
      if (stays) continue;
      words[gap] = a;
      words[gap + 1] = b;
      words[gap + 2] = words[at + 2]!;
      if (width === 4) words[gap + 3] = words[at + 3]!;
      const scan = this.scanAt * width;
      if (at >= scan && gap < scan) this.scanAt = gap / width;
      gap = at;
    }
    words[gap] = 0;
    words[gap + 1] = 0;
    words[gap + 2] = 0;
    if (width === 4) words[gap + 3] = 0;
    this.#missAt = -1;
    this.count--;
  }

  /** Makes room for `slots` more keys and moves a slice of a growth under way. */
  reserve(slots: number): void {
    if (this.#oldCapacity > 0) this.migrate(Math.max(sliceSlots, movedPerKey * slots));
    const needed = this.count + slots;
    const isFull = needed > this.capacity * loadMax;
    // A long probe can wait for the end of a growth; a full table cannot.
    if (needed > this.capacity * loadToPrepare) this.#prepare(Math.max(pagesPerCall, slots >> 2));
    if (!isFull && (this.longestProbe <= probeMax || this.#oldCapacity > 0)) return;
    if (this.#oldCapacity > 0) this.migrate(this.#oldCapacity);
    const capacity = Math.max(this.capacity, Math.ceil(needed / loadAfterGrowth));
    this.#startGrowth(capacity);
  }

  /** Moves up to `slots` slots of a growth under way; answers whether some are left. */
  migrate(slots: number): boolean {
    const old = this.#old;
    const width = this.#slotWords;
    const end = Math.min(this.#oldCapacity, this.#oldAt + slots);
    for (; this.#oldAt < end; this.#oldAt++) this.#moveSlot(old, this.#oldAt * width);
    if (this.#oldAt < this.#oldCapacity) return true;
    this.#old = noWords;
    this.#oldCapacity = 0;
    return false;
  }

  /** The key at `offset` as given to `insert`: [lo, hi], unsigned. */
  keyLo(offset: number): number {
    return (this.words[offset]! ^ this.#secretLo) >>> 0;
  }

  keyHi(offset: number): number {
    return (this.words[offset + 1]! ^ this.#secretHi) >>> 0;
  }

  /** Whether the slot at `offset` has no key. */
  isFree(offset: number): boolean {
    return (this.words[offset]! | this.words[offset + 1]!) === 0;
  }

  #storedLo(lo: number, hi: number): number {
    const a = lo ^ this.#secretLo;
    const b = hi ^ this.#secretHi;
    return (a | b) === 0 || (a & b) === dead ? a ^ 1 : a;
  }

  #place(a: number, b: number): number {
    const words = this.words;
    const width = this.#slotWords;
    const end = words.length;
    const wanted = width * home(a, b, this.#mulLo, this.#mulHi, this.#scale);
    let offset = wanted;
    if (this.#missAt >= 0 && a === this.#missLo && b === this.#missHi) offset = this.#missAt;
    while ((words[offset]! | words[offset + 1]!) !== 0) {
      offset += width;
      if (offset === end) offset = 0;
    }
    const probes = (offset - wanted + (offset < wanted ? end : 0)) / width + 1;
    if (probes > this.longestProbe) this.longestProbe = probes;
    words[offset] = a;
    words[offset + 1] = b;
    this.#missAt = -1;
    return offset;
  }

  /** Writes to `pages` pages of the next array: the system makes a page at the first write to it. */
  #prepare(pages: number): void {
    if (this.words.byteLength < preparedBytesMin) return;
    if (this.#next.length === 0) {
      const capacity = Math.ceil((this.capacity * loadMax) / loadAfterGrowth);
      this.#next = new Int32Array(capacity * this.#slotWords);
      this.#preparedTo = 0;
    }
    const end = Math.min(this.#next.length, this.#preparedTo + pages * pageWords);
    for (; this.#preparedTo < end; this.#preparedTo += pageWords) this.#next[this.#preparedTo] = 0;
  }

  #startGrowth(wanted: number): void {
    const prepared = this.#next.length / this.#slotWords;
    const capacity = wanted > this.capacity ? Math.max(wanted, prepared) : wanted;
    const words = capacity === prepared ? this.#next : new Int32Array(capacity * this.#slotWords);
    this.#next = noWords;
    this.#old = this.words;
    this.#oldCapacity = this.capacity;
    this.#oldAt = 0;
    this.#oldMulLo = this.#mulLo;
    this.#oldMulHi = this.#mulHi;
    this.#oldScale = this.#scale;
    if (capacity === this.capacity) {
      this.#mulLo = randomU32(this.#random) | 1;
      this.#mulHi = randomU32(this.#random) | 1;
    }
    this.capacity = capacity;
    this.words = words;
    this.#scale = capacity / 4294967296;
    this.longestProbe = 0;
    this.scanAt = 0;
    this.#missAt = -1;
  }

  /** Finds a stored key in the old array and moves its slot to the current one. */
  #bringOver(a: number, b: number): number {
    const old = this.#old;
    const width = this.#slotWords;
    const end = old.length;
    let offset = width * home(a, b, this.#oldMulLo, this.#oldMulHi, this.#oldScale);
    for (;;) {
      const wordLo = old[offset]!;
      const wordHi = old[offset + 1]!;
      if (wordLo === a && wordHi === b) return this.#moveSlot(old, offset);
      if ((wordLo | wordHi) === 0) return -1;
      offset += width;
      if (offset === end) offset = 0;
    }
  }

  #moveSlot(old: Int32Array, from: number): number {
    const a = old[from]!;
    const b = old[from + 1]!;
    if ((a | b) === 0 || (a & b) === dead) return -1;
    const to = this.#place(a, b);
    for (let word = 2; word < this.#slotWords; word++) this.words[to + word] = old[from + word]!;
    old[from] = dead;
    old[from + 1] = dead;
    return to;
  }
}

/** Home slot of a stored key: the high part of a mixed 32-bit hash times the capacity. */
function home(a: number, b: number, mulLo: number, mulHi: number, scale: number): number {
  const mixed = Math.imul(a, mulLo) ^ Math.imul(b, mulHi);
  const spread = Math.imul(mixed ^ (mixed >>> 15), 0x2c1b3c6d);
  return (((spread ^ (spread >>> 13)) >>> 0) * scale) >>> 0;
}
