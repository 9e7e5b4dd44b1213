/**
 * A grid as a table for people: axis edges at the sides, a pool in every cell.
 *
 *   isl \ ttft   │ < 400 ms        400 .. 1600 ms  >= 1600 ms
 *   ─────────────┼──────────────────────────────────────────────
 *   < 8192       │ 0 prefill-fast  0 prefill-fast  1 prefill-bulk
 *   >= 8192      │ 0 prefill-fast  1 prefill-bulk  1 prefill-bulk
 */
import type { Axis, Role } from "../core/sla-grid.ts";
import { type PoolConfig, type RolePools, rolePools } from "./pool-config.ts";
import { isLatency } from "./pool-config-keys.ts";

/** Significant digits of an edge; log2 edges are irrational. */
const edgeDigits = 4;

/**
 * Text of `role`'s grid, one table per ISL cell when it has three axes, then pools and rules; `notes`
 * stand behind the pools of the cells, row-major.
 */
export function renderGrid(config: PoolConfig, role: Role, notes?: readonly string[]): string {
  const pools = rolePools(config, role);
  const { axes, poolOfCell } = pools.grid;
  const [rows, columns] = axes.slice(-2);
  const planes = axes.length === 3 ? axes[0] : undefined;
  if (!rows || !columns) return "";
  const tables: string[] = [];
  const tableCells = rows.cells * columns.cells;
  for (let plane = 0; plane < (planes?.cells ?? 1); plane++) {
    const from = plane * tableCells;
    const cells = poolOfCell.slice(from, from + tableCells);
    const title = planes ? `${planes.name} ${cellRange(planes, plane)}\n` : "";
    tables.push(
      title +
        renderTable(
          rows,
          columns,
          cells.map((pool, cell) => poolText(pools, pool, notes?.[from + cell])),
        ),
    );
  }
  const head = `${role} grid of config ${config.version}\n${axes.map(axisText).join("\n")}`;
  return `${[head, ...tables, poolsText(pools)].join("\n\n")}\n`;
}

/** Cells are row-major; columns line up. */
function renderTable(rows: Axis, columns: Axis, cells: readonly string[]): string {
  const grid: string[][] = [];
  const header = Array.from({ length: columns.cells }, (_, cell) => cellRange(columns, cell));
  grid.push([`${rows.name} \\ ${columns.name}`, ...header]);
  for (let row = 0; row < rows.cells; row++) {
    const from = row * columns.cells;
    grid.push([cellRange(rows, row), ...cells.slice(from, from + columns.cells)]);
  }
  const widths = grid[0]?.map((_, column) =>
    Math.max(...grid.map((line) => line[column]?.length ?? 0)),
  );
  const lines = grid.map((line) => {
    const [first = "", ...rest] = line.map((text, column) => text.padEnd(widths?.[column] ?? 0));
    return `${first} │ ${rest.join("  ")}`.trimEnd();
  });
  const left = widths?.[0] ?? 0;
  const longest = Math.max(...lines.map((line) => line.length));
  lines.splice(1, 0, `${"─".repeat(left + 1)}┼${"─".repeat(Math.max(longest - left - 2, 1))}`);
  return lines.join("\n");
}

/** Values that fall into a cell; the first and the last take everything beyond the axis. */
export function cellRange(axis: Axis, cell: number): string {
  const unit = isLatency(axis.name) ? " ms" : "";
  const low = edgeText(axis.edges[cell]);
  const high = edgeText(axis.edges[cell + 1]);
  if (axis.cells === 1) return "any";
  if (cell === 0) return `< ${high}${unit}`;
  return cell === axis.cells - 1 ? `>= ${low}${unit}` : `${low} .. ${high}${unit}`;
}

function axisText({ name, min, max, cells, spacing }: Axis): string {
  const unit = isLatency(name) ? "ms" : "tokens";
  return `  ${name}: ${min} .. ${max} ${unit}, ${cells} ${spacing} cell${cells === 1 ? "" : "s"}`;
}

function poolText({ pools }: RolePools, index: number, note?: string): string {
  const text = `${index} ${pools[index]?.namespace ?? ""}`;
  return note === undefined ? text : `${text} ${note}`;
}

function poolsText({ pools, grid, spill }: RolePools): string {
  const lines = pools.map(
    ({ index, namespace, priority }) => `  ${index} ${namespace}, priority ${priority}`,
  );
  for (const { minPriority, maxPriority, targetPool } of grid.overrides) {
    lines.push(`  request priority ${minPriority} .. ${maxPriority} goes to pool ${targetPool}`);
  }
  if (spill.enabled) {
    const slower = spill.allowSlower ? ", also to slower pools" : "";
    lines.push(`  spill on, ${spill.hopsMax} ${spill.hopsMax === 1 ? "hop" : "hops"}${slower}`);
  }
  return `pools (lower priority = faster)\n${lines.join("\n")}`;
}

function edgeText(edge = 0): string {
  if (Number.isInteger(edge)) return String(edge);
  return String(Number(edge.toPrecision(edgeDigits)));
}
