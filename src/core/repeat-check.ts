/** Finds a hash that occurs twice in one event, with a stamped scratch table that is never cleared. */
import type { Random } from "../base/random.ts";
import { randomU32 } from "../base/random.ts";
import type { U64 } from "../protocol/u64.ts";

/** Blocks in one event; more is invalid. */
export const eventBlocksMax = 65_536;
const pairwiseMax = 8;

export class RepeatCheck {
  readonly #mulLo: number;
  readonly #mulHi: number;
  #stamps: Uint32Array = new Uint32Array(64);
  #places: Uint32Array = new Uint32Array(64);
  #stamp = 0;

  constructor(random: Random) {
    this.#mulLo = randomU32(random) | 1;
    this.#mulHi = randomU32(random) | 1;
  }

  /**
   * Whether a stored event breaks the rules: too many blocks, an engine hash that occurs twice or is
   * the parent's. Four words per block, engine hash last.
   */
  breaksRules(parent: U64 | undefined, blocks: Uint32Array): boolean {
    const count = blocks.length >>> 2;
    if (count > eventBlocksMax) return true;
    if (parent) {
      for (let word = 2; word < 4 * count; word += 4) {
        if (blocks[word] === parent.lo && blocks[word + 1] === parent.hi) return true;
      }
    }
    return count > 1 && this.repeats(blocks, count, 2, 4);
  }

  /** Whether two of the `count` keys at words [first + i * width, + 1] of `lanes` are equal. */
  repeats(lanes: Uint32Array, count: number, first: number, width: number): boolean {
    if (count > pairwiseMax) return this.#repeatsHashed(lanes, count, first, width);
    for (let one = 1; one < count; one++) {
      for (let other = 0; other < one; other++) {
        if (same(lanes, first + one * width, first + other * width)) return true;
      }
    }
    return false;
  }

  #repeatsHashed(lanes: Uint32Array, count: number, first: number, width: number): boolean {
    if (this.#stamps.length < 2 * count) {
      const slots = 2 ** Math.ceil(Math.log2(2 * count));
      this.#stamps = new Uint32Array(slots);
      this.#places = new Uint32Array(slots);
      this.#stamp = 0;
    }
    if (++this.#stamp > 0xffff_fffe) {
      this.#stamps.fill(0);
      this.#stamp = 1;
    }
    const mask = this.#stamps.length - 1;
    for (let at = first; at < first + count * width; at += width) {
      const mixed = Math.imul(lanes[at]!, this.#mulLo) ^ Math.imul(lanes[at + 1]!, this.#mulHi);
      let slot = (mixed ^ (mixed >>> 15)) & mask;
      for (; this.#stamps[slot] === this.#stamp; slot = (slot + 1) & mask) {
        if (same(lanes, at, this.#places[slot]!)) return true;
      }
      this.#stamps[slot] = this.#stamp;
      this.#places[slot] = at;
    }
    return false;
  }
}

function same(lanes: Uint32Array, one: number, other: number): boolean {
  return lanes[one] === lanes[other] && lanes[one + 1] === lanes[other + 1];
}
