/** What an owner asks for, what it is told, and what its calls share. */
import type { Clock } from "../base/clock.ts";
import type { TiergridError } from "../base/errors.ts";
import type { Phase, RequestBody } from "../protocol/requests.ts";
import type {
  AcceptedFrame,
  EndFrame,
  EngineOutput,
  StreamAck,
} from "../protocol/stream-frames.ts";
import type { Bus } from "./bus.ts";
import type { MigrationRule } from "./migration.ts";
import type { NoticeOutbox } from "./notice-outbox.ts";
import type { PoisonGuard } from "./poison-guard.ts";
import type { PromptSource, PromptTotals } from "./prompt-source.ts";
import type { ConsumerTotals } from "./stream-consumer.ts";
import type { EchoGate } from "./stream-defaults.ts";

/** Where a request goes next: a router, or a worker itself. */
export interface Route {
  readonly inst: string;
  readonly subject: string;
  /** Control subject of that instance, for a cancel before a worker accepted. */
  readonly control?: string;
  /** Tokens per block of the hashes it takes in place of a prompt; absent = tokens only. */
  readonly promptHashes?: number | undefined;
}

/** Exactly one of `onEnd` and `onError` is called, as the last; a sink that throws ends the call. */
export interface StreamSink {
  onAccepted(frame: AcceptedFrame): void;
  /** `first` is the index of the output's first token in the whole answer. */
  onOutput(output: EngineOutput, first: number): void;
  onEnd(end: EndFrame): void;
  /** A refusal's `retryAfterMs` stands in the error's details. */
  onError(error: TiergridError): void;
}

export interface CallRequest {
  /** The next instance to ask, or undefined when there is none besides those to avoid. */
  readonly route: (avoid: readonly string[]) => Route | undefined;
  readonly phase: Phase;
  readonly body: RequestBody;
  readonly tokens: Uint32Array;
  readonly deadlineMs: number;
  readonly firstTokenTimeoutMs: number;
  readonly signal?: AbortSignal;
  readonly migration: MigrationRule;
  readonly sink: StreamSink;
  /** Decisions of an earlier leg (prefill) that the `closed` notice names too. */
  readonly priorDecisionIds?: readonly string[];
}

export interface OwnerCall {
  readonly rid: string;
  /** Ends the call with `cancelled`; the worker is told. After the end it does nothing. */
  cancel(): void;
  /** Stops acknowledging, so that the worker stops; outputs under way still come. */
  pause(): void;
  resume(): void;
  /** Resolves after `onEnd` or `onError`; never rejects. */
  readonly done: Promise<void>;
}

export interface OwnerTotals extends ConsumerTotals, PromptTotals {
  dispatches: number;
  migrations: number;
  resumes: number;
  probes: number;
  /** Bundle records of unknown type, and streams nobody knows. */
  skipped: number;
  malformed: number;
}

/** The owner as one of its calls sees it. */
export interface OwnerShared {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly gate: EchoGate;
  readonly guard: PoisonGuard;
  /** Dispatch to the first sign of life of whoever holds the request. */
  readonly acceptMs: number;
  /** Subject of every stream of this owner. */
  readonly inbox: string;
  readonly totals: OwnerTotals;
  /** What dispatchers are told. */
  readonly notices: NoticeOutbox;
  /** Prompts that went as hashes. */
  readonly prompts: PromptSource;
  /** Publishes on the control plane; a message the bus does not take is repaired by timers. */
  send(subject: string, payload: Uint8Array): void;
  /** Acknowledges every stream of the worker at `control`. */
  ackNow(control: string): void;
  /** Acknowledges a whole answer, with others that end in the same message. */
  ackEnd(control: string, ack: StreamAck): void;
  /** The call with this key is over. */
  forget(key: number): void;
}
