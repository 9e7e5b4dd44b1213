/**
 * Unsigned 64-bit numbers as two 32-bit lanes. They never become a JS number: JSON carries decimal
 * strings, columns carry `[lo, hi, lo, hi, …]`. BigInt is used here, at the edge, and nowhere hot.
 */

export interface U64 {
  readonly lo: number;
  readonly hi: number;
}

const u64Max = 0xffff_ffff_ffff_ffffn;
const two32 = 4294967296;

/** Lanes of a decimal string in [0, 2^64) without leading zeros; `undefined` for anything else. */
export function readU64Decimal(text: string): U64 | undefined {
  if (text.length === 0 || text.length > 20) return undefined;
  for (let at = 0; at < text.length; at++) {
    const digit = text.charCodeAt(at) - 48;
    if (digit < 0 || digit > 9) return undefined;
  }
  if (text.length > 1 && text.charCodeAt(0) === 48) return undefined;
  if (text.length < 16) return lanesOfInteger(Number(text));
  const value = BigInt(text);
  return value > u64Max ? undefined : lanesOfBigInt(value);
}

/** Lanes of a JSON value: a decimal string, or a number that is a safe integer >= 0. */
export function readU64Json(value: unknown): U64 | undefined {
  if (typeof value === "string") return readU64Decimal(value);
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0) return undefined;
  return lanesOfInteger(value);
}

/** Decimal text of two lanes. */
export function formatU64(lo: number, hi: number): string {
  if (hi < 0x20_0000) return String(hi * two32 + lo);
  return ((BigInt(hi) << 32n) | BigInt(lo)).toString();
}

/** Lanes of the low 64 bits; a negative value is read as two's complement. */
export function lanesOfBigInt(value: bigint): U64 {
  const unsigned = BigInt.asUintN(64, value);
  return { lo: Number(unsigned & 0xffff_ffffn), hi: Number(unsigned >> 32n) };
}

/** Lanes of a safe integer >= 0. */
export function lanesOfInteger(value: number): U64 {
  return { lo: value >>> 0, hi: Math.floor(value / two32) };
}

/** Order of two values, unsigned: negative, 0 or positive. */
export function compareU64(a: U64, b: U64): number {
  return a.hi - b.hi || a.lo - b.lo;
}
