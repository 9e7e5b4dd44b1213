/**
 * `route`: the router decides and books, the caller dispatches. For callers that send their prompt
 * straight to the worker, so that a prompt of any length crosses the bus once and the router sees
 * only its hashes.
 *
 *   new             books under `request_id`   ─▶ {worker_id, dp_rank, overlap_blocks, …}
 *   mark_prefill    its first token is there    ─▶ {success}
 *   mark_free       it is over                  ─▶ {success}
 *   potential_loads what every worker would carry with it ─▶ {loads, pending_count, …}
 *
 * `new` may reach any router of a pool; its later calls go to the `route_subject` of its answer.
 * `new` never waits: when it would have to, it is refused with `do_not_queue`.
 * The caller owns its booking; one that it forgets is freed when nothing has named it for
 * `staleAfterMs` (`core/worker-load.ts`), or when its worker is gone.
 */
import { TiergridError } from "../base/errors.ts";
import { type Random, randomHex128 } from "../base/random.ts";
import { shown } from "../protocol/request-body.ts";
import type { RequestBody } from "../protocol/requests.ts";
import { askSubject, controlSubject, generateSubject } from "../protocol/subjects.ts";
import type { Admission } from "./admission.ts";
import type { RouteQuery } from "./route-query.ts";
import { nothingExcluded, refusalError, type WorkerChoice } from "./worker-choice.ts";

/** The books as a caller's own bookings use them; false = no such booking. */
export interface CallerBookings {
  prefilled(key: string): boolean;
  freed(key: string): boolean;
}

export interface RouteOptions {
  readonly inst: string;
  readonly random: Random;
  readonly choice: WorkerChoice;
  readonly bookings: CallerBookings;
  /** Absent when no request ever waits. */
  readonly admission: Admission | undefined;
}

const requestIdLengthMax = 256;

/** Answers one `route` call; `readQuery` reads its prompt, which only some methods have. */
export function answerRoute(
  options: RouteOptions,
  body: RequestBody,
  readQuery: () => RouteQuery,
): unknown {
  const { method, request_id: id } = body as { method?: unknown; request_id?: unknown };
  if (id !== undefined && id !== null && typeof id !== "string") throw invalid("request_id", id);
  if (typeof id === "string" && id.length > requestIdLengthMax) throw invalid("request_id", id);
  const requestId = id || randomHex128(options.random);
  const key = `route:${requestId}`;
  switch (method ?? "new") {
    case "new":
      return bookNew(options, readQuery(), { requestId, key });
    case "mark_prefill":
      return { method, request_id: requestId, success: options.bookings.prefilled(key) };
    case "mark_free":
      return { method, request_id: requestId, success: options.bookings.freed(key) };
    case "potential_loads":
      return { method, ...potentialLoads(options, readQuery()) };
    default:
      throw invalid("method", method);
  }
}

function bookNew(
  { choice, inst, admission }: RouteOptions,
  query: RouteQuery,
  { requestId, key }: { readonly requestId: string; readonly key: string },
): unknown {
  // A caller that went away while it waited would leave a booking that nobody frees.
  const refused = admission?.refusalOf(query);
  if (refused) throw refused;
  const chosen = choice.choose(query, key, nothingExcluded);
  if (chosen.outcome === "refused") throw refusalError(chosen);
  const { workerId, dpRank, overlapBlocks, cachedTokens } = chosen;
  return {
    method: "new",
    request_id: requestId,
    worker_id: workerId,
    dp_rank: dpRank,
    overlap_blocks: overlapBlocks,
    cached_tokens: cachedTokens,
    generate_subject: generateSubject("w", workerId),
    control_subject: controlSubject("w", workerId),
    route_subject: askSubject("local", inst, "route"),
  };
}

function potentialLoads({ choice, admission }: RouteOptions, query: RouteQuery): object {
  const { candidates } = choice.ask(query, nothingExcluded);
  return {
    loads: candidates.map((candidate) => ({
      worker_id: candidate.workerId,
      dp_rank: candidate.dpRank,
      potential_prefill_tokens: candidate.potentialPrefillTokens,
      potential_decode_blocks: candidate.potentialDecodeBlocks,
      active_requests: candidate.activeRequests,
    })),
    pending_count: admission?.pending.count ?? 0,
    pending_isl_tokens: admission?.pending.islTokens ?? 0,
  };
}

function invalid(field: "method" | "request_id", found: unknown): TiergridError {
  const expected = {
    method: "new, mark_prefill, mark_free or potential_loads",
    request_id: `a string of at most ${requestIdLengthMax} characters`,
  }[field];
  const message = `${field} must be ${expected}, got ${shown(found)}`;
  return new TiergridError("invalid_request", message, { field });
}
