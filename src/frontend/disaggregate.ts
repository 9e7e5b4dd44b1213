/**
 * One answer over one or two legs.
 *
 *   aggregated     call(aggregated) ─────────────────────────────────▶ output … end
 *   disaggregated  call(prefill) ──▶ disaggregated_params ──▶ call(decode) ──▶ output … end
 *                        │ no prefill pool, prefill failed, prompt below one block
 *                        └───────────────▶ call(decode) without a prefill result (unless enforced)
 *
 * Invariants
 *   - The sink hears exactly one `onEnd` or `onError`.
 *   - At most one leg is open at a time; aborting the signal ends whichever it is, and no further
 *     leg starts.
 *   - The prefill leg's single token never reaches the client, unless it is the whole answer.
 */
import type { Clock } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import type { Phase, PrefillResultBody, RequestBody } from "../protocol/requests.ts";
import type { AcceptedFrame, EndFrame, EngineOutput } from "../protocol/stream-frames.ts";
import type { ModelDirectory, Route, ServedModel } from "./served-model.ts";

/** What the owner of a stream is told about one call. */
export interface CallSink {
  onAccepted(frame: AcceptedFrame): void;
  onOutput(output: EngineOutput, first: number): void;
  onEnd(end: EndFrame): void;
  onError(error: TiergridError): void;
}

export interface CallRequest {
  readonly route: Route;
  readonly phase: Phase;
  readonly body: RequestBody;
  readonly tokens: Uint32Array;
  readonly deadlineMs: number;
  readonly firstTokenTimeoutMs: number;
  readonly signal: AbortSignal;
  readonly migration: {
    readonly limit: number;
    readonly maxSeqTokens?: number;
    readonly allowed: boolean;
  };
  readonly sink: CallSink;
}

/** Opens streams; `runtime/stream-owner.ts` is the one that does. */
export interface StreamCaller {
  call(request: CallRequest): OpenCall;
}

export interface OpenCall {
  readonly rid: string;
  pause(): void;
  resume(): void;
}

export interface AnswerSink {
  onAccepted(frame: AcceptedFrame, phase: Phase): void;
  onOutput(output: EngineOutput): void;
  /** `cachedTokens`: as the engine that read the prompt reported it. */
  onEnd(end: EndFrame, cachedTokens: number | undefined): void;
  onError(error: TiergridError): void;
}

/** Why a disaggregated request went to one worker only; a metric label. */
export type FallbackReason = "no_prefill_pool" | "prefill_failed" | "below_one_block";

export interface DisaggSettings {
  /** Fail instead of letting a decode worker read the prompt. */
  readonly enforceDisagg: boolean;
  readonly migrationLimit: number;
  readonly migrationMaxSeqTokens: number | undefined;
  readonly firstTokenTimeoutMs: number;
}

export interface AnswerTools {
  readonly owner: StreamCaller;
  readonly models: Pick<ModelDirectory, "route">;
  readonly settings: DisaggSettings;
  readonly clock: Clock;
  readonly onFallback: (why: FallbackReason) => void;
  readonly onPrefillComplete: () => void;
}

export interface AnswerRequest {
  readonly model: ServedModel;
  readonly body: RequestBody;
  readonly tokens: Uint32Array;
  readonly deadlineAtMs: number;
  readonly signal: AbortSignal;
  readonly sink: AnswerSink;
}

export interface RunningAnswer {
  /** Back-pressure from the client; holds across legs. */
  pause(): void;
  resume(): void;
}

/** Decode placement goes by load alone: the prompt's blocks arrive by transfer. */
const decodeOverride = {
  overlap_score_weight: 0,
  assume_kv_reuse: false,
  track_prefill_tokens: false,
} as const;

/** Starts an answer; everything later goes to the sink. */
export function startAnswer(request: AnswerRequest, tools: AnswerTools): RunningAnswer {
  let paused = false;
  let current: OpenCall | undefined;
  const open = (phase: Phase, body: RequestBody, sink: CallSink): void => {
    const { settings, clock } = tools;
    const call = tools.owner.call({
      route: tools.models.route(phase),
      phase,
      body,
      tokens: request.tokens,
      deadlineMs: Math.max(1, request.deadlineAtMs - clock.nowMs()),
      firstTokenTimeoutMs: settings.firstTokenTimeoutMs,
      signal: request.signal,
      migration: migrationOf(body, phase, settings),
      sink,
    });
    current = call;
    if (paused) call.pause();
  };
  if (request.model.mode === "agg") {
    open("aggregated", request.body, lastLeg(request.sink, "aggregated", undefined));
  } else {
    startDisaggregated(request, tools, open);
  }
  return {
    pause() {
      paused = true;
      current?.pause();
    },
    resume() {
      paused = false;
      current?.resume();
    },
  };
}

type OpenLeg = (phase: Phase, body: RequestBody, sink: CallSink) => void;

function startDisaggregated(request: AnswerRequest, tools: AnswerTools, open: OpenLeg): void {
  const { sink } = request;
  const decode = (prefill: PrefillResultBody | undefined): void => {
    const body = prefill
      ? { ...request.body, prefill_result: prefill, router_config_override: decodeOverride }
      : request.body;
    const cachedTokens = prefill?.prompt_tokens_details?.cached_tokens ?? undefined;
    open("decode", body, lastLeg(sink, "decode", cachedTokens));
  };
  const decodeAlone = (why: FallbackReason): void => {
    tools.onFallback(why);
    decode(undefined);
  };
  if (tools.models.route("prefill")([]) === undefined) {
    if (!tools.settings.enforceDisagg) return decodeAlone("no_prefill_pool");
    return sink.onError(new TiergridError("no_endpoints", "prefill router not yet activated"));
  }
  open("prefill", prefillBody(request.body), {
    ...prefillLeg((outcome) => {
      if (request.signal.aborted) return sink.onError(cancelledBetweenLegs());
      switch (outcome.type) {
        case "transferred":
          return decode(outcome.result);
        case "complete":
          tools.onPrefillComplete();
          for (const output of outcome.outputs) sink.onOutput(output);
          return sink.onEnd(outcome.end, cachedTokensOf(outcome.end));
        case "empty":
          if (request.tokens.length < request.model.blockSize)
            return decodeAlone("below_one_block");
          return failed(noParams());
        case "failed":
          return failed(outcome.error);
      }
    }),
    onAccepted: (frame) => sink.onAccepted(frame, "prefill"),
  });

  const failed = (error: TiergridError): void => {
    // What cannot succeed elsewhere (a bad request, a passed deadline) cannot on a decode worker.
    if (tools.settings.enforceDisagg || !error.retryable) sink.onError(error);
    else decodeAlone("prefill_failed");
  };
}

type PrefillOutcome =
  | { readonly type: "transferred"; readonly result: PrefillResultBody }
  /** The first token ended the answer. */
  | { readonly type: "complete"; readonly outputs: readonly EngineOutput[]; readonly end: EndFrame }
  | { readonly type: "empty" }
  | { readonly type: "failed"; readonly error: TiergridError };

/** Reads a prefill leg to its end. A leg has one token, so what is kept is small. */
function prefillLeg(done: (outcome: PrefillOutcome) => void): Omit<CallSink, "onAccepted"> {
  const outputs: EngineOutput[] = [];
  return {
    onOutput(output) {
      if (outputs.length < prefillOutputsMax) outputs.push(output);
    },
    onEnd(end) {
      const found = outputs.find(({ disaggregatedParams }) => disaggregatedParams !== undefined);
      if (found) return done({ type: "transferred", result: prefillResult(found, end) });
      const stopped = end.finishReason === "stop" || end.finishReason === "eos";
      done(stopped && end.total > 0 ? { type: "complete", outputs, end } : { type: "empty" });
    },
    onError: (error) => done({ type: "failed", error }),
  };
}

/** Outputs of a leg that was asked for one token. */
const prefillOutputsMax = 8;

function prefillResult(output: EngineOutput, end: EndFrame): PrefillResultBody {
  const cachedTokens = cachedTokensOf(end);
  return {
    disaggregated_params: output.disaggregatedParams,
    ...(cachedTokens === undefined
      ? {}
      : { prompt_tokens_details: { cached_tokens: cachedTokens } }),
  };
}

function cachedTokensOf(end: EndFrame): number | undefined {
  return end.usage?.prompt_tokens_details?.cached_tokens;
}

/** The leg the client hears. */
function lastLeg(
  sink: AnswerSink,
  phase: Phase,
  prefillCachedTokens: number | undefined,
): CallSink {
  const handedOver = phase === "decode" && prefillCachedTokens !== undefined;
  return {
    onAccepted: (frame) => sink.onAccepted(frame, phase),
    onOutput: (output) => sink.onOutput(output),
    onEnd: (end) => sink.onEnd(end, handedOver ? prefillCachedTokens : cachedTokensOf(end)),
    onError: (error) => sink.onError(error),
  };
}

/** A copy that makes exactly one token; the original is kept for decode. */
function prefillBody(body: RequestBody): RequestBody {
  const { min_tokens: _, ...stop } = body.stop_conditions ?? {};
  return {
    ...body,
    stop_conditions: { ...stop, max_tokens: 1 },
    sampling_options: { ...body.sampling_options, n: 1 },
  };
}

/** A guided answer has a grammar state that another worker could not take over. */
function migrationOf(
  body: RequestBody,
  phase: Phase,
  settings: DisaggSettings,
): CallRequest["migration"] {
  const guided = body.sampling_options?.["guided_decoding"] !== undefined;
  const { migrationLimit: limit, migrationMaxSeqTokens: maxSeqTokens } = settings;
  return {
    limit,
    allowed: !guided || phase === "prefill",
    ...(maxSeqTokens === undefined ? {} : { maxSeqTokens }),
  };
}

function noParams(): TiergridError {
  const message = "the prefill worker answered without disaggregated_params";
  return new TiergridError("no_disaggregated_params", message);
}

function cancelledBetweenLegs(): TiergridError {
  return new TiergridError("cancelled", "the caller left between prefill and decode");
}
