/**
 * What the global router serves to anybody on the bus, as `namespace.component.endpoint`:
 *
 *   prefill_generate, decode_generate | generate   a request in JSON or as a frame; by mode
 *   pool_info                                      pools, their state, the config in force
 *   explain     a request: what would happen to it, nothing is sent or booked
 *               {"decision_id"}: what happened, for the last 10,000 decisions of this process
 *   grid, cells changes of grid, and what its cells measured (`grid-control.ts`)
 *   thresholds  {model, …}: the busy thresholds of all pools' local routers, read or changed
 *
 * The questions are answered at the instance too (`askSubject`), for what only one process knows.
 */
import { TiergridError, toTiergridError } from "../base/errors.ts";
import { type JsonObject, readJsonObject } from "../protocol/request-body.ts";
import { decodeDispatch, encodeDispatch } from "../protocol/request-frame.ts";
import type { Dispatch, Phase } from "../protocol/requests.ts";
import {
  askSubject,
  type EndpointPath,
  endpointQueue,
  endpointSubject,
  type RouterQuestion,
} from "../protocol/subjects.ts";
import type { Bus, BusMessage, Subscription } from "../runtime/bus.ts";
import { type MicroService, serviceErrorHeaders } from "../runtime/micro-service.ts";
import { explainDecision } from "./decision-json.ts";
import type { DecisionRing } from "./decision-ring.ts";
import { asksQuotes, type LiveChoice } from "./live-choice.ts";
import {
  type DecisionContext,
  decidePool,
  firstPool,
  reasonOf,
  takeLive,
} from "./pool-decision.ts";
import { quotedBody } from "./quote-round.ts";
import type { GlobalMetrics } from "./router-metrics.ts";

/** Component under which every local router serves, and how long its part of explain may take. */
const localComponent = "router";
export const localExplainTimeoutMs = 300;

export interface ExplainContext extends DecisionContext {
  readonly bus: Bus;
  readonly ring: DecisionRing;
  readonly live: LiveChoice;
  readonly metrics: GlobalMetrics;
  readonly model: string;
}

/** Serves an endpoint of queries; what `answer` gives or throws goes back as JSON. */
export function serveQuery(
  context: Pick<ExplainContext, "bus" | "clock">,
  service: MicroService,
  path: EndpointPath & { readonly inst: string; readonly endpoint: RouterQuestion },
  answer: (message: BusMessage) => unknown,
): Subscription {
  const { bus, clock } = context;
  const { inst, endpoint } = path;
  const subject = endpointSubject(path);
  const counters = service.addEndpoint({ name: endpoint, subject });
  const serve = async (message: BusMessage): Promise<void> => {
    const startedMs = clock.nowMs();
    if (message.reply === undefined) return;
    try {
      bus.publish(message.reply, encodeJson(await answer(message)));
      counters.count(clock.nowMs() - startedMs);
    } catch (thrown) {
      const error = toTiergridError(thrown);
      const { code, message: text, details } = error;
      const body = encodeJson({ error: { code, message: text, details } });
      counters.count(clock.nowMs() - startedMs, error);
      bus.publish(message.reply, body, { headers: serviceErrorHeaders(error) });
    }
  };
  const both = [
    bus.subscribe(subject, serve, endpointQueue),
    bus.subscribe(askSubject("global", inst, endpoint), serve),
  ];
  return {
    unsubscribe() {
      for (const subscription of both) subscription.unsubscribe();
    },
  };
}

/** Time a local router gets to confirm new thresholds. */
export const thresholdTimeoutMs = 1_000;

/**
 * Passes `{model, …thresholds}` to every local router of every pool and answers what each said:
 * `{model, pools: [{namespace, role, router, …thresholds | error}]}`.
 */
export async function passThresholds(
  { bus, health, model }: Pick<ExplainContext, "bus" | "health" | "model">,
  { payload }: BusMessage,
): Promise<object> {
  const asked = modelOf(payload);
  if (asked !== model) {
    throw new TiergridError("model_not_found", `this router serves ${model}, not ${asked}`);
  }
  const routers = health.pools.flatMap(({ namespace, role, routers }) =>
    routers.map(({ card }) => ({ namespace, role, router: card.inst })),
  );
  const pools = await Promise.all(
    routers.map(async (place) => ({
      ...place,
      ...(await askThresholds(bus, place.router, payload)),
    })),
  );
  return { model, pools };
}

async function askThresholds(bus: Bus, inst: string, payload: Uint8Array): Promise<object> {
  try {
    const subject = askSubject("local", inst, "thresholds");
    const reply = await bus.request(subject, payload, { timeoutMs: thresholdTimeoutMs });
    return JSON.parse(new TextDecoder().decode(reply.payload)) as object;
  } catch (thrown) {
    const { code, message } = toTiergridError(thrown);
    return { error: { code, message } };
  }
}

function modelOf(payload: Uint8Array): string {
  const { model } = readJsonObject(payload, question);
  if (typeof model === "string") return model;
  throw new TiergridError("invalid_request", "expected {model, …thresholds} as JSON");
}

const question = "the question";

/** The answer of the `explain` endpoint. */
export function explainMessage(context: ExplainContext, message: BusMessage): Promise<object> {
  const id = decisionIdOf(message.payload);
  return counted(context, async () =>
    id === undefined
      ? explainRequest(context, decodeDispatch(message, context.random))
      : explainKept(context, id),
  );
}

/**
 * A live decision as it was and what came of it, with the choice of the local router that took it
 * if that is still kept; throws `not_found` when this router does not keep it.
 */
export async function explainKept(context: ExplainContext, id: string): Promise<object> {
  const { ring, model, bus } = context;
  const decision = ring.get(id);
  if (!decision) {
    throw new TiergridError("not_found", `decision ${id.slice(0, 64)} is not kept here`);
  }
  const explained = explainDecision(decision, model, false);
  // Of an acceptance this router hears a moment after the owner.
  const taken = decision.attempts.findLast(
    ({ outcome }) => outcome === "accepted" || outcome === null,
  );
  if (!taken) return { ...explained, local: null };
  const question = encodeJson({ rid: decision.rid });
  const subject = askSubject("local", taken.router, "explain");
  return { ...explained, ...(await askLocal(bus, subject, question)) };
}

/** Counts an explanation by how it ended. */
export async function counted(
  { metrics }: Pick<ExplainContext, "metrics">,
  answer: () => Promise<object>,
): Promise<object> {
  let result = "ok";
  try {
    return await answer();
  } catch (thrown) {
    result = toTiergridError(thrown).code;
    throw thrown;
  } finally {
    metrics.counter("tiergrid_explain_requests_total", { result }).add(1);
  }
}

/** The decision a live request would get, and the pool's own view of it. */
export async function explainRequest(context: ExplainContext, dispatch: Dispatch): Promise<object> {
  const request = withPhase(dispatch, context.active().config.mode);
  const decision = decidePool(request, context);
  if (asksQuotes(decision)) takeLive(decision, await context.live.choose(decision, request));
  const refusal = decision.live?.refusal;
  if (refusal) {
    const explained = explainDecision(decision, context.model, true);
    const note = `refused: ${refusal.error.message}`;
    return { ...explained, notes: [...explained.notes, note], local: null };
  }
  const step = firstPool(decision, context.health);
  if (step.type === "attempt") {
    decision.result = { pool: step.pool, reason: reasonOf(decision, step.via) };
  }
  const explained = explainDecision(decision, context.model, true);
  const namespace = explained.result?.namespace;
  if (step.type === "wait") {
    const note = `no pool is ready: waits for pool ${step.pool}, then ${step.code}`;
    return { ...explained, notes: [...explained.notes, note], local: null };
  }
  const forwarded = { ...request, body: quotedBody(request.body, decision) };
  return { ...explained, ...(await askPool(context, forwarded, namespace)) };
}

async function askPool(
  { bus }: ExplainContext,
  dispatch: Dispatch,
  namespace: string | null | undefined,
): Promise<{ local: unknown; local_error?: string }> {
  if (!namespace) return { local: null };
  const path = { namespace, component: localComponent, endpoint: "explain" };
  return askLocal(bus, endpointSubject(path), encodeDispatch(dispatch));
}

async function askLocal(
  bus: Bus,
  subject: string,
  question: Uint8Array,
): Promise<{ local: unknown; local_error?: string }> {
  try {
    const reply = await bus.request(subject, question, { timeoutMs: localExplainTimeoutMs });
    const local: unknown = JSON.parse(new TextDecoder().decode(reply.payload));
    const { error } = local as { error?: { code?: unknown } };
    return error ? { local: null, local_error: String(error.code) } : { local };
  } catch (thrown) {
    return { local: null, local_error: toTiergridError(thrown).code };
  }
}

/** A plain request says no phase; of a disaggregated one, the phase that would come next. */
function withPhase(dispatch: Dispatch, mode: "agg" | "disagg"): Dispatch {
  const { envelope, body } = dispatch;
  if (mode === "agg" || envelope.phase !== "aggregated") return dispatch;
  const phase: Phase = body.prefill_result ? "decode" : "prefill";
  return { ...dispatch, envelope: { ...envelope, phase } };
}

/** A question in JSON; throws `invalid_request`. */
export function jsonOf({ payload }: BusMessage): JsonObject {
  return readJsonObject(payload, question);
}

/** Small messages only: a request is not parsed twice. */
function decisionIdOf(payload: Uint8Array): string | undefined {
  if (payload.length > decisionQueryBytesMax || payload[0] !== 0x7b) return undefined;
  try {
    const query: unknown = JSON.parse(new TextDecoder().decode(payload));
    const { decision_id: id } = query as { decision_id?: unknown };
    return typeof id === "string" ? id : undefined;
  } catch {
    // Not JSON: the request decoder says what is wrong with it.
    return undefined;
  }
}

const decisionQueryBytesMax = 512;

function encodeJson(value: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(value));
}
