/**
 * What each holder is computing, as the latency model needs it: the queue of prompts without a first
 * token, the streams behind theirs, and the busy periods its speed is learnt from.
 *
 *   slot              0      1
 *   pendingTokens   [ 12000, 0    ]   sum of u over the queue, u = prompt tokens not cached
 *   pendingAttention[ 5.6e7, 0    ]   sum of u * (c + u / 2), c = cached tokens
 *   decoding        [ 12,    3    ]   requests past their first token
 *   lastFirstTokenMs[ 9850,  9990 ]
 *   oldest          [ r1 ⇄ r2,  – ]   the queue, in order of dispatch
 *
 * Invariants: columns equal a recount over the requests, and a slot without requests is all zero
 * but for its times. The clock of a slot never runs backwards.
 */
import type { Random } from "../base/random.ts";
import {
  type BusyPeriod,
  closePeriod,
  countFirstToken,
  countPasses,
  firstTokensPerPeriodMax,
  idlePeriod,
  openPeriod,
} from "./busy-period.ts";
import { grownFloat64, grownInt32 } from "./column.ts";
import { type ShapeLatency, WorkerLatency } from "./latency-model.ts";
import { emptyHold, type Hold, LiveBlocks } from "./live-blocks.ts";
import {
  emptyPlan,
  type PlannedPass,
  type PrefillPlan,
  passEnded,
  planRequest,
  replan,
} from "./prefill-plan.ts";
import type { LoadColumns } from "./worker-cost.ts";

export type LatencyRole = "aggregated" | "prefill" | "decode";

export interface LatencyBookOptions {
  /** Prefill workers decode nothing; decode workers get prompts that are computed already. */
  readonly role: LatencyRole;
  readonly blockSize: number;
  /** Active blocks and requests as booked; read at each call. */
  readonly load: Pick<LoadColumns, "activeBlocks" | "activeRequests">;
  readonly random: Random;
  /** Expected output of a request until one has ended; default 340 tokens. */
  readonly outputTokensAtStart?: number;
  /** (block, holder) pairs of queued prompts at once; beyond, prompts are not shared in advance. */
  readonly blocksMax?: number;
  /** False: no queue is planned pass by pass. */
  readonly plans?: boolean | undefined;
}

export interface LatencyDispatch {
  /** Opaque, unique among live requests. */
  readonly key: string;
  readonly slot: number;
  readonly nowMs: number;
  readonly uncachedTokens: number;
  readonly cachedTokens: number;
  /**
   * Sequence hashes of the prompt's full blocks, lanes interleaved, when nobody else tracks them;
   * else empty.
   */
  readonly sequence: Uint32Array;
  /** When its first token is due; absent = nobody was told. */
  readonly deadlineMs?: number | undefined;
}

interface LatencyRequest {
  readonly slot: number;
  readonly uncachedTokens: number;
  readonly cachedTokens: number;
  readonly dispatchedMs: number;
  /** Its blocks while it is queued. */
  hold: Hold;
  queued: boolean;
  readonly deadlineMs: number;
  doneTokens: number;
  pass: PlannedPass | undefined;
  older: LatencyRequest | undefined;
  younger: LatencyRequest | undefined;
  // Since its last output that was seen.
  outputTokens: number;
  outputAtMs: number;
  sequences: number;
  activeKvTokens: number;
}

/** Of so many gaps between tokens of a quiet worker one is learnt from. */
const gapsPerObservation = 16;
const outputTokensUnknown = 340;
/** Answers after which the mean output length forgets. */
const answersRemembered = 1000;
const blocksMaxDefault = 1 << 22;
const holdersAtStart = 64;

export class LatencyBook {
  pendingTokens: Float64Array = new Float64Array(holdersAtStart);
  pendingAttention: Float64Array = new Float64Array(holdersAtStart);
  lastFirstTokenMs: Float64Array = new Float64Array(holdersAtStart);
  decoding: Int32Array = new Int32Array(holdersAtStart);
  /** Requests without a first token, on all holders. */
  queuedCount = 0;
  holderCount = 0;
  readonly role: LatencyRole;

  readonly #blockSize: number;
  readonly #isPlanned: boolean;
  readonly #load: LatencyBookOptions["load"];
  readonly #pendingBlocks: LiveBlocks;
  readonly #requests = new Map<string, LatencyRequest>();
  readonly #models: (WorkerLatency | undefined)[] = [];
  readonly #periods: (BusyPeriod | undefined)[] = [];
  readonly #plans: (PrefillPlan | undefined)[] = [];
  readonly #oldest: (LatencyRequest | undefined)[] = [];
  readonly #youngest: (LatencyRequest | undefined)[] = [];
  /** Since when nothing is queued; Infinity = something is. */
  #quietSinceMs = new Float64Array(holdersAtStart);
  /** Gaps since the last that was learnt from. */
  #gaps = new Int32Array(holdersAtStart);
  #outputTokensMean: number;
  #answers = 0;

  constructor(options: LatencyBookOptions) {
    const { role, blockSize, load, random } = options;
    this.role = role;
    this.#blockSize = blockSize;
    this.#isPlanned = role === "prefill" && (options.plans ?? true);
    this.#load = load;
    this.#outputTokensMean = options.outputTokensAtStart ?? outputTokensUnknown;
    this.#pendingBlocks = new LiveBlocks(options.blocksMax ?? blocksMaxDefault, random, ignore);
  }

  get requestCount(): number {
    return this.#requests.size;
  }

  /** Mean output of the answers so far, tokens. */
  get outputTokensMean(): number {
    return this.#outputTokensMean;
  }

  /** Makes `slot` a holder with nothing to do, of engines like `shape`. */
  addHolder(slot: number, shape: ShapeLatency): void {
    while (slot >= this.decoding.length) this.#growHolders();
    if (this.#models[slot]) this.removeHolder(slot);
    this.#models[slot] = new WorkerLatency(shape);
    this.#periods[slot] = idlePeriod();
    this.#plans[slot] = emptyPlan();
    this.holderCount++;
  }

  /** Forgets the holder and its requests. */
  removeHolder(slot: number): void {
    for (const [key, request] of this.#requests) {
      if (request.slot === slot) this.finished(key, 0);
    }
    if (this.#models[slot]) this.holderCount--;
    this.#models[slot]?.leave();
    this.#models[slot] = undefined;
    this.#periods[slot] = undefined;
    this.#plans[slot] = undefined;
    if (slot >= this.decoding.length) return;
    this.lastFirstTokenMs[slot] = 0;
    this.#quietSinceMs[slot] = 0;
    this.#gaps[slot] = 0;
  }

  /** The model of a holder; undefined when it is none. */
  modelAt(slot: number): WorkerLatency | undefined {
    return this.#models[slot];
  }

  /**
   * The plan of a holder's queue; undefined where there is none. Only passes of prefill workers are
   * planned: between decode steps others decide how long a pass takes.
   */
  planAt(slot: number): PrefillPlan | undefined {
    return this.#isPlanned ? this.#plans[slot] : undefined;
  }

  /** By how much the first token of the oldest queued request is later than planned, ms. */
  overdueMs(slot: number, nowMs: number): number {
    const pass = this.#oldest[slot]?.pass;
    return pass ? Math.max(0, nowMs - pass.endMs) : 0;
  }

  /** KV tokens the holder's requests occupy: booked blocks, and one partly filled block each. */
  activeKvTokens(slot: number): number {
    const { activeBlocks, activeRequests } = this.#load;
    return ((activeBlocks[slot] ?? 0) + (activeRequests[slot] ?? 0)) * this.#blockSize;
  }

  /** When the oldest queued request was dispatched; undefined = nothing is queued. */
  headDispatchedMs(slot: number): number | undefined {
    return this.#oldest[slot]?.dispatchedMs;
  }

  /** Prompt tokens of the oldest queued request that are not cached; 0 = nothing is queued. */
  headTokens(slot: number): number {
    return this.#oldest[slot]?.uncachedTokens ?? 0;
  }

  /** Writes into `prefix[slot]` how many blocks of `sequence` prompts queued there begin with. */
  pendingPrefix(sequence: Uint32Array, prefix: Int32Array): void {
    this.#pendingBlocks.sharedPrefix(sequence, prefix);
  }

  /**
   * A request is on its way to `slot`; called before the load columns count it. Nothing happens for
   * a key that is there already, or a slot that is no holder.
   */
  dispatched(dispatch: LatencyDispatch): void {
    const { key, slot, nowMs, cachedTokens } = dispatch;
    const period = this.#periods[slot];
    if (!period || this.#requests.has(key)) return;
    const uncachedTokens = this.role === "decode" ? 0 : dispatch.uncachedTokens;
    const request: LatencyRequest = {
      slot,
      uncachedTokens,
      cachedTokens,
      dispatchedMs: nowMs,
      hold: emptyHold,
      queued: uncachedTokens > 0,
      deadlineMs: dispatch.deadlineMs ?? Number.POSITIVE_INFINITY,
      doneTokens: 0,
      pass: undefined,
      older: undefined,
      younger: undefined,
      outputTokens: 0,
      outputAtMs: nowMs,
      sequences: 0,
      activeKvTokens: 0,
    };
    this.#requests.set(key, request);
    if (!request.queued) {
      this.decoding[slot]!++;
      return;
    }
    if (!this.#oldest[slot]) {
      // The first pass waits for the rest of a running one, on average half of it.
      const waits = this.decoding[slot]! > 0;
      openPeriod(period, nowMs, waits ? this.#decodeMs(slot) / 2 : 0);
    }
    const plan = this.planAt(slot);
    if (plan) planRequest(plan, request, this.#models[slot]!);
    this.#enqueue(request, dispatch.sequence);
  }

  /**
   * The first token of a request came; the engine may say how many tokens of it were cached. A
   * second call changes nothing.
   */
  firstToken(key: string, nowMs: number, cachedTokens?: number): void {
    const request = this.#requests.get(key);
    if (!request?.queued) return;
    const { slot } = request;
    const previousMs = this.lastFirstTokenMs[slot]!;
    const period = this.#periods[slot]!;
    const { pass } = request;
    if (pass) {
      passEnded(pass, this.#oldest[slot]);
      countPasses(period, pass.done);
    }
    this.#dequeue(request, nowMs);
    if (pass) this.#replan(slot, nowMs);
    this.decoding[slot]!++;
    this.lastFirstTokenMs[slot] = Math.max(nowMs, previousMs);
    request.outputTokens = 1;
    this.#outputSeen(request, nowMs);
    const prompt = request.cachedTokens + request.uncachedTokens;
    const cached = Math.min(cachedTokens ?? request.cachedTokens, prompt - 1);
    if (cached !== request.cachedTokens) period.isPlanned = false;
    countFirstToken(period, {
      computedTokens: prompt - cached,
      cachedTokens: cached,
      decodeMs: this.#decodeMs(slot),
      sincePreviousMs: nowMs - previousMs,
    });
    const isEmpty = !this.#oldest[slot];
    if (!isEmpty && period.firstTokens < firstTokensPerPeriodMax) return;
    const model = this.#models[slot]!;
    const observed = closePeriod(period, nowMs, model.shape.limits.batchTokens);
    if (observed) model.observePeriod(observed);
    if (!isEmpty) openPeriod(period, nowMs, 0);
  }

  /**
   * A stream has `outputTokens` tokens by now. When its worker has had nothing to prefill since the
   * stream was last seen, the mean gap since then is one the decode model may learn from.
   */
  decoded(key: string, outputTokens: number, nowMs: number): void {
    const request = this.#requests.get(key);
    if (!request || request.queued) return;
    const { slot, outputAtMs, sequences, activeKvTokens } = request;
    const gaps = outputTokens - request.outputTokens;
    const isFirst = request.outputTokens === 0;
    if (!(gaps > 0) || nowMs <= outputAtMs) return;
    request.outputTokens = outputTokens;
    this.#outputSeen(request, nowMs);
    if (isFirst || this.#quietSinceMs[slot]! > outputAtMs) return;
    this.#gaps[slot]! += gaps;
    if (this.#gaps[slot]! < gapsPerObservation) return;
    this.#gaps[slot] = 0;
    this.#models[slot]!.observeGap({
      sequences: (sequences + request.sequences) / 2,
      activeKvTokens: (activeKvTokens + request.activeKvTokens) / 2,
      ms: (nowMs - outputAtMs) / gaps,
    });
  }

  /** An answer is complete with `outputTokens` tokens; its request is not finished by that. */
  answered(key: string, outputTokens: number, nowMs: number): void {
    this.decoded(key, outputTokens, nowMs);
    if (!(outputTokens > 0)) return;
    this.#answers = Math.min(this.#answers + 1, answersRemembered);
    this.#outputTokensMean += (outputTokens - this.#outputTokensMean) / this.#answers;
  }

  /** The request has left its worker, whatever its state; called before the load columns drop it. */
  finished(key: string, nowMs: number): void {
    const request = this.#requests.get(key);
    if (!request) return;
    const { slot } = request;
    this.#requests.delete(key);
    if (!request.queued) {
      this.decoding[slot]!--;
      return;
    }
    this.#dequeue(request, nowMs);
    const period = this.#periods[slot];
    if (!period) return;
    period.isSpoilt = true;
    this.#replan(slot, this.#plans[slot]!.startMs);
    if (!this.#oldest[slot]) period.isOpen = false;
  }

  #replan(slot: number, startMs: number): void {
    const plan = this.planAt(slot);
    if (plan) replan(plan, this.#oldest[slot], startMs, this.#models[slot]!);
  }

  #enqueue(request: LatencyRequest, sequence: Uint32Array): void {
    const { slot, uncachedTokens: u, cachedTokens: c } = request;
    const youngest = this.#youngest[slot];
    request.older = youngest;
    if (youngest) youngest.younger = request;
    else this.#oldest[slot] = request;
    this.#youngest[slot] = request;
    this.queuedCount++;
    this.pendingTokens[slot]! += u;
    this.pendingAttention[slot]! += u * (c + u / 2);
    this.#quietSinceMs[slot] = Number.POSITIVE_INFINITY;
    if (!this.#pendingBlocks.hasRoom(sequence.length >> 1)) return;
    request.hold = this.#pendingBlocks.acquire(sequence, slot);
  }

  #dequeue(request: LatencyRequest, nowMs: number): void {
    const { slot, older, younger, uncachedTokens: u, cachedTokens: c } = request;
    if (older) older.younger = younger;
    else this.#oldest[slot] = younger;
    if (younger) younger.older = older;
    else this.#youngest[slot] = older;
    this.queuedCount--;
    this.pendingTokens[slot]! -= u;
    this.pendingAttention[slot]! -= u * (c + u / 2);
    this.#pendingBlocks.release(request.hold, slot);
    request.hold = emptyHold;
    request.queued = false;
    request.older = undefined;
    request.younger = undefined;
    request.pass = undefined;
    if (!this.#oldest[slot]) this.#quietSinceMs[slot] = nowMs;
  }

  #outputSeen(request: LatencyRequest, nowMs: number): void {
    request.outputAtMs = nowMs;
    request.sequences = this.decoding[request.slot]!;
    request.activeKvTokens = this.activeKvTokens(request.slot);
  }

  /** One decode step of the holder, ms; prefill workers take none. */
  #decodeMs(slot: number): number {
    if (this.role === "prefill") return 0;
    const sequences = Math.max(1, this.decoding[slot]!);
    return this.#models[slot]!.decodeMs(sequences, this.activeKvTokens(slot));
  }

  #growHolders(): void {
    const length = this.decoding.length * 2;
    this.pendingTokens = grownFloat64(this.pendingTokens, length);
    this.pendingAttention = grownFloat64(this.pendingAttention, length);
    this.lastFirstTokenMs = grownFloat64(this.lastFirstTokenMs, length);
    this.decoding = grownInt32(this.decoding, length);
    this.#quietSinceMs = grownFloat64(this.#quietSinceMs, length);
    this.#gaps = grownInt32(this.#gaps, length);
  }
}

function ignore(): void {}
