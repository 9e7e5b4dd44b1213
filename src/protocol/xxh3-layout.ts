/**
 * Memory of the XXH3 module, in bytes. It never grows, so views on it never detach.
 *
 *   0        192       384    448                     outputAt
 *   [ secret | derived | seed | input (256 KiB)       | output (512 KiB)  ]
 *
 * `derived` is the secret of inputs above 240 bytes; it follows `seed` only after `derive()`.
 */

export const derivedAt = 192;
export const seedAt = 384;
export const inputAt = 448;
/** Bytes one call may read; a window longer than this cannot be hashed. */
export const inputBytesMax: number = 256 * 1024;
export const outputAt: number = inputAt + inputBytesMax;
/** Hashes one call may write or chain. */
export const hashesMax: number = 64 * 1024;
