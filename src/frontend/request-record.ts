/**
 * Metrics and the log line of one HTTP request, from its entry to its last byte. Ends once, however
 * many ways lead there; gauges return to where they were.
 */
import type { Clock } from "../base/clock.ts";
import { errorTable, type TiergridError } from "../base/errors.ts";
import type { Log } from "../runtime/log.ts";
import type { frontendMetrics } from "../runtime/metric-table.ts";
import type { HistogramSeries, Metrics } from "../runtime/metrics.ts";
import { errorStatus } from "./error-body.ts";
import type { ApiKind } from "./request-schema.ts";

export type FrontendMetrics = Metrics<typeof frontendMetrics>;

export interface RecordTools {
  readonly metrics: FrontendMetrics;
  readonly log: Log;
  readonly clock: Clock;
  readonly overloadStatus: number;
}

/** Label of requests whose model is not ours; a caller's text must not become a label. */
const unknownModel = "unknown";

export class RequestRecord {
  readonly receivedMs: number;
  readonly receivedWallMs: number;
  readonly #tools: RecordTools;
  readonly #endpoint: string;
  readonly #requestId: string;
  readonly #onEnd: () => void;
  #model = unknownModel;
  #requestType = "unary";
  #itl: HistogramSeries | undefined;
  #queued = false;
  #ended = false;
  #ttftMs: number | undefined;
  #inputTokens = 0;
  #outputTokens = 0;
  #cachedTokens: number | undefined;

  constructor(tools: RecordTools, kind: ApiKind, requestId: string, onEnd: () => void) {
    this.#onEnd = onEnd;
    this.#tools = tools;
    this.#endpoint = kind === "chat" ? "chat_completions" : "completions";
    this.#requestId = requestId;
    this.receivedMs = tools.clock.nowMs();
    this.receivedWallMs = tools.clock.wallMs();
  }

  /** The request names a model of ours: it counts as in flight from here. */
  started(model: string, stream: boolean): void {
    this.#model = model;
    this.#requestType = stream ? "stream" : "unary";
    this.#queued = true;
    this.#addToGauges(1);
    this.#tools.metrics.gauge("dynamo_frontend_queued_requests", { model }).add(1);
  }

  tokenized(inputTokens: number, durationMs: number): void {
    const { metrics } = this.#tools;
    this.#inputTokens = inputTokens;
    metrics
      .histogram("dynamo_frontend_input_sequence_tokens", { model: this.#model })
      .observe(inputTokens);
    metrics
      .histogram("dynamo_frontend_tokenizer_latency_ms", { operation: "tokenize" })
      .observe(durationMs);
  }

  /** `tokens` arrived for a choice, `gapMs` after its last ones (undefined = its first). */
  output(tokens: number, gapMs: number | undefined): void {
    const { metrics, clock } = this.#tools;
    const model = this.#model;
    this.#outputTokens += tokens;
    metrics.counter("dynamo_frontend_output_tokens_total", { model }).add(tokens);
    if (this.#ttftMs === undefined) {
      this.#ttftMs = clock.nowMs() - this.receivedMs;
      this.#leaveQueue();
      metrics
        .histogram("dynamo_frontend_time_to_first_token_seconds", { model })
        .observe(this.#ttftMs / 1000);
    }
    if (gapMs === undefined || tokens === 0) return;
    this.#itl ??= metrics.histogram("dynamo_frontend_inter_token_latency_seconds", { model });
    this.#itl.observe(gapMs / 1000 / tokens, tokens);
  }

  cached(tokens: number): void {
    this.#cachedTokens = tokens;
    this.#tools.metrics
      .histogram("dynamo_frontend_cached_tokens", { model: this.#model })
      .observe(tokens);
  }

  /** The answer is complete, or failed with `error`. */
  end(error?: TiergridError): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#onEnd();
    const { metrics, log, clock, overloadStatus } = this.#tools;
    const model = this.#model;
    const endpoint = this.#endpoint;
    const elapsedMs = clock.nowMs() - this.receivedMs;
    const errorType = error ? errorTable[error.code].errorType : "";
    const outcome = {
      model,
      endpoint,
      request_type: this.#requestType,
      status: error ? "error" : "success",
      error_type: errorType,
    };
    metrics.counter("dynamo_frontend_requests_total", outcome).add();
    if (errorType === "overload") {
      metrics.counter("dynamo_frontend_model_rejection_total", { model, endpoint }).add();
    } else if (errorType === "cancelled") {
      const labels = { model, endpoint, request_type: this.#requestType };
      metrics.counter("dynamo_frontend_model_cancellation_total", labels).add();
      metrics.gauge("dynamo_frontend_disconnected_clients").add(1);
    }
    if (model !== unknownModel) this.#endKnown(elapsedMs);
    const level = errorType === "internal" ? "error" : "info";
    if (!log.isEnabled(level)) return;
    log[level]("request completed", {
      ...outcome,
      request_id: this.#requestId,
      http_status: error ? errorStatus(error.code, overloadStatus) : 200,
      elapsed_ms: elapsedMs,
      ttft_ms: this.#ttftMs,
      input_tokens: this.#inputTokens,
      output_tokens: this.#outputTokens,
      cached_tokens: this.#cachedTokens,
      ...(error && { error_code: error.code, cause: error.message }),
    });
  }

  #endKnown(elapsedMs: number): void {
    const { metrics } = this.#tools;
    const model = this.#model;
    this.#leaveQueue();
    this.#addToGauges(-1);
    metrics
      .histogram("dynamo_frontend_request_duration_seconds", { model })
      .observe(elapsedMs / 1000);
    if (this.#outputTokens === 0) return;
    metrics
      .histogram("dynamo_frontend_output_sequence_tokens", { model })
      .observe(this.#outputTokens);
  }

  #leaveQueue(): void {
    if (!this.#queued) return;
    this.#queued = false;
    const { metrics } = this.#tools;
    metrics.gauge("dynamo_frontend_queued_requests", { model: this.#model }).add(-1);
  }

  #addToGauges(change: number): void {
    const labels = { model: this.#model };
    this.#tools.metrics.gauge("dynamo_frontend_inflight_requests", labels).add(change);
    this.#tools.metrics.gauge("dynamo_frontend_active_requests", labels).add(change);
  }
}
