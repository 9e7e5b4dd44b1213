/** Settings of a valid KV router config that this release would not act on. */
import { defaultKvRouterConfig, fileKeyOf, type KvRouterConfig } from "./kv-router-config.ts";

/** Fields whose feature is missing: any value but the default asks for it. */
const withoutFeature: readonly (keyof KvRouterConfig)[] = [
  "sharedCacheType",
  "sharedCacheMultiplier",
  "routerPrefillLoadModel",
  "useRemoteIndexer",
  "serveIndexer",
  "routerEnableCacheControl",
];

/**
 * File keys of settings that would have no effect in this release, sorted; a command refuses to
 * start with any.
 */
export function unsupportedFields(config: KvRouterConfig): string[] {
  const fields = withoutFeature.filter((field) => config[field] !== defaultKvRouterConfig[field]);
  return fields.map(fileKeyOf).sort();
}
