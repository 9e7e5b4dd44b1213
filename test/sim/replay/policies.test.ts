import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { mulberry32 } from "../../../src/base/random.ts";
import { polynomialPerf } from "../../../src/core/perf-model.ts";
import { blocksCost, type CostInput } from "../../../src/core/worker-cost.ts";
import { isImbalanced, sglang } from "../../../src/sim/replay/affinity-policies.ts";
import { dynamoLmetric } from "../../../src/sim/replay/dynamo-lmetric.ts";
import {
  leastLoaded,
  llmd,
  llmdScore,
  llmdSticky,
  lmetric,
  lmetricScore,
  type Policy,
  type PolicyRequest,
  powerOfTwo,
  queueSpan,
  stickyScore,
  stickyWorkers,
  uncachedTokens,
  type WorkerViews,
} from "../../../src/sim/replay/policies.ts";
import { policyTable } from "../../../src/sim/replay/policy-table.ts";
import { readMockEngineConfig } from "../../../src/worker/mock-engine-config.ts";

type Figures = Readonly<Record<string, number | boolean>>;
interface Vector {
  readonly params: Readonly<Record<string, number | string>>;
  readonly per_worker: Readonly<Record<string, Figures>>;
  readonly winners: readonly string[];
  readonly imbalanced?: boolean;
}
const golden = JSON.parse(
  readFileSync(new URL("../../golden/routing-policies.json", import.meta.url), "utf8"),
) as {
  readonly setup: {
    readonly now_ms: number;
    readonly max_num_batched_tokens: number;
    readonly capacity_blocks: number;
    readonly request: {
      readonly input_tokens: number;
      readonly block_size: number;
      readonly full_blocks: number;
    };
    readonly workers: readonly {
      readonly overlap_blocks: number;
      readonly pending: readonly { readonly uncached: number }[];
      readonly decoding_requests: number;
      readonly active_blocks: number;
      readonly active_prefix_blocks: number;
      readonly engine_waiting: number;
      readonly processed: number;
    }[];
  };
  readonly policies: Readonly<Record<string, Vector>>;
};
const { setup } = golden;
const { workers } = setup;
const pendingOf = (worker: (typeof workers)[number]): number =>
  worker.pending.reduce((sum, { uncached }) => sum + uncached, 0);
const inFlightOf = (worker: (typeof workers)[number]): number =>
  worker.pending.length + worker.decoding_requests;

const views: WorkerViews = {
  count: workers.length,
  overlapBlocks: Int32Array.from(workers, (worker) => worker.overlap_blocks),
  cachedBlocks: new Float64Array(workers.length),
  pendingTokens: Float64Array.from(workers, pendingOf),
  inFlight: Int32Array.from(workers, inFlightOf),
  processed: Float64Array.from(workers, (worker) => worker.processed),
  engineWaiting: Float64Array.from(workers, (worker) => worker.engine_waiting),
  engineKvUsage: Float64Array.from(
    workers,
    (worker) => worker.active_blocks / setup.capacity_blocks,
  ),
};
const request: PolicyRequest = {
  nowMs: setup.now_ms,
  inputTokens: setup.request.input_tokens,
  blockSize: setup.request.block_size,
  sequence: new Uint32Array(2 * setup.request.full_blocks),
};
const sticky = [
  "llmd_sticky_R15928_penalty18000",
  "llmd_sticky_R15928_penalty100",
  "llmd_sticky_R48400_penalty18000",
  "llmd_sticky_R48400_penalty100",
];

function vector(name: string): Vector {
  return golden.policies[name] as Vector;
}

function expectChoice(policy: Policy, { winners }: Vector): void {
  for (let seed = 0; seed < 20; seed++) {
    expect(winners).toContain(String(policy(request, views, mulberry32(seed))));
  }
}

function expectFigures(
  found: Vector,
  figure: string,
  of: (worker: number) => number,
  scale = 1,
): void {
  for (const [worker, figures] of Object.entries(found.per_worker)) {
    const expected = Number(figures[figure]);
    expect(of(Number(worker)) / expected, `${figure} of ${worker}`).toBeCloseTo(scale, 8);
  }
}

it("chooses the least loaded worker as the vectors say", () => {
  const found = vector("least_loaded");
  expectFigures(found, "in_flight", (worker) => views.inFlight[worker] ?? 0);
  expectChoice(leastLoaded, found);
});

it("scores lmetric as the vectors say", () => {
  const found = vector("lmetric");
  expectFigures(found, "score", (worker) => lmetricScore(request, views, worker));
  expectChoice(lmetric, found);
});

it.each([
  ["llmd_3_2_2", { prefix: 3, queue: 2, kvUsage: 2 }],
  ["llmd_1_1_1", { prefix: 1, queue: 1, kvUsage: 1 }],
] as const)("scores %s as the vectors say", (name, weights) => {
  const found = vector(name);
  const queues = queueSpan(views);
  expectFigures(found, "score", (worker) => llmdScore(weights, request, views, queues, worker));
  expectChoice(llmd(weights), found);
});

it.each(sticky)("keeps workers and scores them as the vectors say: %s", (name) => {
  const found = vector(name);
  const settings = {
    affinity: Number(found.params["affinityThreshold"]),
    prefillTokensPerSecond: Number(found.params["peakPrefillThroughput_tok_s"]),
    penaltyMaxMs: Number(found.params["maxTTFTPenaltyMs"]),
  };
  const kept = Object.values(found.per_worker).map((figures) => figures["kept"]);
  expect(stickyWorkers(settings, request, views)).toEqual(kept);
  expectFigures(found, "score_tokens", (worker) => stickyScore(request, views, worker));
  expectChoice(llmdSticky(settings), found);
});

it.each([
  ["sglang_event_32_1.1", 32],
  ["sglang_event_10_1.1", 10],
])("balances or follows the longest match as the vectors say: %s", (name, balanceAbs) => {
  const found = vector(name);
  const settings = { balanceAbs, balanceRel: 1.1, matchAbove: 0 };
  expect(isImbalanced(settings, views)).toBe(found.imbalanced);
  expectChoice(sglang(settings), found);
});

it.each([
  ["dynamo_default", blocksCost],
  ["dynamo_scale_10", blocksCost],
  ["dynamo_decay_1_request_weight_2", blocksCost],
  ["dynamo_lmetric", dynamoLmetric],
] as const)("prices blocks as the vectors say: %s", (name, costMode) => {
  const found = vector(name);
  const { params } = found;
  const input: CostInput = {
    nowMs: setup.now_ms,
    islTokens: request.inputTokens,
    blockSize: request.blockSize,
    // The partly filled block at the end of the prompt is booked with it.
    trackedBlocks: setup.request.full_blocks + 1,
    trackPrefillTokens: true,
    decodeOnly: false,
    weights: {
      overlapScoreCredit: Number(params["overlap_score_credit"]),
      overlapScoreCreditDecay: Number(params["overlap_score_credit_decay"] ?? 0),
      prefillLoadScale: Number(params["prefill_load_scale"] ?? 1),
      hostCacheHitWeight: 0.75,
      diskCacheHitWeight: 0.25,
      sharedCacheMultiplier: 0,
      decodeActiveRequestWeight: Number(params["decode_active_request_weight"] ?? 0),
    },
    overlap: { device: views.overlapBlocks },
    load: {
      prefillTokens: views.pendingTokens,
      activeBlocks: Float64Array.from(workers, (worker) => worker.active_blocks),
      activeRequests: views.inFlight,
    },
    shared: Int32Array.from(workers, (worker) => worker.active_prefix_blocks),
  };
  const costs = new Float64Array(workers.length);
  expect(costMode.price(input, Int32Array.from(workers.keys()), workers.length, costs)).toBe(0);
  expectFigures(found, "cost", (worker) => costs[worker] ?? 0);
  expect(found.winners).toEqual([String(costs.indexOf(Math.min(...costs)))]);
});

it("leaves no vector out; those of the cost mode `latency` are run beside it", () => {
  const dynamo = ["dynamo_default", "dynamo_scale_10", "dynamo_decay_1_request_weight_2"];
  const others = ["least_loaded", "lmetric", "dynamo_lmetric", "llmd_3_2_2", "llmd_1_1_1"];
  const sglangs = ["sglang_event_32_1.1", "sglang_event_10_1.1"];
  const latency = ["latency_default", "latency_ttft_only"];
  const names = [...dynamo, ...others, ...sticky, ...sglangs, ...latency];
  expect(Object.keys(golden.policies).sort()).toEqual(names.sort());
});

it("computes at least one token of a prompt that is cached whole", () => {
  const whole = { ...request, inputTokens: 128, blockSize: 64 };
  expect(uncachedTokens(whole, 2)).toBe(64);
  expect(uncachedTokens({ ...whole, inputTokens: 129 }, 2)).toBe(1);
  expect(uncachedTokens(whole, 0)).toBe(128);
});

it("draws two different workers and takes the first on a tie", () => {
  const equal = { ...views, inFlight: new Int32Array(4).fill(7) };
  const draws = (values: number[]) => () => values.shift() ?? 0;
  expect(powerOfTwo(request, equal, draws([0.5, 0.99]))).toBe(2);
  const other = { ...views, inFlight: Int32Array.from([9, 3, 9, 9]) };
  expect(powerOfTwo(request, other, draws([0.5, 0.99]))).toBe(1);
  expect(powerOfTwo(request, { ...views, count: 1 }, draws([0.9]))).toBe(0);
});

it("breaks ties uniformly", () => {
  const equal = { ...views, inFlight: new Int32Array(4).fill(7) };
  const random = mulberry32(3);
  const counts = [0, 0, 0, 0];
  for (let draw = 0; draw < 4000; draw++) {
    const worker = leastLoaded(request, equal, random);
    counts[worker] = (counts[worker] ?? 0) + 1;
  }
  for (const count of counts) expect(Math.abs(count - 1000)).toBeLessThan(120);
});

it("takes the engine's own peak for sticky affinity", () => {
  const kind = policyTable["llmd-sticky"];
  const engine = readMockEngineConfig({ max_num_batched_tokens: setup.max_num_batched_tokens });
  const peak = (8192 / polynomialPerf.prefillMs(8192, 8192 ** 2 / 2)) * 1000;
  expect(Math.round(peak / 100) * 100).toBe(48_400);
  const policy = kind.create({ workerIds: ["0", "1", "2", "3"], engine });
  expectChoice(policy, vector("llmd_sticky_R48400_penalty18000"));
});
