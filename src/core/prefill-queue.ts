/**
 * Prompts of one worker without a first token, in the order its engine computes them: those that it
 * has, as they came, and behind them those that the router holds back, the one due first before the
 * others. The choice is made and booked when a request comes; what waits is only its dispatch.
 *
 *   oldest                                       youngest
 *   [ a ⇄ b ]  [ c due 900 ⇄ d due 2500 ⇄ e due 9000 ]
 *    engine     held: c goes `leadMs` before the pass begins that is planned for it
 *
 * Engines compute in the order of arrival, so a prompt of seconds with time to spare would make its
 * worker, and what is cached there, useless for everything tight behind it.
 *
 * Invariants: held requests are a suffix, ordered by `dueMs`; `heldCount` counts them; the plan covers
 * the whole queue.
 */
import type { WorkerLatency } from "./latency-model.ts";
import {
  appendPasses,
  copyPass,
  emptyPlan,
  freeMs,
  joinedEndMs,
  joinTail,
  newPass,
  type PlannedPass,
  type PlannedRequest,
  type PrefillPlan,
  planRequest,
  regroupingMsMax,
  replan,
  sharedTokens,
} from "./prefill-plan.ts";

export interface QueuedPrompt extends PlannedRequest {
  readonly key: string;
  readonly dispatchedMs: number;
  /** Place of a held one among the held. */
  dueMs: number;
  /** Of a held one: least time by which it or one behind it, if expected in time, is early. */
  slackMs: number;
  older: QueuedPrompt | undefined;
  younger: QueuedPrompt | undefined;
}

/** A prompt with a target, as it would be queued. */
export interface DuePrompt {
  readonly nowMs: number;
  readonly uncachedTokens: number;
  readonly cachedTokens: number;
  /** When its first token is due. */
  readonly deadlineMs: number;
}

export interface DueForecast {
  /** First token of the prompt. */
  endMs: number;
  /** When it would be sent. */
  sentMs: number;
  /** Its place among the held. */
  dueMs: number;
  /** A first token that is expected in time would be late. */
  breaksPromise: boolean;
}

/** Held requests of one worker; beyond, they go to the engine as they come. */
export const heldPerWorkerMax = 256;
/** A held request is sent this long before its turn, so that the engine need not wait for it. */
export const leadMs = 20;
/** A prompt that is late wherever it is put is due so long after its arrival. */
const latePatienceMs = 10_000;

export class PrefillQueue {
  oldest: QueuedPrompt | undefined = undefined;
  youngest: QueuedPrompt | undefined = undefined;
  heldCount = 0;
  readonly plan: PrefillPlan = emptyPlan();
  /** False: whoever owns the queue asks for no plans. */
  readonly #plans: boolean;

  constructor(plans: boolean) {
    this.#plans = plans;
  }

  /** The first of those held back. */
  get heldHead(): QueuedPrompt | undefined {
    if (this.heldCount === 0) return undefined;
    let request = this.oldest;
    while (request && !request.isHeld) request = request.younger;
    return request;
  }

  /** Has a request that comes wait for its turn, if it has a deadline and there is room. */
  hold(request: QueuedPrompt, model: WorkerLatency): void {
    const { deadlineMs, dispatchedMs: nowMs, uncachedTokens, cachedTokens } = request;
    if (deadlineMs === Number.POSITIVE_INFINITY || this.heldCount >= heldPerWorkerMax) return;
    this.forecastDue({ nowMs, uncachedTokens, cachedTokens, deadlineMs }, model, held);
    request.isHeld = true;
    request.dueMs = held.dueMs;
  }

  /** Puts a request to its place and plans the queue with it. */
  join(request: QueuedPrompt, nowMs: number, model: WorkerLatency): void {
    const before = this.#before(request.isHeld, request.dueMs);
    const after = before ? before.younger : this.oldest;
    this.#link(request, before, after);
    if (request.isHeld) this.heldCount++;
    if (!this.#plans) return;
    if (after) this.replan(nowMs, model);
    else {
      planRequest(this.plan, request, model);
      this.#countSlack();
    }
  }

  leave(request: QueuedPrompt): void {
    const { older, younger } = request;
    if (older) older.younger = younger;
    else this.oldest = younger;
    if (younger) younger.older = older;
    else this.youngest = older;
    request.older = undefined;
    request.younger = undefined;
    request.pass = undefined;
    if (request.isHeld) this.heldCount--;
  }

  /** The head of the held goes to the engine. */
  release(head: QueuedPrompt, nowMs: number, model: WorkerLatency): void {
    head.isHeld = false;
    head.joinMs = nowMs;
    this.heldCount--;
    this.replan(nowMs, model);
  }

  /** Plans the queue as it is; a `startMs` says that all before is over. */
  replan(nowMs: number, model: WorkerLatency, startMs: number = this.plan.startMs): void {
    if (!this.#plans) return;
    this.plan.startMs = startMs;
    replan(this.plan, this.oldest, nowMs, model);
    this.#countSlack();
  }

  /**
   * Fills `forecast` for `prompt` at its place among the held: by its deadline, or if that is missed
   * by the patience that late ones have to have.
   */
  forecastDue(prompt: DuePrompt, model: WorkerLatency, forecast: DueForecast): void {
    forecast.dueMs = prompt.deadlineMs;
    this.#walk(prompt, model, forecast);
    if (forecast.endMs <= prompt.deadlineMs) return;
    const lateMs = Math.max(prompt.deadlineMs, prompt.nowMs + latePatienceMs);
    if (lateMs === forecast.dueMs) return;
    forecast.dueMs = lateMs;
    this.#walk(prompt, model, forecast);
  }

  /** Plans `prompt` and what is behind its place, beside the plan that counts. */
  #walk(prompt: DuePrompt, model: WorkerLatency, forecast: DueForecast): void {
    const before = this.#before(true, forecast.dueMs);
    const { plan, pass } = walk;
    plan.tail = before && before.tail.tokens > 0 ? pass : undefined;
    if (before) copyPass(before.tail, pass);
    plan.startMs = this.oldest ? this.plan.startMs : prompt.nowMs;
    walk.breaksPromise = false;
    walkProbe(prompt, model);
    const spareMs = regroupingMsMax(model);
    let request = before ? before.younger : this.oldest;
    while (request) {
      walkQueued(request, prompt.nowMs, model);
      const { pass: planned, younger } = request;
      request = younger;
      if (!younger || !planned || walk.probeInTail) continue;
      // Those further behind move by as much, and have the time.
      if (pass.endMs - planned.endMs + spareMs < younger.slackMs) break;
    }
    forecast.endMs = walk.endMs;
    forecast.sentMs = Math.max(prompt.nowMs, walk.startMs - leadMs);
    forecast.breaksPromise = walk.breaksPromise;
  }

  /** Only what is held is ever moved by a prompt that comes. */
  #countSlack(): void {
    let slackMs = Number.POSITIVE_INFINITY;
    for (let request = this.youngest; request?.isHeld; request = request.older) {
      slackMs = Math.min(slackMs, slackOf(request));
      request.slackMs = slackMs;
    }
  }

  /** Whom a request would come behind: the last in the engine, or the last held that is due earlier. */
  #before(isHeld: boolean, dueMs: number): QueuedPrompt | undefined {
    let before = this.youngest;
    while (before?.isHeld && (!isHeld || before.dueMs > dueMs)) before = before.older;
    return before;
  }

  #link(
    request: QueuedPrompt,
    before: QueuedPrompt | undefined,
    after: QueuedPrompt | undefined,
  ): void {
    request.older = before;
    request.younger = after;
    if (before) before.younger = request;
    else this.oldest = request;
    if (after) after.older = request;
    else this.youngest = request;
  }
}

/** Infinity = it is late in any case. */
function slackOf({ pass, deadlineMs }: QueuedPrompt): number {
  return pass && pass.endMs <= deadlineMs ? deadlineMs - pass.endMs : Number.POSITIVE_INFINITY;
}

const held: DueForecast = { endMs: 0, sentMs: 0, dueMs: 0, breaksPromise: false };

/** One walk at a time: forecasts allocate no passes. */
const walk = {
  plan: emptyPlan(),
  pass: newPass(),
  breaksPromise: false,
  /** The first pass of the probe, and its first token as far as walked. */
  startMs: Number.NaN,
  endMs: Number.NaN,
  /** The walk's tail is the pass that ends the probe. */
  probeInTail: false,
};
const walked = { nowMs: 0, uncachedTokens: 0, cachedTokens: 0 };

function walkProbe(prompt: DuePrompt, model: WorkerLatency): void {
  walked.nowMs = Math.max(walk.plan.startMs, prompt.nowMs);
  walked.uncachedTokens = prompt.uncachedTokens;
  walked.cachedTokens = prompt.cachedTokens;
  const { tail } = walk.plan;
  const tailStartMs = tail ? tail.startMs : 0;
  const nextMs = freeMs(walk.plan, walked.nowMs);
  walk.startMs = walkOn(true, model) > 0 ? tailStartMs : nextMs;
  walk.endMs = (walk.plan.tail as PlannedPass).endMs;
  walk.probeInTail = true;
}

function walkQueued(request: QueuedPrompt, nowMs: number, model: WorkerLatency): void {
  const { pass, deadlineMs, doneTokens } = request;
  if (!pass) return;
  walked.nowMs = Math.max(walk.plan.startMs, request.isHeld ? nowMs : request.joinMs);
  walked.uncachedTokens = request.uncachedTokens - doneTokens;
  walked.cachedTokens = request.cachedTokens + doneTokens;
  walkOn(request.isHeld, model);
  const tail = walk.plan.tail as PlannedPass;
  if (pass.endMs > deadlineMs) return;
  if (tail.endMs > deadlineMs) walk.breaksPromise = true;
  else tail.keepMs = Math.min(tail.keepMs, deadlineMs);
}

/** Puts `walked` behind the walk's tail; answers how many of its tokens join that. */
function walkOn(isHeld: boolean, model: WorkerLatency): number {
  const { plan } = walk;
  const { tail } = plan;
  const joined = sharedTokens(plan, walked, isHeld, model);
  if (tail && joined > 0) {
    if (joinedEndMs(tail, walked, joined, model) > tail.keepMs) walk.breaksPromise = true;
    joinTail(tail, walked, joined, model);
    if (walk.probeInTail) walk.endMs = tail.endMs;
  }
  if (walked.uncachedTokens > joined) {
    appendPasses(plan, walked, joined, model, walk.pass);
    walk.probeInTail = false;
  }
  return joined;
}
