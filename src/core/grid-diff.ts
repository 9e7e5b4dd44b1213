/**
 * What changes from one grid to another: the regions whose pool changes, and the requests of a
 * traffic that would move. Axes may differ; regions are cut at the edges of both.
 *
 *   before  │ 0       │ 1           │        regions  │ 0 → 0 │ 0 → 1 │ 1 → 1 │
 *   after   │ 0  │ 1                │                          ▲ changed
 */
import { type TrafficPart, type TrafficRequest, tokensOf } from "./grid-traffic.ts";
import { type AxisName, type GridQuery, type SlaGrid, selectPool } from "./sla-grid.ts";

/** Values from `low` up to below `high`; null = no bound on that side. */
export interface RegionSide {
  readonly axis: AxisName;
  readonly low: number | null;
  readonly high: number | null;
}

/** `from` is a pool of the grid before, `to` one of the grid after. */
export interface ChangedRegion {
  readonly sides: readonly RegionSide[];
  readonly from: number;
  readonly to: number;
}

export interface TrafficMove extends TrafficPart {
  readonly from: number;
  readonly to: number;
}

export interface GridPair {
  readonly before: SlaGrid;
  readonly after: SlaGrid;
  /** True when pool `from` of the one grid is pool `to` of the other. */
  readonly isSame: (from: number, to: number) => boolean;
}

/** Edges closer than this share of their value are one edge. */
const edgeTolerance = 1e-9;

/**
 * Regions whose pool changes, priority rules aside, in the order of the first axis, then the next;
 * neighbours with the same change are one region.
 */
export function changedRegions({ before, after, isSame }: GridPair): ChangedRegion[] {
  const names = [...new Set([...before.axes, ...after.axes].map(({ name }) => name))];
  let regions: RegionSide[][] = [[]];
  for (const axis of names) {
    const sides = sidesOf(axis, [before, after]);
    regions = regions.flatMap((outer) => sides.map((side) => [...outer, side]));
  }
  const changed = regions.flatMap((sides) => {
    const query = queryInside(sides);
    const from = selectPool(before, query).gridPool;
    const to = selectPool(after, query).gridPool;
    return isSame(from, to) ? [] : [{ sides, from, to }];
  });
  return names.reduceRight(mergedAlong, changed);
}

/** Requests whose pool changes, priority rules included; the largest move first. */
export function movedTraffic(
  { before, after, isSame }: GridPair,
  requests: readonly TrafficRequest[],
): TrafficMove[] {
  const moves = new Map<string, { from: number; to: number; requests: number; tokens: number }>();
  for (const request of requests) {
    const from = selectPool(before, request.query).pool;
    const to = selectPool(after, request.query).pool;
    if (isSame(from, to)) continue;
    const key = `${from} ${to}`;
    const move = moves.get(key) ?? { from, to, requests: 0, tokens: 0 };
    move.requests++;
    move.tokens += tokensOf(before.role, request);
    moves.set(key, move);
  }
  return [...moves.values()].sort((a, b) => b.requests - a.requests);
}

/** Joins regions that differ only in `axis` and touch there; the order of the first ones stays. */
function mergedAlong(regions: readonly ChangedRegion[], axis: AxisName): ChangedRegion[] {
  const lines = new Map<string, ChangedRegion[]>();
  for (const region of regions) {
    const { sides, from, to } = region;
    const others = sides.filter((side) => side.axis !== axis);
    const key = JSON.stringify([others, from, to]);
    const line = lines.get(key) ?? [];
    const last = line.at(-1);
    const high = last?.sides.find((side) => side.axis === axis)?.high ?? null;
    const own = sides.find((side) => side.axis === axis);
    if (last && own && own.low !== null && own.low === high) {
      const joined = last.sides.map((side) =>
        side.axis === axis ? { ...side, high: own.high } : side,
      );
      line[line.length - 1] = { ...last, sides: joined };
    } else line.push(region);
    lines.set(key, line);
  }
  return [...lines.values()].flat();
}

/** Intervals of one axis, cut at the inner edges of every grid that has it. */
function sidesOf(axis: AxisName, grids: readonly SlaGrid[]): RegionSide[] {
  const inner = grids
    .flatMap(({ axes }) => axes.filter(({ name }) => name === axis))
    .flatMap(({ edges }) => edges.slice(1, -1))
    .sort((a, b) => a - b);
  const edges: number[] = [];
  for (const edge of inner) {
    const last = edges.at(-1);
    if (last === undefined || edge - last > edgeTolerance * Math.abs(edge)) edges.push(edge);
  }
  const bounds = [null, ...edges, null];
  return bounds.slice(1).map((high, at) => ({ axis, low: bounds[at] ?? null, high }));
}

/** A request in the middle of a region, where rounding at its edges does not matter. */
function queryInside(sides: readonly RegionSide[]): GridQuery {
  const inside = (...axes: AxisName[]): number | null => {
    const side = sides.find(({ axis }) => axes.includes(axis));
    if (!side) return null;
    const { low, high } = side;
    if (low !== null && high !== null) return (low + high) / 2;
    if (low !== null) return low + Math.max(1, Math.abs(low));
    return high === null ? 0 : high - Math.max(1, Math.abs(high));
  };
  const target = (axis: AxisName) => ({ valueMs: inside(axis), source: "region" });
  return {
    tokens: inside("isl", "context_length") ?? 0,
    ttft: target("ttft"),
    itl: target("itl"),
    priority: null,
  };
}
