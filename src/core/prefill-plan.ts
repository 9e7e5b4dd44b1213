/**
 * When a worker will be done with its queue of prompts, planned as its engine will compute them: in
 * the queue's order, `M` tokens a pass, and nobody joins a pass that runs. A prompt that the router
 * holds back shares only short passes with others: the shorter the passes, the sooner a prompt that
 * is due earlier gets its turn.
 *
 *   M = 8192     a 5000   b 6000
 *   passes     [ a 5000 · b 3192 ][ b 2808        ]
 *              ▲ startMs            ▲ tail         ▲ endMs: free, first token of b
 *   c 7000, before the tail begins:
 *              [ a 5000 · b 3192 ][ b 2808 · c 5384 ][ c 1616 ]
 *                                   the tail is longer, b comes later
 *
 * Every first token is the end of a pass: what that pass computed of younger prompts is done, and the
 * rest is planned anew from there, so that errors do not add up.
 *
 * Invariants: passes lie back to back, all but the tail and the running one are full; a request
 * belongs to the pass that ends it; `keepMs` is the earliest time by which the tail has to end for a
 * first token that is expected in time.
 */
import type { WorkerLatency } from "./latency-model.ts";

/** A pass as far as it is planned. */
export interface PassState {
  startMs: number;
  endMs: number;
  /** 0 = nothing is planned. */
  tokens: number;
  /** Sum of n * (context + n / 2) over its chunks of n tokens. */
  attention: number;
  keepMs: number;
}

export interface PlannedPass extends PassState {
  /** All passes since the plan's start up to its end. */
  readonly done: PlannedWork;
}

export interface PlannedWork {
  passes: number;
  tokens: number;
  attention: number;
}

export interface PrefillPlan {
  /** The queue's last pass; undefined = nothing is queued. */
  tail: PlannedPass | undefined;
  /** End of the last pass that is known to be over. */
  startMs: number;
}

export interface PlannedPrompt {
  readonly nowMs: number;
  /** Left to compute, and what is there before that. */
  readonly uncachedTokens: number;
  readonly cachedTokens: number;
}

/** A request in the queue. */
export interface PlannedRequest {
  readonly uncachedTokens: number;
  readonly cachedTokens: number;
  /** When its engine got it; of a held one, when the queue was planned. */
  joinMs: number;
  /** The router has it still. */
  isHeld: boolean;
  /** When its first token is due; Infinity = nobody was told. */
  readonly deadlineMs: number;
  /** Of the uncached tokens, computed before the plan's start. */
  doneTokens: number;
  /** The pass that ends it; undefined = it is computed, or nothing is planned. */
  pass: PlannedPass | undefined;
  /** When the first pass begins that computes of it. */
  startMs: number;
  /** The queue's last pass without those behind this one. */
  readonly tail: PassState;
  readonly younger: PlannedRequest | undefined;
}

/** What becomes of a queue with one more prompt. */
export interface Forecast {
  /** First token of the prompt. */
  endMs: number;
  /** The pass that ends it. */
  passStartMs: number;
  passTokens: number;
  /** A first token that is expected in time would be late by sharing its pass. */
  breaksPromise: boolean;
}

/** Work that comes to a worker behind a prompt, of what it could compute meanwhile. */
const joinersShare = 0.4;
/**
 * Held prompts share a pass of up to this many times the time of an empty one: passes of few tokens
 * waste their fixed part, long ones keep a prompt waiting that is due early.
 */
const sharedPassesWorth = 10;

export function emptyPlan(): PrefillPlan {
  return { tail: undefined, startMs: 0 };
}

/** Fills `forecast` for `prompt` behind the plan's queue. */
export function forecastPrompt(
  { tail }: PrefillPlan,
  prompt: PlannedPrompt,
  model: WorkerLatency,
  forecast: Forecast,
): void {
  const { nowMs, uncachedTokens, cachedTokens } = prompt;
  const joined = joinedTokens(tail, prompt, model);
  let startMs = nowMs;
  forecast.breaksPromise = false;
  if (tail && joined > 0) {
    startMs = joinedEndMs(tail, prompt, joined, model);
    forecast.breaksPromise = startMs > tail.keepMs;
  } else if (tail) startMs = Math.max(nowMs, tail.endMs);
  const rest = uncachedTokens - joined;
  forecast.endMs = startMs;
  if (rest > 0) {
    const last = ((rest - 1) % model.shape.limits.batchTokens) + 1;
    const context = cachedTokens + uncachedTokens - last;
    forecast.endMs += passesMs(model, rest, cachedTokens + joined);
    forecast.passStartMs = forecast.endMs - model.prefillMs(last, last * (context + last / 2));
    forecast.passTokens = last;
  } else if (tail) {
    forecast.passStartMs = tail.startMs;
    forecast.passTokens = tail.tokens + joined;
  }
}

/** What prompts that are still to come add to the pass of a forecast: they join until it begins. */
export function joinersMs(
  { passStartMs, passTokens }: Forecast,
  nowMs: number,
  model: WorkerLatency,
): number {
  const { batchTokens } = model.shape.limits;
  const untilMs = Math.max(0, passStartMs - nowMs);
  const comingTokens = (joinersShare * untilMs * batchTokens) / model.prefillMs(batchTokens, 0);
  const tokens = passTokens + Math.min(comingTokens, batchTokens - passTokens);
  return model.prefillMs(tokens, 0) - model.prefillMs(passTokens, 0);
}

/** Puts a request behind the queue; `nowMs` is when it came or the plan's start. */
export function planRequest(
  plan: PrefillPlan,
  request: PlannedRequest,
  model: WorkerLatency,
): void {
  if (!plan.tail) plan.startMs = Math.max(plan.startMs, request.joinMs);
  const prompt = {
    nowMs: Math.max(plan.startMs, request.joinMs),
    uncachedTokens: request.uncachedTokens - request.doneTokens,
    cachedTokens: request.cachedTokens + request.doneTokens,
  };
  const joined = sharedTokens(plan, prompt, request.isHeld, model);
  request.startMs = joined > 0 ? (plan.tail as PlannedPass).startMs : freeMs(plan, prompt.nowMs);
  if (plan.tail && joined > 0) joinTail(plan.tail, prompt, joined, model);
  if (prompt.uncachedTokens > joined) appendPasses(plan, prompt, joined, model);
  const tail = plan.tail as PlannedPass;
  request.pass = tail;
  if (tail.endMs <= request.deadlineMs) tail.keepMs = Math.min(tail.keepMs, request.deadlineMs);
  copyPass(tail, request.tail);
}

export function copyPass(from: PassState, to: PassState): void {
  to.startMs = from.startMs;
  to.endMs = from.endMs;
  to.tokens = from.tokens;
  to.attention = from.attention;
  to.keepMs = from.keepMs;
}

/**
 * `pass` is over: counts what it and those before it computed of the queue from `oldest` on. False
 * when they were planned with more than the engine has.
 */
export function passEnded(pass: PlannedPass, oldest: PlannedRequest | undefined): boolean {
  let left = pass.done.tokens;
  for (let request = oldest; request && left > 0; request = request.younger) {
    if (request.isHeld) return false;
    const tokens = Math.min(left, request.uncachedTokens - request.doneTokens);
    request.doneTokens += tokens;
    left -= tokens;
  }
  return true;
}

/** Plans the queue from `oldest` on anew; the passes before the plan's start are over. */
export function replan(
  plan: PrefillPlan,
  oldest: PlannedRequest | undefined,
  nowMs: number,
  model: WorkerLatency,
): void {
  plan.tail = undefined;
  for (let request = oldest; request; request = request.younger) {
    request.pass = undefined;
    if (request.isHeld) request.joinMs = nowMs;
    if (request.doneTokens < request.uncachedTokens) planRequest(plan, request, model);
    else if (plan.tail) copyPass(plan.tail, request.tail);
    else request.tail.tokens = 0;
  }
}

/** Tokens of a queued prompt that the tail takes. */
export function sharedTokens(
  { tail }: PrefillPlan,
  prompt: PlannedPrompt,
  isHeld: boolean,
  model: WorkerLatency,
): number {
  if (isHeld && tail && !fitsShared(tail.tokens + prompt.uncachedTokens, model)) return 0;
  return joinedTokens(tail, prompt, model);
}

function fitsShared(tokens: number, model: WorkerLatency): boolean {
  return model.prefillMs(tokens, 0) <= sharedPassesWorth * model.prefillMs(1, 0);
}

/** When the next pass can begin. */
export function freeMs({ tail }: PrefillPlan, nowMs: number): number {
  return tail ? Math.max(tail.endMs, nowMs) : nowMs;
}

/** Tokens of the prompt that the tail takes; a pass that has begun takes none. */
function joinedTokens(
  tail: PlannedPass | undefined,
  { nowMs, uncachedTokens }: PlannedPrompt,
  model: WorkerLatency,
): number {
  if (!tail || tail.startMs < nowMs) return 0;
  return Math.min(uncachedTokens, model.shape.limits.batchTokens - tail.tokens);
}

export function joinedEndMs(
  { startMs, tokens, attention }: PlannedPass,
  { cachedTokens }: PlannedPrompt,
  joined: number,
  model: WorkerLatency,
): number {
  const joinedAttention = joined * (cachedTokens + joined / 2);
  return startMs + model.prefillMs(tokens + joined, attention + joinedAttention);
}

export function joinTail(
  tail: PlannedPass,
  prompt: PlannedPrompt,
  joined: number,
  model: WorkerLatency,
): void {
  const attention = joined * (prompt.cachedTokens + joined / 2);
  tail.endMs = joinedEndMs(tail, prompt, joined, model);
  tail.tokens += joined;
  tail.attention += attention;
  tail.done.tokens += joined;
  tail.done.attention += attention;
  if (tail.endMs > tail.keepMs) tail.keepMs = Number.POSITIVE_INFINITY;
}

/** The passes of a prompt behind those it joined; the last one is written `into` the given one. */
export function appendPasses(
  plan: PrefillPlan,
  { nowMs, uncachedTokens, cachedTokens }: PlannedPrompt,
  joined: number,
  model: WorkerLatency,
  into: PlannedPass = newPass(),
): void {
  const { tail } = plan;
  const { batchTokens } = model.shape.limits;
  const rest = uncachedTokens - joined;
  const context = cachedTokens + joined;
  const tokens = ((rest - 1) % batchTokens) + 1;
  const full = rest - tokens;
  const free = freeMs(plan, nowMs);
  const { done } = into;
  const before = tail?.done ?? noWork;
  done.passes = before.passes + full / batchTokens + 1;
  done.tokens = before.tokens + rest;
  done.attention = before.attention + rest * (context + rest / 2);
  into.startMs = full > 0 ? free + passesMs(model, full, context) : free;
  into.tokens = tokens;
  into.attention = tokens * (context + full + tokens / 2);
  into.endMs = into.startMs + model.prefillMs(tokens, into.attention);
  into.keepMs = Number.POSITIVE_INFINITY;
  plan.tail = into;
}

const noWork: PlannedWork = { passes: 0, tokens: 0, attention: 0 };

export function noPass(): PassState {
  return { startMs: 0, endMs: 0, tokens: 0, attention: 0, keepMs: Number.POSITIVE_INFINITY };
}

export function newPass(): PlannedPass {
  return { ...noPass(), done: { passes: 0, tokens: 0, attention: 0 } };
}

/** Beyond this a plan does not move by a prompt more than by the prompt's own time, ms. */
export function regroupingMsMax(model: WorkerLatency): number {
  return (sharedPassesWorth + 1) * model.prefillMs(1, 0);
}

/** Time of `tokens` > 0 of one prompt behind `context` in passes of their own, the last one partly. */
function passesMs(model: WorkerLatency, tokens: number, context: number): number {
  const { batchTokens } = model.shape.limits;
  const last = ((tokens - 1) % batchTokens) + 1;
  const full = tokens - last;
  const lastMs = model.prefillMs(last, last * (context + full + last / 2));
  if (full === 0) return lastMs;
  // Full passes are equally long but for their context, which grows evenly.
  const fullMs = model.prefillMs(batchTokens, batchTokens * (context + full / 2));
  return lastMs + (full / batchTokens) * fullMs;
}
