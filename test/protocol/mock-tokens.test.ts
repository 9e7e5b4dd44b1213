import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { mockToken } from "../../src/protocol/mock-tokens.ts";

interface Case {
  readonly seed: string;
  readonly position: number;
  readonly token_id: number;
}

const golden = JSON.parse(
  readFileSync(new URL("../golden/mock-engine.json", import.meta.url), "utf8"),
) as { points: { mock_tokens: { cases: readonly Case[] } } };

it.each(golden.points.mock_tokens.cases)("seed $seed at position $position", (row) => {
  const seed = Number(BigInt.asUintN(32, BigInt(row.seed)));
  expect(mockToken(seed, row.position)).toBe(row.token_id);
});

it("stays inside its range", () => {
  const range = { idMin: 7, idCount: 3 };
  const ids = Array.from({ length: 200 }, (_, position) => mockToken(1, position, range));
  expect(new Set(ids)).toEqual(new Set([7, 8, 9]));
});
