/**
 * A pool config: the pools of one global router and the SLA grids that choose between them, with
 * everything a request needs already computed.
 *
 *   PoolConfig ─ roles[] ─┬─ pools[]   index = place in the file's namespace list
 *                         ├─ grid      axes with edges, pool per cell, priority rules
 *                         ├─ spill
 *                         ├─ plans[]   per selected pool: where else its requests may go
 *                         ├─ cellPlans[]  the same per cell, with fallbacks
 *                         └─ quoting   whether quotes may overrule the grid
 *
 * Built only from a file that passed both passes of `load-pool-config.ts`, then frozen: nobody
 * checks it again. `normal` is the same config as JSON with every default written out, and
 * `version` is its hash, so two files that route alike have one version.
 */
import { createHash } from "node:crypto";
import { TiergridError } from "../base/errors.ts";
import {
  defaultPriorities,
  type PoolPlan,
  planPools,
  type SpillRules,
} from "../core/pool-choice.ts";
import {
  type Axis,
  type AxisName,
  makeAxis,
  type PriorityOverride,
  type Role,
  type SlaGrid,
  type Spacing,
} from "../core/sla-grid.ts";
import {
  axesOfStrategy,
  boundKey,
  countKey,
  type FileObject,
  fallbacksKey,
  type Json,
  type JsonObject,
  type Mode,
  mappingKey,
  metadataKey,
  namespacesKey,
  prioritiesKey,
  resolutionKey,
  rolesOf,
  spacingKey,
  strategyKey,
  writtenBoundKey,
} from "./pool-config-keys.ts";
import {
  buildCellPlans,
  buildMetadata,
  buildQuoting,
  normalMetadata,
  normalQuoting,
  type PoolMetadata,
  type QuoteRules,
} from "./pool-config-live.ts";

export interface Pool extends PoolMetadata {
  readonly index: number;
  /** Namespace of the pool's local routers and workers. */
  readonly namespace: string;
  /** Lower = faster. */
  readonly priority: number;
}

export interface RolePools {
  readonly role: Role;
  readonly pools: readonly Pool[];
  readonly grid: SlaGrid;
  readonly spill: SpillRules;
  readonly plans: readonly PoolPlan[];
  /** By cell, row-major: for requests of the cell's own pool, in place of its plan. */
  readonly cellPlans: readonly PoolPlan[] | undefined;
  readonly quoting: QuoteRules;
}

export interface PoolConfig {
  readonly mode: Mode;
  /** First 12 hex digits of SHA-256 over the canonical JSON of `normal`. */
  readonly version: string;
  readonly enablePriorityRetry: boolean;
  /** disagg: prefill, decode; agg: agg. */
  readonly roles: readonly RolePools[];
  readonly normal: JsonObject;
}

/** Pools of `role`; throws `not_found` when the config's mode has no such role. */
export function rolePools(config: PoolConfig, role: Role): RolePools {
  const pools = config.roles.find((candidate) => candidate.role === role);
  if (pools) return pools;
  throw new TiergridError("not_found", `no ${role} pools in ${config.mode} mode`, { role });
}

/** The frozen config of a valid file. */
export function buildPoolConfig(file: FileObject, mode: Mode): PoolConfig {
  const enablePriorityRetry = (file["enable_priority_retry"] ?? false) as boolean;
  const roles = rolesOf[mode].map((role) => buildRole(file, role, enablePriorityRetry));
  const normal: Record<string, Json> = { mode, enable_priority_retry: enablePriorityRetry };
  for (const role of roles) Object.assign(normal, normalRole(role));
  const version = createHash("sha256").update(canonicalJson(normal)).digest("hex").slice(0, 12);
  return deepFreeze({ mode, version, enablePriorityRetry, roles, normal });
}

/** JSON text with keys sorted by code unit and no white space. */
export function canonicalJson(value: Json): string {
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  if (isJsonArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  const entries = Object.keys(value)
    .sort()
    .map((key) => `${JSON.stringify(key)}:${canonicalJson(value[key] ?? null)}`);
  return `{${entries.join(",")}}`;
}

function buildRole(file: FileObject, role: Role, retryEnabled: boolean): RolePools {
  const namespaces = file[namespacesKey(role)] as readonly string[];
  const strategy = file[strategyKey(role)] as FileObject;
  const priorities = (file[prioritiesKey(role)] ??
    defaultPriorities(namespaces.length)) as number[];
  const spill = buildSpill((strategy["spill"] ?? {}) as FileObject);
  const metadata = buildMetadata(file, role);
  const grid = buildGrid(role, strategy);
  const plans = planPools(priorities, retryEnabled, spill);
  return {
    role,
    pools: namespaces.map((namespace, index) => ({
      index,
      namespace,
      priority: priorities[index] ?? index,
      ...metadata?.[index],
    })),
    grid,
    spill,
    plans,
    cellPlans: buildCellPlans(strategy, grid, plans),
    quoting: buildQuoting(strategy),
  };
}

function buildGrid(role: Role, strategy: FileObject): SlaGrid {
  const axes = axesOfStrategy(role, strategy).map((name) => buildAxis(name, strategy));
  const mapping = strategy[mappingKey(role)] as readonly unknown[];
  const rules = (strategy["priority_overrides"] ?? []) as readonly FileObject[];
  const overrides = rules.map(
    (rule): PriorityOverride => ({
      minPriority: rule["min_priority"] as number,
      maxPriority: rule["max_priority"] as number,
      targetPool: rule["target_pool"] as number,
    }),
  );
  return { role, axes, poolOfCell: mapping.flat(axes.length - 1) as number[], overrides };
}

function buildAxis(name: AxisName, strategy: FileObject): Axis {
  const bound = (end: "min" | "max"): number =>
    strategy[writtenBoundKey(strategy, name, end)] as number;
  const cells = strategy[resolutionKey(name)] as number;
  const spacing = (strategy[spacingKey(name)] ?? "linear") as Spacing;
  return makeAxis(name, { min: bound("min"), max: bound("max") }, cells, spacing);
}

function buildSpill(spill: FileObject): SpillRules {
  return {
    enabled: (spill["enabled"] ?? false) as boolean,
    allowPeers: (spill["allow_peers"] ?? true) as boolean,
    allowSlower: (spill["allow_slower"] ?? false) as boolean,
    hopsMax: (spill["max_hops"] ?? 2) as number,
  };
}

function normalRole({ role, pools, grid, spill, cellPlans, quoting }: RolePools): JsonObject {
  const inner = grid.axes.slice(1);
  const fallbacks = cellPlans?.map(({ spillPools }) => spillPools);
  const metadata = normalMetadata(pools);
  return {
    [countKey(role)]: pools.length,
    [namespacesKey(role)]: pools.map(({ namespace }) => namespace),
    [prioritiesKey(role)]: pools.map(({ priority }) => priority),
    ...(metadata.some((entry) => Object.keys(entry).length > 0) && {
      [metadataKey(role)]: metadata,
    }),
    [strategyKey(role)]: {
      ...normalAxes(grid.axes),
      [mappingKey(role)]: nestCells(grid.poolOfCell, inner),
      ...(fallbacks && { [fallbacksKey(role)]: nestCells(fallbacks, inner) }),
      priority_overrides: grid.overrides.map(({ minPriority, maxPriority, targetPool }) => ({
        min_priority: minPriority,
        max_priority: maxPriority,
        target_pool: targetPool,
      })),
      spill: {
        enabled: spill.enabled,
        allow_peers: spill.allowPeers,
        allow_slower: spill.allowSlower,
        max_hops: spill.hopsMax,
      },
      ...normalQuoting(quoting),
    },
  };
}

function normalAxes(axes: readonly Axis[]): JsonObject {
  const keys: Record<string, Json> = {};
  for (const axis of axes) {
    keys[boundKey(axis.name, "min")] = axis.min;
    keys[boundKey(axis.name, "max")] = axis.max;
    keys[resolutionKey(axis.name)] = axis.cells;
    keys[spacingKey(axis.name)] = axis.spacing;
  }
  return keys;
}

/** Row-major cells as nested arrays; `inner` are the axes below the first. */
export function nestCells(cells: readonly Json[], inner: readonly Axis[]): Json[] {
  const axis = inner.at(-1);
  if (!axis) return [...cells];
  const rows: Json[] = [];
  for (let from = 0; from < cells.length; from += axis.cells) {
    rows.push(cells.slice(from, from + axis.cells));
  }
  const outer = inner.at(-2);
  if (!outer) return rows;
  const planes: Json[] = [];
  for (let from = 0; from < rows.length; from += outer.cells) {
    planes.push(rows.slice(from, from + outer.cells));
  }
  return planes;
}

function isJsonArray(value: Json): value is readonly Json[] {
  return Array.isArray(value);
}

function deepFreeze<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const child of Object.values(value)) deepFreeze(child);
  }
  return value;
}
