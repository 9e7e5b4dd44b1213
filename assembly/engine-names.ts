/**
 * One holder's names for its blocks: engine hash -> own key.
 *
 *   table               stale               current
 *   name -> own key     own key -> count    own key -> name
 *
 * - A block has one current name; a name that another one replaced stays in `table`, so that its
 *   late removal is recognised, but addresses nothing.
 * - `stale` has exactly the own keys with replaced names, and how many; `current` has those of them
 *   that are held. Both are absent in normal operation; `reserveNames` purges at `replacedMax`.
 */
import { slotBytes } from "./bucket";
import {
  find,
  freeTable,
  insertMissed,
  keyAt,
  KeyTable,
  migrate,
  newTable,
  removeAt,
  reserve,
  valueOf,
} from "./key-table";
import { free, mustAllocate } from "./regions";

/** Own keys with replaced names that one holder keeps. */
const replacedMax: u32 = 4096;
const replacedMin: u32 = 16;

// @ts-ignore: decorator
@unmanaged
export class EngineNames {
  table: KeyTable;
  stale: KeyTable | null;
  current: KeyTable | null;
  /** Names that the table is made for. */
  expected: u32;
}

export function newNames(names: u32): EngineNames {
  const made = changetype<EngineNames>(mustAllocate(offsetof<EngineNames>()));
  made.table = newTable(names);
  made.expected = names;
  return made;
}

export function freeNames(names: EngineNames): void {
  freeTable(names.table);
  dropReplaced(names);
  free(changetype<usize>(names), offsetof<EngineNames>());
}

/** Makes room for `count` more; false = memory is full. */
export function reserveNames(names: EngineNames, count: u32): bool {
  const stale = names.stale;
  if (stale !== null && stale.count >= replacedMax) purge(names);
  return reserve(names.table, count, names.expected);
}

/** Whether the name at `at` has been replaced by another of the same block. */
// @ts-ignore: decorator
@inline
export function isReplaced(names: EngineNames, at: usize): bool {
  return names.stale !== null && isStale(names, at);
}

/** Points the name at `at` to another block; its old block loses it. */
export function repoint(names: EngineNames, at: usize, own: u64): void {
  leave(names, at);
  store<u64>(at, own, 8);
}

/** Deletes the name at `at`. */
// @ts-ignore: decorator
@inline
export function removeName(names: EngineNames, at: usize): void {
  leave(names, at);
  removeAt(names.table, at);
}

/** The name at `at` is the current one of its block, which was (`wasHeld`) or was not held. */
// @ts-ignore: decorator
@inline
export function makeCurrent(names: EngineNames, at: usize, wasHeld: bool, wasStale: bool): void {
  if (wasHeld || names.stale !== null) replaceCurrent(names, at, wasHeld, wasStale);
}

function isStale(names: EngineNames, at: usize): bool {
  const stale = names.stale;
  const current = names.current;
  if (stale === null || current === null) return false;
  const own = load<u64>(at, 8);
  if (find(stale, own) === 0) return false;
  const found = find(current, own);
  return found === 0 || load<u64>(found, 8) !== keyAt(names.table, at);
}

function replaceCurrent(names: EngineNames, at: usize, wasHeld: bool, wasStale: bool): void {
  const own = load<u64>(at, 8);
  const name = keyAt(names.table, at);
  const stale = names.stale;
  const count = stale === null ? 0 : <i64>valueOf(stale, own);
  if (count === 0) {
    if (wasHeld) setReplaced(names, own, 1, name);
    return;
  }
  // The former current name joins the stale ones if there was one; this one leaves them.
  setReplaced(names, own, count + (wasHeld ? 1 : 0) - (wasStale ? 1 : 0), name);
}

/** The block of the name at `at` loses that name. */
function leave(names: EngineNames, at: usize): void {
  const stale = names.stale;
  const current = names.current;
  if (stale === null || current === null) return;
  const own = load<u64>(at, 8);
  const entry = find(stale, own);
  if (entry === 0) return;
  const found = find(current, own);
  if (found !== 0 && load<u64>(found, 8) === keyAt(names.table, at)) {
    removeAt(current, found);
    return;
  }
  const left = load<u64>(entry, 8) - 1;
  store<u64>(entry, left, 8);
  if (left === 0) forget(names, own);
}

/** Notes `count` stale names of a block and its current one; none = forgets the block. */
function setReplaced(names: EngineNames, own: u64, count: i64, name: u64): void {
  if (count === 0) {
    forget(names, own);
    return;
  }
  const stale = names.stale || newTable(replacedMin);
  const current = names.current || newTable(replacedMin);
  names.stale = stale;
  names.current = current;
  put(stale, own, count);
  put(current, own, name);
}

function put(table: KeyTable, key: u64, value: u64): void {
  if (!reserve(table, 1)) unreachable();
  const at = find(table, key);
  if (at === 0) insertMissed(table, key, value);
  else store<u64>(at, value, 8);
}

function forget(names: EngineNames, own: u64): void {
  const stale = names.stale;
  const current = names.current;
  if (stale === null || current === null) return;
  const entry = find(stale, own);
  if (entry !== 0) removeAt(stale, entry);
  const found = find(current, own);
  if (found !== 0) removeAt(current, found);
  if (stale.count === 0) dropReplaced(names);
}

/** Deletes every replaced name; one that a deletion moves into the slot is looked at too. */
function purge(names: EngineNames): void {
  const table = names.table;
  migrate(table, u32.MAX_VALUE);
  for (let at = table.slots; at < table.end; ) {
    if (load<u64>(at) !== 0 && isReplaced(names, at)) removeAt(table, at);
    else at += slotBytes;
  }
  dropReplaced(names);
}

function dropReplaced(names: EngineNames): void {
  const stale = names.stale;
  const current = names.current;
  if (stale !== null) freeTable(stale);
  if (current !== null) freeTable(current);
  names.stale = null;
  names.current = null;
}
