/** What a request asks of a pool, read once: hashes, constraints, settings. */
import { TiergridError } from "../base/errors.ts";
import type { KvRouterConfig, RouterConfigOverride } from "../config/kv-router-config.ts";
import { choiceSettings, parseRouterConfigOverride } from "../config/kv-router-config.ts";
import type { ChoiceSettings, WorkerPolicy } from "../core/decision.ts";
import type { WorkerConstraints } from "../core/worker-roster.ts";
import type { BlockHasher } from "../protocol/block-hashes.ts";
import { isObject, isU32, shown } from "../protocol/request-body.ts";
import type { Phase, RequestBody, RoutingHints } from "../protocol/requests.ts";
import { formatU64, readU64Json } from "../protocol/u64.ts";
import type { CardRole } from "../runtime/instance-card.ts";

/** What holds for every request of the pool. */
export interface PoolRules {
  readonly role: CardRole;
  readonly blockSize: number;
  readonly policy: WorkerPolicy;
  readonly config: KvRouterConfig;
  readonly blockHasher: BlockHasher;
}

export interface RouteQuery {
  readonly islTokens: number;
  /** Full blocks of the prompt; a trailing partial one is not matched. */
  readonly blocks: number;
  /** Sequence hashes of the full blocks, lanes interleaved. */
  readonly sequence: Uint32Array;
  /** Those of them to book; empty when blocks are not tracked, or are private. */
  readonly tracked: Uint32Array;
  /** Full blocks to book that nobody can share. */
  readonly privateBlocks: number;
  readonly constraints: WorkerConstraints;
  readonly expectedOutputTokens: number | undefined;
  readonly settings: ChoiceSettings;
}

export interface RouteRequest {
  readonly phase: Phase;
  readonly body: RequestBody;
  readonly tokens: Uint32Array;
}

/** Throws `invalid_request` naming the field; `not_implemented` for a query-only request. */
export function readRouteQuery(rules: PoolRules, request: RouteRequest): RouteQuery {
  const { body, tokens, phase } = request;
  if (body.annotations?.some(isQueryOnly)) {
    const message = "query_instance_id is not supported; ask best_worker_id or explain";
    throw new TiergridError("not_implemented", message);
  }
  const override = overrideOf(body);
  const { blockSize, policy, role, config, blockHasher } = rules;
  const { blocks, sequence } = blockHasher.hashBlocks(tokens, blockSize, {
    loraName: body.routing?.lora_name ?? undefined,
    cacheSalt: body.routing?.cache_salt ?? undefined,
  });
  // Nothing is generated in a prefill pool, so its blocks are not held.
  const tracks = config.routerTrackActiveBlocks && role !== "prefill";
  const reuses = override.assumeKvReuse ?? config.routerAssumeKvReuse;
  return {
    islTokens: tokens.length,
    blocks,
    sequence,
    tracked: tracks && reuses ? sequence : none,
    privateBlocks: tracks && !reuses ? blocks : 0,
    constraints: constraintsOf(body, phase),
    expectedOutputTokens: body.routing?.expected_output_tokens ?? undefined,
    settings: choiceSettings(config, override, {
      blockSize,
      policy,
      decodeOnly: role === "decode",
    }),
  };
}

const none = new Uint32Array(0);

function isQueryOnly(annotation: string): boolean {
  return annotation === "query_instance_id" || annotation.startsWith("query_instance_id:");
}

function overrideOf(body: RequestBody): RouterConfigOverride {
  const parsed = parseRouterConfigOverride(body.router_config_override);
  if (parsed.ok) return parsed.override;
  const [first] = parsed.faults;
  const field = `router_config_override${(first?.pointer ?? "").replaceAll("/", ".")}`;
  const message = `${field}: ${first?.message ?? "not an override"}`;
  throw new TiergridError("invalid_request", message, { field });
}

function constraintsOf(body: RequestBody, phase: Phase): WorkerConstraints {
  const routing = body.routing ?? {};
  const allowed = routing.allowed_worker_ids;
  return {
    allowedWorkerIds: allowed ? new Set(allowed.map(workerIdOf)) : undefined,
    pinnedWorkerId: pinnedOf(routing, phase),
    dpRank: dpRankOf(body, phase),
    requiredTaints: requiredTaintsOf(routing),
  };
}

function pinnedOf(routing: RoutingHints, phase: Phase): string | undefined {
  const own = {
    prefill: routing.prefill_worker_id,
    decode: routing.decode_worker_id,
    aggregated: undefined,
  }[phase];
  const pinned = own ?? routing.backend_instance_id ?? undefined;
  return pinned === undefined ? undefined : workerIdOf(pinned);
}

/** In the prefill phase `dp_rank` is the later decode's. The top-level field is an older spelling. */
function dpRankOf(body: RequestBody, phase: Phase): number | undefined {
  const { routing } = body;
  if (phase === "prefill") return routing?.prefill_dp_rank ?? undefined;
  const dpRank = routing?.dp_rank ?? body["dp_rank"] ?? undefined;
  if (dpRank === undefined || isU32(dpRank)) return dpRank;
  throw invalid("dp_rank", "an integer in [0, 4294967295]", dpRank);
}

function requiredTaintsOf(routing: RoutingHints): readonly string[] | undefined {
  const constraints = (routing as Readonly<Record<string, unknown>>)["routing_constraints"];
  if (constraints === undefined || constraints === null) return undefined;
  if (!isObject(constraints))
    throw invalid("routing.routing_constraints", "an object", constraints);
  const taints = constraints["required_taints"] ?? [];
  if (Array.isArray(taints) && taints.every((taint) => typeof taint === "string")) return taints;
  throw invalid("routing.routing_constraints.required_taints", "an array of strings", taints);
}

/** Canonical decimal text of a worker id. */
function workerIdOf(id: string | number): string {
  const value = typeof id === "string" ? id.replace(/^0+(?=\d)/, "") : id;
  const lanes = readU64Json(value);
  if (!lanes) throw invalid("a worker id", "an unsigned 64-bit integer", id);
  return formatU64(lanes.lo, lanes.hi);
}

function invalid(field: string, expected: string, found: unknown): TiergridError {
  const message = `${field} must be ${expected}, got ${shown(found)}`;
  return new TiergridError("invalid_request", message, { field });
}
