/** From the options of `tiergrid local` to the sources of its `KvRouterConfig`. */
import type { FlagValue, Given } from "../base/flags.ts";
import { fileKeyOf } from "../config/kv-router-config.ts";
import { kvRouterFlags } from "./flags-kv-router.ts";
import type { localFlags } from "./flags-local.ts";

/**
 * What environment and flags say about KV routing, under the file's keys and in rising precedence:
 * the sources that follow the file in `loadKvRouterConfig`.
 */
export function kvRouterSources(
  given: Pick<Given<typeof localFlags>, "environment" | "flags">,
): Record<string, FlagValue>[] {
  return [given.environment, given.flags].map((source) => {
    const fields = Object.entries(source).filter(([name]) => Object.hasOwn(kvRouterFlags, name));
    return Object.fromEntries(fields.map(([name, value]) => [fileKeyOf(name), value]));
  });
}
