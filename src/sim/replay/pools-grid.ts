/**
 * The static grid of a replayed layout: which pool it gives a request, whatever the load is.
 *
 *   pool config ──▶ selectPool ───────────────┐
 *   edges of both axes ──▶ worst corner ──────┼──▶ cell, pool ──(wrong cells, inverted)──▶ prior
 *   edges of tokens, the request's own target ┘
 */

import { TiergridError } from "../../base/errors.ts";
import type { Random } from "../../base/random.ts";
import { loadPoolConfigFile, poolConfigError } from "../../config/load-pool-config.ts";
import { rolePools } from "../../config/pool-config.ts";
import { buildCells, type Curve } from "../../core/grid-builder.ts";
import { type Axis, cellOf, type Role, type SlaGrid, selectPool } from "../../core/sla-grid.ts";
import { idlePrefillMs } from "./bounds.ts";
import type { BuiltGrid, LayoutPool, Selector } from "./pools-file.ts";

/** What a grid reads of a request. */
export interface GridRequest {
  readonly tokens: number;
  readonly ttftMs: number;
  readonly itlMs: number | undefined;
  /** Its class: requests of one class are in cells of their own where targets have no axis. */
  readonly group: number;
}

export interface StaticGrid {
  readonly cellCount: number;
  readonly at: (request: GridRequest) => { readonly cell: number; readonly pool: number };
}

/** Grid of `selector` over `pools`; one cell and pool 0 without one. Throws `config_invalid`. */
export async function staticGrid(
  role: Role,
  pools: readonly LayoutPool[],
  { grid }: Pick<Selector, "grid">,
  groups: number,
): Promise<StaticGrid> {
  if (grid === undefined) return { cellCount: 1, at: () => ({ cell: 0, pool: 0 }) };
  if (typeof grid === "string") return gridOf(await configGrid(grid, role, pools));
  const { tokenEdges, targetEdgesMs } = grid;
  const tokens = axisOf(role === "decode" ? "context_length" : "isl", tokenEdges);
  if (targetEdgesMs === undefined) return ownTargetGrid(role, pools, { grid, tokens, groups });
  const targets = axisOf(role === "decode" ? "itl" : "ttft", targetEdgesMs);
  const curves = pools.map((pool) => curveOf(role, pool, grid));
  const byLatency = { ttft: curves, itl: curves };
  const cells = buildCells([tokens, targets], { costs: pools.map(costOf), ...byLatency });
  const poolOfCell = cells.map(({ pool }) => pool);
  return gridOf({ role, axes: [tokens, targets], poolOfCell, overrides: [] });
}

/** Pool of each request, after what `selector` does wrong on purpose. */
export function priorPools(
  grid: StaticGrid,
  pools: readonly LayoutPool[],
  { wrongCells, inverted }: Pick<Selector, "wrongCells" | "inverted">,
  { requests, random }: { readonly requests: readonly GridRequest[]; readonly random: Random },
): Int32Array {
  const order = [...pools.keys()].sort((a, b) => rankOf(pools, a) - rankOf(pools, b));
  const opposite = new Map(order.map((pool, at) => [pool, order[order.length - 1 - at] ?? 0]));
  const drawn = Array.from({ length: grid.cellCount }, () =>
    random() < wrongCells ? Math.floor(random() * pools.length) : undefined,
  );
  return Int32Array.from(requests, (request) => {
    const { cell, pool } = grid.at(request);
    return drawn[cell] ?? (inverted ? (opposite.get(pool) ?? pool) : pool);
  });
}

function rankOf(pools: readonly LayoutPool[], at: number): number {
  const pool = pools[at];
  return pool ? costOf(pool) : 0;
}

/** Price of one worker a second. */
function costOf({ gpus, costPerSecond }: LayoutPool): number {
  return gpus * costPerSecond;
}

function gridOf(grid: SlaGrid): StaticGrid {
  return {
    cellCount: grid.poolOfCell.length,
    at: ({ tokens, ttftMs, itlMs }) => {
      const { cell, pool } = selectPool(grid, {
        tokens,
        ttft: { valueMs: ttftMs, source: "class" },
        itl: { valueMs: itlMs ?? null, source: "class" },
        priority: null,
      });
      const flat = cell.reduce((sum, index, at) => sum * (grid.axes[at]?.cells ?? 1) + index, 0);
      return { cell: flat, pool };
    },
  };
}

/** Grid of a pool config, its pools by the places of their namesakes in the layout. */
async function configGrid(
  path: string,
  role: Role,
  pools: readonly LayoutPool[],
): Promise<SlaGrid> {
  const loaded = await loadPoolConfigFile(path, { ownNamespace: "" });
  if (!loaded.ok) throw poolConfigError(loaded.faults);
  const { grid, pools: named } = rolePools(loaded.config, role);
  const places = named.map(({ namespace }) => {
    const place = pools.findIndex((pool) => pool.namespace === namespace);
    if (place >= 0) return place;
    const message = `${path}: its pool ${namespace} is not in the layout`;
    throw new TiergridError("config_invalid", message);
  });
  return { ...grid, poolOfCell: grid.poolOfCell.map((pool) => places[pool] ?? 0), overrides: [] };
}

interface OwnTargets {
  readonly grid: BuiltGrid;
  readonly tokens: Axis;
  readonly groups: number;
}

/** The cheapest pool that serves the cell's longest request within this request's own target. */
function ownTargetGrid(
  role: Role,
  pools: readonly LayoutPool[],
  { grid, tokens, groups }: OwnTargets,
): StaticGrid {
  const promised = tokens.edges
    .slice(1)
    .map((edge) => pools.map((pool) => grid.headroom * idleMs(role, pool, edge, grid)));
  return {
    cellCount: tokens.cells * groups,
    at: ({ tokens: length, ttftMs, itlMs, group }) => {
      const row = cellOf(tokens, length);
      const targetMs = role === "decode" ? (itlMs ?? Number.POSITIVE_INFINITY) : ttftMs;
      return { cell: row * groups + group, pool: cheapest(pools, promised[row] ?? [], targetMs) };
    },
  };
}

/** The fastest where nobody is in time. */
function cheapest(
  pools: readonly LayoutPool[],
  promisedMs: readonly number[],
  targetMs: number,
): number {
  const score = (place: number): readonly [number, number] => {
    const ms = promisedMs[place] ?? Number.POSITIVE_INFINITY;
    return ms <= targetMs ? [0, rankOf(pools, place)] : [1, ms];
  };
  return [...pools.keys()].reduce((best, place) => {
    const [lateBest, rankBest] = score(best);
    const [late, rank] = score(place);
    return late < lateBest || (late === lateBest && rank < rankBest) ? place : best;
  }, 0);
}

function curveOf(role: Role, pool: LayoutPool, grid: BuiltGrid): Curve {
  const points = grid.tokenEdges.map((edge): [number, number] => [
    edge,
    grid.headroom * idleMs(role, pool, edge, grid),
  ]);
  return { type: "table", points };
}

/** Prefill alone, or a decode step of `designSequences` requests as long. */
function idleMs(role: Role, { engine }: LayoutPool, tokens: number, grid: BuiltGrid): number {
  if (role !== "decode") return idlePrefillMs(engine, tokens, 0);
  const { designSequences: sequences } = grid;
  const contextTokens = sequences * tokens;
  return engine.perf.decodeMs({
    sequences,
    activeKvTokens: contextTokens,
    capacityKvTokens: engine.numGpuBlocks * engine.blockSize,
    contextTokens,
  });
}

/** An axis of any rising edges: those of log2 axes are looked up, not computed. */
function axisOf(name: Axis["name"], edges: readonly number[]): Axis {
  const min = edges[0] ?? 0;
  const max = edges.at(-1) ?? min;
  return { name, min, max, cells: edges.length - 1, spacing: "log2", edges };
}
