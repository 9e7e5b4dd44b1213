/**
 * A worker's load as it publishes it on `tg.ld.<namespace>.<inst>`: one JSON object per data-parallel
 * rank, with the reference's names. An absent field leaves the last value standing.
 */
import { isObject, isU32, type JsonObject } from "./request-body.ts";
import { formatU64, readU64Json } from "./u64.ts";

export interface LoadSample {
  /** u64 as decimal text. */
  readonly workerId: string;
  readonly dpRank: number;
  readonly kvUsedBlocks?: number | undefined;
  readonly activeDecodeBlocks?: number | undefined;
  readonly activePrefillTokens?: number | undefined;
}

const sampleBytesMax = 4096;

export function encodeLoadSample(sample: LoadSample): Uint8Array {
  const wire = {
    worker_id: sample.workerId,
    dp_rank: sample.dpRank,
    kv_used_blocks: sample.kvUsedBlocks,
    active_decode_blocks: sample.activeDecodeBlocks,
    active_prefill_tokens: sample.activePrefillTokens,
  };
  return new TextEncoder().encode(JSON.stringify(wire));
}

/** Undefined for anything that is not a sample; never throws. */
export function decodeLoadSample(payload: Uint8Array): LoadSample | undefined {
  if (payload.length > sampleBytesMax) return undefined;
  let wire: unknown;
  try {
    wire = JSON.parse(new TextDecoder().decode(payload));
  } catch {
    return undefined;
  }
  if (!isObject(wire)) return undefined;
  const worker = readU64Json(wire["worker_id"]);
  const dpRank = wire["dp_rank"] ?? 0;
  if (!worker || !isU32(dpRank)) return undefined;
  return {
    workerId: formatU64(worker.lo, worker.hi),
    dpRank,
    kvUsedBlocks: countOf(wire, "kv_used_blocks"),
    activeDecodeBlocks: countOf(wire, "active_decode_blocks"),
    activePrefillTokens: countOf(wire, "active_prefill_tokens"),
  };
}

function countOf(wire: JsonObject, field: string): number | undefined {
  const value = wire[field];
  return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : undefined;
}
