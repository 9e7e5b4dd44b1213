import { expect, it } from "vitest";
import { mockEngineOptions, readMockEngineConfig } from "../../src/worker/mock-engine-config.ts";

it("has the defaults of the table and freezes them", () => {
  const config = readMockEngineConfig({});
  expect(config).toMatchObject({
    numGpuBlocks: 16_384,
    blockSize: 64,
    maxNumSeqs: 256,
    maxNumBatchedTokens: 8192,
    maxModelLen: Number.POSITIVE_INFINITY,
    watermark: 0.01,
    workerType: "aggregated",
    kvBytesPerToken: 0,
    kvTransferGbPerSecond: 64,
  });
  expect(Object.isFrozen(config)).toBe(true);
});

it("reports an unknown name with the valid ones, and everything wrong at once", () => {
  const read = () => readMockEngineConfig({ gpu_blocks: 1, watermark: 1, block_size: 0 });
  expect(read).toThrow(/gpu_blocks: unknown.*num_gpu_blocks.*block_size.*watermark/);
});

it.each([
  ["num_gpu_blocks", 0],
  ["max_num_seqs", 1.5],
  ["preemption_mode", "random"],
  ["speedup_ratio", 0],
  ["engine_type", "sglang"],
  ["zmq_kv_events_port", 5557],
  ["dp_size", null],
  ["perf_model", { kind: "quadratic" }],
])("refuses %s %s", (name, value) => {
  expect(() => readMockEngineConfig({ [name]: value })).toThrow(name);
});

it("takes null as no limit", () => {
  const config = readMockEngineConfig({ max_num_seqs: null, max_num_batched_tokens: null });
  expect(config.maxNumSeqs).toBe(Number.POSITIVE_INFINITY);
  expect(config.maxNumBatchedTokens).toBe(Number.POSITIVE_INFINITY);
});

it("understands the older role flags and refuses contradictions", () => {
  expect(readMockEngineConfig({ is_prefill: true }).workerType).toBe("prefill");
  expect(readMockEngineConfig({ is_decode: true, worker_type: "decode" }).workerType).toBe(
    "decode",
  );
  expect(() => readMockEngineConfig({ is_prefill: true, is_decode: true })).toThrow("at most one");
  expect(() => readMockEngineConfig({ is_prefill: true, worker_type: "decode" })).toThrow(
    "contradicts",
  );
});

it("describes every option", () => {
  for (const row of Object.values(mockEngineOptions)) expect(row.help.length).toBeGreaterThan(3);
});
