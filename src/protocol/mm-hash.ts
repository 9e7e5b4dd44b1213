/**
 * Multimodal objects of a prompt: which image or audio hash lies in which block. The hashes enter
 * the local hash of their block (`block-hashes.ts`); their offsets never do.
 */
import { TiergridError } from "../base/errors.ts";
import type { U64 } from "./u64.ts";

/** Half-open range of token positions. */
export type TokenRange = readonly [start: number, end: number];

export interface MmObject {
  readonly mmHash: U64;
  readonly offsets: readonly TokenRange[];
}

/** Objects of one block, offsets relative to the block; null = none. */
export type BlockMmInfo = { readonly mmObjects: readonly MmObject[] } | null;

/** Blocks one prompt may be split into. */
export const mmBlocksMax = 1 << 20;

/**
 * Splits request-relative ranges into `ceil(totalTokens / blockSize)` block-relative infos. Ranges
 * are clipped to the prompt, empty ones vanish, one hash is one entry per block.
 */
export function splitMmObjects(
  objects: readonly MmObject[],
  totalTokens: number,
  blockSize: number,
): BlockMmInfo[] {
  if (blockSize <= 0 || totalTokens <= 0) return [];
  const blocks = Math.ceil(totalTokens / blockSize);
  if (blocks > mmBlocksMax) {
    throw new TiergridError("invalid_request", `at most ${mmBlocksMax} blocks, got ${blocks}`);
  }
  const rangesOf = new Map<number, Map<string, { mmHash: U64; offsets: TokenRange[] }>>();
  for (const { mmHash, offsets } of objects) {
    for (const [start, end] of offsets) {
      const last = Math.min(end, totalTokens);
      for (let from = Math.max(start, 0); from < last; ) {
        const block = Math.floor(from / blockSize);
        const to = Math.min((block + 1) * blockSize, last);
        const entries = rangesOf.get(block) ?? new Map();
        rangesOf.set(block, entries);
        const key = `${mmHash.hi}:${mmHash.lo}`;
        const entry = entries.get(key) ?? { mmHash, offsets: [] };
        entries.set(key, entry);
        entry.offsets.push([from - block * blockSize, to - block * blockSize]);
        from = to;
      }
    }
  }
  return Array.from({ length: blocks }, (_, block) => {
    const entries = rangesOf.get(block);
    return entries ? { mmObjects: [...entries.values()] } : null;
  });
}

/** The pad token SGLang puts in place of an object's tokens: 1,000,000 + the low 30 bits. */
export function sglangPadToken(mmHash: U64): number {
  return 1_000_000 + (mmHash.lo & 0x3fff_ffff);
}
