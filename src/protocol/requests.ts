/**
 * What travels down: a request, and the receipt that comes back up hop by hop, unless acceptance is told
 * by notices.
 *
 *   owner ──Dispatch──▶ global ──Dispatch──▶ local ──Dispatch──▶ worker
 *   owner ◀──Receipt─── global ◀──Receipt─── local ◀──Receipt─── worker
 *
 * The body keeps the reference's snake_case names and is forwarded whole, unknown fields included.
 * The envelope is ours: each hop reads it, changes its own part and passes it on.
 */
import type { ErrorCode } from "../base/errors.ts";

export type Phase = "prefill" | "decode" | "aggregated";

export interface StopConditions {
  readonly max_tokens?: number | null;
  readonly min_tokens?: number | null;
  readonly stop?: readonly string[] | null;
  readonly stop_token_ids?: readonly number[] | null;
  readonly ignore_eos?: boolean | null;
}

export interface SamplingOptions {
  readonly n?: number | null;
  readonly temperature?: number | null;
  readonly top_p?: number | null;
  readonly seed?: number | null;
  readonly [option: string]: unknown;
}

/** Routing hints and pins (`worker ids` are decimal strings or safe integers). */
export interface RoutingHints {
  readonly backend_instance_id?: string | number | null;
  readonly prefill_worker_id?: string | number | null;
  readonly decode_worker_id?: string | number | null;
  readonly dp_rank?: number | null;
  readonly prefill_dp_rank?: number | null;
  readonly expected_output_tokens?: number | null;
  readonly lora_name?: string | null;
  readonly cache_salt?: string | null;
  readonly priority_jump?: number | null;
  readonly strict_priority?: number | null;
  /** True = rather refused than to wait in a local router's queue. */
  readonly do_not_queue?: boolean | null;
  /** Larger is more important; i32. */
  readonly priority?: number | null;
  readonly allowed_worker_ids?: readonly (string | number)[] | null;
}

/** SLA targets in ms and where they came from; explicit 0 is a target. */
export interface SlaHints {
  readonly ttft_target?: number | null;
  readonly itl_target?: number | null;
  /** Take the cheapest worker that meets the target; set by the router that compared quotes. */
  readonly best_fit?: boolean | null;
  readonly ttft_source?: string | null;
  readonly itl_source?: string | null;
}

export interface PrefillResultBody {
  /** Opaque to every router; passed on unchanged. */
  readonly disaggregated_params: unknown;
  readonly prompt_tokens_details?: { readonly cached_tokens?: number | null } | null;
}

/** The fields of a request that routers act on. */
export interface RoutedBody {
  /** The caller's own id, for logs; never an address. */
  readonly request_id?: string;
  readonly routing?: RoutingHints | null;
  readonly router?: SlaHints | null;
  readonly router_config_override?: Readonly<Record<string, unknown>> | null;
  readonly annotations?: readonly string[] | null;
  readonly extra_args?: Readonly<Record<string, unknown>> | null;
  /** Older spelling of `routing.dp_rank`. */
  readonly dp_rank?: unknown;
  readonly mm_routing_info?: unknown;
}

/** The preprocessed request without its token ids. */
export interface RequestBody extends RoutedBody {
  readonly model?: string;
  readonly stop_conditions?: StopConditions | null;
  readonly sampling_options?: SamplingOptions | null;
  readonly prefill_result?: PrefillResultBody | null;
  readonly [field: string]: unknown;
}

/** Which frames the owner of the stream reads, and where. */
export interface StreamAddress {
  readonly subject: string;
  /** `bundle`: binary, many streams a message. `json`: one frame a message, for any NATS client. */
  readonly format: "bundle" | "json";
  /** The owner's number for this stream, unique in the owner's process; 0 for `json`. */
  readonly key: number;
  /**
   * True when the owner acknowledges: un-acknowledged frames are its credit, silence makes it an
   * orphan. False for plain clients: the newest frames are kept for resume, nothing waits.
   */
  readonly acks: boolean;
}

/** What one routing hop decided, echoed to the owner in the worker's `accepted` frame. */
export interface HopDecision {
  readonly tier: "global" | "local";
  readonly decision_id: string;
  readonly role: Phase;
  readonly pool?: string;
  readonly cell?: string;
  readonly reason?: string;
  readonly config_version?: string;
  readonly worker_id?: string;
  readonly dp_rank?: number;
  readonly overlap_blocks?: number;
  readonly isl_blocks?: number;
}

/** What routers act on; the decisions of those above pass them unread. */
export interface RoutedEnvelope {
  /** 128 random bits in hex, made by the owner: names the stream on every hop. */
  readonly rid: string;
  /** See `attemptNumber`. */
  readonly attempt: number;
  /** Index in the whole answer of the first token this attempt makes; > 0 after a migration. */
  readonly first: number;
  readonly phase: Phase;
  /** Time left when this hop sent it, ms; a duration, so that clocks are never compared. */
  readonly deadlineMs: number;
  readonly stream: StreamAddress;
  /** Where the worker asks for the tokens of a prompt that travels as hashes. */
  readonly promptFrom?: string | undefined;
  /** Notice subjects of the dispatchers above the worker, nearest first. */
  readonly notify: readonly string[];
  /** The nearest of them wants `progress` notices; default false. */
  readonly progress?: boolean;
  /**
   * The owner needs no receipt when a worker accepts, since its stream says so: dispatchers hear it by
   * an `accepted` notice. Default false. Refusals are receipts in any case.
   */
  readonly acceptNotice?: boolean;
  /** Instances the owner saw fail for this request; skipped while others can take it. */
  readonly avoid: readonly string[];
}

export interface Envelope extends RoutedEnvelope {
  /** Of the routers above, the first one's first. */
  readonly decisions: readonly HopDecision[];
}

/**
 * A prompt on its way down: its tokens; or what routers decide by, while its owner keeps the tokens
 * for the worker that takes the request. Hashes are believed for routing only.
 */
export type Prompt = TokenPrompt | HashedPrompt;

export interface TokenPrompt {
  readonly type: "tokens";
  readonly tokens: Uint32Array;
}

export interface HashedPrompt {
  readonly type: "hashes";
  readonly islTokens: number;
  /** Tokens per block that were hashed. */
  readonly blockSize: number;
  /** Hash of each full block alone, 2 u32 per block; may be a view of the payload. */
  readonly localHashes: Uint32Array;
}

/** Tokens of the prompt, as its sender counts them. */
export function islTokensOf(prompt: Prompt): number {
  return prompt.type === "tokens" ? prompt.tokens.length : prompt.islTokens;
}

/** A request as routers see it. */
export interface RoutedDispatch {
  readonly envelope: RoutedEnvelope;
  readonly body: RoutedBody;
  readonly prompt: Prompt;
}

export interface Dispatch extends RoutedDispatch {
  readonly envelope: Envelope;
  readonly body: RequestBody;
}

export interface TokenDispatch extends Dispatch {
  readonly prompt: TokenPrompt;
}

/** The reply to a `Dispatch`: the next hop took it (all the way to a worker), or it did not. */
export type Receipt =
  | {
      readonly type: "accepted";
      /** The attempt the worker took; its lower parts may be above what was asked. */
      readonly attempt: number;
      /** The worker: its instance, its life, its control subject. */
      readonly inst: string;
      readonly epoch: string;
      readonly control: string;
      readonly workerId: string;
      readonly dpRank: number;
      readonly decisions: readonly HopDecision[];
    }
  | {
      readonly type: "refused";
      readonly code: ErrorCode;
      readonly message: string;
      readonly retryAfterMs?: number;
      readonly details?: Readonly<Record<string, unknown>>;
    };

/** Parts of an attempt number: owner's call, global attempt, local attempt. */
export interface AttemptParts {
  /** 1, 2, …; raised by the owner on migration. */
  readonly call: number;
  /** 0..1023, raised by the global router. */
  readonly global: number;
  /** 0..1023, raised by the local router. */
  readonly local: number;
}

export const attemptPartMax = 1023;
/** Calls one request may make: retries of the first dispatch and migrations together. */
export const callsMax = 4095;

/**
 * One number per attempt, larger is newer: `call · 2^20 + global · 2^10 + local` (u32). Each tier
 * raises only its own part, so no two tiers can mint the same number.
 */
export function attemptNumber(parts: AttemptParts): number {
  return (parts.call * 1024 + parts.global) * 1024 + parts.local;
}

export function attemptParts(attempt: number): AttemptParts {
  return {
    call: Math.floor(attempt / 1048576),
    global: Math.floor(attempt / 1024) % 1024,
    local: attempt % 1024,
  };
}
