/**
 * A `generate` that asks only which worker it would get (annotation `query_instance_id`): answered
 * here with one end frame, whose output names the worker. Nothing is booked and no worker hears of
 * it. Callers of the frontend are answered by the frontend, from what the routers explain.
 */
import type { Random } from "../base/random.ts";
import type { Choice } from "../core/choice.ts";
import { decodeDispatch } from "../protocol/request-frame.ts";
import type { RoutedBody } from "../protocol/requests.ts";
import type { StreamFrame } from "../protocol/stream-frames.ts";
import type { Bus, BusMessage } from "../runtime/bus.ts";
import { publishFrame } from "../runtime/dispatch-offer.ts";
import { type PoolRules, readRouteQuery } from "./route-query.ts";
import { nothingExcluded, refusalError, type WorkerChoice } from "./worker-choice.ts";

const marker = Buffer.from('"query_instance_id');

export interface QueryOnlyOptions {
  readonly bus: Bus;
  readonly random: Random;
  readonly rules: PoolRules;
  readonly choice: WorkerChoice;
  readonly serving: () => boolean;
}

/** Answers a message of the public endpoint that only asks; false = it is to be dispatched. */
export function answersQueryOnly(options: QueryOnlyOptions, message: BusMessage): boolean {
  const { bus, random, rules, choice, serving } = options;
  if (!mayBeQueryOnly(message.payload) || !serving()) return false;
  try {
    const { body, prompt, envelope } = decodeDispatch(message, random);
    if (!isQueryOnly(body) || prompt.type === "hashes") return false;
    const query = readRouteQuery(rules, { phase: rules.role, body, prompt });
    const { attempt, avoid } = envelope;
    const chosen = choice.ask(query, { ...nothingExcluded, avoid }).choice;
    publishFrame(bus, envelope, queryFrame(rules.role, { attempt, ...prompt }, chosen));
    return true;
  } catch {
    // The dispatcher reads it again and says what is wrong with it.
    return false;
  }
}

function mayBeQueryOnly({ buffer, byteOffset, byteLength }: Uint8Array): boolean {
  return Buffer.from(buffer, byteOffset, byteLength).includes(marker);
}

export function isQueryOnly({ annotations }: RoutedBody): boolean {
  return annotations?.some((name) => /^query_instance_id(?::|$)/.test(name)) ?? false;
}

/** The only frame of the answer. */
function queryFrame(
  role: PoolRules["role"],
  { attempt, tokens }: { readonly attempt: number; readonly tokens: Uint32Array },
  choice: Choice,
): StreamFrame {
  if (choice.outcome === "refused") {
    const { code, message, retryable } = refusalError(choice);
    return { type: "error", attempt, code, message, retryable, started: false };
  }
  const { workerId, dpRank } = choice;
  const [prefill, decode] = [role !== "decode", role !== "prefill"];
  const worker_id = {
    prefill_worker_id: prefill ? workerId : null,
    prefill_dp_rank: prefill ? dpRank : null,
    decode_worker_id: decode ? workerId : null,
    decode_dp_rank: decode ? dpRank : null,
  };
  const disaggregatedParams = { worker_id, token_ids: Array.from(tokens) };
  const rest = { tokenIds: [], disaggregatedParams };
  return { type: "end", attempt, total: 0, finishReason: "stop", rest };
}
