import fc from "fast-check";
import { expect, it } from "vitest";
import type { CostInput, CostWeights } from "../../src/core/worker-cost.ts";
import { blocksCost, cachedTokensOf } from "../../src/core/worker-cost.ts";
import golden from "../golden/selection.json" with { type: "json" };

interface GoldenWorker {
  readonly worker_id: string;
  readonly device_blocks: number;
  readonly host_ext_blocks?: number;
  readonly disk_ext_blocks?: number;
  readonly shared_beyond_device_blocks?: number;
  readonly active_prefill_tokens: number;
  readonly potential_decode_blocks: number;
  readonly active_requests?: number;
  readonly taints?: readonly string[];
  readonly expected_cached_tokens: number;
  readonly expected_cost: number;
}

interface GoldenRequest {
  readonly block_size: number;
  readonly isl_tokens: number;
  readonly track_prefill_tokens?: boolean;
  readonly worker_type?: string;
  readonly preferred_taints?: Readonly<Record<string, number>>;
}

function weightsOf(config: Readonly<Record<string, number>>): CostWeights {
  const all = { ...golden.config_defaults, ...config };
  return {
    overlapScoreCredit: all.overlap_score_credit,
    overlapScoreCreditDecay: all.overlap_score_credit_decay,
    prefillLoadScale: all.prefill_load_scale,
    hostCacheHitWeight: all.host_cache_hit_weight,
    diskCacheHitWeight: all.disk_cache_hit_weight,
    sharedCacheMultiplier: all.shared_cache_multiplier,
    decodeActiveRequestWeight: all.decode_active_request_weight,
  };
}

function inputOf(
  request: GoldenRequest,
  weights: CostWeights,
  workers: readonly GoldenWorker[],
): CostInput {
  const column = (of: (worker: GoldenWorker) => number | undefined): Int32Array =>
    Int32Array.from(workers, (worker) => of(worker) ?? 0);
  const preferred = request.preferred_taints;
  const pull = (worker: GoldenWorker): number =>
    (worker.taints ?? []).reduce((sum, taint) => sum + (preferred?.[taint] ?? 0), 0);
  return {
    islTokens: request.isl_tokens,
    blockSize: request.block_size,
    trackedBlocks: 0,
    nowMs: 0,
    trackPrefillTokens: request.track_prefill_tokens !== false,
    decodeOnly: request.worker_type === "decode",
    weights,
    overlap: {
      device: column((worker) => worker.device_blocks),
      hostExt: column((worker) => worker.host_ext_blocks),
      diskExt: column((worker) => worker.disk_ext_blocks),
      sharedBeyond: column((worker) => worker.shared_beyond_device_blocks),
    },
    load: {
      prefillTokens: Float64Array.from(workers, (worker) => worker.active_prefill_tokens),
      activeBlocks: Float64Array.from(workers, (worker) => worker.potential_decode_blocks),
      activeRequests: column((worker) => worker.active_requests),
    },
    shared: new Int32Array(workers.length),
    taintPull: preferred && Float64Array.from(workers, pull),
  };
}

for (const { name, request, config, workers, ...expected } of golden.cost) {
  it(`prices as the vectors say: ${name}`, () => {
    const listed = workers as readonly GoldenWorker[];
    const weights = weightsOf(config as Readonly<Record<string, number>>);
    const input = inputOf(request as unknown as GoldenRequest, weights, listed);
    const costs = new Float64Array(listed.length);
    const slots = Int32Array.from(listed.keys());
    expect(blocksCost.price(input, slots, listed.length, costs)).toBe(0);
    for (const [slot, worker] of listed.entries()) {
      expect(cachedTokensOf(input, slot)).toBe(worker.expected_cached_tokens);
      expect(Math.abs(costs[slot]! - worker.expected_cost)).toBeLessThan(golden.tolerance);
    }
    const lowest = Math.min(...costs);
    const ids = listed.filter((_, slot) => costs[slot] === lowest).map((one) => one.worker_id);
    expect(ids).toEqual(expected.expected_minimum_cost_worker_ids);
  });
}

const weight = fc.double({ min: 0, max: 20, noNaN: true });

it("equals the older form w * potential prefill blocks + decode blocks at credit 1", () => {
  const worker = fc.record({
    device: fc.nat(40),
    prefill: fc.nat(5000),
    decode: fc.nat(300),
  });
  const property = fc.property(
    fc.array(worker, { minLength: 1, maxLength: 6 }),
    fc.integer({ min: 640, max: 3000 }),
    weight,
    (rows, islTokens, scale) => {
      const workers = rows.map(({ device, prefill, decode }, at) => ({
        worker_id: String(at),
        device_blocks: device,
        active_prefill_tokens: prefill,
        potential_decode_blocks: decode,
        expected_cached_tokens: 0,
        expected_cost: 0,
      }));
      const weights = weightsOf({ prefill_load_scale: scale });
      const input = inputOf({ block_size: 16, isl_tokens: islTokens }, weights, workers);
      const costs = new Float64Array(rows.length);
      blocksCost.price(input, Int32Array.from(rows.keys()), rows.length, costs);
      for (const [at, { device, prefill, decode }] of rows.entries()) {
        const old = (scale * (prefill + islTokens - device * 16)) / 16 + decode;
        expect(Math.abs(costs[at]! - old)).toBeLessThan(1e-9 * Math.max(1, old));
      }
    },
  );
  fc.assert(property);
});

it("explains a cost by the terms that gave it", () => {
  const { request, workers } = golden.cost[9]!;
  const weights = weightsOf({ overlap_score_credit_decay: 1 });
  const input = inputOf(request as GoldenRequest, weights, workers as readonly GoldenWorker[]);
  expect(blocksCost.termsAt(input, 0, Int32Array.of(0, 1, 2), 3)).toEqual({
    mode: "blocks",
    rawPrefillBlocks: 30,
    creditDecay: 1 / 3,
    overlapCreditBlocks: (1 / 3) * 10,
    potentialDecodeBlocks: 0,
    activeRequestTerm: 0,
    taintFactor: 1,
    cost: 30 - 10 / 3,
  });
});

it("prices to the bit what its terms say, also where more is cached than the prompt has", () => {
  const worker = fc.record({
    device: fc.nat(60),
    prefill: fc.double({ min: 0, max: 5000, noNaN: true }),
    decode: fc.nat(300),
    requests: fc.nat(20),
  });
  const property = fc.property(
    fc.array(worker, { minLength: 1, maxLength: 6 }),
    fc.integer({ min: 1, max: 900 }),
    fc.constantFrom(16, 24, 64),
    weight,
    (rows, islTokens, blockSize, requestWeight) => {
      const workers = rows.map(({ device, prefill, decode, requests }, at) => ({
        worker_id: String(at),
        device_blocks: device,
        active_prefill_tokens: prefill,
        potential_decode_blocks: decode,
        active_requests: requests,
        expected_cached_tokens: 0,
        expected_cost: 0,
      }));
      const weights = weightsOf({ decode_active_request_weight: requestWeight });
      const request = { block_size: blockSize, isl_tokens: islTokens };
      const input = inputOf(request, weights, workers);
      const candidates = Int32Array.from(rows.keys());
      const costs = new Float64Array(rows.length);
      expect(blocksCost.price(input, candidates, rows.length, costs)).toBe(0);
      const termsOf = (slot: number) => blocksCost.termsAt(input, slot, candidates, rows.length);
      expect(Array.from(costs)).toEqual(Array.from(candidates, (slot) => termsOf(slot).cost));
    },
  );
  fc.assert(property);
});

it("counts costs that are not finite", () => {
  const { request, workers } = golden.cost[0]!;
  const weights = { ...weightsOf({}), prefillLoadScale: Number.MAX_VALUE };
  const input = inputOf(request as GoldenRequest, weights, workers as readonly GoldenWorker[]);
  const costs = new Float64Array(3);
  expect(blocksCost.price(input, Int32Array.of(0, 1, 2), 3, costs)).toBe(3);
});
