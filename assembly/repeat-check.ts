/** Finds an engine hash that occurs twice in one event, by a stamped table that is not cleared. */
import { randomU64 } from "./random";
import { free, mustAllocate } from "./regions";

/** Blocks in one event; more is invalid. */
export const eventBlocksMax: u32 = 65_536;
const pairwiseMax: u32 = 8;

/** One slot: stamp u32, number of the entry u32. */
let slots: usize = 0;
let mask: u32 = 0;
let stamp: u32 = 0;
let multiplier: u64 = 0;

/** Whether two of the `count` u64 at `first`, `strideBytes` apart, are equal. */
export function repeats(first: usize, count: u32, strideBytes: usize): bool {
  if (count > pairwiseMax) return repeatsHashed(first, count, strideBytes);
  for (let one: usize = 1; one < count; one++) {
    const key = load<u64>(first + one * strideBytes);
    for (let other: usize = 0; other < one; other++) {
      if (load<u64>(first + other * strideBytes) === key) return true;
    }
  }
  return false;
}

function repeatsHashed(first: usize, count: u32, strideBytes: usize): bool {
  if (mask + 1 < 2 * count) makeSlots(count);
  if (++stamp === 0) {
    memory.fill(slots, 0, 8 * (mask + 1));
    stamp = 1;
  }
  for (let entry: u32 = 0; entry < count; entry++) {
    const key = load<u64>(first + entry * strideBytes);
    for (let at = <u32>((key * multiplier) >> 32) & mask; ; at = (at + 1) & mask) {
      const slot = slots + 8 * at;
      if (load<u32>(slot) !== stamp) {
        store<u32>(slot, stamp);
        store<u32>(slot, entry, 4);
        break;
      }
      if (load<u64>(first + load<u32>(slot, 4) * strideBytes) === key) return true;
    }
  }
  return false;
}

function makeSlots(count: u32): void {
  if (slots !== 0) free(slots, 8 * (mask + 1));
  const size: u32 = 1 << (32 - clz(2 * count - 1));
  slots = mustAllocate(8 * size);
  mask = size - 1;
  stamp = 0;
  multiplier = randomU64() | 1;
}
