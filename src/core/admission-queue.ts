/**
 * Requests that wait until a worker has room, in the order in which they will be asked again.
 *
 *   heap    [ ticket, ticket, … ]      a parent goes before its children
 *   ticket  { strict priority, score, number, place }      place = its index in the heap, -1 = left
 *
 * - The head has the highest strict priority; of those the highest score; of those the lowest number.
 *   Keys are made on arrival and never again, so what was said about a wait stays true.
 * - Only the head is asked: nobody overtakes, whatever worker it is waiting for.
 * - `count`, `islTokens` and `cachedTokens` are sums over the heap.
 */

/**
 * `fcfs`, `lcfs` and `wspt` (most urgent per uncached token) are the reference's. `aged` is shortest
 * uncached work with ageing.
 */
export type QueueOrder = "fcfs" | "lcfs" | "wspt" | "aged";

/** Limit on waiting tokens for requests with at least so many uncached tokens. */
export interface QueueDepthRule {
  readonly missingCacheTokensFloor: number;
  /** Waiting prompt tokens per worker. */
  readonly maxQueueDepth: number;
}

/** Requests waiting at once. */
export const waitingMax = 65_536;

/**
 * Uncached tokens that weigh as much as one second of waiting: about what an engine computes in it.
 * A request is overtaken by smaller ones for at most its own uncached tokens' worth of seconds.
 */
export const agedTokensPerSec = 10_000;

export interface Arrival {
  readonly strictPriority: number;
  /** Seconds ahead of its arrival; below 0 counts as 0. */
  readonly priorityJumpSecs: number;
  /** On a clock that starts with the queue. */
  readonly arrivedSecs: number;
  readonly islTokens: number;
  /** Most prompt tokens that any eligible holder has cached. */
  readonly bestCachedTokens: number;
}

/** A place in the queue of what its owner calls `item`. */
export interface Ticket<Item> {
  readonly item: Item;
  readonly arrival: Arrival;
  readonly score: number;
  readonly number: number;
  place: number;
}

export type QueueRefusal = "request_limit" | "raw_isl_token_limit";

export interface AdmissionQueueOptions {
  readonly order: QueueOrder;
  /** Floors ascend from 0; null = waiting tokens are not limited. */
  readonly depthRules: readonly QueueDepthRule[] | null;
  readonly waitingMax?: number;
}

export class AdmissionQueue<Item> {
  islTokens = 0;
  cachedTokens = 0;

  readonly #order: QueueOrder;
  readonly #depthRules: readonly QueueDepthRule[] | null;
  readonly #waitingMax: number;
  readonly #heap: Ticket<Item>[] = [];
  #arrivals = 0;

  constructor(options: AdmissionQueueOptions) {
    this.#order = options.order;
    this.#depthRules = options.depthRules;
    this.#waitingMax = options.waitingMax ?? waitingMax;
  }

  get count(): number {
    return this.#heap.length;
  }

  get head(): Ticket<Item> | undefined {
    return this.#heap[0];
  }

  /** Takes a place for `item` in a pool of `workers`; or why there is none. */
  join(item: Item, arrival: Arrival, workers: number): Ticket<Item> | QueueRefusal {
    if (this.#heap.length >= this.#waitingMax) return "request_limit";
    const waitingTokens = this.islTokens + arrival.islTokens;
    if (waitingTokens > this.#depthOf(arrival) * workers) return "raw_isl_token_limit";
    const score = scoreOf(this.#order, arrival);
    const number = this.#arrivals++;
    const ticket = { item, arrival, score, number, place: this.#heap.length };
    this.#heap.push(ticket);
    this.#rise(ticket);
    this.islTokens += arrival.islTokens;
    this.cachedTokens += arrival.bestCachedTokens;
    return ticket;
  }

  /** Gives the place up; does nothing when it was given up before. */
  leave(ticket: Ticket<Item>): void {
    const { place, arrival } = ticket;
    if (place < 0) return;
    const last = this.#heap.pop()!;
    if (last !== ticket) {
      this.#put(last, place);
      this.#rise(last);
      this.#sink(last);
    }
    ticket.place = -1;
    this.islTokens -= arrival.islTokens;
    this.cachedTokens -= arrival.bestCachedTokens;
  }

  #depthOf(arrival: Arrival): number {
    const missing = missingTokensOf(arrival);
    const rule = this.#depthRules?.findLast((one) => one.missingCacheTokensFloor <= missing);
    return rule?.maxQueueDepth ?? Number.POSITIVE_INFINITY;
  }

  #rise(ticket: Ticket<Item>): void {
    while (ticket.place > 0) {
      const parent = this.#heap[(ticket.place - 1) >> 1]!;
      if (!goesBefore(ticket, parent)) return;
      const { place } = parent;
      this.#put(parent, ticket.place);
      this.#put(ticket, place);
    }
  }

  #sink(ticket: Ticket<Item>): void {
    for (;;) {
      const left = this.#heap[2 * ticket.place + 1];
      const right = this.#heap[2 * ticket.place + 2];
      const child = left && right && goesBefore(right, left) ? right : left;
      if (!child || !goesBefore(child, ticket)) return;
      const { place } = child;
      this.#put(child, ticket.place);
      this.#put(ticket, place);
    }
  }

  #put(ticket: Ticket<Item>, place: number): void {
    this.#heap[place] = ticket;
    ticket.place = place;
  }
}

/** Score among requests of one strict priority; the highest is next. */
export function scoreOf(order: QueueOrder, arrival: Arrival): number {
  const jumpSecs = Math.max(arrival.priorityJumpSecs, 0);
  switch (order) {
    case "fcfs":
      return jumpSecs - arrival.arrivedSecs;
    case "lcfs":
      return jumpSecs + arrival.arrivedSecs;
    case "wspt":
      return (1 + jumpSecs) / Math.max(missingTokensOf(arrival), 1);
    case "aged":
      return jumpSecs - arrival.arrivedSecs - missingTokensOf(arrival) / agedTokensPerSec;
  }
}

function missingTokensOf({ islTokens, bestCachedTokens }: Arrival): number {
  return Math.max(islTokens - bestCachedTokens, 0);
}

function goesBefore<Item>(ticket: Ticket<Item>, other: Ticket<Item>): boolean {
  const { strictPriority } = ticket.arrival;
  const otherPriority = other.arrival.strictPriority;
  if (strictPriority !== otherPriority) return strictPriority > otherPriority;
  if (ticket.score !== other.score) return ticket.score > other.score;
  return ticket.number < other.number;
}
