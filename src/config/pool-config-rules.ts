/**
 * Second pass over a pool config: what a schema cannot say. A rule runs only when every field it
 * reads passed, so that one mistake is told once; rules that need the pool count wait until the
 * count and the namespace list agree.
 */
import type { AxisName, Role } from "../core/sla-grid.ts";
import { type ConfigFault, childPointer, describeValue } from "./config-fault.ts";
import {
  axesOfStrategy,
  countKey,
  type FileObject,
  fallbacksKey,
  isFileObject,
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

/** Where a rule reads and reports. */
interface RuleScope {
  readonly file: FileObject;
  readonly role: Role;
  readonly ownNamespace: string;
  /** True when the schema found nothing at `pointer` or below it. */
  readonly passed: (pointer: string) => boolean;
  readonly report: (pointer: string, reason: string, message: string) => void;
}

/** Faults of a file whose schema faults are `known`. */
export function ruleFaults(
  file: FileObject,
  mode: Mode,
  known: readonly ConfigFault[],
  ownNamespace: string,
): ConfigFault[] {
  const faulted = withAncestors(known);
  const faults: ConfigFault[] = [];
  for (const role of rolesOf[mode]) {
    const scope: RuleScope = {
      file,
      role,
      ownNamespace,
      passed: (pointer) => !faulted.has(pointer),
      report: (pointer, reason, message) => faults.push({ pointer, reason, message }),
    };
    const pools = checkCount(scope);
    checkNamespaces(scope);
    checkPerPool(scope, pools);
    const strategy = file[strategyKey(role)];
    if (!isFileObject(strategy)) continue;
    checkAxes(scope, strategy);
    checkMapping(scope, strategy, pools);
    checkFallbacks(scope, strategy, pools);
    checkOverrides(scope, strategy, pools);
  }
  return faults;
}

/** Every faulted pointer and all above it. */
function withAncestors(faults: readonly ConfigFault[]): ReadonlySet<string> {
  const pointers = new Set<string>();
  for (let { pointer } of faults) {
    while (pointer !== "" && !pointers.has(pointer)) {
      pointers.add(pointer);
      pointer = pointer.slice(0, pointer.lastIndexOf("/"));
    }
  }
  return pointers;
}

/** Number of pools, or undefined while it is in dispute. */
function checkCount({ file, role, passed, report }: RuleScope): number | undefined {
  const key = countKey(role);
  const count = file[key];
  const namespaces = file[namespacesKey(role)];
  if (!passed(`/${key}`) || !Array.isArray(namespaces)) return undefined;
  if (count === namespaces.length) return namespaces.length;
  report(
    `/${key}`,
    "count-mismatch",
    `${key} (${count}) does not match ${namespacesKey(role)} length (${namespaces.length})`,
  );
  return undefined;
}

function checkNamespaces({ file, role, ownNamespace, report }: RuleScope): void {
  const key = namespacesKey(role);
  const namespaces = file[key];
  if (!Array.isArray(namespaces)) return;
  const seen = new Map<string, number>();
  for (const [index, namespace] of namespaces.entries()) {
    if (typeof namespace !== "string") continue;
    const earlier = seen.get(namespace);
    const fault = namespaceFault(namespace, ownNamespace, earlier);
    if (fault) report(childPointer(`/${key}`, index), ...fault);
    if (earlier === undefined) seen.set(namespace, index);
  }
}

/** The first rule a namespace breaks, as [reason, message]. */
function namespaceFault(
  namespace: string,
  ownNamespace: string,
  earlier: number | undefined,
): [string, string] | undefined {
  const shown = describeValue(namespace);
  if (namespace.trim() === "") return ["empty-namespace", "namespace must not be empty or blank"];
  if (/\$\{[^}]*\}|\$[A-Za-z_]/.test(namespace)) {
    return ["unexpanded-placeholder", `${shown} contains a placeholder: run envsubst first`];
  }
  if (!/^[A-Za-z0-9_-]{1,128}$/.test(namespace)) {
    const form = "1 to 128 of A-Z a-z 0-9 _ -";
    return ["invalid-namespace", `namespace must be ${form}, got ${shown}`];
  }
  if (namespace === ownNamespace) {
    return ["own-namespace", `${shown} is the router's own namespace: requests would loop`];
  }
  if (earlier !== undefined) {
    return ["duplicate-namespace", `${shown} is already pool ${earlier} of this role`];
  }
  return undefined;
}

/** Lists with one entry per pool. */
function checkPerPool(scope: RuleScope, pools: number | undefined): void {
  checkLength(scope, prioritiesKey(scope.role), "priorities-length", pools);
  checkLength(scope, metadataKey(scope.role), "metadata-length", pools);
  checkCosts(scope);
}

function checkLength(
  scope: RuleScope,
  key: string,
  reason: string,
  pools: number | undefined,
): void {
  const list = scope.file[key];
  if (pools === undefined || !Array.isArray(list) || !scope.passed(`/${key}`)) return;
  if (list.length === pools) return;
  const message = `${key} length (${list.length}) does not match number of pools (${pools})`;
  scope.report(`/${key}`, reason, message);
}

/** A pool without a price cannot be compared with one that has a price. */
function checkCosts({ file, role, passed, report }: RuleScope): void {
  const key = metadataKey(role);
  const list = file[key];
  if (!Array.isArray(list) || !passed(`/${key}`)) return;
  const priced = (entry: unknown): boolean =>
    isFileObject(entry) && Object.hasOwn(entry, "cost_per_second");
  if (!list.some(priced)) return;
  for (const [index, entry] of list.entries()) {
    if (priced(entry)) continue;
    const at = childPointer(childPointer(`/${key}`, index), "cost_per_second");
    report(at, "cost-incomplete", "cost_per_second must be given for all pools or for none");
  }
}

function checkAxes(scope: RuleScope, strategy: FileObject): void {
  const base = `/${strategyKey(scope.role)}`;
  for (const axis of axesOfStrategy(scope.role, strategy)) {
    const minKey = writtenBoundKey(strategy, axis, "min");
    const maxKey = writtenBoundKey(strategy, axis, "max");
    const at = childPointer(base, minKey);
    const min = strategy[minKey];
    const max = strategy[maxKey];
    if (typeof min !== "number" || !scope.passed(at)) continue;
    if (strategy[spacingKey(axis)] === "log2" && min <= 0) {
      const message = `a log2 axis needs ${minKey} > 0, got ${min}`;
      scope.report(at, "log2-min-not-positive", message);
    }
    if (typeof max !== "number" || !scope.passed(childPointer(base, maxKey))) continue;
    if (min < max) continue;
    const message = `${minKey} (${min}) must be less than ${maxKey} (${max})`;
    scope.report(at, "min-not-below-max", message);
  }
}

/** Cells an axis asks for, or undefined while its resolution is in dispute. */
function cellsOf(scope: RuleScope, strategy: FileObject, axis: AxisName): number | undefined {
  const key = resolutionKey(axis);
  const cells = strategy[key];
  const passed = scope.passed(childPointer(`/${strategyKey(scope.role)}`, key));
  return typeof cells === "number" && passed ? cells : undefined;
}

function checkMapping(scope: RuleScope, strategy: FileObject, pools: number | undefined): void {
  const key = mappingKey(scope.role);
  const axes = axesOfStrategy(scope.role, strategy);
  if (islInDispute(scope, strategy) || depthOf(strategy[key], axes.length) !== axes.length) return;
  checkNesting(scope, strategy, key, pools);
}

/** Same shape as the mapping, a list of distinct other pools in each cell. */
function checkFallbacks(scope: RuleScope, strategy: FileObject, pools: number | undefined): void {
  const key = fallbacksKey(scope.role);
  const depth = axesOfStrategy(scope.role, strategy).length + 1;
  if (islInDispute(scope, strategy) || depthOf(strategy[key], depth) !== depth) return;
  checkNesting(scope, strategy, key, pools);
  const pointer = childPointer(`/${strategyKey(scope.role)}`, key);
  const own = strategy[mappingKey(scope.role)];
  checkFallbackCells(scope, { pointer, level: strategy[key] as unknown[], own, depth });
}

interface FallbackLevel {
  readonly pointer: string;
  readonly level: readonly unknown[];
  /** The mapping at the same place: a level of it, or the cell's pool. */
  readonly own: unknown;
  readonly depth: number;
}

function checkFallbackCells(scope: RuleScope, { pointer, level, own, depth }: FallbackLevel): void {
  const seen = new Set<unknown>();
  for (const [index, child] of level.entries()) {
    const at = childPointer(pointer, index);
    if (depth > 1) {
      const below = Array.isArray(own) ? own[index] : undefined;
      const next = { pointer: at, level: child as unknown[], own: below, depth: depth - 1 };
      checkFallbackCells(scope, next);
    } else if (child === own) {
      scope.report(at, "fallback-is-own-pool", `pool ${child} is the cell's own pool`);
    } else if (seen.has(child)) {
      scope.report(at, "duplicate-fallback", `pool ${child} is already in this list`);
    }
    seen.add(child);
  }
}

function islInDispute({ role, passed }: RuleScope, strategy: FileObject): boolean {
  const base = `/${strategyKey(role)}`;
  return (
    role === "agg" &&
    ["isl_min", "isl_max", "isl_resolution"].some(
      (key) => !Object.hasOwn(strategy, key) && !passed(childPointer(base, key)),
    )
  );
}

/** Lengths of every level under the strategy's `key`, and the pool indexes in it. */
function checkNesting(
  scope: RuleScope,
  strategy: FileObject,
  key: string,
  pools: number | undefined,
): void {
  const pointer = childPointer(`/${strategyKey(scope.role)}`, key);
  const level = strategy[key] as unknown[];
  const sizes = axesOfStrategy(scope.role, strategy).map((axis) => {
    return { axis, cells: cellsOf(scope, strategy, axis) };
  });
  checkLevel(scope, pointer, level, sizes);
  if (pools !== undefined) checkIndexes(scope, pointer, level, pools);
}

/** `depth` when `value` is that many levels of arrays with no array below; else another number. */
function depthOf(value: unknown, depth: number): number {
  if (depth === 0) return Array.isArray(value) ? 1 : 0;
  if (!Array.isArray(value)) return -1;
  return value.every((child) => depthOf(child, depth - 1) === depth - 1) ? depth : -1;
}

interface LevelSize {
  readonly axis: AxisName;
  readonly cells: number | undefined;
}

/** Lengths of one level of a mapping against its axis, then of the levels below. */
function checkLevel(
  scope: RuleScope,
  pointer: string,
  level: readonly unknown[],
  sizes: readonly LevelSize[],
): void {
  const [size, ...inner] = sizes;
  if (!size) return;
  const { axis, cells } = size;
  if (cells !== undefined && level.length !== cells) {
    const [reason, unit] = levelWords(inner.length);
    const message = `${unit} (${level.length}) does not match ${resolutionKey(axis)} (${cells})`;
    scope.report(pointer, reason, message);
  }
  if (inner.length === 0) return;
  for (const [index, child] of level.entries()) {
    checkLevel(scope, childPointer(pointer, index), child as unknown[], inner);
  }
}

/** Reason and noun of a level with `below` levels under it. */
function levelWords(below: number): [string, string] {
  if (below === 0) return ["row-length-mismatch", "row length"];
  return below === 1 ? ["rows-mismatch", "rows"] : ["planes-mismatch", "planes"];
}

function checkIndexes(
  scope: RuleScope,
  pointer: string,
  level: readonly unknown[],
  pools: number,
): void {
  for (const [index, child] of level.entries()) {
    const at = childPointer(pointer, index);
    if (Array.isArray(child)) checkIndexes(scope, at, child, pools);
    else if (scope.passed(at) && !isPool(child, pools)) {
      const message = `invalid pool index ${String(child)} (must be 0 to ${pools - 1})`;
      scope.report(at, "pool-index-out-of-range", message);
    }
  }
}

function checkOverrides(scope: RuleScope, strategy: FileObject, pools: number | undefined): void {
  const rules = strategy["priority_overrides"];
  if (!Array.isArray(rules)) return;
  const base = `/${strategyKey(scope.role)}/priority_overrides`;
  for (const [index, rule] of rules.entries()) {
    if (!isFileObject(rule)) continue;
    const at = (key: string): string => childPointer(childPointer(base, index), key);
    const report = (key: string, reason: string, message: string): void =>
      scope.report(at(key), reason, `priority_overrides[${index}]: ${message}`);
    const { min_priority: min, max_priority: max, target_pool: target } = rule;
    const bounded = scope.passed(at("min_priority")) && scope.passed(at("max_priority"));
    if (bounded && (min as number) > (max as number)) {
      const message = `min_priority (${min}) must be <= max_priority (${max})`;
      report("min_priority", "override-range", message);
    }
    if (pools !== undefined && scope.passed(at("target_pool")) && !isPool(target, pools)) {
      const message = `invalid target_pool ${target} (must be 0 to ${pools - 1})`;
      report("target_pool", "override-target", message);
    }
  }
}

function isPool(value: unknown, pools: number): boolean {
  return typeof value === "number" && value >= 0 && value < pools;
}
