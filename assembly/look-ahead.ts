/**
 * Reads the buckets of many keys side by side, before the keys are probed one by one: a probe alone
 * waits for memory each time, reads in a row wait together.
 *
 *   places   [ bucket u32 of key 0 | of key 1 | … ]   up to `aheadMax`; first the homes, then what
 *                                                     follows those that are full
 */
import { isFull } from "./bucket";
import { homeOfKey, KeyTable, nextBucket } from "./key-table";

/** Keys that are read ahead together. */
export const aheadMax: u32 = 64;

/** The lists of an event: blocks of all holders, names of one. */
export const blockPlaces: usize = memory.data(4 * 64, 16);
export const namePlaces: usize = memory.data(4 * 64, 16);

/** Takes what `fetch` reads, so that the reads are not optimized away. */
let fetched: u64 = 0;

/** Reads the buckets in which a probe for each of `count` keys looks first and second. */
// @ts-ignore: decorator
@inline
export function look(
  places: usize,
  table: KeyTable,
  keys: usize,
  count: u32,
  strideBytes: usize,
): void {
  aim(places, table, keys, count, strideBytes);
  fetch(places, count);
  passFull(places, table, count);
  fetch(places, count);
}

/** The places become the homes of `count` keys, `strideBytes` apart. */
// @ts-ignore: decorator
@inline
export function aim(
  places: usize,
  table: KeyTable,
  keys: usize,
  count: u32,
  strideBytes: usize,
): void {
  const end = places + 4 * count;
  for (let at = places; at < end; at += 4, keys += strideBytes) {
    store<usize>(at, homeOfKey(table, keys));
  }
}

/** A place whose bucket is full becomes the next one; the buckets have been read. */
// @ts-ignore: decorator
@inline
export function passFull(places: usize, table: KeyTable, count: u32): void {
  const end = places + 4 * count;
  for (let at = places; at < end; at += 4) {
    const bucket = load<usize>(at);
    store<usize>(at, isFull(bucket) ? nextBucket(table, bucket) : bucket);
  }
}

/** Reads the buckets of `count` places: nothing but reads, so that many are under way at once. */
// @ts-ignore: decorator
@inline
export function fetch(places: usize, count: u32): void {
  const end = places + 4 * count;
  let sum: u64 = 0;
  let at = places;
  for (; at + 16 <= end; at += 16) {
    sum += load<u64>(load<usize>(at));
    sum += load<u64>(load<usize>(at, 4));
    sum += load<u64>(load<usize>(at, 8));
    sum += load<u64>(load<usize>(at, 12));
  }
  for (; at < end; at += 4) sum += load<u64>(load<usize>(at));
  fetched = sum;
}
