/** What a valid pool config says but probably does not mean; errors under strict loading. */
import type { PriorityOverride } from "../core/sla-grid.ts";
import { type ConfigFault, childPointer } from "./config-fault.ts";
import type { PoolConfig, RolePools } from "./pool-config.ts";
import {
  boundAlias,
  boundKey,
  type FileObject,
  type Mode,
  namespacesKey,
  roleKeys,
  rolesOf,
  strategyKey,
} from "./pool-config-keys.ts";

/** Warnings of a valid `file` and the config built from it, unsorted. */
export function poolConfigWarnings(file: FileObject, config: PoolConfig): ConfigFault[] {
  return [
    ...config.roles.flatMap((pools) => [
      ...aliasWarnings(file[strategyKey(pools.role)] as FileObject, pools),
      ...unreachablePools(pools),
      ...overrideWarnings(pools),
      ...uselessLive(file[strategyKey(pools.role)] as FileObject, pools),
    ]),
    ...unusedFields(file, config.mode),
    ...sharedNamespaces(config),
    ...uselessRetry(config),
  ];
}

function aliasWarnings(strategy: FileObject, { role, grid }: RolePools): ConfigFault[] {
  const warnings: ConfigFault[] = [];
  for (const { name } of grid.axes) {
    for (const end of ["min", "max"] as const) {
      const primary = boundKey(name, end);
      const alias = boundAlias(name, end);
      if (alias === undefined || !Object.hasOwn(strategy, alias)) continue;
      const both = Object.hasOwn(strategy, primary);
      warnings.push({
        pointer: childPointer(`/${strategyKey(role)}`, alias),
        reason: both ? "alias-and-primary" : "deprecated-alias",
        message: both ? `${alias} is ignored: ${primary} wins` : `write ${primary} instead`,
      });
    }
  }
  return warnings;
}

function unusedFields(file: FileObject, mode: Mode): ConfigFault[] {
  const otherMode = mode === "agg" ? "disagg" : "agg";
  return rolesOf[otherMode]
    .flatMap(roleKeys)
    .filter((key) => Object.hasOwn(file, key))
    .map((key) => ({
      pointer: childPointer("", key),
      reason: "unused-field",
      message: `${key} belongs to ${otherMode} mode and is not read in ${mode} mode`,
    }));
}

/** Pools that no cell, effective rule or quote selects, and that no retry or spill leads to. */
function unreachablePools({
  role,
  pools,
  grid,
  plans,
  cellPlans = [],
  quoting,
}: RolePools): ConfigFault[] {
  if (quoting.selection !== "grid") return [];
  const effective = grid.overrides.filter((_, rule) => !isShadowed(grid.overrides, rule));
  const selected = new Set([...grid.poolOfCell, ...effective.map(({ targetPool }) => targetPool)]);
  const reachable = new Set([...selected, ...cellPlans.flatMap(({ spillPools }) => spillPools)]);
  for (const pool of selected) {
    for (const next of plans[pool]?.retryPools ?? []) reachable.add(next);
    for (const next of plans[pool]?.spillPools ?? []) reachable.add(next);
  }
  return pools
    .filter(({ index }) => !reachable.has(index))
    .map(({ index, namespace }) => ({
      pointer: childPointer(`/${namespacesKey(role)}`, index),
      reason: "unreachable-pool",
      message: `no cell, rule, retry or spill leads to pool ${index} (${namespace})`,
    }));
}

function overrideWarnings({ role, grid: { overrides } }: RolePools): ConfigFault[] {
  const warnings: ConfigFault[] = [];
  for (const [rule, { minPriority, maxPriority }] of overrides.entries()) {
    const earlier = overrides
      .slice(0, rule)
      .findIndex((other) => other.minPriority <= maxPriority && minPriority <= other.maxPriority);
    if (earlier < 0) continue;
    const shadowed = isShadowed(overrides, rule);
    warnings.push({
      pointer: childPointer(`/${strategyKey(role)}/priority_overrides`, rule),
      reason: shadowed ? "override-shadowed" : "override-overlap",
      message: shadowed
        ? "earlier rules cover this one whole: it never decides"
        : `overlaps rule ${earlier}, which wins where both match`,
    });
  }
  return warnings;
}

/** True when the earlier rules together cover every integer of rule number `rule`. */
function isShadowed(overrides: readonly PriorityOverride[], rule: number): boolean {
  const own = overrides[rule];
  if (!own) return false;
  const earlier = overrides.slice(0, rule).sort((a, b) => a.minPriority - b.minPriority);
  let uncovered = own.minPriority;
  for (const { minPriority, maxPriority } of earlier) {
    if (minPriority > uncovered) break;
    uncovered = Math.max(uncovered, maxPriority + 1);
  }
  return uncovered > own.maxPriority;
}

function uselessLive(strategy: FileObject, { role, quoting }: RolePools): ConfigFault[] {
  if (quoting.selection !== "grid" || !Object.hasOwn(strategy, "live")) return [];
  const message = "selection is grid: nothing asks for quotes";
  const pointer = childPointer(`/${strategyKey(role)}`, "live");
  return [{ pointer, reason: "live-has-no-effect", message }];
}

function sharedNamespaces({ roles }: PoolConfig): ConfigFault[] {
  const [prefill, decode] = roles;
  if (!prefill || !decode) return [];
  const prefillNamespaces = new Set(prefill.pools.map(({ namespace }) => namespace));
  return decode.pools
    .filter(({ namespace }) => prefillNamespaces.has(namespace))
    .map(({ index, namespace }) => ({
      pointer: childPointer(`/${namespacesKey(decode.role)}`, index),
      reason: "namespace-shared-by-roles",
      message: `${namespace} is both a prefill and a decode pool`,
    }));
}

function uselessRetry({ enablePriorityRetry, roles }: PoolConfig): ConfigFault[] {
  const anyFaster = roles.some(({ plans }) =>
    plans.some(({ retryPools }) => retryPools.length > 0),
  );
  if (!enablePriorityRetry || anyFaster) return [];
  const message = "all priorities are equal in every role: there is no faster pool to retry";
  return [{ pointer: "/enable_priority_retry", reason: "retry-has-no-effect", message }];
}
