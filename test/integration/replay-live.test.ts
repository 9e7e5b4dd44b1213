/**
 * A replay against the real thing: the same 300 requests through frontend, both routers and four
 * workers as processes on a nats-server, in real time, and in virtual time without a bus.
 *
 * Conditions: mock engines in the time of their profile (no speed-up), which is slow for short
 * prompts so that engines and not this machine decide; about half of the workers' time in use, 25 s.
 * What a first token takes on its way through all processes is measured before, on the idle fleet against
 * a replay of the same few requests, and taken off. On a machine too busy for that the test is retried
 * where retries are on, with a fleet of its own: caches that were asked before answer otherwise.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { realClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import type { NatsServer } from "../../src/runtime/nats-server.ts";
import type { CompletionResult } from "../../src/sim/completion-client.ts";
import { runLoad } from "../../src/sim/demo-load.ts";
import type { TraceRequest } from "../../src/sim/mooncake-trace.ts";
import { prepareTrace } from "../../src/sim/replay/prepared-trace.ts";
import { replay } from "../../src/sim/replay/replay.ts";
import { type RunSummary, summaryOf } from "../../src/sim/replay/run-summary.ts";
import { synthesisPresets, synthesizeTrace } from "../../src/sim/trace-synth.ts";
import { readMockEngineConfig } from "../../src/worker/mock-engine-config.ts";
import { type AggFleet, createAggFleet } from "./agg-fleet.ts";
import { startNats } from "./nats-fixture.ts";
import { model } from "./stream-client.ts";

const workers = 4;
const spanMs = 25_000;
const idleRequests = 9;
const hitPointsMax = 0.02;
const ttftShareMax = 0.15;

/** 10 ms a pass and 0.32 ms a token: 394 ms for a prompt of 1,200 tokens. */
const engine = {
  block_size: 64,
  num_gpu_blocks: 1024,
  perf_model: {
    kind: "coefficients",
    prefill: { pass_ms: 10, ms_per_token: 0.32, ms_per_token_context: 0 },
    decode: { step_ms: 8, ms_per_active_kv_token: 0, ms_per_sequence: 0.1 },
  },
} as const;

/** Short prompts, half of them behind one of six agents' prompts, answers of some 20 tokens. */
const requests: readonly TraceRequest[] = synthesizeTrace({
  ...synthesisPresets.demo,
  requests: 300,
  durationMs: spanMs,
  agents: 6,
  agentBlocksMin: 1,
  agentBlocksMax: 3,
  userMeanTokens: 300,
  firstMu: 6,
  turnMu: 5,
  outMedian: 20,
  maxIsl: 4096,
}).map((request) => ({ ...request, outputTokens: Math.min(request.outputTokens, 40) }));

let folder: string;
let nats: NatsServer;
let fleet: AggFleet;

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "tiergrid-replay-"));
  const config = join(folder, "engine.json");
  writeFileSync(config, JSON.stringify(engine));
  nats = await startNats();
  fleet = createAggFleet(nats.url, { worker: ["--engine-config", config], workers });
  await fleet.up();
});

afterEach(async () => {
  await fleet?.down();
  fleet?.forget();
  await nats?.stop();
  rmSync(folder, { recursive: true, force: true });
});

async function answersOf(load: readonly TraceRequest[], seed: number): Promise<CompletionResult[]> {
  const answers: CompletionResult[] = [];
  await runLoad({
    url: fleet.api,
    model,
    requests: load,
    seed,
    clock: realClock,
    signal: AbortSignal.timeout(2 * spanMs),
    onStart: () => {},
    onResult: (result) => answers.push(result),
  });
  return answers;
}

/** The same requests in virtual time. */
function replayed(load: readonly TraceRequest[]): RunSummary {
  const random = mulberry32(1);
  const trace = prepareTrace(load, { blockSize: engine.block_size, spreadMs: 0, random });
  const pools = [{ engine: readMockEngineConfig(engine), workers, policy: "blocks" as const }];
  return summaryOf(trace, replay({ trace, pools, speed: 1, seed: 1 }));
}

/** Milliseconds that a first token takes beside the engine's, of prompts that nobody else has. */
async function wayMs(): Promise<number> {
  const load = Array.from({ length: idleRequests }, (_, at) => {
    const hashIds = [1_000_000 + 2 * at, 1_000_001 + 2 * at];
    return { arrivalMs: 400 * at, inputTokens: 1024, outputTokens: 2, hashIds };
  });
  const answers = await answersOf(load, 1);
  return medianOf(answers) - (replayed(load).ttft_ms.p50 ?? Number.NaN);
}

function medianOf(answers: readonly CompletionResult[]): number {
  const sorted = answers.map(({ ttftMs }) => ttftMs ?? Number.NaN).sort((a, b) => a - b);
  return sorted[Math.ceil(sorted.length / 2) - 1] ?? Number.NaN;
}

it("agrees with real processes on hit ratio and time to first token", async () => {
  const virtual = replayed(requests);
  const aside = await wayMs();
  const answers = await answersOf(requests, 42);
  expect(answers.map(({ outcome, fault }) => fault ?? outcome)).toEqual(
    requests.map(() => "completed"),
  );
  const sum = (of: (answer: CompletionResult) => number): number =>
    answers.reduce((total, answer) => total + of(answer), 0);
  const hit = sum(({ cachedTokens }) => cachedTokens) / sum(({ promptTokens }) => promptTokens);
  const ttftMs = medianOf(answers) - aside;
  const virtualMs = virtual.ttft_ms.p50 ?? Number.NaN;
  const seen = [
    `hit ratio ${hit.toFixed(3)} and ${virtual.hit_ratio}`,
    `TTFT p50 ${ttftMs.toFixed(1)} and ${virtualMs} ms, ${aside.toFixed(1)} ms taken off`,
  ].join("; ");
  expect(Math.abs(hit - virtual.hit_ratio), seen).toBeLessThanOrEqual(hitPointsMax);
  expect(Math.abs(ttftMs / virtualMs - 1), seen).toBeLessThanOrEqual(ttftShareMax);
});
