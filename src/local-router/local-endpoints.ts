/**
 * Questions a local router answers without routing anything: `best_worker_id`, `get_overlap_scores`
 * and `explain`. Each takes a request as `generate` does and gives one reply; a fault is
 * `{error: {code, message}}` with the headers of NATS micro.
 */
import type { Clock } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import type { LatencyCostOptions } from "../core/latency-cost.ts";
import type { WorkerRoster } from "../core/worker-roster.ts";
import {
  askSubject,
  endpointQueue,
  endpointSubject,
  type RouterQuestion,
} from "../protocol/subjects.ts";
import type { Bus, BusMessage, Subscription } from "../runtime/bus.ts";
import { type MicroService, serviceErrorHeaders } from "../runtime/micro-service.ts";
import { decisionJson } from "./decision-json.ts";
import type { DecisionRing } from "./decision-ring.ts";
import { quotedQuery, quoteJson, readQuoteRequest } from "./latency-quote.ts";
import { answerRoute, type RouteOptions } from "./route-endpoint.ts";
import type { PoolRules } from "./route-query.ts";
import { type Question, readQuestion } from "./router-question.ts";
import { refusalError } from "./worker-choice.ts";

/** Component under which a local router serves in its pool's namespace. */
export const routerComponent = "router";

export interface QuestionOptions extends RouteOptions {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly inst: string;
  readonly namespace: string;
  readonly service: MicroService;
  readonly rules: PoolRules;
  readonly roster: WorkerRoster;
  /** Undefined in cost mode `blocks`, which has nothing to quote. */
  readonly latency: LatencyCostOptions | undefined;
  /** Words for where the overlaps come from. */
  readonly indexMode: "events" | "approximate" | "off";
  readonly serving: () => boolean;
  /** Absent when none are kept. */
  readonly decisions: DecisionRing | undefined;
}

/** Bookings and kept decisions are in one router's books, and a quote is that of its books. */
const instanceQuestions: readonly RouterQuestion[] = ["route", "explain", "best_worker_id"];

type Answerer = (options: QuestionOptions, question: Question) => unknown;

const answerers: Readonly<Record<string, Answerer>> = {
  best_worker_id: bestWorker,
  get_overlap_scores: overlapScores,
  explain: explainRouting,
  route: routeCall,
};

/** Serves the questions on their public endpoints. */
export function serveQuestions(options: QuestionOptions): Subscription[] {
  const { bus, clock, namespace, service } = options;
  return Object.entries(answerers).flatMap(([endpoint, answerer]) => {
    const subject = endpointSubject({ namespace, component: routerComponent, endpoint });
    const counters = service.addEndpoint({ name: endpoint, subject });
    const onMessage = (message: BusMessage): void => {
      const { reply } = message;
      if (reply === undefined) return;
      const startMs = clock.nowMs();
      const { json, error } = answer(options, answerer, message);
      counters.count(clock.nowMs() - startMs, error);
      const payload = new TextEncoder().encode(JSON.stringify(json));
      bus.publish(reply, payload, error ? { headers: serviceErrorHeaders(error) } : {});
    };
    const subscription = bus.subscribe(subject, onMessage, endpointQueue);
    const question = instanceQuestions.find((name) => name === endpoint);
    if (!question) return [subscription];
    return [subscription, bus.subscribe(askSubject("local", options.inst, question), onMessage)];
  });
}

function answer(
  options: QuestionOptions,
  answerer: Answerer,
  message: BusMessage,
): { readonly json: unknown; readonly error?: TiergridError } {
  try {
    if (!options.serving()) throw new TiergridError("not_ready", "Router not initialized");
    return { json: answerer(options, readQuestion(options.rules, message, options.random)) };
  } catch (thrown) {
    const error = toTiergridError(thrown);
    const { code, message: text, details } = error;
    return { json: { error: { code, message: text, details } }, error };
  }
}

function bestWorker(options: QuestionOptions, question: Question): unknown {
  const { choice } = options;
  const { bare, body, excluded } = question;
  const asked = readQuoteRequest(body);
  if (asked) {
    const { latency, rules } = options;
    if (!latency) throw new TiergridError("not_implemented", blocksCannotQuote);
    const query = quotedQuery(rules.role, question.query(), asked);
    return quoteJson(latency, choice.ask(query, excluded), asked);
  }
  const { choice: taken } = choice.ask(question.query(), excluded);
  if (taken.outcome === "refused") throw refusalError(taken);
  const { workerId, dpRank, overlapBlocks } = taken;
  if (!bare) return { worker_id: workerId, dp_rank: dpRank, overlap_blocks: overlapBlocks };
  const number = Number(workerId);
  return Number.isSafeInteger(number) ? number : workerId;
}

/** Host and disk are cumulative, their extensions are not; there is no shared cache. */
function overlapScores({ choice, roster, rules }: QuestionOptions, question: Question): unknown {
  const query = question.query();
  const { device, hostExt, diskExt } = choice.match(query);
  const { overlapScoreCredit, hostCacheHitWeight, diskCacheHitWeight } = query.settings.weights;
  const slots = Array.from(roster.order.subarray(0, roster.count));
  return {
    block_size: rules.blockSize,
    num_blocks: query.blocks,
    workers: slots.map((slot) => {
      const inDevice = device[slot] ?? 0;
      const inHost = hostExt?.[slot] ?? 0;
      const onDisk = diskExt?.[slot] ?? 0;
      const slowCredit = hostCacheHitWeight * inHost + diskCacheHitWeight * onDisk;
      return {
        worker_id: roster.workerAt(slot)?.workerId,
        dp_rank: roster.dpRankAt(slot),
        device_blocks: inDevice,
        host_pinned_blocks: inDevice + inHost,
        disk_blocks: inDevice + inHost + onDisk,
        host_pinned_extension_blocks: inHost,
        disk_extension_blocks: onDisk,
        shared_beyond_device_blocks: null,
        router_credit_blocks: overlapScoreCredit * inDevice + slowCredit,
      };
    }),
    shared_cache: { enabled: false, total_hit_blocks: 0, ranges: [], error: null },
  };
}

const blocksCannotQuote = "a quote needs router_cost_mode latency; this router has blocks";

function routeCall(options: QuestionOptions, { body, query }: Question): unknown {
  return answerRoute(options, body, query);
}

/** A request: the choice it would get. `{decision_id}` or `{rid}`: one that was made. */
function explainRouting(options: QuestionOptions, question: Question): unknown {
  const { decision_id: id, rid } = question.body as { decision_id?: unknown; rid?: unknown };
  const name = id ?? rid;
  if (name !== undefined) return explainKept(options, String(name));
  const decision = options.choice.ask(question.query(), question.excluded);
  return { ...placeOf(options), dry_run: true, ...decisionJson(decision) };
}

function explainKept(options: QuestionOptions, name: string): object {
  const kept = options.decisions?.get(name);
  if (kept) {
    const at = new Date(kept.atWallMs).toISOString();
    const ids = { decision_id: kept.id, rid: kept.rid, at };
    return { ...placeOf(options), ...ids, dry_run: false, ...decisionJson(kept.decision) };
  }
  throw new TiergridError("not_found", `decision ${name.slice(0, 64)} is not kept here`);
}

function placeOf({ inst, namespace, rules, indexMode }: QuestionOptions): object {
  return {
    schema: "tiergrid.explain.local/1",
    router_id: inst,
    pool: namespace,
    role: rules.role,
    block_size: rules.blockSize,
    index: { mode: indexMode },
  };
}
