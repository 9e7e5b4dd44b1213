/** From a checked body to prompts and models: what serving and explaining a request share. */
import { TiergridError } from "../base/errors.ts";
import type { FrontendParts } from "./frontend-parts.ts";
import { type PreparedRequest, preprocess } from "./preprocess.ts";
import type { ApiRequest } from "./request-schema.ts";
import type { ServedModel } from "./served-model.ts";

export function checkContentType(type: string | undefined): void {
  if (type !== undefined && /^[^;]*json/i.test(type)) return;
  const message = `expected content-type application/json, got ${type?.slice(0, 80) ?? "none"}`;
  throw new TiergridError("unsupported_media_type", message);
}

/** The model of a request; throws unless it exists and something serves it. */
export function servedModel({ body }: ApiRequest, parts: FrontendParts): ServedModel {
  const model = parts.models.find(body.model);
  if (!model) {
    const message = `the model ${JSON.stringify(body.model.slice(0, 128))} does not exist`;
    throw new TiergridError("model_not_found", message, { param: "model" });
  }
  if (!parts.busConnected()) throw new TiergridError("disconnected", "the bus is not connected");
  if (!model.ready) throw new TiergridError("not_ready", `no worker serves ${model.name} yet`);
  return model;
}

export interface PreparedRun {
  readonly prepared: PreparedRequest;
  /** Template and tokenizer, ms. */
  readonly tookMs: number;
}

/** Applies template and tokenizer. */
export async function prepareRequest(
  { requestId, signal }: { readonly requestId: string; readonly signal: AbortSignal },
  parts: FrontendParts,
  { request, model }: { readonly request: ApiRequest; readonly model: ServedModel },
): Promise<PreparedRun> {
  const { clock, metrics } = parts;
  const tokenizer = parts.tokenizerOf(model.name);
  const startedMs = clock.nowMs();
  const prepared = await preprocess(
    { request, model, requestId },
    {
      tokenizer,
      encoding: parts.encodingOf(tokenizer),
      onTemplate: (durationMs) =>
        metrics.histogram("dynamo_frontend_template_seconds").observe(durationMs / 1000),
      nowMs: () => clock.nowMs(),
      wallMs: () => clock.wallMs(),
    },
    signal,
  );
  return { prepared, tookMs: clock.nowMs() - startedMs };
}
