/**
 * Bodies of the two generation endpoints: bytes in, a checked body out. `schemas/*.schema.json` hold
 * the truth about fields; here are only the rules between fields. Every fault of a request is
 * reported in one answer.
 */
import { readFileSync } from "node:fs";
import type { ErrorObject, ValidateFunction } from "ajv/dist/2020.js";
import { Ajv2020 } from "ajv/dist/2020.js";
import { TiergridError } from "../base/errors.ts";
import { parseBoundedJson } from "./bounded-json.ts";
import type { Fault } from "./error-body.ts";
import {
  type CallerHints,
  type HeaderReader,
  type Nvext,
  readHints,
  timeoutHeader,
} from "./routing-hints.ts";

export type ApiKind = "chat" | "completions";
/** Fields of both endpoints that code reads by name; the rest is passed on by name lists. */
export interface GenerationOptions {
  readonly model: string;
  readonly stream?: boolean | null;
  readonly stream_options?: { readonly include_usage?: boolean | null } | null;
  readonly n?: number | null;
  readonly max_tokens?: number | null;
  readonly min_tokens?: number | null;
  readonly ignore_eos?: boolean | null;
  readonly stop?: string | readonly (string | number)[] | null;
  readonly stop_token_ids?: readonly number[] | null;
  readonly include_stop_str_in_output?: boolean | null;
  readonly skip_special_tokens?: boolean | null;
  readonly return_token_ids?: boolean | null;
  readonly extra_args?: Readonly<Record<string, unknown>> | null;
  readonly nvext?: Nvext | null;
  readonly [field: string]: unknown;
}

export type CompletionPrompt =
  | string
  | readonly string[]
  | readonly number[]
  | readonly (readonly number[])[];

export interface CompletionBody extends GenerationOptions {
  readonly prompt: CompletionPrompt;
  readonly best_of?: number | null;
}

export interface ChatMessage {
  readonly role: string;
  readonly content?: string | readonly { readonly type: "text"; readonly text: string }[] | null;
  readonly [field: string]: unknown;
}

export interface ChatBody extends GenerationOptions {
  readonly messages: readonly ChatMessage[];
  readonly max_completion_tokens?: number | null;
  readonly tools?: readonly unknown[] | null;
  readonly chat_template_kwargs?: Readonly<Record<string, unknown>> | null;
  readonly add_generation_prompt?: boolean | null;
  readonly continue_final_message?: boolean | null;
}

export type ApiRequest = (
  | { readonly kind: "chat"; readonly body: ChatBody }
  | { readonly kind: "completions"; readonly body: CompletionBody }
) & {
  readonly hints: CallerHints;
  /** Unknown fields that were dropped instead of refused. */
  readonly droppedFields: readonly string[];
};

/** A request as it came: which endpoint, its body, its headers. */
export interface RawRequest {
  readonly kind: ApiKind;
  readonly bytes: Uint8Array;
  readonly header: HeaderReader;
}

export interface RequestRules {
  /** Unknown top-level fields are dropped and named instead of refused. */
  readonly ignoreUnknownFields: boolean;
  /** Drops `nvext`, `extra_args` and the headers about routing unread. */
  readonly disableNvext: boolean;
}

/** Choices of one answer: prompts times `n`. */
export const choicesMax = 64;
/** The schema's own limit. */
const nMax = 8;
const faultsShownMax = 32;
/** Handed from engine to engine; a caller's value must never reach one. */
export const engineOnlyField = /^(?:kv_transfer_params|disaggregated_params|bootstrap_.*)$/;

const validators = loadValidators();

/** Parses and checks body and headers; throws one `invalid_request` that lists every fault. */
export function parseRequest(raw: RawRequest, rules: RequestRules): ApiRequest {
  const { kind } = raw;
  const body = parseBoundedJson(raw.bytes);
  if (typeof body !== "object" || body === null || Array.isArray(body)) {
    throw faultsError([
      { pointer: "", reason: "wrong-type", message: "the body must be a JSON object" },
    ]);
  }
  const fields = body as Record<string, unknown>;
  for (const name of Object.keys(fields)) {
    const nvext = name === "nvext" || name === "extra_args";
    if (engineOnlyField.test(name) || (nvext && rules.disableNvext)) delete fields[name];
  }
  const faults: Fault[] = [];
  const droppedFields = checkSchema(kind, fields, rules, faults);
  faults.push(...faultsBetweenFields(kind, fields));
  const header: HeaderReader = (name) =>
    rules.disableNvext && name !== timeoutHeader ? undefined : raw.header(name);
  const hints = readHints(fields, header, faults);
  if (faults.length > 0) throw faultsError(firstPerPointer(faults));
  return kind === "chat"
    ? { kind, body: fields as unknown as ChatBody, hints, droppedFields }
    : { kind, body: fields as unknown as CompletionBody, hints, droppedFields };
}

/** Adds the schema's complaints to `faults`; answers the unknown fields that it removed. */
function checkSchema(
  kind: ApiKind,
  fields: Record<string, unknown>,
  rules: RequestRules,
  faults: Fault[],
): string[] {
  const validate = validators[kind];
  const dropped: string[] = [];
  if (validate(fields)) return dropped;
  for (const error of validate.errors ?? []) {
    // The branch of an `if` that failed reports for it.
    if (error.keyword === "if") continue;
    const unknown = unknownTopLevelField(error);
    if (unknown === undefined || !rules.ignoreUnknownFields) {
      faults.push(faultOf(error));
    } else {
      dropped.push(unknown);
      delete fields[unknown];
    }
  }
  return dropped;
}

function firstPerPointer(faults: readonly Fault[]): Fault[] {
  const first = new Map<string, Fault>();
  for (const fault of faults) if (!first.has(fault.pointer)) first.set(fault.pointer, fault);
  return [...first.values()];
}

/** One 400 for all faults, one line per fault. */
export function faultsError(faults: readonly Fault[]): TiergridError {
  const shown = faults.slice(0, faultsShownMax);
  const lines = shown.map(({ pointer, message }) => `${pointer} ${message}`.trim());
  const more = faults.length - shown.length;
  if (more > 0) lines.push(`and ${more} more`);
  const param = shown[0]?.pointer.replace(/^\//, "").replaceAll("/", ".");
  return new TiergridError("invalid_request", `Validation: ${lines.join("\n")}`, {
    errors: shown,
    ...(param ? { param } : {}),
  });
}

function loadValidators(): Readonly<Record<ApiKind, ValidateFunction>> {
  const ajv = new Ajv2020({ strict: true, allErrors: true, allowUnionTypes: true });
  ajv.addSchema(readSchema("generation-options"));
  return {
    chat: ajv.compile(readSchema("chat-completion")),
    completions: ajv.compile(readSchema("completion")),
  };
}

/** Checked schema documents, also what `/openapi.json` shows. */
export function readSchema(name: string): Record<string, unknown> {
  const url = new URL(`../../schemas/${name}.schema.json`, import.meta.url);
  return JSON.parse(readFileSync(url, "utf8")) as Record<string, unknown>;
}

function unknownTopLevelField(error: ErrorObject): string | undefined {
  if (error.keyword !== "unevaluatedProperties") return undefined;
  return String(error.params["unevaluatedProperty"]);
}

function faultOf(error: ErrorObject): Fault {
  const pointer = error.instancePath;
  const { params } = error;
  switch (error.keyword) {
    case "unevaluatedProperties":
      return unknownField(`/${String(params["unevaluatedProperty"])}`);
    case "additionalProperties":
      return unknownField(`${pointer}/${String(params["additionalProperty"])}`);
    case "required": {
      const missing = `${pointer}/${String(params["missingProperty"])}`;
      return { pointer: missing, reason: "required", message: "is required" };
    }
    case "type": {
      const types = String(params["type"]).replaceAll(",", " or ");
      return { pointer, reason: "wrong-type", message: `must be ${types}` };
    }
    case "false schema":
      return { pointer, reason: "wrong-type", message: "does not have an accepted form" };
    case "enum": {
      const values = (params["allowedValues"] as unknown[]).map((value) => JSON.stringify(value));
      return { pointer, reason: "not-supported", message: `must be ${values.join(" or ")}` };
    }
    default:
      return { pointer, reason: error.keyword, message: error.message ?? "is not valid" };
  }
}

function unknownField(pointer: string): Fault {
  return {
    pointer: pointer.slice(0, 256),
    reason: "unknown-field",
    message: "is not a known field",
  };
}

/** Rules a schema cannot say; fields of a wrong type are the schema's business and are skipped. */
function faultsBetweenFields(kind: ApiKind, body: Readonly<Record<string, unknown>>): Fault[] {
  const faults: Fault[] = [];
  const rule = (broken: boolean, pointer: string, reason: string, message: string): void => {
    if (broken) faults.push({ pointer, reason, message });
  };
  const options = body["stream_options"];
  const hasOptions = options !== undefined && options !== null;
  rule(
    hasOptions && body["stream"] !== true,
    "/stream_options",
    "not-allowed",
    "is only allowed with stream: true",
  );
  const n = typeof body["n"] === "number" ? body["n"] : 1;
  const bestOf = body["best_of"];
  rule(
    typeof bestOf === "number" && bestOf !== n,
    "/best_of",
    "not-supported",
    `must equal n (${n})`,
  );
  const limit = body["max_completion_tokens"] ?? body["max_tokens"];
  const least = body["min_tokens"];
  rule(
    typeof limit === "number" && typeof least === "number" && least > limit,
    "/min_tokens",
    "maximum",
    `must be <= the output limit (${String(limit)})`,
  );
  if (kind === "completions") {
    const prompts = promptCount(body["prompt"]);
    rule(
      n <= nMax && prompts * n > choicesMax,
      "/prompt",
      "maxItems",
      `times n gives ${prompts * n} choices, at most ${choicesMax}`,
    );
  }
  return faults;
}

function promptCount(prompt: unknown): number {
  return Array.isArray(prompt) && typeof prompt[0] !== "number" ? prompt.length : 1;
}
