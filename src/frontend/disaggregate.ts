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
import { TiergridError, toTiergridError } from "../base/errors.ts";
import type { Phase, PrefillResultBody, RequestBody } from "../protocol/requests.ts";
import type { AcceptedFrame, EndFrame, EngineOutput } from "../protocol/stream-frames.ts";
import type { CallRequest, OwnerCall, StreamSink } from "../runtime/owner-request.ts";
import type { StreamOwner } from "../runtime/stream-owner.ts";
import type { ModelDirectory, ServedModel } from "./served-model.ts";

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
  readonly owner: Pick<StreamOwner, "call">;
  readonly models: Pick<ModelDirectory, "route">;
  readonly settings: DisaggSettings;
  readonly clock: Clock;
  /** `cause` is what a prefill leg failed with. */
  readonly onFallback: (why: FallbackReason, cause?: TiergridError) => void;
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

/** A request as each leg sends it; without a prefill result where none is known yet. */
export function legsOf(mode: ServedModel["mode"], body: RequestBody): [Phase, RequestBody][] {
  if (mode === "agg") return [["aggregated", body]];
  const decode = { ...body, router_config_override: decodeOverride };
  return [
    ["prefill", prefillBody(body)],
    ["decode", decode],
  ];
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
  let current: OwnerCall | undefined;
  let legs = 0;
  const open: OpenLeg = (phase, body, sink, priorDecisionIds = []) => {
    const leg = ++legs;
    const { settings, clock } = tools;
    try {
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
        priorDecisionIds,
      });
      // A call may fail, and the next leg be open, before `call` returns.
      if (leg === legs) current = call;
      if (paused) call.pause();
    } catch (error) {
      sink.onError(toTiergridError(error));
    }
  };
  if (request.model.mode === "agg") {
    open("aggregated", request.body, lastLeg(request.sink, "aggregated"));
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

type OpenLeg = (
  phase: Phase,
  body: RequestBody,
  sink: StreamSink,
  priorDecisionIds?: readonly string[],
) => void;

function startDisaggregated(request: AnswerRequest, tools: AnswerTools, open: OpenLeg): void {
  const { sink } = request;
  const decodeAlone = (why: FallbackReason, cause?: TiergridError): void => {
    tools.onFallback(why, cause);
    open("decode", request.body, lastLeg(sink, "decode"));
  };
  const decodeAfter = (prefill: PrefillResultBody, decisionIds: readonly string[]): void => {
    const body = {
      ...request.body,
      prefill_result: prefill,
      router_config_override: decodeOverride,
    };
    open("decode", body, lastLeg(sink, "decode", prefill), decisionIds);
  };
  const fail = (error: TiergridError): void => {
    // What cannot succeed elsewhere (a bad request, a passed deadline) cannot on a decode worker.
    if (tools.settings.enforceDisagg || !error.retryable) sink.onError(error);
    else decodeAlone("prefill_failed", error);
  };
  const afterPrefill = (outcome: PrefillOutcome): void => {
    if (request.signal.aborted) {
      sink.onError(new TiergridError("cancelled", "the caller left after the prefill"));
    } else if (outcome.type === "transferred") {
      decodeAfter(outcome.result, outcome.decisionIds);
    } else if (outcome.type === "complete") {
      tools.onPrefillComplete();
      for (const output of outcome.outputs) sink.onOutput(output);
      sink.onEnd(outcome.end, cachedTokensOf(outcome.end));
    } else if (outcome.type === "failed") {
      fail(outcome.error);
    } else if (request.tokens.length < request.model.blockSize) {
      decodeAlone("below_one_block");
    } else {
      const message = "the prefill worker answered without disaggregated_params";
      fail(new TiergridError("no_disaggregated_params", message));
    }
  };
  if (tools.models.route("prefill")([]) !== undefined) {
    open("prefill", prefillBody(request.body), prefillLeg(sink, afterPrefill));
  } else if (tools.settings.enforceDisagg) {
    sink.onError(new TiergridError("no_endpoints", "prefill router not yet activated"));
  } else {
    decodeAlone("no_prefill_pool");
  }
}

type PrefillOutcome =
  | {
      readonly type: "transferred";
      readonly result: PrefillResultBody;
      readonly decisionIds: readonly string[];
    }
  /** The first token ended the answer. */
  | { readonly type: "complete"; readonly outputs: readonly EngineOutput[]; readonly end: EndFrame }
  | { readonly type: "empty" }
  | { readonly type: "failed"; readonly error: TiergridError };

/** Outputs kept of a leg that was asked for one token. */
const prefillOutputsMax = 8;

/** Reads a prefill leg to its end. */
function prefillLeg(sink: AnswerSink, done: (outcome: PrefillOutcome) => void): StreamSink {
  const outputs: EngineOutput[] = [];
  let decisionIds: readonly string[] = [];
  return {
    onAccepted(frame) {
      decisionIds = frame.decisions.map((decision) => decision.decision_id);
      sink.onAccepted(frame, "prefill");
    },
    onOutput(output) {
      if (outputs.length < prefillOutputsMax) outputs.push(output);
    },
    onEnd(end) {
      const found = outputs.find(({ disaggregatedParams }) => disaggregatedParams !== undefined);
      const stopped = end.finishReason === "stop" || end.finishReason === "eos";
      if (found) {
        done({ type: "transferred", result: prefillResult(found, end), decisionIds });
        return;
      }
      if (stopped && end.total > 0) done({ type: "complete", outputs, end });
      else done({ type: "empty" });
    },
    onError: (error) => done({ type: "failed", error }),
  };
}

function prefillResult(output: EngineOutput, end: EndFrame): PrefillResultBody {
  const cachedTokens = cachedTokensOf(end);
  const details = cachedTokens === undefined ? undefined : { cached_tokens: cachedTokens };
  return {
    disaggregated_params: output.disaggregatedParams,
    ...(details && { prompt_tokens_details: details }),
  };
}

function cachedTokensOf(end: EndFrame): number | undefined {
  return end.usage?.prompt_tokens_details?.cached_tokens;
}

/** The leg the client hears. After a prefill leg, only that one knows what was cached. */
function lastLeg(sink: AnswerSink, phase: Phase, prefill?: PrefillResultBody): StreamSink {
  return {
    onAccepted: (frame) => sink.onAccepted(frame, phase),
    onOutput: (output) => sink.onOutput(output),
    onEnd: (end) =>
      sink.onEnd(
        end,
        prefill ? (prefill.prompt_tokens_details?.cached_tokens ?? undefined) : cachedTokensOf(end),
      ),
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
