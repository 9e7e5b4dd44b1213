/**
 * KV events: what a worker's cache did, as routers learn it. One numbered sequence per (worker, dp
 * rank): ids from 0, +1 each. Hashes are (lo, hi) pairs of u32 in one array, ready for the index.
 *
 * JSON keeps the reference's names; a u64 is a decimal string (a safe integer is accepted):
 *
 *   { worker_id, storage_tier?, state_source?, event: { event_id, dp_rank?, data } }
 *   data = { stored: { parent_hash, blocks: [{ block_hash, tokens_hash }] } }
 *        | { removed: { block_hashes } } | "cleared"
 */
import { TiergridError } from "../base/errors.ts";
import { formatU64, readU64Json, type U64 } from "./u64.ts";

export const storageTiers = ["device", "host_pinned", "disk", "external"] as const;
export type StorageTier = (typeof storageTiers)[number];

export interface StoredEvent {
  readonly type: "stored";
  readonly eventId: number;
  readonly tier: StorageTier;
  /** Engine hash of the block before the first one; undefined = the first starts a sequence. */
  readonly parent: U64 | undefined;
  /** Four words per block: local hash lo, hi, engine hash lo, hi. */
  readonly blocks: Uint32Array;
}

export interface RemovedEvent {
  readonly type: "removed";
  readonly eventId: number;
  readonly tier: StorageTier;
  /** Two words per block: engine hash lo, hi. */
  readonly hashes: Uint32Array;
}

/** All blocks of the emitting rank are gone, in every tier. */
export interface ClearedEvent {
  readonly type: "cleared";
  readonly eventId: number;
}

export type KvEvent = StoredEvent | RemovedEvent | ClearedEvent;

/** Events of one (worker, dp rank), in order. */
export interface KvEventBatch {
  /** u64 as decimal text. */
  readonly workerId: string;
  readonly dpRank: number;
  /** Names the publishing process life; a changed value means a restart. "" = not told. */
  readonly stateSource: string;
  readonly events: readonly KvEvent[];
}

/** One event as the reference's JSON object. */
export function kvEventToJson(batch: Omit<KvEventBatch, "events">, event: KvEvent): object {
  const { workerId, dpRank, stateSource } = batch;
  const tier = event.type === "cleared" ? "device" : event.tier;
  return {
    worker_id: workerId,
    ...(tier === "device" ? {} : { storage_tier: tier }),
    ...(stateSource === "" ? {} : { state_source: stateSource }),
    event: { event_id: event.eventId, dp_rank: dpRank, data: payloadToJson(event) },
  };
}

/** Reads one JSON event. Throws `malformed_reply` for anything that is not one. */
export function kvEventFromJson(value: unknown): KvEventBatch {
  const outer = asObject(value, "a KV event");
  const inner = asObject(outer["event"], "event");
  const tier = outer["storage_tier"] ?? "device";
  if (!isStorageTier(tier)) throw malformed("storage_tier", "a known tier", tier);
  const stateSource = outer["state_source"] ?? "";
  if (typeof stateSource !== "string") throw malformed("state_source", "a string", stateSource);
  const workerId = readHash(outer["worker_id"], "worker_id");
  const dpRank = inner["dp_rank"] ?? 0;
  if (!isU32(dpRank)) throw malformed("dp_rank", "an unsigned 32-bit integer", dpRank);
  const eventId = inner["event_id"];
  if (!isEventId(eventId)) throw malformed("event_id", "a safe integer >= 0", eventId);
  return {
    workerId: formatU64(workerId.lo, workerId.hi),
    dpRank,
    stateSource,
    events: [payloadFromJson(inner["data"], eventId, tier)],
  };
}

function payloadToJson(event: KvEvent): unknown {
  switch (event.type) {
    case "cleared":
      return "cleared";
    case "removed":
      return { removed: { block_hashes: textsOf(event.hashes, 0, 2) } };
    case "stored": {
      const locals = textsOf(event.blocks, 0, 4);
      const names = textsOf(event.blocks, 2, 4);
      return {
        stored: {
          parent_hash: event.parent ? formatU64(event.parent.lo, event.parent.hi) : null,
          blocks: names.map((name, i) => ({ block_hash: name, tokens_hash: locals[i] })),
        },
      };
    }
  }
}

function payloadFromJson(data: unknown, eventId: number, tier: StorageTier): KvEvent {
  if (data === "cleared") return { type: "cleared", eventId };
  const payload = asObject(data, "data");
  if (payload["removed"] !== undefined) {
    const { block_hashes: texts } = asObject(payload["removed"], "removed");
    const hashes = asArray(texts, "block_hashes").map((hash) => readHash(hash, "block_hashes"));
    return { type: "removed", eventId, tier, hashes: lanesOf(hashes) };
  }
  const stored = asObject(payload["stored"], "stored");
  const blocks = asArray(stored["blocks"], "blocks").flatMap((entry) => {
    const block = asObject(entry, "blocks");
    const local = readHash(block["tokens_hash"], "tokens_hash");
    return [local, readHash(block["block_hash"], "block_hash")];
  });
  const parent = stored["parent_hash"] ?? undefined;
  return {
    type: "stored",
    eventId,
    tier,
    parent: parent === undefined ? undefined : readHash(parent, "parent_hash"),
    blocks: lanesOf(blocks),
  };
}

function lanesOf(hashes: readonly U64[]): Uint32Array {
  const lanes = new Uint32Array(2 * hashes.length);
  hashes.forEach(({ lo, hi }, i) => {
    lanes[2 * i] = lo;
    lanes[2 * i + 1] = hi;
  });
  return lanes;
}

function textsOf(lanes: Uint32Array, first: number, width: number): string[] {
  const texts: string[] = [];
  for (let word = first; word + 1 < lanes.length; word += width) {
    texts.push(formatU64(lanes[word] ?? 0, lanes[word + 1] ?? 0));
  }
  return texts;
}

function readHash(value: unknown, field: string): U64 {
  const hash = readU64Json(value);
  if (!hash) throw malformed(field, "a u64 as decimal string or safe integer", value);
  return hash;
}

function isStorageTier(value: unknown): value is StorageTier {
  return storageTiers.some((tier) => tier === value);
}

function isU32(value: unknown): value is number {
  return typeof value === "number" && value >>> 0 === value;
}

function isEventId(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

function asObject(value: unknown, field: string): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw malformed(field, "an object", value);
  }
  return value as Record<string, unknown>;
}

function asArray(value: unknown, field: string): readonly unknown[] {
  if (!Array.isArray(value)) throw malformed(field, "an array", value);
  return value;
}

function malformed(field: string, expected: string, got: unknown): TiergridError {
  const text = typeof got === "string" ? JSON.stringify(got.slice(0, 60)) : typeof got;
  return new TiergridError("malformed_reply", `${field}: expected ${expected}, got ${text}`);
}
