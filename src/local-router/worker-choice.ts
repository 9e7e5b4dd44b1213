/**
 * One choice of a worker with everything around the pure decision: the index's match, the workers
 * that are held out, the times of each step. Asking and choosing share all of it but the booking.
 */
import { TiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import { bestCachedTokens, type Room, roomFor } from "../core/admission-gate.ts";
import type {
  Choice,
  ChoiceRequest,
  ChoiceTables,
  ChosenWorker,
  RefusedChoice,
} from "../core/choice.ts";
import { chooseAndBook, explain } from "../core/decision.ts";
import type { ChoiceMade, Decision } from "../core/decision-record.ts";
import type { SelectionRefusal, WorkerConstraints } from "../core/worker-roster.ts";
import type { DecisionRing } from "./decision-ring.ts";
import { createOverlapMatch, type OverlapMatch, type OverlapSources } from "./overlap-match.ts";
import type { RouteQuery } from "./route-query.ts";
import type { WorkerDirectory } from "./worker-directory.ts";

export interface ChoiceContext extends OverlapSources {
  readonly random: Random;
  readonly tables: ChoiceTables;
  readonly directory: WorkerDirectory;
  /** Told of every booking that `choose` makes. */
  readonly onBooked: (key: string, worker: ChosenWorker) => void;
  /** Where decisions are kept; absent = nowhere. */
  readonly decisions: DecisionRing | undefined;
  /** Told how long a choice's match, and all of it, took. */
  readonly onTimes: (matchMs: number, totalMs: number) => void;
}

/** Instances a choice leaves out. */
export interface Excluded {
  /** While others can take the request. */
  readonly avoid: readonly string[];
  /** In any case. */
  readonly tried: readonly string[];
}

export const nothingExcluded: Excluded = { avoid: [], tried: [] };

export interface WorkerChoice {
  /** Chooses and books under `key`; the decision is kept under it, and under `rid`. */
  choose(query: RouteQuery, key: string, excluded: Excluded, rid?: string): Choice;
  /** The decision `choose` would take, without booking; ties are drawn elsewhere. */
  ask(query: RouteQuery, excluded: Excluded): Decision;
  /** Cached blocks of the prompt per holder slot. */
  readonly match: OverlapMatch;
  /** Whether a worker that may take the request has booked at most `threshold` batches of prefill. */
  roomFor(query: RouteQuery, excluded: Excluded, threshold: number): Room | SelectionRefusal;
  /** Most prompt tokens that one of the workers which may take the request has cached. */
  bestCachedTokens(query: RouteQuery): number;
}

export function createWorkerChoice(context: ChoiceContext, askRandom: Random): WorkerChoice {
  const { clock, tables, random, predicted, onTimes, decisions } = context;
  const match = createOverlapMatch(context);
  const requestOf = (query: RouteQuery, key: string): ChoiceRequest => ({
    key,
    nowMs: clock.nowMs(),
    islTokens: query.islTokens,
    sequence: query.tracked,
    privateBlocks: query.privateBlocks,
    overlap: match(query),
    constraints: query.constraints,
    preferredTaints: query.preferredTaints,
    promptHashes: query.promptHashes,
    expectedOutputTokens: query.expectedOutputTokens,
    fitTargetMs: query.fitTargetMs,
    mayWait: query.mayWait,
    settings: query.settings,
  });
  return {
    match,
    choose(query, key, excluded, rid = key) {
      const startMs = clock.nowMs();
      const request = requestOf(query, key);
      const matchedMs = clock.nowMs();
      const record =
        decisions &&
        ((made: ChoiceMade): void => {
          decisions.add({ id: key, rid, atWallMs: clock.wallMs() }, tables, made);
        });
      const choose = (constraints: WorkerConstraints): Choice =>
        chooseAndBook(tables, { ...request, constraints }, random, record);
      const choice = sparing(context, query.constraints, excluded, { choose, isNobody });
      onTimes(matchedMs - startMs, clock.nowMs() - startMs);
      if (choice.outcome === "chosen") {
        // Every choice teaches the predicted index.
        predicted?.record(choice.slot, query.sequence, query.blocks, request.nowMs);
        context.onBooked(key, choice);
      }
      return choice;
    },
    ask(query, excluded) {
      const request = requestOf(query, "");
      let decision: Decision | undefined;
      const choose = (constraints: WorkerConstraints): Choice => {
        decision = explain(tables, { ...request, constraints }, askRandom);
        return decision.choice;
      };
      sparing(context, query.constraints, excluded, { choose, isNobody });
      if (!decision) throw new TiergridError("internal_error", "no decision was taken");
      return decision;
    },
    roomFor(query, excluded, threshold) {
      const nowMs = clock.nowMs();
      return sparing<Room | SelectionRefusal>(context, query.constraints, excluded, {
        choose: (constraints) => roomFor(tables, { constraints, nowMs, threshold }),
        isNobody: (answer) => answer === "no_endpoints",
      });
    },
    bestCachedTokens(query) {
      const { constraints, settings } = query;
      const overlap = match(query);
      return bestCachedTokens(tables, { ...settings, constraints, nowMs: clock.nowMs(), overlap });
    },
  };
}

function isNobody(choice: Choice): boolean {
  return choice.outcome === "refused" && choice.code === "no_endpoints";
}

interface Chooser<Answer> {
  readonly choose: (constraints: WorkerConstraints) => Answer;
  /** True of the answer that no worker is left. */
  readonly isNobody: (answer: Answer) => boolean;
}

/**
 * Chooses without the workers to be spared; when that leaves nobody, with them. A pinned request
 * names its worker and spares none.
 */
function sparing<Answer>(
  { directory }: ChoiceContext,
  constraints: WorkerConstraints,
  excluded: Excluded,
  { choose, isNobody }: Chooser<Answer>,
): Answer {
  const held = directory.heldOut();
  const spared = held.size + excluded.avoid.length;
  if (spared + excluded.tried.length === 0 || constraints.pinnedWorkerId !== undefined) {
    return choose(constraints);
  }
  const untried = allowedWithout(directory, constraints, new Set(excluded.tried));
  if (spared > 0) {
    const first = allowedWithout(directory, untried, new Set([...held, ...excluded.avoid]));
    const choice = choose(first);
    if (!isNobody(choice)) return choice;
  }
  return choose(untried);
}

function allowedWithout(
  { workers }: WorkerDirectory,
  constraints: WorkerConstraints,
  without: ReadonlySet<string>,
): WorkerConstraints {
  if (without.size === 0) return constraints;
  const allowed = [...(constraints.allowedWorkerIds ?? workers.keys())];
  const allowedWorkerIds = new Set(allowed.filter((workerId) => !without.has(workerId)));
  return { ...constraints, allowedWorkerIds };
}

/** The refusal as the caller hears it. */
export function refusalError({ code, workerId }: RefusedChoice): TiergridError {
  const details = workerId === undefined ? {} : { worker_id: workerId };
  return new TiergridError(code, refusalTexts[code], details);
}

const refusalTexts: Readonly<Record<RefusedChoice["code"], string>> = {
  no_endpoints: "no endpoints available to route work",
  pinned_worker_not_allowed: "the pinned worker is not among the allowed workers",
  pinned_worker_overloaded: "the pinned worker is overloaded",
  all_eligible_workers_overloaded: "all eligible workers are overloaded",
  invalid_request: "a request must have at least one token",
  duplicate_request: "this request is booked already",
  booking_failed: "the request could not be booked",
};
