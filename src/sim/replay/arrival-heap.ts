/**
 * Requests to come, the earliest first, equal times in the order they were added: a binary heap in
 * three columns, one entry per request at most.
 *
 *   slot     0     1     2        a parent is never later than its children 2s + 1, 2s + 2
 *   atMs   [ 5.0,  7.5,  5.0 ]
 *   order  [   1,    0,    2 ]
 *   place  [   4,    0,    9 ]
 */
export class ArrivalHeap {
  size = 0;
  readonly #atMs: Float64Array;
  readonly #order: Float64Array;
  readonly #place: Int32Array;
  #added = 0;

  /** Holds at most `capacity` requests. */
  constructor(capacity: number) {
    this.#atMs = new Float64Array(capacity);
    this.#order = new Float64Array(capacity);
    this.#place = new Int32Array(capacity);
  }

  /** `Infinity` when empty. */
  get nextMs(): number {
    return this.size === 0 ? Number.POSITIVE_INFINITY : (this.#atMs[0] as number);
  }

  add(place: number, atMs: number): void {
    const order = this.#added++;
    let slot = this.size++;
    while (slot > 0) {
      const parent = (slot - 1) >> 1;
      if (!this.#isAfter(parent, atMs, order)) break;
      this.#move(parent, slot);
      slot = parent;
    }
    this.#set(slot, place, atMs, order);
  }

  /** Takes the earliest; -1 when empty. */
  take(): number {
    if (this.size === 0) return -1;
    const taken = this.#place[0] as number;
    const last = --this.size;
    if (last > 0) this.#sink(last);
    return taken;
  }

  /** Puts the entry of slot `last` where it belongs below the free root. */
  #sink(last: number): void {
    const atMs = this.#atMs[last] as number;
    const order = this.#order[last] as number;
    let slot = 0;
    for (;;) {
      let child = 2 * slot + 1;
      if (child >= last) break;
      const right = child + 1;
      if (
        right < last &&
        this.#isAfter(child, this.#atMs[right] as number, this.#order[right] as number)
      ) {
        child = right;
      }
      if (this.#isAfter(child, atMs, order)) break;
      this.#move(child, slot);
      slot = child;
    }
    this.#set(slot, this.#place[last] as number, atMs, order);
  }

  #isAfter(slot: number, atMs: number, order: number): boolean {
    const own = this.#atMs[slot] as number;
    return own > atMs || (own === atMs && (this.#order[slot] as number) > order);
  }

  #move(from: number, to: number): void {
    this.#set(
      to,
      this.#place[from] as number,
      this.#atMs[from] as number,
      this.#order[from] as number,
    );
  }

  #set(slot: number, place: number, atMs: number, order: number): void {
    this.#atMs[slot] = atMs;
    this.#order[slot] = order;
    this.#place[slot] = place;
  }
}
