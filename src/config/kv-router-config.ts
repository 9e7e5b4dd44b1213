/**
 * Settings of a pool's local router. Sources (file, environment, flags) arrive as objects with the
 * file's snake_case keys, lowest precedence first; each is checked by itself, the older
 * `overlap_score_weight` is mapped within its source, then they are merged over the defaults and
 * the rules between fields are checked.
 */

import { TiergridError } from "../base/errors.ts";
import type { QueueDepthRule, QueueOrder } from "../core/admission-queue.ts";
import type { ChoiceSettings, WorkerPolicy } from "../core/choice.ts";
import { readPerfModel } from "../core/perf-model.ts";
import { type ConfigFault, sortFaults } from "./config-fault.ts";
import { kvRouterSchemaFaults, type Settings } from "./kv-router-schema.ts";

export interface KvRouterConfig {
  readonly overlapScoreCredit: number;
  readonly overlapScoreCreditDecay: number;
  readonly prefillLoadScale: number;
  readonly decodeActiveRequestWeight: number;
  readonly hostCacheHitWeight: number;
  readonly diskCacheHitWeight: number;
  readonly sharedCacheType: "none" | "hicache";
  readonly sharedCacheMultiplier: number;
  readonly routerTemperature: number;
  readonly useKvEvents: boolean;
  readonly durableKvEvents: boolean;
  readonly routerReplicaSync: boolean;
  readonly routerTrackActiveBlocks: boolean;
  readonly routerTrackOutputBlocks: boolean;
  readonly routerTrackPrefillTokens: boolean;
  readonly routerAssumeKvReuse: boolean;
  readonly routerPrefillLoadModel: "none" | "aic";
  readonly routerSnapshotThreshold: number | null;
  readonly routerResetStates: boolean;
  readonly routerTtlSecs: number;
  readonly routerMaxTreeSize: number;
  readonly routerPruneTargetRatio: number;
  readonly routerEventThreads: number;
  readonly routerQueueThreshold: number | null;
  readonly routerQueuePolicy: "fcfs" | "lcfs" | "wspt";
  readonly routerQueueByIncomingMissingIsl: readonly QueueDepthRule[] | null;
  readonly routerPredictedTtlSecs: number | null;
  readonly routerApproximateCachePolicy: "ttl" | "lru";
  readonly useRemoteIndexer: boolean;
  readonly serveIndexer: boolean;
  readonly routerEnableCacheControl: boolean;
  readonly skipInitialWorkerWait: boolean;
  readonly routerHerdGuard: boolean;
  readonly routerCostMode: "blocks" | "latency";
  readonly routerPrefillExternality: number;
  readonly routerDecodeHarmWeight: number;
  readonly routerKvUsageWeight: number;
  readonly routerExpectedOutputTokens: number;
  readonly routerGpusPerWorker: number;
  readonly routerFitLatencyShare: number;
  readonly routerFitFrontShare: number;
  readonly routerFitKeepsPromises: boolean;
  readonly routerFitHolds: boolean;
  /** Profile of workers that announce none, as `readPerfModel` takes it; null = polynomial. */
  readonly routerPerfModel: unknown;
}

export const defaultKvRouterConfig: KvRouterConfig = Object.freeze({
  overlapScoreCredit: 1,
  overlapScoreCreditDecay: 0,
  prefillLoadScale: 1,
  decodeActiveRequestWeight: 0,
  hostCacheHitWeight: 0.75,
  diskCacheHitWeight: 0.25,
  sharedCacheType: "none",
  sharedCacheMultiplier: 0,
  routerTemperature: 0,
  useKvEvents: true,
  durableKvEvents: false,
  routerReplicaSync: false,
  routerTrackActiveBlocks: true,
  routerTrackOutputBlocks: false,
  routerTrackPrefillTokens: true,
  routerAssumeKvReuse: true,
  routerPrefillLoadModel: "none",
  routerSnapshotThreshold: 1_000_000,
  routerResetStates: false,
  routerTtlSecs: 120,
  routerMaxTreeSize: 1_048_576,
  routerPruneTargetRatio: 0.8,
  routerEventThreads: 4,
  routerQueueThreshold: null,
  routerQueuePolicy: "fcfs",
  routerQueueByIncomingMissingIsl: null,
  routerPredictedTtlSecs: null,
  routerApproximateCachePolicy: "ttl",
  useRemoteIndexer: false,
  serveIndexer: false,
  routerEnableCacheControl: false,
  skipInitialWorkerWait: false,
  routerHerdGuard: true,
  routerCostMode: "blocks",
  routerPrefillExternality: 2,
  routerDecodeHarmWeight: 0.006,
  routerKvUsageWeight: 1,
  routerExpectedOutputTokens: 340,
  routerGpusPerWorker: 1,
  routerFitLatencyShare: 0.1,
  routerFitFrontShare: 0.5,
  routerFitKeepsPromises: true,
  routerFitHolds: true,
  routerPerfModel: null,
});

export type KvRouterConfigResult =
  | {
      readonly ok: true;
      readonly config: KvRouterConfig;
      /** The policy that a source sets, else shortest uncached work with ageing. */
      readonly queueOrder: QueueOrder;
      readonly warnings: readonly ConfigFault[];
    }
  | { readonly ok: false; readonly faults: readonly ConfigFault[] };

/** Validates and merges `sources`; all faults at once, rules between fields after the fields. */
export function loadKvRouterConfig(sources: readonly unknown[]): KvRouterConfigResult {
  const faults = sources.flatMap((source) => [
    ...kvRouterSchemaFaults(source, "config"),
    ...queueDepthFaults(source),
  ]);
  if (faults.length > 0) return { ok: false, faults: sortFaults(faults) };
  let given: Settings = {};
  for (const source of sources as readonly Settings[]) {
    given = { ...given, ...withoutLegacy(source) };
  }
  const config = configOf(given);
  const broken = ruleFaults(config);
  if (broken.length > 0) return { ok: false, faults: sortFaults(broken) };
  const queueOrder = given["router_queue_policy"] === undefined ? "aged" : config.routerQueuePolicy;
  return { ok: true, config, queueOrder, warnings: warningsOf(config, given) };
}

/** Overlap is tracked by KV events; without credit nobody would read them. */
export function subscribesToKvEvents(config: KvRouterConfig): boolean {
  return config.useKvEvents && config.overlapScoreCredit > 0;
}

/** Key in a file of a config field: `prefill_load_scale` of `prefillLoadScale`. */
export function fileKeyOf(field: string): string {
  return field.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/**
 * Options named like fields (of flags, or of the environment) as one source; `overlapScoreWeight`
 * is the older weight, other names are left out.
 */
export function settingsOfOptions(options: Readonly<Record<string, unknown>>): Settings {
  const settings = Object.keys(defaultKvRouterConfig)
    .filter((field) => options[field] !== undefined)
    .map((field) => [fileKeyOf(field), options[field]]);
  const weight = options["overlapScoreWeight"] ?? undefined;
  const legacy = weight === undefined ? {} : { overlap_score_weight: weight };
  return { ...(Object.fromEntries(settings) as Settings), ...legacy };
}

/** What one request may change. */
export interface RouterConfigOverride {
  readonly overlapScoreCredit?: number;
  readonly prefillLoadScale?: number;
  readonly sharedCacheMultiplier?: number;
  readonly routerTemperature?: number;
  readonly assumeKvReuse?: boolean;
  readonly trackPrefillTokens?: boolean;
}

export type OverrideResult =
  | { readonly ok: true; readonly override: RouterConfigOverride }
  | { readonly ok: false; readonly faults: readonly ConfigFault[] };

const overrideFields: readonly (keyof RouterConfigOverride)[] = [
  "overlapScoreCredit",
  "prefillLoadScale",
  "sharedCacheMultiplier",
  "routerTemperature",
  "assumeKvReuse",
  "trackPrefillTokens",
];

/** Validates a request's `router_config_override`; absent or null = nothing changes. */
export function parseRouterConfigOverride(value: unknown): OverrideResult {
  if (value === undefined || value === null) return { ok: true, override: {} };
  const faults = kvRouterSchemaFaults(value, "override");
  if (faults.length > 0) return { ok: false, faults: sortFaults(faults) };
  const given = withoutLegacy(value as Settings);
  const fields = overrideFields.flatMap((field) => {
    const setting = given[fileKeyOf(field)] ?? undefined;
    return setting === undefined ? [] : [[field, setting]];
  });
  return { ok: true, override: Object.fromEntries(fields) as RouterConfigOverride };
}

/** What the pool is, beside its settings. */
export interface PoolTraits {
  readonly blockSize: number;
  readonly policy: WorkerPolicy;
  readonly decodeOnly: boolean;
}

/** Settings of one choice: the config with the request's override on top. */
export function choiceSettings(
  config: KvRouterConfig,
  override: RouterConfigOverride,
  pool: PoolTraits,
): ChoiceSettings {
  return {
    ...pool,
    temperature: override.routerTemperature ?? config.routerTemperature,
    trackPrefillTokens: override.trackPrefillTokens ?? config.routerTrackPrefillTokens,
    herdGuard: config.routerHerdGuard,
    weights: {
      overlapScoreCredit: override.overlapScoreCredit ?? config.overlapScoreCredit,
      overlapScoreCreditDecay: config.overlapScoreCreditDecay,
      prefillLoadScale: override.prefillLoadScale ?? config.prefillLoadScale,
      hostCacheHitWeight: config.hostCacheHitWeight,
      diskCacheHitWeight: config.diskCacheHitWeight,
      sharedCacheMultiplier: override.sharedCacheMultiplier ?? config.sharedCacheMultiplier,
      decodeActiveRequestWeight: config.decodeActiveRequestWeight,
    },
  };
}

const sharedCacheMultiplierWhenOn = 0.5;

/** The older weight becomes the scale, and no credit when it is 0; it beats both in its source. */
function withoutLegacy(source: Settings): Settings {
  const { overlap_score_weight: weight, ...rest } = source;
  if (typeof weight !== "number") return rest;
  const credit = weight === 0 ? { overlap_score_credit: 0 } : {};
  return { ...rest, prefill_load_scale: weight, ...credit };
}

function configOf(given: Settings): KvRouterConfig {
  const fields = Object.entries(defaultKvRouterConfig).map(([field, fallback]) => {
    const setting = given[fileKeyOf(field)];
    return [field, setting === undefined ? fallback : setting];
  });
  const config = Object.fromEntries(fields) as unknown as KvRouterConfig;
  const worthIsGiven = given["shared_cache_multiplier"] !== undefined;
  const shares = config.sharedCacheType !== "none" && !worthIsGiven;
  return Object.freeze({
    ...config,
    sharedCacheMultiplier: shares ? sharedCacheMultiplierWhenOn : config.sharedCacheMultiplier,
    routerQueueByIncomingMissingIsl: queueDepthRules(given[queueDepthKey]),
  });
}

const queueDepthKey = "router_queue_by_incoming_missing_isl";

interface WrittenQueueDepthRule {
  readonly missing_cache_tokens_floor: number;
  readonly max_queue_depth: number;
}

function queueDepthRules(written: unknown): readonly QueueDepthRule[] | null {
  if (!Array.isArray(written)) return null;
  const rules = (written as readonly WrittenQueueDepthRule[]).map((rule) =>
    Object.freeze({
      missingCacheTokensFloor: rule.missing_cache_tokens_floor,
      maxQueueDepth: rule.max_queue_depth,
    }),
  );
  return Object.freeze(rules);
}

/** Floors start at 0 and ascend, so that exactly one rule applies to a request. */
function queueDepthFaults(source: unknown): ConfigFault[] {
  const written = (source as Settings | null)?.[queueDepthKey];
  if (!Array.isArray(written)) return [];
  const floors = written.map((rule) => (rule as WrittenQueueDepthRule | null)?.[floorKey]);
  return floors.flatMap((floor, at) => {
    if (typeof floor !== "number") return [];
    const before = floors[at - 1];
    const right = at === 0 ? floor === 0 : typeof before !== "number" || floor > before;
    if (right) return [];
    const wanted = at === 0 ? "the first floor must be 0" : `must be > ${String(before)}`;
    const pointer = `/${queueDepthKey}/${at}/${floorKey}`;
    return [{ pointer, reason: "floor-order", message: `${wanted}, got ${floor}` }];
  });
}

const floorKey = "missing_cache_tokens_floor";

function ruleFaults(config: KvRouterConfig): ConfigFault[] {
  const faults: ConfigFault[] = [];
  const require = (holds: boolean, field: keyof KvRouterConfig, message: string): void => {
    if (!holds) faults.push({ pointer: `/${fileKeyOf(field)}`, reason: "conflict", message });
  };
  const { useKvEvents, routerPrefillLoadModel, serveIndexer } = config;
  const modelled = routerPrefillLoadModel !== "none";
  require(useKvEvents || !config.durableKvEvents, "durableKvEvents", "requires use_kv_events");
  require(config.routerTrackActiveBlocks ||
    !config.routerTrackOutputBlocks, "routerTrackOutputBlocks", "requires router_track_active_blocks");
  require(!modelled ||
    config.routerTrackPrefillTokens, "routerPrefillLoadModel", "requires router_track_prefill_tokens");
  require(!modelled ||
    config.routerQueuePolicy ===
      "fcfs", "routerPrefillLoadModel", `requires router_queue_policy fcfs, got ${config.routerQueuePolicy}`);
  require(!(
    serveIndexer && config.useRemoteIndexer
  ), "serveIndexer", "cannot be combined with use_remote_indexer");
  require(!serveIndexer ||
    config.overlapScoreCredit > 0, "serveIndexer", "requires overlap_score_credit > 0");
  require(useKvEvents ||
    config.routerPredictedTtlSecs === null, "routerPredictedTtlSecs", "requires use_kv_events");
  const profileFault = perfModelFault(config.routerPerfModel);
  require(profileFault === undefined, "routerPerfModel", profileFault ?? "");
  return faults;
}

function perfModelFault(profile: unknown): string | undefined {
  if (profile === null) return undefined;
  try {
    readPerfModel(profile);
    return undefined;
  } catch (thrown) {
    if (thrown instanceof TiergridError) return thrown.message;
    throw thrown;
  }
}

/** Settings that have a meaning, but none together with the others. */
function warningsOf(config: KvRouterConfig, given: Settings): ConfigFault[] {
  const idle = (keys: readonly string[], message: string): ConfigFault[] =>
    keys
      .filter((key) => given[key] !== undefined)
      .map((key) => ({ pointer: `/${key}`, reason: "no-effect", message }));
  const durableOnly = ["router_snapshot_threshold", "router_reset_states"];
  const latencyOnly = [
    "router_prefill_externality",
    "router_decode_harm_weight",
    "router_kv_usage_weight",
    "router_expected_output_tokens",
    "router_gpus_per_worker",
    "router_fit_latency_share",
    "router_fit_front_share",
    "router_fit_keeps_promises",
    "router_fit_holds",
    "router_perf_model",
  ];
  const isLatency = config.routerCostMode === "latency";
  const eventlessOnly = [
    "router_ttl_secs",
    "router_max_tree_size",
    "router_prune_target_ratio",
    "router_approximate_cache_policy",
  ];
  const queueOnly = ["router_queue_policy", queueDepthKey];
  const queues = config.routerQueueThreshold !== null;
  return [
    ...(config.durableKvEvents ? [] : idle(durableOnly, "has no effect without durable_kv_events")),
    ...(isLatency ? [] : idle(latencyOnly, "has no effect without router_cost_mode latency")),
    ...(config.useKvEvents ? idle(eventlessOnly, "has no effect while use_kv_events is on") : []),
    ...(queues ? [] : idle(queueOnly, "has no effect without router_queue_threshold")),
  ];
}
