/**
 * The one engine step an engine fills again and again; the sink reads it and returns.
 *
 *   i          0    1    2          count = 3
 *   keys     [ 17,  17,  42 ]
 *   indexes  [  8,   9,   0 ]
 *   tokenIds [ 311, 95, 2007 ]
 */
import type { EngineStep, StepEnd, StepStart } from "./engine.ts";

const startSize = 64;

export class StepBuffer implements EngineStep {
  dpRank = 0;
  readonly started: StepStart[] = [];
  readonly ended: StepEnd[] = [];
  count = 0;
  keys: Float64Array = new Float64Array(startSize);
  indexes: Uint32Array = new Uint32Array(startSize);
  tokenIds: Uint32Array = new Uint32Array(startSize);

  get empty(): boolean {
    return this.count === 0 && this.ended.length === 0;
  }

  clear(dpRank: number): void {
    this.dpRank = dpRank;
    this.count = 0;
    this.started.length = 0;
    this.ended.length = 0;
  }

  pushToken(key: number, index: number, tokenId: number): void {
    if (this.count === this.keys.length) this.#grow();
    this.keys[this.count] = key;
    this.indexes[this.count] = index;
    this.tokenIds[this.count] = tokenId;
    this.count++;
  }

  #grow(): void {
    const keys = new Float64Array(2 * this.count);
    const indexes = new Uint32Array(2 * this.count);
    const tokenIds = new Uint32Array(2 * this.count);
    keys.set(this.keys);
    indexes.set(this.indexes);
    tokenIds.set(this.tokenIds);
    this.keys = keys;
    this.indexes = indexes;
    this.tokenIds = tokenIds;
  }
}
