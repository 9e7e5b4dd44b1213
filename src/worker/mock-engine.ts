/**
 * One rank of the simulated engine: continuous batching, chunked prefill, paged KV with prefix
 * cache. Pure: no timer, no log, no token ids; the driver owns time.
 *
 *   submit ──▶ waiting ──admit──▶ running ──endPass──▶ ended
 *                 ▲                  │    └─prefill leg─▶ held ──releaseHeld──▶ ended
 *                 └────preempt───────┘
 *
 *   startPass   running requests take token budget first, then the head of the queue is admitted
 *   (time)      the pass lasts `durationMs`
 *   endPass     every request whose sequence is fully computed emits one token
 *
 * KV events of a pass are complete at its start: a block is visible as soon as it is scheduled.
 */
import { TiergridError } from "../base/errors.ts";
import type { EngineKvEvent, EngineLoad } from "./engine.ts";
import { MockBlockPool, noSlot } from "./mock-block-pool.ts";
import type { MockEngineConfig } from "./mock-engine-config.ts";
import type { MockPass } from "./mock-pass.ts";
import { measurePass, newPass, pushStored } from "./mock-pass.ts";
import type { MockSubmission } from "./mock-request.ts";
import { MockRequest, MockRequestQueue } from "./mock-request.ts";

/** What depends on token ids; replay of lengths alone supplies ids of its own. */
export interface OutputTokens {
  /** Writes `[localLo, localHi, sequenceLo, sequenceHi]` of a full block with output tokens. */
  hashBlock(request: MockRequest, block: number, into: Uint32Array): void;
  /** True when the token just generated ends the request. */
  stops(request: MockRequest): boolean;
  /** Leading prompt blocks whose KV costs nothing, wherever it comes from; absent = none. */
  freeBlocks?(request: MockRequest): number;
}

/** Why `submit` refuses. */
export type MockRefusal = "empty_prompt" | "prompt_too_long" | "nothing_to_decode" | "queue_full";

const hitWindow = 1000;

/** Output tokens a prompt may have: what the model length and the whole pool leave, at least 1. */
export function outputLimit(config: MockEngineConfig, promptTokens: number, asked: number): number {
  const room = Math.min(config.maxModelLen, config.numGpuBlocks * config.blockSize) - promptTokens;
  return Math.min(asked, Math.max(1, room));
}

export class MockEngineCore {
  readonly config: MockEngineConfig;
  readonly pool: MockBlockPool;
  readonly running: MockRequest[] = [];
  readonly waiting: MockRequestQueue = new MockRequestQueue();
  readonly #output: OutputTokens;
  readonly #lanes = new Uint32Array(4);
  readonly #evicted: number[] = [];
  readonly #hits = new Float64Array(hitWindow);
  #hitSum = 0;
  #admissions = 0;
  #preemptions = 0;
  #evictions = 0;
  #inPass = false;
  /** The head that found no room, and the pool's version then: it need not be tried again. */
  #blockedHead: MockRequest | undefined;
  #blockedVersion = 0;

  constructor(config: MockEngineConfig, output: OutputTokens) {
    this.config = config;
    this.pool = new MockBlockPool(config.numGpuBlocks);
    this.#output = output;
  }

  /** Queues a request; requests must be submitted in the order of their arrival times. */
  submit(submission: MockSubmission): MockRequest | MockRefusal {
    const refusal = this.refusal(submission);
    if (refusal !== undefined) return refusal;
    const asked = submission.prefillOnly ? 1 : submission.maxOutputTokens;
    const limit = outputLimit(this.config, submission.promptTokens, asked);
    const request = new MockRequest(submission, limit);
    this.waiting.push(request);
    return request;
  }

  /** Why `submit` would refuse, or undefined. */
  refusal(submission: MockSubmission): MockRefusal | undefined {
    const { config } = this;
    const { promptTokens } = submission;
    if (promptTokens === 0) return "empty_prompt";
    const passTokens = config.enableChunkedPrefill
      ? Number.POSITIVE_INFINITY
      : config.maxNumBatchedTokens;
    const promptMax = Math.min(config.numGpuBlocks * config.blockSize, passTokens);
    if (promptTokens >= config.maxModelLen || promptTokens > promptMax) return "prompt_too_long";
    if (submission.transferred) {
      const limit = outputLimit(config, promptTokens, submission.maxOutputTokens);
      if (limit < 2) return "nothing_to_decode";
    }
    return this.waiting.count >= config.maxWaitingSeqs ? "queue_full" : undefined;
  }

  /** Ends a request silently; one that is in the running pass leaves at its end. */
  cancel(request: MockRequest): void {
    request.cancelled = true;
    if (request.state === "waiting") {
      this.waiting.remove(request);
      request.state = "ended";
    } else if (request.state === "held") {
      this.releaseHeld(request);
    } else if (request.state === "running" && !this.#inPass) {
      this.running.splice(this.running.indexOf(request), 1);
      this.#end(request);
    }
  }

  /** The handoff of a prefill leg is over: its blocks become inactive. */
  releaseHeld(request: MockRequest): void {
    if (request.state === "held") this.#end(request);
  }

  /** Full blocks of `request` in the cache: what an admission would hit. */
  cachedBlocks(request: Pick<MockRequest, "sequenceHashes" | "hashedBlocks" | "length">): number {
    const slots: number[] = [];
    this.#findHits(request, slots);
    return slots.length;
  }

  /** Forgets the prefix cache; undefined, and nothing done, while blocks are in use. */
  clearCache(): EngineKvEvent | undefined {
    if (this.pool.active > 0) return undefined;
    this.pool.dropInactive();
    return { type: "cleared" };
  }

  /** Plans and schedules the pass that starts at `nowMs`; undefined when nothing can run. */
  startPass(nowMs: number): MockPass | undefined {
    if (this.running.length === 0 && this.waiting.count === 0) return undefined;
    const pass = newPass();
    const budget = this.#scheduleRunning(pass);
    if (pass.preempted.length === 0) this.#admit(pass, budget, nowMs);
    if (this.running.length === 0 && pass.preempted.length === 0) return undefined;
    measurePass(pass, this.config, this.running, this.pool.active);
    this.#inPass = true;
    return pass;
  }

  /**
   * Ends the running pass: the requests that emit a token, in running order. Each has counted it
   * in `generated`; its `state` is no longer `running` when that token was its last.
   */
  endPass(): readonly MockRequest[] {
    const { running } = this;
    const emitted: MockRequest[] = [];
    let kept = 0;
    for (let i = 0; i < running.length; i++) {
      const request = running[i] as MockRequest;
      request.passTokens = 0;
      if (request.cancelled) {
        this.#end(request);
        continue;
      }
      if (request.computed === request.length) {
        request.generated++;
        emitted.push(request);
        if (request.generated >= request.maxOutputTokens || this.#output.stops(request)) {
          if (request.prefillOnly) request.state = "held";
          else this.#end(request);
          continue;
        }
      }
      running[kept++] = request;
    }
    running.length = kept;
    this.#inPass = false;
    return emitted;
  }

  load(dpRank: number): EngineLoad {
    const window = Math.min(this.#admissions, hitWindow);
    return {
      dpRank,
      running: this.running.length,
      waiting: this.waiting.count,
      activeBlocks: this.pool.active,
      totalBlocks: this.pool.capacity,
      waitingPromptTokens: this.waiting.promptTokens,
      preemptionsTotal: this.#preemptions,
      evictedBlocksTotal: this.#evictions,
      hitRatio: window === 0 ? 0 : Math.max(0, this.#hitSum / window),
    };
  }

  #scheduleRunning(pass: MockPass): number {
    const { running } = this;
    let budget = this.config.maxNumBatchedTokens;
    for (let i = 0; i < running.length && budget > 0; i++) {
      const request = running[i] as MockRequest;
      const want = Math.min(request.length - request.computed, budget);
      const missing = this.#blocksFor(request.computed + want) - request.blocks.length;
      while (request.state === "running" && !this.#allocate(pass, request, missing)) {
        const victim = this.config.preemptionMode === "fifo" ? 0 : running.length - 1;
        budget += this.#preempt(pass, victim);
        if (victim <= i) i--;
      }
      if (request.state !== "running") continue;
      this.#schedule(pass, request, want);
      budget -= want;
    }
    return budget;
  }

  /** Sends a running request back to the front of the queue; answers its tokens of this pass. */
  #preempt(pass: MockPass, index: number): number {
    const [request] = this.running.splice(index, 1) as [MockRequest];
    const tokens = request.passTokens;
    this.pool.release(request.blocks);
    request.computed = 0;
    request.committed = 0;
    request.passTokens = 0;
    this.waiting.pushFront(request);
    this.#preemptions++;
    pass.preempted.push(request);
    return tokens;
  }

  #admit(pass: MockPass, startBudget: number, nowMs: number): void {
    let budget = startBudget;
    let reserved = this.config.engineType === "trtllm" ? this.#reservedBlocks() : 0;
    while (budget > 0 && this.running.length < this.config.maxNumSeqs) {
      const request = this.waiting.head;
      if (!request || request.arrivedAtMs > nowMs || this.#stillBlocked(request)) return;
      this.#findHits(request, request.blocks);
      const want = this.#startable(request, budget, reserved);
      if (want === 0) {
        request.blocks.length = 0;
        return;
      }
      this.#start(pass, request, want);
      budget -= want;
      reserved += this.#lifetimeBlocks(request) - request.blocks.length;
    }
  }

  /** Appends the cached leading blocks to `into`; the last token is always computed. */
  #findHits(
    request: Pick<MockRequest, "sequenceHashes" | "hashedBlocks" | "length">,
    into: number[],
  ): void {
    if (!this.config.enablePrefixCaching) return;
    const fullBlocks = Math.floor((request.length - 1) / this.config.blockSize);
    const blocks = Math.min(fullBlocks, request.hashedBlocks);
    const lanes = request.sequenceHashes;
    for (let block = 0; block < blocks; block++) {
      const slot = this.pool.find(lanes[2 * block] as number, lanes[2 * block + 1] as number);
      if (slot === noSlot) return;
      into.push(slot);
    }
  }

  /** Tokens the head of the queue, its hits in `blocks`, may compute in this pass; 0 = it waits. */
  #startable(request: MockRequest, budget: number, reserved: number): number {
    const { config, pool } = this;
    let activeHits = 0;
    for (const slot of request.blocks) if (pool.refsOf(slot) > 0) activeHits++;
    const fits =
      config.engineType === "trtllm"
        ? this.#lifetimeBlocks(request) - activeHits <= pool.capacity - pool.active - reserved
        : this.#fitsToday(this.#blocksFor(request.length) - activeHits);
    if (!fits) {
      this.#blockedHead = request;
      this.#blockedVersion = pool.version;
      return 0;
    }
    const uncached = request.length - this.#computedFrom(request);
    // Only a preempted sequence can outgrow a whole unchunked pass; it starts with a full budget.
    const split = config.enableChunkedPrefill || budget === config.maxNumBatchedTokens;
    return uncached <= budget || split ? Math.min(uncached, budget) : 0;
  }

  /** The whole present sequence must fit, and leave the watermark unless nothing else runs. */
  #fitsToday(newBlocks: number): boolean {
    const { capacity, active } = this.pool;
    if (newBlocks > capacity - active) return false;
    const usable = Math.floor((1 - this.config.watermark) * capacity);
    return this.running.length === 0 || active + newBlocks <= usable;
  }

  #start(pass: MockPass, request: MockRequest, want: number): void {
    const computedFrom = this.#computedFrom(request);
    const ownHits = request.blocks.length * this.config.blockSize;
    const hitTokens = request.transferred ? ownHits : computedFrom;
    const cachedTokens = Math.min(hitTokens, request.promptTokens);
    for (const slot of request.blocks) this.pool.pin(slot);
    request.committed = request.blocks.length;
    this.waiting.remove(request);
    const missing = this.#blocksFor(computedFrom + want) - request.blocks.length;
    if (!this.#allocate(pass, request, missing)) {
      throw new TiergridError("internal_error", "mock engine: an admitted request found no room");
    }
    if (request.cachedTokens < 0) request.cachedTokens = cachedTokens;
    request.transferred = false;
    request.state = "running";
    request.computed = computedFrom;
    this.running.push(request);
    pass.admitted.push({ request, cachedTokens, computedFrom });
    this.#countHit(hitTokens / request.length);
    this.#schedule(pass, request, want);
  }

  #computedFrom(request: MockRequest): number {
    if (request.transferred) return request.promptTokens;
    const { blockSize } = this.config;
    const free = this.#output.freeBlocks?.(request) ?? 0;
    const last = Math.floor((request.length - 1) / blockSize);
    return Math.max(request.blocks.length, Math.min(free, last)) * blockSize;
  }

  #schedule(pass: MockPass, request: MockRequest, want: number): void {
    request.passContext = request.computed;
    request.passTokens = want;
    request.computed += want;
    if (this.config.enablePrefixCaching) this.#commit(pass, request);
  }

  /** Makes the request's full blocks visible; runs of new hashes become `stored` events. */
  #commit(pass: MockPass, request: MockRequest): void {
    const { blockSize, cacheOutputBlocks } = this.config;
    const end = Math.floor(
      (cacheOutputBlocks ? request.computed : Math.min(request.computed, request.promptTokens)) /
        blockSize,
    );
    let runStart = request.committed;
    for (let block = request.committed; block < end; block++) {
      if (block >= request.hashedBlocks) {
        this.#output.hashBlock(request, block, this.#lanes);
        request.pushHashes(this.#lanes);
      }
      const lo = request.sequenceHashes[2 * block] as number;
      const hi = request.sequenceHashes[2 * block + 1] as number;
      if (this.pool.cache(request.blocks[block] as number, lo, hi)) continue;
      pushStored(pass.events, request, runStart, block);
      runStart = block + 1;
    }
    pushStored(pass.events, request, runStart, end);
    request.committed = Math.max(request.committed, end);
  }

  #allocate(pass: MockPass, request: MockRequest, blocks: number): boolean {
    if (blocks <= 0) return true;
    const evicted = this.#evicted;
    if (!this.pool.allocate(blocks, request.blocks, evicted)) return false;
    if (evicted.length > 0) {
      this.#evictions += evicted.length >> 1;
      pass.events.push({ type: "removed", sequenceHashes: Uint32Array.from(evicted) });
      evicted.length = 0;
    }
    return true;
  }

  #stillBlocked(request: MockRequest): boolean {
    return (
      this.running.length > 0 &&
      request === this.#blockedHead &&
      this.pool.version === this.#blockedVersion
    );
  }

  /** Blocks the running requests may still ask for. */
  #reservedBlocks(): number {
    let blocks = 0;
    for (const request of this.running) {
      blocks += this.#lifetimeBlocks(request) - request.blocks.length;
    }
    return blocks;
  }

  /** Blocks at full output length; the last token gets no KV, so a whole pool always suffices. */
  #lifetimeBlocks(request: MockRequest): number {
    const blocks = this.#blocksFor(request.promptTokens + request.maxOutputTokens);
    return Math.min(blocks, this.pool.capacity);
  }

  #blocksFor(tokens: number): number {
    return Math.ceil(tokens / this.config.blockSize);
  }

  #countHit(ratio: number): void {
    const place = this.#admissions++ % hitWindow;
    this.#hitSum += ratio - (this.#hits[place] as number);
    this.#hits[place] = ratio;
  }

  #end(request: MockRequest): void {
    request.state = "ended";
    this.pool.release(request.blocks);
  }
}
