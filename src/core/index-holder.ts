/**
 * One holder (worker, dp rank) of a `ColumnIndex`. In the sets of blocks it has one bit per tier it
 * ever used: that of the device from the start, each other one from its first block there.
 *
 *   set of a block   … [ A device | B device | A host | … ]      A has it in two tiers, B in one
 */
import type { BlockHolders } from "./block-holders.ts";
import type { EngineNames } from "./engine-names.ts";
import {
  type BlockDigest,
  type HolderId,
  type SlowDepths,
  type Tier,
  tierCount,
} from "./kv-index.ts";

export interface IndexHolder extends HolderId {
  readonly slot: number;
  /** Bit of the device tier. */
  bit: number;
  /** Bits of tiers 1, 2, 3, -1 where none is taken; undefined = none is. */
  slowBits: Int32Array | undefined;
  blocks: number;
  xorLo: number;
  xorHi: number;
  names: EngineNames | undefined;
}

/** Bit of a tier in the sets, -1 if the holder never used it. */
export function bitOf(holder: IndexHolder, tier: number): number {
  if (tier === 0) return holder.bit;
  return holder.slowBits ? holder.slowBits[tier - 1]! : -1;
}

/** Tiers in which the holder has a block: bit 1 << tier each, 0 = it is not held. */
export function tiersOf(blocks: BlockHolders, holder: IndexHolder, lo: number, hi: number): number {
  const set = blocks.table.get(lo, hi);
  if (set === 0) return 0;
  let tiers = 0;
  for (let tier = 0; tier < tierCount; tier++) {
    const bit = bitOf(holder, tier);
    if (bit >= 0 && blocks.sets.has(set, bit)) tiers |= 1 << tier;
  }
  return tiers;
}

export function digestOf(holder: IndexHolder | undefined): BlockDigest {
  if (!holder) return { blocks: 0, lo: 0, hi: 0 };
  return { blocks: holder.blocks, lo: holder.xorLo >>> 0, hi: holder.xorHi >>> 0 };
}

/** Takes all bits of the holder out of use; its blocks are gone at once. */
export function retireBits(blocks: BlockHolders, holder: IndexHolder): void {
  const unused = holder.blocks === 0;
  for (let tier = 0; tier < tierCount; tier++) {
    const bit = bitOf(holder, tier);
    if (bit >= 0) blocks.retireBit(bit, unused);
  }
  holder.slowBits = undefined;
}

/** The holder's bit of a tier, taken on first use. */
export function bitFor(blocks: BlockHolders, holder: IndexHolder, tier: Tier): number {
  const known = bitOf(holder, tier);
  if (known >= 0) return known;
  holder.slowBits ??= new Int32Array(tierCount - 1).fill(-1);
  // The match over device memory must not see the bit.
  const bit = blocks.takeBit(holder.slot, false);
  holder.slowBits[tier - 1] = bit;
  return bit;
}

/**
 * A prompt's blocks as runs of equal sets, up to the first that nobody has: what the match over slow
 * tiers walks per holder.
 *
 *   sets  [ 7 | 9 | 4 ]
 *   ends  [ 3 | 5 | 8 ]   blocks 0, 1, 2 have set 7, blocks 3, 4 set 9
 */
export class SetRuns {
  #sets: Int32Array = new Int32Array(64);
  #ends: Int32Array = new Int32Array(64);
  #runs = 0;

  read(blocks: BlockHolders, sequence: Uint32Array, count: number): void {
    if (this.#sets.length < count) {
      this.#sets = new Int32Array(2 * count);
      this.#ends = new Int32Array(2 * count);
    }
    let last = 0;
    this.#runs = 0;
    for (let block = 0; block < count; block++) {
      const set = blocks.table.get(sequence[2 * block]! | 0, sequence[2 * block + 1]! | 0);
      if (set === 0) return;
      if (set !== last) this.#sets[this.#runs++] = set;
      this.#ends[this.#runs - 1] = block + 1;
      last = set;
    }
  }

  /** Writes the slow depths of a holder for the blocks that were read. */
  write({ sets }: BlockHolders, holder: IndexHolder, { host, disk }: SlowDepths): void {
    let run = 0;
    let end = 0;
    for (const [tiers, column] of [
      [2, host],
      [tierCount, disk],
    ] as const) {
      for (; run < this.#runs; run++) {
        let held = false;
        for (let tier = 0; tier < tiers && !held; tier++) {
          const bit = bitOf(holder, tier);
          held = bit >= 0 && sets.has(this.#sets[run]!, bit);
        }
        if (!held) break;
        end = this.#ends[run]!;
      }
      column[holder.slot] = end;
    }
  }
}
