/**
 * The XXH3 module of one process, assembled in memory when it starts: no binary in the tree, no
 * build step, about 3 kB.
 */
import { assembleXxh3, xxh3SecretHex } from "./xxh3-code.ts";
import { hashesMax, inputAt, inputBytesMax, outputAt, seedAt } from "./xxh3-layout.ts";

/**
 * Inputs go into `inputBytes` (or `inputWords`), hashes come out of
 * `output` as (lo, hi) pairs.
 */
export interface Xxh3 {
  readonly inputBytes: Uint8Array;
  readonly inputWords: Uint32Array;
  readonly output: Uint32Array;
  /** Makes every later `windows` use this seed. */
  seed(lo: number, hi: number): void;
  /** Hashes `count` windows of `windowBytes`, `strideBytes` apart, from the start of the input. */
  windows(count: number, windowBytes: number, strideBytes: number): void;
  /** Chains output entries [from, to): each becomes the hash of (the entry before it, itself). */
  chain(from: number, to: number): void;
}

/** Assembles and starts the module. */
export async function loadXxh3(): Promise<Xxh3> {
  const pages = Math.ceil((outputAt + 8 * hashesMax) / 65536);
  const { instance } = await engine.WebAssembly.instantiate(assembleXxh3(pages));
  const wasm = instance.exports;
  const buffer = wasm.memory.buffer;
  new Uint8Array(buffer).set(Buffer.from(xxh3SecretHex, "hex"));
  const seedWords = new Uint32Array(buffer, seedAt, 2);
  wasm.derive();
  return {
    inputBytes: new Uint8Array(buffer, inputAt, inputBytesMax),
    inputWords: new Uint32Array(buffer, inputAt, inputBytesMax / 4),
    output: new Uint32Array(buffer, outputAt, 2 * hashesMax),
    seed(lo, hi) {
      if (seedWords[0] === lo && seedWords[1] === hi) return;
      seedWords[0] = lo;
      seedWords[1] = hi;
      wasm.derive();
    },
    windows: wasm.windows,
    chain: (from, to) => wasm.chain(outputAt + 8 * from, outputAt + 8 * to),
  };
}

interface Xxh3Exports {
  readonly memory: { readonly buffer: ArrayBuffer };
  windows(count: number, windowBytes: number, strideBytes: number): void;
  chain(fromAddress: number, toAddress: number): void;
  derive(): void;
}

/** What of the global `WebAssembly` is used; the Node types declare it as types only. */
const engine = globalThis as unknown as {
  readonly WebAssembly: {
    instantiate(bytes: Uint8Array): Promise<{ instance: { exports: Xxh3Exports } }>;
  };
};
