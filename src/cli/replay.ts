/** `tiergrid replay`: a trace, the policies asked for, one result. */
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { realClock } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import type { Given } from "../base/flags.ts";
import { didYouMean } from "../base/nearest-name.ts";
import { mulberry32 } from "../base/random.ts";
import { type AdversarialTrace, adversarialTraces, isAdversarial } from "../sim/adversarial.ts";
import { readSloClasses, type SloForm } from "../sim/attainment.ts";
import { prefixDefaults, withSharedPrefixes } from "../sim/azure-trace.ts";
import type { TraceRequest } from "../sim/mooncake-trace.ts";
import {
  boundPolicies,
  type PolicyName,
  policyNames,
  policyTable,
} from "../sim/replay/policy-table.ts";
import { replayHtml } from "../sim/replay/replay-html.ts";
import { type JobWatch, runPlan } from "../sim/replay/replay-jobs.ts";
import type { CapacityPlan, ReplayPlan } from "../sim/replay/replay-plan.ts";
import { type ReplayReport, reportOf } from "../sim/replay/replay-report.ts";
import type { LateWorkers } from "../sim/replay/replay-router.ts";
import { replayText } from "../sim/replay/replay-text.ts";
import { resampleTrace } from "../sim/trace-resample.ts";
import { type SynthesisPreset, synthesisPresets, synthesizeTrace } from "../sim/trace-synth.ts";
import { isAzureFile, readTraceFile, recordedBatchMs } from "../sim/workload.ts";
import type { ReplayFlagOptions, replayFlags } from "./flags-replay.ts";
import { writeOutput } from "./output-file.ts";
import { runPools } from "./replay-pools.ts";

const curveDefault = 8;
const jsonFileBytesMax = 1024 * 1024;

/** Runs the replay; answers 0. Progress goes to stderr, the result to `print`. */
export async function run(
  { options }: Given<typeof replayFlags>,
  print: (text: string) => void,
): Promise<number> {
  if (options.pools !== null) {
    const inputs = {
      path: options.pools,
      requests: await requestsOf(options),
      traceName: nameOf(options),
      curveSpeeds: curveSpeedsOf(options),
      search: options.capacity ? capacityOf(options).search : undefined,
    };
    return runPools(options, inputs, print);
  }
  const plan = await planOf(options);
  const found = await runPlan(plan, options.jobs, progress(plan));
  const report = reportOf(plan, nameOf(options), found);
  print(textOf(options, report));
  if (options.html !== null) await writeOutput("--html", options.html, replayHtml(report));
  return 0;
}

function textOf(options: ReplayFlagOptions, report: ReplayReport): string {
  return options.json ? `${JSON.stringify(report)}\n` : replayText(report);
}

async function planOf(options: ReplayFlagOptions): Promise<ReplayPlan> {
  const { seed, workers, speed } = options;
  const requests = await requestsOf(options);
  const policies = policiesOf(options);
  return {
    requests,
    engine: await engineOf(options),
    profile:
      options.profile === null ? undefined : await readJsonFile("--profile", options.profile),
    workers,
    late: lateOf(options),
    herdGuard: options.herdGuard,
    policies,
    seed,
    spreadMs: options.spreadMs ?? recordedBatchMs(requests),
    speed,
    targets: { ttftMs: options.ttftMs, tpotMs: options.tpotMs },
    prefillTtftMs: options.prefillTtftMs,
    classes: options.classes === null ? [] : readSloClasses(options.classes),
    capacity: options.capacity ? capacityOf(options) : undefined,
    curveSpeeds: curveSpeedsOf(options),
    reportPeriodMs: options.reportPeriodMs,
    eventDelayMs: options.eventDelayMs,
    timings: options.timings,
  };
}

async function requestsOf(options: ReplayFlagOptions): Promise<readonly TraceRequest[]> {
  const random = mulberry32(options.seed);
  const all = await recordedRequests(options);
  const first = options.requests === null ? all : all.slice(0, options.requests);
  if (first.length === 0) throw new TiergridError("config_invalid", "the trace has no requests");
  const { trace, prefixShare: share, resample } = options;
  const isBare = trace !== null && isAzureFile(trace);
  const prefixed = isBare ? withSharedPrefixes(first, { ...prefixDefaults, share }, random) : first;
  return resample === null ? prefixed : resampleTrace(prefixed, resample, random);
}

async function recordedRequests({
  trace,
  synth,
  seed,
}: ReplayFlagOptions): Promise<TraceRequest[]> {
  if ((trace === null) === (synth === null)) {
    throw new TiergridError("config_invalid", "expected either --trace or --synth");
  }
  if (trace !== null) return await readTraceFile(trace);
  return generatedTrace(synth as SynthesisPreset | AdversarialTrace, seed);
}

function generatedTrace(name: SynthesisPreset | AdversarialTrace, seed: number): TraceRequest[] {
  if (isAdversarial(name)) return adversarialTraces[name](seed);
  return synthesizeTrace({ ...synthesisPresets[name], seed });
}

function lateOf({ workers, lateWorkers: count, joinMs }: ReplayFlagOptions): LateWorkers {
  if (count < workers) return { count, joinMs };
  const message = `--late-workers: expected fewer than the ${workers} workers, got ${count}`;
  throw new TiergridError("config_invalid", message);
}

/** `all` is every policy and the bounds of a shared cache, which differ only where queues are planned. */
function policiesOf({ policies: text, forms, classes }: ReplayFlagOptions): readonly PolicyName[] {
  if (text === "all") {
    const { shared_cache: sums, shared_cache_planned: planned } = boundPolicies;
    const plans = classes !== null || forms.includes("prefill");
    return [...policyNames, sums, ...(plans ? [planned] : [])];
  }
  const names = text.split(",").map((name) => name.trim());
  for (const name of names) {
    if (Object.hasOwn(policyTable, name)) continue;
    const hint = didYouMean(name, Object.keys(policyTable));
    throw new TiergridError("config_invalid", `--policies: unknown policy ${name}${hint}`);
  }
  return [...new Set(names as PolicyName[])];
}

function capacityOf(options: ReplayFlagOptions): CapacityPlan {
  const { speedMin, speedMax, steps, attainment: share } = options;
  if (speedMax <= speedMin) {
    throw new TiergridError("config_invalid", "--speed-max: expected more than --speed-min");
  }
  const prefillMax = speedMin + 2 * (speedMax - speedMin);
  return {
    search: { speedMin, speedMax, steps, share },
    prefillSearch: { speedMin, speedMax: prefillMax, steps, share },
    forms: formsOf(options),
  };
}

function formsOf({ forms: text, classes }: ReplayFlagOptions): SloForm[] {
  const forms = text.split(",").map((form) => form.trim());
  for (const form of forms) {
    if (form === "pair" || form === "deadline" || form === "prefill") continue;
    throw new TiergridError("config_invalid", `--forms: unknown objective ${form}`);
  }
  const given = [...new Set(forms)] as SloForm[];
  return classes === null ? given : [...given, "scaled"];
}

function curveSpeedsOf(options: ReplayFlagOptions): number[] {
  const wantsCurve = options.capacity || options.html !== null;
  return speedsOf(options, options.curve ?? (wantsCurve ? curveDefault : 0));
}

function speedsOf({ speedMin, speedMax }: ReplayFlagOptions, count: number): number[] {
  if (count === 1) return [speedMin];
  const step = (speedMax - speedMin) / (count - 1);
  return Array.from({ length: count }, (_, at) => speedMin + at * step);
}

/** The file's options, and the flags' over them; what the reference capacities assume is default. */
async function engineOf(options: ReplayFlagOptions): Promise<Record<string, unknown>> {
  return {
    watermark: 0,
    cache_output_blocks: false,
    ...(options.engine === null ? {} : await readJsonFile("--engine", options.engine)),
    block_size: options.blockSize,
    num_gpu_blocks: options.blocks,
    max_num_batched_tokens: options.batchTokens,
    worker_type: "aggregated",
  };
}

async function readJsonFile(flag: string, path: string): Promise<Record<string, unknown>> {
  const text = await readFile(path, "utf8").catch(() => undefined);
  if (text === undefined || text.length > jsonFileBytesMax) {
    throw new TiergridError("config_invalid", `${flag}: no file of at most 1 MiB at ${path}`);
  }
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) {
      return value as Record<string, unknown>;
    }
  } catch {
    // Said below, with what is expected.
  }
  throw new TiergridError("config_invalid", `${flag}: expected a JSON object in ${path}`);
}

function nameOf({ trace, synth }: ReplayFlagOptions): string {
  return trace === null ? String(synth) : basename(trace);
}

/** A line on stderr for every policy that is done; on a terminal also what runs. */
function progress({ policies }: ReplayPlan): JobWatch {
  const startMs = realClock.nowMs();
  const seconds = (): string => `${((realClock.nowMs() - startMs) / 1000).toFixed(1)} s`;
  const clear = process.stderr.isTTY ? "\r\u001b[K" : "";
  let done = 0;
  return {
    onRun(policy, speed) {
      if (process.stderr.isTTY) {
        process.stderr.write(`${clear}${policy} at ${speed.toFixed(3)} ×  ${seconds()}`);
      }
    },
    onDone(policy) {
      done++;
      process.stderr.write(`${clear}${done}/${policies.length} ${policy}  ${seconds()}\n`);
    },
  };
}
