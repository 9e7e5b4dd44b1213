import { expect, it } from "vitest";
import { readMeasuredCells } from "../../src/core/grid-calibrate.ts";
import { CellBook, cellsOf } from "../../src/global-router/cell-latency.ts";

it("reads what a global router answers of its cells", () => {
  const book = new CellBook(0);
  const place = { role: "agg", pool: "fast", cell: "1.0" } as const;
  for (let at = 1; at <= 100; at++) {
    const sample = { measuredMs: at, targetMs: 50, predictedMs: undefined, explicit: true };
    book.add(place, { ...sample, target: "ttft" }, at);
    // Shorter than the first bucket of the router's histogram.
    book.add(place, { ...sample, target: "itl", measuredMs: 0 }, at);
  }
  const answer = { config_version: "ae6ef1b022cd", roles: cellsOf(book, 100) };
  const { configVersion, roles } = readMeasuredCells(JSON.parse(JSON.stringify(answer)));
  expect(configVersion).toBe("ae6ef1b022cd");
  expect(roles).toMatchObject([
    {
      role: "agg",
      cells: [
        { cell: "1.0", pool: "fast", latency: "ttft", count: 100 },
        { cell: "1.0", pool: "fast", latency: "itl", count: 100 },
      ],
    },
  ]);
  const [ttft] = roles[0]?.cells ?? [];
  // Buckets are 9 % wide.
  expect(Math.abs((ttft?.p50Ms ?? 0) - 50)).toBeLessThan(5);
  expect(Math.abs((ttft?.p90Ms ?? 0) - 90)).toBeLessThan(9);
});
