/**
 * What each holder is computing, as the latency model needs it: the queue of prompts without a first
 * token, the streams behind theirs, and the busy periods its speed is learnt from.
 *
 *   slot              0      1
 *   pendingTokens   [ 12000, 0    ]   sum of u over the queue, u = prompt tokens not cached
 *   pendingAttention[ 5.6e7, 0    ]   sum of u * (c + u / 2), c = cached tokens
 *   decoding        [ 12,    3    ]   requests past their first token
 *   lastFirstTokenMs[ 9850,  9990 ]
 *   queues          [ r1 ⇄ r2,  – ]   in the order of their prefill (`prefill-queue.ts`)
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
import { KeyedSlots } from "./keyed-slots.ts";
import { type ShapeLatency, WorkerLatency } from "./latency-model.ts";
import { type LatencyDispatch, type LatencyRequest, newRequest } from "./latency-request.ts";
import { emptyHold, LiveBlocks } from "./live-blocks.ts";
import { type PrefillPlan, passEnded } from "./prefill-plan.ts";
import { type DueForecast, type DuePrompt, leadMs, PrefillQueue } from "./prefill-queue.ts";
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
  /** Prompts with a deadline wait here for their turn where their dispatcher lets them. */
  readonly holds?: boolean;
}

/** Of so many gaps between tokens of a quiet worker one is learnt from. */
const gapsPerObservation = 16;
const outputTokensUnknown = 340;
/** Answers after which the mean output length forgets. */
const answersRemembered = 1000;
const blocksMaxDefault = 1 << 22;
const holdersAtStart = 64;
/** First tokens may be later than planned by so much; behind a later one nothing more is sent. */
const overdueMsMax = 250;

export class LatencyBook {
  pendingTokens: Float64Array = new Float64Array(holdersAtStart);
  pendingAttention: Float64Array = new Float64Array(holdersAtStart);
  lastFirstTokenMs: Float64Array = new Float64Array(holdersAtStart);
  decoding: Int32Array = new Int32Array(holdersAtStart);
  /** Requests without a first token, on all holders. */
  queuedCount = 0;
  holderCount = 0;
  /** Called when a held prompt of a slot may have got an earlier turn. */
  onTurns: ((slot: number) => void) | undefined = undefined;
  readonly role: LatencyRole;
  readonly holds: boolean;

  readonly #blockSize: number;
  readonly #isPlanned: boolean;
  readonly #load: LatencyBookOptions["load"];
  readonly #pendingBlocks: LiveBlocks;
  readonly #requests = new KeyedSlots<LatencyRequest>();
  readonly #models: (WorkerLatency | undefined)[] = [];
  readonly #periods: (BusyPeriod | undefined)[] = [];
  readonly #queues: (PrefillQueue | undefined)[] = [];
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
    this.holds = this.#isPlanned && options.holds === true;
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
    this.#queues[slot] = new PrefillQueue(this.#isPlanned);
    this.holderCount++;
  }

  /** Forgets the holder and its requests. */
  removeHolder(slot: number): void {
    for (const request of this.#requests.values()) {
      if (request.slot === slot) this.finished(request.key, 0);
    }
    if (this.#models[slot]) this.holderCount--;
    this.#models[slot]?.leave();
    this.#models[slot] = undefined;
    this.#periods[slot] = undefined;
    this.#queues[slot] = undefined;
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
    return this.#isPlanned ? this.#queues[slot]?.plan : undefined;
  }

  /** By how much the first token of the oldest prompt in the engine is later than planned, ms. */
  overdueMs(slot: number, nowMs: number): number {
    const oldest = this.#queues[slot]?.oldest;
    return oldest?.pass && !oldest.isHeld ? Math.max(0, nowMs - oldest.pass.endMs) : 0;
  }

  /** The same of a worker that may have stopped; 0 while its model may merely be somewhat wrong. */
  stalledMs(slot: number, nowMs: number): number {
    const overdueMs = this.overdueMs(slot, nowMs);
    return overdueMs > overdueMsMax ? overdueMs : 0;
  }

  /** Fills `forecast` for a prompt with a target on a holder that holds; the model is the holder's. */
  forecastDue(slot: number, prompt: DuePrompt, forecast: DueForecast): void {
    this.#queues[slot]!.forecastDue(prompt, this.#models[slot]!, forecast);
  }

  /**
   * When the held prompt of `key` is to be sent, if nothing changes; Infinity while another one is
   * before it or its worker is overdue, undefined when it is not held.
   */
  releaseAtMs(key: string, nowMs: number): number | undefined {
    const request = this.#requests.get(key);
    if (!request?.isHeld) return undefined;
    const { slot, startMs } = request;
    const isNext = this.#queues[slot]!.heldHead === request;
    if (!isNext || this.stalledMs(slot, nowMs) > 0) return Number.POSITIVE_INFINITY;
    return startMs - leadMs;
  }

  isHeld(key: string): boolean {
    return this.#requests.get(key)?.isHeld === true;
  }

  /** The held prompt that is sent next; undefined = nothing is held there. */
  nextHeld(slot: number): string | undefined {
    return this.#queues[slot]?.heldHead?.key;
  }

  get heldCount(): number {
    return this.#queues.reduce((sum, queue) => sum + (queue?.heldCount ?? 0), 0);
  }

  /** The next held prompt of its slot is on its way. */
  release(key: string, nowMs: number): void {
    const request = this.#requests.get(key);
    if (!request?.isHeld) return;
    const { slot } = request;
    this.#queues[slot]!.release(request, nowMs, this.#models[slot]!);
    this.#acquire(request);
    this.onTurns?.(slot);
  }

  /** KV tokens the holder's requests occupy: booked blocks, and one partly filled block each. */
  activeKvTokens(slot: number): number {
    const { activeBlocks, activeRequests } = this.#load;
    return ((activeBlocks[slot] ?? 0) + (activeRequests[slot] ?? 0)) * this.#blockSize;
  }

  /** When the oldest queued request was dispatched; undefined = nothing is queued. */
  headDispatchedMs(slot: number): number | undefined {
    return this.#queues[slot]?.oldest?.dispatchedMs;
  }

  /** Prompt tokens of the oldest queued request that are not cached; 0 = nothing is queued. */
  headTokens(slot: number): number {
    return this.#queues[slot]?.oldest?.uncachedTokens ?? 0;
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
    const { key, slot, nowMs } = dispatch;
    const period = this.#periods[slot];
    const queue = this.#queues[slot];
    if (!period || !queue || this.#requests.has(key)) return;
    const request = newRequest(dispatch, this.role === "decode" ? 0 : dispatch.uncachedTokens);
    this.#requests.set(key, request);
    if (!request.queued) {
      this.decoding[slot]!++;
      return;
    }
    if (!queue.oldest) {
      // The first pass waits for the rest of a running one, on average half of it.
      const waits = this.decoding[slot]! > 0;
      openPeriod(period, nowMs, waits ? this.#decodeMs(slot) / 2 : 0);
    }
    if (this.holds && dispatch.mayWait) queue.hold(request, this.#models[slot]!);
    this.#enqueue(request, queue);
    this.onTurns?.(slot);
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
    const queue = this.#queues[slot]!;
    if (pass) {
      if (!passEnded(pass, queue.oldest)) period.isPlanned = false;
      countPasses(period, pass.done);
    }
    this.#dequeue(request, nowMs);
    if (pass) queue.replan(nowMs, this.#models[slot]!, nowMs);
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
    if (pass) this.onTurns?.(slot);
    const isEmpty = !queue.oldest;
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
    const queue = this.#queues[slot]!;
    period.isSpoilt = true;
    queue.replan(nowMs, this.#models[slot]!);
    if (!queue.oldest) period.isOpen = false;
    this.onTurns?.(slot);
  }

  #enqueue(request: LatencyRequest, queue: PrefillQueue): void {
    const { slot, uncachedTokens: u, cachedTokens: c } = request;
    queue.join(request, request.dispatchedMs, this.#models[slot]!);
    this.queuedCount++;
    this.pendingTokens[slot]! += u;
    this.pendingAttention[slot]! += u * (c + u / 2);
    this.#quietSinceMs[slot] = Number.POSITIVE_INFINITY;
    // Of a held one nobody can tell who comes before it.
    if (!request.isHeld) this.#acquire(request);
  }

  #acquire(request: LatencyRequest): void {
    const { slot, sequence } = request;
    if (!this.#pendingBlocks.hasRoom(sequence.length >> 1)) return;
    request.hold = this.#pendingBlocks.acquire(sequence, slot);
  }

  #dequeue(request: LatencyRequest, nowMs: number): void {
    const { slot, uncachedTokens: u, cachedTokens: c } = request;
    const queue = this.#queues[slot]!;
    queue.leave(request);
    this.queuedCount--;
    this.pendingTokens[slot]! -= u;
    this.pendingAttention[slot]! -= u * (c + u / 2);
    this.#pendingBlocks.release(request.hold, slot);
    request.hold = emptyHold;
    request.queued = false;
    request.isHeld = false;
    if (!queue.oldest) this.#quietSinceMs[slot] = nowMs;
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
