/**
 * Tells the pool's other routers what this one has booked, and counts what they have: each chooses on
 * the load of all.
 *
 *   policy ──add, first token, free──▶ own book ──1 ms, 256 changes──▶ deltas, numbered
 *                                        ├── every 5 s ──▶ heartbeat: number, count, digest
 *                                        └── when asked ─▶ the whole list
 *   replicas ──the same──▶ peers (replica-peers.ts) ──▶ load book
 *
 * A message that the bus does not take is lost like one that is lost on the way: its number is
 * missing, and the peers ask. Output growth is not told; it is each router's own estimate.
 */
import { type CancelTimer, type Clock, every } from "../base/clock.ts";
import type { Random } from "../base/random.ts";
import type { ChosenWorker } from "../core/choice.ts";
import { ReplicaBook } from "../core/replica-book.ts";
import type { WorkerLoad } from "../core/worker-load.ts";
import {
  bytesOfEvent,
  decodeSequenceAsk,
  decodeSequenceMessage,
  encodeSequenceAsk,
  encodeSequenceFrame,
  encodeSequenceHeartbeat,
  eventsPerFrameMax,
  frameHeadBytes,
  listPartsMax,
  type SequenceEvent,
  type SequenceFrame,
  sequenceBlocksMax,
} from "../protocol/active-sequences.ts";
import {
  activeSequencesAskSubject,
  activeSequencesOfPool,
  activeSequencesSubject,
  type EndpointPath,
} from "../protocol/subjects.ts";
import { newEpoch } from "../runtime/announce.ts";
import type { Bus, PublishOptions } from "../runtime/bus.ts";
import type { EchoGate } from "../runtime/echo-gate.ts";
import type { Log } from "../runtime/log.ts";
import type { LocalMetrics } from "./local-metrics.ts";
import { createReplicaPeers, type PeerCounts, type ReplicaPeers } from "./replica-peers.ts";
import type { PoolWorker, WorkerDirectory } from "./worker-directory.ts";

export const replicaTiming = { flushMs: 1, heartbeatMs: 5_000 } as const;
/** Bytes of one message, if the bus takes that much. */
const frameBytesMax = 256 * 1024;

export interface ReplicaSyncOptions {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly random: Random;
  readonly gate: EchoGate;
  readonly log: Log;
  readonly metrics: LocalMetrics;
  /** Where the pool's workers serve: its routers meet under that name. */
  readonly endpoint: EndpointPath;
  readonly inst: string;
  readonly blockSize: number;
  readonly load: WorkerLoad;
  readonly directory: Pick<WorkerDirectory, "workers">;
}

/** Told of this router's own bookings, by their keys in the load book, the moment they change. */
export interface BookingListener {
  added(key: string, worker: Pick<ChosenWorker, "workerId" | "dpRank" | "cachedTokens">): void;
  firstToken(key: string): void;
  freed(key: string): void;
}

/** For a router without replicas. */
export const nobodyListens: BookingListener = {
  added() {},
  firstToken() {},
  freed() {},
};

export interface ReplicaSync extends BookingListener {
  workerAdded(worker: PoolWorker): void;
  /** Keeps what replicas still tell of from going stale. */
  touch(nowMs: number): void;
  counts(): PeerCounts;
  /** Says goodbye: replicas drop this router's bookings. */
  close(): void;
}

interface Sync extends ReplicaSyncOptions {
  readonly epoch: string;
  readonly own: ReplicaBook;
  /** Number of each own booking, by its key. */
  readonly numbers: Map<string, number>;
  booked: number;
  readonly peers: ReplicaPeers;
  readonly frameBytesMax: number;
  /** Changes that wait for the next deltas. */
  pending: SequenceEvent[];
  pendingBytes: number;
  oldestMs: number;
  cancelFlush: CancelTimer | undefined;
  /** Number of the newest deltas. */
  seq: number;
}

export function startReplicaSync(options: ReplicaSyncOptions): ReplicaSync {
  const { bus, clock, random, inst, endpoint, directory } = options;
  const answers = `${bus.inboxPrefix}.as`;
  const peers = createReplicaPeers({
    ...options,
    slotOf(workerId, dpRank) {
      const worker = directory.workers.get(workerId);
      return worker?.slots[dpRank - worker.card.dpStart];
    },
    ask: (of) => ask(sync, answers, of),
  });
  const sync: Sync = {
    ...options,
    peers,
    epoch: newEpoch(random),
    own: new ReplicaBook(),
    numbers: new Map(),
    booked: 0,
    frameBytesMax: Math.min(frameBytesMax, bus.maxPayloadBytes),
    ...{ pending: [], pendingBytes: 0, oldestMs: 0, cancelFlush: undefined, seq: 0 },
  };
  const receive = ({ payload }: { readonly payload: Uint8Array }): void => hear(sync, payload);
  const subscriptions = [
    bus.subscribe(activeSequencesOfPool(endpoint), receive),
    bus.subscribe(answers, receive),
    bus.subscribe(activeSequencesAskSubject(endpoint), ({ payload, reply }) =>
      answer(sync, payload, reply),
    ),
  ];
  /** Tells how we are and asks how the others are: whoever missed something sees it. */
  const meet = (): void => {
    beat(sync, activeSequencesSubject(endpoint, inst));
    ask(sync, answers, undefined);
  };
  const endings = [
    every(clock, replicaTiming.heartbeatMs, () =>
      beat(sync, activeSequencesSubject(endpoint, inst)),
    ),
    bus.onState((state) => {
      if (state === "connected") meet();
    }),
    options.gate.onThaw(meet),
  ];
  meet();
  options.metrics.onScrape(() => collect(options.metrics, peers.counts()));
  return {
    ...listenerOf(sync),
    workerAdded: ({ inst: workerId }) => peers.workerAdded(workerId),
    touch: peers.touch,
    counts: peers.counts,
    close() {
      flush(sync);
      for (const end of endings) end();
      for (const subscription of subscriptions) subscription.unsubscribe();
      peers.close();
      beat(sync, activeSequencesSubject(endpoint, inst), true);
    },
  };
}

function collect(metrics: LocalMetrics, { peers, booked, held }: PeerCounts): void {
  metrics.gauge("tiergrid_replica_peers").set(peers);
  metrics.gauge("tiergrid_replica_bookings", { state: "booked" }).set(booked);
  metrics.gauge("tiergrid_replica_bookings", { state: "held" }).set(held);
}

function listenerOf(sync: Sync): BookingListener {
  const { own, numbers, load } = sync;
  const blocksMax = sequenceBlocksMax(sync.frameBytesMax);
  return {
    added(key, { workerId, dpRank, cachedTokens }) {
      const booked = load.bookingOf(key);
      if (!booked) return;
      const request = ++sync.booked;
      const { sequence, prefillTokens, expectedPrefillMs } = booked;
      // What does not fit into a message travels as a number: it counts, but shares nothing.
      const beyond = Math.max(sequence.length / 2 - blocksMax, 0);
      const booking = {
        ...{ request, workerId, dpRank, prefillTokens, cachedTokens, expectedPrefillMs },
        sequence: beyond > 0 ? sequence.subarray(0, 2 * blocksMax) : sequence,
        privateBlocks: booked.privateBlocks + beyond,
      };
      if (!own.add(booking)) return;
      numbers.set(key, request);
      tell(sync, { type: "add", booking });
    },
    firstToken(key) {
      const request = numbers.get(key);
      if (request === undefined || !own.completePrefill(request)) return;
      tell(sync, { type: "first_token", request });
    },
    freed(key) {
      const request = numbers.get(key);
      if (request === undefined || !own.free(request)) return;
      numbers.delete(key);
      tell(sync, { type: "free", request });
    },
  };
}

function tell(sync: Sync, event: SequenceEvent): void {
  const bytes = bytesOfEvent(event);
  const full = frameHeadBytes + sync.pendingBytes + bytes > sync.frameBytesMax;
  if (full || sync.pending.length >= eventsPerFrameMax) flush(sync);
  if (sync.pending.length === 0) {
    sync.oldestMs = sync.clock.nowMs();
    sync.cancelFlush = sync.clock.after(replicaTiming.flushMs, () => flush(sync));
  }
  sync.pending.push(event);
  sync.pendingBytes += bytes;
}

function flush(sync: Sync): void {
  const { pending, oldestMs, endpoint, inst } = sync;
  sync.cancelFlush?.();
  sync.cancelFlush = undefined;
  if (pending.length === 0) return;
  sync.pending = [];
  sync.pendingBytes = 0;
  sync.seq++;
  const frame = frameOf(sync, { type: "deltas", oldestMs, part: 0, parts: 1, events: pending });
  say(sync, activeSequencesSubject(endpoint, inst), encodeSequenceFrame(frame));
}

type FrameParts = Pick<SequenceFrame, "type" | "oldestMs" | "part" | "parts" | "events">;

function frameOf(sync: Sync, parts: FrameParts): SequenceFrame {
  const { inst: routerId, epoch, blockSize, seq, clock } = sync;
  return { ...parts, routerId, epoch, blockSize, seq, sentMs: clock.nowMs() };
}

/** A heartbeat names the newest deltas, so none may be waiting. */
function beat(sync: Sync, subject: string, goodbye = false): void {
  flush(sync);
  const { inst: routerId, epoch, blockSize, seq, own, clock } = sync;
  const live = { liveCount: own.count, liveDigest: own.digest };
  const source = { routerId, epoch, blockSize, seq, sentMs: clock.nowMs() };
  const heartbeat = encodeSequenceHeartbeat({ type: "heartbeat", ...source, ...live, goodbye });
  say(sync, subject, heartbeat, { traffic: "control" });
}

function ask(sync: Sync, reply: string, of: string | undefined): void {
  const payload = encodeSequenceAsk({ routerId: sync.inst, of });
  say(sync, activeSequencesAskSubject(sync.endpoint), payload, { reply, traffic: "control" });
}

/** Answers another router: a heartbeat to everyone's question, the list to ours. */
function answer(sync: Sync, payload: Uint8Array, reply: string | undefined): void {
  const { routerId, of } = decodeSequenceAsk(payload);
  if (reply === undefined || routerId === sync.inst) return;
  if (of === undefined) beat(sync, reply);
  else if (of === sync.inst) tellAll(sync, reply);
}

function tellAll(sync: Sync, reply: string): void {
  flush(sync);
  const adds = [...sync.own.values()].map((booking): SequenceEvent => ({ type: "add", booking }));
  const parts = framesOf(adds, sync.frameBytesMax);
  if (parts.length > listPartsMax) {
    sync.log.warn("too many bookings for a list", { bookings: adds.length, parts: parts.length });
    return;
  }
  const oldestMs = sync.clock.nowMs();
  for (const [part, events] of parts.entries()) {
    const frame = frameOf(sync, { type: "list", oldestMs, part, parts: parts.length, events });
    say(sync, reply, encodeSequenceFrame(frame));
  }
}

/** Events in their order, as many to a message as it may carry; one empty message for none. */
function framesOf(events: readonly SequenceEvent[], bytesMax: number): SequenceEvent[][] {
  let last: SequenceEvent[] = [];
  const frames = [last];
  let bytes = frameHeadBytes;
  for (const event of events) {
    bytes += bytesOfEvent(event);
    if (last.length > 0 && (bytes > bytesMax || last.length >= eventsPerFrameMax)) {
      last = [];
      frames.push(last);
      bytes = frameHeadBytes + bytesOfEvent(event);
    }
    last.push(event);
  }
  return frames;
}

function say({ bus, metrics }: Sync, subject: string, payload: Uint8Array, how?: PublishOptions) {
  try {
    bus.publish(subject, payload, how);
    metrics.counter("tiergrid_replica_messages_total", { direction: "sent" }).add();
  } catch {
    // Disconnected or overloaded: the missing number, or the next heartbeat, tells the peers.
  }
}

function hear(sync: Sync, payload: Uint8Array): void {
  const { metrics, peers, inst, blockSize } = sync;
  const dropped = (cause: string): void =>
    metrics.counter("tiergrid_replica_dropped_total", { cause }).add();
  // The server's answer when nobody serves the subject.
  if (payload.length === 0) return;
  let message: ReturnType<typeof decodeSequenceMessage>;
  try {
    message = decodeSequenceMessage(payload);
  } catch {
    dropped("malformed");
    return;
  }
  if (message.routerId === inst) return;
  if (message.blockSize !== blockSize) {
    dropped("block_size");
    return;
  }
  metrics.counter("tiergrid_replica_messages_total", { direction: "received" }).add();
  peers.take(message);
}
