/**
 * Builds the cells of an SLA grid from latency curves by the worst corner: a cell promises its
 * tightest target to its longest request.
 *
 *          100 ms       300 ms       500 ms     latency edges
 *     0 ┬────▲────────────▲────────────┐
 *       │    │ pool 1     │ pool 0     │        ▲ = target of the cell (lower edge)
 *  2000 ◀────┼────────────┼────────────┤        ◀ = size of the cell (upper edge)
 *       │    │ pool 2     │ pool 0     │
 *  4000 ◀────┴────────────┴────────────┘
 *
 * Of the pools whose curve at the size is within the target the cheapest takes the cell, ties the
 * lower index. Where none is: fewest missed targets, then lowest TTFT, then lowest ITL, then the
 * lower index. The promise ends at the axes: longer requests and tighter targets are clamped into
 * border cells.
 */
import { TiergridError } from "../base/errors.ts";
import type { Axis } from "./sla-grid.ts";

/** Latency in ms over request length in tokens; of measured latencies a stated quantile. */
export type Curve =
  | { readonly type: "linear"; readonly baseMs: number; readonly perTokenMs: number }
  /** [tokens, ms], tokens strictly ascending, at least one. */
  | { readonly type: "table"; readonly points: readonly (readonly [number, number])[] };

/** One entry per pool in each list; a list that the grid's axes do not ask for is not read. */
export interface PoolCurves {
  readonly costs: readonly number[];
  readonly ttft: readonly Curve[];
  readonly itl: readonly Curve[];
}

/** Lengths of the requests a grid without an ISL axis is built for, in tokens. */
export interface DesignLengths {
  readonly islTokens: number;
  readonly contextTokens: number;
}

/** One promise of a cell: `targetMs` for requests of `tokens`, and what the pool is said to need. */
export interface CellPromise {
  readonly latency: "ttft" | "itl";
  readonly tokens: number;
  readonly targetMs: number;
  readonly predictedMs: number;
}

export interface BuiltCell {
  readonly cell: readonly number[];
  readonly pool: number;
  /** TTFT before ITL. */
  readonly promises: readonly CellPromise[];
  /** False when no pool meets every target. */
  readonly met: boolean;
}

/** Latency of `curve` at `tokens`: tables are linear between points and after the last two. */
export function curveMs(curve: Curve, tokens: number): number {
  if (curve.type === "linear") return curve.baseMs + curve.perTokenMs * tokens;
  const { points } = curve;
  const first = points[0]!;
  if (points.length === 1 || tokens <= first[0]) return first[1];
  let right = 1;
  while (right < points.length - 1 && points[right]![0] < tokens) right++;
  const [fromTokens, fromMs] = points[right - 1]!;
  const [toTokens, toMs] = points[right]!;
  return fromMs + ((toMs - fromMs) * (tokens - fromTokens)) / (toTokens - fromTokens);
}

/**
 * Every cell of a grid with `axes`, row-major. Throws `config_invalid` without a curve, for lists
 * of different lengths, and for a cost or latency that is negative or not finite.
 */
export function buildCells(
  axes: readonly Axis[],
  pools: PoolCurves,
  design?: DesignLengths,
): BuiltCell[] {
  const latencies = axes
    .map(({ name }) => name)
    .filter((name) => name === "ttft" || name === "itl");
  for (const latency of latencies) checkCurves(pools.costs, pools[latency]);
  return cellsOf(axes).map((cell) => {
    const corners = latencies.map((latency) => cornerOf(axes, cell, latency, design));
    const candidates = pools.costs.map((_, pool) =>
      corners.map((corner) => promiseOf(corner, pools[corner.latency][pool]!)),
    );
    const pool = bestPool(candidates, pools.costs);
    const promises = candidates[pool]!;
    return { cell, pool, promises, met: missesOf(promises) === 0 };
  });
}

/** Indexes of every cell, row-major. */
export function cellsOf(axes: readonly Axis[]): number[][] {
  let cells: number[][] = [[]];
  for (const axis of axes) {
    const indexes = Array.from({ length: axis.cells }, (_, index) => index);
    cells = cells.flatMap((outer) => indexes.map((index) => [...outer, index]));
  }
  return cells;
}

/**
 * Tokens and target of a cell's worst corner. An agg grid's context is at least its prompt; without
 * an ISL axis both lengths are those of `design`, and leaving it out throws `config_invalid`.
 */
export function cornerOf(
  axes: readonly Axis[],
  cell: readonly number[],
  latency: "ttft" | "itl",
  design?: DesignLengths,
): Omit<CellPromise, "predictedMs"> {
  const sizeAt = axes.findIndex(({ name }) => name === "isl" || name === "context_length");
  const targetAt = axes.findIndex(({ name }) => name === latency);
  const targetMs = axes[targetAt]!.edges[cell[targetAt]!]!;
  if (sizeAt < 0 && design === undefined) {
    const message = "a grid without an isl axis needs design_isl and design_context";
    throw new TiergridError("config_invalid", message);
  }
  const edge = sizeAt < 0 ? 0 : axes[sizeAt]!.edges[cell[sizeAt]! + 1]!;
  const isl = sizeAt < 0 ? (design?.islTokens ?? 0) : edge;
  const context = Math.max(edge, design?.contextTokens ?? 0);
  return { latency, tokens: latency === "ttft" ? isl : context, targetMs };
}

function promiseOf(corner: Omit<CellPromise, "predictedMs">, curve: Curve): CellPromise {
  const predictedMs = curveMs(curve, corner.tokens);
  if (predictedMs >= 0 && Number.isFinite(predictedMs)) return { ...corner, predictedMs };
  const message = `curve value at ${corner.tokens} tokens: expected finite ms >= 0, got ${predictedMs}`;
  throw new TiergridError("config_invalid", message);
}

function bestPool(
  candidates: readonly (readonly CellPromise[])[],
  costs: readonly number[],
): number {
  let best = 0;
  for (let pool = 1; pool < candidates.length; pool++) {
    const other = candidates[best]!;
    const own = candidates[pool]!;
    const missed = missesOf(own) - missesOf(other);
    if (missed < 0) best = pool;
    else if (missed === 0 && missesOf(own) === 0) {
      if (costs[pool]! < costs[best]!) best = pool;
    } else if (missed === 0 && isFaster(own, other)) best = pool;
  }
  return best;
}

function missesOf(promises: readonly CellPromise[]): number {
  let missed = 0;
  for (const { predictedMs, targetMs } of promises) if (!(predictedMs <= targetMs)) missed++;
  return missed;
}

/** By the first latency in which the two differ. */
function isFaster(own: readonly CellPromise[], other: readonly CellPromise[]): boolean {
  for (let at = 0; at < own.length; at++) {
    const difference = own[at]!.predictedMs - other[at]!.predictedMs;
    if (difference !== 0) return difference < 0;
  }
  return false;
}

function checkCurves(costs: readonly number[], curves: readonly Curve[]): void {
  if (curves.length === 0)
    throw new TiergridError("config_invalid", "at least one curve is required");
  if (curves.length !== costs.length) {
    const counts = `got ${curves.length} and ${costs.length}`;
    const message = `curves and costs must have the same length, ${counts}`;
    throw new TiergridError("config_invalid", message);
  }
  for (const cost of costs) {
    if (cost >= 0 && Number.isFinite(cost)) continue;
    throw new TiergridError("config_invalid", `cost: expected a finite number >= 0, got ${cost}`);
  }
}
