/**
 * Block hashes of a prompt, whole runs of blocks a call.
 *
 *   input    windows of `windowBytes`, `strideBytes` apart
 *   local    u64 per block: hash of its window
 *   sequence u64 per block: local[0], then link(sequence[i - 1], local[i])
 */
import { hash, hash64, hash256, link, reseed } from "./xxh3.ts";

/** The seed of every later local hash, as lanes. */
export function seedHashes(lo: u32, hi: u32): void {
  reseed(((<u64>hi) << 32) | <u64>lo);
}

/** Hashes `count` windows from `input` into `local`. */
export function hashWindows(
  input: usize,
  count: usize,
  windowBytes: usize,
  strideBytes: usize,
  local: usize,
): void {
  const end = local + 8 * count;
  if (windowBytes === 64) {
    for (; local < end; local += 8, input += strideBytes) store<u64>(local, hash64(input));
  } else if (windowBytes === 256) {
    for (; local < end; local += 8, input += strideBytes) store<u64>(local, hash256(input));
  } else {
    for (; local < end; local += 8, input += strideBytes) {
      store<u64>(local, hash(input, windowBytes));
    }
  }
}

/** Chains the u64 at [from, to) in place, each from the one before it. */
export function chainHashes(from: usize, to: usize): void {
  let before = load<u64>(from - 8);
  for (let at = from; at < to; at += 8) {
    before = link(before, load<u64>(at));
    store<u64>(at, before);
  }
}
