/**
 * The bus in one process, for tests, the simulator and the embedded demo. The broker takes a message
 * at once (matching and the choice in a queue group happen in `publish`); the way to the receivers
 * takes time and can fail (`memory-delivery.ts`, `memory-faults.ts`). Under a `ManualClock` and a
 * seeded `Random` two runs deliver the same messages in the same order.
 */
import type { Clock } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import { type Random, randomU32 } from "../base/random.ts";
import {
  type BusRole,
  checkQueue,
  checkSubscribeSubject,
  inboxPrefix,
} from "../protocol/subjects.ts";
import type { Asker, AskOptions, Bus, BusHandler, PublishOptions, Subscription } from "./bus.ts";
import {
  checkMessage,
  checkRoom,
  emptyTotals,
  type HandlerErrorListener,
  handlerErrorCounter,
  RequestBook,
  requestOver,
  subscriptionsMax,
} from "./bus-requests.ts";
import {
  arrive,
  batchFor,
  type Connection,
  type Network,
  retire,
  type Subscriber,
  setState,
} from "./memory-delivery.ts";
import { FaultDice, type MemoryFaults, type MessageFault, staleAfterMs } from "./memory-faults.ts";
import { SubjectTable } from "./subject-table.ts";

export interface MemoryNetworkOptions {
  readonly clock: Clock;
  readonly random: Random;
  readonly faults?: readonly MessageFault[];
  /** Default 8 MiB, as the recommended server config. */
  readonly maxPayloadBytes?: number;
  readonly onHandlerError?: HandlerErrorListener;
}

export interface MemoryNetwork {
  connect(options: { readonly role: BusRole }): Bus;
  readonly faults: MemoryFaults;
}

const defaultMaxPayloadBytes = 8 * 1024 * 1024;
/** Messages under way in the whole network. */
const messagesUnderWayMax = 2_000_000;
/** A broker without a process; connections from `connect` talk to each other only. */
export function createMemoryNetwork(options: MemoryNetworkOptions): MemoryNetwork {
  const network: Network = {
    clock: options.clock,
    random: options.random,
    dice: new FaultDice(options.random),
    table: new SubjectTable(),
    connections: new Map(),
    batches: new Map(),
    messagesUnderWay: 0,
    brokerUp: true,
  };
  network.dice.setRules(options.faults ?? []);
  return { connect: ({ role }) => connect(network, options, role), faults: faultsOf(network) };
}

function connect(network: Network, options: MemoryNetworkOptions, role: BusRole): Bus {
  const { clock, random, maxPayloadBytes = defaultMaxPayloadBytes } = options;
  const prefix = inboxPrefix(role, randomU32(random).toString(36));
  const totals = emptyTotals();
  const bus: Bus = {
    kind: "embedded",
    inboxPrefix: prefix,
    maxPayloadBytes,
    totals,
    get state() {
      return connection.state;
    },
    publish: (subject, payload, options) => {
      publish(network, connection, { subject, payload, options });
    },
    subscribe: (subject, handler, queue) => {
      if (queue !== undefined) checkQueue(queue);
      return subscribe(network, connection, { subject, handler, queue: queue !== undefined });
    },
    ask: (subject, payload, options, asker) =>
      ask(network, connection, { subject, payload, options }, asker),
    request: (subject, payload, options) =>
      requestOver(
        (given, asker) => ask(network, connection, { subject, payload, options: given }, asker),
        options,
      ),
    onState: (listener) => {
      connection.stateListeners.add(listener);
      return () => connection.stateListeners.delete(listener);
    },
    flush: () => flush(network, connection),
    close: () => Promise.resolve(close(network, connection)),
  };
  const connection: Connection = {
    bus,
    totals,
    requests: new RequestBook(clock, `${prefix}.rq`),
    failed: handlerErrorCounter(totals, options.onHandlerError),
    lastBatch: new Map(),
    subscribers: new Map(),
    stateListeners: new Set(),
    state: network.brokerUp ? "connected" : "disconnected",
    cut: false,
    cancelStale: () => {},
    held: undefined,
  };
  network.connections.set(bus, connection);
  const handler: BusHandler = (reply) => connection.requests.settle(reply);
  subscribe(network, connection, { subject: `${prefix}.rq.*`, handler, queue: false });
  return bus;
}

interface Outgoing<O extends PublishOptions | AskOptions | undefined> {
  readonly subject: string;
  readonly payload: Uint8Array;
  readonly options: O;
}

/** Answers how many subscribers the broker found. */
function publish(
  network: Network,
  from: Connection,
  outgoing: Outgoing<PublishOptions | undefined>,
): number {
  const { subject, payload, options } = outgoing;
  throwUnlessConnected(from);
  checkMessage(subject, payload, options, from.bus.maxPayloadBytes);
  checkRoom(from.totals, from.totals.outboundBytes, options);
  if (network.messagesUnderWay >= messagesUnderWayMax) {
    const message = `${messagesUnderWayMax} messages are under way, none may be added`;
    throw new TiergridError("bus_overloaded", message);
  }
  from.totals.messagesOut += 1;
  from.totals.bytesOut += payload.length;
  if (from.cut) {
    network.dice.counts.lost += 1;
    return 1;
  }
  const subscribers = withOneOfQueue(network.table.match(subject), network.random);
  if (subscribers.length === 0) return 0;
  const fate = network.dice.fateOf(subject);
  if (fate.copies === 0) return subscribers.length;
  const message = { subject, payload, reply: options?.reply, headers: options?.headers };
  const batch = batchFor(network, from, subject, fate.delayMs);
  for (let copy = 0; copy < fate.copies; copy++) batch.deliveries.push({ message, subscribers });
  network.messagesUnderWay += fate.copies;
  if (fate.delayMs === 0) {
    from.totals.outboundBytes += payload.length;
    batch.bytesOf.set(from, (batch.bytesOf.get(from) ?? 0) + payload.length);
  }
  return subscribers.length;
}

/** All plain subscribers and one member of the queue group. */
function withOneOfQueue(matched: readonly Subscriber[], random: Random): readonly Subscriber[] {
  let members = 0;
  for (const subscriber of matched) if (subscriber.queue) members += 1;
  if (members === 0) return matched;
  let chosen = members === 1 ? 0 : Math.floor(random() * members);
  return matched.filter((subscriber) => !subscriber.queue || chosen-- === 0);
}

function subscribe(
  network: Network,
  connection: Connection,
  wanted: { readonly subject: string; readonly handler: BusHandler; readonly queue: boolean },
): Subscription {
  const { subject, handler, queue } = wanted;
  checkSubscribeSubject(subject);
  if (connection.state === "closed") throwUnlessConnected(connection);
  if (connection.subscribers.size >= subscriptionsMax) {
    const message = `a connection has at most ${subscriptionsMax} subscriptions`;
    throw new TiergridError("bus_overloaded", message);
  }
  const subscriber: Subscriber = { connection, handler, queue, active: true };
  network.table.add(subject, subscriber);
  connection.subscribers.set(subscriber, subject);
  return { unsubscribe: () => unsubscribe(network, subscriber) };
}

function unsubscribe(network: Network, subscriber: Subscriber): void {
  const subject = subscriber.connection.subscribers.get(subscriber);
  if (subject === undefined) return;
  subscriber.active = false;
  subscriber.connection.subscribers.delete(subscriber);
  network.table.remove(subject, subscriber);
}

function ask(
  network: Network,
  from: Connection,
  { subject, payload, options }: Outgoing<AskOptions>,
  asker: Asker,
): () => void {
  const { timeoutMs, headers } = options;
  const send = (reply: string): void => {
    const asked: PublishOptions = headers
      ? { reply, headers, traffic: "control" }
      : { reply, traffic: "control" };
    if (publish(network, from, { subject, payload, options: asked }) > 0) return;
    network.clock.after(0, () =>
      from.requests.fail(reply, "no_responders", `nobody serves ${subject}`),
    );
  };
  return from.requests.ask(timeoutMs, send, asker);
}

async function flush(network: Network, connection: Connection): Promise<void> {
  throwUnlessConnected(connection);
  await new Promise<void>((resolve) => network.clock.after(0, resolve));
}

function close(network: Network, connection: Connection): void {
  if (connection.state === "closed") return;
  for (const subscriber of [...connection.subscribers.keys()]) unsubscribe(network, subscriber);
  connection.cancelStale();
  connection.held = undefined;
  network.connections.delete(connection.bus);
  setState(connection, "closed");
  connection.requests.failAll("bus_closed", "the connection was closed");
}

function throwUnlessConnected(connection: Connection): void {
  if (connection.state === "connected") return;
  if (connection.state === "closed") throw new TiergridError("bus_closed", "the bus is closed");
  throw new TiergridError("disconnected", "the bus is not connected");
}

function faultsOf(network: Network): MemoryFaults {
  const found = (buses: readonly Bus[]): Connection[] =>
    buses.flatMap((bus) => network.connections.get(bus) ?? []);
  return {
    counts: network.dice.counts,
    setMessageFaults: (rules) => network.dice.setRules(rules),
    freeze: (...buses) => {
      for (const connection of found(buses)) connection.held ??= [];
    },
    thaw: (...buses) => {
      for (const connection of found(buses)) thaw(network, connection);
    },
    cut: (...buses) => {
      for (const connection of found(buses)) cut(network, connection);
    },
    heal: (...buses) => {
      for (const connection of found(buses)) heal(network, connection);
    },
    brokerDown: () => brokerDown(network),
    brokerUp: () => {
      network.brokerUp = true;
      for (const connection of network.connections.values()) {
        if (!connection.cut) setState(connection, "connected");
      }
    },
  };
}

/** What was held arrives after the current task, before anything newer. */
function thaw(network: Network, connection: Connection): void {
  network.clock.after(0, () => {
    const held = connection.held ?? [];
    connection.held = undefined;
    for (const { subscriber, message } of held) arrive(network, subscriber, message);
  });
}

function cut(network: Network, connection: Connection): void {
  if (connection.cut) return;
  connection.cut = true;
  connection.cancelStale = network.clock.after(staleAfterMs, () =>
    setState(connection, "disconnected"),
  );
}

function heal(network: Network, connection: Connection): void {
  connection.cut = false;
  connection.cancelStale();
  if (network.brokerUp) setState(connection, "connected");
}

function brokerDown(network: Network): void {
  network.brokerUp = false;
  for (const batch of [...network.batches.values()]) {
    network.dice.counts.lost += batch.deliveries.length;
    retire(network, batch);
  }
  for (const connection of network.connections.values()) {
    if (connection.held) connection.held = [];
    setState(connection, "disconnected");
  }
}
