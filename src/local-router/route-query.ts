/** What a request asks of a pool, read once: hashes, constraints, settings. */
import { TiergridError } from "../base/errors.ts";
import type { KvRouterConfig, RouterConfigOverride } from "../config/kv-router-config.ts";
import { choiceSettings, parseRouterConfigOverride } from "../config/kv-router-config.ts";
import type { ChoiceSettings, WorkerPolicy } from "../core/choice.ts";
import type { WorkerConstraints } from "../core/worker-roster.ts";
import type { BlockHasher } from "../protocol/block-hashes.ts";
import { hashPrompt } from "../protocol/prompt-hashes.ts";
import { isObject, isU32, shown } from "../protocol/request-body.ts";
import type { Phase, Prompt, RoutedBody, RoutingHints } from "../protocol/requests.ts";
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
  /** Those by which prompts under way share; empty when no reuse is assumed. */
  readonly promptHashes: Uint32Array;
  /** Full blocks to book that nobody can share. */
  readonly privateBlocks: number;
  readonly constraints: WorkerConstraints;
  /** Weight by taint; positive pulls the request to workers that have it. */
  readonly preferredTaints: ReadonlyMap<string, number> | undefined;
  readonly expectedOutputTokens: number | undefined;
  /** Compare workers by their fit to this target; only in cost mode `latency`. */
  readonly fitTargetMs: number | undefined;
  /** Whoever routes it can wait with its dispatch. */
  readonly mayWait?: boolean;
  /** Higher goes first in the queue, whatever else is said. */
  readonly strictPriority: number;
  /** Seconds that the request counts as older in the queue. */
  readonly priorityJumpSecs: number;
  /** Rather refused than to wait in the queue. */
  readonly doNotQueue: boolean;
  readonly settings: ChoiceSettings;
}

export interface RouteRequest {
  readonly phase: Phase;
  readonly body: RoutedBody;
  readonly prompt: Prompt;
}

/** Throws `invalid_request` naming the field, `prompt_needed` for hashes of other blocks. */
export function readRouteQuery(rules: PoolRules, request: RouteRequest): RouteQuery {
  const { body, prompt, phase } = request;
  const override = overrideOf(body);
  const { blockSize, policy, role, config } = rules;
  const { islTokens, blocks, sequence } = hashesOf(rules, body, prompt);
  // Nothing is generated in a prefill pool, so its blocks are not held.
  const tracks = config.routerTrackActiveBlocks && role !== "prefill";
  const reuses = override.assumeKvReuse ?? config.routerAssumeKvReuse;
  return {
    islTokens,
    blocks,
    sequence,
    tracked: tracks && reuses ? sequence : none,
    promptHashes: reuses ? sequence : none,
    privateBlocks: tracks && !reuses ? blocks : 0,
    constraints: constraintsOf(body, phase),
    preferredTaints: preferredTaintsOf(body.routing ?? {}),
    expectedOutputTokens: body.routing?.expected_output_tokens ?? undefined,
    fitTargetMs: config.routerCostMode === "latency" ? fitTargetOf(role, body) : undefined,
    strictPriority: body.routing?.strict_priority ?? 0,
    priorityJumpSecs: body.routing?.priority_jump ?? 0,
    doNotQueue: body.routing?.do_not_queue ?? false,
    settings: choiceSettings(config, override, {
      blockSize,
      policy,
      decodeOnly: role === "decode",
    }),
  };
}

/** With `best_fit` the target of what the pool's workers do decides. */
function fitTargetOf(role: CardRole, { router }: RoutedBody): number | undefined {
  if (router?.best_fit !== true) return undefined;
  return (role === "decode" ? router.itl_target : router.ttft_target) ?? undefined;
}

const none = new Uint32Array(0);

/** Hashes of the prompt, or those its sender has made. */
function hashesOf(
  { blockSize, blockHasher }: PoolRules,
  body: RoutedBody,
  prompt: Prompt,
): Pick<RouteQuery, "islTokens" | "blocks" | "sequence"> {
  if (prompt.type === "hashes") {
    if (prompt.blockSize !== blockSize) throw otherBlocks(prompt.blockSize, blockSize);
    const sequence = prompt.localHashes.slice();
    const blocks = sequence.length / 2;
    blockHasher.chain(sequence, 1, blocks);
    return { islTokens: prompt.islTokens, blocks, sequence };
  }
  return hashPrompt(blockHasher, body, prompt.tokens, blockSize);
}

function otherBlocks(hashed: number, blockSize: number): TiergridError {
  const message = `hashes of ${hashed}-token blocks, this pool has ${blockSize}`;
  return new TiergridError("prompt_needed", message, { block_size: blockSize });
}

function overrideOf(body: RoutedBody): RouterConfigOverride {
  const parsed = parseRouterConfigOverride(body.router_config_override);
  if (parsed.ok) return parsed.override;
  const [first] = parsed.faults;
  const field = `router_config_override${(first?.pointer ?? "").replaceAll("/", ".")}`;
  const message = `${field}: ${first?.message ?? "not an override"}`;
  throw new TiergridError("invalid_request", message, { field });
}

function constraintsOf(body: RoutedBody, phase: Phase): WorkerConstraints {
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
function dpRankOf(body: RoutedBody, phase: Phase): number | undefined {
  const { routing } = body;
  if (phase === "prefill") return routing?.prefill_dp_rank ?? undefined;
  const dpRank = routing?.dp_rank ?? body.dp_rank ?? undefined;
  if (dpRank === undefined || isU32(dpRank)) return dpRank;
  throw invalid("dp_rank", "an integer in [0, 4294967295]", dpRank);
}

function routingConstraintsOf(routing: RoutingHints): Readonly<Record<string, unknown>> {
  const constraints =
    (routing as Readonly<Record<string, unknown>>)["routing_constraints"] ?? noConstraints;
  if (isObject(constraints)) return constraints;
  throw invalid("routing.routing_constraints", "an object", constraints);
}

const noConstraints = Object.freeze({});

function preferredTaintsOf(routing: RoutingHints): ReadonlyMap<string, number> | undefined {
  const taints = routingConstraintsOf(routing)["preferred_taints"] ?? undefined;
  if (taints === undefined) return undefined;
  if (isObject(taints) && Object.values(taints).every(Number.isFinite)) {
    return new Map(Object.entries(taints) as [string, number][]);
  }
  const field = "routing.routing_constraints.preferred_taints";
  throw invalid(field, "an object of finite numbers", taints);
}

function requiredTaintsOf(routing: RoutingHints): readonly string[] | undefined {
  const taints = routingConstraintsOf(routing)["required_taints"] ?? [];
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
