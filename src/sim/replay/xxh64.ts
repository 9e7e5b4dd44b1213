/** XXH64 with seed 0 of a short text; for places in a ring, not for a hot path. */
const prime1 = 0x9e3779b185ebca87n;
const prime2 = 0xc2b2ae3d27d4eb4fn;
const prime3 = 0x165667b19e3779f9n;
const prime4 = 0x85ebca77c2b2ae63n;
const prime5 = 0x27d4eb2f165667c5n;
/** Longer texts would take the algorithm's other branch. */
const bytesMax = 31;

/** Throws `RangeError` for a text of 32 bytes or more in UTF-8. */
export function xxh64(text: string): bigint {
  const bytes = new TextEncoder().encode(text);
  if (bytes.length > bytesMax) {
    throw new RangeError(`xxh64: expected at most ${bytesMax} bytes, got ${bytes.length}`);
  }
  const view = new DataView(bytes.buffer);
  let hash = wrapped(prime5 + BigInt(bytes.length));
  let at = 0;
  for (; at + 8 <= bytes.length; at += 8) {
    hash = rotated(hash ^ round(view.getBigUint64(at, true)), 27n);
    hash = wrapped(hash * prime1 + prime4);
  }
  if (at + 4 <= bytes.length) {
    hash ^= wrapped(BigInt(view.getUint32(at, true)) * prime1);
    hash = wrapped(rotated(hash, 23n) * prime2 + prime3);
    at += 4;
  }
  for (; at < bytes.length; at++) {
    hash ^= wrapped(BigInt(view.getUint8(at)) * prime5);
    hash = wrapped(rotated(hash, 11n) * prime1);
  }
  hash = wrapped((hash ^ (hash >> 33n)) * prime2);
  hash = wrapped((hash ^ (hash >> 29n)) * prime3);
  return hash ^ (hash >> 32n);
}

function round(input: bigint): bigint {
  return wrapped(rotated(wrapped(input * prime2), 31n) * prime1);
}

function rotated(word: bigint, bits: bigint): bigint {
  return wrapped(word << bits) | (word >> (64n - bits));
}

function wrapped(word: bigint): bigint {
  return BigInt.asUintN(64, word);
}
