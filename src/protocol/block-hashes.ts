/**
 * Block hashes: the one module by which frontend, router and worker name the content of a prompt.
 *
 *   local[i]    = XXH3-64(tokens of block i as u32 LE ‖ its multimodal hashes, ascending; seed)
 *   seed        = 1337 + XXH3-64(lora name, 0) + XXH3-64(cache salt, 1)     modulo 2^64
 *   sequence[0] = local[0]
 *   sequence[i] = XXH3-64(sequence[i-1] ‖ local[i]; 1337)
 *
 * Hashes are (lo, hi) pairs of u32 in one array: block i lies at [2i, 2i + 1]. A trailing partial
 * block has no hash.
 */
import { TiergridError } from "../base/errors.ts";
import { type FastCore, loadFastCore } from "../base/fast-core.ts";
import type { BlockMmInfo, MmObject } from "./mm-hash.ts";
import type { U64 } from "./u64.ts";
import { compareU64 } from "./u64.ts";
import { hashesMax, inputBytesMax, type Xxh3 } from "./xxh3.ts";
import { createFastXxh3 } from "./xxh3-fast.ts";
import { createPlainXxh3 } from "./xxh3-plain.ts";

export interface BlockHashOptions {
  /** Empty or absent = the base model. */
  readonly loraName?: string | undefined;
  /** Isolates tenants; empty or absent = shared. */
  readonly cacheSalt?: string | undefined;
  /** Objects of each block; missing entries mean none. */
  readonly mmInfos?: readonly BlockMmInfo[] | undefined;
  /** Windows of blockSize + 1 tokens, blockSize apart (speculative bigram heads). */
  readonly eagle?: boolean | undefined;
}

export interface BlockHashes {
  readonly blocks: number;
  /** Hash of each block alone, 2 u32 per block. */
  readonly local: Uint32Array;
  /** Hash of each block and all before it, 2 u32 per block. */
  readonly sequence: Uint32Array;
}

export interface BlockHasher {
  /** Hashes a prompt. Throws `invalid_request` when one block exceeds the input area (256 KiB). */
  hashBlocks(tokens: Uint32Array, blockSize: number, options?: BlockHashOptions): BlockHashes;
  /**
   * Chains in place: `hashes` entries [from, to) are local hashes and become sequence hashes, each
   * from the entry before it. Entry 0 is its own sequence hash, so `from` is at least 1.
   */
  chain(hashes: Uint32Array, from: number, to: number): void;
  /** XXH3-64 of the UTF-8 bytes. */
  hashText(text: string, seed: number): U64;
  /** Hash of an image or audio identifier; `undefined` for an empty one. */
  hashMmIdentifier(identifier: string): U64 | undefined;
}

const blockSeed = 1337;
const loraSeed = 0;
const saltSeed = 1;
/** Tokens are hashed in runs that stay in the nearest caches. */
const runBytesMax = 64 * 1024;
const hexDigest = /^[0-9a-f]{64}$/i;

/** A hasher on the fast core where that can be had; instances share nothing. */
export async function loadBlockHasher(): Promise<BlockHasher> {
  return createBlockHasher((await loadFastCore("auto")).core);
}

/** A hasher on an instance of its own of the fast core; `undefined` = in TypeScript. */
export function createBlockHasher(core: FastCore | undefined): BlockHasher {
  const xxh3 = core ? createFastXxh3(core) : createPlainXxh3();
  return {
    hashBlocks: (tokens, blockSize, options = {}) => hashBlocks(xxh3, tokens, blockSize, options),
    chain: (hashes, from, to) => chain(xxh3, hashes, from, to),
    hashText: (text, seed) => hashText(xxh3, text, seed),
    hashMmIdentifier(identifier) {
      if (identifier === "") return undefined;
      if (!hexDigest.test(identifier)) return hashText(xxh3, identifier, 0);
      const hi = Number.parseInt(identifier.slice(0, 8), 16);
      return { lo: Number.parseInt(identifier.slice(8, 16), 16), hi };
    },
  };
}

function hashBlocks(
  xxh3: Xxh3,
  tokens: Uint32Array,
  blockSize: number,
  options: BlockHashOptions,
): BlockHashes {
  const extra = options.eagle ? 1 : 0;
  const blocks = blockSize > 0 ? Math.max(0, Math.floor((tokens.length - extra) / blockSize)) : 0;
  const local = new Uint32Array(2 * blocks);
  const sequence = new Uint32Array(2 * blocks);
  const windowTokens = blockSize + extra;
  if (blocks > 0) {
    if (4 * windowTokens > inputBytesMax) throw tooLong(4 * windowTokens);
    const seed = seedOf(xxh3, options);
    xxh3.seed(seed.lo, seed.hi);
  }
  const run = { blockSize, windowTokens, mmInfos: options.mmInfos };
  const fits = Math.max(1, Math.floor((runBytesMax / 4 - extra) / blockSize));
  for (let first = 0; first < blocks; first += fits) {
    const count = Math.min(fits, blocks - first);
    hashRun(xxh3, tokens, run, first, count);
    const words = 2 * count;
    local.set(xxh3.output.subarray(2, 2 + words), 2 * first);
    if (first > 0) xxh3.output.set(sequence.subarray(2 * first - 2, 2 * first));
    xxh3.chain(first > 0 ? 1 : 2, count + 1);
    sequence.set(xxh3.output.subarray(2, 2 + words), 2 * first);
  }
  return { blocks, local, sequence };
}

interface Run {
  readonly blockSize: number;
  readonly windowTokens: number;
  readonly mmInfos: readonly BlockMmInfo[] | undefined;
}

/** Local hashes of blocks [first, first + count) to output entries from 1. */
function hashRun(xxh3: Xxh3, tokens: Uint32Array, run: Run, first: number, count: number): void {
  const { blockSize, windowTokens, mmInfos } = run;
  const start = first * blockSize;
  xxh3.inputWords.set(tokens.subarray(start, start + (count - 1) * blockSize + windowTokens));
  xxh3.windows(count, 4 * windowTokens, 4 * blockSize);
  if (!mmInfos) return;
  const end = Math.min(first + count, mmInfos.length);
  for (let block = first; block < end; block++) {
    const objects = mmInfos[block]?.mmObjects;
    if (!objects || objects.length === 0) continue;
    const from = block * blockSize;
    const bytes = putMmBlock(xxh3, tokens.subarray(from, from + windowTokens), objects);
    xxh3.one(bytes, block - first + 1);
  }
}

/** Puts a block's tokens and the hashes of its objects, ascending, into the input; its bytes. */
function putMmBlock(xxh3: Xxh3, window: Uint32Array, objects: readonly MmObject[]): number {
  const bytes = 4 * window.length + 8 * objects.length;
  if (bytes > inputBytesMax) throw tooLong(bytes);
  xxh3.inputWords.set(window);
  let word = window.length;
  for (const { lo, hi } of objects.map((object) => object.mmHash).sort(compareU64)) {
    xxh3.inputWords[word++] = lo;
    xxh3.inputWords[word++] = hi;
  }
  return bytes;
}

function tooLong(bytes: number): TiergridError {
  const message = `one block hashes at most ${inputBytesMax} bytes, got ${bytes}`;
  return new TiergridError("invalid_request", message, { bytes, max: inputBytesMax });
}

function chain(xxh3: Xxh3, hashes: Uint32Array, from: number, to: number): void {
  const { output } = xxh3;
  for (let first = from; first < to; first += hashesMax - 1) {
    const end = Math.min(to, first + hashesMax - 1);
    const words = 2 * (end - first + 1);
    if (words <= 16) {
      // Events of a few blocks are frequent; making a view costs more than copying them.
      for (let word = 0; word < words; word++) output[word] = hashes[2 * first - 2 + word] ?? 0;
      xxh3.chain(1, end - first + 1);
      for (let word = 2; word < words; word++) hashes[2 * first - 2 + word] = output[word] ?? 0;
    } else {
      output.set(hashes.subarray(2 * first - 2, 2 * end));
      xxh3.chain(1, end - first + 1);
      hashes.set(output.subarray(2, words), 2 * first);
    }
  }
}

function seedOf(xxh3: Xxh3, options: BlockHashOptions): U64 {
  let seed: U64 = { lo: blockSeed, hi: 0 };
  if (options.loraName) seed = addU64(seed, hashText(xxh3, options.loraName, loraSeed));
  if (options.cacheSalt) seed = addU64(seed, hashText(xxh3, options.cacheSalt, saltSeed));
  return seed;
}

function addU64(a: U64, b: U64): U64 {
  const lo = a.lo + b.lo;
  return { lo: lo >>> 0, hi: (a.hi + b.hi + (lo > 0xffff_ffff ? 1 : 0)) >>> 0 };
}

function hashText(xxh3: Xxh3, text: string, seed: number): U64 {
  const bytes = Buffer.from(text, "utf8");
  if (bytes.length > inputBytesMax) throw tooLong(bytes.length);
  xxh3.inputBytes.set(bytes);
  xxh3.seed(seed, 0);
  xxh3.one(bytes.length, 0);
  return { lo: xxh3.output[0] ?? 0, hi: xxh3.output[1] ?? 0 };
}
