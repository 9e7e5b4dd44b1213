/**
 * How many leading blocks of a prompt each holder has. Sets of all blocks from the first are
 * intersected; equal set ids are equal sets, so the common step is one compare.
 *
 *   sets   7  7  7 | 9  9 | 4 …          runs of equal sets
 *   depth         3      5               who is in set 7 but not in 9 leaves with depth 3
 */
import { setOf, table } from "./block-holders";
import { bitOf, Book } from "./books";
import { activeBits, liveBits, slotOfBit } from "./holder-bits";
import { setHas, wordsOf, wordsPerSet } from "./holder-sets";
import { aim, blockPlaces, fetch } from "./look-ahead";
import { enlarge } from "./regions";

/** Blocks whose places are read ahead of their probes. */
const aheadMin: u32 = 4;
const aheadMax: u32 = 16;

/** Runs of equal sets of the last `readRuns`: set u32, end u32. */
let runs: usize = 0;
let runRoom: u32 = 0;
let runCount: u32 = 0;

/**
 * Writes the depth of each live holder to `depths`, one u32 per slot, which the caller has zeroed;
 * answers the largest. `sequence` has one u64 per block.
 */
export function match(sequence: usize, blocks: u32, depths: usize): u32 {
  if (blocks === 0) return 0;
  let set = setOf(load<u64>(sequence));
  if (set === 0 || !enter(set)) return 0;
  let ahead = aheadMin;
  let readTo: u32 = 1;
  let block: u32 = 1;
  for (; block < blocks; block++) {
    if (block === readTo) {
      const count = min(ahead, blocks - block);
      aim(blockPlaces, table, sequence + 8 * block, count, 8);
      fetch(blockPlaces, count);
      readTo += count;
      ahead = min(2 * ahead, aheadMax);
    }
    const next = setOf(load<u64>(sequence + 8 * block));
    if (next === set) continue;
    if (next === 0) break;
    if (!intersect(next, depths, block)) return block;
    set = next;
  }
  for (let word: u32 = 0; word < wordsPerSet; word++) {
    write(depths, block, word, load<u32>(activeBits + 4 * word));
  }
  return block;
}

/** Reads a prompt's blocks as runs of equal sets, up to the first that nobody has. */
export function readRuns(sequence: usize, blocks: u32): void {
  if (blocks > runRoom) {
    runs = enlarge(runs, 8 * runRoom, 16 * blocks);
    runRoom = 2 * blocks;
  }
  runCount = 0;
  let last: u32 = 0;
  for (let block: u32 = 0; block < blocks; block++) {
    const set = setOf(load<u64>(sequence + 8 * block));
    if (set === 0) return;
    if (set !== last) store<u32>(runs + 8 * runCount++, set);
    store<u32>(runs + 8 * (runCount - 1), block + 1, 4);
    last = set;
  }
}

/** Leading blocks of the last `readRuns` that a book has in the `tiers` fastest tiers. */
export function depthInRuns(book: Book, tiers: u32): u32 {
  let end: u32 = 0;
  for (let run: u32 = 0; run < runCount; run++) {
    const set = load<u32>(runs + 8 * run);
    let held = false;
    for (let tier: u32 = 0; tier < tiers && !held; tier++) {
      const bit = bitOf(book, tier);
      held = bit >= 0 && setHas(set, bit);
    }
    if (!held) break;
    end = load<u32>(runs + 8 * run, 4);
  }
  return end;
}

/** The active holders become those of `set` that are live; false when there is none. */
function enter(set: u32): bool {
  let any: u32 = 0;
  for (let word: u32 = 0; word < wordsPerSet; word++) {
    const found = load<u32>(wordsOf(set) + 4 * word) & load<u32>(liveBits + 4 * word);
    store<u32>(activeBits + 4 * word, found);
    any |= found;
  }
  return any !== 0;
}

/** Active holders outside `set` leave with `depth`; false when nobody is left. */
function intersect(set: u32, depths: usize, depth: u32): bool {
  let any: u32 = 0;
  for (let word: u32 = 0; word < wordsPerSet; word++) {
    const before = load<u32>(activeBits + 4 * word);
    const stay = before & load<u32>(wordsOf(set) + 4 * word);
    if (stay !== before) write(depths, depth, word, before & ~stay);
    store<u32>(activeBits + 4 * word, stay);
    any |= stay;
  }
  return any !== 0;
}

// @ts-ignore: decorator
@inline
function write(depths: usize, depth: u32, word: u32, members: u32): void {
  for (let left = members; left !== 0; left &= left - 1) {
    store<u32>(depths + 4 * slotOfBit(32 * word + ctz(left)), depth);
  }
}
