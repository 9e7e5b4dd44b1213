/**
 * A request inside the mock engine, and the queue it waits in.
 *
 *   position  0 ......... isl ........ length = isl + generated
 *             |  prompt    |  output    |
 *             |<- computed: KV exists ->|  the newest token has no KV yet
 *   blocks    [ s0 s1 | s2 s3 ]             slots in sequence order
 *               committed = 2               leading blocks visible under their hash
 *
 * Invariants: computed <= length; blocks.length >= ceil(computed / block size); a request is in
 * the queue, in the running list, held for its handoff, or ended, never in two of them.
 */

export type MockRequestState = "waiting" | "running" | "held" | "ended";

/** What the core needs to know of a request; hashes are interleaved u32 lanes. */
export interface MockSubmission {
  readonly key: number;
  /** No pass planned to start earlier takes it. */
  readonly arrivedAtMs: number;
  readonly promptTokens: number;
  readonly maxOutputTokens: number;
  readonly sequenceHashes: Uint32Array;
  readonly localHashes: Uint32Array;
  /** Prefill leg: one token, then the blocks stay held until `releaseHeld`. */
  readonly prefillOnly: boolean;
  /** Decode leg: token 0 exists, KV of the whole prompt arrives with the request. */
  readonly transferred: boolean;
}

export class MockRequest {
  readonly key: number;
  readonly arrivedAtMs: number;
  readonly promptTokens: number;
  readonly maxOutputTokens: number;
  readonly prefillOnly: boolean;
  state: MockRequestState = "waiting";
  cancelled = false;
  /** Cleared at admission; a request preempted after that computes its own prompt. */
  transferred: boolean;
  generated: number;
  computed = 0;
  readonly blocks: number[] = [];
  committed = 0;
  /** Prompt tokens hit at the first admission; -1 before it. */
  cachedTokens = -1;
  sequenceHashes: Uint32Array;
  localHashes: Uint32Array;
  hashedBlocks: number;
  /** Tokens scheduled in the running pass, and `computed` before them. */
  passTokens = 0;
  passContext = 0;
  before: MockRequest | undefined;
  after: MockRequest | undefined;

  constructor(submission: MockSubmission, maxOutputTokens: number) {
    this.key = submission.key;
    this.arrivedAtMs = submission.arrivedAtMs;
    this.promptTokens = submission.promptTokens;
    this.maxOutputTokens = maxOutputTokens;
    this.prefillOnly = submission.prefillOnly;
    this.transferred = submission.transferred;
    this.generated = submission.transferred ? 1 : 0;
    this.sequenceHashes = submission.sequenceHashes;
    this.localHashes = submission.localHashes;
    this.hashedBlocks = submission.sequenceHashes.length >> 1;
  }

  get length(): number {
    return this.promptTokens + this.generated;
  }

  /** Appends the hashes of the next block, `[localLo, localHi, sequenceLo, sequenceHi]`. */
  pushHashes(lanes: Uint32Array): void {
    const at = 2 * this.hashedBlocks;
    if (at + 2 > this.sequenceHashes.length) {
      this.sequenceHashes = grown(this.sequenceHashes, at);
      this.localHashes = grown(this.localHashes, at);
    }
    this.localHashes[at] = lanes[0] as number;
    this.localHashes[at + 1] = lanes[1] as number;
    this.sequenceHashes[at] = lanes[2] as number;
    this.sequenceHashes[at + 1] = lanes[3] as number;
    this.hashedBlocks++;
  }
}

/** First in, first out, with a front door for preempted requests; every step is O(1). */
export class MockRequestQueue {
  #head: MockRequest | undefined;
  #tail: MockRequest | undefined;
  count = 0;
  promptTokens = 0;

  get head(): MockRequest | undefined {
    return this.#head;
  }

  push(request: MockRequest): void {
    request.before = this.#tail;
    request.after = undefined;
    if (this.#tail) this.#tail.after = request;
    else this.#head = request;
    this.#tail = request;
    this.#added(request);
  }

  pushFront(request: MockRequest): void {
    request.before = undefined;
    request.after = this.#head;
    if (this.#head) this.#head.before = request;
    else this.#tail = request;
    this.#head = request;
    this.#added(request);
  }

  remove(request: MockRequest): void {
    if (request.before) request.before.after = request.after;
    else this.#head = request.after;
    if (request.after) request.after.before = request.before;
    else this.#tail = request.before;
    request.before = undefined;
    request.after = undefined;
    this.count--;
    this.promptTokens -= request.promptTokens;
  }

  #added(request: MockRequest): void {
    request.state = "waiting";
    this.count++;
    this.promptTokens += request.promptTokens;
  }
}

/** A larger copy: the submitted lanes are shared with the caller and never written. */
function grown(lanes: Uint32Array, used: number): Uint32Array {
  const larger = new Uint32Array(Math.max(8, 2 * used));
  larger.set(lanes.subarray(0, used));
  return larger;
}
