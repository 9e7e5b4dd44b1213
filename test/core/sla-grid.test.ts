import { readFileSync } from "node:fs";
import fc from "fast-check";
import { expect, it } from "vitest";
import {
  type Axis,
  type AxisName,
  cellOf,
  cellText,
  type GridQuery,
  makeAxis,
  matchOverride,
  midpointCell,
  midpointOf,
  type Role,
  type SlaGrid,
  type Spacing,
  selectPool,
} from "../../src/core/sla-grid.ts";

type Json = Record<string, unknown>;
interface QueryInput {
  isl?: number | null;
  context_length?: number | null;
  ttft_target?: number | null;
  itl_target?: number | null;
  priority?: number | null;
}
interface AxisCase {
  name: string;
  axis: { min: number; max: number; resolution: number; spacing: Spacing };
  edges: number[];
  vectors: { x: number | null; index: number }[];
}
interface GridGroup {
  name: string;
  kind: Role;
  strategy: Json;
  vectors: { in: QueryInput; out: { cell: number[]; pool: number } }[];
}
interface FloatEdge {
  min: number;
  max: number;
  resolution: number;
  x: number;
  index: number;
  naive_index: number;
}
const golden = JSON.parse(
  readFileSync(new URL("../golden/grid.json", import.meta.url), "utf8"),
) as { groups: GridGroup[]; axes: { cases: AxisCase[] }; float_edges: { vectors: FloatEdge[] } };

const axesOfKind: Record<Role, AxisName[]> = {
  prefill: ["isl", "ttft"],
  decode: ["context_length", "itl"],
  agg: ["isl", "ttft", "itl"],
};

/** Builds a grid straight from a strategy, without the config loader. */
function gridOf(role: Role, strategy: Json): SlaGrid {
  const number = (key: string): number => (strategy[`${key}_ms`] ?? strategy[key]) as number;
  const axes = axesOfKind[role]
    .filter((name) => strategy[`${name}_resolution`] !== undefined)
    .map((name) =>
      makeAxis(
        name,
        { min: number(`${name}_min`), max: number(`${name}_max`) },
        number(`${name}_resolution`),
        (strategy[`${name}_spacing`] as Spacing) ?? "linear",
      ),
    );
  const mapping = strategy[`${role}_pool_mapping`] as unknown[];
  return { role, axes, poolOfCell: mapping.flat(2) as number[], overrides: [] };
}

function queryOf(input: QueryInput): GridQuery {
  return {
    tokens: input.isl ?? input.context_length ?? 0,
    ttft: { valueMs: input.ttft_target ?? null, source: "nvext.router" },
    itl: { valueMs: input.itl_target ?? null, source: "nvext.router" },
    priority: input.priority ?? null,
  };
}

for (const group of golden.groups) {
  it(`selects as the golden vectors say: ${group.name}`, () => {
    const grid = gridOf(group.kind, group.strategy);
    for (const vector of group.vectors) {
      const selection = selectPool(grid, queryOf(vector.in));
      expect(selection.cell, JSON.stringify(vector.in)).toEqual(vector.out.cell);
      expect(selection.pool).toBe(vector.out.pool);
      expect(selection.gridPool).toBe(vector.out.pool);
      expect(selection.reason).toBe("grid");
    }
  });
}

for (const { name, axis, edges, vectors } of golden.axes.cases) {
  it(`indexes the axis ${name}`, () => {
    const built = makeAxis("isl", axis, axis.resolution, axis.spacing);
    expect(built.edges).toEqual(edges);
    for (const { x, index } of vectors) {
      expect(x === null ? midpointCell(built) : cellOf(built, x), `x = ${x}`).toBe(index);
    }
  });
}

it("keeps the last bit of the linear formula where pre-computed edges would lose it", () => {
  for (const { min, max, resolution, x, index, naive_index } of golden.float_edges.vectors) {
    const axis = makeAxis("ttft", { min, max }, resolution, "linear");
    expect(cellOf(axis, x)).toBe(index);
    expect(index).not.toBe(naive_index);
  }
});

it("reports value, source, cell bounds and the clamped side of every axis", () => {
  const grid = gridOf("prefill", golden.groups[0]!.strategy);
  const { axes, cell, override } = selectPool(grid, {
    tokens: 40_000,
    ttft: { valueMs: 0, source: "x-slo-ttft-ms" },
    itl: { valueMs: null, source: "midpoint" },
    priority: 3,
  });
  expect(cellText(cell)).toBe("1.0");
  expect(override).toBeNull();
  expect(axes).toEqual([
    {
      axis: grid.axes[0],
      value: 40_000,
      source: "token_count",
      index: 1,
      cellLow: 16_000,
      cellHigh: 32_000,
      clamped: "high",
    },
    {
      axis: grid.axes[1],
      value: 0,
      source: "x-slo-ttft-ms",
      index: 0,
      cellLow: 10,
      cellHigh: 1505,
      clamped: "low",
    },
  ]);
});

it("reads the midpoint when no source gave a target, geometric on a log2 axis", () => {
  const linear = makeAxis("ttft", { min: 10, max: 3000 }, 2, "linear");
  const log2 = makeAxis("ttft", { min: 25, max: 1600 }, 3, "log2");
  expect(midpointOf(linear)).toBe(1505);
  expect(midpointOf(log2)).toBe(200);
  const grid: SlaGrid = { role: "prefill", axes: [log2], poolOfCell: [4, 5, 6], overrides: [] };
  const { pool, axes } = selectPool(grid, queryOf({ isl: 1 }));
  expect(pool).toBe(5);
  expect(axes[0]).toMatchObject({ value: 200, source: "midpoint", index: 1, clamped: null });
});

interface OverrideCase {
  name: string;
  grid_pool: number;
  rules: { min_priority: number; max_priority: number; target_pool: number }[];
  priority: number | null;
  pool: number;
  rule: number | null;
}
const overrideGolden = JSON.parse(
  readFileSync(new URL("../golden/priority-overrides.json", import.meta.url), "utf8"),
) as { vectors: OverrideCase[] };

for (const vector of overrideGolden.vectors) {
  it(`applies priority overrides: ${vector.name}`, () => {
    const overrides = vector.rules.map((rule) => ({
      minPriority: rule.min_priority,
      maxPriority: rule.max_priority,
      targetPool: rule.target_pool,
    }));
    expect(matchOverride(overrides, vector.priority)?.rule ?? null).toBe(vector.rule);
    const axes = [makeAxis("isl", { min: 0, max: 1 }, 1, "linear")];
    const grid: SlaGrid = { role: "prefill", axes, poolOfCell: [vector.grid_pool], overrides };
    const selection = selectPool(grid, queryOf({ isl: 1, priority: vector.priority }));
    expect(selection.pool).toBe(vector.pool);
    expect(selection.gridPool).toBe(vector.grid_pool);
    expect(selection.reason).toBe(vector.rule === null ? "grid" : "override");
  });
}

const axisArbitrary = fc
  .record({
    min: fc.double({ min: 1e-3, max: 1e6, noNaN: true }),
    span: fc.double({ min: 1e-3, max: 1e6, noNaN: true }),
    cells: fc.integer({ min: 1, max: 40 }),
    spacing: fc.constantFrom<Spacing>("linear", "log2"),
  })
  .map(
    ({ min, span, cells, spacing }): Axis =>
      makeAxis("isl", { min, max: min + span }, cells, spacing),
  );

const anyDouble = fc.oneof(
  fc.double(),
  fc.constantFrom(Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, -0),
);

it("is total: every double, also NaN and infinities, has a cell, and never -0", () => {
  fc.assert(
    fc.property(axisArbitrary, anyDouble, (axis, value) => {
      const index = cellOf(axis, value);
      expect(Number.isInteger(index) && index >= 0 && index < axis.cells).toBe(true);
      expect(Object.is(index, -0)).toBe(false);
    }),
  );
});

it("never moves to a lower cell as the value grows", () => {
  const value = fc.double({ min: -1e7, max: 1e7, noNaN: true });
  fc.assert(
    fc.property(axisArbitrary, value, value, (axis, a, b) => {
      expect(cellOf(axis, Math.min(a, b))).toBeLessThanOrEqual(cellOf(axis, Math.max(a, b)));
    }),
  );
});

it("counts log2 edges exactly as the linear scan of the definition does", () => {
  const value = fc.double({ min: -10, max: 2e6, noNaN: true });
  fc.assert(
    fc.property(axisArbitrary, value, fc.nat(), (axis, anywhere, pick) => {
      fc.pre(axis.spacing === "log2");
      for (const x of [anywhere, axis.edges[pick % axis.edges.length]!]) {
        let count = 0;
        for (let k = 1; k < axis.cells; k++) if (axis.edges[k]! <= x) count++;
        expect(cellOf(axis, x)).toBe(count);
      }
    }),
  );
});
