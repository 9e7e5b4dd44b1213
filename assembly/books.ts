/**
 * What one holder has, and the two ways it changes: a bit of a block comes or goes.
 *
 *   book   bit0..bit3   its bit per tier, -1 until the first block there; the device's at once
 *          blocks       held in any tier
 *          digest       XOR of their own keys
 *          expected     blocks that it is made for
 *          names        engine hash -> own key; null in identity mode
 *
 * The caller keeps the address of a book as its handle and never uses it after `closeBook`.
 */
import { addBit, dropBit, expectBlocks, setOf, takeBit } from "./block-holders";
import { EngineNames, freeNames, newNames } from "./engine-names";
import { retireBit, setLive } from "./holder-bits";
import { setHas, setsFull } from "./holder-sets";
import { free, mustAllocate } from "./regions";

export const tierCount: u32 = 4;

/** What `addTo` (beside `setsFull`) and `dropFrom` did: nothing, all, or one of several tiers. */
export const nothing: i32 = 0;
export const wholeBlock: i32 = 1;
export const oneTier: i32 = 2;

// @ts-ignore: decorator
@unmanaged
export class Book {
  bit0: i32;
  bit1: i32;
  bit2: i32;
  bit3: i32;
  digest: u64;
  slot: u32;
  blocks: u32;
  names: EngineNames | null;
  expected: u32;
  /** Whether a slow tier has a bit. */
  slow: bool;
}

/** (holder, block) pairs of all books. */
export let pairs: u32 = 0;
/** Whether a block was ever stored in another tier than the device. */
export let slowTiers: bool = false;
let opaque: bool = false;

export function openBooks(opaqueNames: bool): void {
  opaque = opaqueNames;
}

/** A book made for `expected` blocks; `live` = the match over device memory sees it. */
export function openBook(slot: u32, live: bool, expected: u32): Book {
  const book = changetype<Book>(mustAllocate(offsetof<Book>()));
  book.slot = slot;
  book.names = opaque ? newNames(expected) : null;
  book.expected = expected;
  expectBlocks(expected);
  takeDeviceBit(book, live);
  return book;
}

/** Forgets a book and its blocks. */
export function closeBook(book: Book): void {
  retire(book);
  expectBlocks(-book.expected);
  const names = book.names;
  if (names !== null) freeNames(names);
  free(changetype<usize>(book), offsetof<Book>());
}

/** Forgets the blocks of a book; its name table is made anew for `expected`. */
export function clearBook(book: Book, expected: u32): void {
  const names = book.names;
  if (names !== null && names.table.count > 0) {
    freeNames(names);
    book.names = newNames(expected);
  }
  if (book.blocks === 0) return;
  retire(book);
  takeDeviceBit(book, true);
}

export function showBook(book: Book): void {
  setLive(book.bit0, true);
}

/** Adds a block in one tier. */
// @ts-ignore: decorator
@inline
export function addTo(book: Book, own: u64, tier: u32): i32 {
  if (tier !== 0 || book.slow) return addSlow(book, own, tier);
  const added = addBit(book.bit0, own);
  if (added === wholeBlock) countBlock(book, own, 1);
  return added;
}

/** Drops a block from one tier. */
// @ts-ignore: decorator
@inline
export function dropFrom(book: Book, own: u64, tier: u32): i32 {
  const bit = bitOf(book, tier);
  if (bit < 0 || !dropBit(bit, own)) return nothing;
  if (book.slow && tiersOf(book, own) !== 0) return oneTier;
  countBlock(book, own, -1);
  return wholeBlock;
}

export function dropFromAll(book: Book, own: u64): void {
  for (let tier: u32 = 0; tier < tierCount; tier++) dropFrom(book, own, tier);
}

/** Tiers in which the book has a block: bit 1 << tier each, 0 = it is not held. */
export function tiersOf(book: Book, own: u64): u32 {
  const set = setOf(own);
  return set === 0 ? 0 : tiersIn(book, set);
}

/** The same for a block whose set is known. */
export function tiersIn(book: Book, set: u32): u32 {
  let tiers: u32 = 0;
  for (let tier: u32 = 0; tier < tierCount; tier++) {
    const bit = bitOf(book, tier);
    if (bit >= 0 && setHas(set, bit)) tiers |= 1 << tier;
  }
  return tiers;
}

// @ts-ignore: decorator
@inline
export function bitOf(book: Book, tier: u32): i32 {
  return load<i32>(changetype<usize>(book) + 4 * tier);
}

function addSlow(book: Book, own: u64, tier: u32): i32 {
  if (tier !== 0) slowTiers = true;
  const bit = bitFor(book, tier);
  const elsewhere = tiersOf(book, own) !== 0;
  const added = addBit(bit, own);
  if (added === setsFull || added === nothing) return added;
  if (elsewhere) return oneTier;
  countBlock(book, own, 1);
  return wholeBlock;
}

function bitFor(book: Book, tier: u32): u32 {
  const known = bitOf(book, tier);
  if (known >= 0) return known;
  // The match over device memory must not see the bit.
  const bit = takeBit(book.slot, false);
  store<i32>(changetype<usize>(book) + 4 * tier, bit);
  book.slow = true;
  return bit;
}

function takeDeviceBit(book: Book, live: bool): void {
  book.bit0 = takeBit(book.slot, live);
  book.bit1 = -1;
  book.bit2 = -1;
  book.bit3 = -1;
  book.slow = false;
}

/** Takes all bits of the book out of use; its blocks are gone at once. */
function retire(book: Book): void {
  const unused = book.blocks === 0;
  for (let tier: u32 = 0; tier < tierCount; tier++) {
    const bit = bitOf(book, tier);
    if (bit >= 0) retireBit(bit, unused);
  }
  pairs -= book.blocks;
  book.blocks = 0;
  book.digest = 0;
}

// @ts-ignore: decorator
@inline
function countBlock(book: Book, own: u64, blocks: i32): void {
  book.blocks += blocks;
  book.digest ^= own;
  pairs += blocks;
}
