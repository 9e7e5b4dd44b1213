/**
 * Which holders have which block: the table all holders share.
 *
 *   table (KeyTable)                        sets                        bits
 *   own key = sequence hash -> set id  ──▶  words per set id   bit ──▶  holder slot
 *
 * - A present key proves the content of the whole prefix, so there is no tree.
 * - Slices of `maintain` finish a growth, zero freed memory and take retired bits out of the sets.
 */
import { slotBytes } from "./bucket";
import {
  freeSwept,
  retiredCount,
  sweepRetired,
  sweptBits,
  sweptCount,
  takeBit as takeAnyBit,
} from "./holder-bits";
import { flip, release, retain, setHas, setsFull, wordsOf, wordsPerSet } from "./holder-sets";
import {
  find,
  insertMissed,
  KeyTable,
  migrate,
  newTable,
  removeAt,
  reserve,
  valueOf,
} from "./key-table";
import { clearFreed } from "./regions";

/** Slots looked at per event by a pass over the table. */
const sweepSlots: u32 = 512;
const keysMin: u32 = 1024;

export let table: KeyTable = changetype<KeyTable>(0);
/** Blocks that the books are made for, all together. */
let expected: u32 = 0;
let retiredMax: u32 = 0;

/** Up to `holdersMax` bits wait for a pass over the table. */
export function openBlocks(holdersMax: u32): void {
  table = newTable(keysMin);
  retiredMax = holdersMax;
}

/** Books for so many blocks came (or went, if negative). */
export function expectBlocks(blocks: i32): void {
  expected += blocks;
}

/** Adds a bit to the block's set: 1 = added, 0 = was in it, `setsFull`. Room was reserved. */
// @ts-ignore: decorator
@inline
export function addBit(bit: u32, key: u64): i32 {
  const at = find(table, key);
  const before = at === 0 ? 0 : <u32>load<u64>(at, 8);
  if (at !== 0 && setHas(before, bit)) return 0;
  const after = flip(before, bit);
  if (after === setsFull) return setsFull;
  if (at === 0) insertMissed(table, key, after);
  else store<u64>(at, after, 8);
  retain(after);
  if (before !== 0) release(before);
  return 1;
}

/** Takes a bit out of the block's set; false when it was not in it. */
// @ts-ignore: decorator
@inline
export function dropBit(bit: u32, key: u64): bool {
  const at = find(table, key);
  if (at === 0 || !setHas(<u32>load<u64>(at, 8), bit)) return false;
  takeOut(at, bit);
  return true;
}

/** Set of the block, 0 = nobody has it. */
// @ts-ignore: decorator
@inline
export function setOf(key: u64): u32 {
  return <u32>valueOf(table, key);
}

/** A bit; finishes the pass at once when as many bits wait for it as the pool may have holders. */
export function takeBit(slot: u32, live: bool): u32 {
  if (retiredCount >= retiredMax) while (migrate(table, u32.MAX_VALUE) || sweep(u32.MAX_VALUE));
  return takeAnyBit(slot, live);
}

/** Work that every event pays for: room for its blocks and slices of what is under way. */
export function advance(blocks: u32): bool {
  clearFreed();
  if (!reserve(table, blocks, expected)) return false;
  if (sweptCount + retiredCount > 0) maintain(sweepSlots);
  return true;
}

/** Advances growth and the pass over retired bits by up to `slots`; true while work is left. */
export function maintain(slots: u32): bool {
  if (migrate(table, slots)) return true;
  return sweep(slots) || clearFreed();
}

/** Takes a bit out of the set at `at`; true when the slot went with its last member. */
function takeOut(at: usize, bit: u32): bool {
  const before = <u32>load<u64>(at, 8);
  const after = flip(before, bit);
  if (after === 0) removeAt(table, at);
  else {
    store<u64>(at, after, 8);
    retain(after);
  }
  release(before);
  return after === 0;
}

/** One slice of the pass that takes retired bits out of every set; true while work is left. */
function sweep(slots: u32): bool {
  if (sweptCount === 0) {
    if (retiredCount === 0) return false;
    sweepRetired();
    table.scanAt = 0;
  }
  for (let left = slots; left > 0; left--) {
    if (table.scanAt >= table.capacity) {
      freeSwept();
      return retiredCount > 0;
    }
    const at = table.slots + <usize>table.scanAt * slotBytes;
    if (load<u64>(at) === 0 || !sweepSlot(at)) table.scanAt++;
  }
  return true;
}

/** Takes the swept bits out of the slot's set; true when the slot is another one's after it. */
function sweepSlot(at: usize): bool {
  for (let word: u32 = 0; word < wordsPerSet; word++) {
    for (;;) {
      const set = <u32>load<u64>(at, 8);
      const found = load<u32>(wordsOf(set) + 4 * word) & load<u32>(sweptBits + 4 * word);
      if (found === 0) break;
      if (takeOut(at, 32 * word + ctz(found))) return true;
    }
  }
  return false;
}
