/**
 * The shape of a request's JSON: one table of the fields a router or worker acts on. Fields it does
 * not name pass through unchanged, so that newer clients and engines work through older routers.
 */
import { TiergridError } from "../base/errors.ts";
import type { RequestBody } from "./requests.ts";

export type JsonObject = Readonly<Record<string, unknown>>;

const u32Max = 0xffffffff;

interface Kind {
  /** What an error says was expected. */
  readonly expected: string;
  readonly holds: (value: unknown) => boolean;
}
/** A request names few of the fields there are: its own are walked and looked up here. */
type Fields = ReadonlyMap<string, Kind | Fields>;
interface FieldTable {
  readonly [field: string]: Kind | FieldTable;
}

const kind = (expected: string, holds: (value: unknown) => boolean): Kind => ({ expected, holds });
const isText = (value: unknown): boolean => typeof value === "string";
const isInteger = (value: unknown): boolean => Number.isSafeInteger(value);
export const isU32 = (value: unknown): value is number =>
  typeof value === "number" && value >>> 0 === value;
const isWorkerId = (value: unknown): boolean =>
  typeof value === "string" ? /^\d{1,20}$/.test(value) : isInteger(value) && Number(value) >= 0;

const text = kind("a string", isText);
const flag = kind("a boolean", (value) => typeof value === "boolean");
const number = kind("a finite number", (value) => Number.isFinite(value));
const integer = kind("an integer", isInteger);
const u32 = kind(`an integer in [0, ${u32Max}]`, isU32);
const object = kind("an object", isObject);
const workerId = kind("a decimal string or a safe integer >= 0", isWorkerId);
const listOf = (item: Kind): Kind =>
  kind(`an array, each item ${item.expected}`, (value) => {
    return Array.isArray(value) && value.every(item.holds);
  });

const bodyTable: FieldTable = {
  model: text,
  request_id: text,
  stop_conditions: {
    max_tokens: u32,
    min_tokens: u32,
    stop: listOf(text),
    stop_token_ids: listOf(u32),
    ignore_eos: flag,
  },
  sampling_options: { n: u32, temperature: number, top_p: number, seed: integer },
  routing: {
    backend_instance_id: workerId,
    prefill_worker_id: workerId,
    decode_worker_id: workerId,
    dp_rank: u32,
    prefill_dp_rank: u32,
    expected_output_tokens: u32,
    lora_name: text,
    cache_salt: text,
    priority_jump: number,
    strict_priority: u32,
    do_not_queue: flag,
    priority: integer,
    allowed_worker_ids: listOf(workerId),
  },
  router: {
    ttft_target: number,
    itl_target: number,
    best_fit: flag,
    ttft_source: text,
    itl_source: text,
  },
  router_config_override: object,
  prefill_result: { prompt_tokens_details: object },
  annotations: listOf(text),
  extra_args: object,
};

const bodyFields: Fields = fieldsOf(bodyTable);

export function isObject(value: unknown): value is JsonObject {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

/** The JSON object that `text` is; throws `invalid_request` naming `what` and what came instead. */
export function readJsonObject(text: string | Uint8Array, what: string): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(typeof text === "string" ? text : utf8.decode(text));
  } catch {
    const message = `${what} must be a JSON object, got ${text.length} characters that are not JSON`;
    throw new TiergridError("invalid_request", message);
  }
  if (isObject(value)) return value;
  const message = `${what} must be a JSON object, got ${shown(value)}`;
  throw new TiergridError("invalid_request", message);
}

const utf8 = new TextDecoder("utf-8", { fatal: true });

/** A value for an error message: JSON, at most 80 characters. */
export function shown(value: unknown): string {
  if (value === undefined) return "nothing";
  const json = JSON.stringify(value) ?? String(value);
  return json.length > 80 ? `${json.slice(0, 79)}…` : json;
}

/** Throws `invalid_request` with the path of the first known field that has a wrong type. */
export function checkRequestBody(body: JsonObject): asserts body is RequestBody {
  checkFields(body, bodyFields, "");
}

function checkFields(value: JsonObject, fields: Fields, path: string): void {
  for (const name in value) {
    const found = value[name];
    const field = found === undefined || found === null ? undefined : fields.get(name);
    if (field === undefined) continue;
    if ("holds" in field) {
      if (!field.holds(found)) fail(path + name, field.expected, found);
    } else if (isObject(found)) checkFields(found, field, `${path}${name}.`);
    else fail(path + name, "an object", found);
  }
}

function fieldsOf(table: FieldTable): Fields {
  return new Map(
    Object.entries(table).map(([name, field]) => [name, isKind(field) ? field : fieldsOf(field)]),
  );
}

function isKind(field: Kind | FieldTable): field is Kind {
  return "holds" in field && typeof field.holds === "function";
}

function fail(path: string, expected: string, found: unknown): never {
  const message = `${path} must be ${expected}, got ${shown(found)}`;
  throw new TiergridError("invalid_request", message, { field: path });
}
