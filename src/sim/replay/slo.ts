/** Shares of a run's requests that met their targets. */
import {
  type AnswerTimes,
  meetsDeadline,
  meetsFirst,
  meetsPair,
  type SloClass,
  type SloTargets,
} from "../attainment.ts";
import type { PreparedTrace } from "./prepared-trace.ts";
import type { ReplayRun } from "./replay-run.ts";

/** What a replay promises; classes replace the targets of the first token where they are given. */
export interface Slo {
  readonly targets: SloTargets;
  readonly prefillTtftMs: number;
  readonly classes: readonly SloClass[];
  /** Class of each request; empty without classes. */
  readonly classOf: Uint8Array;
}

/** Shares of the requests offered, each in 0..1. */
export interface Attainment {
  readonly pair: number;
  readonly deadline: number;
  readonly prefill: number;
  /** By class, and over all; empty and undefined without classes. */
  readonly classes: readonly number[];
  readonly scaled: number | undefined;
}

export function attainmentOf(slo: Slo, trace: PreparedTrace, run: ReplayRun): Attainment {
  let pair = 0;
  let deadline = 0;
  let prefill = 0;
  const offered = slo.classes.map(() => 0);
  const met = slo.classes.map(() => 0);
  for (let place = 0; place < run.count; place++) {
    const answer = answerAt(run, place);
    if (meetsPair(slo.targets, answer)) pair++;
    if (meetsDeadline(slo.targets, answer)) deadline++;
    if (meetsFirst(slo.prefillTtftMs, answer)) prefill++;
    const group = slo.classOf[place];
    const row = group === undefined ? undefined : slo.classes[group];
    if (group === undefined || !row) continue;
    offered[group] = (offered[group] ?? 0) + 1;
    const limitMs = row.baseMs + row.msPerInputToken * (trace.inputTokens[place] ?? 0);
    if (meetsFirst(limitMs, answer)) met[group] = (met[group] ?? 0) + 1;
  }
  const share = (count: number, of: number): number => (of === 0 ? 1 : count / of);
  const metTotal = met.reduce((sum, count) => sum + count, 0);
  return {
    pair: share(pair, run.count),
    deadline: share(deadline, run.count),
    prefill: share(prefill, run.count),
    classes: met.map((count, group) => share(count, offered[group] ?? 0)),
    scaled: slo.classes.length === 0 ? undefined : share(metTotal, run.count),
  };
}

function answerAt(run: ReplayRun, place: number): AnswerTimes {
  return {
    arrivalMs: run.arrivalMs[place] as number,
    firstMs: run.firstMs[place] as number,
    lastMs: run.isWhole(place) ? (run.lastMs[place] as number) : Number.NaN,
    outputTokens: run.tokens[place] as number,
  };
}
