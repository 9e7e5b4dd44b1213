/**
 * Interned sets of holders. A set is immutable and has an id; equal sets have equal ids, so a block
 * slot holds one id whatever the number of holders, and "same holders" is one compare.
 *
 *   id          0      1      2      3
 *   words    [ ---- | A--- | AB-- | -B-- ]   wordsPerSet words each, bit = holder
 *   zLo, zHi [  0   |  zA  | zA^zB|  zB  ]   XOR of one random u64 per member: the interning hash
 *   refs     [  –   |  12  |  400 |   3  ]   block slots that use the set; 0 gives the id back
 *   members  [  0   |   1  |   2  |   1  ]
 *
 * - Id 0 is the empty set and is never stored in a slot.
 * - Two sets are equal only if their words are; `z` merely finds the candidate.
 * - Words in all sets are at most `setWordsMax`; beyond, a `flip` that adds answers `setsFull`.
 */
import type { Random } from "../base/random.ts";
import { randomU32 } from "../base/random.ts";
import { grownInt32, grownUint32 } from "./column.ts";

/** 16 MiB: 131,072 sets of 1,024 holders. */
export const setWordsMax: number = 1 << 22;

/** Answer of `flip` when no further set may be made. */
export const setsFull = -1;

export class HolderSets {
  words: Uint32Array;
  wordsPerSet = 1;

  readonly #random: Random;
  readonly #wordsMax: number;
  #bits = 0;
  #bitLo = new Int32Array(32);
  #bitHi = new Int32Array(32);
  #ids = 64;
  #used = 1;
  #live = 0;
  #zLo = new Int32Array(64);
  #zHi = new Int32Array(64);
  #refs = new Uint32Array(64);
  #members = new Uint32Array(64);
  #free: number[] = [];
  #intern = new Uint32Array(256);
  // A run of blocks makes the same step again and again: the last one is remembered.
  #memoBit = -1;
  #memoFrom = 0;
  #memoTo = 0;

  constructor(random: Random, wordsMax: number = setWordsMax) {
    this.#random = random;
    this.#wordsMax = wordsMax;
    this.words = new Uint32Array(64);
  }

  /** Sets in use, the empty one excluded. */
  get count(): number {
    return this.#live;
  }

  get bytes(): number {
    return this.words.byteLength + 16 * this.#ids + this.#intern.byteLength;
  }

  /** Makes bits [0, bits) usable. */
  reserveBits(bits: number): void {
    if (bits > this.#bitLo.length) {
      this.#bitLo = grownInt32(this.#bitLo, 2 * bits);
      this.#bitHi = grownInt32(this.#bitHi, 2 * bits);
    }
    for (; this.#bits < bits; this.#bits++) {
      this.#bitLo[this.#bits] = randomU32(this.#random);
      this.#bitHi[this.#bits] = randomU32(this.#random);
    }
    const wordsPerSet = Math.ceil(bits / 32);
    if (wordsPerSet > this.wordsPerSet) this.#widen(wordsPerSet);
  }

  has(set: number, bit: number): boolean {
    return ((this.words[set * this.wordsPerSet + (bit >>> 5)]! >>> (bit & 31)) & 1) === 1;
  }

  /** Whether the set has a member in `mask`. */
  meets(set: number, mask: Uint32Array): boolean {
    const base = set * this.wordsPerSet;
    for (let word = 0; word < this.wordsPerSet; word++) {
      if ((this.words[base + word]! & mask[word]!) !== 0) return true;
    }
    return false;
  }

  /** Id of `set` with `bit` added or taken away; 0 = empty, `setsFull` = no room for a new set. */
  flip(set: number, bit: number): number {
    if (bit === this.#memoBit && set === this.#memoFrom) return this.#memoTo;
    const zLo = this.#zLo[set]! ^ this.#bitLo[bit]!;
    const zHi = this.#zHi[set]! ^ this.#bitHi[bit]!;
    const adds = !this.has(set, bit);
    const members = this.#members[set]! + (adds ? 1 : -1);
    if (members === 0) return 0;
    const mask = this.#intern.length - 1;
    let at = zLo & mask;
    for (let id = this.#intern[at]!; id !== 0; id = this.#intern[at]!) {
      if (this.#zLo[id] === zLo && this.#zHi[id] === zHi && this.#isFlipOf(id, set, bit)) {
        return this.#remember(set, bit, id);
      }
      at = (at + 1) & mask;
    }
    const id = this.#newId(adds);
    if (id < 0) return setsFull;
    const width = this.wordsPerSet;
    for (let word = 0; word < width; word++) {
      this.words[id * width + word] = this.words[set * width + word]!;
    }
    this.words[id * width + (bit >>> 5)]! ^= 1 << (bit & 31);
    this.#zLo[id] = zLo;
    this.#zHi[id] = zHi;
    this.#refs[id] = 0;
    this.#members[id] = members;
    this.#live++;
    this.#addToIntern(id);
    return this.#remember(set, bit, id);
  }

  /** One more slot uses the set. */
  retain(set: number): void {
    this.#refs[set]!++;
  }

  /** One slot less uses the set; the last one gives its id back. */
  release(set: number): void {
    this.#refs[set]!--;
    if (this.#refs[set] !== 0) return;
    if (set === this.#memoFrom || set === this.#memoTo) this.#memoBit = -1;
    this.#removeFromIntern(set);
    this.#free.push(set);
    this.#live--;
  }

  #remember(from: number, bit: number, to: number): number {
    this.#memoBit = bit;
    this.#memoFrom = from;
    this.#memoTo = to;
    return to;
  }

  #isFlipOf(id: number, set: number, bit: number): boolean {
    const width = this.wordsPerSet;
    for (let word = 0; word < width; word++) {
      const flipped = word === bit >>> 5 ? 1 << (bit & 31) : 0;
      if ((this.words[id * width + word]! ^ this.words[set * width + word]! ^ flipped) !== 0) {
        return false;
      }
    }
    return true;
  }

  /** A removal must never fail, so only an addition is held to the limit. */
  #newId(limited: boolean): number {
    const freed = this.#free.pop();
    if (freed !== undefined) return freed;
    if (limited && (this.#used + 1) * this.wordsPerSet > this.#wordsMax) return -1;
    if (this.#used === this.#ids) this.#growIds();
    return this.#used++;
  }

  #growIds(): void {
    this.#ids *= 2;
    this.#zLo = grownInt32(this.#zLo, this.#ids);
    this.#zHi = grownInt32(this.#zHi, this.#ids);
    this.#refs = grownUint32(this.#refs, this.#ids);
    this.#members = grownUint32(this.#members, this.#ids);
    this.words = grownUint32(this.words, this.#ids * this.wordsPerSet);
    const interned = this.#intern.filter((id) => id !== 0);
    this.#intern = new Uint32Array(this.#ids * 4);
    for (const id of interned) this.#addToIntern(id);
  }

  #widen(wordsPerSet: number): void {
    const words = new Uint32Array(this.#ids * wordsPerSet);
    for (let id = 0; id < this.#used; id++) {
      for (let word = 0; word < this.wordsPerSet; word++) {
        words[id * wordsPerSet + word] = this.words[id * this.wordsPerSet + word]!;
      }
    }
    this.words = words;
    this.wordsPerSet = wordsPerSet;
  }

  #addToIntern(id: number): void {
    const mask = this.#intern.length - 1;
    let at = this.#zLo[id]! & mask;
    while (this.#intern[at] !== 0) at = (at + 1) & mask;
    this.#intern[at] = id;
  }

  #removeFromIntern(id: number): void {
    const intern = this.#intern;
    const mask = intern.length - 1;
    let gap = this.#zLo[id]! & mask;
    while (intern[gap] !== id) gap = (gap + 1) & mask;
    for (let at = (gap + 1) & mask; intern[at] !== 0; at = (at + 1) & mask) {
      const wanted = this.#zLo[intern[at]!]! & mask;
      if (((at - wanted) & mask) < ((at - gap) & mask)) continue;
      intern[gap] = intern[at]!;
      gap = at;
    }
    intern[gap] = 0;
  }
}
