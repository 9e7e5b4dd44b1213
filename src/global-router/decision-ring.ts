/**
 * The last decisions by id; the oldest makes room.
 *
 *   place     0    1    2    3
 *   names   [ a r, b r, c r, d r ]   id and rid, 16 bytes each
 *   objects [ -,   b,   c,   -   ]   decisions that may yet change, or that do not fit a row
 *   rows    [ a,   -,   -,   d   ]   the others: nobody touches them again but to read
 *   places  id ──▶ place
 *
 * Invariant: of each id kept, either its object or its row is in force. A request is over within
 * seconds, so nearly all that a router keeps is columns, which no garbage collector copies.
 */
import { mulberry32 } from "../base/random.ts";
import { LaneTable } from "../core/lane-table.ts";
import { DecisionRows } from "./decision-rows.ts";
import { asksQuotes } from "./live-choice.ts";
import type { PoolDecision } from "./pool-decision.ts";

export const decisionsKeptMax = 10_000;

const idBytes = 16;
const nameBytes = 2 * idBytes;

export class DecisionRing {
  readonly #names: Buffer = Buffer.alloc(decisionsKeptMax * nameBytes);
  /** Ids are drawn by this router, so that nobody can aim many at one place of the table. */
  readonly #places = new LaneTable(3, decisionsKeptMax, mulberry32(1));
  readonly #objects: (PoolDecision | undefined)[] = [];
  readonly #rows = new DecisionRows();
  /** An id that is looked for. */
  readonly #wanted: Buffer = Buffer.alloc(idBytes);
  #next = 0;

  /** `id` and `rid` are 32 hex digits. */
  add(decision: PoolDecision): void {
    const place = this.#next;
    const names = this.#names;
    const start = place * nameBytes;
    if (place < this.#places.count) this.#places.removeAt(this.#offsetOf(names, start));
    names.write(decision.id, start, "hex");
    names.write(decision.rid, start + idBytes, "hex");
    this.#places.reserve(1);
    const offset = this.#places.insert(names.readInt32LE(start), names.readInt32LE(start + 4));
    this.#places.words[offset + 2] = place;
    this.#objects[place] = decision;
    this.#next = (place + 1) % decisionsKeptMax;
  }

  /** Keeps a decision as a row from the moment on that nothing changes it any more. */
  settle(decision: PoolDecision): void {
    if (!isSettled(decision) || !DecisionRows.fits(decision)) return;
    const place = this.#placeOf(decision.id);
    if (place === undefined || this.#objects[place] !== decision) return;
    this.#rows.write(place, decision);
    this.#objects[place] = undefined;
  }

  get(id: string): PoolDecision | undefined {
    const place = this.#placeOf(id);
    if (place === undefined) return undefined;
    const object = this.#objects[place];
    if (object) return object;
    const ridAt = place * nameBytes + idBytes;
    const rid = this.#names.toString("hex", ridAt, ridAt + idBytes);
    return this.#rows.read(place, { id, rid });
  }

  get size(): number {
    return this.#places.count;
  }

  #placeOf(id: string): number | undefined {
    if (id.length !== nameBytes) return undefined;
    this.#wanted.write(id, "hex");
    const offset = this.#offsetOf(this.#wanted, 0);
    if (offset < 0) return undefined;
    const place = this.#places.words[offset + 2] ?? 0;
    const start = place * nameBytes;
    return this.#names.toString("hex", start, start + idBytes) === id ? place : undefined;
  }

  #offsetOf(ids: Buffer, start: number): number {
    return this.#places.find(ids.readInt32LE(start), ids.readInt32LE(start + 4));
  }
}

/** Its request is over and scored, and no quote is on its way that would be shown. */
function isSettled(decision: PoolDecision): boolean {
  const { ended, counted, live } = decision;
  return ended && counted && (live !== undefined || !asksQuotes(decision));
}
