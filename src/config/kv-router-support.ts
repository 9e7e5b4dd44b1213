/** Settings of a valid KV router config that this release would not act on. */
import { defaultKvRouterConfig, fileKeyOf, type KvRouterConfig } from "./kv-router-config.ts";

/** Fields whose feature is missing: any value but the default asks for it. */
const withoutFeature: readonly (keyof KvRouterConfig)[] = [
  "hostCacheHitWeight",
  "diskCacheHitWeight",
  "sharedCacheType",
  "sharedCacheMultiplier",
  "durableKvEvents",
  "routerPrefillLoadModel",
  "routerSnapshotThreshold",
  "routerResetStates",
  "routerTtlSecs",
  "routerMaxTreeSize",
  "routerPruneTargetRatio",
  "routerQueueThreshold",
  "routerQueuePolicy",
  "routerQueueByIncomingMissingIsl",
  "routerPredictedTtlSecs",
  "routerApproximateCachePolicy",
  "useRemoteIndexer",
  "serveIndexer",
  "routerEnableCacheControl",
];

/**
 * File keys of settings that would have no effect in this release, sorted; a command refuses to
 * start with any. `use_kv_events: false` is one unless no overlap is counted at all.
 */
export function unsupportedFields(config: KvRouterConfig): string[] {
  const fields = withoutFeature.filter((field) => config[field] !== defaultKvRouterConfig[field]);
  if (!config.useKvEvents && config.overlapScoreCredit > 0) fields.push("useKvEvents");
  return fields.map(fileKeyOf).sort();
}
