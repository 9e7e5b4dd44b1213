/** `tiergrid replay --pools`: choices between the pools of layouts, on one trace. */
import { realClock } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import type { TraceRequest } from "../sim/mooncake-trace.ts";
import type { CapacitySearch } from "../sim/replay/capacity.ts";
import { loadPoolsFile } from "../sim/replay/pools-file.ts";
import { poolsHtml } from "../sim/replay/pools-html.ts";
import { measurePools, type PoolsPlan } from "../sim/replay/pools-measure.ts";
import { poolsReport, poolsText } from "../sim/replay/pools-text.ts";
import { recordedBatchMs } from "../sim/workload.ts";
import type { ReplayFlagOptions } from "./flags-replay.ts";
import { writeOutput } from "./output-file.ts";

export interface PoolsInputs {
  /** Of the file with the layouts. */
  readonly path: string;
  readonly requests: readonly TraceRequest[];
  readonly traceName: string;
  readonly curveSpeeds: readonly number[];
  readonly search: CapacitySearch | undefined;
}

/** Runs the comparison; answers 0. Progress goes to stderr, the result to `print`. */
export async function runPools(
  options: ReplayFlagOptions,
  { path, requests, traceName, curveSpeeds, search }: PoolsInputs,
  print: (text: string) => void,
): Promise<number> {
  if (options.jobs > 1) {
    throw new TiergridError("config_invalid", "--jobs: layouts of --pools are replayed in turn");
  }
  const { blockSize, seed, speed, eventDelayMs } = options;
  const plan: PoolsPlan = {
    file: await loadPoolsFile(path, blockSize),
    requests,
    blockSize,
    seed,
    spreadMs: options.spreadMs ?? recordedBatchMs(requests),
    speed,
    capacity: search,
    curveSpeeds,
    eventDelayMs,
  };
  const startMs = realClock.nowMs();
  const onDone = (layout: string, selector: string): void => {
    const seconds = ((realClock.nowMs() - startMs) / 1000).toFixed(1);
    process.stderr.write(`${layout}: ${selector}  ${seconds} s\n`);
  };
  const measured = await measurePools(plan, { onRun: () => {}, onDone });
  const report = poolsReport(plan, traceName, measured);
  print(options.json ? `${JSON.stringify(report)}\n` : poolsText(report));
  if (options.html !== null) await writeOutput("--html", options.html, poolsHtml(report));
  return 0;
}
