import { expect, it } from "vitest";
import { checkPoolConfig } from "../../../src/config/load-pool-config.ts";
import type { RolePools } from "../../../src/config/pool-config.ts";
import type { TraceRequest } from "../../../src/sim/mooncake-trace.ts";
import {
  type CellsReplay,
  replayCells,
  replayedEngine,
} from "../../../src/sim/replay/replay-cells.ts";

function rolesOf(file: object): readonly RolePools[] {
  const loaded = checkPoolConfig(file, { ownNamespace: "dynamo" });
  if (!loaded.ok) throw new Error(JSON.stringify(loaded.faults));
  return loaded.config.roles;
}

const [prefill, decode] = rolesOf({
  num_prefill_pools: 2,
  prefill_pool_dynamo_namespaces: ["fast", "bulk"],
  prefill_pool_selection_strategy: {
    isl_min: 0,
    isl_max: 4096,
    isl_resolution: 2,
    ttft_min_ms: 100,
    ttft_max_ms: 300,
    ttft_resolution: 1,
    prefill_pool_mapping: [[0], [1]],
  },
  num_decode_pools: 1,
  decode_pool_dynamo_namespaces: ["d"],
  decode_pool_selection_strategy: {
    context_length_min: 0,
    context_length_max: 4096,
    context_length_resolution: 2,
    itl_min_ms: 1,
    itl_max_ms: 2,
    itl_resolution: 1,
    decode_pool_mapping: [[0], [0]],
  },
});

/** So far apart that none waits for another, and nothing of one is cached for the next. */
const requests: TraceRequest[] = Array.from({ length: 200 }, (_, place) => ({
  arrivalMs: place * 10_000,
  inputTokens: place % 2 === 0 ? 1024 : 3072,
  outputTokens: 5,
  hashIds: Array.from({ length: place % 2 === 0 ? 2 : 6 }, (__, block) => place * 8 + block),
}));
const target = { valueMs: null, source: "test" };

function optionsOf(pools: RolePools | undefined, explore: number): CellsReplay {
  if (!pools) throw new Error("no such role");
  return {
    pools,
    engines: pools.pools.map(({ namespace }) => ({
      workers: 1,
      engine: replayedEngine(pools.role, { speedup_ratio: namespace === "fast" ? 4 : 1 }),
    })),
    requests,
    queryOf: (place) => ({
      tokens: requests[place]?.inputTokens ?? 0,
      ttft: target,
      itl: target,
      priority: null,
    }),
    spreadMs: 0,
    speed: 1,
    explore,
    seed: 1,
  };
}

/** Prefill of an idle engine, by the polynomial of the mock engine. */
const idleMs = (tokens: number): number =>
  4.209989e-7 * tokens * tokens + 1.518344e-2 * tokens + 16.50142;

it("measures the idle prefill of each cell at the pool that the grid chooses", () => {
  const { cells } = replayCells(optionsOf(prefill, 0));
  expect(cells).toHaveLength(2);
  const of = (name: string) => cells.find(({ cell }) => cell === name);
  expect(of("0.0")).toMatchObject({ pool: "fast", latency: "ttft", count: 100 });
  expect(of("1.0")).toMatchObject({ pool: "bulk", latency: "ttft", count: 100 });
  expect(of("0.0")?.p90Ms).toBeCloseTo(idleMs(1024) / 4, 6);
  expect(of("1.0")?.p50Ms).toBeCloseTo(idleMs(3072), 6);
});

it("sends the share that explores to every pool, and loses no request", () => {
  const { cells } = replayCells(optionsOf(prefill, 0.5));
  expect(cells.map(({ cell, pool }) => `${cell} ${pool}`).sort()).toEqual([
    "0.0 bulk",
    "0.0 fast",
    "1.0 bulk",
    "1.0 fast",
  ]);
  expect(cells.reduce((sum, { count }) => sum + count, 0)).toBe(requests.length);
  const explored = cells.filter(({ cell, pool }) => (cell === "0.0") !== (pool === "fast"));
  const share = explored.reduce((sum, { count }) => sum + count, 0) / requests.length;
  // Half explore, and half of those find the grid's own pool.
  expect(share).toBeGreaterThan(0.15);
  expect(share).toBeLessThan(0.35);
});

it("is the same for the same seed", () => {
  expect(replayCells(optionsOf(prefill, 0.3))).toEqual(replayCells(optionsOf(prefill, 0.3)));
});

it("measures TTFT and ITL of agg pools", () => {
  const [agg] = rolesOf({
    mode: "agg",
    num_agg_pools: 1,
    agg_pool_dynamo_namespaces: ["fast"],
    agg_pool_selection_strategy: {
      ttft_min_ms: 100,
      ttft_max_ms: 300,
      ttft_resolution: 1,
      itl_min_ms: 1,
      itl_max_ms: 2,
      itl_resolution: 1,
      agg_pool_mapping: [[0]],
    },
  });
  const { cells } = replayCells(optionsOf(agg, 0));
  expect(cells.map(({ latency, count }) => [latency, count])).toEqual([
    ["ttft", requests.length],
    ["itl", requests.length],
  ]);
});

/** One step of an otherwise idle engine: 5 ms and a millisecond per 1,000 tokens of context. */
const decodePerf = {
  kind: "coefficients",
  prefill: { pass_ms: 1000, ms_per_token: 1, ms_per_token_context: 0 },
  decode: { step_ms: 5, ms_per_active_kv_token: 0.001, ms_per_sequence: 0 },
};

it("measures the idle decode step of each cell, with prompts that are computed already", () => {
  const options = optionsOf(decode, 0);
  const engine = replayedEngine("decode", { perf_model: decodePerf });
  const { cells, rejected } = replayCells({ ...options, engines: [{ workers: 1, engine }] });
  expect(rejected).toBe(0);
  expect(cells).toMatchObject([
    { cell: "0.0", pool: "d", latency: "itl", count: 100 },
    { cell: "1.0", pool: "d", latency: "itl", count: 100 },
  ]);
  // Blocks of 512 tokens hold the prompt, and one more the output.
  expect(cells[0]?.p90Ms).toBeCloseTo(5 + 3 * 0.512, 6);
  expect(cells[1]?.p50Ms).toBeCloseTo(5 + 7 * 0.512, 6);
});

it("counts prompts that no engine can hold, and measures nothing of them", () => {
  const options = optionsOf(decode, 0);
  const engine = replayedEngine("decode", { num_gpu_blocks: 4 });
  const { cells, rejected } = replayCells({ ...options, engines: [{ workers: 1, engine }] });
  expect(rejected).toBe(100);
  expect(cells).toMatchObject([{ cell: "0.0", count: 100 }]);
});

it("tells how many requests were sent", () => {
  const sent: number[] = [];
  const many = Array.from({ length: 3 }, () => requests).flat();
  const trace = many.map((request, place) => ({ ...request, arrivalMs: place * 10_000 }));
  const options = { ...optionsOf(prefill, 0), requests: trace };
  replayCells({ ...options, queryOf: () => options.queryOf(0), onSent: (n) => void sent.push(n) });
  expect(sent).toEqual([256, 512]);
});

it("refuses pools of different block sizes", () => {
  const options = optionsOf(prefill, 0);
  const engines = [512, 256].map((block_size) => ({
    workers: 1,
    engine: replayedEngine("prefill", { block_size }),
  }));
  expect(() => replayCells({ ...options, engines })).toThrow("one block size");
});
