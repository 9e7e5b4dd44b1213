/**
 * Interned sets of bits (holder, tier). A set is immutable and has an id; equal sets have equal
 * ids, so a block slot holds one id whatever the number of holders, and "same holders" is one
 * compare.
 *
 *   id        0      1      2      3
 *   words  [ ---- | A--- | AB-- | -B-- ]   wordsPerSet u32 each, bit = holder
 *   z      [  0   |  zA  | zA^zB|  zB  ]   XOR of one random u64 per member: the interning hash
 *   refs   [  –   |  12  |  400 |   3  ]   block slots that use the set; 0 gives the id back
 *   members[  0   |   1  |   2  |   1  ]
 *   intern [ id · id · · id … ]            open addressing, home = low bits of z, 4 slots per id
 *
 * - Id 0 is the empty set and is never stored in a slot.
 * - Two sets are equal only if their words are; `z` merely finds the candidate.
 * - Words in all sets are at most `wordsMax`; beyond, a `flip` that adds answers `setsFull`.
 */
import { randomU64 } from "./random";
import { enlarge, free, mustAllocate } from "./regions";

/** Answer of `flip` when no further set may be made. */
export const setsFull: i32 = -1;

const idsMin: u32 = 64;

export let words: usize = 0;
export let wordsPerSet: u32 = 1;
/** Sets in use, the empty one excluded. */
export let setCount: u32 = 0;

let wordsMax: u32 = 0;
let bits: u32 = 0;
let bitRoom: u32 = 0;
let bitZ: usize = 0;
let ids: u32 = 0;
let used: u32 = 1;
let z: usize = 0;
let refs: usize = 0;
let members: usize = 0;
let freeIds: usize = 0;
let freeCount: u32 = 0;
let intern: usize = 0;
// A run of blocks makes the same step again and again: the last one is remembered.
let memoBit: u32 = u32.MAX_VALUE;
let memoFrom: u32 = 0;
let memoTo: u32 = 0;

export function openSets(setWordsMax: u32): void {
  wordsMax = setWordsMax;
  growIds(idsMin);
}

/** Makes bits [0, count) usable. */
export function reserveBits(count: u32): void {
  if (count > bitRoom) {
    bitZ = enlarge(bitZ, 8 * bitRoom, 16 * count);
    bitRoom = 2 * count;
  }
  for (; bits < count; bits++) store<u64>(bitZ + 8 * bits, randomU64());
  const wider = (count + 31) >> 5;
  if (wider > wordsPerSet) widen(wider);
}

// @ts-ignore: decorator
@inline
export function setHas(set: u32, bit: u32): bool {
  return ((load<u32>(wordAt(set, bit)) >> (bit & 31)) & 1) === 1;
}

/** Id of `set` with `bit` added or taken away; 0 = empty, `setsFull` = no room for a new set. */
// @ts-ignore: decorator
@inline
export function flip(set: u32, bit: u32): i32 {
  return bit === memoBit && set === memoFrom ? memoTo : flipAnew(set, bit);
}

/** One more slot uses the set. */
// @ts-ignore: decorator
@inline
export function retain(set: u32): void {
  const at = refs + 4 * set;
  store<u32>(at, load<u32>(at) + 1);
}

/** One slot less uses the set; the last one gives its id back. */
// @ts-ignore: decorator
@inline
export function release(set: u32): void {
  const at = refs + 4 * set;
  const left = load<u32>(at) - 1;
  store<u32>(at, left);
  if (left === 0) giveBack(set);
}

function flipAnew(set: u32, bit: u32): i32 {
  const wanted = load<u64>(z + 8 * set) ^ load<u64>(bitZ + 8 * bit);
  const adds = !setHas(set, bit);
  const size = load<u32>(members + 4 * set) + (adds ? 1 : -1);
  if (size === 0) return remember(set, bit, 0);
  const mask = 4 * ids - 1;
  for (let at = <u32>wanted & mask; ; at = (at + 1) & mask) {
    const id = load<u32>(intern + 4 * at);
    if (id === 0) break;
    if (load<u64>(z + 8 * id) === wanted && isFlipOf(id, set, bit)) return remember(set, bit, id);
  }
  const id = newId(adds);
  if (id === 0) return setsFull;
  memory.copy(wordsOf(id), wordsOf(set), 4 * wordsPerSet);
  const at = wordAt(id, bit);
  store<u32>(at, load<u32>(at) ^ (1 << (bit & 31)));
  store<u64>(z + 8 * id, wanted);
  store<u32>(refs + 4 * id, 0);
  store<u32>(members + 4 * id, size);
  setCount++;
  addToIntern(id);
  return remember(set, bit, id);
}

function giveBack(set: u32): void {
  if (set === memoFrom || set === memoTo) memoBit = u32.MAX_VALUE;
  removeFromIntern(set);
  store<u32>(freeIds + 4 * freeCount, set);
  freeCount++;
  setCount--;
}

function remember(from: u32, bit: u32, to: u32): i32 {
  memoBit = bit;
  memoFrom = from;
  memoTo = to;
  return to;
}

function isFlipOf(id: u32, set: u32, bit: u32): bool {
  const one = wordsOf(id);
  const other = wordsOf(set);
  for (let word: u32 = 0; word < wordsPerSet; word++) {
    const flipped: u32 = word === bit >> 5 ? 1 << (bit & 31) : 0;
    if ((load<u32>(one + 4 * word) ^ load<u32>(other + 4 * word)) !== flipped) return false;
  }
  return true;
}

/** A removal must never fail, so only an addition is held to the limit; 0 = none. */
function newId(limited: bool): u32 {
  if (freeCount > 0) {
    freeCount--;
    return load<u32>(freeIds + 4 * freeCount);
  }
  if (limited && <u64>(used + 1) * <u64>wordsPerSet > <u64>wordsMax) return 0;
  if (used === ids) growIds(2 * ids);
  return used++;
}

function growIds(count: u32): void {
  const before = ids;
  words = enlarge(words, 4 * before * wordsPerSet, 4 * count * wordsPerSet);
  z = enlarge(z, 8 * before, 8 * count);
  refs = enlarge(refs, 4 * before, 4 * count);
  members = enlarge(members, 4 * before, 4 * count);
  freeIds = enlarge(freeIds, 4 * before, 4 * count);
  ids = count;
  const old = intern;
  intern = mustAllocate(16 * count);
  if (old === 0) return;
  for (let at: u32 = 0; at < 4 * before; at++) {
    const id = load<u32>(old + 4 * at);
    if (id !== 0) addToIntern(id);
  }
  free(old, 16 * before);
}

function widen(wider: u32): void {
  const narrow = words;
  const narrowBytes = 4 * wordsPerSet;
  words = mustAllocate(4 * ids * wider);
  for (let id: u32 = 0; id < used; id++) {
    memory.copy(words + 4 * id * wider, narrow + id * narrowBytes, narrowBytes);
  }
  wordsPerSet = wider;
  free(narrow, ids * narrowBytes);
}

function addToIntern(id: u32): void {
  const mask = 4 * ids - 1;
  let at = <u32>load<u64>(z + 8 * id) & mask;
  while (load<u32>(intern + 4 * at) !== 0) at = (at + 1) & mask;
  store<u32>(intern + 4 * at, id);
}

function removeFromIntern(id: u32): void {
  const mask = 4 * ids - 1;
  let gap = <u32>load<u64>(z + 8 * id) & mask;
  while (load<u32>(intern + 4 * gap) !== id) gap = (gap + 1) & mask;
  for (let at = (gap + 1) & mask; ; at = (at + 1) & mask) {
    const other = load<u32>(intern + 4 * at);
    if (other === 0) break;
    const home = <u32>load<u64>(z + 8 * other) & mask;
    if (((at - home) & mask) < ((at - gap) & mask)) continue;
    store<u32>(intern + 4 * gap, other);
    gap = at;
  }
  store<u32>(intern + 4 * gap, 0);
}

// @ts-ignore: decorator
@inline
export function wordsOf(set: u32): usize {
  return words + 4 * set * wordsPerSet;
}

// @ts-ignore: decorator
@inline
function wordAt(set: u32, bit: u32): usize {
  return words + 4 * (set * wordsPerSet + (bit >> 5));
}
