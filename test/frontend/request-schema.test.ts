import { expect, it } from "vitest";
import { TiergridError } from "../../src/base/errors.ts";
import type { Fault } from "../../src/frontend/error-body.ts";
import { type ApiKind, parseRequest } from "../../src/frontend/request-schema.ts";

const rules = { ignoreUnknownFields: false, disableNvext: false };
const chat = { model: "m", messages: [{ role: "user", content: "hi" }] };
const completion = { model: "m", prompt: "hi" };

function parse(kind: ApiKind, body: unknown, changed = {}) {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  const bytes = new TextEncoder().encode(text);
  return parseRequest({ kind, bytes, header: () => undefined }, { ...rules, ...changed });
}

function refusal(kind: ApiKind, body: unknown): TiergridError {
  try {
    parse(kind, body);
  } catch (error) {
    if (error instanceof TiergridError) return error;
    throw error;
  }
  throw new Error("the body was accepted");
}

function faultsOf(kind: ApiKind, body: unknown): string[] {
  const error = refusal(kind, body);
  expect(error.code).toBe("invalid_request");
  const faults = error.details["errors"] as readonly Fault[];
  return faults.map(({ pointer, reason }) => `${pointer} ${reason}`);
}

it("accepts the smallest bodies", () => {
  expect(parse("chat", chat).body).toEqual(chat);
  expect(parse("completions", completion).body).toEqual(completion);
});

it.each([
  ["a text", "hello"],
  ["an empty text", ""],
  ["texts", ["a", "b"]],
  ["token ids", [1, 2, 4294967295]],
  ["lists of token ids", [[1], [2, 3]]],
])("accepts %s as prompt", (_name, prompt) => {
  expect(parse("completions", { model: "m", prompt }).body).toEqual({ model: "m", prompt });
});

it.each([
  ["a number", 5],
  ["nothing", []],
  ["an empty list of ids", [[]]],
  ["a mixture", ["a", 1]],
  ["a negative id", [-1]],
  ["a fraction", [1.5]],
  ["an id over u32", [4294967296]],
  ["too many prompts", Array.from({ length: 65 }, () => "x")],
])("refuses %s as prompt with one fault", (_name, prompt) => {
  expect(faultsOf("completions", { model: "m", prompt })).toHaveLength(1);
});

it("reports all faults at once, one line each", () => {
  const error = refusal("chat", {
    messages: [],
    temperature: 3,
    n: 9,
    stream_options: { include_usage: true },
    wrong: 1,
    also_wrong: 2,
  });
  const faults = error.details["errors"] as readonly Fault[];
  expect(faults.map(({ pointer, reason }) => `${pointer} ${reason}`).sort()).toEqual([
    "/also_wrong unknown-field",
    "/messages minItems",
    "/model required",
    "/n maximum",
    "/stream_options not-allowed",
    "/temperature maximum",
    "/wrong unknown-field",
  ]);
  expect(error.message.split("\n")).toHaveLength(faults.length);
  expect(error.message).toMatch(/^Validation: /);
});

it("drops unknown fields and names them when told to", () => {
  const request = parse("chat", { ...chat, wrong: 1 }, { ignoreUnknownFields: true });
  expect(request.body).toEqual(chat);
  expect(request.droppedFields).toEqual(["wrong"]);
});

it("drops what only engines may hand each other", () => {
  const body = { ...chat, kv_transfer_params: {}, bootstrap_room: 5, disaggregated_params: 1 };
  expect(parse("chat", body).body).toEqual(chat);
});

it("drops nvext and extra_args unread when they are switched off", () => {
  const body = { ...chat, nvext: "x", extra_args: 5 };
  expect(parse("chat", body, { disableNvext: true }).body).toEqual(chat);
});

it("refuses worker ids that JSON has already rounded, and takes them as text", () => {
  const pinned = (id: string) => `{"model":"m","prompt":"x","nvext":{"backend_instance_id":${id}}}`;
  expect(faultsOf("completions", pinned("9007199254740993"))).toEqual([
    "/nvext/backend_instance_id maximum",
  ]);
  expect(parse("completions", pinned('"9007199254740993"')).body.nvext?.backend_instance_id).toBe(
    "9007199254740993",
  );
  expect(faultsOf("completions", pinned('"-1"'))).toHaveLength(1);
});

it("refuses numbers that overflow to infinity", () => {
  expect(faultsOf("completions", '{"model":"m","prompt":"x","temperature":1e999}')).toHaveLength(1);
});

it("allows best_of only equal to n, and min_tokens within the output limit", () => {
  expect(faultsOf("completions", { ...completion, n: 2, best_of: 3 })).toEqual([
    "/best_of not-supported",
  ]);
  expect(faultsOf("chat", { ...chat, max_completion_tokens: 3, min_tokens: 4 })).toEqual([
    "/min_tokens maximum",
  ]);
});

it("bounds prompts times n", () => {
  const prompt = Array.from({ length: 9 }, () => "x");
  expect(parse("completions", { model: "m", prompt, n: 7 }).kind).toBe("completions");
  expect(faultsOf("completions", { model: "m", prompt, n: 8 })).toEqual(["/prompt maxItems"]);
});

it("shows at most 32 faults of many", () => {
  const body: Record<string, unknown> = { ...chat };
  for (let field = 0; field < 100; field++) body[`wrong${field}`] = 1;
  const error = refusal("chat", body);
  expect(error.details["errors"]).toHaveLength(32);
  expect(error.message).toMatch(/and 68 more$/);
});

const nested = (depth: number) => `${'{"a":'.repeat(depth)}1${"}".repeat(depth)}`;
const keys = (count: number) =>
  `{${Array.from({ length: count }, (_, key) => `"k${key}":1`).join(",")}}`;
const inMessage = (json: string) =>
  `{"model":"m","messages":[{"role":"user","content":"x","extra":${json}}]}`;

it("bounds depth and keys", () => {
  // The body, the list and the message are three levels and five keys.
  expect(parse("chat", inMessage(nested(61))).kind).toBe("chat");
  expect(refusal("chat", inMessage(nested(62))).message).toMatch(/deeper than 64/);
  expect(parse("chat", inMessage(keys(9995))).kind).toBe("chat");
  expect(refusal("chat", inMessage(keys(9996))).message).toMatch(/more than 10000 keys/);
});

it.each(["__proto__", "constructor", "prototype"])("refuses the key %s anywhere", (key) => {
  expect(refusal("chat", inMessage(`[{"${key}":1}]`)).message).toMatch("reserved key");
});

it.each(['{"model": secret', "", "[1]", '"text"', "null", '{"model":"m"}x'])(
  "refuses the document %j without repeating it",
  (text) => {
    const error = refusal("chat", text);
    expect(error.code).toBe("invalid_request");
    expect(error.message).not.toMatch(/secret/);
  },
);

it("refuses bytes that are not UTF-8", () => {
  const bytes = new Uint8Array([0x22, 0xff, 0x22]);
  const raw = { kind: "chat" as const, bytes, header: () => undefined };
  expect(() => parseRequest(raw, rules)).toThrow(/not valid JSON/);
});
