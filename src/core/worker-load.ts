/**
 * What each holder (worker, dp rank) is computing on, as this router has booked it.
 *
 *   slot              0    1    2
 *   prefillTokens  [ 512,   0,  64 ]   tokens of requests whose first token has not come back
 *   activeBlocks   [  40,   8,  12 ]   round(Σ weight) of distinct live blocks, half up
 *   activeRequests [   3,   1,   1 ]   requests between add and free
 *
 * A request owns references to shareable blocks (`LiveBlocks`) and a number of private ones (its
 * output, and its prompt when no KV reuse is assumed). Requests still in prefill form one list per
 * slot, oldest first; the head is the only one that decays, from the moment it became the head.
 *
 * Invariants: columns equal a recount over the requests; a slot without requests is all zero;
 * every add is undone by exactly one free, expiry or removal of its slot. An unknown key changes
 * nothing and is answered as a value.
 */
import type { Random } from "../base/random.ts";
import { grownFloat64, grownInt32 } from "./column.ts";
import { KeyedSlots } from "./keyed-slots.ts";
import { type Hold, LiveBlocks } from "./live-blocks.ts";

export interface LoadLimits {
  /** Requests booked at once. */
  readonly requestsMax: number;
  /** Distinct (block, holder) pairs booked at once. */
  readonly blocksMax: number;
  /** A request without activity for longer than this is freed. */
  readonly staleAfterMs: number;
  /** Least time between two searches for stale requests. */
  readonly staleCheckMs: number;
}

export const defaultLoadLimits: LoadLimits = {
  requestsMax: 1 << 20,
  blocksMax: 1 << 22,
  staleAfterMs: 300_000,
  staleCheckMs: 30_000,
};

export type AddOutcome = "ok" | "duplicate_request" | "worker_not_found" | "capacity";
export type LoadOutcome = "ok" | "request_not_found";

export interface Booking {
  /** Opaque, unique among live requests. */
  readonly key: string;
  readonly slot: number;
  readonly nowMs: number;
  /** Sequence hashes of the prompt's full blocks, lanes interleaved; empty = none tracked. Kept. */
  readonly sequence: Uint32Array;
  /** Full blocks of the prompt that no other request can share. */
  readonly privateBlocks: number;
  /** Prompt tokens that are not cached; 0 when prefill is not tracked. */
  readonly prefillTokens: number;
  /** Prompt tokens that are; absent = unknown. */
  readonly cachedTokens?: number | undefined;
  /** Sequence hashes by which prompts under way share when `sequence` is empty; absent = none do. */
  readonly promptHashes?: Uint32Array | undefined;
  /** Expected duration of this prefill; 0 = unknown, no decay. */
  readonly expectedPrefillMs: number;
  /** When its first token is due; absent = it has no target. */
  readonly deadlineMs?: number | undefined;
  /** Its dispatch can wait for its worker's turn. */
  readonly mayWait?: boolean | undefined;
}

/** Told of every change of a booking, before the columns follow. */
export interface LoadObserver {
  added(booking: Booking): void;
  /** `cachedTokens`: what the engine found cached, if it said so. */
  prefillCompleted(key: string, nowMs: number, cachedTokens?: number): void;
  freed(key: string, nowMs: number): void;
}

interface BookedRequest {
  readonly key: string;
  readonly slot: number;
  /** Its shareable blocks. */
  readonly hold: Hold;
  readonly expectedPrefillMs: number;
  privateBlocks: number;
  privateWeight: number;
  prefillTokens: number;
  activeAtMs: number;
  older: BookedRequest | undefined;
  younger: BookedRequest | undefined;
}

const holdersAtStart = 64;

export class WorkerLoad {
  prefillTokens: Float64Array = new Float64Array(holdersAtStart);
  activeBlocks: Float64Array = new Float64Array(holdersAtStart);
  activeRequests: Int32Array = new Int32Array(holdersAtStart);
  /** Called when a slot has fewer prefill tokens than before. */
  onRelief: (() => void) | undefined = undefined;

  readonly #limits: LoadLimits;
  readonly #blocks: LiveBlocks;
  readonly #requests = new KeyedSlots<BookedRequest>();
  readonly #oldest: (BookedRequest | undefined)[] = [];
  readonly #youngest: (BookedRequest | undefined)[] = [];
  #known = new Int32Array(holdersAtStart);
  #weightSum = new Float64Array(holdersAtStart);
  /** Blocks and private sums of the slot with a weight that is no integer. */
  #fractions = new Int32Array(holdersAtStart);
  #oldestSinceMs = new Float64Array(holdersAtStart);
  #decayed = new Float64Array(holdersAtStart);
  #decaying = 0;
  #checkedAtMs = 0;
  #observer: LoadObserver | undefined;

  constructor(random: Random, limits: LoadLimits = defaultLoadLimits) {
    this.#limits = limits;
    this.#blocks = new LiveBlocks(limits.blocksMax, random, (slot, blocks, before, after) =>
      this.#reweigh(slot, blocks, before, after),
    );
  }

  /** At most one observer, from before the first booking. */
  observe(observer: LoadObserver): void {
    this.#observer = observer;
  }

  get requestCount(): number {
    return this.#requests.size;
  }

  /** Distinct (block, holder) pairs that are booked, private blocks left out. */
  get sharedBlockCount(): number {
    return this.#blocks.size;
  }

  has(key: string): boolean {
    return this.#requests.has(key);
  }

  /** Slot a live request is booked on. */
  slotOf(key: string): number | undefined {
    return this.#requests.get(key)?.slot;
  }

  /** A live request as it stands: private blocks with its output, prefill tokens still to come. */
  bookingOf(key: string): Omit<Booking, "nowMs"> | undefined {
    const request = this.#requests.get(key);
    return request && { ...request, sequence: this.#blocks.sequenceOf(request.hold) };
  }

  /** Makes `slot` bookable, with no load. */
  addHolder(slot: number): void {
    while (slot >= this.#known.length) this.#growHolders();
    this.#known[slot] = 1;
  }

  /** Frees every request of `slot` and answers their keys. */
  removeHolder(slot: number): readonly string[] {
    const keys: string[] = [];
    for (const request of this.#requests.values())
      if (request.slot === slot) keys.push(request.key);
    for (const key of keys) this.free(key, 0);
    if (slot < this.#known.length) this.#known[slot] = 0;
    return keys;
  }

  add(booking: Booking): AddOutcome {
    const { key, slot, sequence, nowMs } = booking;
    if (this.#requests.has(key)) return "duplicate_request";
    if (this.#known[slot] !== 1) return "worker_not_found";
    if (this.#requests.size >= this.#limits.requestsMax) return "capacity";
    if (!this.#blocks.hasRoom(sequence.length >> 1)) return "capacity";
    this.#observer?.added(booking);
    const request: BookedRequest = {
      key,
      slot,
      hold: this.#blocks.acquire(sequence, slot),
      expectedPrefillMs: booking.expectedPrefillMs,
      privateBlocks: booking.privateBlocks,
      privateWeight: booking.privateBlocks,
      prefillTokens: 0,
      activeAtMs: nowMs,
      older: undefined,
      younger: undefined,
    };
    this.#weightSum[slot]! += booking.privateBlocks;
    this.#settle(slot);
    this.#requests.set(key, request);
    this.activeRequests[slot]!++;
    if (booking.prefillTokens > 0) this.#joinPrefill(request, booking.prefillTokens, nowMs);
    return "ok";
  }

  /** The first token is back; a second mark changes nothing. */
  markPrefillCompleted(key: string, nowMs: number, cachedTokens?: number): LoadOutcome {
    const request = this.#requests.get(key);
    if (!request) return "request_not_found";
    this.#observer?.prefillCompleted(key, nowMs, cachedTokens);
    request.activeAtMs = nowMs;
    if (request.prefillTokens > 0) this.#leavePrefill(request, nowMs);
    return "ok";
  }

  /**
   * Adds `count` output blocks. A `fraction` becomes the weight of every block that only this
   * request uses; without one the new blocks weigh 1 and the others stay.
   */
  addOutputBlocks(
    key: string,
    count: number,
    fraction: number | undefined,
    nowMs: number,
  ): LoadOutcome {
    const request = this.#requests.get(key);
    if (!request) return "request_not_found";
    request.activeAtMs = nowMs;
    request.privateBlocks += count;
    const privateWeight =
      fraction === undefined ? request.privateWeight + count : request.privateBlocks * fraction;
    this.#reweigh(request.slot, 1, request.privateWeight, privateWeight);
    request.privateWeight = privateWeight;
    if (fraction !== undefined) this.#blocks.reweigh(request.hold, request.slot, fraction);
    this.#settle(request.slot);
    return "ok";
  }

  /** A response item arrived: the request is not stale. */
  touch(key: string, nowMs: number): LoadOutcome {
    const request = this.#requests.get(key);
    if (!request) return "request_not_found";
    request.activeAtMs = nowMs;
    return "ok";
  }

  /** Ends a request, whatever its state; a second free answers `request_not_found`. */
  free(key: string, nowMs: number): LoadOutcome {
    const request = this.#requests.get(key);
    if (!request) return "request_not_found";
    const { slot } = request;
    this.#observer?.freed(key, nowMs);
    if (request.prefillTokens > 0) this.#leavePrefill(request, nowMs);
    this.#blocks.release(request.hold, slot);
    this.#reweigh(slot, 1, request.privateWeight, 0);
    this.#settle(slot);
    this.#requests.delete(key);
    this.activeRequests[slot]!--;
    return "ok";
  }

  /**
   * Frees requests idle for longer than `staleAfterMs` and answers their keys. Looks at most once
   * per `staleCheckMs`; meant to run before every add and on a timer.
   */
  expireStale(nowMs: number): readonly string[] {
    if (nowMs - this.#checkedAtMs < this.#limits.staleCheckMs) return none;
    this.#checkedAtMs = nowMs;
    const stale: string[] = [];
    for (const request of this.#requests.values()) {
      if (nowMs - request.activeAtMs > this.#limits.staleAfterMs) stale.push(request.key);
    }
    for (const key of stale) this.free(key, nowMs);
    return stale;
  }

  /** `LiveBlocks.sharedPrefix` of all slots; `shared` covers every slot in use. */
  sharedPrefix(sequence: Uint32Array, shared: Int32Array): void {
    this.#blocks.sharedPrefix(sequence, shared);
  }

  /**
   * Prefill tokens per slot at `nowMs`: of the oldest prefill
   * `ceil(tokens * clamp(1 - elapsed / expected, 0, 1))`, of the others all. The column belongs to
   * this book and is valid until its next call.
   */
  prefillTokensAt(nowMs: number): Float64Array {
    if (this.#decaying === 0) return this.prefillTokens;
    for (let slot = 0; slot < this.#known.length; slot++) {
      const oldest = this.#oldest[slot];
      let tokens = this.prefillTokens[slot]!;
      if (oldest && oldest.expectedPrefillMs > 0) {
        const elapsedMs = nowMs - this.#oldestSinceMs[slot]!;
        const left = Math.min(Math.max(1 - elapsedMs / oldest.expectedPrefillMs, 0), 1);
        tokens += Math.ceil(oldest.prefillTokens * left) - oldest.prefillTokens;
      }
      this.#decayed[slot] = tokens;
    }
    return this.#decayed;
  }

  #joinPrefill(request: BookedRequest, tokens: number, nowMs: number): void {
    const { slot } = request;
    const youngest = this.#youngest[slot];
    request.prefillTokens = tokens;
    request.older = youngest;
    if (youngest) youngest.younger = request;
    else this.#setOldest(slot, request, nowMs);
    this.#youngest[slot] = request;
    this.prefillTokens[slot]! += tokens;
    if (request.expectedPrefillMs > 0) this.#decaying++;
  }

  #leavePrefill(request: BookedRequest, nowMs: number): void {
    const { slot, older, younger } = request;
    if (older) older.younger = younger;
    else this.#setOldest(slot, younger, nowMs);
    if (younger) younger.older = older;
    else this.#youngest[slot] = older;
    this.prefillTokens[slot]! -= request.prefillTokens;
    if (request.expectedPrefillMs > 0) this.#decaying--;
    request.prefillTokens = 0;
    request.older = undefined;
    request.younger = undefined;
    this.onRelief?.();
  }

  #setOldest(slot: number, request: BookedRequest | undefined, nowMs: number): void {
    this.#oldest[slot] = request;
    this.#oldestSinceMs[slot] = nowMs;
  }

  /** `count` blocks of the slot, or private sums, weigh `after` instead of `before`. */
  #reweigh(slot: number, count: number, before: number, after: number): void {
    this.#weightSum[slot]! += count * (after - before);
    if (!Number.isInteger(before)) this.#fractions[slot]! -= count;
    if (!Number.isInteger(after)) this.#fractions[slot]! += count;
  }

  /** Rounds the sum; without fractional weights it is exact, so float drift ends here. */
  #settle(slot: number): void {
    const rounded = Math.floor(this.#weightSum[slot]! + 0.5);
    if (this.#fractions[slot] === 0) this.#weightSum[slot] = rounded;
    this.activeBlocks[slot] = rounded;
  }

  #growHolders(): void {
    const length = this.#known.length * 2;
    this.prefillTokens = grownFloat64(this.prefillTokens, length);
    this.activeBlocks = grownFloat64(this.activeBlocks, length);
    this.#weightSum = grownFloat64(this.#weightSum, length);
    this.#oldestSinceMs = grownFloat64(this.#oldestSinceMs, length);
    this.#decayed = new Float64Array(length);
    this.activeRequests = grownInt32(this.activeRequests, length);
    this.#fractions = grownInt32(this.#fractions, length);
    this.#known = grownInt32(this.#known, length);
  }
}

const none: readonly string[] = [];

/** Blocks that `generated - newTokens → generated` output tokens begin to fill. */
export function outputBlocksCrossed(
  islTokens: number,
  generated: number,
  newTokens: number,
  blockSize: number,
): number {
  const before = Math.ceil((islTokens + generated - newTokens) / blockSize);
  return Math.ceil((islTokens + generated) / blockSize) - before;
}

/** Share of the expected output still to come, `max(0, 1 - generated / max(expected, 1))`. */
export function outputFraction(generated: number, expectedTokens: number): number {
  return Math.max(0, 1 - generated / Math.max(expectedTokens, 1));
}
