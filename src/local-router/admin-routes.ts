/**
 * What operators and bus-free callers ask of a local router over HTTP, on its system port:
 *
 *   GET  /busy_threshold     {thresholds: [{model, …}]}
 *   POST /busy_threshold     {model, …}: sets what is given, null = off; answers what holds
 *   POST /find_best_worker   {local_hashes, num_tokens}: {worker_id, overlap, matched_blocks}
 *
 * The first two also answer on the bus, where a frontend changes all pools of a model at once.
 * Routes can be switched off; errors are `{error: {code, message}}` with their HTTP status.
 */
import { type Context, Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import { type ErrorCode, errorTable, TiergridError, toTiergridError } from "../base/errors.ts";
import {
  busyThresholdsJson,
  type ThresholdUpdate,
  updateBusyThresholds,
} from "../config/busy-thresholds.ts";
import { formatFault } from "../config/config-fault.ts";
import type { Choice } from "../core/choice.ts";
import type { BusyThresholds, WorkerRoster } from "../core/worker-roster.ts";
import { decodeHashQuestion } from "../protocol/hash-frame.ts";
import { readJsonObject, shown } from "../protocol/request-body.ts";
import type { Prompt } from "../protocol/requests.ts";
import { askSubject } from "../protocol/subjects.ts";
import type { Bus, Subscription } from "../runtime/bus.ts";
import { type PoolRules, readRouteQuery } from "./route-query.ts";
import { nothingExcluded, refusalError, type WorkerChoice } from "./worker-choice.ts";
import type { WorkerDirectory } from "./worker-directory.ts";

const bodyBytesMax = 16 * 1024 * 1024;

/** What the routes need of a local router. */
export interface Administered {
  /** Models its workers serve. */
  models(): ReadonlySet<string>;
  thresholds(): BusyThresholds;
  updateThresholds(body: Readonly<Record<string, unknown>>): ThresholdUpdate;
  /** The choice `generate` would make, without booking; throws `not_ready`. */
  bestWorker(prompt: Prompt): Choice;
  readonly blockSize: number;
}

export interface AdministeredParts {
  readonly roster: WorkerRoster;
  readonly directory: Pick<WorkerDirectory, "workers">;
  readonly choice: WorkerChoice;
  readonly serving: () => boolean;
}

export function administer(rules: PoolRules, parts: AdministeredParts): Administered {
  const { roster, directory, choice, serving } = parts;
  const { role, blockSize } = rules;
  return {
    blockSize,
    models: () => new Set([...directory.workers.values()].map(({ card }) => card.model)),
    thresholds: () => roster.thresholds,
    updateThresholds(body) {
      const update = updateBusyThresholds(roster.thresholds, body);
      if (update.ok) roster.setThresholds(update.thresholds);
      return update;
    },
    bestWorker(prompt) {
      if (!serving()) throw new TiergridError("not_ready", "Router not initialized");
      const query = readRouteQuery(rules, { phase: role, body: {}, prompt });
      return choice.ask(query, nothingExcluded).choice;
    },
  };
}

export function adminRoutes(router: Administered): Hono {
  const app = new Hono();
  const limited = bodyLimit({ maxSize: bodyBytesMax });
  app.get("/busy_threshold", (context) => context.json(allThresholds(router)));
  app.post("/busy_threshold", limited, async (context) =>
    context.json(setThresholds(router, await context.req.text())),
  );
  app.post("/find_best_worker", limited, async (context) =>
    context.json(findBestWorker(router, new Uint8Array(await context.req.arrayBuffer()))),
  );
  app.onError(answerFailure);
  return app;
}

/** What a route that threw answers. */
export function answerFailure(thrown: unknown, context: Context): Response {
  const { code, message, details } = toTiergridError(thrown);
  return context.json({ error: { code, message, details } }, statusOf(code));
}

/** Answers `POST /busy_threshold` on the bus, addressed to this router alone. */
export function serveThresholds(bus: Bus, inst: string, router: Administered): Subscription {
  return bus.subscribe(askSubject("local", inst, "thresholds"), ({ payload, reply }) => {
    if (reply === undefined) return;
    let json: object;
    try {
      json = setThresholds(router, new TextDecoder().decode(payload));
    } catch (thrown) {
      const { code, message } = toTiergridError(thrown);
      json = { error: { code, message } };
    }
    bus.publish(reply, new TextEncoder().encode(JSON.stringify(json)));
  });
}

function allThresholds(router: Administered): object {
  const thresholds = busyThresholdsJson(router.thresholds());
  return { thresholds: [...router.models()].sort().map((model) => ({ model, ...thresholds })) };
}

function setThresholds(router: Administered, text: string): object {
  const body = readJsonObject(text, "the body");
  const { model } = body;
  if (typeof model !== "string") throw invalid("model", "a string", model);
  if (!router.models().has(model)) {
    const known = [...router.models()].sort().join(", ") || "none";
    throw new TiergridError("model_not_found", `no workers of model ${shown(model)}; of: ${known}`);
  }
  const update = router.updateThresholds(body);
  if (update.ok) return { model, ...busyThresholdsJson(update.thresholds) };
  throw new TiergridError("invalid_request", update.faults.map(formatFault).join("; "));
}

function findBestWorker(router: Administered, payload: Uint8Array): object {
  const question = decodeHashQuestion(payload);
  if (!question) throw invalid("local_hashes", "an array of unsigned 64-bit integers", undefined);
  const { islTokens, localHashes } = question;
  const { blockSize } = router;
  const chosen = router.bestWorker({ type: "hashes", islTokens, blockSize, localHashes });
  if (chosen.outcome === "refused") throw refusalError(chosen);
  const { workerId, dpRank, overlapBlocks } = chosen;
  return {
    worker_id: workerId,
    dp_rank: dpRank,
    overlap: (overlapBlocks * blockSize) / islTokens,
    matched_blocks: overlapBlocks,
  };
}

function invalid(field: string, expected: string, found: unknown): TiergridError {
  return new TiergridError("invalid_request", `${field} must be ${expected}, got ${shown(found)}`);
}

type FailureStatus = 400 | 404 | 500 | 503;

function statusOf(code: ErrorCode): FailureStatus {
  return errorTable[code].status as FailureStatus;
}
