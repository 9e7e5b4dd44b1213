/** Grids and the traffic that falls into them, as the `--json` of grid commands states them. */
import type { RolePools } from "../config/pool-config.ts";
import { cellsOf } from "../core/grid-builder.ts";
import type { GridTraffic } from "../core/grid-traffic.ts";
import { cellText } from "../core/sla-grid.ts";

/** Axes, pools, cells and priority rules of one role; with `traffic`, what falls into each. */
export function gridJson({ role, grid, pools }: RolePools, traffic: GridTraffic | undefined) {
  return {
    role,
    axes: grid.axes.map(({ name, min, max, spacing, edges }) => ({
      name,
      min,
      max,
      spacing,
      edges,
    })),
    ...traffic?.total,
    pools: pools.map(({ index, namespace, priority }) => ({
      pool: namespace,
      index,
      priority,
      ...traffic?.pools[index],
    })),
    cells: cellsJson(grid, pools, traffic),
    overrides: grid.overrides.map(({ minPriority, maxPriority, targetPool }, rule) => ({
      min_priority: minPriority,
      max_priority: maxPriority,
      pool: pools[targetPool]?.namespace,
      ...traffic?.overrides[rule],
    })),
    ...(traffic && { clamped: traffic.clamped }),
  };
}

/** Requests and tokens of one role by cell, pool, priority rule and end of an axis. */
export function trafficJson({ role, grid, pools }: RolePools, traffic: GridTraffic) {
  const { total, overrides, clamped } = traffic;
  const byPool = pools.map(({ namespace }, at) => ({ pool: namespace, ...traffic.pools[at] }));
  const cells = cellsJson(grid, pools, traffic);
  return { role, ...total, cells, pools: byPool, overrides, clamped };
}

/** Cells are row-major. */
function cellsJson(
  { axes, poolOfCell }: RolePools["grid"],
  pools: RolePools["pools"],
  traffic: GridTraffic | undefined,
) {
  return cellsOf(axes).map((cell, flat) => ({
    cell: cellText(cell),
    pool: pools[poolOfCell[flat] ?? -1]?.namespace,
    ...traffic?.cells[flat],
  }));
}
