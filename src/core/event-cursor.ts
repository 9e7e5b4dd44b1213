/**
 * Where a router stands in the event sequence of one holder, and what to do with what comes in.
 * Pure: inputs are method calls, answers are actions in order; the shell applies them.
 *
 *   ids    … 4   5   6   7   8   9   10
 *              last  └ gap ┘  └ buffered ┘
 *
 * - `last` = id of the newest event in the index; -1 = the worker has emitted nothing; null = unknown.
 * - At most one recovery is in flight; while it is, newer live events wait in the buffer.
 * - The buffer holds `bufferMax` events; beyond it only `#largestSeen` remembers that there were more.
 * - `generation` changes when an answer in flight becomes void; an answer of another one is ignored.
 * - The buffer holds no `cleared`: a live one is a barrier and is applied at once.
 */
import type { KvEvent } from "../protocol/kv-events.ts";
import type { KvAnswer } from "../protocol/kv-query.ts";

export const bufferMax = 1024;

export type CursorAction =
  | { readonly type: "apply"; readonly event: KvEvent }
  | { readonly type: "clear"; readonly id: number }
  /** All blocks of the holder become those that the dump's events store. */
  | { readonly type: "replace"; readonly events: readonly KvEvent[] }
  /** The holder's process restarted: all its blocks are gone. */
  | { readonly type: "reset" }
  /** Ask the worker, from `start` or for everything. */
  | { readonly type: "query"; readonly start: number | undefined; readonly generation: number }
  | { readonly type: "buffer"; readonly id: number }
  | { readonly type: "drop"; readonly id: number }
  | { readonly type: "ignore_result" };

/** What a recovery came to; `failed` after the last retry. */
export type RecoveryResult = KvAnswer | { readonly type: "failed" };

export class EventCursor {
  last: number | null = null;
  generation = 0;
  /** Recovery failed: events go on, but the holder's blocks may be wrong until a full restore. */
  degraded = false;

  readonly #buffer = new Map<number, KvEvent>();
  readonly #bufferMax: number;
  #largestSeen = -1;
  #stateSource = "";
  #inFlight = false;
  #askedStart: number | undefined;

  constructor(max: number = bufferMax) {
    this.#bufferMax = max;
  }

  get recovering(): boolean {
    return this.#inFlight;
  }

  get buffered(): number {
    return this.#buffer.size;
  }

  /** The process life whose events were applied; "" = not told. */
  get stateSource(): string {
    return this.#stateSource;
  }

  /** Nothing is missing up to `last`, as far as this cursor knows. */
  get settled(): boolean {
    return this.last !== null && !this.#inFlight && !this.degraded;
  }

  /** Goes on behind `last` of the process life `stateSource`, as a snapshot tells. */
  resume(last: number, stateSource: string): void {
    this.last = last;
    this.#stateSource = stateSource;
  }

  /** The worker can be asked: restore unless that is done or under way. */
  onDiscovered(): CursorAction[] {
    return this.last === null && !this.#inFlight ? [this.#query(undefined)] : [];
  }

  /** Time for another full restore of a degraded holder. */
  onRestoreDue(): CursorAction[] {
    return this.degraded && !this.#inFlight ? [this.#query(undefined)] : [];
  }

  /** The worker's own digest disagrees with what was applied: restore everything. */
  onDoubt(): CursorAction[] {
    if (this.last === null || this.#inFlight) return [];
    this.degraded = true;
    return [this.#query(undefined)];
  }

  /** A live event; `stateSource` names the process life that sent it, "" = not told. */
  onEvent(event: KvEvent, stateSource = ""): CursorAction[] {
    const actions: CursorAction[] = [];
    if (stateSource !== "" && stateSource !== this.#stateSource) {
      if (this.#stateSource !== "") actions.push(this.#reset());
      this.#stateSource = stateSource;
    }
    const id = event.eventId;
    if (this.last !== null && id <= this.last) actions.push({ type: "drop", id });
    else if (event.type === "cleared") this.#clear(id, actions);
    else if (!this.#inFlight && this.last !== null && id === this.last + 1) {
      this.last = id;
      actions.push({ type: "apply", event });
    } else {
      actions.push(this.#keep(event));
      if (!this.#inFlight) {
        actions.push(this.#query(this.last === null ? undefined : this.last + 1));
      }
    }
    return actions;
  }

  /** The end of the recovery that was asked for in `generation`. */
  onResult(result: RecoveryResult, generation: number = this.generation): CursorAction[] {
    if (!this.#inFlight || generation !== this.generation) return [{ type: "ignore_result" }];
    const actions: CursorAction[] = [];
    this.#inFlight = false;
    switch (result.type) {
      case "events":
        this.#takeEvents(result.events, actions);
        break;
      case "tree_dump": {
        const before = this.last;
        this.last = result.lastEventId ?? -1;
        this.degraded = false;
        actions.push({ type: "replace", events: result.events });
        this.#drain(before === null || this.last > before, actions);
        break;
      }
      case "too_new":
        actions.push(this.#reset(), this.#query(undefined));
        break;
      case "error":
      case "invalid_range":
      case "failed":
        this.#giveUp(actions);
    }
    return actions;
  }

  #takeEvents(events: readonly KvEvent[], actions: CursorAction[]): void {
    const asked = this.#askedStart;
    const first = events[0]?.eventId;
    if (asked !== undefined && first !== undefined && first > asked) {
      actions.push(this.#query(undefined));
      return;
    }
    const before = this.last;
    for (const event of events) {
      const id = event.eventId;
      const next = (this.last ?? -1) + 1;
      if (id < next) continue;
      if (event.type === "cleared") actions.push({ type: "clear", id });
      else if (id === next) actions.push({ type: "apply", event });
      else break;
      this.last = id;
    }
    if (this.last === before) this.#giveUp(actions);
    else this.#drain(true, actions);
  }

  /** Applies what the buffer has next; asks again for what is still missing, if that helps. */
  #drain(progressed: boolean, actions: CursorAction[]): void {
    let last = this.last ?? -1;
    for (;;) {
      const event = this.#buffer.get(last + 1);
      if (!event) break;
      actions.push({ type: "apply", event });
      last++;
    }
    this.last = last;
    for (const id of this.#buffer.keys()) if (id <= last) this.#buffer.delete(id);
    if (this.#largestSeen <= last) return;
    if (progressed) actions.push(this.#query(last + 1));
    else this.#giveUp(actions);
  }

  /** Goes on with what is known; a full restore is due later. */
  #giveUp(actions: CursorAction[]): void {
    this.degraded = true;
    const ids = [...this.#buffer.keys()].sort((a, b) => a - b);
    for (const id of ids) {
      const event = this.#buffer.get(id);
      if (event) actions.push({ type: "apply", event });
    }
    this.#buffer.clear();
    if (this.#largestSeen >= 0) this.last = Math.max(this.#largestSeen, this.last ?? -1);
  }

  #clear(id: number, actions: CursorAction[]): void {
    actions.push({ type: "clear", id });
    this.last = id;
    this.#inFlight = false;
    this.generation++;
    this.#drain(true, actions);
  }

  #reset(): CursorAction {
    this.last = null;
    this.#inFlight = false;
    this.generation++;
    this.#buffer.clear();
    this.#largestSeen = -1;
    return { type: "reset" };
  }

  #keep(event: KvEvent): CursorAction {
    const id = event.eventId;
    this.#largestSeen = Math.max(this.#largestSeen, id);
    if (this.#buffer.size >= this.#bufferMax) return { type: "drop", id };
    this.#buffer.set(id, event);
    return { type: "buffer", id };
  }

  #query(start: number | undefined): CursorAction {
    this.#inFlight = true;
    this.#askedStart = start;
    this.generation++;
    return { type: "query", start, generation: this.generation };
  }
}
