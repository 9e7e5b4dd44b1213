import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32, randomInt } from "../../../src/base/random.ts";
import type { TraceRequest } from "../../../src/sim/mooncake-trace.ts";
import { type PolicyName, policyTable } from "../../../src/sim/replay/policy-table.ts";
import { prepareTrace } from "../../../src/sim/replay/prepared-trace.ts";
import { type ReplayOptions, replay } from "../../../src/sim/replay/replay.ts";
import type { ReplayRun } from "../../../src/sim/replay/replay-run.ts";
import { summaryOf } from "../../../src/sim/replay/run-summary.ts";
import { attainmentOf } from "../../../src/sim/replay/slo.ts";
import { synthesisPresets, synthesizeTrace } from "../../../src/sim/trace-synth.ts";
import { readMockEngineConfig } from "../../../src/worker/mock-engine-config.ts";

const names = Object.keys(policyTable) as PolicyName[];
const small = { block_size: 512, num_gpu_blocks: 512, watermark: 0, cache_output_blocks: false };
const engine = readMockEngineConfig(small);
const slice = synthesizeTrace(synthesisPresets["toolagent-ci"]).slice(0, 500);
const sliceTrace = prepareTrace(slice, { blockSize: 512, spreadMs: 0, random: mulberry32(1) });

function runOf(policy: PolicyName, more: Partial<ReplayOptions> = {}): ReplayRun {
  const pools = [{ engine, workers: 4, policy }];
  return replay({ trace: sliceTrace, pools, speed: 2, seed: 1, ...more });
}

function request(part: Partial<TraceRequest>): TraceRequest {
  return { arrivalMs: 0, inputTokens: 100, outputTokens: 5, hashIds: [0], ...part };
}

it.each(names)("ends every request with all its tokens, whatever chooses: %s", (policy) => {
  const run = runOf(policy);
  for (let place = 0; place < run.count; place++) {
    expect(run.tokens[place]).toBe(slice[place]?.outputTokens);
    expect(run.firstMs[place]).toBeGreaterThan(run.arrivalMs[place] ?? 0);
    expect(run.lastMs[place]).toBeGreaterThanOrEqual(run.firstMs[place] ?? 0);
    expect(run.worker[place]).toBeGreaterThanOrEqual(0);
  }
  expect(run.rejected).toBe(0);
});

it.each(names)("gives the same run for the same seed: %s", (policy) => {
  const [one, other] = [runOf(policy), runOf(policy)];
  expect(one.lastMs).toEqual(other.lastMs);
  expect(one.worker).toEqual(other.worker);
  expect(summaryOf(sliceTrace, one)).toEqual(summaryOf(sliceTrace, other));
});

it("draws ties and random choices from the seed", () => {
  expect(runOf("random", { seed: 2 }).worker).not.toEqual(runOf("random").worker);
});

it("serves prompts one by one on one worker as a queue does", () => {
  const gap = fc.integer({ min: 0, max: 400 });
  const tokens = fc.integer({ min: 1, max: 3000 });
  fc.assert(
    fc.property(fc.array(fc.tuple(gap, tokens), { minLength: 1, maxLength: 20 }), (rows) => {
      let atMs = 0;
      const requests = rows.map(([gapMs, inputTokens], place) => {
        atMs += gapMs;
        const hashIds = Array.from(
          { length: Math.ceil(inputTokens / 512) },
          (_, block) => 100 * place + block,
        );
        return { arrivalMs: atMs, inputTokens, outputTokens: 1, hashIds };
      });
      const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: mulberry32(1) });
      const alone = readMockEngineConfig({ ...small, max_num_seqs: 1, worker_type: "prefill" });
      const pools = [{ engine: alone, workers: 1, policy: "round-robin" as const }];
      const run = replay({ trace, pools, speed: 1, seed: 1 });
      let freeMs = 0;
      for (const [place, { arrivalMs, inputTokens }] of requests.entries()) {
        freeMs = Math.max(freeMs, arrivalMs) + alone.perf.prefillMs(inputTokens, 0);
        expect(run.firstMs[place]).toBeCloseTo(freeMs, 6);
      }
    }),
    { seed: 4, numRuns: 50 },
  );
});

it("takes all requests of an instant into the first pass of an idle engine", () => {
  const requests = [0, 0, 0].map((arrivalMs, place) => request({ arrivalMs, hashIds: [place] }));
  const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: mulberry32(1) });
  const run = replay({
    trace,
    pools: [{ engine, workers: 1, policy: "random" }],
    speed: 1,
    seed: 1,
  });
  expect(new Set(run.firstMs).size).toBe(1);
});

it("starts a turn the delay after the end of the turn before, both divided by the speed", () => {
  const requests = [
    request({ arrivalMs: 50, sessionId: "a" }),
    request({ arrivalMs: 0, sessionId: "a", delayMs: 700 }),
    request({ arrivalMs: 0, sessionId: "a", delayMs: 0 }),
  ];
  const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: mulberry32(1) });
  const pools = [{ engine, workers: 2, policy: "blocks" as const }];
  const run = replay({ trace, pools, speed: 2, seed: 1 });
  expect(run.arrivalMs[0]).toBe(25);
  expect(run.arrivalMs[1]).toBe((run.lastMs[0] ?? 0) + 350);
  expect(run.arrivalMs[2]).toBe(run.lastMs[1]);
});

it("goes on with a session whose turn was refused", () => {
  const requests = [
    request({ inputTokens: 512 * 600, hashIds: Array.from({ length: 600 }, (_, id) => id) }),
    request({ hashIds: [9000] }),
  ].map((each, turn) => ({ ...each, sessionId: "a", ...(turn > 0 ? { delayMs: 5 } : {}) }));
  const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: mulberry32(1) });
  const pools = [{ engine, workers: 1, policy: "latency" as const }];
  const run = replay({ trace, pools, speed: 1, seed: 1 });
  expect(run.rejected).toBe(1);
  expect(run.isWhole(0)).toBe(false);
  expect(run.firstMs[0]).toBeNaN();
  expect(run.isWhole(1)).toBe(true);
});

it("keeps pools apart: engines of their own, chosen by the caller", () => {
  const fast = readMockEngineConfig({ ...small, speedup_ratio: 10 });
  const pools = [
    { engine, workers: 2, policy: "blocks" as const },
    { engine: fast, workers: 1, policy: "least-loaded" as const },
  ];
  const run = runOf("blocks", { pools, pickPool: (place) => ({ pool: place % 2 }) });
  const meanTtft = (pool: number): number => {
    const places = [...run.pool.keys()].filter((place) => run.pool[place] === pool);
    const sum = places.reduce(
      (total, place) => total + (run.firstMs[place] ?? 0) - (run.arrivalMs[place] ?? 0),
      0,
    );
    return sum / places.length;
  };
  expect([...run.pool].every((pool, place) => pool === place % 2)).toBe(true);
  expect(Math.max(...[...run.worker].filter((_, place) => place % 2 === 1))).toBe(0);
  expect(meanTtft(1)).toBeLessThan(meanTtft(0) / 3);
  expect(run.engines).toHaveLength(3);
});

it("knows less of the caches when KV events come late, and never more when they come at once", () => {
  const hits = [0, 5_000, 600_000].map(
    (eventDelayMs) => summaryOf(sliceTrace, runOf("sglang-events", { eventDelayMs })).hit_ratio,
  );
  expect(hits[0]).toBeGreaterThan(hits[2] ?? 1);
  expect(hits[1]).toBeGreaterThan(hits[2] ?? 1);
});

it("books the end of a prompt, and prompts in prefill pools, only where every block is booked", () => {
  const requests = Array.from({ length: 8 }, (_, place) =>
    request({ arrivalMs: 1000 * place, outputTokens: 2000 }),
  );
  const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: mulberry32(1) });
  const perWorker = (policy: PolicyName): number[] => {
    const pools = [{ engine, workers: 4, policy }];
    const { worker } = replay({ trace, pools, speed: 1, seed: 1 });
    return [0, 1, 2, 3].map((own) => worker.filter((place) => place === own).length);
  };
  expect(perWorker("blocks-all-booked")).toEqual([2, 2, 2, 2]);
  expect(perWorker("blocks")).not.toEqual([2, 2, 2, 2]);
  const prefill = readMockEngineConfig({ ...small, worker_type: "prefill" });
  const workersOf = (policy: PolicyName): Int32Array =>
    runOf(policy, { speed: 20, pools: [{ engine: prefill, workers: 4, policy }] }).worker;
  expect(workersOf("blocks-all-booked")).not.toEqual(workersOf("blocks"));
  expect(workersOf("blocks-scale-10")).not.toEqual(workersOf("blocks-all-booked"));
});

it.each(["shared-cache", "shared-cache-planned"] as const)(
  "lets every worker have any block of the pool in the bound %s",
  (policy) => {
    const requests = Array.from({ length: 40 }, (_, place) =>
      request({
        arrivalMs: 1000 * place,
        inputTokens: 512 * 8 + 10,
        hashIds: [0, 1, 2, 3, 4, 5, 6, 7, 100 + place],
      }),
    );
    const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: mulberry32(1) });
    const pools = [{ engine, workers: 4, policy }];
    const run = replay({ trace, pools, speed: 1, seed: 1 });
    expect([...run.cached]).toEqual([0, ...Array(39).fill(8 * 512)]);
    expect(new Set(run.worker).size).toBe(4);
  },
);

it("plans the queues of prefill workers in one bound, in the other it knows their sums", () => {
  // Behind 8192 tokens there is no room in the first pass, which is all that sums tell apart.
  const requests = [8192, 5000, 5000, 5000, 5000].map((inputTokens, place) =>
    request({ arrivalMs: 20 * place, inputTokens, hashIds: [] }),
  );
  const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: mulberry32(1) });
  const prefill = readMockEngineConfig({ ...small, worker_type: "prefill" });
  const predicted = (policy: "shared-cache" | "shared-cache-planned"): number[] => {
    const pools = [{ engine: prefill, workers: 1, policy }];
    const run = replay({ trace, pools, speed: 1, seed: 1, predictions: true });
    return [...run.predictedMs];
  };
  const [sums, planned] = [predicted("shared-cache"), predicted("shared-cache-planned")];
  expect(sums[0]).toBeCloseTo(planned[0] ?? 0, 6);
  expect(sums[4]).not.toBeCloseTo(planned[4] ?? 0, 0);
});

it.each([42, 43, 44])("holds relations between policies near saturation, seed %i", (seed) => {
  const requests = synthesizeTrace({ ...synthesisPresets["toolagent-ci"], seed }).slice(0, 1500);
  const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: mulberry32(1) });
  const large = readMockEngineConfig({ ...small, num_gpu_blocks: 2048 });
  const targets = { ttftMs: 2000, tpotMs: 50 };
  const slo = { targets, prefillTtftMs: 1000, classes: [], classOf: new Uint8Array(0) };
  const measured = (policy: PolicyName) => {
    const pools = [{ engine: large, workers: 8, policy }];
    const run = replay({ trace, pools, speed: 5, seed: 1 });
    const { hit_ratio, ttft_ms } = summaryOf(trace, run);
    const { pair, deadline } = attainmentOf(slo, trace, run);
    return { hit: hit_ratio, mean: ttft_ms.mean ?? 0, p99: ttft_ms.p99 ?? 0, pair, deadline };
  };
  const random = measured("random");
  const robin = measured("round-robin");
  const blocks = measured("blocks");
  const latency = measured("latency");
  expect(latency.hit).toBeGreaterThan(robin.hit + 0.05);
  expect(latency.mean).toBeLessThan(blocks.mean);
  expect(blocks.mean).toBeLessThan(random.mean);
  expect(latency.p99).toBeLessThan(robin.p99);
  for (const other of [random, robin, blocks]) {
    expect(latency.pair).toBeGreaterThan(other.pair - 0.02);
    expect(latency.deadline).toBeGreaterThan(other.deadline - 0.02);
  }
});

it("replays any trace on any small pool to its end", () => {
  const seeds = fc.integer({ min: 0, max: 1_000_000 });
  fc.assert(
    fc.property(seeds, fc.constantFrom(...names), (seed, policy) => {
      const random = mulberry32(seed);
      const requests = Array.from({ length: 30 }, (_, place) => {
        const blocks = randomInt(random, 1, 12);
        const shared = randomInt(random, 0, blocks);
        return {
          arrivalMs: randomInt(random, 0, 2000),
          inputTokens: blocks * 512 - randomInt(random, 0, 511),
          outputTokens: randomInt(random, 1, 900),
          hashIds: Array.from({ length: blocks }, (_, block) =>
            block < shared ? block : 1000 * (place + 1) + block,
          ),
        };
      });
      const tight = readMockEngineConfig({ ...small, num_gpu_blocks: randomInt(random, 16, 40) });
      const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 500, random });
      const pools = [{ engine: tight, workers: randomInt(random, 1, 3), policy }];
      const run = replay({ trace, pools, speed: 1, seed });
      for (let place = 0; place < run.count; place++) expect(run.isWhole(place)).toBe(true);
    }),
    { seed: 9, numRuns: 60 },
  );
});
