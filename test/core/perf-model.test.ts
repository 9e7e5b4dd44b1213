import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { polynomialPerf, readPerfModel } from "../../src/core/perf-model.ts";

const { points } = JSON.parse(
  readFileSync(new URL("../golden/mock-engine.json", import.meta.url), "utf8"),
);

it("computes the polynomial points", () => {
  for (const { tokens, ms } of points.polynomial.prefill_ms) {
    expect(polynomialPerf.prefillMs(tokens, 0)).toBeCloseTo(ms, 9);
  }
  for (const { utilisation, ms } of points.polynomial.decode_ms) {
    const work = {
      sequences: 1,
      activeKvTokens: utilisation * 1000,
      capacityKvTokens: 1000,
      contextTokens: 0,
    };
    expect(polynomialPerf.decodeMs(work)).toBeCloseTo(ms, 9);
  }
});

it("computes the coefficient points", () => {
  const { coefficients, prefill_cases, decode_cases } = points.calibrated_coefficients;
  const perf = readPerfModel({ kind: "coefficients", ...coefficients });
  for (const { tokens, context_before, attn_work, ms } of prefill_cases) {
    const attention = tokens * (context_before + tokens / 2);
    expect(attention).toBe(attn_work);
    expect(perf.prefillMs(tokens, attention)).toBeCloseTo(ms, 9);
  }
  for (const { sequences, active_kv_tokens, ms } of decode_cases) {
    const work = {
      sequences,
      activeKvTokens: active_kv_tokens,
      capacityKvTokens: 1e6,
      contextTokens: 0,
    };
    expect(perf.decodeMs(work)).toBeCloseTo(ms, 9);
  }
});

it("interpolates and extrapolates a table", () => {
  const perf = readPerfModel({ kind: "table", ...points.table.profile });
  for (const { tokens, ms } of points.table.prefill_cases) {
    expect(perf.prefillMs(tokens, 0)).toBeCloseTo(ms, 9);
  }
  for (const { active_kv_tokens, mean_context, ms } of points.table.decode_cases) {
    const work = {
      sequences: 2,
      activeKvTokens: active_kv_tokens,
      capacityKvTokens: 1e6,
      contextTokens: 2 * mean_context,
    };
    expect(perf.decodeMs(work)).toBeCloseTo(ms, 9);
  }
});

it("takes nothing for no work and at least 1 ms for a decode step", () => {
  const perf = readPerfModel({
    kind: "coefficients",
    prefill: { pass_ms: 3, ms_per_token: 0, ms_per_token_context: 0 },
    decode: { step_ms: 0, ms_per_active_kv_token: 0, ms_per_sequence: 0 },
  });
  const work = { sequences: 0, activeKvTokens: 0, capacityKvTokens: 64, contextTokens: 0 };
  expect(perf.prefillMs(0, 0)).toBe(0);
  expect(perf.decodeMs(work)).toBe(0);
  expect(perf.decodeMs({ ...work, sequences: 1 })).toBe(1);
});

it("reads the first decode axis as logical context when the profile says so", () => {
  const profile = { ...points.table.profile, kv_axis: "logical" };
  const perf = readPerfModel({ kind: "table", ...profile });
  const work = { sequences: 2, activeKvTokens: 9, capacityKvTokens: 9, contextTokens: 2000 };
  expect(perf.decodeMs(work)).toBeCloseTo(6 + (4 * 2000) / 100_000, 9);
});

it.each([
  ["an unknown kind", { kind: "quadratic" }, "kind"],
  ["a missing coefficient", { kind: "coefficients", prefill: { pass_ms: 1 } }, "decode"],
  ["an axis that does not rise", { kind: "table", prefill_isl: [2, 2] }, "prefill_isl"],
  [
    "a short row",
    { kind: "table", ...points.table.profile, decode_itl: [[6, 7], [10], [20, 26]] },
    "decode_itl\\[1\\]",
  ],
])("refuses %s", (_name, json, names) => {
  expect(() => readPerfModel(json)).toThrow(new RegExp(names));
});
