/**
 * Latencies per cell and pool of a grid, measured by replaying a trace against mock engines in
 * virtual time: the grid sends each request to its pool, and a share of them to any pool, so that
 * there is evidence about pools that the grid does not use for such requests. Each role is replayed by
 * itself: a decode pool gets prompts at their arrival, computed elsewhere and with their first token.
 */
import { TiergridError } from "../../base/errors.ts";
import { mulberry32, randomInt } from "../../base/random.ts";
import type { RolePools } from "../../config/pool-config.ts";
import type { Latency, MeasuredCell } from "../../core/grid-calibrate.ts";
import {
  type AxisName,
  cellText,
  type GridQuery,
  type Role,
  selectPool,
} from "../../core/sla-grid.ts";
import { type MockEngineConfig, readMockEngineConfig } from "../../worker/mock-engine-config.ts";
import type { TraceRequest } from "../mooncake-trace.ts";
import { prepareTrace } from "./prepared-trace.ts";
import { type PoolPick, type ReplayPool, replay } from "./replay.ts";
import type { ReplayRun } from "./replay-run.ts";

/** The workers of one pool, with equal engines. */
export interface PoolEngines {
  readonly workers: number;
  readonly engine: MockEngineConfig;
}

export interface CellsReplay {
  readonly pools: RolePools;
  /** By pool index. */
  readonly engines: readonly PoolEngines[];
  readonly requests: readonly TraceRequest[];
  /** What the grid reads of a request, by its place in `requests`. */
  readonly queryOf: (place: number) => GridQuery;
  readonly spreadMs: number;
  readonly speed: number;
  /** Share of the requests that go to any pool, drawn evenly. */
  readonly explore: number;
  readonly seed: number;
  /** Told now and then of the requests that have been sent to a pool. */
  readonly onSent?: (sent: number) => void;
}

/** Requests between two calls of `onSent`. */
const sentStep = 256;

export interface ReplayedCells {
  readonly cells: readonly MeasuredCell[];
  /** Requests that no engine took, such as prompts longer than its memory: nothing measures them. */
  readonly rejected: number;
}

/** As `tiergrid replay` takes them, so that figures of both can be compared. */
const engineDefaults = { watermark: 0, cache_output_blocks: false, block_size: 512 } as const;

/** Engine of a pool of `role` from options of the mock engine; throws `config_invalid`. */
export function replayedEngine(
  role: Role,
  options: Readonly<Record<string, unknown>>,
): MockEngineConfig {
  const workerType = role === "agg" ? "aggregated" : role;
  return readMockEngineConfig({ ...engineDefaults, ...options, worker_type: workerType });
}

/**
 * By the axes of the grid: TTFT, and the mean ITL of each whole answer, of all that came. Throws
 * `config_invalid` when block sizes differ.
 */
export function replayCells(options: CellsReplay): ReplayedCells {
  const { pools, requests, queryOf, spreadMs, speed, explore, seed } = options;
  const blockSize = blockSizeOf(options.engines);
  const random = mulberry32(seed);
  const trace = prepareTrace(requests, { blockSize, spreadMs, random });
  const places = new Map(requests.map((request, place) => [request, place]));
  const selected = trace.requests.map((request) =>
    selectPool(pools.grid, queryOf(places.get(request) ?? 0)),
  );
  const chosen = selected.map(({ pool }) =>
    random() < explore ? randomInt(random, 0, pools.pools.length - 1) : pool,
  );
  let sent = 0;
  const pickPool = (place: number): PoolPick => {
    sent++;
    if (sent % sentStep === 0) options.onSent?.(sent);
    return { pool: chosen[place] ?? 0 };
  };
  const replayed = options.engines.map(
    (engines): ReplayPool => ({ ...engines, policy: "latency" }),
  );
  const run = replay({ trace, pools: replayed, speed, seed, pickPool });
  // A decode pool is not timed for the token that comes with the prompt.
  const untimed = pools.role === "decode" ? 1 : 0;
  const latencies = pools.grid.axes.map(({ name }) => name).filter(isLatencyAxis);
  const cells = latencies.flatMap((latency) =>
    cellsOfRun(trace.count, latency, (place) => {
      const namespace = pools.pools[chosen[place] ?? 0]?.namespace ?? "";
      const valueMs = latency === "ttft" ? ttftOf(run, place) : itlOf(run, place, untimed);
      return { cell: cellText(selected[place]?.cell ?? []), pool: namespace, valueMs };
    }),
  );
  return { cells, rejected: run.rejected };
}

function blockSizeOf(engines: readonly PoolEngines[]): number {
  const sizes = [...new Set(engines.map(({ engine }) => engine.blockSize))];
  const [blockSize = engineDefaults.block_size] = sizes;
  if (sizes.length <= 1) return blockSize;
  const message = `pools of one role need one block size in a replay, got ${sizes.join(", ")}`;
  throw new TiergridError("config_invalid", message);
}

/** A latency of one request; NaN = there is none. */
interface Sample extends Pick<MeasuredCell, "cell" | "pool"> {
  readonly valueMs: number;
}

/** Exact quantiles of one latency by cell and pool. */
function cellsOfRun(
  count: number,
  latency: Latency,
  sampleOf: (place: number) => Sample,
): MeasuredCell[] {
  const measured = new Map<string, Omit<Sample, "valueMs"> & { readonly valuesMs: number[] }>();
  for (let place = 0; place < count; place++) {
    const { cell, pool, valueMs } = sampleOf(place);
    if (!(valueMs > 0)) continue;
    const key = `${cell} ${pool}`;
    const own = measured.get(key) ?? { cell, pool, valuesMs: [] };
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

/** Mean gap of a whole answer whose first tokens are `untimed`; NaN for one without a gap. */
function itlOf(run: ReplayRun, place: number, untimed: number): number {
  const gaps = (run.tokens[place] ?? 0) - untimed - 1;
  if (gaps < 1 || !run.isWhole(place)) return Number.NaN;
  return ((run.lastMs[place] ?? 0) - (run.firstMs[place] ?? 0)) / gaps;
}

function isLatencyAxis(name: AxisName): name is Latency {
  return name === "ttft" || name === "itl";
}
