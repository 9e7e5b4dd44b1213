/**
 * Time as a parameter. Processes run on `realClock`; tests and the simulator run the same code on a
 * `ManualClock`, whose timers fire in (time, insertion) order.
 */
import type { CancelSignal } from "./cancel.ts";

/** Cancels a timer; calling it twice, or after the timer fired, does nothing. */
export type CancelTimer = () => void;

export interface Clock {
  /** Milliseconds on a clock that never steps; only differences mean anything. */
  nowMs(): number;
  /** Milliseconds since the Unix epoch, for logs and answers; never for timers. */
  wallMs(): number;
  /** Calls `fire` once, `delayMs` from now (0 = after the current task). */
  after(delayMs: number, fire: () => void): CancelTimer;
}

export const realClock: Clock = {
  nowMs: () => performance.now(),
  wallMs: () => Date.now(),
  after(delayMs, fire) {
    if (delayMs <= 0) {
      const immediate = setImmediate(fire);
      return () => clearImmediate(immediate);
    }
    const timer = setTimeout(fire, delayMs);
    return () => clearTimeout(timer);
  },
};

/** Repeats `fire` every `periodMs` until cancelled; the next period starts when `fire` returns. */
export function every(clock: Clock, periodMs: number, fire: () => void): CancelTimer {
  let cancelled = false;
  let cancel: CancelTimer = () => {};
  const arm = (): void => {
    cancel = clock.after(periodMs, () => {
      fire();
      if (!cancelled) arm();
    });
  };
  arm();
  return () => {
    cancelled = true;
    cancel();
  };
}

/** Resolves after `delayMs`, or at once when one of `signals` aborts. Never rejects. */
export function sleep(
  clock: Clock,
  delayMs: number,
  ...signals: readonly (CancelSignal | undefined)[]
): Promise<void> {
  return new Promise((resolve) => {
    if (signals.some((signal) => signal?.aborted)) return resolve();
    const done = (): void => {
      cancel();
      for (const signal of signals) signal?.removeEventListener("abort", done);
      resolve();
    };
    const cancel = clock.after(delayMs, done);
    for (const signal of signals) signal?.addEventListener("abort", done, { once: true });
  });
}

interface ManualTimer {
  readonly atMs: number;
  readonly order: number;
  readonly fire: () => void;
  cancelled: boolean;
}

/**
 * A clock that only moves when told to: a binary heap of timers ordered by (time, insertion).
 * `runFor` lets promises settle between timers, so `async` code runs on it unchanged.
 */
export class ManualClock implements Clock {
  readonly #wallStartMs: number;
  readonly #heap: ManualTimer[] = [];
  #nowMs = 0;
  #order = 0;

  constructor(wallStartMs = 1_700_000_000_000) {
    this.#wallStartMs = wallStartMs;
  }

  nowMs(): number {
    return this.#nowMs;
  }

  wallMs(): number {
    return this.#wallStartMs + this.#nowMs;
  }

  after(delayMs: number, fire: () => void): CancelTimer {
    const atMs = this.#nowMs + Math.max(0, delayMs);
    const timer = { atMs, order: this.#order++, fire, cancelled: false };
    this.#heap.push(timer);
    siftUp(this.#heap, this.#heap.length - 1);
    return () => {
      timer.cancelled = true;
    };
  }

  /** Time of the next live timer, or `Infinity`. */
  nextAtMs(): number {
    while (this.#heap[0]?.cancelled) popTimer(this.#heap);
    return this.#heap[0]?.atMs ?? Number.POSITIVE_INFINITY;
  }

  /** Number of live timers; 0 when nothing is pending. */
  pending(): number {
    return this.#heap.reduce((count, timer) => count + (timer.cancelled ? 0 : 1), 0);
  }

  /** Fires every timer due up to `untilMs` synchronously, without letting promises settle. */
  advanceTo(untilMs: number): void {
    while (this.nextAtMs() <= untilMs) this.#fireNext();
    this.#nowMs = Math.max(this.#nowMs, untilMs);
  }

  /** Runs `durationMs` of virtual time; promises settle before each timer and at the end. */
  async runFor(durationMs: number): Promise<void> {
    await this.runUntil(() => false, durationMs);
  }

  /** Runs until `done()` or for `maxMs`; answers whether `done()` came true. */
  async runUntil(done: () => boolean, maxMs: number): Promise<boolean> {
    const untilMs = this.#nowMs + maxMs;
    await settle();
    while (!done()) {
      if (this.nextAtMs() > untilMs) {
        this.#nowMs = untilMs;
        return done();
      }
      this.#fireNext();
      await settle();
    }
    return true;
  }

  #fireNext(): void {
    const timer = popTimer(this.#heap);
    if (!timer || timer.cancelled) return;
    this.#nowMs = Math.max(this.#nowMs, timer.atMs);
    timer.fire();
  }
}

/** One turn of the event loop: every promise that can settle without a timer has settled. */
function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

function before(a: ManualTimer, b: ManualTimer): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);
}

function siftUp(heap: ManualTimer[], start: number): void {
  let slot = start;
  while (slot > 0) {
    const parent = (slot - 1) >> 1;
    const above = heap[parent];
    const here = heap[slot];
    if (!above || !here || !before(here, above)) return;
    heap[parent] = here;
    heap[slot] = above;
    slot = parent;
  }
}

function popTimer(heap: ManualTimer[]): ManualTimer | undefined {
  const first = heap[0];
  const last = heap.pop();
  if (!first || !last || heap.length === 0) return first;
  heap[0] = last;
  let slot = 0;
  for (;;) {
    const left = 2 * slot + 1;
    const right = left + 1;
    let least = slot;
    for (const child of [left, right]) {
      const candidate = heap[child];
      const best = heap[least];
      if (candidate && best && before(candidate, best)) least = child;
    }
    if (least === slot) return first;
    const here = heap[slot] as ManualTimer;
    heap[slot] = heap[least] as ManualTimer;
    heap[least] = here;
    slot = least;
  }
}
