/**
 * One request to a generation endpoint, from its bytes to its last.
 *
 *   body ─▶ checked ─▶ tokens ─▶ choices ─┬─ stream: events, headers with the first of them
 *                                         └─ unary: one body when the last choice has finished
 *
 * Whatever fails before the first event becomes a status; after it, an event without `[DONE]`.
 */
import type { IncomingMessage, ServerResponse } from "node:http";
import { RESPONSE_ALREADY_SENT } from "@hono/node-server/utils/response";
import { TiergridError } from "../base/errors.ts";
import { randomHex128 } from "../base/random.ts";
import { explainerOf, explainLegs } from "./admin-api.ts";
import type { AnswerIdentity, CollectedChoice } from "./answer-format.ts";
import { createStreamFormat, doneEvent, jsonEvent, unaryBody } from "./answer-format.ts";
import type { AnswerTools } from "./disaggregate.ts";
import { errorAnswer } from "./error-body.ts";
import type { FrontendParts } from "./frontend-parts.ts";
import { createGeneration, type Generation, type GenerationEvents } from "./generation.ts";
import { checkContentType, prepareRequest, servedModel } from "./prepare-request.ts";
import type { PreparedRequest } from "./preprocess.ts";
import { readBody } from "./read-body.ts";
import type { RequestRecord } from "./request-record.ts";
import { type ApiKind, type ApiRequest, parseRequest } from "./request-schema.ts";
import type { RouteExplanation } from "./route-explainer.ts";
import type { HeaderReader } from "./routing-hints.ts";
import type { ServedModel } from "./served-model.ts";
import { nodeTransport, pullTransport } from "./sse-transports.ts";
import { createSseWriter, type SseTransport, type SseWriter, sseHeaders } from "./sse-writer.ts";

/** One HTTP exchange; `outgoing` and `incoming` are absent in process. */
export interface Exchange {
  readonly kind: ApiKind;
  readonly requestId: string;
  readonly header: HeaderReader;
  readonly web: Request;
  readonly incoming: IncomingMessage | undefined;
  readonly outgoing: ServerResponse | undefined;
  /** Aborts with the `TiergridError` that ends the request: the client left, or we shut down. */
  readonly signal: AbortSignal;
  readonly record: RequestRecord;
  /** Headers of every answer. */
  readonly headers: Readonly<Record<string, string>>;
}

/** A checked request and all that is needed to answer it. */
interface Admitted {
  readonly exchange: Exchange;
  readonly parts: FrontendParts;
  readonly request: ApiRequest;
  readonly model: ServedModel;
  readonly prepared: PreparedRequest;
}

/** Answers the exchange; throws a `TiergridError` for what fails before the first byte. */
export async function answerRequest(exchange: Exchange, parts: FrontendParts): Promise<Response> {
  checkContentType(exchange.header("content-type"));
  const { settings } = parts;
  const bytes = await readBody(exchange, settings.bodyBytesMax);
  const raw = { kind: exchange.kind, bytes, header: exchange.header };
  const request = parseRequest(raw, settings);
  if (request.droppedFields.length > 0) {
    const fields = request.droppedFields.slice(0, 16).join(", ").slice(0, 256);
    parts.log.info("unknown fields dropped", { request_id: exchange.requestId, fields });
  }
  const model = servedModel(request, parts);
  exchange.record.started(model.name, request.body.stream === true);
  const { prepared, tookMs } = await prepareRequest(exchange, parts, { request, model });
  exchange.record.tokenized(prepared.promptTokens, tookMs);
  const admitted = { exchange, parts, request, model, prepared };
  exchange.signal.throwIfAborted();
  if (isQueryOnly(request)) return await queried(admitted);
  return request.body.stream ? await streamed(admitted) : await collected(admitted);
}

/** True for a request that asks only which workers it would get. */
function isQueryOnly({ body }: ApiRequest): boolean {
  const annotations = body.nvext?.annotations ?? [];
  return annotations.some((name) => /^query_instance_id(?::|$)/.test(name));
}

/** The workers a request would get, as the reference answers `query_instance_id`. */
async function queried(admitted: Admitted): Promise<Response> {
  const { exchange, parts, request, model, prepared } = admitted;
  const [choice] = prepared.choices;
  if (!choice) throw new TiergridError("internal_error", "a request without a choice");
  const legs = await explainLegs(explainerOf(parts), model.mode, choice);
  const nvext = { worker_id: chosenWorkers(legs), token_ids: Array.from(choice.tokens) };
  const finished = { index: 0, finishReason: "stop", nvext } as const;
  exchange.record.end();
  const { headers } = exchange;
  if (request.body.stream) {
    const format = createStreamFormat(identityOf(admitted), {
      includeUsage: false,
      returnTokenIds: false,
    });
    const events = format.finish(finished) + doneEvent;
    return new Response(events, { headers: { ...sseHeaders, ...headers } });
  }
  const { promptTokens } = prepared;
  const usage = { prompt_tokens: promptTokens, completion_tokens: 0, total_tokens: promptTokens };
  const collectedChoice = { ...finished, text: "", tokenIds: [] };
  const body = unaryBody(identityOf(admitted), [collectedChoice], usage, false);
  return Response.json(body, { headers });
}

/** Throws what kept a leg from getting a worker. */
function chosenWorkers(legs: readonly RouteExplanation[]): Record<string, unknown> {
  const [prefill, decode] = [legs[0], legs.at(-1)].map((leg) => {
    if (leg?.local?.chosen) return leg.local.chosen;
    const why = leg?.local_error ?? "no pool takes it";
    throw new TiergridError("no_endpoints", `no worker would get this request: ${why}`);
  });
  return {
    prefill_worker_id: prefill?.worker_id,
    prefill_dp_rank: prefill?.dp_rank,
    decode_worker_id: decode?.worker_id,
    decode_dp_rank: decode?.dp_rank,
  };
}

/** Collects every choice; the status is decided when the last has finished. */
function collected(admitted: Admitted): Promise<Response> {
  const { exchange, parts, request, prepared } = admitted;
  const identity = identityOf(admitted);
  const choices = prepared.choices.map(() => ({ text: "", tokenIds: [] as number[] }));
  const finished: CollectedChoice[] = [];
  return new Promise((resolve, reject) => {
    const generation = generationFor(admitted, {
      onPiece(index, text, tokenIds) {
        const choice = choices[index];
        if (!choice) return;
        choice.text += text;
        if (request.body.return_token_ids) for (const id of tokenIds) choice.tokenIds.push(id);
      },
      onFinish(choice) {
        const { text, tokenIds } = choices[choice.index] ?? { text: "", tokenIds: [] };
        finished.push({ ...choice, text, tokenIds });
      },
      onDone(usage) {
        finished.sort((a, b) => a.index - b.index);
        const ids = request.body.return_token_ids === true;
        const body = unaryBody(identity, finished, usage, ids);
        exchange.record.end();
        const route = parts.settings.routeHeaders ? generation.routeHeaders() : {};
        resolve(Response.json(body, { headers: { ...exchange.headers, ...route } }));
      },
      onError: reject,
    });
    run(exchange, generation);
  });
}

/** Streams every choice; resolves with the first event, when the headers go out. */
function streamed(admitted: Admitted): Promise<Response> {
  const { exchange, parts, request, prepared } = admitted;
  const includeUsage = request.body.stream_options?.include_usage === true;
  const returnTokenIds = request.body.return_token_ids === true;
  const format = createStreamFormat(identityOf(admitted), { includeUsage, returnTokenIds });
  const announced = prepared.choices.map(() => false);
  return new Promise((resolve, reject) => {
    let writer: SseWriter | undefined;
    const send = (index: number, event: string): void => {
      let events = event;
      if (!announced[index]) {
        announced[index] = true;
        events = format.role(index) + events;
      }
      if (writer === undefined) {
        const opened = openStream(admitted, generation);
        writer = opened.writer;
        for (const [name, value] of annotationsOf(admitted)) {
          events = format.annotation(name, value) + events;
        }
        writer.send(events);
        resolve(opened.response);
      } else writer.send(events);
    };
    const generation = generationFor(admitted, {
      onPiece(index, text, tokenIds) {
        if (text === "" && !(returnTokenIds && tokenIds.length > 0)) return;
        send(index, format.piece(index, text, tokenIds));
      },
      onFinish: (choice) => send(choice.index, format.finish(choice)),
      onDone(usage) {
        writer?.send((includeUsage ? format.usage(usage) : "") + doneEvent);
        writer?.end();
        exchange.record.end();
      },
      onError(error) {
        if (writer === undefined) return reject(error);
        const { overloadStatus } = parts.settings;
        const { body } = errorAnswer(error, { overloadStatus, random: parts.random });
        writer.send(jsonEvent(body));
        writer.end();
        exchange.record.end(error);
      },
    });
    run(exchange, generation);
  });
}

/** Starts the choices; they end with the exchange. */
function run({ signal }: Exchange, generation: Generation): void {
  const leave = (): void => generation.abort(signal.reason as TiergridError);
  signal.addEventListener("abort", leave, { once: true });
  generation.start();
}

function generationFor(admitted: Admitted, events: GenerationEvents): Generation {
  const { exchange, parts, request, model, prepared } = admitted;
  const { requestDeadlineMs } = parts.settings;
  const { body, hints } = request;
  const timeoutMs = Math.min(hints.timeoutMs ?? requestDeadlineMs, requestDeadlineMs);
  return createGeneration(
    {
      model,
      prepared,
      text: {
        tokenizer: parts.tokenizerOf(model.name),
        skipSpecialTokens: body.skip_special_tokens ?? true,
        stopStrings: prepared.stopStrings,
        keepStop: body.include_stop_str_in_output ?? false,
        minTokens: prepared.minTokens,
      },
      extraFields: body.nvext?.extra_fields ?? [],
      deadlineAtMs: exchange.record.receivedMs + timeoutMs,
      record: exchange.record,
    },
    answerTools(parts),
    events,
  );
}

function answerTools(parts: FrontendParts): AnswerTools {
  const { owner, models, settings, clock, metrics, log } = parts;
  return {
    owner,
    models,
    settings,
    clock,
    onFallback(why, cause) {
      metrics.counter("tiergrid_disagg_fallback_total", { why }).add();
      if (!cause) return;
      const { code, message } = cause;
      log.warn("prefill failed, a decode worker reads the prompt", { code, cause: message });
    },
    onPrefillComplete: () => metrics.counter("tiergrid_prefill_complete_answers_total").add(),
  };
}

function openStream(
  { exchange, parts }: Admitted,
  generation: Generation,
): { writer: SseWriter; response: Response } {
  const { settings, clock, metrics } = parts;
  const route = settings.routeHeaders ? generation.routeHeaders() : {};
  const headers = { ...sseHeaders, ...exchange.headers, ...route };
  let transport: SseTransport;
  let response: Response;
  if (exchange.outgoing) {
    transport = nodeTransport(exchange.outgoing, headers);
    response = RESPONSE_ALREADY_SENT;
  } else {
    const pulled = pullTransport();
    transport = pulled;
    response = new Response(pulled.body, { headers });
  }
  const writer = createSseWriter(transport, {
    clock,
    keepAliveMs: settings.keepAliveMs,
    pause() {
      metrics.counter("tiergrid_sse_write_stalls_total").add();
      generation.pause();
    },
    resume: () => generation.resume(),
    lost: (why) => generation.abort(new TiergridError("cancelled", lossTexts[why])),
  });
  return { writer, response };
}

const lossTexts = {
  client_gone: "the client left",
  stalled: "the client stopped reading",
} as const;

function annotationsOf({ exchange, request, prepared }: Admitted): [string, unknown][] {
  const asked = request.body.nvext?.annotations ?? [];
  const values: [string, () => unknown][] = [
    ["request_id", () => exchange.requestId],
    ["token_ids", () => [...(prepared.choices[0]?.tokens ?? [])]],
    ["formatted_prompt", () => prepared.formattedPrompt],
  ];
  return values
    .filter(([name]) => asked.includes(name))
    .map(([name, read]): [string, unknown] => [name, read()])
    .filter(([, value]) => value !== undefined)
    .reverse();
}

function identityOf({ exchange, parts, model }: Admitted): AnswerIdentity {
  const hex = randomHex128(parts.random);
  const uuid = hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
  return {
    kind: exchange.kind,
    id: `${exchange.kind === "chat" ? "chatcmpl" : "cmpl"}-${uuid}`,
    created: Math.floor(parts.clock.wallMs() / 1000),
    model: model.name,
  };
}
