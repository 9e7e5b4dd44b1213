/**
 * Blocks that running requests hold, and on which holder slots, with references and weights.
 *
 *   table (LaneTable)             uses
 *   sequence hash -> use id  ──▶  1  { blocks: 128, records: [ 0, 2, 1,   3, 1, 1,   9, 5, 0.5 ] }
 *                                 2  { blocks: 122, records: [ 3, 1, 1 ] }
 *                                                              slot, references, weight
 *
 * Blocks that the same requests hold share one use, so a prompt is a few stretches of equal ids: a
 * walk costs one probe per block and looks at holders once per stretch.
 *
 * Invariants: records ascend by slot, with references >= 1, and never change; a block whose holders
 * change moves to another use. A use without blocks is gone; id 0 is the use of absent blocks.
 * Neighbours that become equal again become one again. Any list of hashes will do, chained or not,
 * with repeats or without.
 */
import type { Random } from "../base/random.ts";
import { LaneTable } from "./lane-table.ts";

interface Use {
  readonly id: number;
  readonly records: readonly number[];
  blocks: number;
  // Where the call `movedBy` moves blocks of this use.
  movedTo: Use | undefined;
  movedBy: number;
}

type Records = readonly number[];

/** Records after a change of one slot; the same array when nothing changes. */
type Step = (records: Records, slot: number, weight: number) => Records;

/** Told that `blocks` blocks of `slot` weigh `after` instead of `before`; 0 = not live. */
export type WeightChange = (slot: number, blocks: number, before: number, after: number) => void;

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
    }
    extend(this.#uses[stretch]!.records, shared, from, blocks);
  }

  /** Applies `step` to each block in order; blocks of one use move together, a stretch at a time. */
  #change(sequence: Uint32Array, slot: number, step: Step, weight: number): void {
    const table = this.#table;
    const absent = this.#absent;
    const changed = (records: Records): Records => step(records, slot, weight);
    this.#calls++;
    let use = absent;
    let to = absent;
    let moved = 0;
    for (let word = 0; word + 1 < sequence.length; word += 2) {
      const lo = sequence[word]! | 0;
      const hi = sequence[word + 1]! | 0;
      let at = table.find(lo, hi);
      const id = at < 0 ? absent.id : table.words[at + 2]!;
      if (id !== use.id || moved === 0) {
        this.#endStretch(use, to, slot, moved);
        moved = 0;
        use = this.#uses[id]!;
        to = this.#targetOf(use, to, changed);
      }
      moved++;
      if (to === use) continue;
      if (to === absent) table.removeAt(at);
      else {
        if (at < 0) at = table.insert(lo, hi);
        table.words[at + 2] = to.id;
      }
    }
    this.#endStretch(use, to, slot, moved);
  }

  /**
   * Where blocks of `use` go: nowhere, to the use this call made for earlier ones, to that of the
   * block before if it has the same records, or to a new one.
   */
  #targetOf(use: Use, before: Use, changed: (records: Records) => Records): Use {
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

  /** Books that `moved` blocks went from one use to another. */
  #endStretch(use: Use, to: Use, slot: number, moved: number): void {
    if (moved === 0 || to === use) return;
    const before = weightOf(use.records, slot);
    const after = weightOf(to.records, slot);
    if (before !== after) this.#onWeight(slot, moved, before, after);
    this.size += (moved * (to.records.length - use.records.length)) / width;
    if (to !== this.#absent) to.blocks += moved;
    if (use === this.#absent) return;
    use.blocks -= moved;
    use.movedTo = use.blocks > 0 ? use.movedTo : undefined;
    if (use.blocks > 0) return;
    this.#uses[use.id] = undefined;
    this.#freeIds.push(use.id);
  }

  #newUse(records: Records): Use {
    const id = this.#freeIds.pop() ?? this.#uses.length;
    const use: Use = { id, records, blocks: 0, movedTo: undefined, movedBy: 0 };
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
