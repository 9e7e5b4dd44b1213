/**
 * Rows of the index in slices, in the format of `rowWords` of the TypeScript index.
 *
 *   opaque     book by book, along its name table; tiers from the block table
 *   identity   along the block table; one row per bit of a block's set
 *
 * Places mean the same from slice to slice as long as nothing changes; the caller sees to that.
 */
import { table } from "./block-holders";
import { bitOf, Book, tierCount, tiersOf } from "./books";
import { slotBytes } from "./bucket";
import { isReplaced } from "./engine-names";
import { bitCount } from "./holder-bits";
import { wordsOf, wordsPerSet } from "./holder-sets";
import { keyAt, KeyTable, migrate } from "./key-table";
import { enlarge, mustAllocate } from "./regions";

const blockRowBytes: usize = 12;
const nameRowBytes: usize = 20;

/** Row head by bit: slot << 4 | 1 << tier; 0 = the bit is not exported. */
let heads: usize = 0;
let headRoom: u32 = 0;
let rowRoom: usize = 0;

export let rows: usize = 0;
export let rowsUsed: usize = 0;
/** Where the next slice starts; at or above `tablePlaces` after the last. */
export let nextPlace: u32 = 0;

/** Starts an export of the books that `exportBook` names; the others stay out. */
export function beginExport(): void {
  if (bitCount > headRoom) {
    heads = enlarge(heads, 4 * headRoom, 8 * bitCount);
    headRoom = 2 * bitCount;
  }
  memory.fill(heads, 0, 4 * headRoom);
}

export function exportBook(book: Book): void {
  for (let tier: u32 = 0; tier < tierCount; tier++) {
    const bit = bitOf(book, tier);
    if (bit >= 0) store<u32>(heads + 4 * bit, (book.slot << 4) | (1 << tier));
  }
}

/** Rows of the blocks in up to `places` places from `place`; false after the last place. */
export function exportBlocks(place: u32, places: u32, rowsMax: u32): bool {
  // One block has at most a row per bit.
  makeRoom(blockRowBytes * (rowsMax + bitCount));
  rowsUsed = 0;
  nextPlace = place;
  if (migrate(table, places)) return true;
  const end = endOf(table, place, places);
  const full = rowsMax * blockRowBytes;
  for (; nextPlace < end && rowsUsed < full; nextPlace++) {
    const at = table.slots + <usize>nextPlace * slotBytes;
    const set = <u32>load<u64>(at, 8);
    if (set !== 0) pushSet(set, keyAt(table, at));
  }
  return nextPlace < table.capacity;
}

/** Rows of the names in up to `places` places of a book from `place`; false after the last. */
export function exportNames(book: Book, place: u32, places: u32, rowsMax: u32): bool {
  makeRoom(nameRowBytes * rowsMax);
  rowsUsed = 0;
  nextPlace = place;
  const names = book.names;
  if (names === null) return false;
  const named = names.table;
  if (migrate(named, places)) return true;
  const end = endOf(named, place, places);
  const full = rowsMax * nameRowBytes;
  for (; nextPlace < end && rowsUsed < full; nextPlace++) {
    const at = named.slots + <usize>nextPlace * slotBytes;
    if (load<u64>(at) === 0 || isReplaced(names, at)) continue;
    const own = load<u64>(at, 8);
    const row = rows + rowsUsed;
    store<u32>(row, (book.slot << 4) | (book.slow ? tiersOf(book, own) : 1));
    store<u64>(row, own, 4);
    store<u64>(row, keyAt(named, at), 12);
    rowsUsed += nameRowBytes;
  }
  return nextPlace < named.capacity;
}

function pushSet(set: u32, own: u64): void {
  for (let word: u32 = 0; word < wordsPerSet; word++) {
    for (let left = load<u32>(wordsOf(set) + 4 * word); left !== 0; left &= left - 1) {
      const head = load<u32>(heads + 4 * (32 * word + ctz(left)));
      if (head === 0) continue;
      store<u32>(rows + rowsUsed, head);
      store<u64>(rows + rowsUsed, own, 4);
      rowsUsed += blockRowBytes;
    }
  }
}

function endOf(walked: KeyTable, place: u32, places: u32): u32 {
  return <u32>min(<u64>walked.capacity, <u64>place + <u64>places);
}

function makeRoom(bytes: usize): void {
  if (bytes <= rowRoom) return;
  rows = rowRoom === 0 ? mustAllocate(bytes) : enlarge(rows, rowRoom, bytes);
  rowRoom = bytes;
}
