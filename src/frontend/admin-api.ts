/**
 * What operators ask of a frontend, apart from the API its clients use:
 *
 *   POST /explain                 a chat or completions body: where each leg of it would go
 *   GET  /explain/{decision_id}   where a served request went; ids are in `x-route-decision-id`
 *   GET  /busy_threshold          {thresholds: [{namespace, role, router, …}]}
 *   POST /busy_threshold          {model, …}: sets them in all pools; who did not confirm has `error`
 *
 * Nothing here sends a request to a worker. It shows workers and what they have cached, so it is
 * served beside `/metrics`, not beside the API.
 */
import { Hono } from "hono";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import { randomHex128 } from "../base/random.ts";
import { readJsonObject } from "../protocol/request-body.ts";
import { legsOf } from "./disaggregate.ts";
import { errorAnswer } from "./error-body.ts";
import type { FrontendParts } from "./frontend-parts.ts";
import { checkContentType, prepareRequest, servedModel } from "./prepare-request.ts";
import { readBody } from "./read-body.ts";
import { parseRequest } from "./request-schema.ts";
import type { ExplainedLeg, RouteExplainer, RouteExplanation } from "./route-explainer.ts";
import type { ServedModel } from "./served-model.ts";

export function createAdminApi(parts: FrontendParts): Hono {
  const app = new Hono();
  app.post("/explain", async ({ req, json }) => json(await explain(parts, req.raw)));
  app.get("/explain/:id", async ({ req, json }) =>
    json(await explainerOf(parts).kept(req.param("id"))),
  );
  app.get("/busy_threshold", async ({ json }) => {
    const answers = await Promise.all(
      parts.models.list().map(({ name }) => explainerOf(parts).ask("thresholds", { model: name })),
    );
    const thresholds = answers.flatMap((answer) => (answer as { pools: object[] }).pools);
    return json({ thresholds });
  });
  app.post("/busy_threshold", async ({ req, json }) => {
    const bytes = await readBody({ incoming: undefined, web: req.raw }, thresholdBytesMax);
    return json(await explainerOf(parts).ask("thresholds", readJsonObject(bytes, "the body")));
  });
  app.onError((thrown) => {
    const error = toTiergridError(thrown);
    const { overloadStatus } = parts.settings;
    const answer = errorAnswer(error, { overloadStatus, random: parts.random });
    return Response.json(answer.body, { status: answer.status, headers: answer.headers });
  });
  return app;
}

const thresholdBytesMax = 4096;

/** Explains every leg of a request as it would be sent at this moment. */
export async function explainLegs(
  explainer: RouteExplainer,
  mode: ServedModel["mode"],
  choice: Pick<ExplainedLeg, "body" | "tokens">,
): Promise<RouteExplanation[]> {
  const explained: RouteExplanation[] = [];
  for (const [phase, body] of legsOf(mode, choice.body)) {
    explained.push(await explainer.explain({ phase, body, tokens: choice.tokens }));
  }
  return explained;
}

async function explain(parts: FrontendParts, web: Request): Promise<object> {
  const header = (name: string): string | undefined => web.headers.get(name) ?? undefined;
  checkContentType(header("content-type"));
  const bytes = await readBody({ incoming: undefined, web }, parts.settings.bodyBytesMax);
  const kind = "messages" in readJsonObject(bytes, "the body") ? "chat" : "completions";
  const request = parseRequest({ kind, bytes, header }, parts.settings);
  const model = servedModel(request, parts);
  const requestId = randomHex128(parts.random);
  const { prepared } = await prepareRequest({ requestId, signal: web.signal }, parts, {
    request,
    model,
  });
  const [choice] = prepared.choices;
  if (!choice) throw new TiergridError("internal_error", "a request without a choice");
  const legs = await explainLegs(explainerOf(parts), model.mode, choice);
  return { model: model.name, prompt_tokens: choice.tokens.length, legs };
}

export function explainerOf({ explainer }: FrontendParts): RouteExplainer {
  if (explainer) return explainer;
  throw new TiergridError("not_implemented", "this frontend has no routers to ask");
}
