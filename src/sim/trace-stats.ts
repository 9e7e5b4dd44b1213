/** What a trace would reach in a cache shared by all workers: the bounds a router is measured by. */
import { type TraceRequest, traceBlockTokens } from "./mooncake-trace.ts";

export interface PrefixHits {
  readonly blocks: number;
  readonly hitBlocks: number;
  readonly tokens: number;
  readonly hitTokens: number;
  /** `hitBlocks / blocks`; 0 for an empty trace. */
  readonly blockHitRatio: number;
  readonly tokenHitRatio: number;
  /** Mean over the requests of the share of their tokens that hit. */
  readonly meanRequestHitRatio: number;
}

/** Hits of a cache that never forgets. */
export function infiniteCacheHits(requests: readonly TraceRequest[]): PrefixHits {
  return prefixHits(requests, Number.POSITIVE_INFINITY);
}

/** Block hit ratio of one LRU cache of `capacityTokens` that serves all requests in order. */
export function pooledLruHitRatio(
  requests: readonly TraceRequest[],
  capacityTokens: number,
): number {
  return prefixHits(requests, Math.floor(capacityTokens / traceBlockTokens)).blockHitRatio;
}

/**
 * Walks each prompt from its start while its blocks are cached, then touches its blocks from last
 * to first, so that the head of a prefix outlives its tail.
 */
export function prefixHits(requests: readonly TraceRequest[], capacityBlocks: number): PrefixHits {
  const cache = new Set<number>();
  let blocks = 0;
  let hitBlocks = 0;
  let tokens = 0;
  let hitTokens = 0;
  let ratios = 0;
  for (const { hashIds, inputTokens } of requests) {
    const miss = hashIds.findIndex((id) => !cache.has(id));
    const hits = miss < 0 ? hashIds.length : miss;
    blocks += hashIds.length;
    hitBlocks += hits;
    tokens += inputTokens;
    const cachedTokens = Math.min(hits * traceBlockTokens, inputTokens);
    hitTokens += cachedTokens;
    ratios += cachedTokens / inputTokens;
    for (const id of hashIds.toReversed()) {
      cache.delete(id);
      cache.add(id);
    }
    for (const oldest of cache) {
      if (cache.size <= capacityBlocks) break;
      cache.delete(oldest);
    }
  }
  return {
    blocks,
    hitBlocks,
    tokens,
    hitTokens,
    blockHitRatio: hitBlocks / Math.max(1, blocks),
    tokenHitRatio: hitTokens / Math.max(1, tokens),
    meanRequestHitRatio: ratios / Math.max(1, requests.length),
  };
}
