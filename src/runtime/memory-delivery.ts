/**
 * How messages travel in the in-process bus: grouped by the instant at which they arrive.
 *
 *   publish ─▶ match, draw fate ─▶ batch of its instant ─▶ clock timer ─▶ handlers
 *                                     now: [m m m m m m]
 *                                   12 ms: [m m]
 *
 * Invariants: one timer per instant, however many messages; messages of one publisher on one subject
 * leave in the order they came, whatever their delays; a batch that fires delivers every earlier one
 * first; nothing is delivered inside `publish`.
 */
import type { CancelTimer, Clock } from "../base/clock.ts";
import type { Random } from "../base/random.ts";
import type { Bus, BusHandler, BusMessage, BusState } from "./bus.ts";
import {
  callHandler,
  type HandlerErrorListener,
  type MutableTotals,
  type RequestBook,
  tellState,
} from "./bus-requests.ts";
import type { FaultDice } from "./memory-faults.ts";
import type { SubjectTable } from "./subject-table.ts";

/** Messages kept for one frozen connection; later ones are lost, as behind a server's max_pending. */
export const heldMessagesMax = 100_000;
/** Subjects whose last delayed batch a publisher remembers before it forgets delivered ones. */
const rememberedSubjects = 4096;

export interface Subscriber {
  readonly connection: Connection;
  readonly handler: BusHandler;
  readonly queue: boolean;
  active: boolean;
}

interface Delivery {
  readonly message: BusMessage;
  readonly subscribers: readonly Subscriber[];
}

export interface Batch {
  readonly atMs: number;
  readonly deliveries: Delivery[];
  /** Publishers whose bytes leave with this batch. */
  readonly bytesOf: Map<Connection, number>;
  delivered: boolean;
  cancel: CancelTimer;
}

export interface Connection {
  readonly bus: Bus;
  readonly totals: MutableTotals;
  readonly requests: RequestBook;
  readonly failed: HandlerErrorListener;
  readonly lastBatch: Map<string, Batch>;
  readonly subscribers: Map<Subscriber, string>;
  readonly stateListeners: Set<(state: BusState) => void>;
  state: BusState;
  cut: boolean;
  cancelStale: CancelTimer;
  /** What a freeze keeps back, oldest first; undefined when not frozen. */
  held: { readonly subscriber: Subscriber; readonly message: BusMessage }[] | undefined;
}

export interface Network {
  readonly clock: Clock;
  readonly random: Random;
  readonly dice: FaultDice;
  readonly table: SubjectTable<Subscriber>;
  readonly connections: Map<Bus, Connection>;
  /** Undelivered batches by instant. */
  readonly batches: Map<number, Batch>;
  messagesUnderWay: number;
  brokerUp: boolean;
}

/** The batch a message joins: never one that leaves before its predecessor on the same subject. */
export function batchFor(
  network: Network,
  from: Connection,
  subject: string,
  delayMs: number,
): Batch {
  const nowMs = network.clock.nowMs();
  const atMs = delayMs > 0 ? Math.ceil(nowMs + delayMs) : Number.NEGATIVE_INFINITY;
  if (delayMs === 0 && from.lastBatch.size === 0) return openBatch(network, atMs, nowMs);
  const last = from.lastBatch.get(subject);
  const batch =
    last && !last.delivered && last.atMs >= atMs ? last : openBatch(network, atMs, nowMs);
  from.lastBatch.set(subject, batch);
  if (from.lastBatch.size > rememberedSubjects) {
    for (const [key, held] of from.lastBatch) if (held.delivered) from.lastBatch.delete(key);
  }
  return batch;
}

/** The batch of an instant; `-Infinity` is the end of the current task. */
function openBatch(network: Network, atMs: number, nowMs: number): Batch {
  const open = network.batches.get(atMs);
  if (open) return open;
  const batch: Batch = {
    atMs,
    deliveries: [],
    bytesOf: new Map(),
    delivered: false,
    cancel: () => {},
  };
  network.batches.set(atMs, batch);
  batch.cancel = network.clock.after(Math.max(0, atMs - nowMs), () => fire(network, batch));
  return batch;
}

function fire(network: Network, due: Batch): void {
  if (due.delivered) return;
  const earlier = [...network.batches.values()].filter((batch) => batch.atMs < due.atMs);
  for (const batch of earlier.sort((a, b) => a.atMs - b.atMs)) deliver(network, batch);
  deliver(network, due);
}

function deliver(network: Network, batch: Batch): void {
  retire(network, batch);
  for (const { message, subscribers } of batch.deliveries) {
    for (const subscriber of subscribers) arrive(network, subscriber, message);
  }
}

/** Takes a batch off the books; its messages are delivered or lost by the caller. */
export function retire(network: Network, batch: Batch): void {
  batch.delivered = true;
  batch.cancel();
  network.batches.delete(batch.atMs);
  network.messagesUnderWay -= batch.deliveries.length;
  for (const [from, bytes] of batch.bytesOf) from.totals.outboundBytes -= bytes;
}

export function arrive(network: Network, subscriber: Subscriber, message: BusMessage): void {
  const { connection } = subscriber;
  if (!subscriber.active) return;
  if (connection.cut || connection.state !== "connected") {
    network.dice.counts.lost += 1;
    return;
  }
  if (connection.held) {
    const room = connection.held.length < heldMessagesMax;
    network.dice.counts[room ? "held" : "lost"] += 1;
    if (room) connection.held.push({ subscriber, message });
    return;
  }
  connection.totals.messagesIn += 1;
  connection.totals.bytesIn += message.payload.length;
  callHandler(subscriber.handler, message, connection.failed);
}

export function setState(connection: Connection, state: BusState): void {
  if (connection.state === state || connection.state === "closed") return;
  connection.state = state;
  if (state === "connected") connection.totals.reconnects += 1;
  if (state === "disconnected") {
    connection.requests.failAll("disconnected", "the connection to the bus was lost");
  }
  tellState(connection.stateListeners, state, connection.failed);
}
