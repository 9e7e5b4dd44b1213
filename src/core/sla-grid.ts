/**
 * SLA grids: which pool a request belongs to, by its length and its latency targets.
 *
 * A grid has one axis per dimension, in mapping index order, and one pool per cell, row-major with
 * the last axis fastest. The 2x3 grid [isl][ttft] = [[0, 1, 2], [3, 3, 4]] is
 *
 *   cell          0.0  0.1  0.2  1.0  1.1  1.2
 *   poolOfCell  [  0,   1,   2,   3,   3,   4 ]
 *
 *   axis     edges[0]   edges[1]   edges[2]        cells = 2
 *   low side ◀──┤   0    │    1     ├──▶ high side  an edge belongs to the cell above it,
 *              min                 max             values outside use the nearest cell
 *
 * Invariants: min < max; edges.length = cells + 1, edges[0] = min, edges[cells] = max;
 * poolOfCell.length = product of all cells; every entry is a pool index. `config/pool-config.ts`
 * establishes them, so that selection is total: any value, also NaN, gives a pool.
 */

export type Role = "prefill" | "decode" | "agg";
export type AxisName = "isl" | "context_length" | "ttft" | "itl";
export type Spacing = "linear" | "log2";

/** One grid dimension; tokens for `isl` and `context_length`, milliseconds for `ttft` and `itl`. */
export interface Axis {
  readonly name: AxisName;
  readonly min: number;
  readonly max: number;
  readonly cells: number;
  readonly spacing: Spacing;
  /** Normative for log2; for linear spacing only a picture, since `cellOf` divides. */
  readonly edges: readonly number[];
}

/** Requests with min <= priority <= max go to `targetPool`; the first rule of a list wins. */
export interface PriorityOverride {
  readonly minPriority: number;
  readonly maxPriority: number;
  readonly targetPool: number;
}

export interface SlaGrid {
  readonly role: Role;
  readonly axes: readonly Axis[];
  readonly poolOfCell: readonly number[];
  readonly overrides: readonly PriorityOverride[];
}

/** A latency target and where it came from; `valueMs` null = no source gave one. */
export interface SlaTarget {
  readonly valueMs: number | null;
  readonly source: string;
}

export interface GridQuery {
  /** Token ids of the request: the ISL, and for decode the context length. */
  readonly tokens: number;
  readonly ttft: SlaTarget;
  readonly itl: SlaTarget;
  /** Higher is more important; null = the request carries none. */
  readonly priority: number | null;
}

/** Where a request falls on one axis. */
export interface AxisReading {
  readonly axis: Axis;
  readonly value: number;
  /** Source of the target, `token_count`, or `midpoint`. */
  readonly source: string;
  readonly index: number;
  readonly cellLow: number;
  readonly cellHigh: number;
  /** The side on which the value lies outside the axis. */
  readonly clamped: "low" | "high" | null;
}

export interface OverrideMatch {
  readonly rule: number;
  readonly minPriority: number;
  readonly maxPriority: number;
  readonly targetPool: number;
}

export interface PoolSelection {
  readonly role: Role;
  readonly cell: readonly number[];
  readonly gridPool: number;
  readonly pool: number;
  readonly reason: "grid" | "override";
  readonly axes: readonly AxisReading[];
  readonly override: OverrideMatch | null;
}

/** An axis with its edge table; needs min < max, cells >= 1, and min > 0 for log2. */
export function makeAxis(
  name: AxisName,
  bounds: { readonly min: number; readonly max: number },
  cells: number,
  spacing: Spacing,
): Axis {
  const { min, max } = bounds;
  const edges: number[] = [min];
  for (let k = 1; k < cells; k++) {
    edges.push(spacing === "log2" ? log2Edge(bounds, k, cells) : min + k * ((max - min) / cells));
  }
  edges.push(max);
  return { name, min, max, cells, spacing, edges };
}

/**
 * Pool of a request: its cell, then the first priority rule that covers it. Pure and total.
 * Axes read tokens or the target of their name; a missing target reads the axis midpoint.
 */
export function selectPool(grid: SlaGrid, query: GridQuery): PoolSelection {
  const axes: AxisReading[] = [];
  const cell: number[] = [];
  let flat = 0;
  for (const axis of grid.axes) {
    const reading = readAxis(axis, query);
    axes.push(reading);
    cell.push(reading.index);
    flat = flat * axis.cells + reading.index;
  }
  const gridPool = grid.poolOfCell[flat]!;
  const override = matchOverride(grid.overrides, query.priority);
  return {
    role: grid.role,
    cell,
    gridPool,
    pool: override ? override.targetPool : gridPool,
    reason: override ? "override" : "grid",
    axes,
    override,
  };
}

/** Place of a cell in `poolOfCell`. */
export function flatCell(grid: SlaGrid, cell: readonly number[]): number {
  let flat = 0;
  for (let at = 0; at < cell.length; at++) flat = flat * grid.axes[at]!.cells + cell[at]!;
  return flat;
}

/** Label text of a cell: `"1.0"`, `"2.0.1"`. */
export function cellText(cell: readonly number[]): string {
  return cell.join(".");
}

/**
 * Cell of `value`. The order of operations is part of the definition: pre-computed edges or
 * multiplying first differ in the last bit. NaN gives cell 0; -0 never leaves.
 */
export function cellOf(axis: Axis, value: number): number {
  if (axis.spacing === "log2") return cellByEdges(axis.edges, value);
  const step = (axis.max - axis.min) / axis.cells;
  const index = Math.trunc((value - axis.min) / step);
  return index > 0 ? Math.min(index, axis.cells - 1) : 0;
}

/** Value used when no target is given: arithmetic midpoint, geometric on a log2 axis. */
export function midpointOf(axis: Axis): number {
  return axis.spacing === "log2" ? Math.sqrt(axis.min * axis.max) : (axis.min + axis.max) / 2;
}

/** Cell used when no target is given: the middle, or the upper of the two middle cells. */
export function midpointCell(axis: Axis): number {
  return axis.spacing === "log2" ? Math.floor(axis.cells / 2) : cellOf(axis, midpointOf(axis));
}

/** First rule whose inclusive range holds `priority`; null without priority or match. */
export function matchOverride(
  rules: readonly PriorityOverride[],
  priority: number | null,
): OverrideMatch | null {
  if (priority === null) return null;
  for (let rule = 0; rule < rules.length; rule++) {
    const { minPriority, maxPriority, targetPool } = rules[rule]!;
    if (minPriority <= priority && priority <= maxPriority) {
      return { rule, minPriority, maxPriority, targetPool };
    }
  }
  return null;
}

function readAxis(axis: Axis, query: GridQuery): AxisReading {
  if (axis.name === "ttft") return readTarget(axis, query.ttft);
  if (axis.name === "itl") return readTarget(axis, query.itl);
  return reading(axis, query.tokens, "token_count", cellOf(axis, query.tokens));
}

function readTarget(axis: Axis, target: SlaTarget): AxisReading {
  if (target.valueMs === null) {
    return reading(axis, midpointOf(axis), "midpoint", midpointCell(axis));
  }
  return reading(axis, target.valueMs, target.source, cellOf(axis, target.valueMs));
}

function reading(axis: Axis, value: number, source: string, index: number): AxisReading {
  return {
    axis,
    value,
    source,
    index,
    cellLow: axis.edges[index]!,
    cellHigh: axis.edges[index + 1]!,
    clamped: value < axis.min ? "low" : value > axis.max ? "high" : null,
  };
}

/** Number of inner edges at or below `value`, by bisection. */
function cellByEdges(edges: readonly number[], value: number): number {
  let low = 0;
  let high = edges.length - 2;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (edges[middle]! <= value) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** Edge k of a log2 axis; exponents within 1e-9 of an integer give the exact power of two. */
function log2Edge(
  bounds: { readonly min: number; readonly max: number },
  k: number,
  cells: number,
) {
  const exponent = (k * Math.log2(bounds.max / bounds.min)) / cells;
  const whole = Math.round(exponent);
  return bounds.min * 2 ** (Math.abs(exponent - whole) < 1e-9 ? whole : exponent);
}
