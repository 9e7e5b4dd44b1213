/**
 * Memory over time: does a process grow while prefixes and workers come and go?
 *
 *   warm up ── every 60 s one of two worker processes is killed and replaced ── readers stop ── at rest
 *           └─ each 30 s: garbage collected, what is left of the JavaScript heap ─┘
 *
 * The warm-up lasts until the rings of the last 10,000 decisions are full. 24 readers ask again as soon
 * as an answer has ended; after a few minutes no prompt shares a block with those of the start. Every
 * token is checked. The slope is Theil and Sen's (median of the slopes of all pairs of samples), its
 * bound the upper end of the 95 % interval.
 */
import { setMaxListeners } from "node:events";
import { Agent } from "node:http";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { realClock, sleep } from "../src/base/clock.ts";
import { type CompletionResult, complete } from "../src/sim/completion-client.ts";
import { synthesisPresets, synthesizeTrace } from "../src/sim/trace-synth.ts";
import { promptTokens } from "../src/sim/workload.ts";
import type { BenchOptions, BenchRow } from "./bench-row.ts";
import { layouts, model, type Part, type Parts, startParts } from "./process-fleet.ts";
import { compile, messageOf, outDir } from "./stream-bench-fleet.ts";

const readers = 24;
const engineSpeed = 4;
const readyMaxMs = 60_000;
const warmUpMaxMs = 1_800_000;
const retryMs = 250;
const restMs = 20_000;
const targetMbPerMinute = 0.1;
const measured: readonly string[] = ["global", "local", "frontend", "worker"];

interface Times {
  readonly warmUpAnswers: number;
  readonly soakMs: number;
  readonly sampleMs: number;
  readonly churnMs: number;
}
const fullTimes: Times = { warmUpAnswers: 12_000, soakMs: 1800e3, sampleMs: 30e3, churnMs: 60e3 };
const quickTimes: Times = { warmUpAnswers: 500, soakMs: 40e3, sampleMs: 4e3, churnMs: 15e3 };

/** Prompts of 2 k tokens, answers of 60. */
const traffic = {
  ...synthesisPresets.toolagent,
  ...{ requests: 4_000, durationMs: 600_000, agentShare: 0, shortOutShare: 0 },
  ...{ firstMu: 7, turnMu: 6, sessionTurns: 1.8, sessionGapMs: 30_000, outMedian: 50 },
};

export async function run({ quick, seed }: BenchOptions): Promise<BenchRow[]> {
  await compile("bench/share-frontend.ts", "bench/memory-probe.ts", "src/cli/main.ts");
  const probe = pathToFileURL(join(outDir, "bench", "memory-probe.js")).href;
  const execArgv = ["--expose-gc", "--import", probe];
  const fleet = await startParts(layouts.agg, { engineSpeed, execArgv });
  try {
    return await soak(fleet, seed, quick ? quickTimes : fullTimes);
  } finally {
    await fleet.stop();
  }
}

/** MB after a collection: JavaScript heap, buffers outside of it, and what the kernel counts. */
interface Sample {
  readonly minute: number;
  readonly heapMb: number;
  readonly buffersMb: number;
  readonly rssMb: number;
}

async function soak(fleet: Parts, seed: number, times: Times): Promise<BenchRow[]> {
  const load = await startLoad(fleet.url, seed);
  const warmUntilMs = realClock.nowMs() + warmUpMaxMs;
  while (load.counts.completed < times.warmUpAnswers) {
    if (realClock.nowMs() > warmUntilMs) throw new Error("the warm-up takes too long");
    await sleep(realClock, retryMs);
  }
  // The first worker process stays; the other is replaced again and again.
  const parts = measured.flatMap((name) => fleet.parts().find((part) => part.name === name) ?? []);
  const samples = parts.map((): Sample[] => []);
  const startMs = realClock.nowMs();
  const sampleAll = async (): Promise<readonly Sample[]> => {
    const minute = (realClock.nowMs() - startMs) / 60e3;
    return Promise.all(parts.map((part) => sampleOf(part, minute)));
  };
  let churnAtMs = startMs;
  while (realClock.nowMs() - startMs < times.soakMs) {
    for (const [at, sample] of (await sampleAll()).entries()) samples[at]?.push(sample);
    console.error(progressOf(samples, parts, load.counts));
    if (realClock.nowMs() >= churnAtMs) {
      fleet.replaceWorker();
      churnAtMs += times.churnMs;
    }
    await sleep(realClock, times.sampleMs);
  }
  await load.stop();
  await sleep(realClock, restMs);
  const atRest = await sampleAll();
  return parts.map((part, at) => rowOf(part, samples[at] ?? [], atRest[at], load.counts));
}

async function sampleOf({ child }: Part, minute: number): Promise<Sample> {
  child.send({ type: "memory" });
  const memory = (await messageOf(child, "memory")) as unknown as NodeJS.MemoryUsage;
  const mb = (bytes: number): number => bytes / 2 ** 20;
  const { heapUsed, arrayBuffers, rss } = memory;
  return { minute, heapMb: mb(heapUsed), buffersMb: mb(arrayBuffers), rssMb: mb(rss) };
}

interface Counts {
  completed: number;
  failed: number;
  wrongTokens: number;
}

interface Load {
  readonly counts: Readonly<Counts>;
  stop(): Promise<void>;
}

/** Readers begin once the fleet has answered. */
async function startLoad(url: string, seed: number): Promise<Load> {
  const counts: Counts = { completed: 0, failed: 0, wrongTokens: 0 };
  const agent = new Agent({ keepAlive: true, maxSockets: readers });
  const { signal } = new AbortController();
  setMaxListeners(readers, signal);
  const client = { url, model, agent, clock: realClock, signal };
  const next = promptSource(seed);
  let over = false;
  const ask = (): Promise<CompletionResult> =>
    complete(client, { ...next(), arrivalMs: realClock.nowMs() });
  const untilMs = realClock.nowMs() + readyMaxMs;
  while ((await ask()).outcome !== "completed") {
    if (realClock.nowMs() > untilMs) throw new Error("the fleet does not answer");
    await sleep(realClock, retryMs);
  }
  const read = async (): Promise<void> => {
    while (!over) count(counts, await ask());
  };
  const reading = Promise.all(Array.from({ length: readers }, read));
  return {
    counts,
    stop: async () => {
      over = true;
      await reading;
      agent.destroy();
    },
  };
}

function count(counts: Counts, { outcome, mismatches }: CompletionResult): void {
  if (outcome === "completed") counts.completed += 1;
  else counts.failed += 1;
  counts.wrongTokens += mismatches;
}

/** Requests without end: when a trace is over, the next one has blocks of its own. */
function promptSource(seed: number) {
  let trace = synthesizeTrace({ ...traffic, seed });
  let [generation, at, number] = [0, 0, 0];
  return () => {
    const request = trace[at++]!;
    const firstId = generation * 1e6;
    if (at === trace.length) {
      generation += 1;
      at = 0;
      trace = synthesizeTrace({ ...traffic, seed: seed + generation });
    }
    number += 1;
    const hashIds = request.hashIds.map((id) => firstId + id);
    return {
      seed: (seed + Math.imul(number, 0x9e3779b1)) >>> 0,
      prompt: promptTokens({ ...request, hashIds }),
      outputTokens: request.outputTokens,
      ...{ ttftTargetMs: null, itlTargetMs: null },
    };
  };
}

function progressOf(
  samples: readonly (readonly Sample[])[],
  parts: readonly Part[],
  { completed, failed, wrongTokens }: Counts,
): string {
  const last = (at: number): Sample | undefined => samples[at]?.at(-1);
  const memory = parts.map(({ name }, at) => {
    const { heapMb = 0, buffersMb = 0, rssMb = 0 } = last(at) ?? {};
    return `${name} ${heapMb.toFixed(1)} + ${buffersMb.toFixed(1)} of ${rssMb.toFixed(0)} MB`;
  });
  const minute = (last(0)?.minute ?? 0).toFixed(1);
  const answers = `${completed} answers, ${failed} failed, ${wrongTokens} wrong tokens`;
  return `soak ${minute} min: ${memory.join(", ")}; ${answers}`;
}

function rowOf(
  { name }: Part,
  samples: readonly Sample[],
  atRest: Sample | undefined,
  { completed, failed, wrongTokens }: Counts,
): BenchRow {
  const { slope, most } = theilSen(samples.map(({ minute, heapMb }) => [minute, heapMb]));
  const [first] = samples;
  const note = [
    `slope ${slope.toFixed(3)}`,
    `heap ${first?.heapMb.toFixed(1)} MB at first, ${atRest?.heapMb.toFixed(1)} MB at rest`,
    `buffers at most ${Math.max(...samples.map(({ buffersMb }) => buffersMb)).toFixed(1)} MB`,
    `RSS at most ${Math.max(...samples.map(({ rssMb }) => rssMb)).toFixed(0)} MB`,
    `${completed} answers, ${failed} failed, ${wrongTokens} wrong tokens`,
  ].join(", ");
  return {
    id: `${name}: growth of the heap, 95 % bound`,
    unit: "MB/min",
    baseline: Number.NaN,
    ours: most,
    ratio: Number.NaN,
    target: `≤ ${targetMbPerMinute}`,
    note,
  };
}

/** Median slope of all pairs of points, and the upper end of its 95 % interval (P. K. Sen, 1968). */
function theilSen(points: readonly (readonly [x: number, y: number])[]): {
  readonly slope: number;
  readonly most: number;
} {
  const slopes = points.flatMap(([x, y], at) =>
    points.slice(at + 1).map(([laterX, laterY]) => (laterY - y) / (laterX - x)),
  );
  slopes.sort((left, right) => left - right);
  const { length } = points;
  const spread = 1.96 * Math.sqrt((length * (length - 1) * (2 * length + 5)) / 18);
  const at = (rank: number): number =>
    slopes[Math.max(0, Math.min(slopes.length - 1, Math.ceil(rank)))] ?? Number.NaN;
  return { slope: at((slopes.length - 1) / 2), most: at((slopes.length + spread) / 2) };
}
