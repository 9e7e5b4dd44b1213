/**
 * The last decisions of a local router, by their id and by the request they were for; the oldest
 * makes room. Of each the cheapest candidates are kept, so that a ring of decisions over many
 * workers stays small: about 3 KB a decision.
 */
import type { Decision } from "../core/decision-record.ts";

export const decisionsKeptDefault = 10_000;

export interface KeptDecision {
  readonly id: string;
  readonly rid: string;
  readonly atWallMs: number;
  readonly decision: Decision;
}

export class DecisionRing {
  readonly #max: number;
  readonly #kept: KeptDecision[] = [];
  readonly #byName = new Map<string, KeptDecision>();
  #next = 0;

  constructor(max: number) {
    this.#max = max;
  }

  get size(): number {
    return this.#kept.length;
  }

  add(kept: KeptDecision): void {
    const oldest = this.#kept[this.#next];
    if (oldest) this.#forget(oldest);
    this.#kept[this.#next] = kept;
    this.#next = (this.#next + 1) % this.#max;
    this.#byName.set(kept.id, kept);
    this.#byName.set(kept.rid, kept);
  }

  /** By decision id, or by rid the latest for that request. */
  get(name: string): KeptDecision | undefined {
    return this.#byName.get(name);
  }

  #forget({ id, rid }: KeptDecision): void {
    this.#byName.delete(id);
    // A retried request has a newer decision under the same rid.
    if (this.#byName.get(rid)?.id === id) this.#byName.delete(rid);
  }
}
