/**
 * Kept decisions as rows of numbers and texts: a router keeps 10,000 of them, and as objects they
 * are most of what its garbage collector copies.
 *
 *   numbers  head | choice | max x (candidate | terms)     slices of `rowsPerSlice` rows
 *   texts    worker id of the choice | of each candidate   the same, as one list
 *
 * Invariants: `read` answers what `recordCheapest` says of the choice that was written; NaN stands for an absent number only in
 * fields that are never NaN; a slice is made when its first row is written, and stays.
 */
import type {
  Choice,
  ChoiceTables,
  ChosenWorker,
  RefusedChoice,
  WorkerPolicy,
} from "../core/choice.ts";
import type { BlocksTerms, CostTerms, LatencyTerms } from "../core/cost-terms.ts";
import {
  type ChoiceMade,
  cheapestSlots,
  type Decision,
  type DecisionCandidate,
  headOf,
  standingOf,
  termsOf,
} from "../core/decision-record.ts";

const rowsPerSlice = 256;

/** Fields that are numbers or booleans, in the order of a row. */
type Fields<T> = readonly (keyof T & string)[];

const policies: readonly WorkerPolicy[] = ["blocks", "random", "round-robin"];
const refusals: readonly RefusedChoice["code"][] = [
  ...(["no_endpoints", "pinned_worker_not_allowed", "pinned_worker_overloaded"] as const),
  ...(["all_eligible_workers_overloaded", "invalid_request"] as const),
  ...(["duplicate_request", "booking_failed"] as const),
];
const headFields: Fields<Decision> = [
  ...(["fitTargetMs", "temperature", "islTokens", "requiredBlocks"] as const),
  ...(["lowestCost", "leftOut", "tiedAtLowest"] as const),
];
const chosenFields: Fields<ChosenWorker> = [
  ...(["slot", "dpRank", "requiredBlocks", "overlapBlocks", "cachedTokens"] as const),
  ...(["potentialDecodeBlocks", "cost", "candidateCount", "nonFiniteCount"] as const),
];
const candidateFields: Fields<DecisionCandidate> = [
  ...(["dpRank", "overlapBlocks", "cachedTokens", "potentialPrefillTokens"] as const),
  ...(["potentialDecodeBlocks", "activeRequests"] as const),
];
const termFields: Readonly<Record<CostTerms["mode"], Fields<BlocksTerms> | Fields<LatencyTerms>>> =
  {
    blocks: [
      ...(["rawPrefillBlocks", "creditDecay", "overlapCreditBlocks"] as const),
      ...(["potentialDecodeBlocks", "activeRequestTerm", "taintFactor", "cost"] as const),
    ],
    latency: [
      ...(["cachedTokens", "uncachedTokens", "progressTokens", "queuedTokens", "passes"] as const),
      ...(["prefillMs", "ownPrefillMs", "tierMs", "decodeStepMs", "itlMs", "ttftMs"] as const),
      ...(["delayMs", "harmMs", "fullMs", "taintFactor", "prefillGpuMs", "decodeGpuMs"] as const),
      ...(["breaksPromise", "heldMs", "frontGpuMs", "costMs", "cost"] as const),
    ],
  };

/** Where the parts of a row begin, after the policy and the number of candidates. */
const headAt = 2;
const outcomeAt = headAt + headFields.length;
const chosenAt = outcomeAt + 1;
const candidatesAt = chosenAt + chosenFields.length;
/** In place of a refusal's index. */
const chosen = -1;

export class DecisionRows {
  readonly #costMode: CostTerms["mode"];
  readonly #candidatesMax: number;
  /** Of the candidates that a row gets. */
  readonly #shown: Int32Array;
  readonly #candidateLength: number;
  readonly #rowLength: number;
  readonly #slices: Float64Array[] = [];
  readonly #texts: (string | undefined)[] = [];

  constructor(costMode: CostTerms["mode"], candidatesMax: number) {
    this.#costMode = costMode;
    this.#candidatesMax = candidatesMax;
    this.#shown = new Int32Array(candidatesMax);
    this.#candidateLength = candidateFields.length + termFields[costMode].length;
    this.#rowLength = candidatesAt + candidatesMax * this.#candidateLength;
  }

  /**
   * Writes a choice and its cheapest candidates. Rows are written one after the other the first
   * time, later in any order.
   */
  write(row: number, tables: ChoiceTables, made: ChoiceMade): void {
    const { choice } = made;
    const shown = this.#shown;
    const count = cheapestSlots(tables.scratch, choice, shown);
    const head = headOf(tables, made, count);
    const slice = this.#sliceOf(row);
    const start = (row % rowsPerSlice) * this.#rowLength;
    const firstText = row * (1 + this.#candidatesMax);
    slice[start] = policies.indexOf(head.policy);
    slice[start + 1] = count;
    put(slice, start + headAt, head, headFields);
    slice[start + outcomeAt] = choice.outcome === "chosen" ? chosen : refusals.indexOf(choice.code);
    if (choice.outcome === "chosen") put(slice, start + chosenAt, choice, chosenFields);
    this.#texts[firstText] = choice.workerId;
    for (let at = 0; at < this.#candidatesMax; at++) {
      const text = firstText + 1 + at;
      this.#texts[text] = undefined;
      if (at >= count) continue;
      const slot = shown[at] ?? 0;
      const standing = standingOf(tables, made.input, slot);
      this.#texts[text] = standing.workerId;
      const from = start + candidatesAt + at * this.#candidateLength;
      put(slice, from, standing, candidateFields);
      const terms = termsOf(tables, made, slot);
      put(slice, from + candidateFields.length, terms, termFields[this.#costMode]);
    }
  }

  read(row: number): Decision {
    const slice = this.#sliceOf(row);
    const start = (row % rowsPerSlice) * this.#rowLength;
    const firstText = row * (1 + this.#candidatesMax);
    const numbers = take(slice, start + headAt, headFields);
    const { fitTargetMs, lowestCost } = numbers;
    return {
      ...(numbers as unknown as Decision),
      policy: policies[slice[start] ?? 0] ?? "blocks",
      costMode: this.#costMode,
      fitTargetMs: Number.isNaN(fitTargetMs) ? undefined : fitTargetMs,
      lowestCost: lowestCost === undefined || Number.isNaN(lowestCost) ? null : lowestCost,
      candidates: Array.from({ length: slice[start + 1] ?? 0 }, (_, at) =>
        this.#candidate(
          slice,
          start + candidatesAt + at * this.#candidateLength,
          firstText + 1 + at,
        ),
      ),
      choice: choiceOf(slice, start, this.#texts[firstText]),
    };
  }

  #candidate(slice: Float64Array, from: number, text: number): DecisionCandidate {
    const mode = this.#costMode;
    const numbers = take(slice, from + candidateFields.length, termFields[mode]);
    const { breaksPromise } = numbers;
    const flags = breaksPromise === undefined ? {} : { breaksPromise: breaksPromise === 1 };
    return {
      ...(take(slice, from, candidateFields) as unknown as DecisionCandidate),
      workerId: this.#texts[text] ?? "",
      whyNot: null,
      terms: { mode, ...numbers, ...flags } as unknown as CostTerms,
    };
  }

  #sliceOf(row: number): Float64Array {
    const index = Math.floor(row / rowsPerSlice);
    const made = this.#slices[index];
    if (made) return made;
    const slice = new Float64Array(rowsPerSlice * this.#rowLength);
    this.#slices[index] = slice;
    return slice;
  }
}

function choiceOf(slice: Float64Array, start: number, workerId: string | undefined): Choice {
  const outcome = slice[start + outcomeAt] ?? chosen;
  if (outcome === chosen) {
    const numbers = take(slice, start + chosenAt, chosenFields) as unknown as ChosenWorker;
    return { ...numbers, outcome: "chosen", workerId: workerId ?? "" };
  }
  const code = refusals[outcome] ?? "invalid_request";
  return { outcome: "refused", code, ...(workerId !== undefined && { workerId }) };
}

/** Absent numbers become NaN, booleans 0 and 1. */
function put<T>(numbers: Float64Array, from: number, values: T, fields: readonly string[]): void {
  const named = values as Readonly<Record<string, number | boolean | null | undefined>>;
  let at = from;
  for (const field of fields) numbers[at++] = Number(named[field] ?? Number.NaN);
}

function take(
  numbers: Float64Array,
  from: number,
  fields: readonly string[],
): Readonly<Record<string, number>> {
  return Object.fromEntries(fields.map((field, at) => [field, numbers[from + at] ?? 0]));
}
