/**
 * A checked body becomes what travels: per prompt its token ids and the request body for the bus.
 * Template and tokenizer run once; the ids go to every later phase.
 */
import { TiergridError } from "../base/errors.ts";
import type { RequestBody, SamplingOptions } from "../protocol/requests.ts";
import {
  type ApiRequest,
  type ChatBody,
  type ChatMessage,
  engineOnlyField,
  type GenerationOptions,
} from "./request-schema.ts";
import type { ServedModel } from "./served-model.ts";
import type { ModelTokenizer } from "./tokenizer.ts";
import type { TextEncoding } from "./tokenizer-thread.ts";

/** One answer to make: a prompt, and the body that goes with it. */
export interface PreparedChoice {
  readonly body: RequestBody;
  readonly tokens: Uint32Array;
  /** Which prompt; choices of one prompt share `tokens`. */
  readonly prompt: number;
}

export interface PreparedRequest {
  readonly choices: readonly PreparedChoice[];
  /** All prompts, each counted once. */
  readonly promptTokens: number;
  readonly stopStrings: readonly string[];
  readonly minTokens: number;
  /** The text after the chat template, for the annotation of that name. */
  readonly formattedPrompt: string | undefined;
}

export interface PreprocessTools {
  readonly tokenizer: ModelTokenizer;
  readonly encoding: TextEncoding;
  /** Told how long the chat template took, if there is one. */
  readonly onTemplate: (durationMs: number) => void;
  readonly nowMs: () => number;
  readonly wallMs: () => number;
}

export interface Preprocessing {
  readonly request: ApiRequest;
  readonly model: ServedModel;
  readonly requestId: string;
}

const promptCharsMax = 1_000_000;
/** More characters per token than this cannot fit any context. */
const charsPerTokenMax = 8;

const samplingFields = [
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "presence_penalty",
  "frequency_penalty",
  "repetition_penalty",
  "length_penalty",
  "seed",
  "logit_bias",
  "include_stop_str_in_output",
];
const guidedFields = ["json", "regex", "choice", "grammar"];

/**
 * Tokenizes and builds the bus bodies. Throws `context_length_exceeded` when prompt and output
 * limit do not fit the model, `invalid_request` for an empty prompt or a refusing template.
 */
export async function preprocess(
  { request, model, requestId }: Preprocessing,
  tools: PreprocessTools,
  signal: AbortSignal,
): Promise<PreparedRequest> {
  const { prompts, formattedPrompt } = await promptTokens(request, model, tools, signal);
  const shared = sharedBody(request, tools);
  const sampling = samplingOptions(request.body);
  const n = request.body.n ?? 1;
  const choices: PreparedChoice[] = [];
  for (const [prompt, tokens] of prompts.entries()) {
    const maxTokens = outputLimit(request, tokens.length, model.contextLength);
    const stop_conditions = stopConditions(request.body, maxTokens);
    for (let copy = 0; copy < n; copy++) {
      const sampling_options = copyOf(sampling, copy);
      const body = { ...shared, request_id: requestId, stop_conditions, sampling_options };
      choices.push({ body, tokens, prompt });
    }
  }
  return {
    choices,
    promptTokens: prompts.reduce((sum, tokens) => sum + tokens.length, 0),
    stopStrings: stopStrings(request.body),
    minTokens: request.body.min_tokens ?? 0,
    formattedPrompt,
  };
}

async function promptTokens(
  request: ApiRequest,
  model: ServedModel,
  tools: PreprocessTools,
  signal: AbortSignal,
): Promise<{ prompts: Uint32Array[]; formattedPrompt: string | undefined }> {
  const given = request.body.nvext?.token_data;
  if (given) return { prompts: [checkedTokens(given)], formattedPrompt: undefined };
  if (request.kind === "chat") {
    const startedMs = tools.nowMs();
    const formattedPrompt = chatText(request.body, tools.tokenizer);
    tools.onTemplate(tools.nowMs() - startedMs);
    const encode = (text: string) => tools.encoding.encode(text, signal);
    const tokens = await encodeText(formattedPrompt, model, encode);
    return { prompts: [tokens], formattedPrompt };
  }
  const { prompt } = request.body;
  const several = Array.isArray(prompt) && typeof prompt[0] !== "number";
  const list = (several ? prompt : [prompt]) as readonly (string | readonly number[])[];
  const chars = list.reduce((sum, one) => sum + (typeof one === "string" ? one.length : 0), 0);
  const encode = (text: string) => tools.encoding.encode(text, signal, chars);
  const prompts: Uint32Array[] = [];
  for (const one of list) {
    if (typeof one === "string") prompts.push(await encodeText(one, model, encode));
    else prompts.push(checkedTokens(one));
  }
  return { prompts, formattedPrompt: undefined };
}

async function encodeText(
  text: string,
  model: ServedModel,
  encode: (text: string) => Promise<Uint32Array>,
): Promise<Uint32Array> {
  const charsMax = Math.min(promptCharsMax, charsPerTokenMax * model.contextLength);
  if (text.length > charsMax) {
    const message = `the prompt has ${text.length} characters, at most ${charsMax} are accepted`;
    throw new TiergridError("context_length_exceeded", message, { limit: charsMax });
  }
  const tokens = await encode(text);
  if (tokens.length === 0) throw emptyPrompt();
  return tokens;
}

function checkedTokens(ids: readonly number[]): Uint32Array {
  if (ids.length === 0) throw emptyPrompt();
  return Uint32Array.from(ids);
}

function emptyPrompt(): TiergridError {
  const message = "Validation: the prompt has no tokens, expected at least one";
  return new TiergridError("invalid_request", message, { param: "prompt" });
}

function chatText(body: ChatBody, tokenizer: ModelTokenizer): string {
  const messages = body.messages.map((message) => ({ ...message, content: contentText(message) }));
  if (body.nvext?.use_raw_prompt) return messages.map(({ content }) => content).join("\n");
  const open = body.continue_final_message ?? false;
  return tokenizer.renderChat({
    ...body.chat_template_kwargs,
    messages,
    tools: body.tools ?? null,
    tool_choice: body["tool_choice"] ?? null,
    reasoning_effort: body["reasoning_effort"] ?? null,
    add_generation_prompt: body.add_generation_prompt ?? !open,
    continue_final_message: open,
  });
}

function contentText({ content }: ChatMessage): string {
  if (content === undefined || content === null) return "";
  return typeof content === "string" ? content : content.map(({ text }) => text).join("");
}

/** The caller's output limit, else what the context leaves; both must fit the context. */
function outputLimit(request: ApiRequest, islTokens: number, contextLength: number): number {
  const chatLimit = request.kind === "chat" ? request.body.max_completion_tokens : undefined;
  const asked = chatLimit ?? request.body.max_tokens;
  const needed = islTokens + (asked ?? 1);
  if (needed > contextLength) {
    const message =
      `the model takes ${contextLength} tokens; the prompt has ${islTokens} ` +
      `and the answer may have ${asked ?? 1}`;
    const details = {
      limit: contextLength,
      param: request.kind === "chat" ? "messages" : "prompt",
    };
    throw new TiergridError("context_length_exceeded", message, details);
  }
  return asked ?? contextLength - islTokens;
}

function sharedBody(request: ApiRequest, tools: PreprocessTools): RequestBody {
  const { body, hints } = request;
  const { nvext } = body;
  const shared: Record<string, unknown> = {
    model: body.model,
    eos_token_ids: tools.tokenizer.eosTokenIds,
    output_options: { skip_special_tokens: body.skip_special_tokens ?? true },
    request_timestamp_ms: tools.wallMs(),
  };
  if (hints.routing) shared["routing"] = hints.routing;
  if (hints.targets) shared["router"] = hints.targets;
  const extraArgs = engineArgs(body.extra_args ?? {});
  if (Object.keys(extraArgs).length > 0) shared["extra_args"] = extraArgs;
  if (nvext?.annotations) shared["annotations"] = nvext.annotations;
  if (nvext?.agent_context) shared["agent_context"] = nvext.agent_context;
  return shared;
}

/** The caller's engine arguments without SLA targets and without what only engines may send. */
function engineArgs(given: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const kept = Object.entries(given).filter(
    ([name]) => name !== "ttft_target" && name !== "itl_target" && !engineOnlyField.test(name),
  );
  return Object.fromEntries(kept);
}

function stopConditions(body: GenerationOptions, maxTokens: number): Record<string, unknown> {
  const conditions: Record<string, unknown> = { max_tokens: maxTokens };
  if (body.min_tokens) conditions["min_tokens"] = body.min_tokens;
  const thinking = body.nvext?.max_thinking_tokens;
  if (thinking !== undefined && thinking !== null) conditions["max_thinking_tokens"] = thinking;
  if (body.ignore_eos) return { ...conditions, ignore_eos: true };
  const strings = stopStrings(body);
  if (strings.length > 0) conditions["stop"] = strings;
  const ids = [...stopList(body).filter((stop) => typeof stop === "number")];
  if (body.stop_token_ids) ids.push(...body.stop_token_ids);
  if (ids.length > 0) conditions["stop_token_ids"] = ids;
  return conditions;
}

function stopList({ stop }: GenerationOptions): readonly (string | number)[] {
  if (stop === undefined || stop === null) return [];
  return typeof stop === "string" ? [stop] : stop;
}

/** `ignore_eos` clears every stop list. */
function stopStrings(body: GenerationOptions): readonly string[] {
  if (body.ignore_eos) return [];
  return stopList(body).filter((stop) => typeof stop === "string");
}

function samplingOptions(body: GenerationOptions): SamplingOptions {
  const options: Record<string, unknown> = { n: 1 };
  for (const field of samplingFields) {
    if (body[field] !== undefined && body[field] !== null) options[field] = body[field];
  }
  if (body.nvext?.greed_sampling) options["temperature"] = 0;
  const guided = guidedDecoding(body);
  if (guided !== undefined) options["guided_decoding"] = guided;
  return options;
}

function guidedDecoding(body: GenerationOptions): Record<string, unknown> | undefined {
  for (const field of guidedFields) {
    const value = body[`guided_${field}`];
    if (value !== undefined && value !== null) return { [field]: value };
  }
  const format = body["response_format"] as Record<string, unknown> | null | undefined;
  if (format?.["type"] === "json_object") return { json: { type: "object" } };
  if (format?.["type"] !== "json_schema") return undefined;
  const named = format["json_schema"] as Record<string, unknown> | null | undefined;
  return { json: named?.["schema"] ?? { type: "object" } };
}

/** Copies of one prompt sample with neighbouring seeds, else all would be the same answer. */
function copyOf(sampling: SamplingOptions, copy: number): SamplingOptions {
  const { seed } = sampling;
  return typeof seed === "number" && copy > 0 ? { ...sampling, seed: seed + copy } : sampling;
}
