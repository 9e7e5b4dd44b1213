/** The handoff of a mock prefill leg to a decode leg: its object and its time. */
import { TiergridError } from "../base/errors.ts";
import type { MockEngineCore } from "./mock-engine.ts";
import type { MockEngineConfig } from "./mock-engine-config.ts";
import type { MockSubmission } from "./mock-request.ts";

/** Opaque to everyone but a mock decode engine. */
export interface MockHandoff {
  readonly engine: "mock";
  readonly worker: string;
  readonly request: number;
  readonly isl: number;
  readonly first_token: number;
}

/**
 * Time to move the KV of `tokens` tokens: bytes / bandwidth / speed-up, but no longer than the
 * session may last; 0 ms when bytes or bandwidth are not set.
 */
export function handoffDelayMs(config: MockEngineConfig, tokens: number): number {
  if (config.kvTransferGbPerSecond === 0) return 0;
  const ms = (tokens * config.kvBytesPerToken) / (config.kvTransferGbPerSecond * 1e6);
  return Math.min(ms / config.speedupRatio, config.handoffSessionTimeoutMs);
}

/**
 * With `destination_missing` a decode leg first waits, in ms, for the tokens of the blocks that its
 * engine does not have; otherwise the prefill leg has waited for the whole prompt.
 */
export function missingTransferMs(
  config: MockEngineConfig,
  core: MockEngineCore,
  { sequenceHashes, promptTokens }: MockSubmission,
): number {
  if (config.kvTransferTimingMode === "full_prompt") return 0;
  const hashedBlocks = sequenceHashes.length >> 1;
  const hits = core.cachedBlocks({ sequenceHashes, hashedBlocks, length: promptTokens + 1 });
  return handoffDelayMs(config, Math.max(0, promptTokens - hits * config.blockSize));
}

/** Checks what a decode leg brings for a prompt of `promptTokens`; throws `invalid_request`. */
export function readMockHandoff(params: unknown, promptTokens: number): MockHandoff {
  if (typeof params === "object" && params !== null) {
    const handoff = params as Partial<MockHandoff>;
    const { engine, isl, first_token } = handoff;
    if (engine === "mock" && isl === promptTokens && Number.isSafeInteger(first_token)) {
      return handoff as MockHandoff;
    }
  }
  const got = JSON.stringify(params)?.slice(0, 200);
  throw new TiergridError(
    "invalid_request",
    `disaggregated_params: expected a mock handoff of ${promptTokens} tokens, got ${got}`,
  );
}
