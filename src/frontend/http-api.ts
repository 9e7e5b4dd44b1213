/**
 * The OpenAI-compatible HTTP surface: routes, request ids, errors. The same app answers a real
 * server (`listen`) and requests in process (`app.request`).
 */
import type { HttpBindings } from "@hono/node-server";
import { type Context, Hono } from "hono";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import { randomHex128 } from "../base/random.ts";
import { createAdminApi } from "./admin-api.ts";
import { errorAnswer } from "./error-body.ts";
import { type FrontendOptions, type FrontendParts, frontendDefaults } from "./frontend-parts.ts";
import { answerRequest, type Exchange } from "./generate-request.ts";
import { type HttpServer, startHttpServer } from "./http-server.ts";
import { RequestRecord } from "./request-record.ts";
import type { ApiKind } from "./request-schema.ts";
import type { ServedModel } from "./served-model.ts";
import { loadTokenizer, type ModelTokenizer, mockModelFolder } from "./tokenizer.ts";
import { createTextEncoding, type TextEncoding } from "./tokenizer-thread.ts";

/** `outgoing` and `incoming` are absent for `app.request`. */
interface Env {
  Bindings: Partial<HttpBindings>;
}

export interface Frontend {
  readonly app: Hono<Env>;
  /** What operators ask; served apart from the API. */
  readonly admin: Hono;
  /** Serves on `port` (0 = any free one); `close` drains running answers. */
  listen(address: { readonly host: string; readonly port: number }): Promise<HttpServer>;
  /** Requests that have not had their last byte. */
  inflight(): number;
  /** `/ready` answers 503 from here on, and keep-alive connections are asked to close. */
  drain(): void;
  /** Ends the tokenizer threads. */
  close(): Promise<void>;
}

/** Known routes of the API that answer 501. */
const notBuilt = [
  "/v1/embeddings",
  "/v1/responses",
  "/v1/messages",
  "/v1/messages/count_tokens",
  "/v1/images/generations",
  "/v1/videos/generations",
  "/v1/videos/generations/stream",
];

/** Wires the frontend; nothing listens before `listen`. */
export function createFrontend(options: FrontendOptions): Frontend {
  const encodings = new Map<ModelTokenizer, TextEncoding>();
  const parts = withDefaults(options, encodings);
  const state = { draining: false };
  const app = new Hono<Env>();
  addGeneration(app, parts, state);
  addModels(app, parts);
  addStatus(app, parts, state);
  for (const path of notBuilt) {
    app.post(path, () => {
      throw new TiergridError("not_implemented", `${path} is not built`);
    });
  }
  refuseOtherMethods(app);
  app.notFound((context) => {
    const error = new TiergridError("not_found", `there is no ${context.req.path.slice(0, 256)}`);
    return errorResponse(error, parts, {});
  });
  app.onError((thrown, context) => {
    const error = toTiergridError(thrown);
    if (error.code === "internal_error") {
      parts.log.error("request failed", { path: context.req.path, cause: error.message });
    }
    return errorResponse(error, parts, {});
  });
  const drain = (): void => {
    state.draining = true;
  };
  const inflight = (): number => parts.running.size;
  const abortAll = (): void => {
    const error = new TiergridError("subscriber_shutdown", "the server is shutting down");
    for (const abort of [...parts.running.values()]) abort(error);
  };
  return {
    app,
    admin: createAdminApi(parts),
    inflight,
    drain,
    listen: (address) => startHttpServer(app.fetch, address, { parts, drain, inflight, abortAll }),
    async close() {
      await Promise.all([...encodings.values()].map((encoding) => encoding.close()));
    },
  };
}

function withDefaults(
  options: FrontendOptions,
  encodings: Map<ModelTokenizer, TextEncoding>,
): FrontendParts {
  let mockTokenizer: ModelTokenizer | undefined;
  return {
    tokenizerOf: () => {
      mockTokenizer ??= loadTokenizer(mockModelFolder);
      return mockTokenizer;
    },
    busConnected: () => true,
    healthDetails: () => ({ endpoints: [], instances: [], pools: [] }),
    explainer: undefined,
    ...options,
    settings: { ...frontendDefaults, ...options.settings },
    encodingOf(tokenizer) {
      const found = encodings.get(tokenizer) ?? createTextEncoding(tokenizer, options.clock);
      encodings.set(tokenizer, found);
      return found;
    },
    running: new Map(),
  };
}

function addGeneration(app: Hono<Env>, parts: FrontendParts, state: { draining: boolean }): void {
  const routes: readonly (readonly [string, ApiKind])[] = [
    ["/v1/chat/completions", "chat"],
    ["/v1/completions", "completions"],
  ];
  for (const [path, kind] of routes) {
    app.post(path, (context) => exchangeOf(context, kind, parts, state.draining));
  }
}

/** Runs one generation request, from its id to the error answer it may end with. */
async function exchangeOf(
  context: Context<Env>,
  kind: ApiKind,
  parts: FrontendParts,
  draining: boolean,
): Promise<Response> {
  const requestId = givenRequestId(context) ?? randomHex128(parts.random);
  const headers = { "x-request-id": requestId, ...(draining && { connection: "close" }) };
  const { metrics, log, clock, settings, running } = parts;
  const recordTools = { metrics, log, clock, overloadStatus: settings.overloadStatus };
  const duplicate = running.has(requestId);
  const record = new RequestRecord(recordTools, kind, requestId, () => {
    if (!duplicate) running.delete(requestId);
  });
  const ending = new AbortController();
  try {
    if (duplicate) throw new TiergridError("duplicate_request", `${requestId} is under way`);
    running.set(requestId, (error) => ending.abort(error));
    onClientGone(context, () => {
      ending.abort(new TiergridError("cancelled", "the client left"));
    });
    const exchange: Exchange = {
      kind,
      requestId,
      headers,
      record,
      header: (name) => context.req.header(name),
      web: context.req.raw,
      incoming: context.env?.incoming,
      outgoing: context.env?.outgoing,
      signal: ending.signal,
    };
    return await answerRequest(exchange, parts);
  } catch (thrown) {
    const error = toTiergridError(thrown);
    record.end(error);
    return errorResponse(error, parts, headers);
  }
}

function onClientGone({ env, req }: Context<Env>, gone: () => void): void {
  const outgoing = env?.outgoing;
  if (!outgoing) req.raw.signal.addEventListener("abort", gone, { once: true });
  else {
    outgoing.once("close", () => {
      if (!outgoing.writableFinished) gone();
    });
  }
}

function givenRequestId({ req }: Context<Env>): string | undefined {
  const id = req.header("x-request-id");
  if (id !== undefined && /^[A-Za-z0-9._-]{1,128}$/.test(id)) return id;
  const older = req.header("x-dynamo-request-id");
  const uuid = /^[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}$/i;
  return older !== undefined && uuid.test(older) ? older : undefined;
}

function errorResponse(
  error: TiergridError,
  parts: FrontendParts,
  headers: Readonly<Record<string, string>>,
): Response {
  const { overloadStatus } = parts.settings;
  const answer = errorAnswer(error, { overloadStatus, random: parts.random });
  const allow = error.details["allow"];
  return Response.json(answer.body, {
    status: answer.status,
    headers: {
      "x-request-id": randomHex128(parts.random),
      ...headers,
      ...answer.headers,
      ...(typeof allow === "string" && { allow }),
    },
  });
}

function addModels(app: Hono<Env>, parts: FrontendParts): void {
  const shown = ({ name, created }: ServedModel) => ({
    id: name,
    object: "model",
    created,
    owned_by: "tiergrid",
  });
  app.get("/v1/models", (context) => {
    const ready = parts.models.list().filter((model) => model.ready);
    return context.json({ object: "list", data: ready.map(shown) });
  });
  // Model names may hold slashes.
  app.get("/v1/models/:id{.+}", (context) => {
    const model = parts.models.find(context.req.param("id"));
    if (model?.ready) return context.json(shown(model));
    throw new TiergridError("model_not_found", "the model does not exist", { param: "model" });
  });
}

function addStatus(app: Hono<Env>, parts: FrontendParts, state: { draining: boolean }): void {
  const servable = (): boolean => parts.models.list().some((model) => model.ready);
  app.get("/live", (context) => context.json({ status: "live" }));
  app.get("/health", (context) => {
    const status = servable() ? "healthy" : "unhealthy";
    return context.json({ status, ...parts.healthDetails() });
  });
  app.get("/ready", (context) => {
    const ready = !state.draining && parts.busConnected() && servable();
    return context.json({ status: ready ? "ready" : "not_ready" }, ready ? 200 : 503);
  });
  app.get("/metrics", async (context) => {
    const text = await parts.metrics.text();
    return context.text(text, 200, { "content-type": "text/plain; version=0.0.4; charset=utf-8" });
  });
}

/** 405 with `allow` for every path that exists under another method. */
function refuseOtherMethods(app: Hono<Env>): void {
  const methods = new Map<string, string>();
  for (const { path, method } of app.routes) {
    if (method !== "ALL") methods.set(path, method === "GET" ? "GET, HEAD" : method);
  }
  for (const [path, allow] of methods) {
    app.all(path, ({ req }) => {
      const message = `${req.path.slice(0, 256)} takes ${allow}, got ${req.method}`;
      throw new TiergridError("method_not_allowed", message, { allow });
    });
  }
}
