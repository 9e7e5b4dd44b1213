/**
 * Multimodal objects of a prompt: which image or audio hash lies in which block. The hashes enter
 * the local hash of their block (`block-hashes.ts`); their offsets never do.
 */
import { TiergridError } from "../base/errors.ts";
import { isObject, isU32, shown } from "./request-body.ts";
import { readU64Json, type U64 } from "./u64.ts";

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

/** What a request says of the prompt that routing hashes, when it is not the one that runs. */
export interface MmRouting {
  /** The prompt with its objects expanded; undefined = the request's own tokens. */
  readonly tokens: Uint32Array | undefined;
  readonly mmInfos: readonly BlockMmInfo[] | undefined;
}

/**
 * Reads `mm_routing_info {routing_token_ids?, block_mm_infos?}`; absent or null = nothing. Throws
 * `invalid_request` naming the field.
 */
export function readMmRouting(value: unknown): MmRouting {
  if (value === undefined || value === null) return { tokens: undefined, mmInfos: undefined };
  if (!isObject(value)) throw wrong("mm_routing_info", "an object", value);
  const ids = value["routing_token_ids"] ?? [];
  if (!Array.isArray(ids) || !ids.every(isU32)) {
    throw wrong("mm_routing_info.routing_token_ids", "an array of token ids", ids);
  }
  return {
    tokens: ids.length > 0 ? Uint32Array.from(ids) : undefined,
    mmInfos: readBlockMmInfos(value["block_mm_infos"], "mm_routing_info.block_mm_infos"),
  };
}

/** Reads `[{mm_objects: [{mm_hash, offsets?}]} | null]`; absent or null = no objects. */
export function readBlockMmInfos(value: unknown, field: string): BlockMmInfo[] | undefined {
  if (value === undefined || value === null) return undefined;
  if (!Array.isArray(value) || value.length > mmBlocksMax) {
    throw wrong(field, `an array of at most ${mmBlocksMax} blocks`, value);
  }
  return value.map((info, block) => {
    if (info === null || info === undefined) return null;
    const objects = isObject(info) ? info["mm_objects"] : undefined;
    if (!Array.isArray(objects)) throw wrong(`${field}[${block}].mm_objects`, "an array", info);
    return { mmObjects: objects.map((object) => mmObjectOf(object, `${field}[${block}]`)) };
  });
}

function mmObjectOf(object: unknown, field: string): MmObject {
  const hash = isObject(object) ? object["mm_hash"] : undefined;
  const mmHash = readU64Json(hash);
  if (!mmHash) throw wrong(`${field}.mm_hash`, "an unsigned 64-bit integer", hash);
  // Offsets place an object inside its block; no hash covers them.
  return { mmHash, offsets: [] };
}

function wrong(field: string, expected: string, found: unknown): TiergridError {
  const message = `${field} must be ${expected}, got ${shown(found)}`;
  return new TiergridError("invalid_request", message, { field });
}

/** The pad token SGLang puts in place of an object's tokens: 1,000,000 + the low 30 bits. */
export function sglangPadToken(mmHash: U64): number {
  return 1_000_000 + (mmHash.lo & 0x3fff_ffff);
}
