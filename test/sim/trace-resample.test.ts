import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import { formatMooncakeTrace, parseMooncakeTrace } from "../../src/sim/mooncake-trace.ts";
import { resampleTrace } from "../../src/sim/trace-resample.ts";
import { infiniteCacheHits } from "../../src/sim/trace-stats.ts";
import { synthesisPresets, synthesizeTrace } from "../../src/sim/trace-synth.ts";

const recorded = synthesizeTrace({ ...synthesisPresets["toolagent-ci"], requests: 2000 });
const drawnTrace = resampleTrace(recorded, 4000, mulberry32(1));

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

it("draws the same trace for the same seed, of the length that is asked", () => {
  expect(drawnTrace).toHaveLength(4000);
  expect(resampleTrace(recorded, 4000, mulberry32(1))).toEqual(drawnTrace);
  expect(resampleTrace(recorded, 4000, mulberry32(2))).not.toEqual(drawnTrace);
});

it("writes traces that a reader accepts, with one predecessor for every id", () => {
  expect(parseMooncakeTrace(formatMooncakeTrace(drawnTrace))).toEqual(drawnTrace);
  const before = new Map<number, number | undefined>();
  for (const { hashIds } of drawnTrace) {
    for (const [block, id] of hashIds.entries()) {
      expect(before.has(id) ? before.get(id) : hashIds[block - 1]).toBe(hashIds[block - 1]);
      before.set(id, hashIds[block - 1]);
    }
  }
});

it("keeps lengths, rate and reuse of the recording", () => {
  const expectNear = (of: (trace: typeof recorded) => number): void => {
    expect(Math.abs(of(drawnTrace) / of(recorded) - 1)).toBeLessThan(0.08);
  };
  expectNear((trace) => mean(trace.map(({ inputTokens }) => inputTokens)));
  expectNear((trace) => mean(trace.map(({ outputTokens }) => outputTokens)));
  expectNear((trace) => trace.length / (trace.at(-1)?.arrivalMs ?? 1));
  const hits = (trace: typeof recorded) => infiniteCacheHits(trace).tokenHitRatio;
  // Twice the requests see each prefix twice as often, so first sights weigh less.
  expect(hits(drawnTrace)).toBeGreaterThan(hits(recorded) - 0.05);
  expect(hits(drawnTrace)).toBeLessThan(hits(recorded) + 0.15);
});

it("keeps a recording without anything in common apart, and one of equal prompts equal", () => {
  const apart = [1, 2, 3].map((id) => ({
    arrivalMs: id,
    inputTokens: 600,
    outputTokens: id,
    hashIds: [2 * id, 2 * id + 1],
  }));
  const fresh = resampleTrace(apart, 50, mulberry32(1));
  expect(infiniteCacheHits(fresh).hitBlocks).toBe(0);
  expect(fresh.every(({ hashIds }) => hashIds.length === 2)).toBe(true);
  const equal = apart.map((request) => ({ ...request, arrivalMs: 5, hashIds: [0, 1] }));
  const same = resampleTrace(equal, 50, mulberry32(1));
  expect(same.every(({ hashIds, arrivalMs }) => hashIds.join() === "0,1" && arrivalMs === 0)).toBe(
    true,
  );
});

it("refuses a recording without requests", () => {
  expect(() => resampleTrace([], 1, mulberry32(1))).toThrow(/no requests/);
});
