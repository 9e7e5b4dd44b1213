import { readFileSync } from "node:fs";
import fc from "fast-check";
import { expect, it } from "vitest";
import { buildCells, type Curve, cellsOf, curveMs } from "../../src/core/grid-builder.ts";
import { type Axis, makeAxis, type Spacing } from "../../src/core/sla-grid.ts";

type FileCurve =
  | { readonly type: "linear"; readonly base_ms: number; readonly per_token_ms: number }
  | { readonly type: "table"; readonly points: readonly [number, number][] };

interface FileGrid {
  readonly size_min: number;
  readonly size_max: number;
  readonly size_resolution: number;
  readonly size_spacing?: Spacing;
  readonly latency_min_ms: number;
  readonly latency_max_ms: number;
  readonly latency_resolution: number;
  readonly latency_spacing?: Spacing;
}

const golden = JSON.parse(
  readFileSync(new URL("../golden/grid-builder.json", import.meta.url), "utf8"),
) as {
  readonly vectors: readonly {
    readonly name: string;
    readonly curves: readonly FileCurve[];
    readonly costs: readonly number[];
    readonly grid: FileGrid;
    readonly size_edges: readonly number[];
    readonly latency_edges_ms: readonly number[];
    readonly mapping: readonly number[][];
  }[];
  readonly midpoint_counterexample: { readonly mapping: readonly number[][] };
  readonly curves: {
    readonly cases: readonly {
      readonly curve: FileCurve;
      readonly vectors: readonly [number, number][];
    }[];
  };
  readonly errors: readonly {
    readonly curves: number;
    readonly costs: number;
    readonly error: string;
  }[];
};

function curveOf(curve: FileCurve): Curve {
  if (curve.type === "table") return curve;
  return { type: "linear", baseMs: curve.base_ms, perTokenMs: curve.per_token_ms };
}

function axesOf(grid: FileGrid): [Axis, Axis] {
  return [
    makeAxis(
      "isl",
      { min: grid.size_min, max: grid.size_max },
      grid.size_resolution,
      grid.size_spacing ?? "linear",
    ),
    makeAxis(
      "ttft",
      { min: grid.latency_min_ms, max: grid.latency_max_ms },
      grid.latency_resolution,
      grid.latency_spacing ?? "linear",
    ),
  ];
}

function rowsOf(cells: readonly number[], columns: number): number[][] {
  return Array.from({ length: cells.length / columns }, (_, row) =>
    cells.slice(row * columns, (row + 1) * columns),
  );
}

it.each(golden.vectors)("builds: $name", ({ curves, costs, grid, ...expected }) => {
  const [size, latency] = axesOf(grid);
  expect(size.edges).toEqual(expected.size_edges);
  expect(latency.edges).toEqual(expected.latency_edges_ms);
  const ttft = curves.map(curveOf);
  const built = buildCells([size, latency], { costs, ttft, itl: [] });
  const mapping = rowsOf(
    built.map(({ pool }) => pool),
    latency.cells,
  );
  expect(mapping).toEqual(expected.mapping);
  if (grid === golden.vectors[0]?.grid) {
    expect(mapping).not.toEqual(golden.midpoint_counterexample.mapping);
  }
});

it.each(golden.curves.cases)("reads the curve $curve", ({ curve, vectors }) => {
  for (const [tokens, ms] of vectors) expect(curveMs(curveOf(curve), tokens)).toBe(ms);
});

it.each(golden.errors)("refuses $curves curves with $costs costs", ({ curves, costs, error }) => {
  const axes = [
    makeAxis("isl", { min: 0, max: 1 }, 1, "linear"),
    makeAxis("ttft", { min: 0, max: 1 }, 1, "linear"),
  ];
  const ttft: Curve[] = new Array(curves).fill({ type: "linear", baseMs: 1, perTokenMs: 0 });
  const build = () => buildCells(axes, { costs: new Array(costs).fill(1), ttft, itl: [] });
  expect(build).toThrow(error);
});

it("refuses costs and curve values that are negative or not finite", () => {
  const axes = [
    makeAxis("context_length", { min: 0, max: 100 }, 1, "linear"),
    makeAxis("itl", { min: 1, max: 2 }, 1, "linear"),
  ];
  const build = (cost: number, perTokenMs: number) => () =>
    buildCells(axes, { costs: [cost], ttft: [], itl: [{ type: "linear", baseMs: 0, perTokenMs }] });
  expect(build(-1, 0)).toThrow("cost");
  expect(build(Number.NaN, 0)).toThrow("cost");
  expect(build(1, -1)).toThrow("curve value at 100 tokens: expected finite ms >= 0, got -100");
  expect(build(1, Number.POSITIVE_INFINITY)).toThrow("curve value");
  expect(build(1, 0)).not.toThrow();
});

const flat = (ms: number): Curve => ({ type: "linear", baseMs: ms, perTokenMs: 0 });
const cell = (name: "ttft" | "itl", ms: number): Axis =>
  makeAxis(name, { min: ms, max: ms + 1 }, 1, "linear");

it.each([
  ["the cheaper of two that meet both", [10, 10], [5, 5], [2, 1], 1],
  ["the one that meets both before a cheaper one that meets one", [10, 10], [5, 50], [2, 1], 0],
  ["the one with fewer misses", [200, 100], [50, 50], [1, 2], 1],
  ["lower TTFT when both miss both", [300, 200], [50, 60], [1, 2], 1],
  ["lower ITL when TTFT ties", [300, 300], [60, 50], [1, 2], 1],
  ["lower index when all ties", [300, 300], [60, 60], [2, 1], 0],
])("agg grids take %s", (_name, ttft, itl, costs, pool) => {
  const built = buildCells(
    [cell("ttft", 100), cell("itl", 20)],
    { costs, ttft: ttft.map(flat), itl: itl.map(flat) },
    { islTokens: 1, contextTokens: 1 },
  );
  expect(built[0]?.pool).toBe(pool);
});

it("reads an agg grid's lengths from its ISL axis, and the context from the design if longer", () => {
  const isl = makeAxis("isl", { min: 0, max: 1000 }, 1, "linear");
  const axes = [isl, cell("ttft", 100), cell("itl", 20)];
  const pools = { costs: [1], ttft: [flat(1)], itl: [flat(1)] };
  const tokens = (design?: { islTokens: number; contextTokens: number }) =>
    buildCells(axes, pools, design)[0]?.promises.map((promise) => promise.tokens);
  expect(tokens()).toEqual([1000, 1000]);
  expect(tokens({ islTokens: 7, contextTokens: 3000 })).toEqual([1000, 3000]);
  expect(() => buildCells(axes.slice(1), pools)).toThrow("design_isl and design_context");
});

it("keeps the promise of every met cell for every request inside the axes", () => {
  const curve = fc.record({
    baseMs: fc.nat(400),
    perTokenMs: fc.double({ min: 0, max: 0.1, noNaN: true }),
  });
  fc.assert(
    fc.property(
      fc.array(fc.tuple(curve, fc.nat(5)), { minLength: 1, maxLength: 4 }),
      fc.integer({ min: 1, max: 5 }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      (drawn, cells, sizeAt, targetAt) => {
        const axes = [
          makeAxis("isl", { min: 0, max: 8000 }, cells, "linear"),
          makeAxis("ttft", { min: 50, max: 1000 }, cells, "log2"),
        ] as const;
        const ttft = drawn.map(([line]): Curve => ({ type: "linear", ...line }));
        const costs = drawn.map(([, cost]) => cost);
        const built = buildCells(axes, { costs, ttft, itl: [] });
        expect(built.map((each) => each.cell)).toEqual(cellsOf(axes));
        for (const { cell: indexes, pool, met } of built) {
          const [row = 0, column = 0] = indexes;
          const size = between(axes[0], row, sizeAt);
          const target = between(axes[1], column, targetAt);
          const meets = ttft.map(
            (each) => curveMs(each, axes[0].edges[row + 1] ?? 0) <= (axes[1].edges[column] ?? 0),
          );
          expect(met).toBe(meets.includes(true));
          if (!met) continue;
          expect(curveMs(ttft[pool] ?? flat(0), size)).toBeLessThanOrEqual(target + 1e-9);
          const cheaper = meets.some((ok, other) => ok && (costs[other] ?? 0) < (costs[pool] ?? 0));
          expect(cheaper).toBe(false);
        }
      },
    ),
    { seed: 11, numRuns: 200 },
  );
});

function between({ edges }: Axis, index: number, share: number): number {
  const low = edges[index] ?? 0;
  return low + share * ((edges[index + 1] ?? 0) - low);
}
