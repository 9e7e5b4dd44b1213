/**
 * Asks a worker for the KV events of one rank. The answer comes as chunks on a private subject; an
 * empty message there is the server's: nobody serves that rank. Chunks that stay away are asked for
 * again, so that a large dump goes on after a loss.
 */
import type { Clock } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import {
  answerBytesMax,
  decodeKvAnswer,
  encodeKvQuery,
  type KvAnswer,
  type KvAnswerRest,
  kvChunkHeadOf,
  missingChunksMax,
} from "../protocol/kv-query.ts";
import { kvQuerySubject } from "../protocol/subjects.ts";
import type { Bus } from "../runtime/bus.ts";
import type { RecoveryQuery } from "./event-intake.ts";

/** Silence after which missing chunks are asked for, or the query has failed. */
export const querySilenceMs = 5_000;
/** Silences in a row, without a new chunk between them, that a begun answer survives. */
export const silencesMax = 3;

/** Chunks of one answer, by index. */
interface Parts {
  answer: number;
  chunks: number;
  bytes: number;
  readonly byIndex: Map<number, Uint8Array>;
}

/** Queries by instance: a worker's id is its instance. */
export function createRecoveryQuery(bus: Bus, clock: Clock): RecoveryQuery {
  let asked = 0;
  return (holder, startEventId, signal) =>
    new Promise<KvAnswer>((resolve, reject) => {
      const { workerId, dpRank } = holder;
      const answers = `${bus.inboxPrefix}.kvq.${asked++}`;
      const subject = kvQuerySubject(workerId, dpRank);
      const parts: Parts = { answer: 0, chunks: 0, bytes: 0, byIndex: new Map() };
      let silences = 0;
      const settle = (act: () => void): void => {
        cancelTimer();
        signal.removeEventListener("abort", abort);
        subscription.unsubscribe();
        act();
      };
      const fail = (error: TiergridError): void => settle(() => reject(error));
      const abort = (): void => fail(new TiergridError("cancelled", "the recovery was given up"));
      const ask = (rest?: KvAnswerRest): void => {
        try {
          const query = encodeKvQuery({ workerId, startEventId, endEventId: undefined, rest });
          bus.publish(subject, query, { reply: answers });
        } catch (thrown) {
          fail(toTiergridError(thrown));
        }
      };
      const silent = (): void => {
        if (parts.byIndex.size > 0 && ++silences <= silencesMax) {
          cancelTimer = clock.after(querySilenceMs, silent);
          ask({ answer: parts.answer, missing: missingOf(parts) });
        } else {
          const message = `no answer within ${querySilenceMs} ms from ${subject}`;
          fail(new TiergridError("request_timeout", message));
        }
      };
      let cancelTimer = clock.after(querySilenceMs, silent);
      signal.addEventListener("abort", abort, { once: true });
      const subscription = bus.subscribe(answers, ({ payload }) => {
        if (payload.length === 0) {
          return fail(new TiergridError("no_responders", `nobody answers on ${subject}`));
        }
        cancelTimer();
        cancelTimer = clock.after(querySilenceMs, silent);
        try {
          if (takeChunk(parts, payload)) silences = 0;
          if (parts.byIndex.size < parts.chunks) return;
          const { answer } = decodeKvAnswer([...parts.byIndex.values()]);
          settle(() => resolve(answer));
        } catch (thrown) {
          fail(toTiergridError(thrown));
        }
      });
      ask();
    });
}

/** Keeps a chunk; false when it came before. A chunk of another answer starts anew. */
function takeChunk(parts: Parts, payload: Uint8Array): boolean {
  const { answer, index, chunks } = kvChunkHeadOf(payload);
  if (answer !== parts.answer || chunks !== parts.chunks) {
    parts.byIndex.clear();
    Object.assign(parts, { answer, chunks, bytes: 0 });
  }
  if (parts.byIndex.has(index)) return false;
  parts.byIndex.set(index, payload);
  parts.bytes += payload.length;
  if (parts.bytes > 2 * answerBytesMax) {
    throw new TiergridError("malformed_reply", `KV answer: more than ${answerBytesMax} bytes`);
  }
  return true;
}

function missingOf({ chunks, byIndex }: Parts): number[] {
  const missing: number[] = [];
  for (let index = 0; index < chunks && missing.length < missingChunksMax; index++) {
    if (!byIndex.has(index)) missing.push(index);
  }
  return missing;
}
