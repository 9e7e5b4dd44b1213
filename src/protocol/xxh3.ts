/**
 * XXH3-64 over many inputs a call, as the fast core and TypeScript both offer it.
 *
 *   inputBytes   [ window | window | …           ]   256 KiB, the same bytes as inputWords
 *   output       [ lo hi | lo hi | …             ]   entry i at words [2i, 2i + 1]
 */

/** Bytes one call may read; a window longer than this cannot be hashed. */
export const inputBytesMax: number = 256 * 1024;
/** Entries of `output`: one hash a word of input, and the entry that a chain goes on from. */
export const hashesMax: number = inputBytesMax / 4 + 1;

export interface Xxh3 {
  readonly inputBytes: Uint8Array;
  readonly inputWords: Uint32Array;
  readonly output: Uint32Array;
  /** Makes every later `windows` use this seed. */
  seed(lo: number, hi: number): void;
  /** Hashes `count` windows, `strideBytes` apart from the start of the input, to entries from 1. */
  windows(count: number, windowBytes: number, strideBytes: number): void;
  /** Hashes the first `bytes` of the input to entry `entry`. */
  one(bytes: number, entry: number): void;
  /** Chains output entries [from, to): each becomes the hash of (the entry before it, itself). */
  chain(from: number, to: number): void;
}
