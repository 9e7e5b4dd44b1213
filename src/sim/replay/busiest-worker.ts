/** How much of a run its busiest worker had; 1 / workers would be an even share. */
import type { PreparedTrace } from "./prepared-trace.ts";
import { type ReplayRun, windowMs } from "./replay-run.ts";
import { rounded } from "./run-summary.ts";

export interface BusiestShares {
  /** Of the requests, and of the prompt tokens that were not cached. */
  readonly requests: number;
  readonly tokens: number;
  /** The same in the worst 30 s that had enough requests to share. */
  readonly requests_30s: number;
  readonly tokens_30s: number;
  /** Most requests that one worker had at once. */
  readonly in_flight: number;
}

/** Requests per worker from which a window counts. */
const requestsPerWorkerMin = 8;

export function busiestShares(trace: PreparedTrace, run: ReplayRun): BusiestShares {
  const workers = run.engines.length;
  const requests = columnsOf(workers);
  const tokens = columnsOf(workers);
  for (let place = 0; place < run.count; place++) {
    const worker = run.worker[place] as number;
    const window = Math.floor((run.arrivalMs[place] as number) / windowMs);
    if (worker < 0) continue;
    const computed = (trace.inputTokens[place] as number) - (run.cached[place] as number);
    requests.add(window, worker, 1);
    tokens.add(window, worker, computed);
  }
  const counted = requests.windows.map((window) => sum(window) >= requestsPerWorkerMin * workers);
  const worst = (windows: readonly Float64Array[]): number =>
    Math.max(0, ...windows.filter((_, window) => counted[window]).map(shareOf));
  return {
    requests: shareOf(requests.whole),
    tokens: shareOf(tokens.whole),
    requests_30s: worst(requests.windows),
    tokens_30s: worst(tokens.windows),
    in_flight: mostAtOnce(run),
  };
}

interface Columns {
  /** By worker, over the run and by window. */
  readonly whole: Float64Array;
  readonly windows: readonly Float64Array[];
  readonly add: (window: number, worker: number, amount: number) => void;
}

function columnsOf(workers: number): Columns {
  const whole = new Float64Array(workers);
  const windows: Float64Array[] = [];
  return {
    whole,
    windows,
    add(window, worker, amount) {
      while (windows.length <= window) windows.push(new Float64Array(workers));
      const column = windows[window] as Float64Array;
      column[worker] = (column[worker] ?? 0) + amount;
      whole[worker] = (whole[worker] ?? 0) + amount;
    },
  };
}

function shareOf(column: Float64Array): number {
  return rounded(Math.max(...column) / Math.max(1, sum(column)));
}

function sum(column: Float64Array): number {
  return column.reduce((total, amount) => total + amount, 0);
}

/** Ends count before arrivals of the same instant. */
function mostAtOnce({ arrivalMs, lastMs, worker, count }: ReplayRun): number {
  const changes: { readonly atMs: number; readonly worker: number; readonly by: 1 | -1 }[] = [];
  for (let place = 0; place < count; place++) {
    const at = worker[place] as number;
    const endMs = lastMs[place] as number;
    if (at < 0 || Number.isNaN(endMs)) continue;
    changes.push({ atMs: arrivalMs[place] as number, worker: at, by: 1 });
    changes.push({ atMs: endMs, worker: at, by: -1 });
  }
  changes.sort((one, other) => one.atMs - other.atMs || one.by - other.by);
  const inFlight: number[] = [];
  let most = 0;
  for (const { worker: at, by } of changes) {
    inFlight[at] = (inFlight[at] ?? 0) + by;
    most = Math.max(most, inFlight[at] ?? 0);
  }
  return most;
}
