/**
 * What the worker asks of an engine, and what an engine tells the worker.
 *
 *   worker ── submit, cancel ──▶ engine ── onKvEvents, onStep, onLoad ──▶ worker (the sink)
 *
 * An engine reports one step at a time; the worker turns a step into one message per stream owner.
 * KV events of a pass reach the sink before the tokens of that pass. A request ends exactly once,
 * with one `StepEnd`; after `cancel` it ends silently. 64-bit hashes are interleaved u32 lanes:
 * `[lo0, hi0, lo1, hi1, ...]`.
 */
import type { TiergridError } from "../base/errors.ts";

export type EngineRole = "aggregated" | "prefill" | "decode";

export interface EngineRequest {
  /** Unique in the worker, below 2^53. */
  readonly key: number;
  readonly tokens: Uint32Array;
  /** Lanes of the chained hashes of the full prompt blocks; the mock hashes itself without them. */
  readonly sequenceHashes: Uint32Array;
  /** Lanes of the hashes of each full prompt block alone. */
  readonly localHashes: Uint32Array;
  /** What the hashes of this request are seeded with besides its tokens. */
  readonly loraName?: string | undefined;
  readonly cacheSalt?: string | undefined;
  readonly maxOutputTokens: number;
  readonly minOutputTokens: number;
  readonly seed: number;
  readonly stopTokenIds: readonly number[];
  readonly ignoreEos: boolean;
  readonly dpRank: number | undefined;
  readonly role: EngineRole;
  /** Set on the decode leg of a disaggregated request. */
  readonly prefillResult: PrefillResult | undefined;
  /** Accepted for engines that order their queue by it; the mock serves strictly in order. */
  readonly priorityJumpSeconds?: number;
}

/** What a prefill leg hands to the decode leg; the parameters are the engine's own. */
export interface PrefillResult {
  readonly disaggregatedParams: unknown;
  readonly cachedTokens: number | undefined;
}

/**
 * Everything one engine step produced, in order. The columns hold `count` tokens; a request may
 * have several in one step. Columns and lists belong to the engine and are valid until `onStep`
 * returns.
 */
export interface EngineStep {
  readonly dpRank: number;
  /** Requests whose token 0 is in this step. */
  readonly started: readonly StepStart[];
  readonly count: number;
  readonly keys: Float64Array;
  /** Place of the token in the request's output, from 0. */
  readonly indexes: Uint32Array;
  readonly tokenIds: Uint32Array;
  readonly ended: readonly StepEnd[];
}

export interface StepStart {
  readonly key: number;
  /** Prompt tokens taken from the cache. */
  readonly cachedTokens: number;
}

export interface StepEnd {
  readonly key: number;
  readonly finishReason: "stop" | "length" | "error";
  readonly promptTokens: number;
  readonly outputTokens: number;
  readonly cachedTokens: number;
  /** Handed to the decode leg; set when a prefill leg ends well. */
  readonly disaggregatedParams: unknown;
  /** Set when and only when `finishReason` is `error`. */
  readonly error: TiergridError | undefined;
}

/** A change of one rank's prefix cache; `block_hash` on the wire is the sequence hash here. */
export type EngineKvEvent =
  | {
      readonly type: "stored";
      /** Lanes of the hash before the first block; undefined at the start of a sequence. */
      readonly parent: Uint32Array | undefined;
      readonly sequenceHashes: Uint32Array;
      readonly localHashes: Uint32Array;
    }
  | { readonly type: "removed"; readonly sequenceHashes: Uint32Array }
  | { readonly type: "cleared" };

/** One rank's load; when the rank is idle, all but the totals and `hitRatio` are 0. */
export interface EngineLoad {
  readonly dpRank: number;
  readonly running: number;
  readonly waiting: number;
  readonly activeBlocks: number;
  readonly totalBlocks: number;
  readonly waitingPromptTokens: number;
  readonly preemptionsTotal: number;
  readonly evictedBlocksTotal: number;
  /** Mean over recent admissions of cached tokens / sequence length; keeps its last value. */
  readonly hitRatio: number;
}

/** Facts a worker registers with. */
export interface EngineCard {
  readonly model: string;
  readonly role: EngineRole;
  readonly blockSize: number;
  readonly totalKvBlocks: number;
  /** Undefined = no limit, here and below. */
  readonly maxNumSeqs: number | undefined;
  readonly maxNumBatchedTokens: number | undefined;
  readonly contextLength: number | undefined;
  readonly dpStart: number;
  readonly dpSize: number;
  /** Its speed, as `readPerfModel` takes it; undefined = not known. */
  readonly perfModel?: unknown;
}

export interface EngineSink {
  onStep(step: EngineStep): void;
  onKvEvents(dpRank: number, events: readonly EngineKvEvent[]): void;
  onLoad(load: EngineLoad): void;
  /** The engine is dead and reports nothing more; its requests are lost. */
  onDeath(error: TiergridError): void;
}

export interface Engine {
  readonly card: EngineCard;
  /** Takes a request; throws `overloaded`, `invalid_request` or `context_length_exceeded`. */
  submit(request: EngineRequest): void;
  /** Ends a request silently; an unknown key is ignored. */
  cancel(key: number): void;
  /** Resolves when the engine can serve. */
  start(sink: EngineSink): Promise<void>;
  /** Drops all requests and reports nothing more. */
  stop(): Promise<void>;
  /** One entry per rank. */
  load(): readonly EngineLoad[];
}
