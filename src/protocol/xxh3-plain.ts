/**
 * XXH3-64 as its specification reads (github.com/Cyan4973/xxHash/doc/xxhash_spec.md), on BigInt:
 * the oracle of the fast core and what serves where the module is missing. Hundreds of times as
 * slow.
 */
import { hashesMax, inputBytesMax, type Xxh3 } from "./xxh3.ts";

const prime32 = [0x9e3779b1n, 0x85ebca77n, 0xc2b2ae3dn] as const;
const prime64 = [
  0x9e3779b185ebca87n,
  0xc2b2ae3d27d4eb4fn,
  0x165667b19e3779f9n,
  0x85ebca77c2b2ae63n,
  0x27d4eb2f165667c5n,
] as const;
const primeMix = [0x165667919e3779f9n, 0x9fb21c651e98df25n] as const;
const laneStart: readonly bigint[] = [
  ...[prime32[2], prime64[0], prime64[1], prime64[2]],
  ...[prime64[3], prime32[1], prime64[4], prime32[0]],
];
const secretBytes = 192;
const stripeBytes = 64;
const stripesBetweenScrambles = (secretBytes - stripeBytes) / 8;
const chainSeed = 1337n;
const low32 = 0xffff_ffffn;

const secret: DataView = viewOf(
  Buffer.from(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f" +
      "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c" +
      "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8" +
      "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364" +
      "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e" +
      "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e",
    "hex",
  ),
);

/** XXH3-64 of the bytes under a seed in [0, 2^64). */
export function xxh3(bytes: Uint8Array, seed: bigint): bigint {
  const input = viewOf(bytes);
  if (bytes.length <= 16) return hashShort(input, seed);
  if (bytes.length <= 240) return hashMiddle(input, seed);
  return hashLong(input, seed);
}

/** The whole interface on one buffer. */
export function createPlainXxh3(): Xxh3 {
  const inputBytes = new Uint8Array(inputBytesMax);
  const output = new Uint32Array(2 * hashesMax);
  const entries = new DataView(output.buffer);
  let seed = 0n;
  const hashTo = (entry: number, from: number, bytes: number): void => {
    entries.setBigUint64(8 * entry, xxh3(inputBytes.subarray(from, from + bytes), seed), true);
  };
  return {
    inputBytes,
    inputWords: new Uint32Array(inputBytes.buffer),
    output,
    seed(lo, hi) {
      seed = (BigInt(hi) << 32n) | BigInt(lo);
    },
    windows(count, windowBytes, strideBytes) {
      for (let i = 0; i < count; i++) hashTo(i + 1, i * strideBytes, windowBytes);
    },
    one: (bytes, entry) => hashTo(entry, 0, bytes),
    chain(from, to) {
      for (let i = from; i < to; i++) {
        const pair = new Uint8Array(output.buffer, 8 * (i - 1), 16);
        entries.setBigUint64(8 * i, xxh3(pair, chainSeed), true);
      }
    },
  };
}

function hashShort(input: DataView, seed: bigint): bigint {
  const bytes = input.byteLength;
  if (bytes > 8) {
    const low = word(input, 0) ^ u64((word(secret, 24) ^ word(secret, 32)) + seed);
    const high = word(input, bytes - 8) ^ u64((word(secret, 40) ^ word(secret, 48)) - seed);
    return avalanche(BigInt(bytes) + byteSwapped(low) + high + fold(low, high));
  }
  if (bytes > 3) {
    const mixedSeed = seed ^ ((byteSwapped(seed & low32) >> 32n) << 32n);
    const ends = u32(input, bytes - 4) + (u32(input, 0) << 32n);
    let value = ends ^ u64((word(secret, 8) ^ word(secret, 16)) - mixedSeed);
    value = u64((value ^ rotated(value, 49n) ^ rotated(value, 24n)) * primeMix[1]);
    value = u64((value ^ ((value >> 35n) + BigInt(bytes))) * primeMix[1]);
    return value ^ (value >> 28n);
  }
  if (bytes === 0) return avalanche64(seed ^ word(secret, 56) ^ word(secret, 64));
  const first = BigInt(input.getUint8(0));
  const middle = BigInt(input.getUint8(bytes >> 1));
  const last = BigInt(input.getUint8(bytes - 1));
  const all = (first << 16n) | (middle << 24n) | last | (BigInt(bytes) << 8n);
  return avalanche64(all ^ u64((u32(secret, 0) ^ u32(secret, 4)) + seed));
}

/** 17 to 240 bytes: 16-byte lanes, from both ends inwards up to 128 bytes, in order above. */
function hashMiddle(input: DataView, seed: bigint): bigint {
  const bytes = input.byteLength;
  const mix = (at: number, key: number): bigint =>
    fold(
      word(input, at) ^ u64(word(secret, key) + seed),
      word(input, at + 8) ^ u64(word(secret, key + 8) - seed),
    );
  let sum = BigInt(bytes) * prime64[0];
  if (bytes <= 128) {
    const pairs = Math.ceil(bytes / 32);
    for (let pair = 0; pair < pairs; pair++) {
      sum += mix(16 * pair, 32 * pair) + mix(bytes - 16 * pair - 16, 32 * pair + 16);
    }
    return avalanche(sum);
  }
  for (let at = 0; at < 128; at += 16) sum += mix(at, at);
  sum = avalanche(sum);
  for (let at = 128; at + 16 <= bytes; at += 16) sum += mix(at, at - 125);
  return avalanche(sum + mix(bytes - 16, 119));
}

/** Stripes of 64 bytes into eight lanes, under a secret that the seed changes. */
function hashLong(input: DataView, seed: bigint): bigint {
  const bytes = input.byteLength;
  const key = viewOf(new Uint8Array(secretBytes));
  for (let at = 0; at < secretBytes; at += 16) {
    key.setBigUint64(at, u64(word(secret, at) + seed), true);
    key.setBigUint64(at + 8, u64(word(secret, at + 8) - seed), true);
  }
  const lanes = [...laneStart];
  const add = (lane: number, value: bigint): void => {
    lanes[lane] = u64((lanes[lane] ?? 0n) + value);
  };
  const stripe = (at: number, keyAt: number): void => {
    for (let lane = 0; lane < 8; lane++) {
      const value = word(input, at + 8 * lane);
      const keyed = value ^ word(key, keyAt + 8 * lane);
      add(lane ^ 1, value);
      add(lane, (keyed & low32) * (keyed >> 32n));
    }
  };
  let step = 0;
  for (let at = 0; at + stripeBytes < bytes; at += stripeBytes) {
    stripe(at, 8 * step++);
    if (step < stripesBetweenScrambles) continue;
    lanes.forEach((value, lane) => {
      const mixed = value ^ (value >> 47n) ^ word(key, secretBytes - stripeBytes + 8 * lane);
      lanes[lane] = u64(mixed * prime32[0]);
    });
    step = 0;
  }
  stripe(bytes - stripeBytes, 121);
  let sum = BigInt(bytes) * prime64[0];
  for (let lane = 0; lane < 8; lane += 2) {
    const low = (lanes[lane] ?? 0n) ^ word(key, 11 + 8 * lane);
    sum += fold(low, (lanes[lane + 1] ?? 0n) ^ word(key, 19 + 8 * lane));
  }
  return avalanche(sum);
}

/** Low ^ high half of the 128-bit product. */
function fold(a: bigint, b: bigint): bigint {
  const product = a * b;
  return u64(product) ^ (product >> 64n);
}

function avalanche(sum: bigint): bigint {
  const value = u64(sum);
  const mixed = u64((value ^ (value >> 37n)) * primeMix[0]);
  return mixed ^ (mixed >> 32n);
}

function avalanche64(start: bigint): bigint {
  let value = u64((start ^ (start >> 33n)) * prime64[1]);
  value = u64((value ^ (value >> 29n)) * prime64[2]);
  return value ^ (value >> 32n);
}

function rotated(value: bigint, bits: bigint): bigint {
  return u64(value << bits) | (value >> (64n - bits));
}

function byteSwapped(value: bigint): bigint {
  const bytes = viewOf(new Uint8Array(8));
  bytes.setBigUint64(0, value, true);
  return bytes.getBigUint64(0, false);
}

function u64(value: bigint): bigint {
  return BigInt.asUintN(64, value);
}

function word(view: DataView, at: number): bigint {
  return view.getBigUint64(at, true);
}

function u32(view: DataView, at: number): bigint {
  return BigInt(view.getUint32(at, true));
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
