/**
 * Questions a local router answers without routing anything: `best_worker_id`, `get_overlap_scores`
 * and `explain`. Each takes a request as `generate` does and gives one reply; a fault is
 * `{error: {code, message}}` with the headers of NATS micro.
 */
import type { Clock } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import type { Decision } from "../core/decision.ts";
import type { WorkerRoster } from "../core/worker-roster.ts";
import { isObject } from "../protocol/request-body.ts";
import { decodeDispatch } from "../protocol/request-frame.ts";
import type { RequestBody, RoutingHints } from "../protocol/requests.ts";
import { endpointQueue, endpointSubject } from "../protocol/subjects.ts";
import type { Bus, BusMessage, Subscription } from "../runtime/bus.ts";
import { type MicroService, serviceErrorHeaders } from "../runtime/micro-service.ts";
import { decisionJson } from "./decision-json.ts";
import { type PoolRules, type RouteQuery, readRouteQuery } from "./route-query.ts";
import {
  type Excluded,
  nothingExcluded,
  refusalError,
  type WorkerChoice,
} from "./worker-choice.ts";

/** Component under which a local router serves in its pool's namespace. */
export const routerComponent = "router";

export interface QuestionOptions {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly random: Random;
  readonly inst: string;
  readonly namespace: string;
  readonly service: MicroService;
  readonly rules: PoolRules;
  readonly choice: WorkerChoice;
  readonly roster: WorkerRoster;
  /** Words for where the overlaps come from. */
  readonly indexMode: "events" | "off";
  readonly serving: () => boolean;
}

interface Question {
  readonly query: RouteQuery;
  readonly excluded: Excluded;
  /** True for a bare array of token ids. */
  readonly bare: boolean;
}

type Answerer = (options: QuestionOptions, question: Question) => unknown;

const answerers: Readonly<Record<string, Answerer>> = {
  best_worker_id: bestWorker,
  get_overlap_scores: overlapScores,
  explain: explainRouting,
};

/** Serves the questions on their public endpoints. */
export function serveQuestions(options: QuestionOptions): Subscription[] {
  const { bus, clock, namespace, service } = options;
  return Object.entries(answerers).map(([endpoint, answerer]) => {
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
    return bus.subscribe(subject, onMessage, endpointQueue);
  });
}

function answer(
  options: QuestionOptions,
  answerer: Answerer,
  message: BusMessage,
): { readonly json: unknown; readonly error?: TiergridError } {
  try {
    if (!options.serving()) throw new TiergridError("not_ready", "Router not initialized");
    return { json: answerer(options, readQuestion(options, message)) };
  } catch (thrown) {
    const error = toTiergridError(thrown);
    const { code, message: text, details } = error;
    return { json: { error: { code, message: text, details } }, error };
  }
}

/** A request in either form, or only its token ids; `lora_name` and the like may stand on top. */
function readQuestion({ rules, random }: QuestionOptions, message: BusMessage): Question {
  const bare = message.payload[0] === openingBracket;
  const payload = bare ? wrapped(message.payload) : message.payload;
  const { body, tokens, envelope } = decodeDispatch({ payload, reply: message.reply }, random);
  const query = readRouteQuery(rules, {
    phase: rules.role,
    body: lowered(body),
    prompt: { tokens },
  });
  return { query, excluded: { ...nothingExcluded, avoid: envelope.avoid }, bare };
}

const openingBracket = 0x5b;

function wrapped(tokenIds: Uint8Array): Uint8Array {
  return Buffer.concat([Buffer.from('{"token_ids":'), tokenIds, Buffer.from("}")]);
}

/** The request with its top-level hints where `generate` has them. */
function lowered(body: RequestBody): RequestBody {
  const { lora_name, cache_salt, cache_namespace, allowed_worker_ids } = body as RoutingHints & {
    readonly cache_namespace?: string | null;
  };
  const hints: RoutingHints = {
    ...body.routing,
    ...(lora_name ? { lora_name } : {}),
    ...(cache_salt || cache_namespace ? { cache_salt: cache_salt ?? cache_namespace ?? null } : {}),
    ...(allowed_worker_ids ? { allowed_worker_ids } : {}),
  };
  for (const text of [hints.lora_name, hints.cache_salt]) {
    if (text === undefined || text === null || typeof text === "string") continue;
    throw new TiergridError("invalid_request", "lora_name and cache_salt must be strings");
  }
  if (hints.allowed_worker_ids && !Array.isArray(hints.allowed_worker_ids)) {
    throw new TiergridError("invalid_request", "allowed_worker_ids must be an array");
  }
  const { block_mm_infos: blockMmInfos } = body;
  if (blockMmInfos === undefined || blockMmInfos === null) return { ...body, routing: hints };
  const media = isObject(body["mm_routing_info"]) ? body["mm_routing_info"] : {};
  const mm_routing_info = { ...media, block_mm_infos: blockMmInfos };
  return { ...body, routing: hints, mm_routing_info };
}

function bestWorker({ choice }: QuestionOptions, { query, excluded, bare }: Question): unknown {
  const { choice: taken } = choice.ask(query, excluded);
  if (taken.outcome === "refused") throw refusalError(taken);
  const { workerId, dpRank, overlapBlocks } = taken;
  if (!bare) return { worker_id: workerId, dp_rank: dpRank, overlap_blocks: overlapBlocks };
  const number = Number(workerId);
  return Number.isSafeInteger(number) ? number : workerId;
}

/** Only device memory is counted: the slower tiers and the shared cache are zero. */
function overlapScores({ choice, roster, rules }: QuestionOptions, { query }: Question): unknown {
  const depths = choice.match(query);
  const slots = Array.from(roster.order.subarray(0, roster.count));
  return {
    block_size: rules.blockSize,
    num_blocks: query.blocks,
    workers: slots.map((slot) => {
      const device = depths[slot] ?? 0;
      return {
        worker_id: roster.workerAt(slot)?.workerId,
        dp_rank: roster.dpRankAt(slot),
        device_blocks: device,
        host_pinned_blocks: device,
        disk_blocks: device,
        host_pinned_extension_blocks: 0,
        disk_extension_blocks: 0,
        shared_beyond_device_blocks: null,
        router_credit_blocks: query.settings.weights.overlapScoreCredit * device,
      };
    }),
    shared_cache: { enabled: false, total_hit_blocks: 0, ranges: [], error: null },
  };
}

function explainRouting(options: QuestionOptions, { query, excluded }: Question): unknown {
  const { inst, namespace, rules, indexMode } = options;
  const decision: Decision = options.choice.ask(query, excluded);
  return {
    schema: "tiergrid.explain.local/1",
    router_id: inst,
    pool: namespace,
    role: rules.role,
    block_size: rules.blockSize,
    index: { mode: indexMode },
    ...decisionJson(decision),
  };
}
