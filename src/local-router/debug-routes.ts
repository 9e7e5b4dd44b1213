/**
 * What people who debug a pool ask of its router over HTTP, on its system port; off by default:
 *
 *   GET  /debug/tree_info      what the index holds, in all and per rank
 *   POST /debug/inject_event   {worker_id, dp_rank?, tokens_hash, block_hash?}: a first block of prompts
 *
 * An injected block is the index's alone: within some ten seconds the worker's digest disagrees, and
 * the rank is restored from the worker.
 */
import { Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import { TiergridError } from "../base/errors.ts";
import { type JsonObject, readJsonObject, shown } from "../protocol/request-body.ts";
import { readU64Json } from "../protocol/u64.ts";
import { answerFailure } from "./admin-routes.ts";
import type { EventRank } from "./event-intake.ts";
import type { OverlapTables } from "./worker-directory.ts";

const bodyBytesMax = 64 * 1024;

/** `tables` is undefined on a router that follows no KV events. */
export function debugRoutes(tables: OverlapTables | undefined): Hono {
  const followed = (): OverlapTables => {
    if (tables) return tables;
    throw new TiergridError("not_found", "this router follows no KV events");
  };
  const app = new Hono();
  app.get("/debug/tree_info", (context) => context.json(treeInfo(followed())));
  app.post("/debug/inject_event", bodyLimit({ maxSize: bodyBytesMax }), async (context) =>
    context.json(injectEvent(followed(), readJsonObject(await context.req.text(), "the body"))),
  );
  app.onError(answerFailure);
  return app;
}

function treeInfo({ index, intake }: OverlapTables): object {
  const { size, blocks, bytes } = index.stats();
  const ranks = Array.from(intake.ranks(), ({ workerId, dpRank, slot, cursor }) => ({
    worker_id: workerId,
    dp_rank: dpRank,
    num_blocks: index.blocksOf(slot),
    last_event_id: cursor.last,
    settled: cursor.settled,
  }));
  return { mode: index.mode, num_blocks: blocks, num_worker_blocks: size, bytes, ranks };
}

function injectEvent({ index, intake }: OverlapTables, body: JsonObject): object {
  const { worker_id, dp_rank = 0, tokens_hash, block_hash = tokens_hash } = body;
  if (body["mm_extra_info"] !== undefined && body["mm_extra_info"] !== null) {
    throw wrong("mm_extra_info", "absent: media are part of tokens_hash", body["mm_extra_info"]);
  }
  const local = readU64Json(tokens_hash);
  if (!local) throw wrong("tokens_hash", "an unsigned 64-bit integer", tokens_hash);
  const name = readU64Json(block_hash);
  if (!name) throw wrong("block_hash", "an unsigned 64-bit integer", block_hash);
  const rank = rankOf(intake.ranks(), String(worker_id), dp_rank);
  if (!rank) {
    const message = `no rank ${shown(dp_rank)} of worker ${shown(worker_id)} is known here`;
    throw new TiergridError("not_found", message);
  }
  const blocks = Uint32Array.of(local.lo, local.hi, name.lo, name.hi);
  return {
    status: index.store(rank.slot, undefined, blocks),
    num_blocks: index.blocksOf(rank.slot),
  };
}

function rankOf(
  ranks: Iterable<EventRank>,
  workerId: string,
  dpRank: unknown,
): EventRank | undefined {
  for (const rank of ranks) if (rank.workerId === workerId && rank.dpRank === dpRank) return rank;
  return undefined;
}

function wrong(field: string, expected: string, found: unknown): TiergridError {
  return new TiergridError("invalid_request", `${field} must be ${expected}, got ${shown(found)}`);
}
