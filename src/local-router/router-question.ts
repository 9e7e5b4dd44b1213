/**
 * What a question to the router asks about: a prompt as tokens (JSON, packed, or a bare array) or as
 * hashes, with its hints where `generate` has them.
 */
import { TiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import { decodeHashQuestion } from "../protocol/hash-frame.ts";
import { isObject } from "../protocol/request-body.ts";
import { decodeDispatch } from "../protocol/request-frame.ts";
import type { Prompt, RequestBody, RoutingHints } from "../protocol/requests.ts";
import type { BusMessage } from "../runtime/bus.ts";
import { type PoolRules, type RouteQuery, readRouteQuery } from "./route-query.ts";
import { type Excluded, nothingExcluded } from "./worker-choice.ts";

export interface Question {
  readonly body: RequestBody;
  /** Hashes the prompt; throws `invalid_request` when the question has none, or a wrong one. */
  readonly query: () => RouteQuery;
  readonly excluded: Excluded;
  /** True for a bare array of token ids. */
  readonly bare: boolean;
}

/** Reads a question; throws `invalid_request` saying what was expected. */
export function readQuestion(rules: PoolRules, message: BusMessage, random: Random): Question {
  const { payload, reply } = message;
  const bare = payload[0] === openingBracket;
  const hashed = bare ? undefined : decodeHashQuestion(payload);
  if (hashed) {
    checkBlocks(hashed, rules.blockSize);
    const { islTokens, localHashes } = hashed;
    const { blockSize } = rules;
    return questionOf(rules, hashed.body, { type: "hashes", islTokens, blockSize, localHashes });
  }
  const promptless = bare ? undefined : promptlessBody(payload);
  if (promptless) return questionOf(rules, promptless, undefined);
  const dispatch = decodeDispatch({ payload: bare ? wrapped(payload) : payload, reply }, random);
  const { body, prompt, envelope } = dispatch;
  const excluded = { ...nothingExcluded, avoid: envelope.avoid };
  return { ...questionOf(rules, body, prompt), excluded, bare };
}

function questionOf(rules: PoolRules, body: RequestBody, prompt: Prompt | undefined): Question {
  const query = (): RouteQuery => {
    if (prompt) return readRouteQuery(rules, { phase: rules.role, body: lowered(body), prompt });
    const message = "token_ids must be a non-empty array of integers, got nothing";
    throw new TiergridError("invalid_request", message, { field: "token_ids" });
  };
  return { body, query, excluded: nothingExcluded, bare: false };
}

function checkBlocks(
  { blockSize, islTokens, localHashes }: NonNullable<ReturnType<typeof decodeHashQuestion>>,
  poolBlockSize: number,
): void {
  if (blockSize !== undefined && blockSize !== poolBlockSize) {
    const message = `hashes of ${blockSize}-token blocks, this pool has ${poolBlockSize}`;
    throw new TiergridError("invalid_request", message, { field: "block_size" });
  }
  const blocks = Math.floor(islTokens / poolBlockSize);
  if (localHashes.length === 2 * blocks) return;
  const hashes = localHashes.length / 2;
  const message = `${islTokens} tokens are ${blocks} full blocks, got ${hashes} hashes`;
  throw new TiergridError("invalid_request", message, { field: "local_hashes" });
}

/** A JSON object without a prompt, as the later calls of `route` are. */
function promptlessBody(payload: Uint8Array): RequestBody | undefined {
  if (payload[0] !== openingBrace || payload.length > promptlessBytesMax) return undefined;
  try {
    const json: unknown = JSON.parse(new TextDecoder().decode(payload));
    return isObject(json) && json["token_ids"] === undefined ? (json as RequestBody) : undefined;
  } catch {
    // Not JSON: the reader of requests says what it expected.
    return undefined;
  }
}

const promptlessBytesMax = 4096;
const openingBracket = 0x5b;
const openingBrace = 0x7b;

function wrapped(tokenIds: Uint8Array): Uint8Array {
  return Buffer.concat([Buffer.from('{"token_ids":'), tokenIds, Buffer.from("}")]);
}

/** The request with its top-level hints where `generate` has them. */
function lowered(body: RequestBody): RequestBody {
  const { lora_name, cache_salt, cache_namespace, allowed_worker_ids } = body as RoutingHints & {
    readonly cache_namespace?: string | null;
  };
  const hints: RoutingHints = {
    ...body.routing,
    ...(lora_name ? { lora_name } : {}),
    ...(cache_salt || cache_namespace ? { cache_salt: cache_salt ?? cache_namespace ?? null } : {}),
    ...(allowed_worker_ids ? { allowed_worker_ids } : {}),
  };
  for (const text of [hints.lora_name, hints.cache_salt]) {
    if (text === undefined || text === null || typeof text === "string") continue;
    throw new TiergridError("invalid_request", "lora_name and cache_salt must be strings");
  }
  if (hints.allowed_worker_ids && !Array.isArray(hints.allowed_worker_ids)) {
    throw new TiergridError("invalid_request", "allowed_worker_ids must be an array");
  }
  const { block_mm_infos: blockMmInfos } = body;
  if (blockMmInfos === undefined || blockMmInfos === null) return { ...body, routing: hints };
  const media = isObject(body["mm_routing_info"]) ? body["mm_routing_info"] : {};
  const mm_routing_info = { ...media, block_mm_infos: blockMmInfos };
  return { ...body, routing: hints, mm_routing_info };
}
