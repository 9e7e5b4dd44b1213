/**
 * What a dispatcher (`runtime/dispatcher.ts`) asks of the router it serves, and what it tells it.
 */
import type { CancelSignal, CancelSwitch } from "../base/cancel.ts";
import type { TiergridError } from "../base/errors.ts";
import type { RequestNotice } from "../protocol/notices.ts";
import type { PassedFrame } from "../protocol/request-frame.ts";
import type {
  HopDecision,
  Prompt,
  RoutedBody,
  RoutedDispatch,
  RoutedEnvelope,
} from "../protocol/requests.ts";

/** The next thing to do with a request. */
export type Plan =
  | SendPlan
  | {
      readonly type: "wait";
      readonly waitMs: number;
      /** Ends the wait early. */
      readonly woken?: CancelSignal;
    }
  | { readonly type: "refuse"; readonly error: TiergridError; readonly retryAfterMs?: number };

export interface SendPlan {
  readonly type: "send";
  /** The next hop and where it takes work and control messages. */
  readonly inst: string;
  readonly subject: string;
  readonly control: string;
  /** The entry's own body where the hop shall have it as it came: that is not printed again. */
  readonly body: RoutedBody;
  readonly decision: HopDecision;
  /** The worker shall tell when its output grows by a block; default false. */
  readonly progress?: boolean;
}

/** Why an entry ended. */
export type EndCause =
  | "finished"
  | "closed"
  | "refused"
  | "cancelled"
  | "superseded"
  | "lost"
  | "worker_lost"
  | "deadline";

/** What makes a dispatcher a global or a local router. All calls are synchronous. */
export interface DispatchPolicy<State> {
  /** State of one request, made when it arrives; throws `TiergridError` to refuse it. */
  admit(dispatch: RoutedDispatch): State;
  /** Chooses and books the next hop. Called again after every failed attempt. */
  plan(entry: DispatchEntry<State>): Plan;
  /** The attempt ended before its first output. Frees what `plan` booked. */
  attemptFailed(entry: DispatchEntry<State>, error: TiergridError): void;
  /** A worker took it, `waitedMs` ago. */
  accepted(entry: DispatchEntry<State>, waitedMs: number): void;
  noticed(entry: DispatchEntry<State>, notice: RequestNotice): void;
  /** The request is over for this dispatcher. Frees what `plan` booked, if `entry.booked`. */
  ended(entry: DispatchEntry<State>, cause: EndCause): void;
}

/** What a notice says about an offer that waits for its answer. */
export interface OpenOffer {
  /** The hop still looks for a worker: its silence counts anew. */
  extend(): void;
  /** A worker took it. */
  accept(acceptance: Acceptance): void;
}

/** The worker that took an attempt, and which. */
export interface Acceptance {
  readonly attempt: number;
  readonly inst: string;
  readonly control: string;
  readonly workerId: string;
  /** How long ago. */
  readonly waitedMs?: number;
}

/** One request in a dispatcher's books. */
export interface DispatchEntry<State> {
  readonly rid: string;
  /** As it came from above. */
  readonly envelope: RoutedEnvelope;
  readonly body: RoutedBody;
  /** What the next hop gets with this hop's changes; undefined after the first output. */
  frame: PassedFrame | undefined;
  /** Undefined after the first output, when no retry is possible. */
  prompt: Prompt | undefined;
  readonly islTokens: number;
  readonly state: State;
  readonly receivedMs: number;
  readonly deadlineMs: number;
  /** Number of the running attempt. */
  attempt: number;
  /** Attempts sent so far. */
  attempts: number;
  phase: "open" | "accepted" | "running" | "gone";
  /** True between `plan` and the end of that attempt. */
  booked: boolean;
  target: { readonly inst: string; readonly control: string } | undefined;
  worker: { readonly inst: string; readonly control: string; readonly id: string } | undefined;
  /** Last time a notice or a list of active requests named this entry. */
  lastSeenMs: number;
  /** Present while a hop is asked. */
  offer: OpenOffer | undefined;
  readonly cancel: CancelSwitch;
}

export interface DispatcherTotals {
  received: number;
  accepted: number;
  refused: number;
  retried: number;
  cancelled: number;
  /** Notices that named no entry, or an older attempt, or could not be read. */
  lateNotices: number;
  lost: number;
}
