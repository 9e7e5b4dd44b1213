/** Pool configs with other mappings, and as text: short values and mapping rows on one line each. */
import type { Role } from "../core/sla-grid.ts";
import type { PoolConfig } from "./pool-config.ts";
import {
  type FileObject,
  fallbacksKey,
  isFileObject,
  type Json,
  type JsonObject,
  mappingKey,
  rolesOf,
  strategyKey,
} from "./pool-config-keys.ts";
import { modeOf } from "./pool-config-schema.ts";

const lineCharsMax = 90;

/**
 * The file with the mapping of every strategy replaced by what `mappingOf` answers. A cell's new pool
 * leaves the cell's list of fallbacks.
 */
export function withMappings(
  file: FileObject,
  mappingOf: (strategy: FileObject, role: Role) => unknown,
): FileObject {
  const strategies = rolesOf[modeOf(file)].flatMap((role) => {
    const strategy = file[strategyKey(role)];
    if (!isFileObject(strategy)) return [];
    const mapping = mappingOf(strategy, role);
    const key = fallbacksKey(role);
    const fallbacks = Object.hasOwn(strategy, key) && { [key]: without(strategy[key], mapping) };
    return [[strategyKey(role), { ...strategy, [mappingKey(role)]: mapping, ...fallbacks }]];
  });
  return { ...file, ...Object.fromEntries(strategies) };
}

/** Lists nested like `mapping`, without its pool in each; another shape is the loader's to refuse. */
function without(fallbacks: unknown, mapping: unknown): unknown {
  if (!Array.isArray(fallbacks)) return fallbacks;
  if (!Array.isArray(mapping)) return fallbacks.filter((pool) => pool !== mapping);
  return fallbacks.map((inner, at) => without(inner, mapping[at]));
}

/**
 * JSON of `config` in its normal form: every default written out, in the newest spelling. A `schema`
 * that is text becomes the `$schema` that editors read.
 */
export function poolConfigText(config: PoolConfig, schema?: unknown): string {
  const head = typeof schema === "string" ? { $schema: schema } : {};
  return `${jsonText({ ...head, ...config.normal }, "")}\n`;
}

function jsonText(value: Json, indent: string): string {
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const line = oneLine(value);
  const isNested = Array.isArray(value) && value.some((child) => Array.isArray(child));
  if (line.length <= lineCharsMax && !isNested && indent !== "") return line;
  const inner = `${indent}  `;
  if (Array.isArray(value)) {
    if (value.length === 0) return "[]";
    const rows = value.map((child) => `${inner}${jsonText(child, inner)}`);
    return `[\n${rows.join(",\n")}\n${indent}]`;
  }
  const rows = Object.entries(value as JsonObject).map(
    ([key, child]) => `${inner}${JSON.stringify(key)}: ${jsonText(child, inner)}`,
  );
  return `{\n${rows.join(",\n")}\n${indent}}`;
}

function oneLine(value: Json): string {
  if (Array.isArray(value)) return `[${value.map(oneLine).join(", ")}]`;
  if (!isFileObject(value)) return JSON.stringify(value);
  const pairs = Object.entries(value as JsonObject).map(
    ([key, child]) => `${JSON.stringify(key)}: ${oneLine(child)}`,
  );
  return pairs.length === 0 ? "{}" : `{ ${pairs.join(", ")} }`;
}
