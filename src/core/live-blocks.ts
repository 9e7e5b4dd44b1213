/**
 * Blocks that running requests hold, and on which holder slots, with references and weights.
 *
 *   prompts on slots 0 and 3      runs                        records: slot, references, weight
 *   0  a b c d e                  a b c ─┬─ d e               0 2 1   3 1 1  │ d e  0 1 1
 *   0  a b c x y z                       └─ x y z                            │ x y z  0 1 1   3 1 1
 *   3  a b c x y z
 *
 * A run is blocks that the same requests hold, and follows the one run that all of them hold before
 * it. `starts` finds a run by its first hash, the rest is compared: a prompt costs one probe per run,
 * whatever its length. A hold is the last run of a prompt, so what it gives back is what it took.
 *
 * Hashes are chained: a hash has the same hashes before it in every list, and then these are the
 * counts of its blocks one by one. In other lists a block may count more than once, and a prompt has
 * several holds, where it goes on with the start of another.
 *
 * Invariants: every hash of a run has the same holds; records ascend by slot, with references >= 1,
 * which are those of the runs that follow and of the holds that end here; a run without records is
 * gone; a run and the only one that follows it differ in their records, else they are one.
 */
import type { Random } from "../base/random.ts";
import { LaneTable } from "./lane-table.ts";

interface Run {
  readonly id: number;
  /** Interleaved lanes, never written to; at least half of their buffer. */
  hashes: Uint32Array;
  records: number[];
  before: Run;
  /** One of the runs that follow; its neighbours are the others. */
  follower: Run | undefined;
  next: Run | undefined;
  previous: Run | undefined;
}

/** What one `acquire` took. Opaque, and void after its `release`. */
export type Hold = readonly Run[];

/** Told that `blocks` blocks of `slot` weigh `after` instead of `before`; 0 = not live. */
export type WeightChange = (slot: number, blocks: number, before: number, after: number) => void;

export const emptyHold: Hold = [];
const noHashes = new Uint32Array(0);
const startsAtStart = 64;
const width = 3;

export class LiveBlocks {
  /** Number of (hash, slot) pairs. */
  size = 0;

  readonly #pairsMax: number;
  readonly #starts: LaneTable;
  readonly #onWeight: WeightChange;
  readonly #runs: (Run | undefined)[] = [];
  readonly #freeIds: number[] = [];
  /** Before the first run of every prompt. */
  readonly #root: Run;

  /** Holds at most `pairsMax` (hash, slot) pairs. */
  constructor(pairsMax: number, random: Random, onWeight: WeightChange) {
    this.#pairsMax = pairsMax;
    this.#starts = new LaneTable(3, startsAtStart, random);
    this.#onWeight = onWeight;
    this.#root = rootRun();
    this.#runs.push(this.#root);
  }

  get runCount(): number {
    return this.#runs.length - this.#freeIds.length - 1;
  }

  /** True when `count` more pairs fit. */
  hasRoom(count: number): boolean {
    return this.size + count <= this.#pairsMax;
  }

  /**
   * Takes a reference to every block of `sequence` (interleaved lanes); new ones weigh 1. Keeps the
   * array, or parts of it: nobody may write to it any more.
   */
  acquire(sequence: Uint32Array, slot: number): Hold {
    const hold: Run[] = [];
    let last = this.#root;
    for (let word = 0; word < sequence.length; word += last.hashes.length) {
      const found = this.#following(last, sequence, word);
      let run: Run;
      if (found) {
        const words = commonWords(sequence, word, found.hashes);
        run = words < found.hashes.length ? this.#split(found, words) : found;
      } else run = this.#newRun(last, part(sequence, word, sequence.length), []);
      if (run.before !== last) hold.push(last);
      this.#take(run, slot);
      last = run;
    }
    if (last !== this.#root) hold.push(last);
    return hold;
  }

  /** Gives back the references that `acquire` took on the slot. */
  release(hold: Hold, slot: number): void {
    for (const last of hold) {
      for (let run = last; run !== this.#root; run = run.before) this.#giveBack(run, slot);
    }
  }

  /** Gives `weight` to the blocks that only this hold has on the slot. */
  reweigh(hold: Hold, slot: number, weight: number): void {
    for (const last of hold) {
      for (let run = last; run !== this.#root; run = run.before) {
        const { records } = run;
        const at = placeOf(records, slot);
        // Runs before this one have as many references, or more.
        if (records[at + 1] !== 1) break;
        const before = records[at + 2]!;
        if (before === weight) continue;
        records[at + 2] = weight;
        this.#onWeight(slot, run.hashes.length >> 1, before, weight);
        this.#join(run);
      }
    }
  }

  /** Writes into `shared[slot]` the length of the longest prefix of `sequence` live on that slot. */
  sharedPrefix(sequence: Uint32Array, shared: Int32Array): void {
    shared.fill(0);
    let last = this.#root;
    let word = 0;
    while (word < sequence.length) {
      const run = this.#following(last, sequence, word);
      if (!run) return;
      const end = word + commonWords(sequence, word, run.hashes);
      if (!extend(run.records, shared, word >> 1, end >> 1)) return;
      if (end - word < run.hashes.length) return;
      word = end;
      last = run;
    }
  }

  /** Hashes of all blocks of a hold, in order. */
  sequenceOf(hold: Hold): Uint32Array {
    const runs: Run[] = [];
    for (const last of hold.toReversed()) {
      for (let run = last; run !== this.#root; run = run.before) runs.push(run);
    }
    const words = runs.reduce((sum, { hashes }) => sum + hashes.length, 0);
    const sequence = new Uint32Array(words);
    let at = 0;
    for (const { hashes } of runs.toReversed()) {
      sequence.set(hashes, at);
      at += hashes.length;
    }
    return sequence;
  }

  /** The run by which a prompt goes on after `last`: one that follows it, or begins a prompt. */
  #following(last: Run, sequence: Uint32Array, word: number): Run | undefined {
    const id = this.#starts.get(sequence[word]! | 0, sequence[word + 1]! | 0);
    if (id === 0) return undefined;
    const run = this.#runs[id]!;
    return run.before === last || run.before === this.#root ? run : undefined;
  }

  #take(run: Run, slot: number): void {
    const { records } = run;
    const at = placeOf(records, slot);
    if (records[at] === slot) {
      records[at + 1]!++;
      return;
    }
    const blocks = run.hashes.length >> 1;
    records.splice(at, 0, slot, 1, 1);
    this.#onWeight(slot, blocks, 0, 1);
    this.size += blocks;
  }

  #giveBack(run: Run, slot: number): void {
    const { records } = run;
    const at = placeOf(records, slot);
    if (records[at + 1]! > 1) records[at + 1]!--;
    else {
      const blocks = run.hashes.length >> 1;
      this.#onWeight(slot, blocks, records[at + 2]!, 0);
      this.size -= blocks;
      records.splice(at, width);
    }
    if (records.length > 0) this.#join(run);
    else this.#remove(run);
  }

  /** Puts the first `words` of a run into a run of their own, which it follows, and answers that. */
  #split(run: Run, words: number): Run {
    const { hashes, before } = run;
    this.#dropStart(run);
    detach(run);
    const head = this.#newRun(before, part(hashes, 0, words), run.records.slice());
    run.hashes = part(hashes, words, hashes.length);
    attach(run, head);
    this.#addStart(run);
    return head;
  }

  /** Makes a run and the only one that follows it one, if they have the same records. */
  #join(run: Run): void {
    const { follower, before } = run;
    if (!follower || follower.next || !isEqual(run.records, follower.records)) return;
    // No hold ends at `run`: it would have a reference more.
    this.#dropStart(follower);
    this.#remove(run);
    follower.hashes = joined(run.hashes, follower.hashes);
    attach(follower, before);
    this.#addStart(follower);
  }

  #newRun(before: Run, hashes: Uint32Array, records: number[]): Run {
    const id = this.#freeIds.pop() ?? this.#runs.length;
    const places = { follower: undefined, next: undefined, previous: undefined };
    const run: Run = { id, hashes, records, before, ...places };
    this.#runs[id] = run;
    attach(run, before);
    this.#addStart(run);
    return run;
  }

  #remove(run: Run): void {
    this.#dropStart(run);
    detach(run);
    this.#runs[run.id] = undefined;
    this.#freeIds.push(run.id);
  }

  /** Without effect when another run has this start, which chained hashes never have. */
  #addStart({ id, hashes }: Run): void {
    const starts = this.#starts;
    starts.reserve(1);
    if (starts.find(hashes[0]! | 0, hashes[1]! | 0) >= 0) return;
    starts.words[starts.insert(hashes[0]! | 0, hashes[1]! | 0) + 2] = id;
  }

  #dropStart({ id, hashes }: Run): void {
    const at = this.#starts.find(hashes[0]! | 0, hashes[1]! | 0);
    if (at >= 0 && this.#starts.words[at + 2] === id) this.#starts.removeAt(at);
  }
}

function rootRun(): Run {
  const places = { follower: undefined, next: undefined, previous: undefined };
  const root = { id: 0, hashes: noHashes, records: [], ...places } as Omit<Run, "before"> as Run;
  root.before = root;
  return root;
}

/** Lets `run` follow `before`. */
function attach(run: Run, before: Run): void {
  const { follower } = before;
  run.before = before;
  run.next = follower;
  if (follower) follower.previous = run;
  before.follower = run;
}

/** Takes `run` from those that follow the run before it. */
function detach(run: Run): void {
  const { before, next, previous } = run;
  if (previous) previous.next = next;
  else before.follower = next;
  if (next) next.previous = previous;
  run.next = undefined;
  run.previous = undefined;
}

/** Slots with a live prefix of `from` blocks that are in `records` have one of `to`; any? */
function extend(records: readonly number[], shared: Int32Array, from: number, to: number): boolean {
  let reached = false;
  for (let at = 0; at < records.length; at += width) {
    const slot = records[at]!;
    if (shared[slot] !== from) continue;
    shared[slot] = to;
    reached = true;
  }
  return reached;
}

/**
 * Words, two a block, of the longest start of `hashes` that `sequence` has at `from`, where the first
 * block is known to be. What comes before a block in common is in common: the last one is bisected.
 */
function commonWords(sequence: Uint32Array, from: number, hashes: Uint32Array): number {
  const blocks = Math.min(hashes.length, sequence.length - from) >> 1;
  let common = 1;
  let beyond = blocks + 1;
  let block = blocks;
  while (beyond - common > 1) {
    const at = 2 * (block - 1);
    const isCommon =
      sequence[from + at] === hashes[at] && sequence[from + at + 1] === hashes[at + 1];
    if (isCommon) common = block;
    else beyond = block;
    block = (common + beyond) >> 1;
  }
  return 2 * common;
}

/** A view where it has at least half of its buffer, else a copy, so that little is kept for nobody. */
function part(hashes: Uint32Array, from: number, to: number): Uint32Array {
  const view = hashes.subarray(from, to);
  return 2 * view.byteLength < hashes.buffer.byteLength ? view.slice() : view;
}

function joined(hashes: Uint32Array, more: Uint32Array): Uint32Array {
  const { buffer, byteOffset, byteLength } = hashes;
  const words = hashes.length + more.length;
  if (more.buffer === buffer && more.byteOffset === byteOffset + byteLength) {
    return new Uint32Array(buffer, byteOffset, words);
  }
  const all = new Uint32Array(words);
  all.set(hashes);
  all.set(more, hashes.length);
  return all;
}

/** Place of the slot's record, or where it belongs. */
function placeOf(records: readonly number[], slot: number): number {
  let at = 0;
  while (at < records.length && records[at]! < slot) at += width;
  return at;
}

function isEqual(a: readonly number[], b: readonly number[]): boolean {
  if (a.length !== b.length) return false;
  for (let at = 0; at < a.length; at++) if (a[at] !== b[at]) return false;
  return true;
}
