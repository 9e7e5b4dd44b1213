import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import {
  type AnswerTimes,
  drawClasses,
  meetsDeadline,
  meetsFirst,
  meetsPair,
  readSloClasses,
} from "../../src/sim/attainment.ts";

interface GoldenRequest {
  readonly id: string;
  readonly arrival_ms: number;
  readonly first_token_ms?: number;
  readonly last_token_ms?: number;
  readonly output_tokens?: number;
  readonly pair_ok: boolean;
  readonly deadline_ok: boolean;
}

const golden = JSON.parse(
  readFileSync(new URL("../golden/slo-attainment.json", import.meta.url), "utf8"),
) as {
  readonly targets: { readonly ttft_ms: number; readonly tpot_ms: number };
  readonly requests: readonly GoldenRequest[];
  readonly attainment: { readonly pair: number; readonly deadline: number };
};
const targets = { ttftMs: golden.targets.ttft_ms, tpotMs: golden.targets.tpot_ms };

function timesOf(request: GoldenRequest): AnswerTimes {
  return {
    arrivalMs: request.arrival_ms,
    firstMs: request.first_token_ms ?? Number.NaN,
    lastMs: request.last_token_ms ?? Number.NaN,
    outputTokens: request.output_tokens ?? 0,
  };
}

it.each(golden.requests)("judges request $id as the vectors say", (request) => {
  expect(meetsPair(targets, timesOf(request))).toBe(request.pair_ok);
  expect(meetsDeadline(targets, timesOf(request))).toBe(request.deadline_ok);
});

it("keeps every request in the denominator", () => {
  const share = (met: typeof meetsPair): number =>
    golden.requests.filter((request) => met(targets, timesOf(request))).length /
    golden.requests.length;
  expect(share(meetsPair)).toBe(golden.attainment.pair);
  expect(share(meetsDeadline)).toBe(golden.attainment.deadline);
});

it("counts a first token in time only of an answer that became whole", () => {
  const answer = { arrivalMs: 100, firstMs: 600, lastMs: 900, outputTokens: 4 };
  expect(meetsFirst(500, answer)).toBe(true);
  expect(meetsFirst(499, answer)).toBe(false);
  expect(meetsFirst(500, { ...answer, lastMs: Number.NaN })).toBe(false);
});

it("reads classes with and without a slope", () => {
  expect(readSloClasses("0.3:200+0.055, 0.7:600")).toEqual([
    { share: 0.3, baseMs: 200, msPerInputToken: 0.055 },
    { share: 0.7, baseMs: 600, msPerInputToken: 0 },
  ]);
  expect(() => readSloClasses("0.3:200,0.6:1")).toThrow(/sum to 1/);
  expect(() => readSloClasses("half:200")).toThrow(/expected share:ms/);
});

it("takes 16 classes and refuses 17", () => {
  const text = (count: number): string =>
    Array(count)
      .fill(`${1 / count}:100`)
      .join(",");
  expect(readSloClasses(text(16))).toHaveLength(16);
  expect(() => readSloClasses(text(17))).toThrow(/at most 16/);
});

it("draws classes in their shares, one draw each", () => {
  const classes = readSloClasses("0.2:1,0.5:2,0.3:3");
  const drawn = drawClasses(classes, 20_000, mulberry32(1));
  const counts = [0, 1, 2].map((group) => drawn.filter((one) => one === group).length / 20_000);
  expect(counts[0]).toBeCloseTo(0.2, 1);
  expect(counts[1]).toBeCloseTo(0.5, 1);
  expect(drawClasses(classes, 5, mulberry32(1))).toEqual(drawn.slice(0, 5));
});
