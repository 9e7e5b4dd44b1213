/** From a worker's request to a mock engine's submission, and why one is refused. */
import { TiergridError } from "../base/errors.ts";
import type { BlockHasher } from "../protocol/block-hashes.ts";
import type { EngineRequest } from "./engine.ts";
import type { MockRefusal } from "./mock-engine.ts";
import type { MockEngineConfig } from "./mock-engine-config.ts";
import type { MockHandoff } from "./mock-handoff.ts";
import { readMockHandoff } from "./mock-handoff.ts";
import type { MockSubmission } from "./mock-request.ts";

/** The handoff a decode leg brings, or undefined; throws `invalid_request` for a foreign one. */
export function handoffOf(
  request: EngineRequest,
  config: MockEngineConfig,
): MockHandoff | undefined {
  if (isPrefill(request, config) || !request.prefillResult) return undefined;
  return readMockHandoff(request.prefillResult.disaggregatedParams, request.tokens.length);
}

/** The prompt is hashed here when the request's hashes are not those of the engine's blocks. */
export function submissionOf(
  request: EngineRequest,
  config: MockEngineConfig,
  hasher: BlockHasher,
  arrivedAtMs: number,
): MockSubmission {
  const { tokens, loraName, cacheSalt } = request;
  const lanes = 2 * Math.floor(tokens.length / config.blockSize);
  let { sequenceHashes, localHashes } = request;
  if (sequenceHashes.length !== lanes || localHashes.length !== lanes) {
    const hashes = hasher.hashBlocks(tokens, config.blockSize, { loraName, cacheSalt });
    sequenceHashes = hashes.sequence;
    localHashes = hashes.local;
  }
  return {
    key: request.key,
    arrivedAtMs,
    promptTokens: tokens.length,
    maxOutputTokens: Math.max(1, request.maxOutputTokens),
    sequenceHashes,
    localHashes,
    prefillOnly: isPrefill(request, config),
    transferred: !isPrefill(request, config) && request.prefillResult !== undefined,
  };
}

/** A prefill engine does nothing but prefill legs; any other engine does them when asked. */
function isPrefill(request: EngineRequest, config: MockEngineConfig): boolean {
  return config.workerType === "prefill" || request.role === "prefill";
}

/** The error a refusal becomes. */
export function refuse(
  refusal: MockRefusal,
  tokens: number,
  config: MockEngineConfig,
): TiergridError {
  switch (refusal) {
    case "empty_prompt":
      return new TiergridError("invalid_request", "expected at least one prompt token, got 0");
    case "nothing_to_decode":
      return new TiergridError("invalid_request", "expected room for two output tokens");
    case "queue_full": {
      const max = config.maxWaitingSeqs;
      return new TiergridError("overloaded", `mock engine: ${max} requests wait already`, { max });
    }
    case "prompt_too_long": {
      const max = Math.min(config.maxModelLen - 1, config.numGpuBlocks * config.blockSize);
      const message = `expected a prompt of at most ${max} tokens, got ${tokens}`;
      return new TiergridError("context_length_exceeded", message, { tokens, max });
    }
  }
}
