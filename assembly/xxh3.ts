/**
 * XXH3-64 for every length, and the two loops over it: blocks of a prompt, links of a chain.
 * Formulas: the XXH3 specification (github.com/Cyan4973/xxHash/doc/xxhash_spec.md).
 *
 *   secret    192 bytes, constant               inputs of 0 to 240 bytes
 *   derived   the secret with the seed mixed in  inputs above 240 bytes; follows `reseed`
 */

const prime32x1: u64 = 0x9e3779b1;
const prime32x2: u64 = 0x85ebca77;
const prime32x3: u64 = 0xc2b2ae3d;
const prime64x1: u64 = 0x9e3779b185ebca87;
const prime64x2: u64 = 0xc2b2ae3d27d4eb4f;
const prime64x3: u64 = 0x165667b19e3779f9;
const prime64x4: u64 = 0x85ebca77c2b2ae63;
const prime64x5: u64 = 0x27d4eb2f165667c5;
const primeMix1: u64 = 0x165667919e3779f9;
const primeMix2: u64 = 0x9fb21c651e98df25;
const chainSeed: u64 = 1337;

const secretBytes: usize = 192;
// biome-ignore format: rows of 16 bytes
const secret: usize = memory.data<u64>([
  0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072,
  0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82, 0x8e2443f7744608b8, 0x4c263a81e69035e0,
  0xcb00c391bb52283c, 0xa32e531b8b65d088, 0x4ef90da297486471, 0xd8acdea946ef1938,
  0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a, 0x647378d9c97e9fc8,
  0xc3ebd33483acc5ea, 0xeb6313faffa081c5, 0x49daf0b751dd0d17, 0x9e68d429265516d3,
  0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af,
]);
const derived: usize = memory.data(192, 16);
const stripeBytes: usize = 64;
/** Stripes between two scrambles: the secret moves 8 bytes with each. */
const blockStripes: usize = (secretBytes - stripeBytes) / 8;

let seed: u64 = 0;

/** Every later hash uses this seed. */
export function reseed(value: u64): void {
  seed = value;
  for (let at: usize = 0; at < secretBytes; at += 16) {
    store<u64>(derived + at, load<u64>(secret + at) + value);
    store<u64>(derived + at + 8, load<u64>(secret + at + 8) - value);
  }
}

/** Hash of `bytes` bytes at `at`. */
export function hash(at: usize, bytes: usize): u64 {
  if (bytes <= 16) return hashShort(at, bytes);
  if (bytes <= 128) return hashMiddle(at, bytes);
  if (bytes <= 240) return hashLongMiddle(at, bytes);
  return hashLong(at, bytes);
}

/** Hash of 64 bytes: what `hashMiddle` does, without its branches. */
// @ts-expect-error: decorator
@inline
export function hash64(at: usize): u64 {
  const sum =
    mix(at, 0) + mix(at + 48, 16) + mix(at + 16, 32) + mix(at + 32, 48) + 64 * prime64x1;
  return avalanche(sum);
}

/** Hash of 256 bytes: what `hashLong` does, without its loop. */
// @ts-expect-error: decorator
@inline
export function hash256(at: usize): u64 {
  startLanes();
  stripe(at, derived);
  stripe(at + 64, derived + 8);
  stripe(at + 128, derived + 16);
  stripe(at + 192, derived + 121);
  return merge(256);
}

/** Sequence hash of a block: the hash of the 16 bytes (`before`, `local`) with the chain's seed. */
// @ts-expect-error: decorator
@inline
export function link(before: u64, local: u64): u64 {
  const low = before ^ ((load<u64>(secret, 24) ^ load<u64>(secret, 32)) + chainSeed);
  const high = local ^ ((load<u64>(secret, 40) ^ load<u64>(secret, 48)) - chainSeed);
  return avalanche(16 + bswap<u64>(low) + high + fold(low, high));
}

/** Low ^ high half of the 128-bit product, from four 32 x 32 products. */
// @ts-expect-error: decorator
@inline
function fold(a: u64, b: u64): u64 {
  const aLow = a & 0xffffffff;
  const aHigh = a >> 32;
  const bLow = b & 0xffffffff;
  const bHigh = b >> 32;
  const low = aLow * bLow;
  const cross = aHigh * bLow;
  const middle = (low >> 32) + (cross & 0xffffffff) + aLow * bHigh;
  const high = (cross >> 32) + (middle >> 32) + aHigh * bHigh;
  return high ^ ((middle << 32) | (low & 0xffffffff));
}

// @ts-expect-error: decorator
@inline
function avalanche(value: u64): u64 {
  const mixed = (value ^ (value >> 37)) * primeMix1;
  return mixed ^ (mixed >> 32);
}

function avalanche64(value: u64): u64 {
  value = (value ^ (value >> 33)) * prime64x2;
  value = (value ^ (value >> 29)) * prime64x3;
  return value ^ (value >> 32);
}

/** 16 bytes at `at`, keyed with 16 bytes of the secret. */
// @ts-expect-error: decorator
@inline
function mix(at: usize, secretAt: usize): u64 {
  return fold(
    load<u64>(at) ^ (load<u64>(secret + secretAt) + seed),
    load<u64>(at, 8) ^ (load<u64>(secret + secretAt, 8) - seed),
  );
}

function hashShort(at: usize, bytes: usize): u64 {
  if (bytes > 8) {
    const low = load<u64>(at) ^ ((load<u64>(secret, 24) ^ load<u64>(secret, 32)) + seed);
    const end = load<u64>(at + bytes - 8);
    const high = end ^ ((load<u64>(secret, 40) ^ load<u64>(secret, 48)) - seed);
    return avalanche(<u64>bytes + bswap<u64>(low) + high + fold(low, high));
  }
  if (bytes > 3) {
    const mixedSeed = seed ^ ((<u64>bswap<u32>(<u32>seed)) << 32);
    const input = <u64>load<u32>(at + bytes - 4) + ((<u64>load<u32>(at)) << 32);
    let value = input ^ ((load<u64>(secret, 8) ^ load<u64>(secret, 16)) - mixedSeed);
    value ^= rotl<u64>(value, 49) ^ rotl<u64>(value, 24);
    value *= primeMix2;
    value ^= (value >> 35) + <u64>bytes;
    value *= primeMix2;
    return value ^ (value >> 28);
  }
  if (bytes === 0) return avalanche64(seed ^ load<u64>(secret, 56) ^ load<u64>(secret, 64));
  const first = (<u64>load<u8>(at)) << 16;
  const middle = (<u64>load<u8>(at + (bytes >> 1))) << 24;
  const last = <u64>load<u8>(at + bytes - 1);
  const key = <u64>(load<u32>(secret) ^ load<u32>(secret, 4)) + seed;
  return avalanche64((first | middle | last | ((<u64>bytes) << 8)) ^ key);
}

/** 17 to 128 bytes: pairs of lanes from both ends inwards. */
function hashMiddle(at: usize, bytes: usize): u64 {
  const end = at + bytes;
  let sum = <u64>bytes * prime64x1 + mix(at, 0) + mix(end - 16, 16);
  if (bytes > 32) sum += mix(at + 16, 32) + mix(end - 32, 48);
  if (bytes > 64) sum += mix(at + 32, 64) + mix(end - 48, 80);
  if (bytes > 96) sum += mix(at + 48, 96) + mix(end - 64, 112);
  return avalanche(sum);
}

/** 129 to 240 bytes: lanes in order; from the ninth on the secret starts again at byte 3. */
function hashLongMiddle(at: usize, bytes: usize): u64 {
  let sum = <u64>bytes * prime64x1;
  let lane: usize = 0;
  for (; lane < 128; lane += 16) sum += mix(at + lane, lane);
  sum = avalanche(sum);
  for (; lane + 16 <= bytes; lane += 16) sum += mix(at + lane, lane - 125);
  return avalanche(sum + mix(at + bytes - 16, 119));
}

// The eight 64-bit lanes of `hashLong`; the optimizer keeps them in registers where it inlines.
let lanes01: v128 = i64x2(0, 0);
let lanes23: v128 = i64x2(0, 0);
let lanes45: v128 = i64x2(0, 0);
let lanes67: v128 = i64x2(0, 0);

/** Above 240 bytes: stripes of 64 bytes into eight lanes, scrambled after every 16. */
function hashLong(at: usize, bytes: usize): u64 {
  startLanes();
  const lastStripe = at + bytes - stripeBytes;
  let step: usize = 0;
  for (; at < lastStripe; at += stripeBytes) {
    stripe(at, derived + 8 * step);
    if (++step < blockStripes) continue;
    scramble();
    step = 0;
  }
  stripe(lastStripe, derived + 121);
  return merge(bytes);
}

// @ts-expect-error: decorator
@inline
function startLanes(): void {
  lanes01 = i64x2(prime32x3, prime64x1);
  lanes23 = i64x2(prime64x2, prime64x3);
  lanes45 = i64x2(prime64x4, prime32x2);
  lanes67 = i64x2(prime64x5, prime32x1);
}

// @ts-expect-error: decorator
@inline
function stripe(at: usize, key: usize): void {
  lanes01 = accumulate(lanes01, at, key);
  lanes23 = accumulate(lanes23, at + 16, key + 16);
  lanes45 = accumulate(lanes45, at + 32, key + 32);
  lanes67 = accumulate(lanes67, at + 48, key + 48);
}

/** Two lanes: each takes its neighbour's input and the product of its keyed input's halves. */
// @ts-expect-error: decorator
@inline
function accumulate(lanes: v128, at: usize, key: usize): v128 {
  const input = v128.load(at);
  const keyed = v128.xor(input, v128.load(key));
  const swapped = v128.shuffle<u64>(input, input, 1, 0);
  const product = i64x2.extmul_low_i32x4_u(
    v128.shuffle<u32>(keyed, keyed, 0, 2, 0, 2),
    v128.shuffle<u32>(keyed, keyed, 1, 3, 1, 3),
  );
  return i64x2.add(lanes, i64x2.add(swapped, product));
}

function scramble(): void {
  const key = derived + secretBytes - stripeBytes;
  lanes01 = scrambled(lanes01, key);
  lanes23 = scrambled(lanes23, key + 16);
  lanes45 = scrambled(lanes45, key + 32);
  lanes67 = scrambled(lanes67, key + 48);
}

// @ts-expect-error: decorator
@inline
function scrambled(lanes: v128, key: usize): v128 {
  const mixed = v128.xor(v128.xor(lanes, i64x2.shr_u(lanes, 47)), v128.load(key));
  return i64x2.mul(mixed, i64x2.splat(prime32x1));
}

// @ts-expect-error: decorator
@inline
function merge(bytes: usize): u64 {
  let sum = <u64>bytes * prime64x1;
  sum += mergePair(lanes01, 11) + mergePair(lanes23, 27);
  sum += mergePair(lanes45, 43) + mergePair(lanes67, 59);
  return avalanche(sum);
}

// @ts-expect-error: decorator
@inline
function mergePair(lanes: v128, keyAt: usize): u64 {
  return fold(
    i64x2.extract_lane(lanes, 0) ^ load<u64>(derived + keyAt),
    i64x2.extract_lane(lanes, 1) ^ load<u64>(derived + keyAt + 8),
  );
}
