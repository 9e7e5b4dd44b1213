import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import {
  type CalibrationOptions,
  calibrateGrid,
  type MeasuredCell,
  measuredCellsJson,
  readMeasuredCells,
} from "../../src/core/grid-calibrate.ts";
import { makeAxis, type SlaGrid } from "../../src/core/sla-grid.ts";

const namespaces = ["fast", "bulk"];
const options: CalibrationOptions = { costs: [4, 1], namespaces, countMin: 100 };

/** One row and three columns with targets 100, 200 and 300 ms. */
const grid: SlaGrid = {
  role: "prefill",
  axes: [
    makeAxis("isl", { min: 0, max: 1000 }, 1, "linear"),
    makeAxis("ttft", { min: 100, max: 400 }, 3, "linear"),
  ],
  poolOfCell: [0, 0, 1],
  overrides: [],
};

function cell(name: string, pool: string, count: number, p90Ms: number): MeasuredCell {
  return { cell: name, pool, latency: "ttft", count, p50Ms: p90Ms / 1.5, p90Ms };
}

function proposed(measured: readonly MeasuredCell[], own: SlaGrid = grid): string[] {
  return calibrateGrid(own, measured, options).map(
    ({ proposed: pool, reason }) => `${namespaces[pool]} ${reason}`,
  );
}

it("keeps every cell while nothing is measured", () => {
  expect(proposed([])).toEqual(["fast", "fast", "bulk"].map((pool) => `${pool} not-enough-data`));
});

it("moves a cell to the cheapest pool that keeps its target", () => {
  const measured = [cell("0.0", "fast", 5000, 50), cell("0.2", "bulk", 5000, 150)];
  expect(proposed(measured)).toEqual(["fast meets", "bulk cheaper-meets", "bulk meets"]);
});

it("moves a cell from a pool that is too slow", () => {
  const measured = [cell("0.1", "fast", 5000, 50), cell("0.2", "bulk", 5000, 500)];
  expect(proposed(measured)).toEqual(["fast meets", "fast meets", "fast too-slow"]);
});

it("stays with a pool that is too slow when no other keeps the target", () => {
  const measured = [cell("0.1", "fast", 5000, 450), cell("0.2", "bulk", 5000, 500)];
  expect(proposed(measured)).toEqual(
    ["fast", "fast", "bulk"].map((pool) => `${pool} misses-but-no-better`),
  );
});

it("changes at the minimum count and not one below", () => {
  const measured = (count: number) => [
    cell("0.0", "fast", 5000, 20),
    cell("0.2", "bulk", count, 1000),
  ];
  expect(proposed(measured(99))[2]).toBe("bulk not-enough-data");
  expect(proposed(measured(100))[2]).toBe("fast too-slow");
  const other = (count: number) => [
    cell("0.0", "fast", count, 20),
    cell("0.2", "bulk", 5000, 1000),
  ];
  expect(proposed(other(99))[2]).toBe("bulk misses-but-no-better");
  expect(proposed(other(100))[2]).toBe("fast too-slow");
});

it("changes nothing while the interval holds the target", () => {
  const near = [cell("0.0", "fast", 5000, 20), cell("0.2", "bulk", 200, 310)];
  expect(proposed(near)[2]).toBe("bulk uncertain");
  const clear = [cell("0.0", "fast", 5000, 20), cell("0.2", "bulk", 20_000, 310)];
  expect(proposed(clear)[2]).toBe("fast too-slow");
});

it("takes the cells of one length as evidence together, and never those of another", () => {
  const rows: SlaGrid = {
    ...grid,
    axes: [makeAxis("isl", { min: 0, max: 1000 }, 2, "linear"), ...grid.axes.slice(1)],
    poolOfCell: [0, 0, 1, 0, 0, 1],
  };
  const measured = [
    cell("0.0", "fast", 60, 50),
    cell("0.1", "fast", 60, 50),
    cell("0.2", "bulk", 5000, 120),
  ];
  expect(proposed(measured, rows)).toEqual([
    "fast meets",
    "bulk cheaper-meets",
    "bulk meets",
    "fast not-enough-data",
    "fast not-enough-data",
    "bulk not-enough-data",
  ]);
});

it("asks an agg pool to keep both targets", () => {
  const agg: SlaGrid = {
    role: "agg",
    axes: [
      makeAxis("ttft", { min: 100, max: 200 }, 1, "linear"),
      makeAxis("itl", { min: 20, max: 40 }, 1, "linear"),
    ],
    poolOfCell: [0],
    overrides: [],
  };
  const both = (pool: string, ttftMs: number, itlMs: number): MeasuredCell[] => [
    cell("0.0", pool, 5000, ttftMs),
    { ...cell("0.0", pool, 5000, itlMs), latency: "itl" },
  ];
  expect(proposed([...both("fast", 50, 10), ...both("bulk", 50, 30)], agg)).toEqual(["fast meets"]);
  expect(proposed([...both("fast", 50, 10), ...both("bulk", 50, 10)], agg)).toEqual([
    "bulk cheaper-meets",
  ]);
  const half = both("bulk", 50, 10).slice(0, 1);
  expect(proposed([...both("fast", 50, 10), ...half], agg)).toEqual(["fast meets"]);
});

it("holds the true 90th percentile in its interval about 95 times in 100", () => {
  const random = mulberry32(7);
  const normal = (): number =>
    Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const sigma = 0.6;
  const trueP90 = 100 * Math.exp(1.2816 * sigma);
  const rounds = 400;
  let held = 0;
  for (let round = 0; round < rounds; round++) {
    const drawn = Array.from({ length: 300 }, () => 100 * Math.exp(sigma * normal()));
    drawn.sort((a, b) => a - b);
    const [p50Ms = 0, p90Ms = 0] = [drawn[149], drawn[269]];
    const measured = { ...cell("0.0", "fast", 300, p90Ms), p50Ms };
    const [first] = calibrateGrid(grid, [measured], options);
    const [evidence] = first?.evidence ?? [];
    if (!evidence) throw new Error("no evidence");
    if (evidence.lowMs <= trueP90 && trueP90 <= evidence.highMs) held++;
  }
  expect(held / rounds).toBeGreaterThan(0.92);
  expect(held / rounds).toBeLessThan(0.99);
});

it("leaves out pools and cells that the grid does not have", () => {
  const measured = [cell("0.0", "gone", 5000, 1), cell("7.7", "fast", 5000, 1)];
  expect(proposed(measured)[0]).toBe("fast not-enough-data");
});

it("reads what it writes, and names the place of what is wrong", () => {
  const cells = {
    configVersion: "ae6ef1b022cd",
    roles: [{ role: "prefill" as const, cells: [cell("0.0", "fast", 3, 60)] }],
  };
  expect(readMeasuredCells(JSON.parse(JSON.stringify(measuredCellsJson(cells))))).toEqual(cells);
  const withCell = (value: object) => () =>
    readMeasuredCells({ roles: [{ role: "agg", cells: [value] }] });
  const good = { cell: "0.0", pool: "p", latency: "itl", count: 1, p50_ms: 2, p90_ms: 3 };
  expect(withCell(good)().configVersion).toBeNull();
  expect(withCell({ ...good, count: 0, p50_ms: null })).not.toThrow();
  expect(withCell({ ...good, latency: undefined })).toThrow("/roles/0/cells/0/latency");
  expect(withCell({ ...good, count: -1 })).toThrow("/roles/0/cells/0/count");
  expect(withCell({ ...good, p50_ms: 4 })).toThrow("/roles/0/cells/0/p90_ms");
  expect(() => readMeasuredCells({ roles: [{ role: "x", cells: [] }] })).toThrow("/roles/0/role");
  expect(() => readMeasuredCells([])).toThrow("expected an object, got []");
});
