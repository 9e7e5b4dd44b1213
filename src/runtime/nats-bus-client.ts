/**
 * One life of the `nats` client: dialled, used, lost, never reconnected by itself. The only file
 * that connects the client. What it knows beyond the client's public interface stands in `internals`
 * and is checked at every dial, so that another version fails loudly.
 */
import type { ConnectionOptions, Msg, NatsConnection } from "nats";
import type { CancelTimer, Clock } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import { everyInStep, tickClock } from "../base/tick-clock.ts";
import type { BusMessage, PublishOptions } from "./bus.ts";
import { connectBuffered } from "./nats-bus-transport.ts";
import { greets } from "./nats-greeting.ts";
import { NatsOutbox, type OutboxSocket } from "./nats-outbox.ts";

/** Credentials of a connection; at most one of the kinds. */
export interface NatsCredentials {
  readonly user?: string;
  readonly pass?: string;
  readonly token?: string;
  /** A nkey or JWT authenticator made with the client's own functions. */
  readonly authenticator?: NonNullable<ConnectionOptions["authenticator"]>;
}

/** `stale`: the server answered no ping; otherwise the socket ended. */
export type Loss = "stale" | "closed";

export interface DialOptions {
  /** Such as `nats://host:4222`. */
  readonly server: string;
  readonly name: string;
  readonly clock: Clock;
  /** Times the looks for silence; absent = ticks of their own. */
  readonly ticks?: Clock;
  /** Prefix of the client's own reply subjects; the bus makes its own and needs none. */
  readonly inboxPrefix?: string;
  readonly credentials?: NatsCredentials;
  readonly tls?: NonNullable<ConnectionOptions["tls"]>;
  /** The connection ended; called at most once, never after `destroy`. */
  readonly onLost: (why: Loss) => void;
  /** Errors that do not end the connection, e.g. a refused permission. */
  readonly onError: (error: unknown) => void;
}

export interface NatsClient {
  /** For the parts of the client that the bus does not use. */
  readonly connection: NatsConnection;
  readonly maxPayloadBytes: number;
  /** True after a loss or `destroy`. */
  readonly over: boolean;
  /** Addresses the server announced for its cluster. */
  readonly clusterServers: readonly string[];
  /** Bytes that the socket has not taken. */
  outboundBytes(): number;
  publish(subject: string, payload: Uint8Array, options?: PublishOptions): void;
  /** `receive` must not throw: an exception ends the client's reader. Answers the unsubscribe. */
  subscribe(subject: string, receive: (raw: Msg) => void, queue?: string): () => void;
  flush(): Promise<void>;
  /** Ends this life at once without `onLost`, whatever the socket waits for. */
  destroy(): void;
}

/** How often it is looked whether anything came. */
const lookPeriodMs = 500;
/** The client's own pings would wake a process whose other messages show that the server lives. */
const neverMs = 2 ** 31 - 1;
const dialTimeoutMs = 2000;
/** Announced cluster addresses that are remembered. */
const clusterServersMax = 32;

interface Socket extends OutboxSocket {
  destroy(): unknown;
  on(event: "data", take: (bytes: Uint8Array) => void): unknown;
  removeAllListeners(event: "data"): unknown;
}

interface Internals {
  readonly outbound: { size(): number };
  readonly parser: { parse(bytes: Uint8Array): void };
  readonly transport: { readonly socket?: Socket };
}

/** One attempt at one server. */
export async function dialNats(options: DialOptions): Promise<NatsClient> {
  const { server, clock, tls } = options;
  if (!tls?.handshakeFirst && !(await greets(server, clock, dialTimeoutMs))) {
    throw new TiergridError("disconnected", `${server} does not answer as a NATS server`);
  }
  const connection = await connectBuffered({
    servers: [server],
    name: options.name,
    ...options.credentials,
    ...(tls ? { tls } : {}),
    ...(options.inboxPrefix ? { inboxPrefix: options.inboxPrefix } : {}),
    reconnect: false,
    timeout: dialTimeoutMs,
    pingInterval: neverMs,
    noAsyncTraces: true,
  });
  const internal = internals(connection);
  const outbox = new NatsOutbox(() => internal.transport.socket, clock);
  let over = false;
  let heard = false;
  const destroy = (): void => {
    over = true;
    stopLooking();
    internal.transport.socket?.destroy();
    // With its socket gone the close cannot wait for a peer; its outcome interests nobody.
    connection.close().catch(() => {});
  };
  const lost = (why: Loss): void => {
    if (over) return;
    destroy();
    options.onLost(why);
  };
  const stopLooking = lookForSilence({
    clock: options.ticks ?? tickClock(clock, lookPeriodMs),
    takeHeard: () => {
      const was = heard;
      heard = false;
      return was;
    },
    ping: () => {
      outbox.flush();
      connection.flush().then(
        () => {
          heard = true;
        },
        () => {}, // The connection is over, which is told elsewhere.
      );
    },
    stale: () => lost("stale"),
  });
  parseAtOnce(internal, (error) => {
    options.onError(error);
    lost("closed");
  });
  void connection.closed().then(() => lost("closed"));
  void watch(connection, options.onError);
  return {
    connection,
    get over() {
      return over;
    },
    maxPayloadBytes: connection.info?.max_payload ?? 1024 * 1024,
    clusterServers: (connection.info?.connect_urls ?? []).slice(0, clusterServersMax),
    outboundBytes: () =>
      outbox.bytes + internal.outbound.size() + (internal.transport.socket?.writableLength ?? 0),
    publish: (subject, payload, given) => outbox.publish(subject, payload, given),
    subscribe: (subject, receive, queue) => {
      // A refused permission also comes here; the status reports it.
      const callback = (error: unknown, raw: Msg): void => {
        heard = true;
        if (!error) receive(raw);
      };
      const subscription = connection.subscribe(
        subject,
        queue ? { queue, callback } : { callback },
      );
      return () => subscription.unsubscribe();
    },
    flush: () => {
      outbox.flush();
      return connection.flush();
    },
    destroy,
  };
}

export interface SilenceLook {
  readonly clock: Clock;
  /** Whether anything came since it was called last. */
  readonly takeHeard: () => boolean;
  readonly ping: () => void;
  readonly stale: () => void;
}

/** The first look in vain pings, the next one tells: stale is who said nothing for 1 to 1.5 s. */
export function lookForSilence({ clock, takeHeard, ping, stale }: SilenceLook): CancelTimer {
  let pinged = false;
  return everyInStep(clock, lookPeriodMs, () => {
    if (takeHeard()) pinged = false;
    else if (pinged) stale();
    else {
      pinged = true;
      ping();
    }
  });
}

/** Tells of errors until the connection is over. */
async function watch(connection: NatsConnection, onError: (error: unknown) => void): Promise<void> {
  for await (const status of connection.status()) {
    if (status.type === "error") onError(status.permissionContext ?? status.data);
  }
}

/**
 * Parses what comes within the socket's callback instead of some promises later. Called before
 * another event of the socket can be: until then the client has parsed everything itself.
 */
function parseAtOnce({ parser, transport }: Internals, failed: (error: unknown) => void): void {
  const { socket } = transport;
  socket?.removeAllListeners("data");
  socket?.on("data", (bytes) => {
    try {
      parser.parse(bytes);
    } catch (error) {
      failed(error);
    }
  });
}

function internals(connection: NatsConnection): Internals {
  const { protocol } = connection as unknown as { readonly protocol?: Internals };
  const socket = protocol?.transport?.socket;
  const written = [socket?.write, socket?.cork, socket?.uncork, socket?.destroy];
  const read = [socket?.on, socket?.removeAllListeners, protocol?.parser?.parse];
  const calls = [...written, ...read, protocol?.outbound?.size];
  if (protocol && calls.every((call) => typeof call === "function")) return protocol;
  connection.close().catch(() => {});
  throw new TiergridError("internal_error", "this version of the nats client hides its socket");
}

/** A received message; subject, reply and headers are decoded when they are read. */
export class NatsMessage implements BusMessage {
  readonly #raw: Msg;

  constructor(raw: Msg) {
    this.#raw = raw;
  }

  get subject(): string {
    return this.#raw.subject;
  }

  get payload(): Uint8Array {
    return this.#raw.data;
  }

  get reply(): string | undefined {
    return this.#raw.reply || undefined;
  }

  get headers(): ReadonlyMap<string, string> | undefined {
    const { headers } = this.#raw;
    if (!headers) return undefined;
    return new Map(headers.keys().map((name) => [name, headers.get(name)]));
  }
}

/** True for the server's answer to a request that nobody serves. */
export function isNoResponders(raw: Msg): boolean {
  return raw.data.length === 0 && raw.headers?.code === 503;
}
