/**
 * The bus on a real nats-server. The client is used for one connection's life only; this file owns
 * everything that outlives it:
 *
 *   subscriptions ─┐            life 1 ╳ lost     life 2 ...
 *   requests ──────┼── bus ──── NatsClient        NatsClient
 *   backoff ───────┘              one wildcard inbox each: <inbox>.>
 *
 * Invariants: at most one life at a time; a lost life rejects every request in flight before the
 * state listeners hear of it; a new life has every subscription before the state is `connected`;
 * nothing is buffered while there is no life. Dialling again rests on the monotonic clock only.
 */
import { type CancelTimer, type Clock, sleep } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import { type Random, randomHex128 } from "../base/random.ts";
import { replyToken } from "../protocol/reply-bundle.ts";
import {
  type BusRole,
  checkQueue,
  checkSubscribeSubject,
  inboxPrefix,
} from "../protocol/subjects.ts";
import type { Asker, AskOptions, Bus, BusHandler, BusState, PublishOptions } from "./bus.ts";
import {
  callHandler,
  checkMessage,
  checkRoom,
  emptyTotals,
  type HandlerErrorListener,
  handlerErrorCounter,
  type MutableTotals,
  RequestBook,
  requestOver,
  settleReplies,
  subscriptionsMax,
  tellState,
} from "./bus-requests.ts";
import {
  type DialOptions,
  dialNats,
  isNoResponders,
  type Loss,
  type NatsClient,
  type NatsCredentials,
  NatsMessage,
} from "./nats-bus-client.ts";
import { isPattern, SubjectTable } from "./subject-table.ts";

export interface NatsBusOptions {
  /** Addresses such as `nats://host:4222`, tried in turn from a random one. */
  readonly servers: readonly string[];
  readonly role: BusRole;
  readonly clock: Clock;
  readonly ticks?: Clock;
  readonly random: Random;
  /** Shown in the server's monitoring. */
  readonly name?: string;
  readonly credentials?: NatsCredentials;
  readonly tls?: DialOptions["tls"];
  /** Reject when no server takes the first dial, instead of dialling for ever. */
  readonly failFast?: boolean;
  readonly onHandlerError?: HandlerErrorListener;
  /** Told of failed dials, lost connections and refused permissions. */
  readonly onTrouble?: (error: unknown) => void;
}

const backoffFirstMs = 50;
const backoffJitterMs = 50;
const backoffFactor = 1.5;
const backoffMaxMs = 2000;
/** A dial that takes longer is given up and another is made. */
const dialWatchdogMs = 5000;
/** How long `close` waits for the server to see what was published before. */
const closeFlushMs = 500;
const knownServersMax = 64;

interface Subscriber {
  readonly subject: string;
  readonly handler: BusHandler;
  readonly queue: string | undefined;
  /** Ends it on the current life. */
  drop: () => void;
}

interface Session {
  readonly options: NatsBusOptions;
  readonly inbox: string;
  readonly totals: MutableTotals;
  readonly failed: HandlerErrorListener;
  readonly requests: RequestBook;
  /** Subscriptions that the server knows. */
  readonly subscribers: Set<Subscriber>;
  /** Exact subjects below the inbox; the server knows the one wildcard only. */
  readonly inboxSubscribers: SubjectTable<Subscriber>;
  readonly stateListeners: Set<(state: BusState) => void>;
  readonly servers: string[];
  /** The server to dial next; after a loss that is not the lost one, if there is another. */
  nextServer: number;
  inboxCount: number;
  life: NatsClient | undefined;
  wasConnected: boolean;
  state: BusState;
  maxPayloadBytes: number;
  backoffMs: number;
  cancelDial: CancelTimer;
}

/**
 * Connects; resolves after each server was tried once, `disconnected` and dialling on when none
 * took it, unless `failFast`. The bus keeps its inbox and subscriptions over every later loss.
 */
export async function connectNatsBus(options: NatsBusOptions): Promise<Bus> {
  const inbox = inboxPrefix(options.role, randomHex128(options.random).slice(0, 16));
  const totals = emptyTotals();
  const session: Session = {
    options,
    inbox,
    totals,
    failed: handlerErrorCounter(totals, options.onHandlerError),
    requests: new RequestBook(options.clock, `${inbox}.${replyToken}`),
    subscribers: new Set(),
    inboxSubscribers: new SubjectTable(),
    stateListeners: new Set(),
    servers: [...options.servers],
    nextServer: Math.floor(options.random() * options.servers.length),
    inboxCount: 0,
    life: undefined,
    wasConnected: false,
    state: "disconnected",
    maxPayloadBytes: 1024 * 1024,
    backoffMs: backoffFirstMs,
    cancelDial: () => {},
  };
  try {
    await dialEach(session);
  } catch (error) {
    if (options.failFast) {
      session.state = "closed";
      throw new TiergridError("disconnected", `no server: ${toTiergridError(error).message}`);
    }
    dialLater(session, error);
  }
  return busOf(session);
}

function busOf(session: Session): Bus {
  return {
    kind: "nats",
    inboxPrefix: session.inbox,
    get state() {
      return session.state;
    },
    get maxPayloadBytes() {
      return session.maxPayloadBytes;
    },
    get totals() {
      session.totals.outboundBytes = session.life?.outboundBytes() ?? 0;
      return session.totals;
    },
    publish: (subject, payload, options) => publish(session, subject, payload, options),
    subscribe: (subject, handler, queue) => {
      checkSubscribeSubject(subject);
      if (queue !== undefined) checkQueue(queue);
      return { unsubscribe: subscribe(session, { subject, handler, queue, drop: () => {} }) };
    },
    ask: (subject, payload, options, asker) => ask(session, subject, payload, { options, asker }),
    request: (subject, payload, given) =>
      requestOver((options, asker) => ask(session, subject, payload, { options, asker }), given),
    onState: (listener) => {
      session.stateListeners.add(listener);
      return () => session.stateListeners.delete(listener);
    },
    flush: () => flush(session),
    close: () => close(session),
  };
}

function publish(
  session: Session,
  subject: string,
  payload: Uint8Array,
  options: PublishOptions | undefined,
): void {
  const life = lifeOf(session);
  checkMessage(subject, payload, options, session.maxPayloadBytes);
  checkRoom(session.totals, life.outboundBytes(), options);
  life.publish(subject, payload, options);
  session.totals.messagesOut += 1;
  session.totals.bytesOut += payload.length;
}

function ask(
  session: Session,
  subject: string,
  payload: Uint8Array,
  { options, asker }: { readonly options: AskOptions; readonly asker: Asker },
): () => void {
  const { timeoutMs, headers } = options;
  const send = (reply: string): void => {
    const replied = { reply, traffic: "control" } as const;
    publish(session, subject, payload, headers ? { ...replied, headers } : replied);
  };
  return session.requests.ask(timeoutMs, send, asker);
}

/** The current connection; throws `disconnected` or `bus_closed`. */
function lifeOf(session: Session): NatsClient {
  if (session.life) return session.life;
  if (session.state === "closed") throw new TiergridError("bus_closed", "the bus is closed");
  throw new TiergridError("disconnected", "the bus is not connected");
}

/** Answers the unsubscribe. */
function subscribe(session: Session, subscriber: Subscriber): () => void {
  if (session.state === "closed") lifeOf(session);
  if (session.subscribers.size + session.inboxCount >= subscriptionsMax) {
    const message = `a connection has at most ${subscriptionsMax} subscriptions`;
    throw new TiergridError("bus_overloaded", message);
  }
  const { subject } = subscriber;
  if (subject.startsWith(`${session.inbox}.`) && !isPattern(subject)) {
    session.inboxSubscribers.add(subject, subscriber);
    session.inboxCount += 1;
    return once(() => {
      session.inboxSubscribers.remove(subject, subscriber);
      session.inboxCount -= 1;
    });
  }
  session.subscribers.add(subscriber);
  if (session.life) attach(session, session.life, subscriber);
  return once(() => {
    session.subscribers.delete(subscriber);
    subscriber.drop();
  });
}

function once(run: () => void): () => void {
  let done = false;
  return () => {
    if (done) return;
    done = true;
    run();
  };
}

function attach(session: Session, life: NatsClient, subscriber: Subscriber): void {
  const { subject, handler, queue } = subscriber;
  const receive = (raw: ConstructorParameters<typeof NatsMessage>[0]): void => {
    session.totals.messagesIn += 1;
    session.totals.bytesIn += raw.data.length;
    callHandler(handler, new NatsMessage(raw), session.failed);
  };
  subscriber.drop = life.subscribe(subject, receive, queue);
}

/** Replies and streams of this connection, told apart here instead of by the server. */
function attachInbox(session: Session, life: NatsClient): void {
  const bundles = `${session.inbox}.${replyToken}`;
  const replies = `${bundles}.`;
  life.subscribe(`${session.inbox}.>`, (raw) => {
    session.totals.bytesIn += raw.data.length;
    const { subject } = raw;
    if (subject === bundles) {
      settleReplies(session, replies, raw.data);
      return;
    }
    session.totals.messagesIn += 1;
    const message = new NatsMessage(raw);
    if (!subject.startsWith(replies)) {
      for (const subscriber of session.inboxSubscribers.match(subject)) {
        callHandler(subscriber.handler, message, session.failed);
      }
    } else if (isNoResponders(raw)) {
      session.requests.fail(subject, "no_responders", "nobody serves the subject");
    } else session.requests.settle(message);
  });
}

async function flush(session: Session): Promise<void> {
  try {
    await lifeOf(session).flush();
  } catch (error) {
    if (error instanceof TiergridError) throw error;
    throw new TiergridError("disconnected", "the connection to the bus was lost");
  }
}

/** Tries every server once; rejects with the last error. */
async function dialEach(session: Session): Promise<void> {
  for (let left = session.options.servers.length; ; left--) {
    try {
      return await dial(session);
    } catch (error) {
      if (left <= 1) throw error;
    }
  }
}

/** One attempt at the next server; on success the session is connected. */
async function dial(session: Session): Promise<void> {
  const { options, servers } = session;
  const server = servers[session.nextServer++ % servers.length];
  if (server === undefined) throw new TiergridError("config_invalid", "no server is given");
  let life: NatsClient | undefined;
  life = await dialNats({
    ...{ server, clock: options.clock, ...(options.ticks && { ticks: options.ticks }) },
    name: options.name ?? `tiergrid-${options.role}`,
    ...(options.credentials ? { credentials: options.credentials } : {}),
    ...(options.tls ? { tls: options.tls } : {}),
    onLost: (why) => lost(session, life, why),
    onError: (error) => trouble(session, error),
  });
  if (life.over) throw new TiergridError("disconnected", `${server} closed at once`);
  if (session.state !== "disconnected" || session.life) return life.destroy();
  for (const other of life.clusterServers) {
    if (servers.length < knownServersMax && !servers.includes(other)) servers.push(other);
  }
  if (session.wasConnected) session.totals.reconnects += 1;
  session.wasConnected = true;
  session.life = life;
  session.maxPayloadBytes = life.maxPayloadBytes;
  session.backoffMs = backoffFirstMs;
  attachInbox(session, life);
  for (const subscriber of session.subscribers) attach(session, life, subscriber);
  setState(session, "connected");
}

function lost(session: Session, life: NatsClient | undefined, why: Loss): void {
  if (session.life === undefined || session.life !== life) return;
  session.life = undefined;
  if (why === "stale") session.totals.forcedCloses += 1;
  const error = new TiergridError("disconnected", `the connection to the bus was lost: ${why}`);
  session.requests.failAll("disconnected", error.message);
  setState(session, "disconnected");
  dialLater(session, error);
}

/** Dials after the backoff, again after each failure, and again when a dial hangs. */
function dialLater(session: Session, error: unknown): void {
  if (session.state !== "disconnected") return;
  const { clock, random } = session.options;
  trouble(session, error);
  const waitMs = session.backoffMs + random() * backoffJitterMs;
  session.backoffMs = Math.min(session.backoffMs * backoffFactor, backoffMaxMs);
  session.cancelDial = clock.after(waitMs, () => dialWatched(session));
}

function dialWatched(session: Session): void {
  if (session.life) return;
  let ended = false;
  const end = (next: () => void): void => {
    if (ended) return;
    ended = true;
    cancelWatchdog();
    next();
  };
  const cancelWatchdog = session.options.clock.after(dialWatchdogMs, () =>
    end(() => {
      session.totals.watchdogSwaps += 1;
      const message = `a dial took more than ${dialWatchdogMs} ms`;
      dialLater(session, new TiergridError("disconnected", message));
    }),
  );
  session.cancelDial = cancelWatchdog;
  dial(session).then(
    () => end(() => {}),
    (error: unknown) => end(() => dialLater(session, error)),
  );
}

function trouble(session: Session, error: unknown): void {
  try {
    session.options.onTrouble?.(error);
  } catch (thrown) {
    session.failed(thrown, "trouble");
  }
}

function setState(session: Session, state: BusState): void {
  if (session.state === state || session.state === "closed") return;
  session.state = state;
  tellState(session.stateListeners, state, session.failed);
}

async function close(session: Session): Promise<void> {
  if (session.state === "closed") return;
  const { life } = session;
  session.life = undefined;
  session.cancelDial();
  setState(session, "closed");
  session.requests.failAll("bus_closed", "the connection was closed");
  if (!life) return;
  const wait = new AbortController();
  const flushed = life.flush().then(undefined, () => {});
  await Promise.race([flushed, sleep(session.options.clock, closeFlushMs, wait.signal)]);
  wait.abort();
  life.destroy();
}
