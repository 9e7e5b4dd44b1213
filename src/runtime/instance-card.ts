/**
 * What an instance says of itself in every heartbeat: JSON with snake_case fields on the wire.
 * Unknown fields are ignored, so that a newer release can add some.
 */
import { type HeartbeatKind, subjectToken } from "../protocol/subjects.ts";

export type CardKind = HeartbeatKind;
export type CardRole = "prefill" | "decode" | "aggregated";
export type CardState = "starting" | "ready" | "draining";

export interface CardLoad {
  readonly running: number;
  readonly waiting: number;
  readonly kvUsedBlocks: number;
}

/** Fingerprint of one rank's cached blocks, to notice an index that has drifted. */
export interface RankDigest {
  readonly dpRank: number;
  readonly blockCount: number;
  /** XOR of the mixed block hashes, 16 hex digits. */
  readonly xor: string;
}

export interface InstanceCard {
  readonly inst: string;
  /** One life of the process: 16 random hex digits. */
  readonly epoch: string;
  readonly kind: CardKind;
  readonly namespace: string;
  readonly component: string;
  readonly endpoint: string;
  readonly model: string;
  readonly role: CardRole;
  /** Decimal u64; equals `inst` for workers. */
  readonly workerId: string;
  readonly dpStart: number;
  readonly dpSize: number;
  /** Tokens of one KV block. */
  readonly blockSize: number;
  readonly totalKvBlocks: number;
  readonly maxNumBatchedTokens: number;
  /** Tokens. */
  readonly contextLength: number;
  readonly state: CardState;
  readonly protocolVersions: readonly number[];
  /** True when the engine's block hashes are the router's own sequence hashes. */
  readonly identityHashes: boolean;
  /** True when the worker publishes KV events. */
  readonly kvEvents: boolean;
  /**
   * Tokens per block of the hashes that this instance takes in place of a prompt; of routers, all
   * that they would send it to take them too. Absent = prompts as tokens only.
   */
  readonly promptHashes?: number | undefined;
  /** Of a worker: what requests may require or prefer of it; absent = none. */
  readonly taints?: readonly string[];
  /** Of a worker: profile of its engine, as `readPerfModel` takes it; absent = not known. */
  readonly perfModel?: unknown;
  readonly load?: CardLoad;
  /** Of a local router: workers it accepts for selection. */
  readonly workersReady?: number;
  /** In some heartbeats only. */
  readonly digests?: readonly RankDigest[];
}

export interface Heartbeat {
  readonly card: InstanceCard;
  /** True in an instance's last words. */
  readonly goodbye: boolean;
}

const cardBytesMax = 65_536;
const protocolVersionsMax = 16;
const digestsMax = 1024;
const taintsMax = 64;
const kinds: readonly CardKind[] = ["w", "local", "global", "frontend"];
const roles: readonly CardRole[] = ["prefill", "decode", "aggregated"];
const states: readonly CardState[] = ["starting", "ready", "draining"];

export function encodeHeartbeat({ card, goodbye }: Heartbeat): Uint8Array {
  const { load, digests } = card;
  const wire = {
    inst: card.inst,
    epoch: card.epoch,
    kind: card.kind,
    namespace: card.namespace,
    component: card.component,
    endpoint: card.endpoint,
    model: card.model,
    role: card.role,
    worker_id: card.workerId,
    dp_start: card.dpStart,
    dp_size: card.dpSize,
    block_size: card.blockSize,
    total_kv_blocks: card.totalKvBlocks,
    max_num_batched_tokens: card.maxNumBatchedTokens,
    context_length: card.contextLength,
    state: card.state,
    protocol_versions: card.protocolVersions,
    identity_hashes: card.identityHashes,
    kv_events: card.kvEvents,
    prompt_hashes: card.promptHashes,
    taints: card.taints,
    perf_model: card.perfModel,
    workers_ready: card.workersReady,
    load: load && {
      running: load.running,
      waiting: load.waiting,
      kv_used_blocks: load.kvUsedBlocks,
    },
    digests: digests?.map(({ dpRank, blockCount, xor }) => ({
      dp_rank: dpRank,
      block_count: blockCount,
      xor,
    })),
    goodbye: goodbye || undefined,
  };
  return new TextEncoder().encode(JSON.stringify(wire));
}

/** Undefined for anything that is not a heartbeat; never throws. */
export function decodeHeartbeat(payload: Uint8Array): Heartbeat | undefined {
  if (payload.length > cardBytesMax) return undefined;
  try {
    const wire: unknown = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(payload));
    const fields = asFields(wire);
    return { card: cardOf(fields), goodbye: fields["goodbye"] === true };
  } catch {
    return undefined;
  }
}

const loadOpens = ',"load":{';
const closeBrace = 0x7d;

/**
 * A copy of what a heartbeat says besides load, for `repeats`: the bytes until a load that is its
 * last field, or all of them.
 */
export function steadyPart(payload: Uint8Array): Uint8Array {
  return new Uint8Array(payload.subarray(0, steadyLength(payload)));
}

/** True when a heartbeat of that steady part is followed by one that differs in load at most. */
export function repeats(steady: Uint8Array, payload: Uint8Array): boolean {
  const { length } = steady;
  if (payload.at(-1) !== closeBrace || payload.length < length) return false;
  if (Buffer.compare(payload.subarray(0, length), steady) !== 0) return false;
  return steadyLength(payload) === length;
}

/** A load within another field ends before the heartbeat does. */
function steadyLength({ buffer, byteOffset, length }: Uint8Array): number {
  const bytes = Buffer.from(buffer, byteOffset, length);
  const at = bytes.lastIndexOf(loadOpens, undefined, "latin1");
  const isLast = at >= 0 && bytes.indexOf("}}", at, "latin1") === length - 2;
  return isLast ? at + loadOpens.length : length;
}

type Fields = Readonly<Record<string, unknown>>;

/** The readers below throw on a wrong form; `decodeHeartbeat` turns that into undefined. */
function cardOf(fields: Fields): InstanceCard {
  const inst = text(fields, "inst");
  subjectToken(inst);
  const epoch = text(fields, "epoch");
  const workerId = text(fields, "worker_id");
  if (!/^[0-9a-f]{16}$/.test(epoch) || !/^\d{1,20}$/.test(workerId)) throw wrong;
  const { load, digests, taints, perf_model: perfModel, workers_ready: workersReady } = fields;
  const { prompt_hashes: promptHashes } = fields;
  return {
    inst,
    epoch,
    kind: oneOf(kinds, fields["kind"]),
    namespace: text(fields, "namespace"),
    component: text(fields, "component"),
    endpoint: text(fields, "endpoint"),
    model: text(fields, "model"),
    role: oneOf(roles, fields["role"]),
    workerId,
    dpStart: count(fields, "dp_start"),
    dpSize: count(fields, "dp_size"),
    blockSize: count(fields, "block_size"),
    totalKvBlocks: count(fields, "total_kv_blocks"),
    maxNumBatchedTokens: count(fields, "max_num_batched_tokens"),
    contextLength: count(fields, "context_length"),
    state: oneOf(states, fields["state"]),
    protocolVersions: list(fields["protocol_versions"], protocolVersionsMax).map(asCount),
    identityHashes: fields["identity_hashes"] === true,
    kvEvents: fields["kv_events"] === true,
    ...(promptHashes === undefined ? {} : { promptHashes: asCount(promptHashes) }),
    ...(taints === undefined ? {} : { taints: list(taints, taintsMax).map(asText) }),
    ...(perfModel === undefined ? {} : { perfModel }),
    ...(load === undefined ? {} : { load: loadOf(asFields(load)) }),
    ...(workersReady === undefined ? {} : { workersReady: asCount(workersReady) }),
    ...(digests === undefined
      ? {}
      : { digests: list(digests, digestsMax).map((digest) => digestOf(asFields(digest))) }),
  };
}

function loadOf(fields: Fields): CardLoad {
  return {
    running: count(fields, "running"),
    waiting: count(fields, "waiting"),
    kvUsedBlocks: count(fields, "kv_used_blocks"),
  };
}

function digestOf(fields: Fields): RankDigest {
  const xor = text(fields, "xor");
  if (!/^[0-9a-f]{16}$/.test(xor)) throw wrong;
  return { dpRank: count(fields, "dp_rank"), blockCount: count(fields, "block_count"), xor };
}

const wrong = new Error("not a heartbeat");

function asFields(value: unknown): Fields {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw wrong;
  return value as Fields;
}

function text(fields: Fields, name: string): string {
  return asText(fields[name]);
}

function asText(value: unknown): string {
  if (typeof value !== "string" || value.length > 1024) throw wrong;
  return value;
}

function count(fields: Fields, name: string): number {
  return asCount(fields[name]);
}

function asCount(value: unknown): number {
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0) throw wrong;
  return value;
}

function oneOf<T extends string>(known: readonly T[], value: unknown): T {
  const found = known.find((candidate) => candidate === value);
  if (found === undefined) throw wrong;
  return found;
}

function list(value: unknown, max: number): readonly unknown[] {
  if (!Array.isArray(value) || value.length > max) throw wrong;
  return value;
}
