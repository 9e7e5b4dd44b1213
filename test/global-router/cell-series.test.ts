import { expect, it } from "vitest";
import { rolePools } from "../../src/config/pool-config.ts";
import { createCellSeries } from "../../src/global-router/cell-series.ts";
import type { PoolDecision } from "../../src/global-router/pool-decision.ts";
import type { ActiveRole } from "../../src/global-router/pool-health.ts";
import { cellLabelsMax, declarePools } from "../../src/global-router/router-metrics.ts";
import {
  bookingMetrics,
  componentMetrics,
  globalRouterMetrics,
  processMetrics,
} from "../../src/runtime/metric-table.ts";
import { createMetrics } from "../../src/runtime/metrics.ts";
import { aggConfig } from "./rig.ts";

function rig() {
  const metrics = createMetrics({
    ...{ ...globalRouterMetrics, ...bookingMetrics },
    ...{ ...componentMetrics, ...processMetrics },
  });
  const config = aggConfig();
  /** A config that is put in force anew has roles of its own. */
  const activate = (): ActiveRole => ({ ...rolePools(config, "agg"), live: [] });
  const text = async (name: string): Promise<string[]> =>
    (await metrics.text()).split("\n").filter((line) => line.startsWith(`${name}{`));
  return { metrics, activate, ofCell: createCellSeries(metrics), text };
}

/** As much of a decision as says where it counts. */
const decisionOf = (role: ActiveRole, cell: readonly number[]): PoolDecision =>
  ({ role, selection: { cell } }) as unknown as PoolDecision;

it("counts by cell, pool, outcome and target, and shows only what was counted", async () => {
  const { activate, ofCell, text } = rig();
  const role = activate();
  const [pool0, pool1] = role.pools.map(({ namespace }) => namespace);
  const [first, second] = [decisionOf(role, [0, 1]), decisionOf(role, [1, 0])];
  for (let count = 0; count < 2; count++) ofCell(first).ofPool(0).ended("ok").add(1);
  ofCell(first).ofPool(1).ended("lost").add(1);
  ofCell(second).ofPool(1).target("ttft", "met", true).add(1);
  ofCell(second).ofPool(1).target("ttft", "met", false).add(2);
  expect(ofCell(second).ofPool(1).place).toEqual({ role: "agg", cell: "1.0", pool: pool1 });
  expect((await text("tiergrid_cell_requests_total")).sort()).toEqual(
    [
      `tiergrid_cell_requests_total{role="agg",cell="0.1",pool="${pool0}",outcome="ok"} 2`,
      `tiergrid_cell_requests_total{role="agg",cell="0.1",pool="${pool1}",outcome="lost"} 1`,
    ].sort(),
  );
  const labels = `role="agg",cell="1.0",pool="${pool1}",target="ttft",result="met"`;
  expect((await text("tiergrid_cell_sla_total")).sort()).toEqual([
    `tiergrid_cell_sla_total{${labels},explicit="false"} 2`,
    `tiergrid_cell_sla_total{${labels},explicit="true"} 1`,
  ]);
});

it("counts anew in a pool that was dropped and came back", async () => {
  const { activate, ofCell, text, metrics } = rig();
  const before = activate();
  const namespace = before.pools[0]!.namespace;
  const count = (role: ActiveRole) =>
    ofCell(decisionOf(role, [0, 0]))
      .ofPool(0)
      .ended("ok")
      .add(1);
  count(before);
  const live = [{ role: "agg", namespace }] as unknown as ActiveRole["live"];
  const dropped = { config: aggConfig(), roles: new Map([["agg" as const, { ...before, live }]]) };
  declarePools(metrics, "m", [], [dropped]);
  count(before);
  expect(await text("tiergrid_cell_requests_total")).toEqual([]);
  count(activate());
  expect(await text("tiergrid_cell_requests_total")).toEqual([
    `tiergrid_cell_requests_total{role="agg",cell="0.0",pool="${namespace}",outcome="ok"} 1`,
  ]);
});

it("counts a grid of too many cells as one, but knows each place", async () => {
  const { activate, ofCell, text } = rig();
  const role = activate();
  const [isl, ttft] = role.grid.axes;
  const axes = [
    { ...isl!, cells: cellLabelsMax },
    { ...ttft!, cells: 2 },
  ];
  const poolOfCell = new Array<number>(2 * cellLabelsMax).fill(0);
  const large = { ...role, grid: { ...role.grid, axes, poolOfCell } };
  for (const cell of [
    [0, 1],
    [399, 1],
  ]) {
    const series = ofCell(decisionOf(large, cell));
    series.selections.add(1);
    expect(series.ofPool(0).place.cell).toBe(cell.join("."));
  }
  expect(await text("tiergrid_grid_cell_selections_total")).toEqual([
    'tiergrid_grid_cell_selections_total{role="agg",cell="other"} 2',
  ]);
});
