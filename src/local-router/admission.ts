/**
 * Holds requests back while every worker that may take them has its fill of prefill. What leaves the
 * queue is matched and chosen afresh, so a long wait routes by the caches and loads of its end.
 *
 *   ask ──room, nobody waits──▶ go
 *    ▲ └──else──▶ place in the queue ──▶ wait
 *    └── head only: prefill left the load book (ours or a replica's), workers changed, it became
 *        the head, or a minute passed
 *
 * - A request that was let through once is never held again: an attempt that fails keeps its turn.
 * - The head is woken only when it has room; all others sleep until they are the head.
 */
import { type CancelSignal, CancelSwitch } from "../base/cancel.ts";
import type { Clock } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import { AdmissionQueue, type QueueOrder, type Ticket } from "../core/admission-queue.ts";
import type { WorkerLoad } from "../core/worker-load.ts";
import { type LocalMetrics, workerTypeOf } from "./local-metrics.ts";
import type { PoolRules, RouteQuery } from "./route-query.ts";
import { type Excluded, nothingExcluded, type WorkerChoice } from "./worker-choice.ts";
import type { WorkerDirectory } from "./worker-directory.ts";

/** Longest wait before the head is asked again, were every sign of room lost. */
export const recheckMs = 60_000;
/** The same while booked prefill decays by itself. */
export const decayRecheckMs = 100;

/** A request in front of the queue, in it, or past it. */
export interface Admittance {
  readonly query: RouteQuery;
  readonly excluded: Excluded;
  readonly arrivedMs: number;
  passed: boolean;
  ticket: Ticket<Admittance> | undefined;
  woken: CancelSwitch;
}

export type Verdict =
  | { readonly type: "go" }
  | { readonly type: "wait"; readonly waitMs: number; readonly woken: CancelSignal }
  | { readonly type: "refuse"; readonly error: TiergridError };

export interface Admission {
  /** What the request may do at this moment; asked again after each wait. */
  ask(request: Admittance): Verdict;
  /** The request is over. */
  leave(request: Admittance): void;
  /** What a request that cannot wait is told; undefined = it need not. */
  refusalOf(query: RouteQuery): TiergridError | undefined;
  readonly pending: PendingRequests;
}

/** Requests that wait for a worker. */
export interface PendingRequests {
  readonly count: number;
  readonly islTokens: number;
}

export interface AdmissionOptions {
  readonly clock: Clock;
  readonly rules: PoolRules;
  /** Absent = the config's policy. */
  readonly queueOrder?: QueueOrder;
  readonly choice: WorkerChoice;
  readonly load: WorkerLoad;
  readonly directory: WorkerDirectory;
  readonly metrics: LocalMetrics;
}

interface Gate extends AdmissionOptions {
  readonly threshold: number;
  readonly queue: AdmissionQueue<Admittance>;
  readonly startMs: number;
  readonly recheckMs: number;
  /** Empty until a worker was seen. */
  model: string;
}

/** Undefined when the config sets no threshold: then nothing waits. */
export function startAdmission(options: AdmissionOptions): Admission | undefined {
  const { rules, clock, load, directory } = options;
  const { routerQueueThreshold: threshold, routerPrefillLoadModel } = rules.config;
  if (threshold === null) return undefined;
  const depthRules = rules.config.routerQueueByIncomingMissingIsl;
  const order = options.queueOrder ?? rules.config.routerQueuePolicy;
  const gate: Gate = {
    ...options,
    threshold,
    queue: new AdmissionQueue({ order, depthRules }),
    startMs: clock.nowMs(),
    recheckMs: routerPrefillLoadModel === "none" ? recheckMs : decayRecheckMs,
    model: "",
  };
  const { queue } = gate;
  const wake = (): void => {
    const head = queue.head?.item;
    if (head && !head.woken.aborted && !isFull(gate, head)) head.woken.abort();
  };
  load.onRelief = wake;
  directory.listen({ changed: wake });
  collectQueueAtScrape(gate);
  return {
    ask: (request) => ask(gate, request),
    leave: (request) => giveUp(gate, request),
    refusalOf(query) {
      const impatient = { ...query, doNotQueue: true };
      const verdict = arrive(gate, newAdmittance(impatient, nothingExcluded, clock.nowMs()));
      return verdict.type === "refuse" ? verdict.error : undefined;
    },
    pending: {
      get count() {
        return queue.count;
      },
      get islTokens() {
        return queue.islTokens;
      },
    },
  };
}

export function newAdmittance(query: RouteQuery, excluded: Excluded, nowMs: number): Admittance {
  const woken = new CancelSwitch();
  return { query, excluded, arrivedMs: nowMs, passed: false, ticket: undefined, woken };
}

function ask(gate: Gate, request: Admittance): Verdict {
  const { queue, clock } = gate;
  if (request.passed) return go;
  if (!request.ticket) return arrive(gate, request);
  if (queue.head !== request.ticket || isFull(gate, request)) return wait(gate, request);
  const waitSecs = (clock.nowMs() - request.arrivedMs) / 1000;
  gate.metrics
    .histogram("dynamo_frontend_router_queue_wait_seconds", queueLabels(gate))
    .observe(waitSecs);
  request.passed = true;
  giveUp(gate, request);
  return go;
}

export const go: Verdict = Object.freeze({ type: "go" });

function arrive(gate: Gate, request: Admittance): Verdict {
  const { queue, choice, directory, startMs } = gate;
  const { query, excluded, arrivedMs } = request;
  const room = choice.roomFor(query, excluded, gate.threshold);
  // Who has no worker at all hears so at once, from the choice.
  if (room !== "full" && (room !== "room" || queue.count === 0)) {
    request.passed = true;
    return go;
  }
  if (query.doNotQueue) return refuse(gate, "do_not_queue");
  const arrival = {
    strictPriority: query.strictPriority,
    priorityJumpSecs: query.priorityJumpSecs,
    arrivedSecs: (arrivedMs - startMs) / 1000,
    islTokens: query.islTokens,
    bestCachedTokens: choice.bestCachedTokens(query),
  };
  const ticket = queue.join(request, arrival, directory.selectableCount);
  if (typeof ticket === "string") return refuse(gate, ticket);
  request.ticket = ticket;
  // A priority may have made it the head at once, and the pool may have room for it.
  return ask(gate, request);
}

function wait(gate: Gate, request: Admittance): Verdict {
  if (request.woken.aborted) request.woken = new CancelSwitch();
  return { type: "wait", waitMs: gate.recheckMs, woken: request.woken };
}

/** Leaves the queue; who becomes its head by that is asked. */
function giveUp({ queue }: Gate, request: Admittance): void {
  const { ticket } = request;
  if (!ticket) return;
  request.ticket = undefined;
  const wasHead = queue.head === ticket;
  queue.leave(ticket);
  if (wasHead) queue.head?.item.woken.abort();
}

function isFull({ choice, threshold }: Gate, { query, excluded }: Admittance): boolean {
  return choice.roomFor(query, excluded, threshold) === "full";
}

type RefusalReason = keyof typeof refusals;

const refusals = {
  do_not_queue: "every worker has its fill of prefill, and the request may not wait",
  request_limit: "too many requests are waiting",
  raw_isl_token_limit: "too many prompt tokens are waiting",
} as const;

function refuse(gate: Gate, reason: RefusalReason): Verdict {
  const labels = { ...queueLabels(gate), reason };
  gate.metrics.counter("dynamo_frontend_router_queue_backpressure_total", labels).add();
  const code = reason === "do_not_queue" ? reason : "queue_rejected";
  return { type: "refuse", error: new TiergridError(code, refusals[reason], { reason }) };
}

/** Series keep the model that was last served while no worker is there. */
function queueLabels(gate: Gate) {
  const [worker] = gate.directory.workers.values();
  if (worker) gate.model = worker.card.model;
  const worker_type = workerTypeOf(gate.rules.role);
  return { model: gate.model, worker_type, policy_class: "default" };
}

function collectQueueAtScrape(gate: Gate): void {
  const { metrics, queue } = gate;
  metrics.onScrape(() => {
    const labels = queueLabels(gate);
    if (labels.model === "") return;
    metrics.gauge("dynamo_frontend_router_queue_pending_requests", labels).set(queue.count);
    metrics.gauge("dynamo_frontend_router_queue_pending_isl_tokens", labels).set(queue.islTokens);
    metrics
      .gauge("dynamo_frontend_router_queue_pending_cached_tokens", labels)
      .set(queue.cachedTokens);
  });
}
