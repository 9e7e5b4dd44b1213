/**
 * KV events, one call each. The caller puts an event's words into the event area:
 *
 *   store     parent u64 | unused u64 | blocks: (local hash u64, engine hash u64) each
 *   remove    engine hashes: u64 each
 *   restore   rows as `rowWords` of the TypeScript index describes them | their books: u32 per slot
 *
 * - An event that is refused for its content changes nothing; one that is refused for want of room
 *   has stored the blocks before.
 * - Own keys take the place of the local hashes: a whole event is chained before it is stored.
 */
import { advance, table } from "./block-holders";
import {
  addTo,
  Book,
  dropFrom,
  dropFromAll,
  nothing,
  tierCount,
  tiersOf,
  wholeBlock,
} from "./books";
import {
  EngineNames,
  isReplaced,
  makeCurrent,
  removeName,
  repoint,
  reserveNames,
} from "./engine-names";
import { setsFull } from "./holder-sets";
import { find, insertMissed, peek } from "./key-table";
import { aheadMax, aim, blockPlaces, fetch, look, namePlaces, passFull } from "./look-ahead";
import { allocate, free } from "./regions";
import { eventBlocksMax, repeats } from "./repeat-check";
import { link } from "./xxh3";

const ok: i32 = 0;
const blockNotFound: i32 = 1;
const parentNotFound: i32 = 1;
const invalidBlock: i32 = 2;
const capacity: i32 = 3;

const blockBytes: usize = 16;
/** Own keys of the next names, `aheadMax` at most. */
const ownKeys: usize = memory.data(8 * 64, 16);

export let duplicates: f64 = 0;
let blocksMax: u32 = 0;
let rowBytes: usize = 0;
let area: usize = 0;
let areaBytes: usize = 0;

export function openEvents(opaque: bool, distinctBlocksMax: u32): void {
  blocksMax = distinctBlocksMax;
  rowBytes = opaque ? 20 : 12;
}

/** A larger event area, whose content is lost; 0 when memory is at its limit: the old one stays. */
export function eventArea(bytes: usize): usize {
  const larger = allocate(bytes);
  if (larger === 0) return 0;
  if (area !== 0) free(area, areaBytes);
  area = larger;
  areaBytes = bytes;
  return larger;
}

/** Stores `count` blocks. */
export function storeEvent(book: Book, tier: u32, hasParent: bool, count: u32): i32 {
  if (count === 0) return ok;
  const blocks = area + blockBytes;
  if (breaksRules(blocks, hasParent, count)) return invalidBlock;
  if (!hasRoomFor(count) || !advance(count)) return capacity;
  const names = book.names;
  if (names === null) {
    if (hasParent && tiersOf(book, load<u64>(area)) === 0) return parentNotFound;
    return storeOwn(book, tier, blocks + 8, count);
  }
  if (!reserveNames(names, count)) return capacity;
  if (hasParent) {
    const at = find(names.table, load<u64>(area));
    if (at === 0 || isReplaced(names, at)) return parentNotFound;
    chainBlocks(blocks, count, load<u64>(at, 8));
  } else chainBlocks(blocks + blockBytes, count - 1, load<u64>(blocks));
  return storeNamed(book, names, tier, blocks, count);
}

/** Removes `count` blocks of one tier; unknown ones are skipped and reported. */
export function removeEvent(book: Book, tier: u32, count: u32): i32 {
  // Removals need no room; when memory is full they still go on.
  advance(0);
  const names = book.names;
  let result = ok;
  for (let block: u32 = 0; block < count; block++) {
    const at = area + 8 * block;
    if (block % aheadMax === 0) {
      const ahead = min(aheadMax, count - block);
      if (names === null) look(blockPlaces, table, at, ahead, 8);
      else lookToRemove(names, at, ahead);
    }
    const hash = load<u64>(at);
    const removed =
      names === null
        ? dropFrom(book, hash, tier) !== nothing
        : removeNamed(book, names, hash, tier);
    if (!removed) result = blockNotFound;
  }
  return result;
}

/** Adds `count` rows; the book of slot s in a row is at `books + 4 * s`, for s < `slots`, or 0. */
export function restoreEvent(count: u32, books: usize, slots: u32): i32 {
  if (!hasRoomFor(count) || !advance(count)) return capacity;
  const end = area + count * rowBytes;
  for (let row = area; row < end; row += rowBytes) {
    const slot = load<u32>(row) >> 4;
    const book = slot < slots ? load<usize>(books + 4 * slot) : 0;
    if (book !== 0 && !restoreRow(changetype<Book>(book), row)) return capacity;
  }
  return ok;
}

function restoreRow(book: Book, row: usize): bool {
  const own = load<u64>(row, 4);
  const names = book.names;
  if (names !== null && !reserveNames(names, 1)) return false;
  for (let tier: u32 = 0; tier < tierCount; tier++) {
    if (((load<u32>(row) >> tier) & 1) === 0) continue;
    const stored =
      names === null
        ? addTo(book, own, tier)
        : storeName(book, names, tier, load<u64>(row, 12), own);
    if (stored === setsFull) return false;
  }
  return true;
}

/** Reads ahead in both tables at once. */
// @ts-ignore: decorator
@inline
function lookToStore(names: EngineNames, blocks: usize, count: u32): void {
  aim(blockPlaces, table, blocks, count, blockBytes);
  aim(namePlaces, names.table, blocks + 8, count, blockBytes);
  fetch(blockPlaces, count);
  fetch(namePlaces, count);
  passFull(blockPlaces, table, count);
  passFull(namePlaces, names.table, count);
  fetch(blockPlaces, count);
  fetch(namePlaces, count);
}

/** Own keys are read through their names: those lead from one table to the other. */
// @ts-ignore: decorator
@inline
function lookToRemove(names: EngineNames, hashes: usize, count: u32): void {
  look(namePlaces, names.table, hashes, count, 8);
  peek(names.table, hashes, count, ownKeys);
  look(blockPlaces, table, ownKeys, count, 8);
}

function breaksRules(blocks: usize, hasParent: bool, count: u32): bool {
  if (count > eventBlocksMax) return true;
  if (hasParent) {
    const parent = load<u64>(area);
    for (let at = blocks; at < blocks + count * blockBytes; at += blockBytes) {
      if (load<u64>(at, 8) === parent) return true;
    }
  }
  return count > 1 && repeats(blocks + 8, count, blockBytes);
}

// @ts-ignore: decorator
@inline
function hasRoomFor(blocks: u32): bool {
  return <u64>table.count + <u64>blocks <= <u64>blocksMax;
}

/** Local hashes become own keys, each linked to the one before it. */
function chainBlocks(blocks: usize, count: u32, before: u64): void {
  for (let at = blocks; at < blocks + count * blockBytes; at += blockBytes) {
    before = link(before, load<u64>(at));
    store<u64>(at, before);
  }
}

/** Identity mode: engine hashes are own keys. */
function storeOwn(book: Book, tier: u32, keys: usize, count: u32): i32 {
  for (let block: u32 = 0; block < count; block++) {
    const at = keys + block * blockBytes;
    if (block % aheadMax === 0) {
      look(blockPlaces, table, at, min(aheadMax, count - block), blockBytes);
    }
    const added = addTo(book, load<u64>(at), tier);
    if (added === setsFull) return capacity;
    if (added === nothing) duplicates++;
  }
  return ok;
}

function storeNamed(book: Book, names: EngineNames, tier: u32, blocks: usize, count: u32): i32 {
  for (let block: u32 = 0; block < count; block++) {
    const at = blocks + block * blockBytes;
    if (block % aheadMax === 0) lookToStore(names, at, min(aheadMax, count - block));
    const stored = storeName(book, names, tier, load<u64>(at, 8), load<u64>(at));
    if (stored === setsFull) return capacity;
    if (stored === nothing) duplicates++;
  }
  return ok;
}

// @ts-ignore: decorator
@inline
function storeName(book: Book, names: EngineNames, tier: u32, name: u64, own: u64): i32 {
  let at = find(names.table, name);
  let wasReplaced = false;
  if (at === 0) at = insertMissed(names.table, name, own);
  else {
    wasReplaced = isReplaced(names, at);
    const before = load<u64>(at, 8);
    if (before !== own) {
      // The engine names another block by this hash: the last store wins.
      if (!wasReplaced) dropFromAll(book, before);
      repoint(names, at, own);
      wasReplaced = false;
    } else if (!wasReplaced) return addTo(book, own, tier);
  }
  const added = addTo(book, own, tier);
  if (added === setsFull) removeName(names, at);
  else makeCurrent(names, at, added !== wholeBlock, wasReplaced);
  return added;
}

// @ts-ignore: decorator
@inline
function removeNamed(book: Book, names: EngineNames, name: u64, tier: u32): bool {
  const at = find(names.table, name);
  if (at === 0) return false;
  if (isReplaced(names, at)) {
    removeName(names, at);
    return false;
  }
  const dropped = dropFrom(book, load<u64>(at, 8), tier);
  if (dropped === wholeBlock) removeName(names, at);
  return dropped !== nothing;
}
