/** `--traffic` of the grid commands: a trace, with a target drawn for every request. */
import { mulberry32 } from "../base/random.ts";
import type { TrafficRequest } from "../core/grid-traffic.ts";
import type { SlaTarget } from "../core/sla-grid.ts";
import { drawClasses, readSloClasses } from "../sim/attainment.ts";
import type { TraceRequest } from "../sim/mooncake-trace.ts";
import { type SynthesisPreset, synthesisPresets, synthesizeTrace } from "../sim/trace-synth.ts";
import { readTraceFile } from "../sim/workload.ts";
import type { TrafficOptions } from "./flags-grid.ts";

/** Added to the seed, so that a request's TTFT target says nothing about its ITL target. */
const itlSeedStep = 1;

/** The requests that the flags name; undefined without `--traffic`. */
export async function trafficRequests(
  options: TrafficOptions,
): Promise<readonly TrafficRequest[] | undefined> {
  const { traffic, seed } = options;
  return traffic === null ? undefined : classifyTrace(await traceOf(traffic, seed), options);
}

/** The requests of a trace, each with its targets. */
export function classifyTrace(
  requests: readonly TraceRequest[],
  { ttftTargets, itlTargets, seed }: TrafficOptions,
): TrafficRequest[] {
  const ttftOf = targetsOf(requests, ttftTargets, seed);
  const itlOf = targetsOf(requests, itlTargets, seed + itlSeedStep);
  return requests.map(({ inputTokens, outputTokens }, place) => ({
    query: { tokens: inputTokens, ttft: ttftOf(place), itl: itlOf(place), priority: null },
    outputTokens,
  }));
}

/** A preset by its name, else the file at that path. */
export async function traceOf(traffic: string, seed: number): Promise<readonly TraceRequest[]> {
  if (!Object.hasOwn(synthesisPresets, traffic)) return await readTraceFile(traffic);
  return synthesizeTrace({ ...synthesisPresets[traffic as SynthesisPreset], seed });
}

function targetsOf(
  requests: readonly TraceRequest[],
  text: string | null,
  seed: number,
): (place: number) => SlaTarget {
  if (text === null) return () => ({ valueMs: null, source: "midpoint" });
  const classes = readSloClasses(text);
  const classOf = drawClasses(classes, requests.length, mulberry32(seed));
  return (place) => {
    const drawn = classes[classOf[place] ?? 0];
    const tokens = requests[place]?.inputTokens ?? 0;
    const valueMs = drawn ? drawn.baseMs + drawn.msPerInputToken * tokens : null;
    return { valueMs, source: "class" };
  };
}
