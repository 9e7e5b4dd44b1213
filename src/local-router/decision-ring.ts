/**
 * The last decisions of a local router, by their id and by the request they were for; the oldest
 * makes room. Of each the cheapest candidates are kept, so that a ring of decisions over many
 * workers stays small: about 1 KB a decision, 2 KB in cost mode `latency`.
 */

import type { Decision } from "../core/decision-record.ts";
import type { CostMode } from "../core/worker-cost.ts";
import { DecisionRows } from "./decision-rows.ts";

export const decisionsKeptDefault = 10_000;

/** Candidates that a kept decision shows. */
export const candidatesKept = 8;

export interface KeptDecision {
  readonly id: string;
  readonly rid: string;
  readonly atWallMs: number;
  readonly decision: Decision;
}

interface Place {
  readonly id: string;
  readonly rid: string;
  readonly atWallMs: number;
  readonly row: number;
}

export class DecisionRing {
  readonly #max: number;
  readonly #rows: DecisionRows;
  readonly #places: Place[] = [];
  readonly #byName = new Map<string, Place>();
  #next = 0;

  constructor(max: number, costMode: CostMode["name"]) {
    this.#max = max;
    this.#rows = new DecisionRows(costMode, candidatesKept);
  }

  get size(): number {
    return this.#places.length;
  }

  /** `decision` has at most `candidatesKept` candidates, all of them priced. */
  add({ id, rid, atWallMs, decision }: KeptDecision): void {
    const row = this.#next;
    const oldest = this.#places[row];
    if (oldest) this.#forget(oldest);
    const place = { id, rid, atWallMs, row };
    this.#rows.write(row, decision);
    this.#places[row] = place;
    this.#next = (row + 1) % this.#max;
    this.#byName.set(id, place);
    this.#byName.set(rid, place);
  }

  /** By decision id, or by rid the latest for that request. */
  get(name: string): KeptDecision | undefined {
    const place = this.#byName.get(name);
    if (!place) return undefined;
    const { id, rid, atWallMs, row } = place;
    return { id, rid, atWallMs, decision: this.#rows.read(row) };
  }

  #forget({ id, rid }: Place): void {
    this.#byName.delete(id);
    // A retried request has a newer decision under the same rid.
    if (this.#byName.get(rid)?.id === id) this.#byName.delete(rid);
  }
}
