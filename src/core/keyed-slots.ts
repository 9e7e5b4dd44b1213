/**
 * Values by key, for values that come and go all the time and hold much.
 *
 *   places   a ──▶ 0    c ──▶ 2
 *   values [ A,    -,   C ]       free [ 1 ]
 *
 * A `Map` in which keys come and go moves to another table every so often. V8 links each table to the
 * one after it: one table that has reached the old generation keeps alive, until a full collection,
 * all that follow, and every value they held. What ended long ago is then copied by every scavenge.
 * Here such tables hold numbers, and a value is let go when its key is deleted.
 *
 * Invariants: a place is in `places` once, or free and undefined; values stand in the order in which
 * their keys were first set. There are as many places as there were keys at one time; who sets keys
 * bounds them.
 */
export class KeyedSlots<Value> {
  readonly #places = new Map<string, number>();
  readonly #values: (Value | undefined)[] = [];
  readonly #free: number[] = [];

  get size(): number {
    return this.#places.size;
  }

  has(key: string): boolean {
    return this.#places.has(key);
  }

  get(key: string): Value | undefined {
    const place = this.#places.get(key);
    return place === undefined ? undefined : this.#values[place];
  }

  set(key: string, value: Value): void {
    let place = this.#places.get(key);
    if (place === undefined) {
      place = this.#free.pop() ?? this.#values.length;
      this.#places.set(key, place);
    }
    this.#values[place] = value;
  }

  /** Answers whether there was such a key. */
  delete(key: string): boolean {
    const place = this.#places.get(key);
    if (place === undefined) return false;
    this.#places.delete(key);
    this.#values[place] = undefined;
    this.#free.push(place);
    return true;
  }

  keys(): Iterable<string> {
    return this.#places.keys();
  }

  *values(): Generator<Value, void, undefined> {
    for (const place of this.#places.values()) yield this.#values[place]!;
  }
}
