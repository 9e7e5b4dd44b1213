/**
 * The local router as a dispatcher's policy: a request's next hop is a worker, chosen and booked in
 * one step. A booking is made by `plan` and freed once, by whichever of its ends comes first.
 *
 *   admit ─query─▶ plan ─booked─▶ first_output ─▶ progress … ─▶ ended: freed
 *                   ▲  └─ held: booked, sent by a later plan
 *                   └─ attemptFailed: freed, worker left out from here on
 */
import type { Clock } from "../base/clock.ts";
import { type ErrorCode, errorTable, TiergridError } from "../base/errors.ts";
import type { ChosenWorker } from "../core/choice.ts";
import type { LatencyBook } from "../core/latency-book.ts";
import { outputBlocksCrossed, outputFraction, type WorkerLoad } from "../core/worker-load.ts";
import type { ClosedNotice, FinishedNotice, RequestNotice } from "../protocol/notices.ts";
import type { HopDecision, RoutedBody, RoutedDispatch } from "../protocol/requests.ts";
import { controlSubject, generateSubject } from "../protocol/subjects.ts";
import type { DispatchEntry, DispatchPolicy, EndCause, Plan } from "../runtime/dispatch-policy.ts";
import { type Admission, type Admittance, go, newAdmittance } from "./admission.ts";
import type { HeldDispatch } from "./held-dispatch.ts";
import type { LocalMetrics, LocalSeries, WorkerSeries } from "./local-metrics.ts";
import { isQueryOnly } from "./query-only.ts";
import type { BookingListener } from "./replica-sync.ts";
import { type PoolRules, type RouteQuery, readRouteQuery } from "./route-query.ts";
import { refusalError, type WorkerChoice } from "./worker-choice.ts";
import type { WorkerDirectory } from "./worker-directory.ts";

/** Workers one request is offered to. */
export const offersMax = 3;

/** Faults after which a worker gets no requests for a while. */
const unreachable: ReadonlySet<ErrorCode> = new Set([
  "no_responders",
  "accept_timeout",
  "worker_lost",
]);

export interface LocalPolicyOptions {
  readonly inst: string;
  readonly namespace: string;
  readonly clock: Clock;
  readonly rules: PoolRules;
  readonly choice: WorkerChoice;
  /** Absent when no request ever waits. */
  readonly admission: Admission | undefined;
  /** Absent when requests go to their workers as they come. */
  readonly held: HeldDispatch | undefined;
  readonly load: WorkerLoad;
  /** Learns from streams; undefined in cost mode `blocks`. */
  readonly latency: LatencyBook | undefined;
  readonly directory: WorkerDirectory;
  readonly metrics: LocalMetrics;
  readonly series: LocalSeries;
  readonly workerSeries: WorkerSeries;
  /** False until the router may serve. */
  readonly serving: () => boolean;
  readonly bookings: BookingListener;
  /** A worker ended an answer. */
  readonly onAnswered: (workerId: string) => void;
}

interface LocalBooking {
  /** Key in the load book, and id of the decision. */
  readonly key: string;
  readonly worker: ChosenWorker;
}

/** A request's state between its arrival and its end. */
export interface LocalRequest {
  readonly query: RouteQuery;
  readonly tried: string[];
  readonly admittance: Admittance;
  booking: LocalBooking | undefined;
  lastError: TiergridError | undefined;
  hadFirstOutput: boolean;
  outputTokens: number;
}

type Entry = DispatchEntry<LocalRequest>;

interface Policy extends LocalPolicyOptions {
  decisions: number;
}

export function createLocalPolicy(options: LocalPolicyOptions): DispatchPolicy<LocalRequest> {
  const policy: Policy = { ...options, decisions: 0 };
  return {
    admit: (dispatch) => admit(policy, dispatch),
    plan: (entry) => plan(policy, entry),
    attemptFailed(entry, error) {
      const { state } = entry;
      const workerId = state.booking?.worker.workerId;
      release(policy, state, "failed");
      state.lastError = error;
      if (workerId === undefined) return;
      state.tried.push(workerId);
      if (unreachable.has(error.code)) policy.directory.inhibit(workerId, error.code);
    },
    accepted() {},
    noticed: (entry, notice) => noticed(policy, entry, notice),
    ended: (entry, cause) => ended(policy, entry, cause),
  };
}

function admit(policy: Policy, { envelope, body, prompt }: RoutedDispatch): LocalRequest {
  if (!policy.serving()) throw new TiergridError("not_ready", "Router not initialized");
  if (isQueryOnly(body)) {
    const message = "query_instance_id dispatches nothing: ask the endpoint itself, or explain";
    throw new TiergridError("invalid_request", message, { field: "annotations" });
  }
  const startMs = policy.clock.nowMs();
  const query = readRouteQuery(policy.rules, { phase: envelope.phase, body, prompt });
  policy.series.hashingMs.observe(policy.clock.nowMs() - startMs);
  policy.series.started.add();
  policy.series.isl.observe(query.islTokens);
  const tried: string[] = [];
  return {
    query: { ...query, mayWait: true },
    tried,
    admittance: newAdmittance(query, { avoid: envelope.avoid, tried }, startMs),
    booking: undefined,
    lastError: undefined,
    hadFirstOutput: false,
    outputTokens: 0,
  };
}

function plan(policy: Policy, entry: Entry): Plan {
  const { state, envelope } = entry;
  const { lastError, tried, booking: held } = state;
  if (held) {
    const turn = policy.held?.ask(held.key) ?? go;
    if (turn.type === "wait") return turn;
    if (turn.type === "go") return send(policy, entry, held);
    release(policy, state, "worker_lost");
  }
  // Who waited for a worker that left has less time for the next.
  const query = held ? withElapsed(policy, entry) : state.query;
  const pinned = query.constraints.pinnedWorkerId !== undefined;
  if (lastError && (pinned || !lastError.retryable || tried.length >= offersMax)) {
    return refuse(policy, lastError);
  }
  const verdict = policy.admission?.ask(state.admittance) ?? go;
  if (verdict.type === "wait") return verdict;
  if (verdict.type === "refuse") return refuse(policy, verdict.error);
  const key = `${policy.inst}-${++policy.decisions}`;
  const choice = policy.choice.choose(query, key, { avoid: envelope.avoid, tried }, entry.rid);
  if (choice.outcome === "refused") {
    // That nobody else is left says less than why the last worker did not take it.
    const error = choice.code === "no_endpoints" ? lastError : undefined;
    return refuse(policy, error ?? refusalError(choice));
  }
  const booking = { key, worker: choice };
  state.booking = booking;
  if (entry.prompt?.type === "hashes" && !takesHashes(policy, choice)) {
    return refuse(policy, new TiergridError("prompt_needed", "the worker takes tokens only"));
  }
  policy.series.hitRate.observe(choice.overlapBlocks / choice.requiredBlocks);
  const turn = policy.held?.ask(key) ?? go;
  return turn.type === "wait" ? turn : send(policy, entry, booking);
}

function withElapsed({ clock }: Policy, { state: { query }, receivedMs }: Entry): RouteQuery {
  const { fitTargetMs } = query;
  if (fitTargetMs === undefined) return query;
  return { ...query, fitTargetMs: Math.max(1, fitTargetMs - (clock.nowMs() - receivedMs)) };
}

function send(policy: Policy, entry: Entry, { key, worker }: LocalBooking): Plan {
  const { workerId } = worker;
  return {
    type: "send",
    inst: workerId,
    subject: generateSubject("w", workerId),
    control: controlSubject("w", workerId),
    body: bodyFor(policy, entry.body, worker),
    decision: decisionOf(policy, key, worker),
    progress: policy.rules.config.routerTrackOutputBlocks || policy.latency !== undefined,
  };
}

/** The card of each hop says so; an older worker may have joined since the router's was read. */
function takesHashes({ directory }: Policy, { workerId }: ChosenWorker): boolean {
  return directory.workers.get(workerId)?.card.promptHashes !== undefined;
}

function refuse({ metrics }: Policy, error: TiergridError): Plan {
  const { errorType } = errorTable[error.code];
  metrics.counter("dynamo_component_errors_total", { error_type: errorType }).add();
  return { type: "refuse", error };
}

/** The request as the worker gets it, to run on the chosen rank: the body as it came if that says so. */
function bodyFor(
  { directory }: Policy,
  body: RoutedBody,
  { workerId, dpRank }: ChosenWorker,
): RoutedBody {
  const hasOneRank = directory.workers.get(workerId)?.card.dpSize === 1;
  const said = body.routing?.dp_rank ?? (hasOneRank ? dpRank : undefined);
  return said === dpRank ? body : { ...body, routing: { ...body.routing, dp_rank: dpRank } };
}

function decisionOf(policy: Policy, key: string, choice: ChosenWorker): HopDecision {
  return {
    tier: "local",
    decision_id: key,
    role: policy.rules.role,
    pool: policy.namespace,
    worker_id: choice.workerId,
    dp_rank: choice.dpRank,
    overlap_blocks: choice.overlapBlocks,
    isl_blocks: choice.requiredBlocks,
  };
}

/** Notices may come twice; of each kind only the first, or the largest, counts. */
function noticed(policy: Policy, entry: Entry, notice: RequestNotice): void {
  const { state } = entry;
  if (!state.booking) return;
  policy.series.notices(notice.type).add();
  switch (notice.type) {
    case "first_output":
      firstOutput(policy, entry, notice.ttft_ms, notice.cached_tokens);
      break;
    case "progress":
      progressed(policy, state, notice.output_tokens);
      break;
    case "finished":
    case "closed":
      answered(policy, state.booking, notice);
      break;
    case "queued":
    case "accepted":
    case "failed":
      break;
  }
}

function firstOutput(policy: Policy, entry: Entry, ttftMs: number, cachedTokens?: number): void {
  const { state } = entry;
  const { booking, query } = state;
  if (state.hadFirstOutput || !booking) return;
  state.hadFirstOutput = true;
  const { series, load, clock, workerSeries } = policy;
  const { workerId, dpRank } = booking.worker;
  load.markPrefillCompleted(booking.key, clock.nowMs(), cachedTokens);
  policy.bookings.firstToken(booking.key);
  series.ttft.observe((clock.nowMs() - entry.receivedMs) / 1000);
  workerSeries.firstToken(workerId, dpRank, ttftMs, query.islTokens);
  if (cachedTokens === undefined) return;
  series.predictionError.observe(Math.abs(booking.worker.cachedTokens - cachedTokens));
}

function progressed(policy: Policy, state: LocalRequest, outputTokens: number): void {
  const { load, clock, rules } = policy;
  const { booking, query } = state;
  const newTokens = outputTokens - state.outputTokens;
  if (!booking || !(newTokens > 0)) return;
  state.outputTokens = outputTokens;
  policy.latency?.decoded(booking.key, outputTokens, clock.nowMs());
  const tracks = rules.config.routerTrackOutputBlocks && rules.role !== "prefill";
  const crossed = outputBlocksCrossed(query.islTokens, outputTokens, newTokens, rules.blockSize);
  if (!tracks || crossed === 0) load.touch(booking.key, clock.nowMs());
  else {
    const expected = query.expectedOutputTokens;
    const fraction = expected === undefined ? undefined : outputFraction(outputTokens, expected);
    load.addOutputBlocks(booking.key, crossed, fraction, clock.nowMs());
  }
}

/** The worker's `finished`, or in its stead the owner's `closed`. */
function answered(
  { series, workerSeries, onAnswered, latency, clock }: Policy,
  { key, worker }: LocalBooking,
  { outcome, output_tokens: outputTokens, itl }: FinishedNotice | ClosedNotice,
): void {
  onAnswered(worker.workerId);
  series.osl.observe(outputTokens);
  // An answer that broke off says nothing about how long they are.
  if (outcome === "ok") latency?.answered(key, outputTokens, clock.nowMs());
  if (!itl) return;
  series.itl.merge(itl.buckets, itl.sum_ms / 1000);
  workerSeries.gaps(worker.workerId, worker.dpRank, itl);
}

function ended(policy: Policy, entry: Entry, cause: EndCause): void {
  policy.admission?.leave(entry.state.admittance);
  release(policy, entry.state, cause);
  policy.series.ended.add();
  policy.series.duration.observe((policy.clock.nowMs() - entry.receivedMs) / 1000);
}

function release(policy: Policy, state: LocalRequest, by: EndCause | "failed"): void {
  const { booking } = state;
  if (!booking) return;
  state.booking = undefined;
  policy.held?.leave(booking.key);
  policy.bookings.freed(booking.key);
  const freed = policy.load.free(booking.key, policy.clock.nowMs());
  if (freed === "ok") policy.series.freed(by).add();
}
