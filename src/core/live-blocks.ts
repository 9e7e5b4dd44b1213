/**
 * Blocks that running requests hold, and on which holder slots, with references and weights.
 *
 *   table (LaneTable)             uses
 *   sequence hash -> use id  ──▶  1  { blocks: 128, records: [ 0, 2, 1,   3, 1, 1,   9, 5, 0.5 ] }
 *                                 2  { blocks: 122, records: [ 3, 1, 1 ] }
 *                                                              slot, references, weight
 *
 * Blocks that the same requests hold share one use, so a prompt is a few stretches of equal ids. A
 * use knows its blocks in the order a prompt has them: where a prompt goes on like that, nothing is
 * probed, and a change of all its blocks is one change of its records. Else a change costs one
 * probe per block and moves blocks to another use.
 *
 * Invariants: records ascend by slot, with references >= 1; `blocks` table slots have the id of a
 * use; a use without blocks is gone; id 0 is the use of absent blocks. `hashes` are exactly the
 * blocks of the use, or empty. Neighbours that become equal again become one again. Any list of
 * hashes will do, chained or not, with repeats or without.
 */
import type { Random } from "../base/random.ts";
import { LaneTable } from "./lane-table.ts";

interface Use {
  readonly id: number;
  records: Records;
  blocks: number;
  /** Its blocks as interleaved lanes, in the order a prompt has them; empty = not known. */
  hashes: Uint32Array;
  // Where the call `movedBy` moves blocks of this use.
  movedTo: Use | undefined;
  movedBy: number;
  /** The last call that moved blocks here. */
  filledBy: number;
}

type Records = readonly number[];

/** Records after a change of one slot; the same array when nothing changes. */
type Step = (records: Records, slot: number, weight: number) => Records;

type Change = (records: Records) => Records;

/** Told that `blocks` blocks of `slot` weigh `after` instead of `before`; 0 = not live. */
export type WeightChange = (slot: number, blocks: number, before: number, after: number) => void;

const unknown = new Uint32Array(0);
const slotsAtStart = 1024;
const width = 3;

export class LiveBlocks {
  /** Number of (hash, slot) pairs. */
  size = 0;

  readonly #pairsMax: number;
  readonly #table: LaneTable;
  readonly #onWeight: WeightChange;
  readonly #uses: (Use | undefined)[] = [];
  readonly #freeIds: number[] = [];
  readonly #absent: Use;
  #calls = 0;

  /** Holds at most `pairsMax` (hash, slot) pairs. */
  constructor(pairsMax: number, random: Random, onWeight: WeightChange) {
    this.#pairsMax = pairsMax;
    this.#table = new LaneTable(3, slotsAtStart, random);
    this.#onWeight = onWeight;
    this.#absent = this.#newUse([]);
  }

  /** Uses with blocks. */
  get useCount(): number {
    return this.#uses.length - this.#freeIds.length - 1;
  }

  /** True when `count` more pairs fit. */
  hasRoom(count: number): boolean {
    return this.size + count <= this.#pairsMax;
  }

  /** Takes a reference to every block of `sequence` (interleaved lanes); new ones weigh 1. */
  acquire(sequence: Uint32Array, slot: number): void {
    this.#table.reserve(sequence.length >> 1);
    this.#change(sequence, slot, acquired, 1);
  }

  /** Gives back one reference to every block of `sequence`. */
  release(sequence: Uint32Array, slot: number): void {
    this.#change(sequence, slot, released, 0);
  }

  /** Gives `weight` to the blocks of `sequence` that have one reference on the slot. */
  reweigh(sequence: Uint32Array, slot: number, weight: number): void {
    this.#change(sequence, slot, reweighed, weight);
  }

  /** Writes into `shared[slot]` the length of the longest prefix of `sequence` live on that slot. */
  sharedPrefix(sequence: Uint32Array, shared: Int32Array): void {
    shared.fill(0);
    const table = this.#table;
    const blocks = sequence.length >> 1;
    let stretch = 0;
    let from = 0;
    for (let block = 0; block < blocks; block++) {
      const id = table.get(sequence[2 * block]! | 0, sequence[2 * block + 1]! | 0);
      if (id === stretch && id !== 0) continue;
      if (block > 0 && !extend(this.#uses[stretch]!.records, shared, from, block)) return;
      if (id === 0) return;
      stretch = id;
      from = block;
      block += Math.max(0, commonBlocks(sequence, block, this.#uses[id]!.hashes) - 1);
    }
    extend(this.#uses[stretch]!.records, shared, from, blocks);
  }

  /** Applies `step` to each block in order; blocks of one use move together, a stretch at a time. */
  #change(sequence: Uint32Array, slot: number, step: Step, weight: number): void {
    const table = this.#table;
    const absent = this.#absent;
    const changed: Change = (records) => step(records, slot, weight);
    this.#calls++;
    let use = absent;
    let to = absent;
    let isOpen = false;
    let from = 0;
    let word = 0;
    for (; word + 1 < sequence.length; word += 2) {
      const lo = sequence[word]! | 0;
      const hi = sequence[word + 1]! | 0;
      let at = table.find(lo, hi);
      const id = at < 0 ? absent.id : table.words[at + 2]!;
      if (!isOpen || id !== use.id) {
        this.#endStretch(use, to, slot, sequence.subarray(from, word));
        from = word;
        use = this.#uses[id]!;
        const isWhole =
          id !== absent.id && commonBlocks(sequence, word >> 1, use.hashes) === use.blocks;
        if (isWhole && this.#changeWhole(use, to, slot, changed)) {
          to = use;
          isOpen = false;
          word += use.hashes.length - 2;
          from = word + 2;
          continue;
        }
        isOpen = true;
        to = this.#targetOf(use, to, changed);
      }
      if (to === use) continue;
      if (to === absent) table.removeAt(at);
      else {
        if (at < 0) at = table.insert(lo, hi);
        table.words[at + 2] = to.id;
      }
    }
    this.#endStretch(use, to, slot, sequence.subarray(from, word));
  }

  /** Changes all blocks of a use where they are; false when they have to move after all. */
  #changeWhole(use: Use, before: Use, slot: number, changed: Change): boolean {
    // Blocks that this call has still to move here have the records it has.
    if (use.filledBy === this.#calls) return false;
    const records = changed(use.records);
    if (records === use.records) return true;
    if (records.length === 0) return false;
    if (before.blocks > 0 && isEqual(before.records, records)) return false;
    this.#book(slot, use.blocks, use.records, records);
    use.records = records;
    use.movedTo = undefined;
    return true;
  }

  /**
   * Where blocks of `use` go: nowhere, to the use this call made for earlier ones, to that of the
   * block before if it has the same records, or to a new one.
   */
  #targetOf(use: Use, before: Use, changed: Change): Use {
    const known = use.movedBy === this.#calls ? use.movedTo : undefined;
    // A repeated hash may have emptied it again.
    if (known && known.blocks > 0) return known;
    const records = changed(use.records);
    if (records === use.records) return use;
    if (records.length === 0) return this.#absent;
    const joins = before.blocks > 0 && isEqual(before.records, records);
    use.movedTo = joins ? before : this.#newUse(records);
    use.movedBy = this.#calls;
    return use.movedTo;
  }

  /** Books that the blocks `hashes` went from one use to another. */
  #endStretch(use: Use, to: Use, slot: number, hashes: Uint32Array): void {
    const moved = hashes.length >> 1;
    if (moved === 0 || to === use) return;
    this.#book(slot, moved, use.records, to.records);
    if (to !== this.#absent) {
      to.hashes = to.hashes.length === 2 * to.blocks ? joined(to.hashes, hashes) : unknown;
      to.blocks += moved;
      to.filledBy = this.#calls;
    }
    if (use === this.#absent) return;
    use.blocks -= moved;
    use.hashes = without(use.hashes, hashes);
    if (use.blocks > 0) return;
    use.movedTo = undefined;
    this.#uses[use.id] = undefined;
    this.#freeIds.push(use.id);
  }

  #book(slot: number, blocks: number, from: Records, to: Records): void {
    const before = weightOf(from, slot);
    const after = weightOf(to, slot);
    if (before !== after) this.#onWeight(slot, blocks, before, after);
    this.size += (blocks * (to.length - from.length)) / width;
  }

  #newUse(records: Records): Use {
    const id = this.#freeIds.pop() ?? this.#uses.length;
    const moves = { movedTo: undefined, movedBy: 0, filledBy: 0 };
    const use: Use = { id, records, blocks: 0, hashes: unknown, ...moves };
    this.#uses[id] = use;
    return use;
  }
}

/** Slots with a live prefix of `from` blocks that are in `records` have one of `to`; any? */
function extend(records: Records, shared: Int32Array, from: number, to: number): boolean {
  let reached = false;
  for (let at = 0; at < records.length; at += width) {
    const slot = records[at]!;
    if (shared[slot] !== from) continue;
    shared[slot] = to;
    reached = true;
  }
  return reached;
}

/** Length in blocks of the longest start of `hashes` that `sequence` has at `block`. */
function commonBlocks(sequence: Uint32Array, block: number, hashes: Uint32Array): number {
  const from = 2 * block;
  const words = Math.min(hashes.length, sequence.length - from);
  let word = 0;
  while (word < words && sequence[from + word] === hashes[word]) word++;
  return word >> 1;
}

function joined(hashes: Uint32Array, more: Uint32Array): Uint32Array {
  const all = new Uint32Array(hashes.length + more.length);
  all.set(hashes);
  all.set(more, hashes.length);
  return all;
}

/** `hashes` without `gone`, if that is its start or its end; else unknown. */
function without(hashes: Uint32Array, gone: Uint32Array): Uint32Array {
  const blocks = gone.length >> 1;
  const last = (hashes.length >> 1) - blocks;
  if (last < 0) return unknown;
  if (commonBlocks(hashes, 0, gone) === blocks) return hashes.slice(gone.length);
  return commonBlocks(hashes, last, gone) === blocks ? hashes.slice(0, 2 * last) : unknown;
}

function acquired(records: Records, slot: number, weight: number): Records {
  const at = placeOf(records, slot);
  if (records[at] !== slot) return records.toSpliced(at, 0, slot, 1, weight);
  return records.with(at + 1, records[at + 1]! + 1);
}

function released(records: Records, slot: number): Records {
  const at = placeOf(records, slot);
  if (records[at] !== slot) return records;
  if (records[at + 1] === 1) return records.toSpliced(at, width);
  return records.with(at + 1, records[at + 1]! - 1);
}

function reweighed(records: Records, slot: number, weight: number): Records {
  const at = placeOf(records, slot);
  const changes = records[at] === slot && records[at + 1] === 1 && records[at + 2] !== weight;
  return changes ? records.with(at + 2, weight) : records;
}

/** 0 for a slot without a record. */
function weightOf(records: Records, slot: number): number {
  const at = placeOf(records, slot);
  return records[at] === slot ? records[at + 2]! : 0;
}

/** Place of the slot's record, or where it belongs. */
function placeOf(records: Records, slot: number): number {
  let at = 0;
  while (at < records.length && records[at]! < slot) at += width;
  return at;
}

function isEqual(a: Records, b: Records): boolean {
  if (a.length !== b.length) return false;
  for (let at = 0; at < a.length; at++) if (a[at] !== b[at]) return false;
  return true;
}
