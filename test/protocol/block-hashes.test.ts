import { xxh3 as native } from "@node-rs/xxhash";
import fc from "fast-check";
import { createXXHash3 } from "hash-wasm";
import { describe, expect, it } from "vitest";
import { loadFastCore } from "../../src/base/fast-core.ts";
import { createBlockHasher } from "../../src/protocol/block-hashes.ts";
import { sglangPadToken, splitMmObjects } from "../../src/protocol/mm-hash.ts";
import { formatU64, lanesOfBigInt, readU64Decimal } from "../../src/protocol/u64.ts";
import type { Xxh3 } from "../../src/protocol/xxh3.ts";
import { createFastXxh3 } from "../../src/protocol/xxh3-fast.ts";
import { createPlainXxh3 } from "../../src/protocol/xxh3-plain.ts";
import vectors from "../golden/block-hashes.json" with { type: "json" };

const { core } = await loadFastCore("wasm");
const cores = [
  { name: "fast core", hasher: createBlockHasher(core), xxh3: createFastXxh3(core!) },
  { name: "TypeScript", hasher: createBlockHasher(undefined), xxh3: createPlainXxh3() },
] as const;

const u64 = (text: string) => {
  const lanes = readU64Decimal(text);
  if (!lanes) throw new Error(`not a u64: ${text}`);
  return lanes;
};
const texts = (lanes: Uint32Array): string[] =>
  Array.from({ length: lanes.length / 2 }, (_, i) => formatU64(lanes[2 * i]!, lanes[2 * i + 1]!));

function rawHash(xxh3: Xxh3, bytes: Uint8Array, seed: bigint): bigint {
  const { lo, hi } = lanesOfBigInt(seed);
  xxh3.seed(lo, hi);
  xxh3.inputBytes.set(bytes);
  xxh3.one(bytes.length, 3);
  return (BigInt(xxh3.output[7]!) << 32n) | BigInt(xxh3.output[6]!);
}

/** Per-block native calls and a BigInt chain. */
function nativeHashes(tokens: Uint32Array, blockSize: number): string[] {
  const bytes = new Uint8Array(tokens.buffer, tokens.byteOffset, tokens.byteLength);
  const sequence: bigint[] = [];
  for (let block = 0; (block + 1) * blockSize <= tokens.length; block++) {
    const from = 4 * block * blockSize;
    const local = native.xxh64(bytes.subarray(from, from + 4 * blockSize), 1337n);
    const pair = Buffer.alloc(16);
    if (block > 0) pair.writeBigUInt64LE(sequence[block - 1]!, 0);
    pair.writeBigUInt64LE(local, 8);
    sequence.push(block === 0 ? local : native.xxh64(pair, 1337n));
  }
  return sequence.map(String);
}

interface SequenceCase {
  name: string;
  block_size: number;
  tokens: number[];
  lora_name?: string;
  cache_salt?: string;
  is_eagle?: boolean;
  block_mm_hashes?: (string[] | null)[];
  expected_local: string[];
  expected_sequence: string[];
}

interface MmObjectJson {
  mm_hash: string;
  offsets: [number, number][];
}
interface MmSplitCase {
  name: string;
  block_size: number;
  total_tokens: number;
  mm_objects: MmObjectJson[];
  expected: ({ mm_objects: MmObjectJson[] } | null)[];
}

describe.each(cores)("$name", ({ hasher, xxh3 }) => {
  it.each(vectors.raw_xxh3.cases)("XXH3 of $len bytes with seed $seed", ({ len, seed, hash }) => {
    const bytes = Uint8Array.from({ length: len }, (_, i) => (i * 131 + 7) % 256);
    expect(rawHash(xxh3, bytes, BigInt(seed))).toBe(BigInt(hash));
  });

  it.each(vectors.raw_text)("text $text with seed $seed", ({ text, seed, hash }) => {
    const { lo, hi } = hasher.hashText(text, Number(seed));
    expect(formatU64(lo, hi)).toBe(hash);
  });

  it.each(vectors.request_seeds)("seed of LoRA $lora_name, salt $cache_salt", (row) => {
    const token = Uint32Array.of(7);
    const expected = native.xxh64(new Uint8Array(token.buffer), BigInt(row.seed));
    const { local } = hasher.hashBlocks(token, 1, {
      loraName: row.lora_name ?? undefined,
      cacheSalt: row.cache_salt ?? undefined,
    });
    expect(texts(local)).toEqual([String(expected)]);
  });

  it.each(vectors.sequences as SequenceCase[])("$name", (row) => {
    const hashes = hasher.hashBlocks(Uint32Array.from(row.tokens), row.block_size, {
      loraName: row.lora_name,
      cacheSalt: row.cache_salt,
      eagle: row.is_eagle,
      mmInfos: row.block_mm_hashes?.map((block) =>
        block ? { mmObjects: block.map((hash) => ({ mmHash: u64(hash), offsets: [] })) } : null,
      ),
    });
    expect(hashes.blocks).toBe(row.expected_local.length);
    expect(texts(hashes.local)).toEqual(row.expected_local);
    expect(texts(hashes.sequence)).toEqual(row.expected_sequence);
  });

  it("chains local hashes given as lanes", () => {
    const { local, expected_sequence } = vectors.chain_from_local;
    const lanes = Uint32Array.from(local.flatMap((text) => [u64(text).lo, u64(text).hi]));
    hasher.chain(lanes, 1, local.length);
    expect(texts(lanes)).toEqual(expected_sequence);
  });

  it.each(vectors.mm_identifiers)("identifier '$identifier'", ({ identifier, mm_hash }) => {
    const hash = hasher.hashMmIdentifier(identifier);
    expect(hash ? formatU64(hash.lo, hash.hi) : null).toBe(mm_hash);
  });

  it("agrees with the published first and last hash of 32,768 tokens", () => {
    const tokens = Uint32Array.from(
      { length: 32768 },
      (_, i) => (Math.imul(i, 2654435761) >>> 0) % 128000,
    );
    const ends: Record<number, [string, string]> = {
      1: ["e44f30ed0f7bc171", "679d0ce02decb224"],
      4: ["a98b23e9ddb935b9", "d7ee462cfc43d9f5"],
      16: ["a6bfcfbdacc27f14", "1f22acaade0ba02f"],
      64: ["11c9bf4ba48d9211", "bda99bd8b53bb07a"],
    };
    for (const [blockSize, expected] of Object.entries(ends)) {
      const all = texts(hasher.hashBlocks(tokens, Number(blockSize)).sequence);
      const hex = [all[0]!, all.at(-1)!].map((text) => BigInt(text).toString(16).padStart(16, "0"));
      expect(hex).toEqual(expected);
    }
  });

  it("equals the native hash at every block size and length", () => {
    fc.assert(
      fc.property(
        fc.constantFrom(1, 2, 3, 4, 8, 16, 17, 32, 60, 64, 65, 128, 300),
        fc.uint32Array({ maxLength: 900 }),
        (blockSize, tokens) => {
          const { sequence } = hasher.hashBlocks(tokens, blockSize);
          expect(texts(sequence)).toEqual(nativeHashes(tokens, blockSize));
        },
      ),
      { numRuns: 200 },
    );
  });

  it("equals two other implementations on any bytes and seed", async () => {
    const bytes = fc.uint8Array({ maxLength: 1400 });
    await fc.assert(
      fc.asyncProperty(bytes, fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), async (input, seed) => {
        const { lo, hi } = lanesOfBigInt(seed);
        const other = (await createXXHash3(lo, hi)).update(input).digest("hex");
        const ours = rawHash(xxh3, input, seed);
        expect(ours).toBe(native.xxh64(input, seed));
        expect(ours.toString(16).padStart(16, "0")).toBe(other);
      }),
      { numRuns: 100 },
    );
  });

  it("hashes prompts longer than the input area and chains across it", () => {
    const tokens = Uint32Array.from({ length: 150_001 }, (_, i) => (i * 7919) % 100_003);
    for (const blockSize of [1, 16, 64]) {
      expect(texts(hasher.hashBlocks(tokens, blockSize).sequence)).toEqual(
        nativeHashes(tokens, blockSize),
      );
    }
  });

  it("hashes a block that fills the input area and refuses one token more", () => {
    const most = 65536;
    expect(hasher.hashBlocks(new Uint32Array(most), most).blocks).toBe(1);
    expect(() => hasher.hashBlocks(new Uint32Array(most + 1), most + 1)).toThrow("at most 262144");
  });
});

it.each(vectors.mm_split.cases as unknown as MmSplitCase[])("mm split: $name", (row) => {
  const objects = row.mm_objects.map(({ mm_hash, offsets }) => ({ mmHash: u64(mm_hash), offsets }));
  const infos = splitMmObjects(objects, row.total_tokens, row.block_size);
  const json = infos.map(
    (info) =>
      info && {
        mm_objects: info.mmObjects.map(({ mmHash, offsets }) => ({
          mm_hash: formatU64(mmHash.lo, mmHash.hi),
          offsets,
        })),
      },
  );
  expect(json).toEqual(row.expected);
});

it.each(vectors.sglang_pad_values)("pad token of $mm_hash", ({ mm_hash, pad_token }) => {
  expect(sglangPadToken(u64(mm_hash))).toBe(pad_token);
});

it.each(vectors.signed_to_unsigned)("i64 $i64 is u64 $u64", (row) => {
  const { lo, hi } = lanesOfBigInt(BigInt(row.i64));
  expect(formatU64(lo, hi)).toBe(row.u64);
});

it("reads and prints every u64 and refuses what is not one", () => {
  fc.assert(
    fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (value) => {
      const lanes = u64(String(value));
      expect(formatU64(lanes.lo, lanes.hi)).toBe(String(value));
    }),
  );
  for (const text of [
    "",
    "-1",
    "1.5",
    "01",
    "18446744073709551616",
    "99999999999999999999",
    "1e3",
  ]) {
    expect(readU64Decimal(text)).toBeUndefined();
  }
});
