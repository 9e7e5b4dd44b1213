/**
 * Randomness as a parameter: a `Random` draws a number in [0, 1). Processes use `osRandom`; tests,
 * traces and the simulator use `mulberry32(seed)`, so that one seed replays everything.
 */
import { randomBytes } from "node:crypto";

export type Random = () => number;

/** Seeded generator (mulberry32); the same seed gives the same draws on every machine. */
export function mulberry32(seed: number): Random {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Unpredictable draws from the operating system, buffered. */
export const osRandom: Random = (() => {
  let words = new Uint32Array(0);
  let next = 0;
  return () => {
    if (next >= words.length) {
      const bytes = randomBytes(1024);
      words = new Uint32Array(bytes.buffer, bytes.byteOffset, 256);
      next = 0;
    }
    return (words[next++] as number) / 4294967296;
  };
})();

/** Integer in [0, 2^32). */
export function randomU32(random: Random): number {
  return Math.floor(random() * 4294967296) >>> 0;
}

/** Integer in [min, max], both ends included. */
export function randomInt(random: Random, min: number, max: number): number {
  return min + Math.floor(random() * (max - min + 1));
}

/** Random id below 2^53, never 0, so that it survives JSON as a number. */
export function randomId(random: Random): number {
  return Math.floor(random() * 0x1fffff) * 4294967296 + randomU32(random) || 1;
}

/** 128 random bits as 32 hex digits: a stream's `rid`. */
export function randomHex128(random: Random): string {
  return hexU32(random) + hexU32(random) + hexU32(random) + hexU32(random);
}

/** Two hex digits of each byte: a table is several times as fast as printing and padding. */
const hexBytes = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));

function hexU32(random: Random): string {
  const word = randomU32(random);
  const high = `${hexBytes[word >>> 24]}${hexBytes[(word >>> 16) & 0xff]}`;
  return `${high}${hexBytes[(word >>> 8) & 0xff]}${hexBytes[word & 0xff]}`;
}
