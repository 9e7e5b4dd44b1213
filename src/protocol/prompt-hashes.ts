/**
 * Hashes of a request's prompt as every router names it: its media expanded, its LoRA, salt and
 * objects in the hashes. What one router hashes, another can be asked about (`hash-frame.ts`).
 */
import type { BlockHasher, BlockHashes } from "./block-hashes.ts";
import { readMmRouting } from "./mm-hash.ts";
import type { RoutedBody } from "./requests.ts";

export interface PromptHashes extends BlockHashes {
  /** Tokens of the prompt that routing sees: the request's own, or with its media expanded. */
  readonly islTokens: number;
}

/** Hashes of the full blocks of `tokens`; throws `invalid_request` naming a wrong field. */
export function hashPrompt(
  hasher: Pick<BlockHasher, "hashBlocks">,
  body: RoutedBody,
  tokens: Uint32Array,
  blockSize: number,
): PromptHashes {
  const media = readMmRouting(body.mm_routing_info);
  const seen = media.tokens ?? tokens;
  const hashes = hasher.hashBlocks(seen, blockSize, {
    loraName: body.routing?.lora_name ?? undefined,
    cacheSalt: body.routing?.cache_salt ?? undefined,
    mmInfos: media.mmInfos,
  });
  return { islTokens: seen.length, ...hashes };
}
