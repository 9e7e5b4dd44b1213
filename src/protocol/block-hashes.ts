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
import type { BlockMmInfo } from "./mm-hash.ts";
import type { U64 } from "./u64.ts";
import { compareU64 } from "./u64.ts";
import type { Xxh3 } from "./xxh3.ts";
import { loadXxh3 } from "./xxh3.ts";
import { hashesMax, inputBytesMax } from "./xxh3-layout.ts";

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
const hexDigest = /^[0-9a-f]{64}$/i;

/** Starts the hasher of a process; instances share nothing. */
export async function loadBlockHasher(): Promise<BlockHasher> {
  const xxh3 = await loadXxh3();
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
  const windowTokens = blockSize + extra;
  if (blocks > 0) {
    if (4 * windowTokens > inputBytesMax) throw tooLong(4 * windowTokens);
    const seed = seedOf(xxh3, options);
    xxh3.seed(seed.lo, seed.hi);
    hashWindows(xxh3, tokens, { blockSize, windowTokens }, local);
    if (options.mmInfos)
      hashMmBlocks(xxh3, tokens, { blockSize, windowTokens }, local, options.mmInfos);
  }
  const sequence = local.slice();
  chain(xxh3, sequence, 1, blocks);
  return { blocks, local, sequence };
}

interface Window {
  readonly blockSize: number;
  readonly windowTokens: number;
}

/** Hashes every block without its objects, as many at a time as the input area holds. */
function hashWindows(xxh3: Xxh3, tokens: Uint32Array, window: Window, local: Uint32Array): void {
  const { blockSize, windowTokens } = window;
  const fits = Math.floor((inputBytesMax / 4 - windowTokens) / blockSize) + 1;
  const blocks = local.length / 2;
  for (let first = 0; first < blocks; first += fits) {
    const count = Math.min(fits, blocks - first);
    const start = first * blockSize;
    xxh3.inputWords.set(tokens.subarray(start, start + (count - 1) * blockSize + windowTokens));
    xxh3.windows(count, 4 * windowTokens, 4 * blockSize);
    local.set(xxh3.output.subarray(0, 2 * count), 2 * first);
  }
}

/** Hashes the blocks that have objects again, with the objects' hashes behind the tokens. */
function hashMmBlocks(
  xxh3: Xxh3,
  tokens: Uint32Array,
  window: Window,
  local: Uint32Array,
  mmInfos: readonly BlockMmInfo[],
): void {
  const { blockSize, windowTokens } = window;
  const blocks = Math.min(local.length / 2, mmInfos.length);
  for (let block = 0; block < blocks; block++) {
    const objects = mmInfos[block]?.mmObjects;
    if (!objects || objects.length === 0) continue;
    const bytes = 4 * windowTokens + 8 * objects.length;
    if (bytes > inputBytesMax) throw tooLong(bytes);
    const start = block * blockSize;
    xxh3.inputWords.set(tokens.subarray(start, start + windowTokens));
    let word = windowTokens;
    for (const { lo, hi } of objects.map((object) => object.mmHash).sort(compareU64)) {
      xxh3.inputWords[word++] = lo;
      xxh3.inputWords[word++] = hi;
    }
    xxh3.windows(1, bytes, 0);
    local.set(xxh3.output.subarray(0, 2), 2 * block);
  }
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
  xxh3.windows(1, bytes.length, 0);
  return { lo: xxh3.output[0] ?? 0, hi: xxh3.output[1] ?? 0 };
}
