import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import { replayFlags } from "../../src/cli/flags-replay.ts";
import { type AdversarialTrace, adversarialTraces } from "../../src/sim/adversarial.ts";
import { formatMooncakeTrace, parseMooncakeTrace } from "../../src/sim/mooncake-trace.ts";
import { busiestShares } from "../../src/sim/replay/busiest-worker.ts";
import { type PreparedTrace, prepareTrace } from "../../src/sim/replay/prepared-trace.ts";
import { type ReplayPool, replay } from "../../src/sim/replay/replay.ts";
import type { ReplayRun } from "../../src/sim/replay/replay-run.ts";
import { summaryOf } from "../../src/sim/replay/run-summary.ts";
import { attainmentOf } from "../../src/sim/replay/slo.ts";
import { synthesisPresets, synthesizeTrace } from "../../src/sim/trace-synth.ts";
import { readMockEngineConfig } from "../../src/worker/mock-engine-config.ts";

const engine = readMockEngineConfig({
  num_gpu_blocks: 2048,
  block_size: 512,
  watermark: 0,
  cache_output_blocks: false,
});
const workers = 8;
const modes = ["blocks", "latency"] as const;
const names = Object.keys(adversarialTraces) as AdversarialTrace[];
const slo = {
  targets: { ttftMs: 2000, tpotMs: 50 },
  prefillTtftMs: 1000,
  classes: [],
  classOf: new Uint8Array(0),
};
/** What the guard lets a worker have beside twice the mean of the others. */
const spareRequests = 24;
const joinMs = 45_000;

function traceOf(name: AdversarialTrace): PreparedTrace {
  const requests = adversarialTraces[name](42);
  return prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: mulberry32(1) });
}

function runOf(
  trace: PreparedTrace,
  policy: (typeof modes)[number],
  more: Partial<ReplayPool> = {},
  speed = 1,
): ReplayRun {
  return replay({ trace, pools: [{ engine, workers, policy, ...more }], speed, seed: 42 });
}

/** By how much a chosen worker had more than twice the mean of the others; from the run alone. */
function mostAboveTwiceTheOthers(run: ReplayRun): number {
  const inFlight = new Array<number>(workers).fill(0);
  const ends: { atMs: number; worker: number }[] = [];
  const places = [...run.worker.keys()].sort(
    (a, b) => (run.arrivalMs[a] ?? 0) - (run.arrivalMs[b] ?? 0) || a - b,
  );
  for (const place of places) {
    ends.push({ atMs: run.lastMs[place] ?? 0, worker: run.worker[place] ?? 0 });
  }
  ends.sort((a, b) => a.atMs - b.atMs);
  let ended = 0;
  let most = Number.NEGATIVE_INFINITY;
  for (const place of places) {
    const nowMs = run.arrivalMs[place] ?? 0;
    // Arrivals of an instant come before what ends in it.
    for (; (ends[ended]?.atMs ?? Number.POSITIVE_INFINITY) < nowMs; ended++) {
      const at = ends[ended]?.worker ?? 0;
      inFlight[at] = (inFlight[at] ?? 0) - 1;
    }
    const worker = run.worker[place] ?? 0;
    const own = inFlight[worker] ?? 0;
    const total = inFlight.reduce((sum, count) => sum + count, 0);
    most = Math.max(most, own - (2 * (total - own)) / (workers - 1));
    inFlight[worker] = own + 1;
  }
  return most;
}

it.each(modes)(
  "gives no worker more than twice the others and the spare, in any trace: %s",
  (mode) => {
    for (const name of names) {
      const run = runOf(traceOf(name), mode);
      expect(mostAboveTwiceTheOthers(run), name).toBeLessThanOrEqual(spareRequests + 1e-9);
    }
  },
);

it.each(modes)("keeps a prompt that all ask for from one worker: %s", (mode) => {
  const trace = traceOf("herd-identical");
  const herd = runOf(trace, mode, { herdGuard: false });
  expect(busiestShares(trace, herd).requests_30s).toBe(1);
  expect(mostAboveTwiceTheOthers(herd)).toBeGreaterThan(1000);
  expect(attainmentOf(slo, trace, herd).pair).toBeLessThan(0.15);
  const run = runOf(trace, mode);
  const shares = busiestShares(trace, run);
  expect(shares.requests).toBeLessThan(0.3);
  expect(shares.requests_30s).toBeLessThan(0.3);
  expect(shares.tokens_30s).toBeLessThan(0.3);
  expect(attainmentOf(slo, trace, run).pair).toBeGreaterThan(0.99);
});

it("spreads a shared system prompt and keeps its hits", () => {
  const trace = traceOf("herd-system-prompt");
  const herd = runOf(trace, "latency", { herdGuard: false });
  const run = runOf(trace, "latency");
  expect(busiestShares(trace, herd).requests).toBeGreaterThan(0.9);
  expect(busiestShares(trace, run).requests).toBeLessThan(0.5);
  const before = summaryOf(trace, herd);
  const after = summaryOf(trace, run);
  expect(after.hit_ratio).toBeGreaterThan(before.hit_ratio - 0.002);
  expect(after.ttft_ms.mean).toBeLessThan(0.6 * (before.ttft_ms.mean ?? 0));
});

it.each(modes)("changes no choice where affinity is right: %s", (mode) => {
  const preset = { ...synthesisPresets["toolagent-ci"], requests: 2000, durationMs: 300_000 };
  const requests = synthesizeTrace(preset);
  const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: mulberry32(1) });
  for (const speed of [4, 5]) {
    const free = runOf(trace, mode, { herdGuard: false }, speed);
    expect(runOf(trace, mode, {}, speed).worker).toEqual(free.worker);
  }
});

it("does not bury a worker that joins empty", () => {
  const trace = traceOf("herd-long-answers");
  const late = { count: 1, joinMs };
  const own = (run: ReplayRun): number[] =>
    [...run.worker.keys()].filter((place) => {
      const atMs = run.arrivalMs[place] ?? 0;
      return run.worker[place] === workers - 1 && atMs < joinMs + 30_000;
    });
  const longestMs = (run: ReplayRun): number =>
    Math.max(...own(run).map((at) => (run.firstMs[at] ?? 0) - (run.arrivalMs[at] ?? 0)));
  const free = runOf(trace, "blocks", { late, herdGuard: false });
  const guarded = runOf(trace, "blocks", { late });
  const priced = runOf(trace, "latency", { late });
  expect(own(free).every((place) => (free.arrivalMs[place] ?? 0) >= joinMs)).toBe(true);
  expect(longestMs(free)).toBeGreaterThan(7_000);
  expect(longestMs(guarded)).toBeLessThan(4_000);
  expect(longestMs(priced)).toBeLessThan(1_500);
});

it("is what a replay can be asked for by name", () => {
  expect(replayFlags.synth.choices).toEqual(expect.arrayContaining(names));
});

it("makes the same traces from a seed, in the order of arrival, with the ids their lengths need", () => {
  for (const name of names) {
    const requests = adversarialTraces[name](7);
    const text = formatMooncakeTrace(requests);
    expect(formatMooncakeTrace(adversarialTraces[name](7)) === text).toBe(true);
    expect(formatMooncakeTrace(adversarialTraces[name](8)) === text).toBe(false);
    expect(parseMooncakeTrace(text)).toHaveLength(requests.length);
    const arrivals = requests.map(({ arrivalMs }) => arrivalMs);
    expect(arrivals.every((atMs, place) => atMs >= (arrivals[place - 1] ?? 0))).toBe(true);
  }
});
