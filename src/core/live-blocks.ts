/**
 * Blocks that running requests hold, counted per (sequence hash, holder slot).
 *
 *   buckets   [ head record, mixed hash ] by linear probing; record 0 = empty
 *      │
 *      ▼
 *   record    1 ──next──▶ 7 ──next──▶ 0     one record per holder of that hash
 *
 *   fields    [ lo, hi, holder, refs, next, previous, mixed, – ]   8 x i32 = half a cache line
 *             (the mixed hash stands in both, so that a probe that fails reads no record)
 *   weight    1, or the fraction its single user last gave it
 *
 * Invariants: every record in a list has the same hash and another holder; refs >= 1; bucket load
 * <= 1/2; record 0 is never used. The home bucket depends on two secrets drawn at construction,
 * so a client that chooses its tokens cannot aim at one bucket.
 */
import type { Random } from "../base/random.ts";
import { randomU32 } from "../base/random.ts";
import { grownFloat64, grownInt32 } from "./column.ts";

const recordsAtStart = 1024;
const stride = 8;
const lane0 = 0;
const lane1 = 1;
const holderAt = 2;
const refsAt = 3;
const nextAt = 4;
const previousAt = 5;
const mixedAt = 6;

export class LiveBlocks {
  weight: Float64Array = new Float64Array(recordsAtStart);

  readonly #recordsMax: number;
  readonly #secretLo: number;
  readonly #secretHi: number;
  #fields = new Int32Array(recordsAtStart * stride);
  #buckets = new Int32Array(4 * recordsAtStart);
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
    return this.#buckets.byteLength + this.#fields.byteLength + this.weight.byteLength;
  }

  /** True when `count` more records fit. */
  hasRoom(count: number): boolean {
    return this.#records + count <= this.#recordsMax;
  }

  /** Requests that use the block of a record. */
  refsOf(record: number): number {
    return this.#fields[record * stride + refsAt]!;
  }

  /** Takes one reference to the block on `holder`; a new record has one reference, weight 1. */
  acquire(lo: number, hi: number, holder: number): number {
    const mixed = this.#mix(lo, hi);
    const bucket = this.#bucketOf(lo | 0, hi | 0, mixed);
    const head = this.#buckets[2 * bucket]!;
    for (let record = head; record !== 0; record = this.#fields[record * stride + nextAt]!) {
      if (this.#fields[record * stride + holderAt] !== holder) continue;
      this.#fields[record * stride + refsAt]!++;
      return record;
    }
    const record = this.#allot();
    const at = record * stride;
    const fields = this.#fields;
    fields[at + lane0] = lo;
    fields[at + lane1] = hi;
    fields[at + holderAt] = holder;
    fields[at + refsAt] = 1;
    fields[at + nextAt] = head;
    fields[at + previousAt] = 0;
    fields[at + mixedAt] = mixed;
    this.weight[record] = 1;
    if (head !== 0) fields[head * stride + previousAt] = record;
    this.#buckets[2 * bucket] = record;
    this.#buckets[2 * bucket + 1] = mixed;
    this.#records++;
    if (head === 0 && ++this.#hashes * 4 > this.#buckets.length) this.#rehash();
    return record;
  }

  /** Gives one reference back; answers true when the record is gone with it. */
  release(record: number): boolean {
    const fields = this.#fields;
    const at = record * stride;
    if (--fields[at + refsAt]! > 0) return false;
    const next = fields[at + nextAt]!;
    const previous = fields[at + previousAt]!;
    if (next !== 0) fields[next * stride + previousAt] = previous;
    if (previous !== 0) fields[previous * stride + nextAt] = next;
    else this.#replaceHead(record, next);
    fields[at + nextAt] = this.#freeHead;
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
    const fields = this.#fields;
    const blocks = sequence.length >> 1;
    for (let block = 0; block < blocks; block++) {
      const lo = sequence[2 * block]!;
      const hi = sequence[2 * block + 1]!;
      let reached = false;
      let record = this.#buckets[2 * this.#bucketOf(lo | 0, hi | 0, this.#mix(lo, hi))]!;
      for (; record !== 0; record = fields[record * stride + nextAt]!) {
        const holder = fields[record * stride + holderAt]!;
        if (shared[holder] !== block) continue;
        shared[holder] = block + 1;
        reached = true;
      }
      if (!reached) return;
    }
  }

  #mix(lo: number, hi: number): number {
    const mixed = Math.imul(lo ^ this.#secretLo, 0x9e3779b1) ^ Math.imul(hi, this.#secretHi);
    const spread = Math.imul(mixed ^ (mixed >>> 15), this.#secretLo);
    return spread ^ (spread >>> 13);
  }

  /** Bucket whose head has this hash, or the empty bucket where it belongs. */
  #bucketOf(lo: number, hi: number, mixed: number): number {
    const fields = this.#fields;
    const buckets = this.#buckets;
    const mask = (buckets.length >> 1) - 1;
    let bucket = mixed & mask;
    for (; ; bucket = (bucket + 1) & mask) {
      const head = buckets[2 * bucket]!;
      if (head === 0) return bucket;
      if (buckets[2 * bucket + 1] !== mixed) continue;
      const at = head * stride;
      if (fields[at + lane0] === lo && fields[at + lane1] === hi) return bucket;
    }
  }

  #replaceHead(record: number, next: number): void {
    const buckets = this.#buckets;
    const mask = (buckets.length >> 1) - 1;
    let bucket = this.#fields[record * stride + mixedAt]! & mask;
    while (buckets[2 * bucket] !== record) bucket = (bucket + 1) & mask;
    buckets[2 * bucket] = next;
    if (next !== 0) return;
    this.#hashes--;
    this.#closeGap(bucket);
  }

  /** Moves later heads of the probe run back, so that no empty bucket cuts them off. */
  #closeGap(emptied: number): void {
    const buckets = this.#buckets;
    const mask = (buckets.length >> 1) - 1;
    let gap = emptied;
    for (let bucket = (gap + 1) & mask; ; bucket = (bucket + 1) & mask) {
      const head = buckets[2 * bucket]!;
      if (head === 0) return;
      const mixed = buckets[2 * bucket + 1]!;
      if (((bucket - mixed) & mask) < ((bucket - gap) & mask)) continue;
      buckets[2 * gap] = head;
      buckets[2 * gap + 1] = mixed;
      buckets[2 * bucket] = 0;
      gap = bucket;
    }
  }

  #allot(): number {
    const free = this.#freeHead;
    if (free !== 0) {
      this.#freeHead = this.#fields[free * stride + nextAt]!;
      return free;
    }
    if (this.#unused === this.weight.length) {
      this.weight = grownFloat64(this.weight, this.weight.length * 2);
      this.#fields = grownInt32(this.#fields, this.#fields.length * 2);
    }
    return this.#unused++;
  }

  #rehash(): void {
    const old = this.#buckets;
    const buckets = new Int32Array(old.length * 2);
    const mask = (buckets.length >> 1) - 1;
    for (let from = 0; from < old.length; from += 2) {
      if (old[from] === 0) continue;
      let bucket = old[from + 1]! & mask;
      while (buckets[2 * bucket] !== 0) bucket = (bucket + 1) & mask;
      buckets[2 * bucket] = old[from]!;
      buckets[2 * bucket + 1] = old[from + 1]!;
    }
    this.#buckets = buckets;
  }
}
