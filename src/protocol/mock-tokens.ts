/**
 * The token ids of the mock engine. A token depends only on the sampling seed and its absolute
 * position, so any client can check a stream, and a continuation on another worker (prompt + tokens
 * so far) yields the same sequence.
 */

/** Token ids lie in [idMin, idMin + idCount). */
export interface MockTokenRange {
  readonly idMin: number;
  readonly idCount: number;
}

export const defaultMockTokenRange: MockTokenRange = { idMin: 1000, idCount: 30_000 };

/** Ids of the mock model that the package ships which stand for readable text. */
export const readableMockTokenRange: MockTokenRange = { idMin: 256, idCount: 1789 };

/**
 * Token id at absolute `position` (prompt tokens + output index, from 0) under `seed` (its low 32
 * bits count): the murmur3 finaliser over seed and position.
 */
export function mockToken(seed: number, position: number, range = defaultMockTokenRange): number {
  let x = seed ^ Math.imul(position + 1, 0x9e3779b1);
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return range.idMin + (((x ^ (x >>> 16)) >>> 0) % range.idCount);
}
