/**
 * What travels back: the numbered frames of one answer, worker to owner, and the owner's control
 * messages, owner to worker. Rules: `runtime/stream-producer.ts`, `runtime/stream-consumer.ts`;
 * bytes: `protocol/stream-bundle.ts` (ours) and `protocol/stream-json.ts` (any NATS client).
 */
import type { ErrorCode } from "../base/errors.ts";
import type { HopDecision } from "./requests.ts";

export type FinishReason = "eos" | "stop" | "length" | "cancelled" | "content_filter";

/** Where a request is while no token comes. */
export type WaitPhase = "queued" | "prefill" | "decode";

/** Facts about an answer that only the engine knows; absent when the engine is silent. */
export interface CompletionUsage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly prompt_tokens_details?: { readonly cached_tokens: number };
}

/**
 * What an engine made in one step for one request. Only outputs with tokens travel as frames, since
 * tokens are what frames are numbered by; others join the next frame, or the end.
 */
export interface EngineOutput {
  readonly tokenIds: readonly number[];
  /** Only engines that detokenize themselves. */
  readonly text?: string;
  /** Handed from a prefill to its decode, opaque. */
  readonly disaggregatedParams?: unknown;
  /** Other fields of the engine's output, passed through with their wire names. */
  readonly extra?: Readonly<Record<string, unknown>>;
}

export interface AcceptedFrame {
  readonly type: "accepted";
  readonly attempt: number;
  readonly epoch: string;
  readonly inst: string;
  /** Subject for `ControlMessage`s. */
  readonly control: string;
  readonly notify: readonly string[];
  readonly workerId: string;
  readonly dpRank: number;
  readonly decisions: readonly HopDecision[];
}

export interface TokensFrame {
  readonly type: "tokens";
  readonly attempt: number;
  /** Index of the first token in the whole answer, across attempts. */
  readonly first: number;
  readonly output: EngineOutput;
}

export interface HeartbeatFrame {
  readonly type: "heartbeat";
  readonly attempt: number;
  /** Index of the next token. */
  readonly next: number;
  readonly phase: WaitPhase;
}

export interface EndFrame {
  readonly type: "end";
  readonly attempt: number;
  /** Tokens in the whole answer. */
  readonly total: number;
  readonly finishReason: FinishReason;
  readonly stopReason?: string | number;
  readonly usage?: CompletionUsage;
  /** What came without tokens after the last one, e.g. held-back text; never numbered. */
  readonly rest?: EngineOutput;
}

export interface ErrorFrame {
  readonly type: "error";
  readonly attempt: number;
  readonly code: ErrorCode;
  readonly message: string;
  readonly retryable: boolean;
  /** True when output of this attempt may already have left the worker. */
  readonly started: boolean;
}

export type StreamFrame = AcceptedFrame | TokensFrame | HeartbeatFrame | EndFrame | ErrorFrame;

/** Owner to worker, on the worker's control subject. All are idempotent. */
export type ControlMessage =
  | {
      readonly type: "resume";
      readonly rid: string;
      readonly attempt: number;
      readonly from: number;
    }
  | { readonly type: "cancel"; readonly rid: string; readonly attempt: number }
  | { readonly type: "ping"; readonly rid: string; readonly attempt: number }
  /** Next indexes the owner expects: one message per owner and worker, many streams. */
  | { readonly type: "ack"; readonly acks: readonly StreamAck[] };

export interface StreamAck {
  readonly rid: string;
  readonly attempt: number;
  /** Every token below this index has been taken. */
  readonly next: number;
}

/** `ok: false`: this worker does not know the stream (migrate). */
export interface ControlReply {
  readonly ok: boolean;
}
