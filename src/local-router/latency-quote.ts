/**
 * A quote: what `generate` would choose at this instant and what it would take, for the tier above
 * to compare pools by. It is the same choice, without a booking; it reserves nothing.
 */
import { TiergridError } from "../base/errors.ts";
import { latenessMs } from "../core/best-fit.ts";
import type { ChosenWorker } from "../core/choice.ts";
import type { LatencyTerms } from "../core/cost-terms.ts";
import type { Decision } from "../core/decision-record.ts";
import type { LatencyRole } from "../core/latency-book.ts";
import type { LatencyCostOptions } from "../core/latency-cost.ts";
import { isObject, shown } from "../protocol/request-body.ts";
import type { RequestBody } from "../protocol/requests.ts";
import type { RouteQuery } from "./route-query.ts";
import { refusalError } from "./worker-choice.ts";

/** What a quote is asked for; absent = without a target, or with the usual output. */
export interface QuoteRequest {
  readonly ttftTargetMs: number | undefined;
  readonly itlTargetMs: number | undefined;
  readonly expectedOutputTokens: number | undefined;
}

/** A quote is as good as new for this long. */
const validForMs = 50;

/** The body's `quote`; undefined without one. Throws `invalid_request` naming the field. */
export function readQuoteRequest({ quote }: RequestBody): QuoteRequest | undefined {
  if (quote === undefined || quote === null) return undefined;
  if (!isObject(quote)) throw invalid("quote", "an object", quote);
  return {
    ttftTargetMs: numberOf(quote, "ttft_target_ms", 0),
    itlTargetMs: numberOf(quote, "itl_target_ms", 0),
    expectedOutputTokens: numberOf(quote, "expected_output_tokens", 1),
  };
}

/** `query` as the request would have it that is forwarded after this quote. */
export function quotedQuery(role: LatencyRole, query: RouteQuery, asked: QuoteRequest): RouteQuery {
  return {
    ...query,
    fitTargetMs: role === "decode" ? asked.itlTargetMs : asked.ttftTargetMs,
    expectedOutputTokens: asked.expectedOutputTokens ?? query.expectedOutputTokens,
  };
}

/** Answer of `best_worker_id`, the quote included; throws the refusal when nobody can take it. */
export function quoteJson(
  cost: Pick<LatencyCostOptions, "book" | "gpus">,
  decision: Decision,
  asked: QuoteRequest,
): Record<string, unknown> {
  const { choice } = decision;
  if (choice.outcome === "refused") throw refusalError(choice);
  const terms = termsOf(decision, choice);
  const { ttftMs, itlMs, ownPrefillMs } = terms;
  return {
    worker_id: choice.workerId,
    dp_rank: choice.dpRank,
    overlap_blocks: choice.overlapBlocks,
    quote: {
      version: 1,
      predicted_ttft_ms: ttftMs,
      predicted_itl_ms: itlMs,
      queue_ms: Math.max(0, ttftMs - ownPrefillMs),
      prefill_ms: ownPrefillMs,
      cached_tokens: terms.cachedTokens,
      uncached_tokens: terms.uncachedTokens,
      prefill_gpu_ms: terms.prefillGpuMs,
      decode_gpu_ms: terms.decodeGpuMs,
      gpus: cost.gpus,
      breaks_promise: terms.breaksPromise,
      kv_usage: kvUsageOf(cost, choice.slot),
      ...meetsOf(terms, asked),
      valid_for_ms: validForMs,
      model: modelJson(cost, choice.slot),
    },
  };
}

function termsOf({ candidates }: Decision, { workerId, dpRank }: ChosenWorker): LatencyTerms {
  const own = candidates.find((other) => other.workerId === workerId && other.dpRank === dpRank);
  if (own?.terms?.mode === "latency") return own.terms;
  throw new TiergridError("internal_error", "the chosen worker was not priced in milliseconds");
}

/** Whether the targets are met; nothing without a target. */
function meetsOf(
  { ttftMs, itlMs }: LatencyTerms,
  { ttftTargetMs, itlTargetMs }: QuoteRequest,
): { readonly meets?: boolean } {
  if (ttftTargetMs === undefined && itlTargetMs === undefined) return {};
  const inTime = ttftTargetMs === undefined || latenessMs(ttftMs, ttftTargetMs) === 0;
  return { meets: inTime && (itlTargetMs === undefined || itlMs <= itlTargetMs) };
}

/** Share of the worker's KV memory in use before the request; 0 when its size is not known. */
function kvUsageOf({ book }: Pick<LatencyCostOptions, "book">, slot: number): number {
  const capacityTokens = book.modelAt(slot)?.shape.limits.capacityTokens;
  return capacityTokens === undefined ? 0 : book.activeKvTokens(slot) / capacityTokens;
}

function modelJson(
  { book }: Pick<LatencyCostOptions, "book">,
  slot: number,
): Record<string, unknown> {
  const model = book.modelAt(slot);
  return {
    source: model?.source ?? "default",
    periods: model?.periods ?? 0,
    median_error: model?.medianError ?? 0,
  };
}

function numberOf(
  quote: Readonly<Record<string, unknown>>,
  name: string,
  min: number,
): number | undefined {
  const value = quote[name] ?? undefined;
  if (value === undefined) return undefined;
  if (typeof value === "number" && Number.isFinite(value) && value >= min) return value;
  throw invalid(`quote.${name}`, `a number >= ${min}`, value);
}

function invalid(field: string, expected: string, found: unknown): TiergridError {
  const message = `${field} must be ${expected}, got ${shown(found)}`;
  return new TiergridError("invalid_request", message, { field });
}
