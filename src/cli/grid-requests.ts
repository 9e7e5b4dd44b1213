/** `--traffic` of the grid commands: a trace, with targets and a priority drawn for every request. */
import { TiergridError, toTiergridError } from "../base/errors.ts";
import { didYouMean } from "../base/nearest-name.ts";
import { mulberry32 } from "../base/random.ts";
import type { TrafficRequest } from "../core/grid-traffic.ts";
import { isRequestPriority } from "../core/pool-choice.ts";
import type { SlaTarget } from "../core/sla-grid.ts";
import { drawClasses, readSloClasses, type SloClass } from "../sim/attainment.ts";
import type { TraceRequest } from "../sim/mooncake-trace.ts";
import { type SynthesisPreset, synthesisPresets, synthesizeTrace } from "../sim/trace-synth.ts";
import { readTraceFile } from "../sim/workload.ts";
import { type TrafficOptions, trafficFlags } from "./flags-grid.ts";

/** Added to the seed, so that what is drawn of a request says nothing about what else is drawn. */
const itlSeedStep = 1;
const prioritySeedStep = 2;
const priorityClassesMax = 16;

/** A trace and, in the same order, its requests as a grid reads them. */
export interface Traffic {
  readonly trace: readonly TraceRequest[];
  readonly requests: readonly TrafficRequest[];
}

/** The traffic that the flags name; undefined without `--traffic`. Throws `config_invalid`. */
export async function loadTraffic(options: TrafficOptions): Promise<Traffic | undefined> {
  const { traffic, seed } = options;
  if (traffic === null) {
    for (const name of ["ttftTargets", "itlTargets", "priorities"] as const) {
      if (options[name] !== null) throw invalid(`--${trafficFlags[name].flag} needs --traffic`);
    }
    return undefined;
  }
  const trace = await traceOf(traffic, seed);
  return { trace, requests: classifyTrace(trace, options) };
}

/** Only the requests of `loadTraffic`. */
export async function trafficRequests(
  options: TrafficOptions,
): Promise<readonly TrafficRequest[] | undefined> {
  return (await loadTraffic(options))?.requests;
}

function classifyTrace(
  trace: readonly TraceRequest[],
  { ttftTargets, itlTargets, priorities, seed }: TrafficOptions,
): TrafficRequest[] {
  const ttftOf = targetsOf(trace, "ttft-targets", ttftTargets, seed);
  const itlOf = targetsOf(trace, "itl-targets", itlTargets, seed + itlSeedStep);
  const priorityOf = prioritiesOf(trace.length, priorities, seed + prioritySeedStep);
  return trace.map(({ inputTokens, outputTokens }, place) => ({
    query: {
      tokens: inputTokens,
      ttft: ttftOf(place),
      itl: itlOf(place),
      priority: priorityOf(place),
    },
    outputTokens,
  }));
}

/** A preset by its name, else the file at that path. */
async function traceOf(traffic: string, seed: number): Promise<readonly TraceRequest[]> {
  if (Object.hasOwn(synthesisPresets, traffic)) {
    return synthesizeTrace({ ...synthesisPresets[traffic as SynthesisPreset], seed });
  }
  const trace = await readTraceFile(traffic).catch((cause: unknown) => {
    const hint = didYouMean(traffic, Object.keys(synthesisPresets));
    throw invalid(`--traffic: ${toTiergridError(cause).message}${hint}`);
  });
  if (trace.length === 0) throw invalid(`--traffic: ${traffic} has no requests`);
  return trace;
}

function targetsOf(
  requests: readonly TraceRequest[],
  flag: string,
  text: string | null,
  seed: number,
): (place: number) => SlaTarget {
  if (text === null) return () => ({ valueMs: null, source: "midpoint" });
  const classes = readTargets(flag, text);
  const classOf = drawClasses(classes, requests.length, mulberry32(seed));
  return (place) => {
    const drawn = classes[classOf[place] ?? 0];
    const tokens = requests[place]?.inputTokens ?? 0;
    const valueMs = drawn ? drawn.baseMs + drawn.msPerInputToken * tokens : null;
    return { valueMs, source: "class" };
  };
}

function readTargets(flag: string, text: string): SloClass[] {
  try {
    return readSloClasses(text);
  } catch (thrown) {
    throw invalid(`--${flag}: ${toTiergridError(thrown).message}`);
  }
}

interface PriorityClass {
  readonly share: number;
  readonly priority: number | null;
}

function prioritiesOf(
  count: number,
  text: string | null,
  seed: number,
): (place: number) => number | null {
  if (text === null) return () => null;
  const classes = readPriorityClasses(text);
  const classOf = drawClasses(classes, count, mulberry32(seed));
  return (place) => classes[classOf[place] ?? 0]?.priority ?? null;
}

/** Classes from text such as `0.05:500,0.95:none`; throws `config_invalid`. */
function readPriorityClasses(text: string): PriorityClass[] {
  const classes = text.split(",").map((part): PriorityClass => {
    const [, share, priority] = /^\s*([\d.]+)\s*:\s*(none|-?\d+)\s*$/.exec(part) ?? [];
    const read = { share: Number(share), priority: priority === "none" ? null : Number(priority) };
    if (read.share >= 0 && (read.priority === null || isRequestPriority(read.priority))) {
      return read;
    }
    const expected = "expected share:priority or share:none";
    throw invalid(`--priorities: ${expected}, got "${part.trim()}"`);
  });
  const shares = classes.reduce((sum, { share }) => sum + share, 0);
  if (classes.length <= priorityClassesMax && Math.abs(shares - 1) < 1e-9) return classes;
  const expected = `at most ${priorityClassesMax} classes with shares that sum to 1`;
  throw invalid(`--priorities: expected ${expected}, got ${classes.length} with ${shares}`);
}

function invalid(message: string): TiergridError {
  return new TiergridError("config_invalid", message);
}
