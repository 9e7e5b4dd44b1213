/** XXH3-64 of the fast core, on an instance of its own. */
import type { FastCore } from "../base/fast-core.ts";
import { hashesMax, inputBytesMax, type Xxh3 } from "./xxh3.ts";

export function createFastXxh3(core: FastCore): Xxh3 {
  const wasm = core.instantiate();
  const input = wasm.allocate(inputBytesMax);
  const output = wasm.allocate(8 * hashesMax);
  // Nothing is allocated after this, so the views stay attached.
  const buffer = wasm.memory.buffer;
  let seedLo = -1;
  let seedHi = -1;
  return {
    inputBytes: new Uint8Array(buffer, input, inputBytesMax),
    inputWords: new Uint32Array(buffer, input, inputBytesMax / 4),
    output: new Uint32Array(buffer, output, 2 * hashesMax),
    seed(lo, hi) {
      if (seedLo === lo && seedHi === hi) return;
      seedLo = lo;
      seedHi = hi;
      wasm.seedHashes(lo, hi);
    },
    windows(count, windowBytes, strideBytes) {
      wasm.hashWindows(input, count, windowBytes, strideBytes, output + 8);
    },
    one: (bytes, entry) => wasm.hashWindows(input, 1, bytes, 0, output + 8 * entry),
    chain: (from, to) => wasm.chainHashes(output + 8 * from, output + 8 * to),
  };
}
