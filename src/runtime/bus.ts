/**
 * The bus: subjects, publish, subscribe, request/reply. Two implementations, one conformance suite:
 * `nats-bus` (a real nats-server, made safe) and `memory-bus` (in process, with faults from a seed).
 *
 * What every implementation promises:
 *   - A handler that throws, or whose promise rejects, hurts only its own message.
 *   - `publish` throws instead of losing: `disconnected`, `bus_overloaded`, `payload_too_large`,
 *     `bus_closed`. A message that was accepted may still be lost; streams number their frames.
 *   - Messages of one publisher on one subject arrive in order, at most once.
 *   - A request in flight ends with a reply, `no_responders`, `request_timeout`, `disconnected`,
 *     `cancelled` or `bus_closed`; never later than its timeout.
 *   - Subjects and queue names are checked before anything is written (`protocol/subjects.ts`).
 */
import type { CancelSignal } from "../base/cancel.ts";
import type { TiergridError } from "../base/errors.ts";

export interface BusMessage {
  readonly subject: string;
  /** The receiver may keep it: the bus does not reuse the memory. */
  readonly payload: Uint8Array;
  /** Where an answer goes; undefined when none is expected. */
  readonly reply: string | undefined;
  readonly headers: ReadonlyMap<string, string> | undefined;
}

/** What a handler throws or rejects with is counted; a handler that must not overlap queues itself. */
export type BusHandler = (message: BusMessage) => void | Promise<void>;

/** `data` (the default) is shed above the soft outbound mark, `control` only above the hard one. */
export type Traffic = "data" | "control";

export interface PublishOptions {
  readonly reply?: string;
  readonly headers?: ReadonlyMap<string, string>;
  readonly traffic?: Traffic;
}

/** Of `ask`. */
export interface AskOptions {
  /** Absent = until the asker gives up. */
  readonly timeoutMs?: number;
  readonly headers?: ReadonlyMap<string, string>;
}

/** Who asked: told once how the request ended, unless he gave it up. Must not throw. */
export interface Asker {
  onReply(reply: BusMessage): void;
  /** With one of the codes above, but for `cancelled`. */
  onError(error: TiergridError): void;
}

export interface RequestOptions {
  readonly timeoutMs: number;
  readonly headers?: ReadonlyMap<string, string>;
  readonly signal?: CancelSignal;
}

export interface Subscription {
  unsubscribe(): void;
}

export type BusState = "connected" | "disconnected" | "closed";

export interface BusTotals {
  readonly reconnects: number;
  readonly forcedCloses: number;
  readonly watchdogSwaps: number;
  readonly handlerErrors: number;
  readonly shedMessages: number;
  /** Bytes accepted but not yet taken by the socket. */
  readonly outboundBytes: number;
  readonly messagesIn: number;
  readonly messagesOut: number;
  readonly bytesIn: number;
  readonly bytesOut: number;
}

export interface Bus {
  /** `"nats"` or `"embedded"`. */
  readonly kind: "nats" | "embedded";
  /** Private prefix of this connection, e.g. `_R.fe.k3x9`; replies and streams live below it. */
  readonly inboxPrefix: string;
  readonly state: BusState;
  readonly maxPayloadBytes: number;
  readonly totals: BusTotals;
  /** The bus sends `payload` later and without a copy: the caller does not write to it again. */
  publish(subject: string, payload: Uint8Array, options?: PublishOptions): void;
  /**
   * `queue` names a constant queue group; wildcards `*` and `>` are allowed in `subject`. An exact
   * subject below `inboxPrefix` takes effect at once; others when the server has seen them (`flush`).
   */
  subscribe(subject: string, handler: BusHandler, queue?: string): Subscription;
  /**
   * Travels as `control`. Throws as `publish` does; answers the function that gives it up. For who asks
   * for every message that passes: no promise, no error for a request that is not needed any more.
   */
  ask(subject: string, payload: Uint8Array, options: AskOptions, asker: Asker): () => void;
  /** `ask` as a promise. */
  request(subject: string, payload: Uint8Array, options: RequestOptions): Promise<BusMessage>;
  /** Calls `listener` on every change of `state`; returns the unsubscribe function. */
  onState(listener: (state: BusState) => void): () => void;
  /** Resolves when the server has seen everything published so far. */
  flush(): Promise<void>;
  /** Unsubscribes, rejects what is in flight with `bus_closed`, closes. Idempotent. */
  close(): Promise<void>;
}
