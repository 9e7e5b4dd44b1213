import { expect, it } from "vitest";
import { buildCells, type Curve } from "../../src/core/grid-builder.ts";
import { type LintEvidence, lintGrid, namedCellsMax } from "../../src/core/grid-lint.ts";
import { trafficOf } from "../../src/core/grid-traffic.ts";
import { makeAxis, type PriorityOverride, type SlaGrid } from "../../src/core/sla-grid.ts";

const axes = [
  makeAxis("isl", { min: 0, max: 2000 }, 2, "linear"),
  makeAxis("ttft", { min: 100, max: 400 }, 3, "linear"),
];

function gridOf(
  poolOfCell: readonly number[],
  overrides: readonly PriorityOverride[] = [],
): SlaGrid {
  return { role: "prefill", axes, poolOfCell, overrides };
}

function reasons(grid: SlaGrid, evidence: Partial<LintEvidence> = {}): string[] {
  const found = lintGrid(grid, { priorities: [0, 1, 1], clampedShareMax: 0.1, ...evidence });
  return found.map(({ reason, place }) => {
    const at = "cell" in place ? place.cell : "rule" in place ? place.rule : "";
    const end = place.type === "axis" ? `${place.axis} ${place.end}` : "";
    const pool = place.type === "pool" ? place.pool : "";
    return `${reason} ${at}${end}${pool}`;
  });
}

it("finds nothing in a grid that gives tighter targets faster pools", () => {
  expect(reasons(gridOf([0, 0, 1, 0, 1, 1]))).toEqual([]);
  // Equal priorities are equally fast.
  expect(reasons(gridOf([1, 2, 1, 2, 1, 2]))).toEqual([]);
});

it("finds each cell whose laxer neighbour has a faster pool", () => {
  expect(reasons(gridOf([1, 0, 1, 0, 0, 0]))).toEqual(["tighter-target-slower-pool 0,0"]);
  expect(reasons(gridOf([0, 0, 0, 1, 2, 0]))).toEqual(["tighter-target-slower-pool 1,1"]);
});

const line = (baseMs: number, perTokenMs: number): Curve => ({
  type: "linear",
  baseMs,
  perTokenMs,
});

it("takes a pool's speed from its curve where there is one", () => {
  const ttft = [line(50, 0.05), line(10, 0.01), line(10, 0.02)];
  const curves = { costs: [1, 2, 3], ttft, itl: [] };
  const found = reasons(gridOf([0, 1, 1, 1, 1, 1]), { curves });
  expect(found).toContain("tighter-target-slower-pool 0,0");
  expect(reasons(gridOf([1, 1, 0, 1, 1, 0]), { curves })).not.toContain(
    "tighter-target-slower-pool",
  );
});

it("names cells whose pool misses what another keeps, and those that nobody keeps", () => {
  const ttft = [line(0, 0.2), line(0, 0.07), line(0, 0.15)];
  const curves = { costs: [1, 2, 3], ttft, itl: [] };
  const priorities = [1, 0, 0];
  // At 1000 tokens 200, 70, 150 ms; at 2000 tokens 400, 140, 300 ms; targets 100, 200, 300.
  expect(reasons(gridOf([1, 0, 0, 1, 0, 2]), { curves, priorities })).toEqual([
    "tighter-target-slower-pool 1,1",
    "target-missed 1,1",
    "target-unmeetable ",
  ]);
});

it("finds no missed target in a grid that was built from the same curves", () => {
  const curves = { costs: [1, 2], ttft: [line(50, 0.08), line(20, 0.02)], itl: [] };
  const poolOfCell = buildCells(axes, curves).map(({ pool }) => pool);
  const found = reasons(gridOf(poolOfCell), { curves });
  expect(found.filter((text) => text.startsWith("target-missed"))).toEqual([]);
});

it("finds rules that serve important requests slower than others", () => {
  const rule = (minPriority: number, maxPriority: number, targetPool: number) => ({
    minPriority,
    maxPriority,
    targetPool,
  });
  const flat = [0, 0, 0, 0, 0, 0];
  expect(reasons(gridOf(flat, [rule(1, 4, 0), rule(5, 9, 1)]))).toEqual(["override-inverted 1"]);
  expect(reasons(gridOf(flat, [rule(1, 4, 1), rule(5, 9, 0)]))).toEqual([]);
  // Overlapping ranges are the loader's to warn of.
  expect(reasons(gridOf(flat, [rule(1, 5, 0), rule(5, 9, 1)]))).toEqual([]);
});

it("finds dead cells, idle pools, and ends of axes beyond which too much lies", () => {
  const grid = gridOf([0, 0, 1, 0, 1, 1]);
  const request = (tokens: number, valueMs: number) => ({
    query: {
      tokens,
      ttft: { valueMs, source: "test" },
      itl: { valueMs: null, source: "test" },
      priority: null,
    },
    outputTokens: 1,
  });
  const seen = (requests: readonly ReturnType<typeof request>[]) =>
    reasons(grid, { traffic: trafficOf(grid, 3, requests) });
  const inside = [150, 250, 350].flatMap((ms) => [request(500, ms), request(1500, ms)]);
  expect(seen(inside)).toEqual(["idle-pool 2"]);
  expect(seen(inside.slice(1))).toEqual(["dead-cells ", "idle-pool 2"]);
  const many = [...inside, ...inside, ...inside];
  // 2 of 20 are the tenth that is allowed, 3 of 21 are more.
  expect(seen([...many, request(3000, 99), request(3000, 150)])).toEqual(["idle-pool 2"]);
  const three = [3000, 3000, 3000].map((tokens) => request(tokens, 150));
  expect(seen([...many, ...three])).toEqual(["idle-pool 2", "clamped-traffic isl max"]);
});

it("names a bounded number of dead cells", () => {
  const wide = [makeAxis("isl", { min: 0, max: 1 }, 1, "linear"), ...axes.slice(1)];
  const ttft = makeAxis("ttft", { min: 0, max: 100 }, namedCellsMax + 3, "linear");
  const grid: SlaGrid = {
    role: "prefill",
    axes: [wide[0] ?? ttft, ttft],
    poolOfCell: new Array(ttft.cells).fill(0),
    overrides: [],
  };
  const traffic = trafficOf(grid, 1, []);
  const [dead] = lintGrid(grid, { priorities: [0], clampedShareMax: 1, traffic });
  expect(dead?.message).toMatch(/^15 of 15 cells see no request: 0\.0, .*0\.11 and 3 more$/);
});
