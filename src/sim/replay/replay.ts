/**
 * One run of a trace against pools of mock engines, in virtual time and without a bus.
 *
 *   arrivals (heap) ─▶ pool ─▶ router chooses ─▶ engine waits ─▶ passes ─▶ tokens ─▶ ReplayRun
 *        ▲                     and may hold       │
 *        │                        ▲ KV events, first tokens, ends, load ──┘            │
 *        └────────────── the next turn of a session, `delay` after the end ────────────┘
 *
 * Steps run in (time, order of scheduling); arrivals of an instant before the engines of it, so that
 * an idle engine takes all requests of one instant into its first pass, and held ones before both.
 */
import type { Clock } from "../../base/clock.ts";
import type { FitRules } from "../../core/best-fit.ts";
import type { LatencyWeights } from "../../core/latency-cost.ts";
import type { PerfModel } from "../../core/perf-model.ts";
import type { MockEngineConfig } from "../../worker/mock-engine-config.ts";
import type { MockRequest } from "../../worker/mock-request.ts";
import { ArrivalHeap } from "./arrival-heap.ts";
import type { PolicyName } from "./policy-table.ts";
import type { PreparedTrace } from "./prepared-trace.ts";
import { ReplayEngine } from "./replay-engine.ts";
import { type LateWorkers, type ReplayArrival, ReplayRouter } from "./replay-router.ts";
import { ReplayRun, windowMs } from "./replay-run.ts";

/** Workers with equal engines behind one local router. */
export interface ReplayPool {
  readonly engine: MockEngineConfig;
  readonly workers: number;
  readonly policy: PolicyName;
  /** What the router believes of the engines at first; the truth when left out. */
  readonly profile?: PerfModel | undefined;
  /** Of one worker; 1 when left out. */
  readonly gpus?: number;
  /** In place of the policy's weights, where it prices in milliseconds. */
  readonly weights?: LatencyWeights | undefined;
  /** Of choices under a target; the usual ones when left out. */
  readonly fit?: FitRules | undefined;
  /** Workers that come later, the last ones. */
  readonly late?: LateWorkers | undefined;
  /** As the setting `router_herd_guard`; on when left out. */
  readonly herdGuard?: boolean | undefined;
}

/** Pool of a request, and the target that its worker there has to fit best. */
export interface PoolPick {
  readonly pool: number;
  readonly fitTargetMs?: number | undefined;
}

export interface ReplayOptions {
  readonly trace: PreparedTrace;
  readonly pools: readonly ReplayPool[];
  /** Divides arrivals and delays. */
  readonly speed: number;
  /** Decides ties and random policies. */
  readonly seed: number;
  /** Engines report load this often, in ms; 0 = a choice sees the load of its instant. */
  readonly reportPeriodMs?: number;
  /** KV events reach the router this late, in ms. */
  readonly eventDelayMs?: number;
  /** Chooses the pool of a request; the first one when left out. */
  readonly pickPool?: (
    place: number,
    arrival: ReplayArrival,
    routers: readonly ReplayRouter[],
  ) => PoolPick;
  /** From the choice of the pool to that of the worker, in ms. */
  readonly pickMs?: number | undefined;
  /** Keeps what the router predicts of each request; explaining a choice takes time. */
  readonly predictions?: boolean;
  /** Takes the wall time of every decision. */
  readonly stopwatch?: Clock | undefined;
}

const firstPool: PoolPick = { pool: 0 };
/** Workers tell their router of a stream's growth whenever it is a multiple of this. */
const progressTokens = 64;

interface Loop {
  readonly options: ReplayOptions;
  readonly run: ReplayRun;
  readonly arrivals: ArrivalHeap;
  readonly routers: readonly ReplayRouter[];
  readonly engines: readonly ReplayEngine[];
  /** Place in `engines` of each pool's first one. */
  readonly firstEngine: readonly number[];
  readonly keys: readonly string[];
  /** Pools of requests on their way there; at most one entry per request. */
  readonly picks: Map<number, PoolPick>;
  turns: number;
  reportedAtMs: number;
}

export function replay(options: ReplayOptions): ReplayRun {
  const loop = startLoop(options);
  const { arrivals, run } = loop;
  for (;;) {
    const engine = earliest(loop.engines);
    const woken = earliestWake(loop.engines);
    if (woken && woken.wakeMs <= Math.min(arrivals.nextMs, engine.dueMs)) {
      sendHeld(loop, woken, woken.wakeMs);
      continue;
    }
    if (arrivals.nextMs <= engine.dueMs) {
      if (arrivals.size === 0) break;
      const nowMs = arrivals.nextMs;
      arrive(loop, arrivals.take(), nowMs);
    } else step(loop, engine);
  }
  for (const { core, prefillMs, computedTokens } of loop.engines) {
    const { preemptionsTotal: preemptions, evictedBlocksTotal: evictedBlocks } = core.load(0);
    run.engines.push({ prefillMs, computedTokens, preemptions, evictedBlocks });
  }
  return run;
}

function startLoop(options: ReplayOptions): Loop {
  const { trace, pools, speed, seed, predictions } = options;
  const arrivals = new ArrivalHeap(trace.count);
  for (let place = 0; place < trace.count; place++) {
    if (trace.follows[place] === 0) arrivals.add(place, (trace.arrivalsMs[place] ?? 0) / speed);
  }
  const engines: ReplayEngine[] = [];
  const firstEngine: number[] = [];
  const routers: ReplayRouter[] = [];
  for (const [pool, options] of pools.entries()) {
    const { engine, workers } = options;
    const router = new ReplayRouter({ ...options, predictions, routers, seed: seed + pool });
    firstEngine.push(engines.length);
    for (let worker = 0; worker < workers; worker++) {
      const sharedBlocks = ({ sequenceHashes }: MockRequest, nowMs: number): number =>
        router.sharedBlocks(sequenceHashes, nowMs);
      engines.push(new ReplayEngine({ config: engine, pool, worker, sharedBlocks }));
    }
    routers.push(router);
  }
  const run = new ReplayRun(trace.count);
  const keys = Array.from({ length: trace.count }, (_, place) => String(place));
  return {
    options,
    run,
    arrivals,
    routers,
    engines,
    firstEngine,
    keys,
    picks: new Map(),
    turns: 0,
    reportedAtMs: Number.NEGATIVE_INFINITY,
  };
}

function earliest(engines: readonly ReplayEngine[]): ReplayEngine {
  let first = engines[0] as ReplayEngine;
  for (let at = 1; at < engines.length; at++) {
    const engine = engines[at] as ReplayEngine;
    if (engine.dueMs < first.dueMs) first = engine;
    else if (engine.dueMs === first.dueMs && engine.turn < first.turn) first = engine;
  }
  return first;
}

/** The engine whose next held request is sent first; undefined = none waits for its time. */
function earliestWake(engines: readonly ReplayEngine[]): ReplayEngine | undefined {
  let first: ReplayEngine | undefined;
  for (let at = 0; at < engines.length; at++) {
    const engine = engines[at] as ReplayEngine;
    if (engine.wakeMs < (first?.wakeMs ?? Number.POSITIVE_INFINITY)) first = engine;
  }
  return first;
}

function arrive(loop: Loop, place: number, nowMs: number): void {
  const { options, run, keys } = loop;
  const { trace, stopwatch } = options;
  const key = keys[place] as string;
  const sequence = trace.sequences[place] as Uint32Array;
  const inputTokens = trace.inputTokens[place] as number;
  const { blockSize } = trace;
  report(loop, nowMs);
  const startMs = stopwatch?.nowMs() ?? 0;
  const arrival: ReplayArrival = { key, nowMs, inputTokens, blockSize, sequence };
  const pick = pickOf(loop, place, arrival);
  if (!pick) return;
  const { pool, fitTargetMs } = pick;
  const router = loop.routers[pool] as ReplayRouter;
  const worker = router.choose({ ...arrival, fitTargetMs, mayWait: true });
  if (stopwatch) run.decisionMs.push(stopwatch.nowMs() - startMs);
  const engine = loop.engines[(loop.firstEngine[pool] ?? 0) + worker] as ReplayEngine;
  if (options.predictions) run.predictedMs[place] = router.predictedMs;
  if (Number.isNaN(run.arrivalMs[place])) run.arrivalMs[place] = nowMs;
  run.pool[place] = pool;
  run.worker[place] = worker;
  if (router.isHeld(key)) sendHeld(loop, engine, nowMs);
  else submit(loop, engine, place, nowMs);
}

/** Sends what the router holds for the engine and is due there; says when the next one is. */
function sendHeld(loop: Loop, engine: ReplayEngine, nowMs: number): void {
  const router = loop.routers[engine.pool] as ReplayRouter;
  for (;;) {
    const next = router.nextHeld(engine.worker, nowMs);
    engine.wakeMs = next ? next.atMs : Number.POSITIVE_INFINITY;
    if (!next || next.atMs > nowMs) return;
    router.release(next.key, nowMs);
    submit(loop, engine, Number(next.key), nowMs);
  }
}

function submit(loop: Loop, engine: ReplayEngine, place: number, nowMs: number): void {
  const { run, keys, options } = loop;
  const { trace } = options;
  const sequence = trace.sequences[place] as Uint32Array;
  const { workerType } = engine.core.config;
  const prefillOnly = workerType === "prefill";
  // A prompt that was computed elsewhere comes with its first token.
  const transferred = workerType === "decode";
  const outputTokens = Math.max(trace.outputTokens[place] as number, transferred ? 2 : 1);
  run.wanted[place] = prefillOnly ? 1 : outputTokens;
  const submitted = engine.core.submit({
    key: place,
    arrivedAtMs: nowMs,
    promptTokens: trace.inputTokens[place] as number,
    maxOutputTokens: outputTokens,
    sequenceHashes: sequence,
    localHashes: sequence,
    prefillOnly,
    transferred,
  });
  if (typeof submitted === "string") {
    run.rejected++;
    const router = loop.routers[engine.pool] as ReplayRouter;
    router.ended(keys[place] as string, 0, nowMs);
    followUp(loop, place, nowMs);
  } else if (engine.dueMs === Number.POSITIVE_INFINITY) {
    engine.dueMs = nowMs;
    engine.turn = loop.turns++;
  }
}

/** Pool of a request that can go there; undefined while its choice takes its time. */
function pickOf(loop: Loop, place: number, arrival: ReplayArrival): PoolPick | undefined {
  const { options, routers, picks, arrivals, run } = loop;
  const known = picks.get(place);
  if (known) {
    picks.delete(place);
    return known;
  }
  const pick = options.pickPool?.(place, arrival, routers) ?? firstPool;
  if (!options.pickMs) return pick;
  picks.set(place, pick);
  run.arrivalMs[place] = arrival.nowMs;
  arrivals.add(place, arrival.nowMs + options.pickMs);
  return undefined;
}

/** Engines whose last report is old enough tell their load. */
function report(loop: Loop, nowMs: number): void {
  if (nowMs - loop.reportedAtMs < (loop.options.reportPeriodMs ?? 0)) return;
  loop.reportedAtMs = nowMs;
  for (const { core, pool, worker } of loop.engines) {
    const usage = core.pool.active / core.pool.capacity;
    loop.routers[pool]?.reported(worker, core.waiting.count, usage);
  }
}

/** Ends the engine's pass, if one runs, and starts the next at the same instant. */
function step(loop: Loop, engine: ReplayEngine): void {
  const nowMs = engine.dueMs;
  const router = loop.routers[engine.pool] as ReplayRouter;
  if (engine.pass) endPass(loop, router, engine, nowMs);
  sendHeld(loop, engine, nowMs);
  engine.passStartMs = nowMs;
  const pass = engine.core.startPass(nowMs);
  engine.pass = pass;
  engine.dueMs = pass ? nowMs + pass.durationMs : Number.POSITIVE_INFINITY;
  engine.turn = loop.turns++;
  if (!pass) return;
  engine.prefillMs += pass.prefillMs;
  engine.computedTokens += pass.prefillTokens;
  if (pass.prefillTokens > 0) countWindow(loop, engine, nowMs, pass.prefillTokens);
  for (const { request, cachedTokens } of pass.admitted) {
    if (request.generated === 0) loop.run.cached[request.key] = cachedTokens;
  }
  if (router.usesIndex) {
    const visibleMs = nowMs + (loop.options.eventDelayMs ?? 0);
    for (const event of pass.events) router.kvEvent(engine.worker, event, visibleMs);
  }
}

function endPass(loop: Loop, router: ReplayRouter, engine: ReplayEngine, nowMs: number): void {
  const { run, keys } = loop;
  const { tokens, firstMs, lastMs } = run;
  let steady = 0;
  for (const request of engine.core.endPass()) {
    const { key: place, generated } = request;
    tokens[place] = generated;
    if (Number.isNaN(firstMs[place])) {
      firstMs[place] = nowMs;
      router.firstToken(keys[place] as string, nowMs, Math.max(0, request.cachedTokens));
    } else if (lastMs[place] === engine.passStartMs) steady++;
    else run.itl.add(nowMs - (lastMs[place] as number));
    lastMs[place] = nowMs;
    if (generated % progressTokens === 0) router.decoded(keys[place] as string, generated, nowMs);
    if (request.state !== "running") finish(loop, router, engine, request);
  }
  if (steady > 0) run.itl.add(nowMs - engine.passStartMs, steady);
  run.endMs = nowMs;
}

function finish(
  loop: Loop,
  router: ReplayRouter,
  engine: ReplayEngine,
  request: MockRequest,
): void {
  const place = request.key;
  engine.core.releaseHeld(request);
  router.ended(loop.keys[place] as string, request.generated, engine.dueMs);
  followUp(loop, place, engine.dueMs);
}

/** The next turn of a session comes some time after this one's end. */
function followUp({ options, arrivals }: Loop, place: number, endedMs: number): void {
  const { trace, speed } = options;
  const next = trace.nextTurn[place] as number;
  if (next >= 0) arrivals.add(next, endedMs + (trace.delaysMs[next] as number) / speed);
}

function countWindow(
  { run, engines, firstEngine }: Loop,
  engine: ReplayEngine,
  nowMs: number,
  tokens: number,
): void {
  const window = Math.floor(nowMs / windowMs);
  while (run.windows.length <= window) run.windows.push(new Float64Array(engines.length));
  const counts = run.windows[window] as Float64Array;
  const at = (firstEngine[engine.pool] ?? 0) + engine.worker;
  counts[at] = (counts[at] ?? 0) + tokens;
}
