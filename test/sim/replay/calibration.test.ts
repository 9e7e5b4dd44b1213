import { expect, it } from "vitest";
import { mulberry32 } from "../../../src/base/random.ts";
import { type PerfModel, readPerfModel } from "../../../src/core/perf-model.ts";
import type { PolicyName } from "../../../src/sim/replay/policy-table.ts";
import { prepareTrace } from "../../../src/sim/replay/prepared-trace.ts";
import { replay } from "../../../src/sim/replay/replay.ts";
import { attainmentOf } from "../../../src/sim/replay/slo.ts";
import { synthesisPresets, synthesizeTrace } from "../../../src/sim/trace-synth.ts";
import { readMockEngineConfig } from "../../../src/worker/mock-engine-config.ts";

/** An engine 3.6 times slower a token than the polynomial, with quadratic attention. */
const truth = {
  kind: "coefficients",
  prefill: { pass_ms: 12, ms_per_token: 0.055, ms_per_token_context: 1.5e-6 },
  decode: { step_ms: 14, ms_per_active_kv_token: 2.2e-5, ms_per_sequence: 0.08 },
};
const engine = readMockEngineConfig({
  num_gpu_blocks: 2048,
  block_size: 512,
  max_num_batched_tokens: 2048,
  watermark: 0,
  cache_output_blocks: false,
  perf_model: truth,
});
const slo = {
  targets: { ttftMs: 5000, tpotMs: 100 },
  prefillTtftMs: 4000,
  classes: [],
  classOf: new Uint8Array(0),
};
const preset = { ...synthesisPresets["toolagent-ci"], seed: 42, requests: 2000 };
const requests = synthesizeTrace({ ...preset, durationMs: 300_000 });
const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: mulberry32(42) });
/** Where `blocks` loses a fifth of the requests. */
const speed = 2.2;

function deadlineShare(policy: PolicyName, profile?: PerfModel): number {
  const run = replay({ trace, pools: [{ engine, workers: 8, policy, profile }], speed, seed: 42 });
  return attainmentOf(slo, trace, run).deadline;
}

it("carries what the true profile would, from one that is wrong", () => {
  const blocks = deadlineShare("blocks");
  const known = deadlineShare("latency");
  // Learning what the profile says already loses little.
  expect(known).toBeGreaterThan(deadlineShare("latency-profile") - 0.012);
  const profiles = {
    polynomial: readPerfModel("polynomial"),
    "twice as fast": readPerfModel({ ...truth, speedup_ratio: 2 }),
    "half as fast": readPerfModel({ ...truth, speedup_ratio: 0.5 }),
  };
  for (const [name, profile] of Object.entries(profiles)) {
    const found = deadlineShare("latency", profile);
    expect(found, name).toBeGreaterThan(blocks + 0.1);
    expect(found, name).toBeGreaterThan(known - 0.02);
  }
});
