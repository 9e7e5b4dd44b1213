/**
 * Settled decisions as rows of numbers and references: as objects, 10,000 of them are most of what
 * a global router's garbage collector copies.
 *
 *   numbers  head | attemptsMax x attempt | poolsMax x standing     slices of `rowsPerSlice` rows
 *   texts    head | attemptsMax x attempt                           the same, as one list
 *   configs  config in force, one a row; it names the role, its grid, pools and plans
 *   lives    what quotes found, as it is
 *
 * Invariants: `read` answers what `write` was given, but for id and rid. NaN stands for null, in fields that are never
 * NaN; -1 for no result. A selection and its plan are not kept: they follow from the query.
 */
import { TiergridError } from "../base/errors.ts";
import type { AttemptVia } from "../core/pool-choice.ts";
import type { SlaTarget } from "../core/sla-grid.ts";
import type { Phase } from "../protocol/requests.ts";
import {
  type AttemptRecord,
  decisionReasons,
  type LiveRecord,
  type PoolDecision,
  roleIn,
  selectIn,
} from "./pool-decision.ts";
import { type ActiveConfig, type PoolStanding, poolConditions } from "./pool-health.ts";

/** What fits a row; nearly every request needs one attempt, and few roles have more pools. */
export const rowLimits = { attemptsMax: 3, poolsMax: 16 } as const;

const rowsPerSlice = 256;

const phases: readonly Phase[] = ["prefill", "decode", "aggregated"];
const vias: readonly AttemptVia[] = ["selected", "spill", "retry"];

/** Where a row's numbers are. */
const numberAt = {
  ...{ phase: 0, atWallMs: 1, tokens: 2, priority: 3, ttftMs: 4, itlMs: 5 },
  ...{ resultPool: 6, resultReason: 7, attempts: 8, pools: 9, firstAttempt: 10 },
} as const;
const attemptNumbers = 4;
const firstStanding = numberAt.firstAttempt + rowLimits.attemptsMax * attemptNumbers;
const standingNumbers = 3;
const rowNumbers = firstStanding + rowLimits.poolsMax * standingNumbers;

/** Where its texts are. */
const textAt = { requestId: 0, ttftSource: 1, itlSource: 2, firstAttempt: 3 } as const;
const attemptTexts = 2;
const rowTexts = textAt.firstAttempt + rowLimits.attemptsMax * attemptTexts;

const absent = Number.NaN;

export class DecisionRows {
  readonly #slices: Float64Array[] = [];
  readonly #texts: (string | null)[] = [];
  readonly #configs: ActiveConfig[] = [];
  readonly #lives: (LiveRecord | undefined)[] = [];

  static fits({ attempts, pools }: PoolDecision): boolean {
    return attempts.length <= rowLimits.attemptsMax && pools.length <= rowLimits.poolsMax;
  }

  /** `decision` fits, is ended and counted. */
  write(row: number, decision: PoolDecision): void {
    const { query, result, attempts, pools } = decision;
    const numbers = this.#sliceOf(row);
    const start = (row % rowsPerSlice) * rowNumbers;
    numbers[start + numberAt.phase] = phases.indexOf(decision.phase);
    numbers[start + numberAt.atWallMs] = decision.atWallMs;
    numbers[start + numberAt.tokens] = query.tokens;
    numbers[start + numberAt.priority] = query.priority ?? absent;
    numbers[start + numberAt.ttftMs] = query.ttft.valueMs ?? absent;
    numbers[start + numberAt.itlMs] = query.itl.valueMs ?? absent;
    numbers[start + numberAt.resultPool] = result ? result.pool : -1;
    numbers[start + numberAt.resultReason] = result ? decisionReasons.indexOf(result.reason) : -1;
    numbers[start + numberAt.attempts] = attempts.length;
    numbers[start + numberAt.pools] = pools.length;
    writeStandings(numbers, start + firstStanding, pools);
    const texts = this.#texts;
    const firstText = row * rowTexts;
    texts[firstText + textAt.requestId] = decision.requestId;
    texts[firstText + textAt.ttftSource] = query.ttft.source;
    texts[firstText + textAt.itlSource] = query.itl.source;
    for (let at = 0; at < rowLimits.attemptsMax; at++) {
      const attempt = attempts[at];
      const text = firstText + textAt.firstAttempt + at * attemptTexts;
      texts[text] = attempt?.router ?? null;
      texts[text + 1] = attempt?.outcome ?? null;
      const from = start + numberAt.firstAttempt + at * attemptNumbers;
      if (attempt) writeAttempt(numbers, from, attempt);
    }
    this.#configs[row] = decision.active;
    this.#lives[row] = decision.live;
  }

  /** The row's decision; its names are kept elsewhere. */
  read(row: number, { id, rid }: Pick<PoolDecision, "id" | "rid">): PoolDecision {
    const numbers = this.#sliceOf(row);
    const start = (row % rowsPerSlice) * rowNumbers;
    const number = (at: number): number => numbers[start + at] ?? absent;
    const text = (at: number): string | null => this.#texts[row * rowTexts + at] ?? null;
    const phase = phases[number(numberAt.phase)];
    const active = this.#configs[row];
    const role = phase && active && roleIn(active, phase);
    if (!role) throw new TiergridError("internal_error", `row ${row} of decisions is empty`);
    const targetAt = (valueAt: number, sourceAt: number): SlaTarget => {
      return { valueMs: nullable(number(valueAt)), source: text(sourceAt) ?? "" };
    };
    const query = {
      tokens: number(numberAt.tokens),
      ttft: targetAt(numberAt.ttftMs, textAt.ttftSource),
      itl: targetAt(numberAt.itlMs, textAt.itlSource),
      priority: nullable(number(numberAt.priority)),
    };
    const { selection, plan } = selectIn(role, query);
    const live = this.#lives[row];
    const reason = decisionReasons[number(numberAt.resultReason)];
    return {
      id,
      rid,
      requestId: text(textAt.requestId),
      atWallMs: number(numberAt.atWallMs),
      phase,
      active,
      role,
      query,
      selection,
      plan: live?.plan ?? plan,
      live,
      pools: Array.from({ length: number(numberAt.pools) }, (_, pool) =>
        readStanding(numbers, start + firstStanding + pool * standingNumbers),
      ),
      attempts: Array.from({ length: number(numberAt.attempts) }, (_, at) => {
        const firstText = textAt.firstAttempt + at * attemptTexts;
        const from = start + numberAt.firstAttempt + at * attemptNumbers;
        return readAttempt(numbers, from, text(firstText), text(firstText + 1));
      }),
      result: reason && { pool: number(numberAt.resultPool), reason },
      ended: true,
      counted: true,
    };
  }

  #sliceOf(row: number): Float64Array {
    const index = Math.floor(row / rowsPerSlice);
    const made = this.#slices[index];
    if (made) return made;
    const slice = new Float64Array(rowsPerSlice * rowNumbers);
    this.#slices[index] = slice;
    return slice;
  }
}

function writeStandings(
  numbers: Float64Array,
  from: number,
  standings: readonly PoolStanding[],
): void {
  let at = from;
  for (const { state, workersReady, inFlight } of standings) {
    numbers[at++] = poolConditions.indexOf(state);
    numbers[at++] = workersReady;
    numbers[at++] = inFlight;
  }
}

function readStanding(numbers: Float64Array, from: number): PoolStanding {
  const [state = 0, workersReady = 0, inFlight = 0] = numbers.subarray(from);
  return { state: poolConditions[state] ?? "gone", workersReady, inFlight };
}

function writeAttempt(
  numbers: Float64Array,
  from: number,
  { pool, via, startedMs, tookMs }: AttemptRecord,
): void {
  numbers[from] = pool;
  numbers[from + 1] = vias.indexOf(via);
  numbers[from + 2] = startedMs;
  numbers[from + 3] = tookMs ?? absent;
}

function readAttempt(
  numbers: Float64Array,
  from: number,
  router: string | null,
  outcome: string | null,
): AttemptRecord {
  const [pool = 0, via = 0, startedMs = 0, tookMs = 0] = numbers.subarray(from);
  return {
    pool,
    via: vias[via] ?? "selected",
    router: router ?? "",
    startedMs,
    outcome: outcome as AttemptRecord["outcome"],
    tookMs: nullable(tookMs),
  };
}

function nullable(number: number): number | null {
  return Number.isNaN(number) ? null : number;
}
