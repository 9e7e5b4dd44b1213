/** What a mock request says: its token ids, where they stop, and the hashes of their blocks. */
import type { CancelTimer } from "../base/clock.ts";
import type { TiergridError } from "../base/errors.ts";
import type { BlockHasher } from "../protocol/block-hashes.ts";
import type { MockTokenRange } from "../protocol/mock-tokens.ts";
import { mockToken } from "../protocol/mock-tokens.ts";
import type { EngineRequest, StepEnd } from "./engine.ts";
import type { MockEngineConfig } from "./mock-engine-config.ts";
import type { MockHandoff } from "./mock-handoff.ts";
import type { MockRequest } from "./mock-request.ts";

/** A request between `submit` and its end. */
export interface MockEntry {
  readonly request: EngineRequest;
  readonly dpRank: number;
  /** Token 0 of a decode leg, from its handoff. */
  readonly firstToken: number | undefined;
  /** Undefined while its KV is on the way to this engine. */
  core: MockRequest | undefined;
  /** Token 0 has been reported. */
  started: boolean;
  /** Transfer or handoff under way. */
  cancelTimer: CancelTimer | undefined;
}

export class MockOutput {
  readonly #worker: string;
  readonly #blockSize: number;
  readonly #range: MockTokenRange;
  readonly #hasher: BlockHasher;
  readonly #block: Uint32Array;
  readonly #pair = new Uint32Array(4);

  constructor(worker: string, config: MockEngineConfig, hasher: BlockHasher) {
    this.#worker = worker;
    this.#blockSize = config.blockSize;
    this.#range = { idMin: config.tokenIdMin, idCount: config.tokenIdCount };
    this.#hasher = hasher;
    this.#block = new Uint32Array(config.blockSize);
  }

  /** Token at output index `index` (from 0). */
  token(entry: MockEntry, index: number): number {
    if (index === 0 && entry.firstToken !== undefined) return entry.firstToken;
    return mockToken(entry.request.seed, entry.request.tokens.length + index, this.#range);
  }

  /** True when the newest of `generated` output tokens ends the request. */
  stops(entry: MockEntry, generated: number): boolean {
    const { request } = entry;
    if (request.ignoreEos || request.stopTokenIds.length === 0) return false;
    if (generated < request.minOutputTokens) return false;
    return request.stopTokenIds.includes(this.token(entry, generated - 1));
  }

  /** Writes `[localLo, localHi, sequenceLo, sequenceHi]` of a block that holds output tokens. */
  hashBlock(entry: MockEntry, core: MockRequest, block: number, into: Uint32Array): void {
    const { tokens, loraName, cacheSalt } = entry.request;
    const start = block * this.#blockSize;
    for (let i = 0; i < this.#blockSize; i++) {
      const position = start + i;
      this.#block[i] = tokens[position] ?? this.token(entry, position - tokens.length);
    }
    const options = { loraName, cacheSalt };
    const { local } = this.#hasher.hashBlocks(this.#block, this.#blockSize, options);
    into.set(local, 0);
    into.set(local, 2);
    if (block === 0) return;
    this.#pair.set(core.sequenceHashes.subarray(2 * block - 2, 2 * block), 0);
    this.#pair.set(local, 2);
    this.#hasher.chain(this.#pair, 1, 2);
    into.set(this.#pair.subarray(2), 2);
  }

  /** The end of a request as it stands; a prefill leg that ends well carries its handoff. */
  endOf(entry: MockEntry, error?: TiergridError): StepEnd {
    const { request, core } = entry;
    const outputTokens = core?.generated ?? (entry.started ? 1 : 0);
    const reason = this.stops(entry, outputTokens) ? "stop" : "length";
    return {
      key: request.key,
      finishReason: error ? "error" : reason,
      promptTokens: request.tokens.length,
      outputTokens,
      cachedTokens: cachedTokensOf(entry),
      disaggregatedParams: core?.prefillOnly && !error ? this.#handoff(entry) : undefined,
      error,
    };
  }

  #handoff(entry: MockEntry): MockHandoff {
    return {
      engine: "mock",
      worker: this.#worker,
      request: entry.request.key,
      isl: entry.request.tokens.length,
      first_token: this.token(entry, 0),
    };
  }
}

/** Prompt tokens that were not computed: the prefill leg's figure where one is known. */
export function cachedTokensOf({ request, core }: MockEntry): number {
  return request.prefillResult?.cachedTokens ?? Math.max(0, core?.cachedTokens ?? 0);
}
