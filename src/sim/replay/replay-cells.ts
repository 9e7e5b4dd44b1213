/**
 * Latencies per cell and pool of a grid, measured by replaying a trace against mock engines in
 * virtual time: the grid sends each request to its pool, and a share of them to any pool, so that
 * there is evidence about pools that the grid does not use for such requests.
 */
import { TiergridError } from "../../base/errors.ts";
import { mulberry32, randomInt } from "../../base/random.ts";
import type { RolePools } from "../../config/pool-config.ts";
import type { Latency, MeasuredCell } from "../../core/grid-calibrate.ts";
import { type AxisName, cellText, type GridQuery, selectPool } from "../../core/sla-grid.ts";
import { readMockEngineConfig } from "../../worker/mock-engine-config.ts";
import type { TraceRequest } from "../mooncake-trace.ts";
import { type PreparedTrace, prepareTrace } from "./prepared-trace.ts";
import { type ReplayPool, replay } from "./replay.ts";
import type { ReplayRun } from "./replay-run.ts";

/** The engines of one pool; `engine` holds options of the mock engine by their names in a file. */
export interface PoolEngines {
  readonly workers: number;
  readonly engine: Readonly<Record<string, unknown>>;
}

export interface CellsReplay {
  readonly pools: RolePools;
  readonly enginesOf: (namespace: string) => PoolEngines;
  readonly requests: readonly TraceRequest[];
  /** What the grid reads of a request, by its place in `requests`. */
  readonly queryOf: (place: number) => GridQuery;
  readonly spreadMs: number;
  readonly speed: number;
  /** Share of the requests that go to any pool, drawn evenly. */
  readonly explore: number;
  readonly seed: number;
}

/** As `tiergrid replay` takes them, so that figures of both can be compared. */
const engineDefaults = { watermark: 0, cache_output_blocks: false, block_size: 512 } as const;

/**
 * TTFT, and in agg the mean ITL of each answer, of all that came. Throws `config_invalid` for decode
 * pools, whose prompts a replay cannot hand over, and for wrong engines.
 */
export function replayCells(options: CellsReplay): MeasuredCell[] {
  const { pools, requests, queryOf, spreadMs, speed, explore, seed } = options;
  if (pools.role === "decode") {
    throw new TiergridError("config_invalid", "decode pools cannot be replayed");
  }
  const replayed = replayPools(options);
  const blockSize = replayed[0]?.engine.blockSize ?? engineDefaults.block_size;
  const random = mulberry32(seed);
  const trace = prepareTrace(requests, { blockSize, spreadMs, random });
  const places = new Map(requests.map((request, place) => [request, place]));
  const selected = trace.requests.map((request) =>
    selectPool(pools.grid, queryOf(places.get(request) ?? 0)),
  );
  const chosen = selected.map(({ pool }) =>
    random() < explore ? randomInt(random, 0, pools.pools.length - 1) : pool,
  );
  const run = replay({
    trace,
    pools: replayed,
    speed,
    seed,
    pickPool: (place) => ({ pool: chosen[place] ?? 0 }),
  });
  const latencies = pools.grid.axes.map(({ name }) => name).filter(isLatencyAxis);
  return latencies.flatMap((latency) =>
    cellsOfRun(run, trace, latency, (place) => {
      const namespace = pools.pools[chosen[place] ?? 0]?.namespace ?? "";
      return { cell: cellText(selected[place]?.cell ?? []), pool: namespace };
    }),
  );
}

function replayPools({ pools: { role, pools }, enginesOf }: CellsReplay): ReplayPool[] {
  const workerType = role === "prefill" ? "prefill" : "aggregated";
  const replayed = pools.map(({ namespace }): ReplayPool => {
    const { workers, engine } = enginesOf(namespace);
    const options = { ...engineDefaults, ...engine, worker_type: workerType };
    return { engine: readMockEngineConfig(options), workers, policy: "latency" };
  });
  const sizes = new Set(replayed.map(({ engine }) => engine.blockSize));
  if (sizes.size > 1) {
    const message = `pools of one role need one block size in a replay, got ${[...sizes].join(", ")}`;
    throw new TiergridError("config_invalid", message);
  }
  return replayed;
}

type Origin = Pick<MeasuredCell, "cell" | "pool">;

/** Exact quantiles of one latency by cell and pool. */
function cellsOfRun(
  run: ReplayRun,
  trace: PreparedTrace,
  latency: Latency,
  originOf: (place: number) => Origin,
): MeasuredCell[] {
  const measured = new Map<string, Origin & { readonly valuesMs: number[] }>();
  for (let place = 0; place < trace.count; place++) {
    const valueMs = latency === "ttft" ? ttftOf(run, place) : itlOf(run, place);
    if (!(valueMs > 0)) continue;
    const origin = originOf(place);
    const key = `${origin.cell} ${origin.pool}`;
    const own = measured.get(key) ?? { ...origin, valuesMs: [] };
    own.valuesMs.push(valueMs);
    measured.set(key, own);
  }
  return [...measured.values()].map(({ cell, pool, valuesMs }) => {
    const sorted = Float64Array.from(valuesMs).sort();
    const at = (share: number): number => sorted[Math.ceil(share * sorted.length) - 1] ?? 0;
    return { cell, pool, latency, count: sorted.length, p50Ms: at(0.5), p90Ms: at(0.9) };
  });
}

function ttftOf({ arrivalMs, firstMs }: ReplayRun, place: number): number {
  return (firstMs[place] ?? Number.NaN) - (arrivalMs[place] ?? 0);
}

/** Mean gap of a whole answer; NaN for an answer of one token. */
function itlOf(run: ReplayRun, place: number): number {
  const gaps = (run.tokens[place] ?? 0) - 1;
  if (gaps < 1 || !run.isWhole(place)) return Number.NaN;
  return ((run.lastMs[place] ?? 0) - (run.firstMs[place] ?? 0)) / gaps;
}

function isLatencyAxis(name: AxisName): name is Latency {
  return name === "ttft" || name === "itl";
}
