/** First pass over KV router settings: keys, types, ranges, by `schemas/kv-router-config.schema.json`. */
import { readFileSync } from "node:fs";
import type { ErrorObject, ValidateFunction } from "ajv";
import { Ajv2020 } from "ajv/dist/2020.js";
import { didYouMean } from "../base/nearest-name.ts";
import { type ConfigFault, childPointer, describeValue } from "./config-fault.ts";

export const kvRouterSchemaUrl: URL = new URL(
  "../../schemas/kv-router-config.schema.json",
  import.meta.url,
);

/** Settings of one source by their file keys, as written. */
export type Settings = Readonly<Record<string, unknown>>;

/** `config`: unknown keys are faults. `override`: they are ignored, null means absent. */
export type SettingsKind = "config" | "override";

/** Every fault the schema finds in `value`, at most one per pointer. */
export function kvRouterSchemaFaults(value: unknown, kind: SettingsKind): ConfigFault[] {
  const validate = compiled(kind);
  if (validate(value)) return [];
  const faults = new Map<string, ConfigFault>();
  for (const error of validate.errors ?? []) {
    const fault = faultOf(error);
    // A value of the wrong type also breaks its range; the first error is the type.
    if (!faults.has(fault.pointer)) faults.set(fault.pointer, fault);
  }
  return [...faults.values()];
}

let validators: Readonly<Record<SettingsKind, ValidateFunction>> | undefined;

/** Compiled on first use: commands that load no router config do not pay for it. */
function compiled(kind: SettingsKind): ValidateFunction {
  if (!validators) {
    const schema = JSON.parse(readFileSync(kvRouterSchemaUrl, "utf8")) as { $id: string };
    const ajv = new Ajv2020({
      strict: true,
      allErrors: true,
      allowUnionTypes: true,
      verbose: true,
    });
    validators = {
      config: ajv.compile(schema),
      override: ajv.compile({ $ref: `${schema.$id}#/$defs/request_override` }),
    };
  }
  return validators[kind];
}

function faultOf(error: ErrorObject): ConfigFault {
  const { instancePath: pointer, keyword, params, data } = error;
  const got = describeValue(data);
  switch (keyword) {
    case "type": {
      const expected = [params["type"] as string | string[]].flat().join(" or ");
      return { pointer, reason: "wrong-type", message: `must be ${expected}, got ${got}` };
    }
    case "minimum":
    case "maximum": {
      const bound = `${String(params["comparison"])} ${String(params["limit"])}`;
      const hint = pointer === "/overlap_score_credit" && keyword === "maximum" ? scaleHint : "";
      return { pointer, reason: "out-of-range", message: `must be ${bound}, got ${got}${hint}` };
    }
    case "enum": {
      const allowed = (params["allowedValues"] as readonly string[]).join(", ");
      return { pointer, reason: "not-allowed", message: `must be one of ${allowed}, got ${got}` };
    }
    case "required": {
      const key = String(params["missingProperty"]);
      return {
        pointer: childPointer(pointer, key),
        reason: "required",
        message: `${key} required`,
      };
    }
    case "additionalProperties": {
      const key = String(params["additionalProperty"]);
      const known = Object.keys((error.parentSchema?.["properties"] ?? {}) as object);
      const message = `unknown key ${key}${didYouMean(key, known)}`;
      return { pointer: childPointer(pointer, key), reason: "unknown-key", message };
    }
    default:
      return { pointer, reason: keyword, message: error.message ?? keyword };
  }
}

const scaleHint = "; to weigh prefill more than decode raise prefill_load_scale";
