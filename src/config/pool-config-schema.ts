/** First pass over a pool config: keys and types, by `schemas/pool-config.schema.json`. */
import { readFileSync } from "node:fs";
import type { ErrorObject, ValidateFunction } from "ajv";
import { Ajv2020 } from "ajv/dist/2020.js";
import { didYouMean } from "../base/nearest-name.ts";
import { type ConfigFault, childPointer, describeValue } from "./config-fault.ts";
import {
  type FileObject,
  isFileObject,
  type Mode,
  rolesOf,
  strategyKey,
} from "./pool-config-keys.ts";

const schemaUrl = new URL("../../schemas/pool-config.schema.json", import.meta.url);

/** Faults of one key: the kind that explains the others at the same pointer comes first. */
const reasonRank = ["not-finite", "wrong-type"];

/** Mode of a file; one that is missing or wrong counts as the default. */
export function modeOf(file: FileObject): Mode {
  return Object.hasOwn(file, "mode") && file["mode"] === "agg" ? "agg" : "disagg";
}

/** Every fault the schema finds, at most one per pointer, unsorted. */
export function schemaFaults(value: unknown): ConfigFault[] {
  if (!isFileObject(value)) {
    const message = `a pool config is one object, got ${describeValue(value)}`;
    return [{ pointer: "", reason: "not-an-object", message }];
  }
  const validate = compiledSchema();
  if (validate(value)) return [];
  const mode = modeOf(value);
  const found = (validate.errors ?? []).flatMap((error) => faultOf(error, mode) ?? []);
  const faults = onePerPointer(onlyDepth(found));
  // With the mode in doubt, no other key can be called missing or unknown.
  const modeFault = faults.find(({ pointer }) => pointer === "/mode");
  return modeFault ? [modeFault] : faults;
}

/** The parts of the schema that are looked at beside ajv. */
interface SchemaParts {
  readonly $defs: Readonly<Record<string, { readonly properties?: object }>>;
}
let schema: SchemaParts | undefined;
let compiled: ValidateFunction | undefined;

/** Compiled on first use: commands that load no pool config do not pay for it. */
function compiledSchema(): ValidateFunction {
  const options = { strict: true, strictRequired: false, allErrors: true, verbose: true } as const;
  compiled ??= new Ajv2020(options).compile(schemaParts());
  return compiled;
}

function schemaParts(): SchemaParts {
  schema ??= JSON.parse(readFileSync(schemaUrl, "utf8")) as SchemaParts;
  return schema;
}

/** Names the strategies that know a key which stands beside them; "" when none does. */
function strategiesWith(key: string, mode: Mode): string {
  const { $defs } = schemaParts();
  const roles = rolesOf[mode].filter((role) => {
    return Object.hasOwn($defs[`${role}Strategy`]?.properties ?? {}, key);
  });
  return roles.length === 0 ? "" : ` (it belongs in ${roles.map(strategyKey).join(" or ")})`;
}

function faultOf(error: ErrorObject, mode: Mode): ConfigFault | undefined {
  const { instancePath: pointer, keyword, params, data, parentSchema } = error;
  const fault = (at: string, reason: string, message: string): ConfigFault => ({
    pointer: at,
    reason,
    message,
  });
  switch (keyword) {
    case "if": // Only says that a branch failed; the branch has its own errors.
      return undefined;
    case "type":
      return typeFault(error);
    case "minimum":
    case "exclusiveMinimum":
      return fault(pointer, "not-positive", `must be positive, got ${String(data)}`);
    case "maximum":
      return fault(
        pointer,
        "above-maximum",
        `must be at most ${params["limit"]}, got ${String(data)}`,
      );
    case "maxLength": {
      const chars = (data as string).length;
      const message = `must have at most ${params["limit"]} characters, got ${chars}`;
      return fault(pointer, "too-long", message);
    }
    case "enum": {
      if (pointer === "/mode") {
        const message = `unknown mode ${quote(data)}, expected disagg or agg`;
        return fault(pointer, "unknown-mode", message);
      }
      const allowed = (params["allowedValues"] as readonly string[]).join(" or ");
      return fault(pointer, "not-allowed", `must be ${allowed}, got ${describeValue(data)}`);
    }
    case "required":
    case "dependentRequired": {
      const key = String(params["missingProperty"]);
      const at = childPointer(pointer, key);
      if (keyword === "required") {
        return fault(at, "required", `${key} required${pointer === "" ? ` for ${mode} mode` : ""}`);
      }
      const message = `${key} is missing: isl_min, isl_max, isl_resolution come all or none`;
      return fault(at, "isl-axis-incomplete", message);
    }
    case "additionalProperties": {
      const key = String(params["additionalProperty"]);
      const known = Object.keys((parentSchema?.["properties"] ?? {}) as object);
      const hint = (pointer === "" && strategiesWith(key, mode)) || didYouMean(key, known);
      return fault(childPointer(pointer, key), "unknown-key", `unknown key ${quote(key)}${hint}`);
    }
    default:
      return fault(pointer, keyword, error.message ?? keyword);
  }
}

/** The mapping or the fallbacks that a pointer leads into, as its first group. */
const nestedPools = /^(.*_pool_(?:mapping|fallbacks))\/./;

/** A wrong type below a mapping is wrong nesting when either side of it is an array. */
function typeFault({ instancePath: pointer, params, data }: ErrorObject): ConfigFault {
  const expected = [params["type"] as string | string[]].flat().join(" or ");
  if (typeof data === "number" && !Number.isFinite(data)) {
    const message = `must be a finite ${expected}, got a number that overflows`;
    return { pointer, reason: "not-finite", message };
  }
  const nested = nestedPools.exec(pointer)?.[1];
  if (nested !== undefined && (expected === "array" || Array.isArray(data))) {
    const message = nested.endsWith("mapping")
      ? "mapping must be a D-dimensional array of integers: D = 2, or 3 for agg with an ISL axis"
      : "fallbacks must be nested like the mapping, with a list of pool indexes in each cell";
    return { pointer: nested, reason: "mapping-depth", message };
  }
  const message = `must be ${expected}, got ${describeValue(data)}`;
  return { pointer, reason: "wrong-type", message };
}

/** Wrong nesting is the only fault of its mapping, and none while the ISL axis is in dispute. */
function onlyDepth(faults: readonly ConfigFault[]): ConfigFault[] {
  const islInDispute = faults.some(({ reason }) => reason === "isl-axis-incomplete");
  const wrongDepth = new Set(
    faults.filter(({ reason }) => reason === "mapping-depth").map(({ pointer }) => pointer),
  );
  return faults.filter(({ pointer, reason }) => {
    if (reason === "mapping-depth") return !islInDispute;
    const nested = nestedPools.exec(pointer)?.[1];
    return nested === undefined || !wrongDepth.has(nested);
  });
}

function onePerPointer(faults: readonly ConfigFault[]): ConfigFault[] {
  const rank = ({ reason }: ConfigFault): number => {
    const place = reasonRank.indexOf(reason);
    return place < 0 ? reasonRank.length : place;
  };
  const first = new Map<string, ConfigFault>();
  for (const fault of faults) {
    const known = first.get(fault.pointer);
    if (!known || rank(fault) < rank(known)) first.set(fault.pointer, fault);
  }
  return [...first.values()];
}

function quote(value: unknown): string {
  return JSON.stringify(value) ?? String(value);
}
