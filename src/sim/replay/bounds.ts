/** What no router can pass: hit ratios of better caches, and prompts no engine computes in time. */
import type { MockEngineConfig } from "../../worker/mock-engine-config.ts";
import type { TraceRequest } from "../mooncake-trace.ts";
import { traceBlockTokens } from "../mooncake-trace.ts";
import { prefixHits } from "../trace-stats.ts";
import { rounded } from "./run-summary.ts";

export interface ReplayBounds {
  /** Tokens that hit in one LRU cache as large as all workers' together: a yardstick. */
  readonly pooled_lru_hit_ratio: number;
  readonly infinite_cache_hit_ratio: number;
  /** Share of the requests whose prefill alone is too long on an idle engine. */
  readonly floor: {
    readonly ttft_ms: number;
    readonly empty_cache: number;
    readonly infinite_cache: number;
  }[];
}

export interface BoundOptions {
  readonly requests: readonly TraceRequest[];
  readonly engine: MockEngineConfig;
  readonly workers: number;
  /** Targets of the first token. */
  readonly ttftMs: readonly number[];
}

export function boundsOf({ requests, engine, workers, ttftMs }: BoundOptions): ReplayBounds {
  const capacityTokens = workers * engine.numGpuBlocks * engine.blockSize;
  const pooled = prefixHits(requests, Math.floor(capacityTokens / traceBlockTokens));
  const infinite = prefixHits(requests, Number.POSITIVE_INFINITY);
  const cached = infinitelyCached(requests, engine.blockSize);
  const share = (isLate: (request: TraceRequest, place: number) => boolean): number =>
    rounded(requests.filter(isLate).length / Math.max(1, requests.length));
  return {
    pooled_lru_hit_ratio: rounded(pooled.tokenHitRatio),
    infinite_cache_hit_ratio: rounded(infinite.tokenHitRatio),
    floor: ttftMs.map((targetMs) => ({
      ttft_ms: targetMs,
      empty_cache: share(({ inputTokens }) => idlePrefillMs(engine, inputTokens, 0) > targetMs),
      infinite_cache: share(
        ({ inputTokens }, place) =>
          idlePrefillMs(engine, inputTokens, cached[place] ?? 0) > targetMs,
      ),
    })),
  };
}

/** Prefill of one prompt alone on an idle engine, chunk by chunk, without decode steps. */
export function idlePrefillMs(
  { perf, maxNumBatchedTokens, speedupRatio }: MockEngineConfig,
  inputTokens: number,
  cachedTokens: number,
): number {
  let ms = 0;
  for (let done = cachedTokens; done < inputTokens; ) {
    const tokens = Math.min(inputTokens - done, maxNumBatchedTokens);
    ms += perf.prefillMs(tokens, tokens * (done + tokens / 2));
    done += tokens;
  }
  return ms / speedupRatio;
}

/** Tokens of each prompt in full blocks that an earlier request had; the last token never counts. */
function infinitelyCached(requests: readonly TraceRequest[], blockSize: number): number[] {
  const seen = new Set<number>();
  return requests.map(({ hashIds, inputTokens }) => {
    const miss = hashIds.findIndex((id) => !seen.has(id));
    const tokens = (miss < 0 ? hashIds.length : miss) * traceBlockTokens;
    for (const id of hashIds) seen.add(id);
    return Math.min(tokens, Math.floor((inputTokens - 1) / blockSize) * blockSize);
  });
}
