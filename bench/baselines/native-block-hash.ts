/** Baseline of H1, H2: one native XXH3 call per block and one per link, through BigInt. */
import { xxh3 } from "@node-rs/xxhash";

export function nativeBlockHashes(tokens: Uint32Array, blockSize: number): bigint[] {
  const bytes = new Uint8Array(tokens.buffer, tokens.byteOffset, tokens.byteLength);
  const blocks = Math.floor(tokens.length / blockSize);
  const pair = Buffer.alloc(16);
  const sequence: bigint[] = [];
  let before = 0n;
  for (let block = 0; block < blocks; block++) {
    const from = 4 * block * blockSize;
    const local = xxh3.xxh64(bytes.subarray(from, from + 4 * blockSize), 1337n);
    if (block === 0) before = local;
    else {
      pair.writeBigUInt64LE(before, 0);
      pair.writeBigUInt64LE(local, 8);
      before = xxh3.xxh64(pair, 1337n);
    }
    sequence.push(before);
  }
  return sequence;
}
