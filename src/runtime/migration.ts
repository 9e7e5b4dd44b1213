/** A request continued elsewhere: prompt and tokens so far, with what is left of its budget. */
import type { RequestBody, StopConditions } from "../protocol/requests.ts";

export interface MigrationRule {
  /** Migrations one answer may need. */
  readonly limit: number;
  /** Longest prompt and output together that may move. */
  readonly maxSeqTokens?: number;
  /** False when the rest cannot be continued from tokens alone, e.g. guided decoding. */
  readonly allowed: boolean;
}

/** Tokens the answer may still grow by; `Infinity` when the request sets no limit. */
export function tokensLeft(body: RequestBody, made: number): number {
  const max = body.stop_conditions?.max_tokens;
  return max == null ? Number.POSITIVE_INFINITY : Math.max(0, max - made);
}

export function migratedTokens(prompt: Uint32Array, made: readonly number[]): Uint32Array {
  if (made.length === 0) return prompt;
  const tokens = new Uint32Array(prompt.length + made.length);
  tokens.set(prompt);
  tokens.set(made, prompt.length);
  return tokens;
}

/** The body for an answer that has `made` tokens: smaller limits, no result of a prefill. */
export function migratedBody(body: RequestBody, made: number): RequestBody {
  if (made === 0) return body;
  const { prefill_result, ...rest } = body;
  const stop = body.stop_conditions;
  return stop ? { ...rest, stop_conditions: reduced(stop, made) } : rest;
}

function reduced(stop: StopConditions, made: number): StopConditions {
  const { max_tokens, min_tokens } = stop;
  return {
    ...stop,
    ...(max_tokens == null ? {} : { max_tokens: Math.max(0, max_tokens - made) }),
    ...(min_tokens == null ? {} : { min_tokens: Math.max(0, min_tokens - made) }),
  };
}
