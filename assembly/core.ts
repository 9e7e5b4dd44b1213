/**
 * What the module exports: block hashes, and the KV index of one instance. Addresses and sizes are
 * in bytes; a book is the handle of what one holder has. Any call may grow the memory.
 */
import { openBlocks, table } from "./block-holders";
import { Book, openBooks, pairs, slowTiers } from "./books";
import { duplicates, openEvents } from "./events";
import { openSets, setCount } from "./holder-sets";
import { seedRandom } from "./random";
import { heapBytes, reservePages } from "./regions";
import { nextPlace, rows, rowsUsed } from "./row-export";

export { maintain } from "./block-holders";
export { chainHashes, hashWindows, seedHashes } from "./block-hashes";
export { clearBook, closeBook, openBook, showBook } from "./books";
export { eventArea, removeEvent, restoreEvent, storeEvent } from "./events";
export { depthInRuns, match, readRuns } from "./match";
export { allocate, free } from "./regions";
export { beginExport, exportBlocks, exportBook, exportNames } from "./row-export";
export { seedRandom };

/** 512 MiB, room for 4 M blocks: growing later stops the process, untouched pages are free. */
const indexPages: i32 = 8192;

/** Makes the empty index; call it once, after `seedRandom`. */
export function openIndex(
  opaque: bool,
  holdersMax: u32,
  blocksMax: u32,
  setWordsMax: u32,
): void {
  reservePages(indexPages);
  openBooks(opaque);
  openSets(setWordsMax);
  openBlocks(holdersMax);
  openEvents(opaque, blocksMax);
}

export function blocksOf(book: Book): u32 {
  return book.blocks;
}

export function digestLo(book: Book): u32 {
  return <u32>book.digest;
}

export function digestHi(book: Book): u32 {
  return <u32>(book.digest >> 32);
}

export function isSlow(book: Book): bool {
  return book.slow;
}

/** (holder, block) pairs. */
export function pairCount(): u32 {
  return pairs;
}

export function duplicateCount(): f64 {
  return duplicates;
}

export function hasSlowTiers(): bool {
  return slowTiers;
}

export function blockCount(): u32 {
  return table.count;
}

export function interned(): u32 {
  return setCount;
}

export function longestProbe(): u32 {
  return table.longestProbe;
}

export function usedBytes(): usize {
  return heapBytes();
}

/** Rows of the last slice: their address, their bytes, and where the next slice starts. */
export function rowsAt(): usize {
  return rows;
}

export function rowBytes(): usize {
  return rowsUsed;
}

export function rowsNext(): u32 {
  return nextPlace;
}
