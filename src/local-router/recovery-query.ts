/**
 * Asks a worker for the KV events of one rank. The answer comes as chunks on a private subject; an
 * empty message there is the server's: nobody serves that rank.
 */
import type { Clock } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import type { KvAnswer } from "../protocol/kv-query.ts";
import { chunksOfKvAnswer, decodeKvAnswer, encodeKvQuery } from "../protocol/kv-query.ts";
import { kvQuerySubject } from "../protocol/subjects.ts";
import type { Bus } from "../runtime/bus.ts";
import type { RecoveryQuery } from "./event-intake.ts";

/** Silence after which a query has failed; each chunk starts it anew. */
export const querySilenceMs = 5_000;

/** Queries by instance: a worker's id is its instance. */
export function createRecoveryQuery(bus: Bus, clock: Clock): RecoveryQuery {
  let asked = 0;
  return (holder, startEventId, signal) =>
    new Promise<KvAnswer>((resolve, reject) => {
      const { workerId, dpRank } = holder;
      const answers = `${bus.inboxPrefix}.kvq.${asked++}`;
      const subject = kvQuerySubject(workerId, dpRank);
      const chunks: Uint8Array[] = [];
      const settle = (act: () => void): void => {
        cancelTimer();
        signal.removeEventListener("abort", abort);
        subscription.unsubscribe();
        act();
      };
      const fail = (error: TiergridError): void => settle(() => reject(error));
      const abort = (): void => fail(new TiergridError("cancelled", "the recovery was given up"));
      const silent = (): void => {
        const message = `no answer within ${querySilenceMs} ms from ${subject}`;
        fail(new TiergridError("request_timeout", message));
      };
      let cancelTimer = clock.after(querySilenceMs, silent);
      signal.addEventListener("abort", abort, { once: true });
      const subscription = bus.subscribe(answers, ({ payload }) => {
        if (payload.length === 0) {
          return fail(new TiergridError("no_responders", `nobody answers on ${subject}`));
        }
        cancelTimer();
        cancelTimer = clock.after(querySilenceMs, silent);
        chunks.push(payload);
        try {
          if (chunks.length < chunksOfKvAnswer(payload)) return;
          const { answer } = decodeKvAnswer(chunks);
          settle(() => resolve(answer));
        } catch (thrown) {
          fail(toTiergridError(thrown));
        }
      });
      try {
        const query = encodeKvQuery({ workerId, startEventId, endEventId: undefined });
        bus.publish(subject, query, { reply: answers });
      } catch (thrown) {
        fail(toTiergridError(thrown));
      }
    });
}
