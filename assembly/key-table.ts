/**
 * Open-addressing table from a u64 key to a u64 value.
 *
 *   slot      [ key ^ secret | value ]   16 bytes; a deleted slot leaves no trace (backward shift)
 *   empty     key word 0
 *   growth    a second, larger array; every `reserve` moves a slice of the old one over
 *
 *   old     [ dead dead dead | k v   ·   k v   k v ]      moved slots are dead, probes walk past
 *                            ^ oldAt
 *   current [ k v   ·   k v   ·    ·   k v   ·   · ]
 *
 * - Keys come from outside; home slots depend on secrets, so nobody can aim many keys at one run.
 *   The two reserved key words (empty, dead) are taken for their neighbours; nobody can aim at them
 *   either.
 * - Load stays at or below 3/4. A probe longer than `probeMax` rebuilds with
 *   another multiplier. Growth keeps it: slots move in order, and a slice touches few pages.
 * - The system makes a page at the first write to it, and new keys would write to one each. So the
 *   next array is allocated ahead of growth and its pages are made in slices; so are those that an
 *   array in use still lacks.
 * - Addresses that `find` and `insertMissed` answer are valid until the next call that changes the
 *   table.
 */
import { randomU64 } from "./random";
import { allocate, free, mustAllocate } from "./regions";

export const slotBytes: usize = 16;
const dead: u64 = u64.MAX_VALUE;
const slotsMin: u32 = 16;
/** Random keys at load 3/4 stay below 500 in the largest table; only aimed ones get beyond. */
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

/** Where the last `find` ended without a key: `insertMissed` puts the key there. */
let missAt: usize = 0;
/** Takes what `touch` reads, so that the reads are not optimized away. */
let touched: u64 = 0;

/** A table for `keys` and a few more. Traps when memory is at its limit. */
export function newTable(keys: u32): KeyTable {
  const table = changetype<KeyTable>(mustAllocate(offsetof<KeyTable>()));
  const capacity = max(slotsMin, capacityFor(keys, 7, 10));
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
  let at = homeOf(table, wanted);
  for (;;) {
    const found = load<u64>(at);
    if (found === wanted) return at;
    if (found === 0) break;
    at += slotBytes;
    if (at === table.end) at = table.slots;
  }
  missAt = at;
  return table.oldCapacity === 0 ? 0 : bringOver(table, wanted);
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
  const stored = storedKey(table, key);
  table.count++;
  noteProbe(table, at, homeOf(table, stored));
  store<u64>(at, stored);
  store<u64>(at, value, 8);
  return at;
}

/** Deletes the slot at `gap`; slots behind it move up. */
export function removeAt(table: KeyTable, gap: usize): void {
  const scan = table.slots + <usize>table.scanAt * slotBytes;
  for (let at = gap; ; ) {
    at += slotBytes;
    if (at === table.end) at = table.slots;
    const key = load<u64>(at);
    if (key === 0) break;
    const home = homeOf(table, key);
    // The slot may fill the gap unless its home lies behind the gap, cyclically.
    if (gap <= at ? home > gap && home <= at : home > gap || home <= at) continue;
    store<u64>(gap, key);
    store<u64>(gap, load<u64>(at, 8), 8);
    if (at >= scan && gap < scan) table.scanAt = <u32>((gap - table.slots) / slotBytes);
    gap = at;
  }
  store<u64>(gap, 0);
  store<u64>(gap, 0, 8);
  table.count--;
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

/** Reads the home slots of `count` keys from `keys`, so that probes find them in the cache. */
// @ts-ignore: decorator
@inline
export function touch(table: KeyTable, keys: usize, count: usize, strideBytes: usize): void {
  let sum: u64 = 0;
  for (let i: usize = 0; i < count; i++) {
    sum += load<u64>(homeOf(table, storedKey(table, load<u64>(keys + i * strideBytes))), 8);
  }
  touched = sum;
}

/** Reads on from `table`: each value is a key of `target`. Useful for keys in their home slots. */
// @ts-ignore: decorator
@inline
export function touchThrough(
  table: KeyTable,
  target: KeyTable,
  keys: usize,
  count: usize,
): void {
  let sum: u64 = 0;
  for (let i: usize = 0; i < count; i++) {
    const value = load<u64>(homeOf(table, storedKey(table, load<u64>(keys + 8 * i))), 8);
    sum += load<u64>(homeOf(target, storedKey(target, value)), 8);
  }
  touched = sum;
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

// @ts-ignore: decorator
@inline
function homeOf(table: KeyTable, stored: u64): usize {
  return table.slots + <usize>placeOf(stored, table.multiplier, table.capacity) * slotBytes;
}

/** Place in [0, capacity): the high half of a keyed product, scaled. */
// @ts-ignore: decorator
@inline
function placeOf(stored: u64, multiplier: u64, capacity: u32): u32 {
  return <u32>((((stored * multiplier) >> 32) * <u64>capacity) >> 32);
}

// @ts-ignore: decorator
@inline
function noteProbe(table: KeyTable, at: usize, home: usize): void {
  const bytes = at >= home ? at - home : at + (table.end - table.slots) - home;
  table.longestProbe = max(table.longestProbe, <u32>(bytes / slotBytes) + 1);
}

function place(table: KeyTable, stored: u64, value: u64): usize {
  const home = homeOf(table, stored);
  let at = home;
  while (load<u64>(at) !== 0) {
    at += slotBytes;
    if (at === table.end) at = table.slots;
  }
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
  const home = placeOf(wanted, table.oldMultiplier, table.oldCapacity);
  let at = table.old + <usize>home * slotBytes;
  while (true) {
    const found = load<u64>(at);
    if (found === wanted) return moveSlot(table, at);
    if (found === 0) return 0;
    at += slotBytes;
    if (at === end) at = table.old;
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
  return <u32>((<u64>keys * <u64>whole + <u64>part - 1) / <u64>part);
}
