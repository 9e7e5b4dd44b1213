/**
 * Open-addressing table from a u64 key to a u64 value.
 *
 *   slot      [ key ^ secret | value ]   16 bytes; key word 0 = empty
 *   bucket    4 slots, one cache line    a key sits anywhere in its home bucket, or behind it
 *   growth    a second, larger array; every `reserve` moves a slice of the old one over
 *
 *   old     [ dead dead dead dead | k v   ·   k v   k v ]   moved slots are dead, as good as full
 *                                 ^ oldAt
 *   current [ k v   ·   k v   ·   |  ·   k v   ·     ·  ]
 *
 * - Every bucket between a key's home and its own is full, so a probe ends at one that is not.
 *   A deletion out of a full bucket moves a key up that had no room there; nothing else moves.
 * - Keys come from outside; home slots depend on secrets, so nobody can aim many keys at one run.
 *   The two reserved key words (empty, dead) are taken for their neighbours; nobody can aim at them
 *   either.
 * - Load stays at or below 3/4. A probe longer than `probeMax` rebuilds with another multiplier.
 *   Growth keeps it: slots move in order, and a slice touches few pages.
 * - The system makes a page at the first write to it, and new keys would write to one each. So the
 *   next array is allocated ahead of growth and its pages are made in slices; so are those that an
 *   array in use still lacks.
 * - Addresses that `find` and `insertMissed` answer are valid until the next call that changes the
 *   table.
 */
import {
  bucketBytes,
  bucketOf,
  bucketSlots,
  firstOf,
  isFull,
  slotBytes,
  slotsWith,
} from "./bucket";
import { randomU64 } from "./random";
import { allocate, free, mustAllocate } from "./regions";

const dead: u64 = u64.MAX_VALUE;
const slotsMin: u32 = 16;
/** In slots. Random keys at load 3/4 stay far below; only aimed ones get beyond. */
const probeMax: u32 = 1024;
const sliceSlots: u32 = 256;
/** Slots moved per key to come: a growth ends before the next array is allocated. */
const movedPerKey: u32 = 8;
const pageBytes: u64 = 4096;
/** So much more than was expected, as a share, is a table's usual fill and no sign of growth. */
const expectedPerExtra: u32 = 24;
/** Smaller tables grow without preparation. */
const preparedSlotsMin: u32 = 4096;
/** Up to so many expected keys a table is made for at once, however few it has. */
const expectedMin: u32 = 1 << 20;

// @ts-ignore: decorator
@unmanaged
export class KeyTable {
  slots: usize;
  end: usize;
  capacity: u32;
  count: u32;
  longestProbe: u32;
  oldCapacity: u32;
  oldAt: u32;
  /** Next slot a caller's scan will look at; moved back when a shift carries a slot past it. */
  scanAt: u32;
  secret: u64;
  multiplier: u64;
  oldMultiplier: u64;
  old: usize;
  /** Array of the growth to come, 0 = none yet. */
  next: usize;
  nextCapacity: u32;
  /** Pages not yet made, of the next array if there is one, else of the current. */
  freshAt: usize;
  freshEnd: usize;
}

/** Where the last `find` ended without a key, which `insertMissed` puts there, and began. */
let missAt: usize = 0;
let missHome: usize = 0;

/** A table for `keys` at load 3/5 and a few more. Traps when memory is at its limit. */
export function newTable(keys: u32): KeyTable {
  const table = changetype<KeyTable>(mustAllocate(offsetof<KeyTable>()));
  const capacity = max(slotsMin, capacityFor(keys, 3, 5));
  table.secret = randomU64();
  table.multiplier = randomU64() | 1;
  setSlots(table, mustAllocate(<usize>capacity * slotBytes), capacity);
  table.freshAt = table.slots;
  table.freshEnd = table.end;
  return table;
}

export function freeTable(table: KeyTable): void {
  free(table.slots, <usize>table.capacity * slotBytes);
  if (table.oldCapacity > 0) free(table.old, <usize>table.oldCapacity * slotBytes);
  dropNext(table);
  free(changetype<usize>(table), offsetof<KeyTable>());
}

/** Address of the key's slot, or 0. */
// @ts-ignore: decorator
@inline
export function find(table: KeyTable, key: u64): usize {
  const wanted = storedKey(table, key);
  const at = probe(table, wanted);
  return at !== 0 || table.oldCapacity === 0 ? at : bringOver(table, wanted);
}

/** Value of the key, or 0. */
// @ts-ignore: decorator
@inline
export function valueOf(table: KeyTable, key: u64): u64 {
  const at = find(table, key);
  return at === 0 ? 0 : load<u64>(at, 8);
}

/** Adds the key that the last `find` of any table missed in this one; room was reserved. */
// @ts-ignore: decorator
@inline
export function insertMissed(table: KeyTable, key: u64, value: u64): usize {
  const at = missAt;
  table.count++;
  noteProbe(table, at, missHome);
  store<u64>(at, storedKey(table, key));
  store<u64>(at, value, 8);
  return at;
}

/** Deletes the slot at `at`; when its bucket was full, a key that had no room there moves up. */
// @ts-ignore: decorator
@inline
export function removeAt(table: KeyTable, at: usize): void {
  const wasFull = isFull(bucketOf(at));
  store<u64>(at, 0);
  store<u64>(at, 0, 8);
  table.count--;
  if (wasFull) fillGap(table, at);
}

/**
 * Makes room for `keys` more and moves a slice of a growth under way; false = memory is full. A
 * table that must grow takes `expected` keys into account as far as that is not out of proportion.
 */
export function reserve(table: KeyTable, keys: u32, expected: u32 = 0): bool {
  if (table.oldCapacity > 0) migrate(table, max(sliceSlots, movedPerKey * keys));
  const needed = table.count + keys;
  if (needed > keysToPrepare(table.capacity)) prepareNext(table, needed, expected);
  if (table.freshAt < table.freshEnd) makePages(table, keys);
  if (needed <= keysFor(table.capacity)) {
    if (table.longestProbe <= probeMax || table.oldCapacity > 0) return true;
    dropNext(table);
    if (!startGrowth(table, table.capacity)) return false;
    table.multiplier = randomU64() | 1;
    return true;
  }
  migrate(table, table.oldCapacity);
  if (table.next !== 0 && needed > keysToPrepare(table.nextCapacity)) dropNext(table);
  const capacity = table.next === 0 ? grownCapacity(needed, expected) : table.nextCapacity;
  return startGrowth(table, capacity);
}

/** Moves up to `slots` slots of a growth under way; whether some are left. */
export function migrate(table: KeyTable, slots: u32): bool {
  if (table.oldCapacity === 0) return false;
  const end = min(<u64>table.oldCapacity, <u64>table.oldAt + <u64>slots);
  for (; table.oldAt < <u32>end; table.oldAt++) {
    moveSlot(table, table.old + <usize>table.oldAt * slotBytes);
  }
  if (table.oldAt < table.oldCapacity) return true;
  free(table.old, <usize>table.oldCapacity * slotBytes);
  table.oldCapacity = 0;
  return false;
}

/** Values of `count` keys, one u64 each, 0 where the current array lacks the key. */
// @ts-ignore: decorator
@inline
export function peek(table: KeyTable, keys: usize, count: u32, values: usize): void {
  const end = keys + 8 * count;
  for (; keys < end; keys += 8, values += 8) {
    const at = probe(table, storedKey(table, load<u64>(keys)));
    store<u64>(values, at === 0 ? 0 : load<u64>(at, 8));
  }
}

/** The key of a slot as it was given. */
// @ts-ignore: decorator
@inline
export function keyAt(table: KeyTable, at: usize): u64 {
  return load<u64>(at) ^ table.secret;
}

// @ts-ignore: decorator
@inline
function storedKey(table: KeyTable, key: u64): u64 {
  const stored = key ^ table.secret;
  return stored + 1 <= 1 ? stored ^ 1 : stored;
}

/** Address of the stored key's slot in the current array, or 0 and `missAt`. */
// @ts-ignore: decorator
@inline
function probe(table: KeyTable, wanted: u64): usize {
  const home = homeOf(table, wanted);
  let bucket = home;
  while (true) {
    const found = slotsWith(bucket, wanted);
    if (found !== 0) return firstOf(bucket, found);
    const empty = slotsWith(bucket, 0);
    if (empty !== 0) {
      missAt = firstOf(bucket, empty);
      missHome = home;
      return 0;
    }
    bucket = nextBucket(table, bucket);
  }
}

/** Bucket of the key while that has room. */
// @ts-ignore: decorator
@inline
function homeOf(table: KeyTable, stored: u64): usize {
  return table.slots + bucketBytes * placeOf(stored, table.multiplier, table.capacity);
}

// @ts-ignore: decorator
@inline
export function homeOfKey(table: KeyTable, key: usize): usize {
  return homeOf(table, storedKey(table, load<u64>(key)));
}

/** Bucket in a table of `capacity` slots: the high half of a keyed product, scaled. */
// @ts-ignore: decorator
@inline
function placeOf(stored: u64, multiplier: u64, capacity: u32): usize {
  return <usize>((((stored * multiplier) >> 32) * <u64>(capacity >> 2)) >> 32);
}

// @ts-ignore: decorator
@inline
export function nextBucket(table: KeyTable, bucket: usize): usize {
  const next = bucket + bucketBytes;
  return next === table.end ? table.slots : next;
}

/** The slot at `gap` of a full bucket is empty: keys behind it that it kept out move up. */
function fillGap(table: KeyTable, gap: usize): void {
  const scan = table.slots + <usize>table.scanAt * slotBytes;
  let bucket = bucketOf(gap);
  for (let from = nextBucket(table, bucket); ; from = nextBucket(table, from)) {
    const wasFull = isFull(from);
    for (let at = from; at < from + bucketBytes; at += slotBytes) {
      const key = load<u64>(at);
      if (key === 0) continue;
      const home = homeOf(table, key);
      // The slot may fill the gap unless its home lies behind the gap, cyclically.
      if (bucket < from ? home > bucket && home <= from : home > bucket || home <= from) continue;
      store<u64>(gap, key);
      store<u64>(gap, load<u64>(at, 8), 8);
      store<u64>(at, 0);
      store<u64>(at, 0, 8);
      if (at >= scan && gap < scan) table.scanAt = <u32>((gap - table.slots) / slotBytes);
      gap = at;
      bucket = from;
      break;
    }
    if (!wasFull) return;
  }
}

// @ts-ignore: decorator
@inline
function noteProbe(table: KeyTable, at: usize, home: usize): void {
  if (bucketOf(at) !== home) noteFar(table, bucketOf(at), home);
}

function noteFar(table: KeyTable, bucket: usize, home: usize): void {
  const bytes = bucket > home ? bucket - home : bucket + (table.end - table.slots) - home;
  table.longestProbe = max(table.longestProbe, <u32>(bytes / slotBytes) + bucketSlots);
}

function place(table: KeyTable, stored: u64, value: u64): usize {
  const home = homeOf(table, stored);
  let bucket = home;
  while (isFull(bucket)) bucket = nextBucket(table, bucket);
  const at = firstOf(bucket, slotsWith(bucket, 0));
  noteProbe(table, at, home);
  store<u64>(at, stored);
  store<u64>(at, value, 8);
  return at;
}

/** Slots of a table that has `needed` keys when it must grow. */
function grownCapacity(needed: u32, expected: u32): u32 {
  const ahead = min(expected, max(expectedMin, 8 * needed));
  return max(capacityFor(needed, 1, 2), capacityFor(ahead, 3, 4));
}

/** Allocates the array of the growth to come; without room the growth will find out. */
function prepareNext(table: KeyTable, needed: u32, expected: u32): void {
  if (table.next !== 0 || table.oldCapacity > 0 || table.capacity < preparedSlotsMin) return;
  const full = keysFor(table.capacity);
  if (full >= expected && needed <= expected + expected / expectedPerExtra) return;
  const capacity = grownCapacity(full, expected);
  table.next = allocate(<usize>capacity * slotBytes);
  if (table.next === 0) return;
  table.nextCapacity = capacity;
  table.freshAt = table.next;
  table.freshEnd = table.next + <usize>capacity * slotBytes;
}

/**
 * Makes twice the share of pages that `keys` are of the keys until the table is full. Pages are
 * written as they are: those of the current array may have slots.
 */
function makePages(table: KeyTable, keys: u32): void {
  const left = <u64>(table.freshEnd - table.freshAt) / pageBytes;
  const room = max(<i64>keysFor(table.capacity) - <i64>table.count, <i64>keys);
  const share = room > 0 ? (2 * left * <u64>keys) / <u64>room : 0;
  const end = min(<u64>table.freshEnd, <u64>table.freshAt + (1 + share) * pageBytes);
  for (; table.freshAt < <usize>end; table.freshAt += <usize>pageBytes) {
    store<u64>(table.freshAt, load<u64>(table.freshAt));
  }
}

function dropNext(table: KeyTable): void {
  if (table.next === 0) return;
  free(table.next, <usize>table.nextCapacity * slotBytes);
  table.next = 0;
  table.freshAt = table.freshEnd;
}

/** Takes the prepared array if there is one. */
function startGrowth(table: KeyTable, capacity: u32): bool {
  let slots = table.next;
  if (slots === 0) {
    slots = allocate(<usize>capacity * slotBytes);
    if (slots === 0) return false;
    table.freshAt = slots;
    table.freshEnd = slots + <usize>capacity * slotBytes;
  }
  table.next = 0;
  table.old = table.slots;
  table.oldCapacity = table.capacity;
  table.oldMultiplier = table.multiplier;
  table.oldAt = 0;
  setSlots(table, slots, capacity);
  return true;
}

function setSlots(table: KeyTable, slots: usize, capacity: u32): void {
  table.slots = slots;
  table.capacity = capacity;
  table.end = slots + <usize>capacity * slotBytes;
  table.longestProbe = 0;
  table.scanAt = 0;
}

/** Finds a stored key in the old array and moves its slot to the current one. */
function bringOver(table: KeyTable, wanted: u64): usize {
  const end = table.old + <usize>table.oldCapacity * slotBytes;
  let bucket =
    table.old + bucketBytes * placeOf(wanted, table.oldMultiplier, table.oldCapacity);
  while (true) {
    const found = slotsWith(bucket, wanted);
    if (found !== 0) return moveSlot(table, firstOf(bucket, found));
    if (!isFull(bucket)) return 0;
    bucket += bucketBytes;
    if (bucket === end) bucket = table.old;
  }
}

function moveSlot(table: KeyTable, from: usize): usize {
  const stored = load<u64>(from);
  if (stored + 1 <= 1) return 0;
  store<u64>(from, dead);
  return place(table, stored, load<u64>(from, 8));
}

/** Keys that `capacity` slots may hold. */
// @ts-ignore: decorator
@inline
function keysFor(capacity: u32): u32 {
  return <u32>((<u64>capacity * 3) / 4);
}

/** From so many keys on the array of the growth to come is allocated. */
// @ts-ignore: decorator
@inline
function keysToPrepare(capacity: u32): u32 {
  return <u32>((<u64>capacity * 5) / 8);
}

/** Slots in which `keys` are a share of `part / whole`. */
function capacityFor(keys: u32, part: u32, whole: u32): u32 {
  const needed = <u32>((<u64>keys * <u64>whole + <u64>part - 1) / <u64>part);
  return (needed + bucketSlots - 1) & ~(bucketSlots - 1);
}
