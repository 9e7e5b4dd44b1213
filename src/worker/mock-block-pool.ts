/**
 * The paged KV memory of one mock engine rank: which physical block holds what, and which blocks
 * may be given away. One slot per physical block, all columns are typed arrays:
 *
 *   slot           0     1     2     3      capacity = 4
 *   refs         [ 2,    1,    0,    0 ]    requests holding the block
 *   cached       [ 1,    0,    1,    0 ]    1 = visible under its hash, 0 = private or free
 *   hash         [ a0,   -,    a1,   - ]    two u32 columns
 *                  |           |     |
 *                  active: 0, 1|     free: 3 (a stack)
 *                        inactive: 2 (a ring in release order, oldest first)
 *
 * `buckets` leads from a hash to its oldest copy; copies of one hash form a ring, oldest first.
 * Invariants: active + inactive + free = capacity; a slot is in the inactive ring exactly when it
 * is cached with refs 0; a hash is found exactly when a cached copy of it exists.
 */

export const noSlot = -1;

export class MockBlockPool {
  readonly capacity: number;
  readonly #hashLo: Uint32Array;
  readonly #hashHi: Uint32Array;
  readonly #refs: Int32Array;
  readonly #cached: Uint8Array;
  readonly #free: Int32Array;
  #freeCount: number;
  /** Ring through the slots plus one sentinel at index `capacity`. */
  readonly #olderOf: Int32Array;
  readonly #newerOf: Int32Array;
  #inactiveCount = 0;
  readonly #buckets: Int32Array;
  readonly #bucketShift: number;
  readonly #nextInBucket: Int32Array;
  readonly #copyBefore: Int32Array;
  readonly #copyAfter: Int32Array;
  /** Rises whenever a lookup or the free room may have changed. */
  version = 0;

  constructor(capacity: number) {
    this.capacity = capacity;
    this.#hashLo = new Uint32Array(capacity);
    this.#hashHi = new Uint32Array(capacity);
    this.#refs = new Int32Array(capacity);
    this.#cached = new Uint8Array(capacity);
    this.#free = Int32Array.from({ length: capacity }, (_, slot) => capacity - 1 - slot);
    this.#freeCount = capacity;
    this.#olderOf = new Int32Array(capacity + 1).fill(capacity);
    this.#newerOf = new Int32Array(capacity + 1).fill(capacity);
    const bits = Math.max(1, Math.ceil(Math.log2(2 * capacity)));
    this.#bucketShift = 32 - bits;
    this.#buckets = new Int32Array(2 ** bits).fill(noSlot);
    this.#nextInBucket = new Int32Array(capacity).fill(noSlot);
    this.#copyBefore = new Int32Array(capacity);
    this.#copyAfter = new Int32Array(capacity);
  }

  /** Blocks held by at least one request. */
  get active(): number {
    return this.capacity - this.#inactiveCount - this.#freeCount;
  }

  /** Cached blocks nobody holds; they are given away when the free ones run out. */
  get inactive(): number {
    return this.#inactiveCount;
  }

  /** Requests holding `slot`; 0 for an inactive or a free one. */
  refsOf(slot: number): number {
    return this.#refs[slot] as number;
  }

  /** Oldest copy cached under the hash, or `noSlot`. */
  find(lo: number, hi: number): number {
    let slot = this.#buckets[this.#bucketOf(lo, hi)] as number;
    while (slot !== noSlot && (this.#hashLo[slot] !== lo || this.#hashHi[slot] !== hi)) {
      slot = this.#nextInBucket[slot] as number;
    }
    return slot;
  }

  /** One more request holds this cached block. */
  pin(slot: number): void {
    if (this.#refs[slot] === 0) this.#leaveInactive(slot);
    this.#refs[slot] = (this.#refs[slot] as number) + 1;
    this.version++;
  }

  /**
   * Appends `count` private blocks to `into`, evicting the longest inactive ones when needed, and
   * the lanes of every hash whose last copy went to `evicted`. False, and nothing done, without room.
   */
  allocate(count: number, into: number[], evicted: number[]): boolean {
    if (count > this.#freeCount + this.#inactiveCount) return false;
    while (this.#freeCount < count) this.#evictOldest(evicted);
    for (let i = 0; i < count; i++) {
      const slot = this.#free[--this.#freeCount] as number;
      this.#refs[slot] = 1;
      into.push(slot);
    }
    this.version++;
    return true;
  }

  /** Makes a private block visible under its hash; true when it is the first copy of it. */
  cache(slot: number, lo: number, hi: number): boolean {
    const oldest = this.find(lo, hi);
    this.#hashLo[slot] = lo;
    this.#hashHi[slot] = hi;
    this.#cached[slot] = 1;
    this.version++;
    if (oldest === noSlot) {
      const bucket = this.#bucketOf(lo, hi);
      this.#nextInBucket[slot] = this.#buckets[bucket] as number;
      this.#buckets[bucket] = slot;
      this.#copyBefore[slot] = slot;
      this.#copyAfter[slot] = slot;
      return true;
    }
    const newest = this.#copyBefore[oldest] as number;
    this.#copyAfter[newest] = slot;
    this.#copyBefore[slot] = newest;
    this.#copyAfter[slot] = oldest;
    this.#copyBefore[oldest] = slot;
    return false;
  }

  /** A request lets go of its blocks, last to first, so that leaves are evicted before parents. */
  release(slots: number[]): void {
    for (let slot = slots.pop(); slot !== undefined; slot = slots.pop()) {
      const refs = (this.#refs[slot] as number) - 1;
      this.#refs[slot] = refs;
      if (refs > 0) continue;
      if (this.#cached[slot] === 1) this.#enterInactive(slot);
      else this.#free[this.#freeCount++] = slot;
    }
    this.version++;
  }

  /** Drops every inactive block without reporting it; answers how many. */
  dropInactive(): number {
    const dropped = this.#inactiveCount;
    while (this.#inactiveCount > 0) this.#evictOldest([]);
    this.version++;
    return dropped;
  }

  /** Inactive slots, next to be evicted first. */
  *inactiveSlots(): Generator<number> {
    const end = this.capacity;
    for (let slot = this.#newerOf[end] as number; slot !== end; ) {
      yield slot;
      slot = this.#newerOf[slot] as number;
    }
  }

  /** Hash of every cached copy as `[slot, lo, hi]`, duplicates included. */
  *cachedSlots(): Generator<readonly [slot: number, lo: number, hi: number]> {
    for (let slot = 0; slot < this.capacity; slot++) {
      if (this.#cached[slot] !== 1) continue;
      yield [slot, this.#hashLo[slot] as number, this.#hashHi[slot] as number];
    }
  }

  #evictOldest(evicted: number[]): void {
    const slot = this.#newerOf[this.capacity] as number;
    this.#leaveInactive(slot);
    this.#cached[slot] = 0;
    this.#free[this.#freeCount++] = slot;
    const lo = this.#hashLo[slot] as number;
    const hi = this.#hashHi[slot] as number;
    const after = this.#copyAfter[slot] as number;
    if (after === slot) {
      this.#replaceInBucket(slot, this.#nextInBucket[slot] as number);
      evicted.push(lo, hi);
      return;
    }
    const before = this.#copyBefore[slot] as number;
    this.#copyAfter[before] = after;
    this.#copyBefore[after] = before;
    if (this.find(lo, hi) !== slot) return;
    this.#nextInBucket[after] = this.#nextInBucket[slot] as number;
    this.#replaceInBucket(slot, after);
  }

  /** Puts `by` in the place of the oldest copy `slot` in its bucket's chain. */
  #replaceInBucket(slot: number, by: number): void {
    const bucket = this.#bucketOf(this.#hashLo[slot] as number, this.#hashHi[slot] as number);
    let at = this.#buckets[bucket] as number;
    if (at === slot) {
      this.#buckets[bucket] = by;
      return;
    }
    while (this.#nextInBucket[at] !== slot) at = this.#nextInBucket[at] as number;
    this.#nextInBucket[at] = by;
  }

  #enterInactive(slot: number): void {
    const end = this.capacity;
    const newest = this.#olderOf[end] as number;
    this.#newerOf[newest] = slot;
    this.#olderOf[slot] = newest;
    this.#newerOf[slot] = end;
    this.#olderOf[end] = slot;
    this.#inactiveCount++;
  }

  #leaveInactive(slot: number): void {
    const older = this.#olderOf[slot] as number;
    const newer = this.#newerOf[slot] as number;
    this.#newerOf[older] = newer;
    this.#olderOf[newer] = older;
    this.#inactiveCount--;
  }

  #bucketOf(lo: number, hi: number): number {
    return Math.imul(lo ^ Math.imul(hi, 0x85ebca6b), 0x9e3779b1) >>> this.#bucketShift;
  }
}
