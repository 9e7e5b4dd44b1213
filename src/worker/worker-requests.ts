/** From a dispatch to what the engine is asked, or why this worker cannot take it. */
import { TiergridError } from "../base/errors.ts";
import { type Dispatch, islTokensOf, type PrefillResultBody } from "../protocol/requests.ts";
import type { EngineCard, EngineLoad, EngineRequest, PrefillResult } from "./engine.ts";

/** Output of a request that names no limit, on an engine without a context limit. */
export const outputTokensMax = 0x7fff_ffff;

const noHashes = new Uint32Array(0);

/**
 * Throws `invalid_request` for a leg this engine does not serve and `context_length_exceeded` for a
 * prompt that leaves no room for a token; sizes that only the engine knows are left to it.
 */
export function checkDispatch({ envelope, prompt }: Dispatch, card: EngineCard): void {
  const { role, contextLength } = card;
  const tokens = islTokensOf(prompt);
  if (tokens === 0) {
    throw new TiergridError("invalid_request", "expected at least one prompt token, got 0");
  }
  if (role !== "aggregated" && (role === "prefill") !== (envelope.phase === "prefill")) {
    const message = `this worker serves ${role}, the request is for ${envelope.phase}`;
    throw new TiergridError("invalid_request", message, { role, phase: envelope.phase });
  }
  if (contextLength !== undefined && tokens >= contextLength) {
    const max = contextLength - 1;
    const message = `expected a prompt of at most ${max} tokens, got ${tokens}`;
    throw new TiergridError("context_length_exceeded", message, { tokens, max });
  }
}

/** Where a request runs: its key in the worker, and the rank. */
export interface EnginePlace {
  readonly key: number;
  readonly dpRank: number;
}

/** The engine's form of a checked dispatch. The engine hashes blocks itself if it needs hashes. */
export function engineRequestOf(
  { envelope, body }: Pick<Dispatch, "envelope" | "body">,
  tokens: Uint32Array,
  { key, dpRank }: EnginePlace,
  card: EngineCard,
): EngineRequest {
  const stop = body.stop_conditions ?? {};
  const { routing } = body;
  const roomTokens = (card.contextLength ?? outputTokensMax) - tokens.length;
  return {
    key,
    tokens,
    sequenceHashes: noHashes,
    localHashes: noHashes,
    loraName: routing?.lora_name ?? undefined,
    cacheSalt: routing?.cache_salt ?? undefined,
    maxOutputTokens: Math.min(stop.max_tokens ?? outputTokensMax, Math.max(1, roomTokens)),
    minOutputTokens: stop.min_tokens ?? 0,
    seed: body.sampling_options?.seed ?? Number.parseInt(envelope.rid.slice(0, 8), 16),
    stopTokenIds: stop.stop_token_ids ?? [],
    ignoreEos: stop.ignore_eos ?? false,
    dpRank,
    role: envelope.phase,
    prefillResult: envelope.phase === "decode" ? prefillResultOf(body.prefill_result) : undefined,
    priorityJumpSeconds: routing?.priority_jump ?? 0,
  };
}

/** The rank a request names, else the one with the fewest requests, the lowest on ties. */
export function rankOf({ body }: Dispatch, loads: readonly EngineLoad[], card: EngineCard): number {
  const named = body.routing?.dp_rank ?? undefined;
  if (named !== undefined) return named;
  let least: EngineLoad | undefined;
  for (const load of loads) {
    if (!least || load.running + load.waiting < least.running + least.waiting) least = load;
  }
  return least?.dpRank ?? card.dpStart;
}

function prefillResultOf(body: PrefillResultBody | null | undefined): PrefillResult | undefined {
  if (!body) return undefined;
  return {
    disaggregatedParams: body.disaggregated_params,
    cachedTokens: body.prompt_tokens_details?.cached_tokens ?? undefined,
  };
}
