import fc from "fast-check";
import { expect, it } from "vitest";
import { changedRegions, type GridPair, movedTraffic } from "../../src/core/grid-diff.ts";
import {
  type Axis,
  type GridQuery,
  makeAxis,
  type SlaGrid,
  type Spacing,
  selectPool,
} from "../../src/core/sla-grid.ts";

const isSame = (from: number, to: number): boolean => from === to;

function gridOf(axes: readonly Axis[], poolOfCell: readonly number[]): SlaGrid {
  return { role: "prefill", axes, poolOfCell, overrides: [] };
}

function queryOf(tokens: number, ttftMs: number, priority: number | null = null): GridQuery {
  const target = (valueMs: number | null) => ({ valueMs, source: "test" });
  return { tokens, ttft: target(ttftMs), itl: target(null), priority };
}

const isl = (cells: number, max = 400): Axis => makeAxis("isl", { min: 0, max }, cells, "linear");
const ttft = makeAxis("ttft", { min: 0, max: 100 }, 1, "linear");

it("names the regions between the edges of both grids", () => {
  const before = gridOf([isl(2), ttft], [0, 1]);
  const after = gridOf([isl(4), ttft], [0, 1, 1, 2]);
  const any = { axis: "ttft", low: null, high: null };
  expect(changedRegions({ before, after, isSame })).toEqual([
    { sides: [{ axis: "isl", low: 100, high: 200 }, any], from: 0, to: 1 },
    { sides: [{ axis: "isl", low: 300, high: null }, any], from: 1, to: 2 },
  ]);
});

it("compares grids of which only one has an ISL axis", () => {
  const itl = makeAxis("itl", { min: 0, max: 10 }, 1, "linear");
  const before: SlaGrid = { ...gridOf([ttft, itl], [0]), role: "agg" };
  const after: SlaGrid = { ...gridOf([isl(2), ttft, itl], [0, 1]), role: "agg" };
  const [region, ...more] = changedRegions({ before, after, isSame });
  expect(more).toEqual([]);
  expect(region?.sides).toContainEqual({ axis: "isl", low: 200, high: null });
});

it("counts what moves by priority rules too, the largest move first", () => {
  const rule = { minPriority: 1, maxPriority: 9, targetPool: 2 };
  const before = gridOf([isl(2), ttft], [0, 1]);
  const after = { ...before, poolOfCell: [1, 1], overrides: [rule] };
  const request = (tokens: number, priority: number | null) => ({
    query: queryOf(tokens, 50, priority),
    outputTokens: 1,
  });
  const requests = [request(300, 5), request(300, null), request(10, null), request(20, null)];
  expect(movedTraffic({ before, after, isSame }, requests)).toEqual([
    { from: 0, to: 1, requests: 2, tokens: 30 },
    { from: 1, to: 2, requests: 1, tokens: 300 },
  ]);
});

it("agrees with both grids at every point, and says nothing of equal ones", () => {
  const axis = fc.record({
    cells: fc.integer({ min: 1, max: 6 }),
    max: fc.integer({ min: 100, max: 1000 }),
    spacing: fc.constantFrom<Spacing>("linear", "log2"),
  });
  const drawn = fc.tuple(axis, axis, fc.infiniteStream(fc.nat(2)));
  const gridFrom = ([rows, columns, pools]: [AxisDraw, AxisDraw, Iterator<number>]): SlaGrid => {
    const axes = [axisOf("isl", rows), axisOf("ttft", columns)];
    const cells = rows.cells * columns.cells;
    return gridOf(
      axes,
      Array.from({ length: cells }, () => pools.next().value ?? 0),
    );
  };
  fc.assert(
    fc.property(
      drawn,
      drawn,
      fc.array(fc.tuple(fc.integer({ min: 0, max: 1200 }), fc.integer({ min: 0, max: 1200 }))),
      (one, other, points) => {
        const pair: GridPair = { before: gridFrom(one), after: gridFrom(other), isSame };
        expect(changedRegions({ ...pair, after: pair.before })).toEqual([]);
        const regions = changedRegions(pair);
        for (const [tokens, targetMs] of points) {
          const query = queryOf(tokens, targetMs);
          const from = selectPool(pair.before, query).pool;
          const to = selectPool(pair.after, query).pool;
          const inside = regions.filter(({ sides }) =>
            sides.every(({ axis: name, low, high }) => {
              const value = name === "isl" ? tokens : targetMs;
              return (low ?? -1) <= value && value < (high ?? Number.POSITIVE_INFINITY);
            }),
          );
          // A point on an edge may be on either side of it by rounding.
          if (isOnEdge(pair, tokens, targetMs)) continue;
          const expected = from === to ? [] : [{ from, to }];
          expect(inside.map((region) => ({ from: region.from, to: region.to }))).toEqual(expected);
        }
      },
    ),
    { seed: 5, numRuns: 200 },
  );
});

interface AxisDraw {
  readonly cells: number;
  readonly max: number;
  readonly spacing: Spacing;
}

function axisOf(name: "isl" | "ttft", { cells, max, spacing }: AxisDraw): Axis {
  return makeAxis(name, { min: 10, max }, cells, spacing);
}

function isOnEdge({ before, after }: GridPair, tokens: number, targetMs: number): boolean {
  return [before, after].some(({ axes }) =>
    axes.some(({ name, edges }) =>
      edges.some((edge) => Math.abs(edge - (name === "isl" ? tokens : targetMs)) < 1e-6),
    ),
  );
}
