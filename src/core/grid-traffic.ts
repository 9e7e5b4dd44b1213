/** Where requests fall in an SLA grid: by cell, by pool, and beyond the ends of the axes. */
import { type AxisName, type GridQuery, type Role, type SlaGrid, selectPool } from "./sla-grid.ts";

/** One request, as a grid reads it. */
export interface TrafficRequest {
  readonly query: GridQuery;
  readonly outputTokens: number;
}

/** A part of the traffic. Tokens are those the role computes: prompts, outputs, in agg both. */
export interface TrafficPart {
  readonly requests: number;
  readonly tokens: number;
}

export interface ClampedTraffic extends TrafficPart {
  readonly axis: AxisName;
  readonly end: "low" | "high";
}

export interface GridTraffic {
  readonly total: TrafficPart;
  /** Row-major; priority rules do not count here. */
  readonly cells: readonly TrafficPart[];
  /** By pool index, after priority rules; as long as the list of pools. */
  readonly pools: readonly TrafficPart[];
  /** By priority rule: the requests that it decided for. */
  readonly overrides: readonly TrafficPart[];
  /** Both ends of every axis. */
  readonly clamped: readonly ClampedTraffic[];
}

/** Sorts `requests` into `grid`, which leads to `pools` pools. */
export function trafficOf(
  grid: SlaGrid,
  pools: number,
  requests: readonly TrafficRequest[],
): GridTraffic {
  const total = emptySum();
  const cells = grid.poolOfCell.map(emptySum);
  const byPool = Array.from({ length: pools }, emptySum);
  const overrides = grid.overrides.map(emptySum);
  const clamped = grid.axes.flatMap(({ name }) =>
    (["low", "high"] as const).map((end) => ({ axis: name, end, ...emptySum() })),
  );
  for (const request of requests) {
    const { axes, pool, override } = selectPool(grid, request.query);
    const tokens = tokensOf(grid.role, request);
    let flat = 0;
    axes.forEach(({ axis, index, clamped: end }, place) => {
      flat = flat * axis.cells + index;
      if (end !== null) add(clamped[2 * place + (end === "low" ? 0 : 1)]!, tokens);
    });
    for (const sum of [total, cells[flat]!, byPool[pool]!]) add(sum, tokens);
    if (override) add(overrides[override.rule]!, tokens);
  }
  return { total, cells, pools: byPool, overrides, clamped };
}

/** Tokens that a pool of `role` computes for a request. */
export function tokensOf(role: Role, { query, outputTokens }: TrafficRequest): number {
  switch (role) {
    case "prefill":
      return query.tokens;
    case "decode":
      return outputTokens;
    case "agg":
      return query.tokens + outputTokens;
  }
}

interface Sum {
  requests: number;
  tokens: number;
}

function emptySum(): Sum {
  return { requests: 0, tokens: 0 };
}

function add(sum: Sum, tokens: number): void {
  sum.requests++;
  sum.tokens += tokens;
}
