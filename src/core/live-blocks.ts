/**
 * Blocks that running requests hold, counted per (sequence hash, holder slot).
 *
 *   buckets   head record of a hash, linear probing; 0 = empty
 *      │
 *      ▼
 *   record    1 ──next──▶ 7 ──next──▶ 0     one record per holder of that hash
 *   lo, hi    the hash, two u32 lanes
 *   holder    slot that holds it
 *   refs      requests on that slot that use it
 *   weight    1, or the fraction its single user last gave it
 *
 * Invariants: every record in a list has the same hash and another holder; refs >= 1; bucket load
 * <= 1/2; record 0 is never used. The home bucket depends on two secrets drawn at construction,
 * so a client that chooses its tokens cannot aim at one bucket.
 */
import type { Random } from "../base/random.ts";
import { randomU32 } from "../base/random.ts";
import { grownFloat64, grownInt32, grownUint32 } from "./column.ts";

const recordsAtStart = 1024;

export class LiveBlocks {
  refs: Int32Array = new Int32Array(recordsAtStart);
  weight: Float64Array = new Float64Array(recordsAtStart);

  readonly #recordsMax: number;
  readonly #secretLo: number;
  readonly #secretHi: number;
  #lo = new Uint32Array(recordsAtStart);
  #hi = new Uint32Array(recordsAtStart);
  #holder = new Int32Array(recordsAtStart);
  #next = new Int32Array(recordsAtStart);
  #previous = new Int32Array(recordsAtStart);
  #buckets = new Int32Array(2 * recordsAtStart);
  #hashes = 0;
  #records = 0;
  #unused = 1;
  #freeHead = 0;

  /** Holds at most `recordsMax` (hash, holder) records. */
  constructor(recordsMax: number, random: Random) {
    this.#recordsMax = recordsMax;
    this.#secretLo = randomU32(random) | 1;
    this.#secretHi = randomU32(random) | 1;
  }

  /** Number of (hash, holder) records. */
  get size(): number {
    return this.#records;
  }

  get bytes(): number {
    return this.#buckets.byteLength + this.refs.length * 32;
  }

  /** True when `count` more records fit. */
  hasRoom(count: number): boolean {
    return this.#records + count <= this.#recordsMax;
  }

  /** Takes one reference to the block on `holder`; a new record has `refs` 1 and `weight` 1. */
  acquire(lo: number, hi: number, holder: number): number {
    const bucket = this.#bucketOf(lo, hi);
    const head = this.#buckets[bucket]!;
    for (let record = head; record !== 0; record = this.#next[record]!) {
      if (this.#holder[record] !== holder) continue;
      this.refs[record]!++;
      return record;
    }
    const record = this.#allot();
    this.#lo[record] = lo;
    this.#hi[record] = hi;
    this.#holder[record] = holder;
    this.#next[record] = head;
    this.#previous[record] = 0;
    this.refs[record] = 1;
    this.weight[record] = 1;
    if (head !== 0) this.#previous[head] = record;
    this.#buckets[bucket] = record;
    this.#records++;
    if (head === 0 && ++this.#hashes * 2 > this.#buckets.length) this.#rehash();
    return record;
  }

  /** Gives one reference back; answers true when the record is gone with it. */
  release(record: number): boolean {
    if (--this.refs[record]! > 0) return false;
    const next = this.#next[record]!;
    const previous = this.#previous[record]!;
    if (next !== 0) this.#previous[next] = previous;
    if (previous !== 0) this.#next[previous] = next;
    else this.#replaceHead(record, next);
    this.#next[record] = this.#freeHead;
    this.#freeHead = record;
    this.#records--;
    return true;
  }

  /**
   * Writes into `shared[slot]` the length of the longest prefix of `sequence` (interleaved lanes)
   * that is live on that slot. Costs one probe per matched block plus one step per holder of it.
   */
  sharedPrefix(sequence: Uint32Array, shared: Int32Array): void {
    shared.fill(0);
    const blocks = sequence.length >> 1;
    for (let block = 0; block < blocks; block++) {
      const bucket = this.#bucketOf(sequence[2 * block]!, sequence[2 * block + 1]!);
      let reached = false;
      let record = this.#buckets[bucket]!;
      for (; record !== 0; record = this.#next[record]!) {
        const holder = this.#holder[record]!;
        if (shared[holder] !== block) continue;
        shared[holder] = block + 1;
        reached = true;
      }
      if (!reached) return;
    }
  }

  #homeOf(lo: number, hi: number): number {
    let mixed = Math.imul(lo ^ this.#secretLo, 0x9e3779b1) ^ Math.imul(hi, this.#secretHi);
    mixed = Math.imul(mixed ^ (mixed >>> 15), this.#secretLo);
    return (mixed ^ (mixed >>> 13)) & (this.#buckets.length - 1);
  }

  /** Bucket whose head has this hash, or the empty bucket where it belongs. */
  #bucketOf(lo: number, hi: number): number {
    const mask = this.#buckets.length - 1;
    let bucket = this.#homeOf(lo, hi);
    for (;;) {
      const head = this.#buckets[bucket]!;
      if (head === 0 || (this.#lo[head] === lo && this.#hi[head] === hi)) return bucket;
      bucket = (bucket + 1) & mask;
    }
  }

  #replaceHead(record: number, next: number): void {
    const bucket = this.#bucketOf(this.#lo[record]!, this.#hi[record]!);
    this.#buckets[bucket] = next;
    if (next !== 0) return;
    this.#hashes--;
    this.#closeGap(bucket);
  }

  /** Moves later heads of the probe run back, so that no empty bucket cuts them off. */
  #closeGap(emptied: number): void {
    const mask = this.#buckets.length - 1;
    let gap = emptied;
    for (let bucket = (gap + 1) & mask; ; bucket = (bucket + 1) & mask) {
      const head = this.#buckets[bucket]!;
      if (head === 0) return;
      const home = this.#homeOf(this.#lo[head]!, this.#hi[head]!);
      if (((bucket - home) & mask) < ((bucket - gap) & mask)) continue;
      this.#buckets[gap] = head;
      this.#buckets[bucket] = 0;
      gap = bucket;
    }
  }

  #allot(): number {
    const free = this.#freeHead;
    if (free !== 0) {
      this.#freeHead = this.#next[free]!;
      return free;
    }
    if (this.#unused === this.refs.length) this.#grow();
    return this.#unused++;
  }

  #grow(): void {
    const length = this.refs.length * 2;
    this.refs = grownInt32(this.refs, length);
    this.weight = grownFloat64(this.weight, length);
    this.#lo = grownUint32(this.#lo, length);
    this.#hi = grownUint32(this.#hi, length);
    this.#holder = grownInt32(this.#holder, length);
    this.#next = grownInt32(this.#next, length);
    this.#previous = grownInt32(this.#previous, length);
  }

  #rehash(): void {
    const old = this.#buckets;
    this.#buckets = new Int32Array(old.length * 2);
    for (let bucket = 0; bucket < old.length; bucket++) {
      const head = old[bucket]!;
      if (head !== 0) this.#buckets[this.#bucketOf(this.#lo[head]!, this.#hi[head]!)] = head;
    }
  }
}
