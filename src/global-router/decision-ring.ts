/**
 * The last decisions by id; the oldest makes room.
 *
 *   place     0    1    2    3
 *   ids     [ a,   b,   c,   d ]
 *   objects [ -,   b,   c,   - ]   decisions that may yet change, or that do not fit a row
 *   rows    [ a,   -,   -,   d ]   the others: nobody touches them again but to read
 *
 * Invariant: of each id kept, either its object or its row is in force. A request is over within
 * seconds, so nearly all that a router keeps are rows, and no garbage collector copies them.
 */
import { DecisionRows } from "./decision-rows.ts";
import { asksQuotes } from "./live-choice.ts";
import type { PoolDecision } from "./pool-decision.ts";

export const decisionsKeptMax = 10_000;

export class DecisionRing {
  readonly #placeOf = new Map<string, number>();
  readonly #ids: string[] = [];
  readonly #objects: (PoolDecision | undefined)[] = [];
  readonly #rows = new DecisionRows();
  #next = 0;

  add(decision: PoolDecision): void {
    const place = this.#next;
    const oldest = this.#ids[place];
    if (oldest !== undefined) this.#placeOf.delete(oldest);
    this.#ids[place] = decision.id;
    this.#objects[place] = decision;
    this.#placeOf.set(decision.id, place);
    this.#next = (place + 1) % decisionsKeptMax;
  }

  /** Keeps a decision as a row from the moment on that nothing changes it any more. */
  settle(decision: PoolDecision): void {
    const place = this.#placeOf.get(decision.id);
    if (place === undefined || this.#objects[place] !== decision) return;
    if (!isSettled(decision) || !DecisionRows.fits(decision)) return;
    this.#rows.write(place, decision);
    this.#objects[place] = undefined;
  }

  get(id: string): PoolDecision | undefined {
    const place = this.#placeOf.get(id);
    return place === undefined ? undefined : (this.#objects[place] ?? this.#rows.read(place, id));
  }

  get size(): number {
    return this.#placeOf.size;
  }
}

/** Its request is over and scored, and no quote is on its way that would be shown. */
function isSettled(decision: PoolDecision): boolean {
  const { ended, counted, live } = decision;
  return ended && counted && (live !== undefined || !asksQuotes(decision));
}
