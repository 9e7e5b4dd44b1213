/**
 * XXH3-64 as WebAssembly instructions: the algorithm multiplies 64-bit numbers, which JS has only
 * as BigInt. Formulas: the XXH3 specification (github.com/Cyan4973/xxHash/doc/xxhash_spec.md).
 * Every function of (input, bytes) reads `bytes` from address `input` and the seed from memory.
 */

import type { Code, WasmFunction } from "./wasm-assembler.ts";
import {
  aboveInt,
  add,
  addInt,
  and,
  assembleModule,
  call,
  doWhile,
  get,
  giveBack,
  high32,
  i32,
  i64,
  ifThen,
  int,
  isZero,
  left,
  lessInt,
  load8,
  load32,
  load64,
  long,
  low32,
  mul,
  or,
  right,
  rotate,
  set,
  shiftInt,
  store64,
  sub,
  subInt,
  widen,
  xor,
} from "./wasm-assembler.ts";
import { derivedAt, inputAt, outputAt, seedAt } from "./xxh3-layout.ts";

export const xxh3SecretHex: string =
  "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f" +
  "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c" +
  "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8" +
  "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364" +
  "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e" +
  "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e";

const prime32x1 = 0x9e3779b1n;
const prime32x2 = 0x85ebca77n;
const prime32x3 = 0xc2b2ae3dn;
const prime64x1 = 0x9e3779b185ebca87n;
const prime64x2 = 0xc2b2ae3d27d4eb4fn;
const prime64x3 = 0x165667b19e3779f9n;
const prime64x4 = 0x85ebca77c2b2ae63n;
const prime64x5 = 0x27d4eb2f165667c5n;
const primeMix1 = 0x165667919e3779f9n;
const primeMix2 = 0x9fb21c651e98df25n;

const secret = (offset: number): Code => load64(int(0), offset);
const seed: Code = load64(int(0), seedAt);

/** local ^= local >> bits */
const xorShift = (local: number, bits: bigint): Code =>
  set(local, xor(get(local), right(get(local), long(bits))));

// Functions by their index in `functions`.
const fold = 0;
const avalanche = 1;
const avalanche64 = 2;
const swap = 3;
const shortHash = 4;
const midHash = 5;
const longHash = 6;
const hash = 7;

/** Locals a, b -> low ^ high half of their 128-bit product, from four 32 x 32 products; t..t+3. */
const foldOf = (a: number, b: number, t: number): Code => [
  ...set(t, mul(low32(get(a)), low32(get(b)))),
  ...set(t + 1, mul(high32(get(a)), low32(get(b)))),
  ...set(t + 2, mul(low32(get(a)), high32(get(b)))),
  ...set(t + 3, add(add(high32(get(t)), low32(get(t + 1))), get(t + 2))),
  ...xor(
    add(add(high32(get(t + 1)), high32(get(t + 3))), mul(high32(get(a)), high32(get(b)))),
    or(left(get(t + 3), long(32n)), low32(get(t))),
  ),
];
const foldFunction: WasmFunction = {
  params: [i64, i64],
  results: [i64],
  locals: [i64, i64, i64, i64],
  body: foldOf(0, 1, 2),
};

const avalancheFunction: WasmFunction = {
  params: [i64],
  results: [i64],
  locals: [],
  body: [
    ...xorShift(0, 37n),
    ...set(0, mul(get(0), long(primeMix1))),
    ...xorShift(0, 32n),
    ...get(0),
  ],
};

const avalanche64Function: WasmFunction = {
  params: [i64],
  results: [i64],
  locals: [],
  body: [
    ...xorShift(0, 33n),
    ...set(0, mul(get(0), long(prime64x2))),
    ...xorShift(0, 29n),
    ...set(0, mul(get(0), long(prime64x3))),
    ...xorShift(0, 32n),
    ...get(0),
  ],
};

/** Swaps neighbours of 1, 2 and 4 bytes: the byte order of 8 bytes is reversed. */
const swapStep = (bits: bigint, mask: bigint): Code =>
  set(0, or(left(and(get(0), long(mask)), long(bits)), and(right(get(0), long(bits)), long(mask))));
const swapFunction: WasmFunction = {
  params: [i64],
  results: [i64],
  locals: [],
  body: [
    ...swapStep(8n, 0x00ff00ff00ff00ffn),
    ...swapStep(16n, 0x0000ffff0000ffffn),
    ...rotate(get(0), long(32n)),
  ],
};

/** (input, bytes <= 16) -> hash. Locals: 2 keyed, 3 low, 4 high. */
const shortFunction: WasmFunction = {
  params: [i32, i32],
  results: [i64],
  locals: [i64, i64, i64],
  body: [
    ...ifThen(
      aboveInt(get(1), int(8)),
      set(3, xor(load64(get(0)), add(xor(secret(24), secret(32)), seed))),
      set(
        4,
        xor(load64(addInt(get(0), subInt(get(1), int(8)))), sub(xor(secret(40), secret(48)), seed)),
      ),
      giveBack(
        call(
          avalanche,
          add(add(widen(get(1)), call(swap, get(3))), add(get(4), call(fold, get(3), get(4)))),
        ),
      ),
    ),
    ...ifThen(
      aboveInt(get(1), int(3)),
      // The seed's low half, byte-swapped, is mixed into its high half.
      set(3, xor(seed, left(high32(call(swap, low32(seed))), long(32n)))),
      set(4, add(load32(addInt(get(0), subInt(get(1), int(4)))), left(load32(get(0)), long(32n)))),
      set(2, xor(get(4), sub(xor(secret(8), secret(16)), get(3)))),
      set(2, xor(get(2), xor(rotate(get(2), long(49n)), rotate(get(2), long(24n))))),
      set(2, mul(get(2), long(primeMix2))),
      set(2, xor(get(2), add(right(get(2), long(35n)), widen(get(1))))),
      set(2, mul(get(2), long(primeMix2))),
      giveBack(xor(get(2), right(get(2), long(28n)))),
    ),
    ...ifThen(isZero(get(1)), giveBack(call(avalanche64, xor(seed, xor(secret(56), secret(64)))))),
    ...set(3, left(load8(get(0)), long(16n))),
    ...set(3, or(get(3), left(load8(addInt(get(0), shiftInt(get(1), int(1)))), long(24n)))),
    ...set(3, or(get(3), load8(addInt(get(0), subInt(get(1), int(1)))))),
    ...set(3, or(get(3), left(widen(get(1)), long(8n)))),
    ...call(avalanche64, xor(get(3), add(xor(load32(int(0), 0), load32(int(0), 4)), seed))),
  ],
};

/** accumulator += one 16-byte lane; locals 4..9 scratch, 10 seed. */
const addMix = (accumulator: number, input: Code, secretAddress: Code): Code => [
  ...set(4, xor(load64(input), add(load64(secretAddress), get(10)))),
  ...set(5, xor(load64(input, 8), sub(load64(secretAddress, 8), get(10)))),
  ...set(accumulator, add(get(accumulator), foldOf(4, 5, 6))),
];
const fromEnd = (bytes: number): Code => subInt(addInt(get(0), get(1)), int(bytes));

/** (input, 17 to 240 bytes) -> hash. Locals: 2 accumulator, 3 round offset in bytes. */
const midFunction: WasmFunction = {
  params: [i32, i32],
  results: [i64],
  locals: [i64, i32, ...Array(7).fill(i64)],
  body: [
    ...set(10, seed),
    ...set(2, mul(widen(get(1)), long(prime64x1))),
    ...ifThen(
      aboveInt(get(1), int(128)),
      ...Array.from({ length: 8 }, (_, lane) =>
        addMix(2, addInt(get(0), int(16 * lane)), int(16 * lane)),
      ),
      set(2, call(avalanche, get(2))),
      set(3, int(128)),
      ifThen(
        aboveInt(get(1), int(143)),
        doWhile(
          lessInt(addInt(get(3), int(15)), get(1)),
          addMix(2, addInt(get(0), get(3)), subInt(get(3), int(125))),
          set(3, addInt(get(3), int(16))),
        ),
      ),
      addMix(2, fromEnd(16), int(119)),
      giveBack(call(avalanche, get(2))),
    ),
    ...[96, 64, 32].flatMap((above) =>
      ifThen(
        aboveInt(get(1), int(above)),
        addMix(2, addInt(get(0), int(above / 2)), int(above)),
        addMix(2, fromEnd(above / 2 + 16), int(above + 16)),
      ),
    ),
    ...addMix(2, get(0), int(0)),
    ...addMix(2, fromEnd(16), int(16)),
    ...call(avalanche, get(2)),
  ],
};

const lanes = [0, 1, 2, 3, 4, 5, 6, 7] as const;
const lane0 = 4;
const laneStart = [
  prime32x3,
  prime64x1,
  prime64x2,
  prime64x3,
  prime64x4,
  prime32x2,
  prime64x5,
  prime32x1,
];
/** One 64-byte stripe into the eight lanes; locals 12 word, 13 keyed word. */
const stripe = (input: Code, secretAddress: Code, secretOffset = 0): Code =>
  lanes.flatMap((lane) => [
    ...set(12, load64(input, 8 * lane)),
    ...set(13, xor(get(12), load64(secretAddress, secretOffset + 8 * lane))),
    ...set(lane0 + (lane ^ 1), add(get(lane0 + (lane ^ 1)), get(12))),
    ...set(lane0 + lane, add(get(lane0 + lane), mul(low32(get(13)), high32(get(13))))),
  ]);
const scramble: Code = lanes.flatMap((lane) => [
  ...xorShift(lane0 + lane, 47n),
  ...set(
    lane0 + lane,
    mul(xor(get(lane0 + lane), load64(int(0), derivedAt + 128 + 8 * lane)), long(prime32x1)),
  ),
]);

/** (input, > 240 bytes) -> hash. Locals: 2 stripe address, 3 secret address, 4..11 lanes. */
const longFunction: WasmFunction = {
  params: [i32, i32],
  results: [i64],
  locals: [i32, i32, ...Array(10).fill(i64)],
  body: [
    ...lanes.flatMap((lane) => set(lane0 + lane, long(laneStart[lane] ?? 0n))),
    ...set(2, get(0)),
    ...set(3, int(derivedAt)),
    ...doWhile(
      lessInt(addInt(get(2), int(64)), addInt(get(0), get(1))),
      stripe(get(2), get(3)),
      set(2, addInt(get(2), int(64))),
      set(3, addInt(get(3), int(8))),
      ifThen(isZero(subInt(get(3), int(derivedAt + 128))), scramble, set(3, int(derivedAt))),
    ),
    ...stripe(fromEnd(64), int(0), derivedAt + 121),
    ...set(12, mul(widen(get(1)), long(prime64x1))),
    ...[0, 1, 2, 3].flatMap((pair) =>
      set(
        12,
        add(
          get(12),
          call(
            fold,
            xor(get(lane0 + 2 * pair), secret(derivedAt + 11 + 16 * pair)),
            xor(get(lane0 + 2 * pair + 1), secret(derivedAt + 19 + 16 * pair)),
          ),
        ),
      ),
    ),
    ...call(avalanche, get(12)),
  ],
};

const hashFunction: WasmFunction = {
  params: [i32, i32],
  results: [i64],
  locals: [],
  body: [
    ...ifThen(aboveInt(get(1), int(240)), giveBack(call(longHash, get(0), get(1)))),
    ...ifThen(aboveInt(get(1), int(16)), giveBack(call(midHash, get(0), get(1)))),
    ...call(shortHash, get(0), get(1)),
  ],
};

const chainSeed = 1337n;
const secretWord = (offset: number): bigint =>
  Buffer.from(xxh3SecretHex, "hex").readBigUInt64LE(offset);
const chainFlipLow = (secretWord(24) ^ secretWord(32)) + chainSeed;
const chainFlipHigh = (secretWord(40) ^ secretWord(48)) - chainSeed;

/**
 * (from, to) -> replaces each u64 of [from, to) by the 16-byte hash of (the u64 before it, itself),
 * with the chain's constant seed. Locals: 2 hash of the entry before, 3 low, 4 high, 5.. scratch.
 */
const chainFunction: WasmFunction = {
  params: [i32, i32],
  results: [],
  locals: Array(7).fill(i64),
  body: [
    ...ifThen(isZero(lessInt(get(0), get(1))), [0x0f]),
    ...set(2, load64(subInt(get(0), int(8)))),
    ...doWhile(
      lessInt(get(0), get(1)),
      set(3, xor(get(2), long(chainFlipLow))),
      set(4, xor(load64(get(0)), long(chainFlipHigh))),
      set(
        2,
        call(avalanche, add(add(long(16n), call(swap, get(3))), add(get(4), foldOf(3, 4, 5)))),
      ),
      store64(get(0), get(2)),
      set(0, addInt(get(0), int(8))),
    ),
  ],
};

/** (count > 0, window bytes, stride bytes) -> hashes of the windows, into the output area. */
const windowsFunction: WasmFunction = {
  params: [i32, i32, i32],
  results: [],
  locals: [i32, i32],
  body: [
    ...set(3, int(inputAt)),
    ...set(4, int(outputAt)),
    ...set(0, addInt(get(4), [...get(0), ...int(3), 0x74])),
    ...doWhile(
      lessInt(get(4), get(0)),
      store64(get(4), call(hash, get(3), get(1))),
      set(3, addInt(get(3), get(2))),
      set(4, addInt(get(4), int(8))),
    ),
  ],
};

/** () -> makes the derived secret of the seed. */
const deriveFunction: WasmFunction = {
  params: [],
  results: [],
  locals: [],
  body: Array.from({ length: 12 }, (_, pair) => [
    ...store64(int(0), add(secret(16 * pair), seed), derivedAt + 16 * pair),
    ...store64(int(0), sub(secret(16 * pair + 8), seed), derivedAt + 16 * pair + 8),
  ]).flat(),
};

const functions = [
  foldFunction,
  avalancheFunction,
  avalanche64Function,
  swapFunction,
  shortFunction,
  midFunction,
  longFunction,
  hashFunction,
  windowsFunction,
  chainFunction,
  deriveFunction,
];

/** The module's bytes. */
export function assembleXxh3(pages: number): Uint8Array<ArrayBuffer> {
  const exports = { windows: windowsFunction, chain: chainFunction, derive: deriveFunction };
  return assembleModule({ functions, pages, exports });
}
