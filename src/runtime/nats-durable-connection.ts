/**
 * A connection to JetStream that is dialled by the first call that needs it and by each one after a
 * loss. A call ends with its answer, or with an error by its deadline or at the loss.
 */
import { type JetStreamClient, type JetStreamManager, NatsError } from "nats";
import { type Clock, sleep } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import { type Random, randomHex128 } from "../base/random.ts";
import { type BusRole, inboxPrefix } from "../protocol/subjects.ts";
import type { NatsBusOptions } from "./nats-bus.ts";
import { dialNats, type NatsClient } from "./nats-bus-client.ts";

/** Deadline of a call that moves no object. */
export const callMs = 5_000;

/** Error codes of the JetStream API. */
const missingCodes: ReadonlySet<number> = new Set([10014, 10037, 10059]);
const notEnabledCode = 10039;
const noResponders = "503";

export interface JetStreamAccess extends Pick<NatsBusOptions, "servers" | "credentials" | "tls"> {
  readonly role: BusRole;
  readonly clock: Clock;
  readonly random: Random;
}

export interface Life {
  readonly client: NatsClient;
  readonly js: JetStreamClient;
  readonly jsm: JetStreamManager;
  /** Rejects when the connection ends; never resolves. */
  readonly lost: Promise<never>;
}

export interface Connection extends JetStreamAccess {
  life: Promise<Life> | undefined;
  nextServer: number;
  closed: boolean;
}

/** Dials nothing yet. */
export function newConnection(access: JetStreamAccess): Connection {
  return { ...access, life: undefined, nextServer: 0, closed: false };
}

/** Runs `work` on the current connection until the deadline or the loss of the connection. */
export async function call<T>(
  connection: Connection,
  deadlineMs: number,
  work: (life: Life) => Promise<T>,
): Promise<T> {
  const wait = new AbortController();
  const late = sleep(connection.clock, deadlineMs, wait.signal).then(() => {
    throw new TiergridError("request_timeout", `JetStream: no answer in ${deadlineMs} ms`);
  });
  // The loser of a race is of no interest, and must not count as unhandled.
  late.catch(() => {});
  try {
    const life = await Promise.race([lifeOf(connection), late]);
    const answer = work(life);
    answer.catch(() => {});
    return await Promise.race([answer, life.lost, late]);
  } catch (thrown) {
    throw jetStreamErrorOf(thrown);
  } finally {
    wait.abort();
  }
}

function lifeOf(connection: Connection): Promise<Life> {
  if (connection.closed) throw new TiergridError("bus_closed", "the durable log is closed");
  connection.life ??= dial(connection).catch((thrown: unknown) => {
    connection.life = undefined;
    throw thrown;
  });
  return connection.life;
}

async function dial(connection: Connection): Promise<Life> {
  const { servers, credentials, tls, role, clock, random } = connection;
  const server = servers[connection.nextServer++ % servers.length];
  if (server === undefined) throw new TiergridError("config_invalid", "no server is given");
  let lose = (_error: TiergridError): void => {};
  const lost = new Promise<never>((_, reject) => {
    lose = reject;
  });
  lost.catch(() => {});
  const client = await dialNats({
    ...{ server, clock, name: `tiergrid-${role}-durable` },
    inboxPrefix: inboxPrefix(role, randomHex128(random).slice(0, 16)),
    ...(credentials ? { credentials } : {}),
    ...(tls ? { tls } : {}),
    onLost: (why) => {
      connection.life = undefined;
      lose(new TiergridError("disconnected", `the connection to JetStream was lost: ${why}`));
    },
    onError: () => {}, // A refused permission ends its call by the deadline.
  });
  if (connection.closed) client.destroy();
  const limits = { timeout: callMs };
  try {
    const jsm = await client.connection.jetstreamManager(limits);
    return { client, jsm, js: client.connection.jetstream(limits), lost };
  } catch (thrown) {
    client.destroy();
    throw thrown instanceof NatsError && thrown.code === noResponders ? noJetStream() : thrown;
  }
}

/** Ends the connection and every call under way. */
export async function hangUp(connection: Connection): Promise<void> {
  connection.closed = true;
  const life = await connection.life?.catch(() => undefined);
  life?.client.destroy();
}

/** Undefined when the thing asked for does not exist. */
export async function unlessMissing<T>(asked: Promise<T>): Promise<T | undefined> {
  try {
    return await asked;
  } catch (thrown) {
    if (jetStreamErrorOf(thrown).code === "not_found") return undefined;
    throw thrown;
  }
}

/** Total: whatever a call rejected with. */
export function jetStreamErrorOf(thrown: unknown): TiergridError {
  if (!(thrown instanceof NatsError)) return toTiergridError(thrown);
  const { code, message, api_error } = thrown;
  const text = `JetStream: ${api_error?.description ?? message}`;
  if (api_error?.err_code === notEnabledCode) return noJetStream();
  // Nobody answers for a subject whose stream is missing.
  const missing = code === noResponders || code === "404";
  if (missing || missingCodes.has(api_error?.err_code ?? 0)) {
    return new TiergridError("not_found", text);
  }
  if (code === "TIMEOUT") return new TiergridError("request_timeout", text);
  if (code === "CONNECTION_CLOSED") return new TiergridError("disconnected", text);
  return new TiergridError("internal_error", text);
}

function noJetStream(): TiergridError {
  const message = "durable KV events need JetStream, which the server has not (nats-server -js)";
  return new TiergridError("config_invalid", message);
}
