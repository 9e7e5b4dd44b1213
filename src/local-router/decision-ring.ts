/**
 * The last decisions of a local router, by their id and by the request they were for; the oldest
 * makes room. Of each the cheapest candidates are kept, so that a ring of decisions over many
 * workers stays small: about 1 KB a decision, 2 KB in cost mode `latency`.
 */

import type { ChoiceTables } from "../core/choice.ts";
import type { ChoiceMade, Decision } from "../core/decision-record.ts";
import type { CostMode } from "../core/worker-cost.ts";
import { DecisionRows } from "./decision-rows.ts";

export const decisionsKeptDefault = 10_000;

/** Candidates that a kept decision shows. */
export const candidatesKept = 8;

export interface DecisionNames {
  readonly id: string;
  readonly rid: string;
  readonly atWallMs: number;
}

export interface KeptDecision extends DecisionNames {
  readonly decision: Decision;
}

export class DecisionRing {
  readonly #max: number;
  readonly #rows: DecisionRows;
  readonly #ids: string[] = [];
  readonly #rids: string[] = [];
  readonly #atWallMs: number[] = [];
  /** Row by id, and by rid that of the latest decision. */
  readonly #rowOf = new Map<string, number>();
  #next = 0;

  constructor(max: number, costMode: CostMode["name"]) {
    this.#max = max;
    this.#rows = new DecisionRows(costMode, candidatesKept);
  }

  get size(): number {
    return this.#ids.length;
  }

  /** Keeps a choice as long as the scratch columns of `tables` hold what it was made from. */
  add({ id, rid, atWallMs }: DecisionNames, tables: ChoiceTables, made: ChoiceMade): void {
    const row = this.#next;
    if (row < this.#ids.length) this.#forget(row);
    this.#rows.write(row, tables, made);
    this.#ids[row] = id;
    this.#rids[row] = rid;
    this.#atWallMs[row] = atWallMs;
    this.#next = (row + 1) % this.#max;
    this.#rowOf.set(id, row);
    this.#rowOf.set(rid, row);
  }

  /** By decision id, or by rid the latest for that request. */
  get(name: string): KeptDecision | undefined {
    const row = this.#rowOf.get(name);
    if (row === undefined) return undefined;
    const [id = "", rid = "", atWallMs = 0] = [
      this.#ids[row],
      this.#rids[row],
      this.#atWallMs[row],
    ];
    return { id, rid, atWallMs, decision: this.#rows.read(row) };
  }

  #forget(row: number): void {
    // A retried request has a newer decision under the same rid.
    for (const name of [this.#ids[row], this.#rids[row]]) {
      if (name !== undefined && this.#rowOf.get(name) === row) this.#rowOf.delete(name);
    }
  }
}
