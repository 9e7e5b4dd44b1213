import { expect, it } from "vitest";
import { mulberry32 } from "../../../src/base/random.ts";
import { prepareTrace } from "../../../src/sim/replay/prepared-trace.ts";
import { replay } from "../../../src/sim/replay/replay.ts";
import { attainmentOf } from "../../../src/sim/replay/slo.ts";
import { synthesisPresets, synthesizeTrace } from "../../../src/sim/trace-synth.ts";
import { readMockEngineConfig } from "../../../src/worker/mock-engine-config.ts";

const engine = readMockEngineConfig({
  num_gpu_blocks: 2048,
  block_size: 512,
  watermark: 0,
  cache_output_blocks: false,
  worker_type: "prefill",
});
const targets = { ttftMs: 2000, tpotMs: 50 };
const slo = { targets, prefillTtftMs: 1000, classes: [], classOf: new Uint8Array(0) };
const seeds = [45, 46, 47];
/** Where 11 % are late when own work is charged alike in an idle and a full pool. */
const speed = 11.5;

it("serves a prefill pool near saturation in time, where extra work has to be charged by it", () => {
  const shares = seeds.map((seed) => {
    const requests = synthesizeTrace({ ...synthesisPresets["toolagent-ci"], seed });
    const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: mulberry32(1) });
    const run = replay({ trace, pools: [{ engine, workers: 8, policy: "latency" }], speed, seed });
    return attainmentOf(slo, trace, run).prefill;
  });
  expect(shares.reduce((sum, share) => sum + share, 0) / shares.length).toBeGreaterThan(0.93);
});
