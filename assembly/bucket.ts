/**
 * Four slots that fill one cache line and are compared at once.
 *
 *   bucket   [ key | value | key | value | key | value | key | value ]   u64 each
 */
export const slotBytes: usize = 16;
export const bucketSlots: u32 = 4;
export const bucketBytes: usize = 64;

/** Bit per slot whose key word is `key`. */
// @ts-ignore: decorator
@inline
export function slotsWith(bucket: usize, key: u64): u32 {
  const wanted = i64x2.splat(key);
  const front = v128.shuffle<u64>(v128.load(bucket), v128.load(bucket, 16), 0, 2);
  const back = v128.shuffle<u64>(v128.load(bucket, 32), v128.load(bucket, 48), 0, 2);
  return i64x2.bitmask(i64x2.eq(front, wanted)) | (i64x2.bitmask(i64x2.eq(back, wanted)) << 2);
}

/** Address of the first slot of a `slotsWith` that found some. */
// @ts-ignore: decorator
@inline
export function firstOf(bucket: usize, found: u32): usize {
  return bucket + slotBytes * ctz(found);
}

// @ts-ignore: decorator
@inline
export function isFull(bucket: usize): bool {
  return slotsWith(bucket, 0) === 0;
}

/** Bucket of a slot: arrays start at multiples of `bucketBytes`, as all regions do. */
// @ts-ignore: decorator
@inline
export function bucketOf(at: usize): usize {
  return at & ~(bucketBytes - 1);
}
