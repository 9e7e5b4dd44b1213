import { xxh64 as nativeXxh64 } from "@node-rs/xxhash";
import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32 } from "../../../src/base/random.ts";
import {
  chwbl,
  prefixHash,
  sglang,
  sglangApproximate,
} from "../../../src/sim/replay/affinity-policies.ts";
import { hashRing, pointsPerWorker } from "../../../src/sim/replay/hash-ring.ts";
import type { PolicyRequest, WorkerViews } from "../../../src/sim/replay/policies.ts";
import { xxh64 } from "../../../src/sim/replay/xxh64.ts";

const ids = ["0", "1", "2", "3"];
const random = mulberry32(5);

function viewsOf(inFlight: readonly number[], overlap: readonly number[] = []): WorkerViews {
  const count = inFlight.length;
  return {
    count,
    overlapBlocks: Int32Array.from({ length: count }, (_, worker) => overlap[worker] ?? 0),
    cachedBlocks: new Float64Array(count),
    pendingTokens: new Float64Array(count),
    inFlight: Int32Array.from(inFlight),
    processed: new Float64Array(count),
    engineWaiting: new Float64Array(count),
    engineKvUsage: new Float64Array(count),
  };
}

/** A prompt whose block hashes are the given 64-bit numbers. */
function promptOf(hashes: readonly bigint[]): PolicyRequest {
  const sequence = Uint32Array.from(
    hashes.flatMap((hash) => [Number(hash & 0xffff_ffffn), Number(hash >> 32n)]),
  );
  return { nowMs: 0, inputTokens: 512 * hashes.length + 1, blockSize: 512, sequence };
}

/** Walks all points of the ring, every time anew. */
function naiveChwbl(key: bigint, inFlight: readonly number[], factor: number): number {
  const points = ids
    .flatMap((id, worker) =>
      Array.from({ length: pointsPerWorker }, (_, point) => ({
        worker,
        at: nativeXxh64(`${id}${point}`),
      })),
    )
    .sort((a, b) => (a.at < b.at ? -1 : 1));
  const from = points.findIndex(({ at }) => at >= key);
  const walk = [...points.slice(Math.max(from, 0)), ...points.slice(0, Math.max(from, 0))];
  const total = inFlight.reduce((sum, load) => sum + load, 0);
  const limit = ((total + 1) / ids.length) * factor;
  const free = walk.find(({ worker }) => total === 0 || (inFlight[worker] ?? 0) <= limit);
  return (free ?? walk[0])?.worker ?? -1;
}

const u64 = fc.bigInt({ min: 0n, max: 0xffff_ffff_ffff_ffffn });
const loads = fc.array(fc.integer({ min: 0, max: 40 }), { minLength: 4, maxLength: 4 });

it("hashes short texts like the reference implementation", () => {
  for (const text of ["", "0", "70255", "worker-1", "twelve bytes", "x".repeat(31)]) {
    expect(xxh64(text)).toBe(nativeXxh64(text));
  }
  fc.assert(
    fc.property(fc.string({ maxLength: 7, unit: "grapheme" }), (text) => {
      fc.pre(Buffer.byteLength(text) < 32);
      expect(xxh64(text)).toBe(nativeXxh64(text));
    }),
    { seed: 1 },
  );
  expect(() => xxh64("x".repeat(32))).toThrow(RangeError);
});

it("finds the worker with room that a walk around the whole ring finds", () => {
  const policy = chwbl(hashRing(ids), { keyBlocks: 2, loadFactor: 1.25 });
  fc.assert(
    fc.property(u64, loads, (key, inFlight) => {
      const prompt = promptOf([1n, key, 3n]);
      expect(policy(prompt, viewsOf(inFlight), random)).toBe(naiveChwbl(key, inFlight, 1.25));
    }),
    { seed: 2, numRuns: 60 },
  );
});

it("takes the last full block of a prompt shorter than the key", () => {
  const policy = chwbl(hashRing(ids), { keyBlocks: 4, loadFactor: 1.25 });
  const idle = viewsOf([0, 0, 0, 0]);
  expect(policy(promptOf([1n, 7n << 40n]), idle, random)).toBe(
    policy(promptOf([2n, 3n, 4n, 7n << 40n]), idle, random),
  );
});

it("sends an overloaded key to the least loaded worker with room", () => {
  const ring = hashRing(ids);
  const policy = prefixHash(ring, { keyBlocks: 1, loadFactor: 1.25 });
  const prompt = promptOf([123n << 50n]);
  const target = policy(prompt, viewsOf([0, 0, 0, 0]), random);
  const inFlight = [5, 4, 3, 2].map((load, worker) => (worker === target ? 40 : load));
  const least = inFlight.indexOf(Math.min(...inFlight));
  expect(policy(prompt, viewsOf(inFlight), random)).toBe(least);
});

it("follows a match only above its threshold", () => {
  const settings = { balanceAbs: 32, balanceRel: 1.1, matchAbove: 0.5 };
  const prompt = promptOf([1n, 2n, 3n, 4n]);
  const policy = sglang(settings);
  expect(policy(prompt, viewsOf([3, 2, 1, 2], [3, 0, 0, 0]), random)).toBe(0);
  expect(policy(prompt, viewsOf([3, 2, 1, 2], [2, 0, 0, 0]), random)).toBe(2);
  expect(
    sglang({ ...settings, matchAbove: 0 })(prompt, viewsOf([3, 2, 1], [1, 0, 0]), random),
  ).toBe(0);
});

it("prefers the less loaded of equal matches", () => {
  const settings = { balanceAbs: 32, balanceRel: 1.1, matchAbove: 0 };
  const prompt = promptOf([1n, 2n, 3n, 4n]);
  expect(sglang(settings)(prompt, viewsOf([5, 3, 9], [4, 4, 4]), random)).toBe(1);
});

it("prefers the smaller cache of matches equal in load too", () => {
  const settings = { balanceAbs: 32, balanceRel: 1.1, matchAbove: 0 };
  const prompt = promptOf([1n, 2n, 3n, 4n]);
  const views = { ...viewsOf([3, 3, 3], [4, 4, 3]), cachedBlocks: Float64Array.from([9, 8, 1]) };
  expect(sglang(settings)(prompt, views, random)).toBe(1);
});

it("leaves affinity when loads differ by both limits", () => {
  const settings = { balanceAbs: 32, balanceRel: 1.1, matchAbove: 0 };
  const prompt = promptOf([1n, 2n]);
  expect(sglang(settings)(prompt, viewsOf([33, 0], [2, 0]), random)).toBe(1);
  expect(sglang(settings)(prompt, viewsOf([32, 0], [2, 0]), random)).toBe(0);
});

it("takes the least loaded worker that was given the fewest requests when no match counts", () => {
  const settings = { balanceAbs: 32, balanceRel: 1.1, matchAbove: 0.5 };
  const views = { ...viewsOf([4, 2, 2, 2]), processed: Float64Array.from([0, 9, 7, 8]) };
  expect(sglang(settings)(promptOf([1n, 2n]), views, random)).toBe(2);
  expect(sglangApproximate(settings, 3)(promptOf([1n, 2n]), views, random)).toBe(2);
});

it("remembers what it sent where, and forgets the least recent blocks", () => {
  const settings = { balanceAbs: 32, balanceRel: 1.1, matchAbove: 0.5 };
  const policy = sglangApproximate(settings, 3);
  const one = promptOf([1n, 2n, 3n]);
  const first = policy(one, viewsOf([0, 1]), random);
  expect(first).toBe(0);
  expect(policy(one, viewsOf([5, 1]), random)).toBe(0);
  expect(policy(promptOf([4n, 5n]), viewsOf([0, 1]), random)).toBe(0);
  // Two of its three blocks had to go, from the end of the prompt on.
  expect(policy(one, viewsOf([5, 1]), random)).toBe(1);
});
