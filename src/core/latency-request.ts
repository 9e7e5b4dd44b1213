/** A request as the latency book takes it, and as it keeps it. */
import { emptyHold, type Hold } from "./live-blocks.ts";
import { noPass } from "./prefill-plan.ts";
import type { QueuedPrompt } from "./prefill-queue.ts";

export interface LatencyDispatch {
  /** Opaque, unique among live requests. */
  readonly key: string;
  readonly slot: number;
  readonly nowMs: number;
  readonly uncachedTokens: number;
  readonly cachedTokens: number;
  /**
   * Sequence hashes of the prompt's full blocks, lanes interleaved, when nobody else tracks them;
   * else empty.
   */
  readonly sequence: Uint32Array;
  /** When its first token is due; absent = nobody was told. */
  readonly deadlineMs?: number | undefined;
  /** It is sent when `releaseAtMs` says so, and not before `release`. */
  readonly mayWait?: boolean | undefined;
}

/** What the book knows of a request. */
export interface LatencyRequest extends QueuedPrompt {
  readonly slot: number;
  readonly sequence: Uint32Array;
  /** Its blocks while an engine has it queued. */
  hold: Hold;
  queued: boolean;
  // Since its last output that was seen.
  outputTokens: number;
  outputAtMs: number;
  sequences: number;
  activeKvTokens: number;
}

/** The request of a dispatch as it goes to an engine; `uncachedTokens` are left to compute there. */
export function newRequest(dispatch: LatencyDispatch, uncachedTokens: number): LatencyRequest {
  const { key, slot, nowMs, cachedTokens, sequence } = dispatch;
  const deadlineMs = dispatch.deadlineMs ?? Number.POSITIVE_INFINITY;
  return {
    ...{ key, slot, sequence, uncachedTokens, cachedTokens, deadlineMs },
    dispatchedMs: nowMs,
    joinMs: nowMs,
    hold: emptyHold,
    queued: uncachedTokens > 0,
    isHeld: false,
    dueMs: deadlineMs,
    doneTokens: 0,
    startMs: nowMs,
    pass: undefined,
    tail: noPass(),
    slackMs: Number.POSITIVE_INFINITY,
    older: undefined,
    younger: undefined,
    outputTokens: 0,
    outputAtMs: nowMs,
    sequences: 0,
    activeKvTokens: 0,
  };
}
