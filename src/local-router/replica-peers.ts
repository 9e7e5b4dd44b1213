/**
 * The bookings of a pool's other routers, as they tell them, in this router's load book.
 *
 *   deltas n+1 ──▶ in sync ──heartbeat agrees──▶ in sync
 *                     │ number skipped; heartbeat ahead, or its digest differs twice; new epoch
 *                     ▼
 *                 recovering: ask for the list ──all parts──▶ replace, take what came behind it
 *
 * - A peer's book is what the peer says. It counts as load while its worker is known here: bookings
 *   of an unknown worker are held, and counted from the moment that discovery finds it.
 * - A peer that says goodbye, or nothing for 15 s, is forgotten with all its bookings; silence does
 *   not count while our own echo stays away.
 * - Peers, bookings per peer, messages kept while recovering, and asks per recovery have maxima.
 */
import { type CancelTimer, type Clock, every } from "../base/clock.ts";
import type { Random } from "../base/random.ts";
import { LeastLag } from "../core/least-lag.ts";
import { bookingKey, ReplicaBook } from "../core/replica-book.ts";
import type { WorkerLoad } from "../core/worker-load.ts";
import type {
  SequenceBooking,
  SequenceEvent,
  SequenceFrame,
  SequenceHeartbeat,
} from "../protocol/active-sequences.ts";
import type { EchoGate } from "../runtime/echo-gate.ts";
import type { Log } from "../runtime/log.ts";
import type { LocalMetrics } from "./local-metrics.ts";

export const peersMax = 64;
/** Silence after which a peer's bookings are void. */
export const peerSilenceMs = 15_000;
const sweepMs = 1_000;
/** Asks are spread over this span: all replicas see a gap at the same moment. */
export const askSpreadMs = 50;
/** An answer comes within this time, or is asked for again. */
export const askTimeoutMs = 1_000;
/** Asks before the next heartbeat has to start the recovery anew. */
export const asksMax = 3;
/** Messages kept while a list is under way. */
export const keptFramesMax = 4_096;
/** Heartbeats in a row whose digest differs before the book is replaced. */
const doubtsMax = 2;
/** Changes older than this are warned of, at most once per period. */
export const ageWarningMs = 100;
const ageWarningPeriodMs = 10_000;

export type ResyncCause = "start" | "epoch" | "gap" | "digest";

export interface ReplicaPeersOptions {
  readonly clock: Clock;
  readonly random: Random;
  readonly gate: EchoGate;
  readonly log: Log;
  readonly metrics: LocalMetrics;
  readonly load: WorkerLoad;
  /** Slot of a rank that discovery knows. */
  readonly slotOf: (workerId: string, dpRank: number) => number | undefined;
  /** Asks a router for its list. */
  readonly ask: (routerId: string) => void;
}

export interface ReplicaPeers {
  take(message: SequenceFrame | SequenceHeartbeat): void;
  /** A worker is known from now on: what was held for it counts. */
  workerAdded(workerId: string): void;
  /** Bookings that peers still tell of are not stale. */
  touch(nowMs: number): void;
  counts(): PeerCounts;
  close(): void;
}

export interface PeerCounts {
  readonly peers: number;
  readonly recovering: number;
  /** Bookings that count as load. */
  readonly booked: number;
  /** Bookings of workers that are not known. */
  readonly held: number;
}

interface Peer {
  readonly routerId: string;
  epoch: string;
  /** Number of the newest deltas seen. */
  seq: number;
  readonly book: ReplicaBook;
  heardMs: number;
  doubts: number;
  lag: LeastLag;
  recovery: Recovery | undefined;
}

interface Recovery {
  /** Parts of the newest list, by place. */
  readonly parts: Map<number, SequenceFrame>;
  /** Deltas that came since the recovery began. */
  readonly kept: SequenceFrame[];
  asks: number;
  cancel: CancelTimer;
}

interface Peers extends ReplicaPeersOptions {
  readonly peers: Map<string, Peer>;
  warnedMs: number;
}

export function createReplicaPeers(options: ReplicaPeersOptions): ReplicaPeers {
  const { clock, gate, load } = options;
  const peers: Peers = { ...options, peers: new Map(), warnedMs: Number.NEGATIVE_INFINITY };
  const all = (): IterableIterator<Peer> => peers.peers.values();
  const endings = [
    every(clock, sweepMs, () => sweep(peers)),
    gate.onThaw(() => {
      for (const peer of all()) peer.heardMs = clock.nowMs();
    }),
  ];
  return {
    take: (message) => take(peers, message),
    workerAdded(workerId) {
      for (const peer of all()) {
        for (const booking of peer.book.values()) {
          if (booking.workerId === workerId) count(peers, peer, booking);
        }
      }
    },
    touch(nowMs) {
      for (const { routerId, book } of all()) {
        for (const { request } of book.values()) load.touch(bookingKey(routerId, request), nowMs);
      }
    },
    counts: () => countsOf(peers),
    close() {
      for (const end of endings) end();
      for (const peer of all()) peer.recovery?.cancel();
    },
  };
}

function countsOf({ peers, load }: Peers): PeerCounts {
  const counts = { peers: peers.size, recovering: 0, booked: 0, held: 0 };
  for (const { routerId, book, recovery } of peers.values()) {
    if (recovery) counts.recovering++;
    for (const { request } of book.values()) {
      if (load.has(bookingKey(routerId, request))) counts.booked++;
      else counts.held++;
    }
  }
  return counts;
}

function take(peers: Peers, message: SequenceFrame | SequenceHeartbeat): void {
  const nowMs = peers.clock.nowMs();
  const known = peers.peers.get(message.routerId);
  if (message.type === "heartbeat" && message.goodbye) {
    if (known?.epoch === message.epoch) forget(peers, known, "goodbye");
    return;
  }
  const peer = known ?? meet(peers, message, nowMs);
  if (!peer) {
    drop(peers, "capacity");
    return;
  }
  if (peer.epoch !== message.epoch) restart(peers, peer, message.epoch);
  peer.heardMs = nowMs;
  switch (message.type) {
    case "heartbeat":
      peer.lag.lateness(message.sentMs, nowMs);
      compare(peers, peer, message);
      break;
    case "deltas":
      measureAge(peers, peer, message);
      takeDeltas(peers, peer, message);
      break;
    case "list":
      takeListPart(peers, peer, message);
      break;
  }
}

function meet(peers: Peers, { routerId, epoch }: SequenceFrame | SequenceHeartbeat, nowMs: number) {
  if (peers.peers.size >= peersMax) return undefined;
  const peer: Peer = {
    ...{ routerId, epoch, seq: 0, heardMs: nowMs, doubts: 0 },
    book: new ReplicaBook(),
    lag: new LeastLag(),
    recovery: undefined,
  };
  peers.peers.set(routerId, peer);
  peers.log.info("replica up", { router_id: routerId });
  return peer;
}

/** Another life under the same name: nothing of the old one holds. */
function restart(peers: Peers, peer: Peer, epoch: string): void {
  clear(peers, peer);
  peer.epoch = epoch;
  peer.seq = 0;
  peer.doubts = 0;
  peer.lag = new LeastLag();
  recover(peers, peer, "epoch");
}

function compare(peers: Peers, peer: Peer, { seq, liveCount, liveDigest }: SequenceHeartbeat) {
  if (peer.recovery || seq < peer.seq) return;
  if (seq > peer.seq) {
    recover(peers, peer, peer.seq === 0 ? "start" : "gap");
    return;
  }
  const agrees = peer.book.count === liveCount && peer.book.digest === liveDigest;
  peer.doubts = agrees ? 0 : peer.doubts + 1;
  if (peer.doubts >= doubtsMax) recover(peers, peer, "digest");
}

/** How old the oldest change is: what it waited at the sender, and how late the message came. */
function measureAge(peers: Peers, peer: Peer, { sentMs, oldestMs }: SequenceFrame): void {
  const { clock, metrics, log } = peers;
  const nowMs = clock.nowMs();
  const ageMs = sentMs - oldestMs + peer.lag.lateness(sentMs, nowMs);
  metrics.histogram("tiergrid_replica_delta_age_seconds").observe(ageMs / 1000);
  if (ageMs <= ageWarningMs || nowMs - peers.warnedMs < ageWarningPeriodMs) return;
  peers.warnedMs = nowMs;
  log.warn("bookings of a replica come late", {
    router_id: peer.routerId,
    age_ms: Math.round(ageMs),
    age_ms_max: ageWarningMs,
  });
}

function takeDeltas(peers: Peers, peer: Peer, frame: SequenceFrame): void {
  const { seq } = frame;
  if (seq <= peer.seq && !peer.recovery) {
    drop(peers, "duplicate");
    return;
  }
  // Taken at once even while a list is under way, which then stands in for them.
  if (peer.recovery && peer.recovery.kept.length < keptFramesMax) peer.recovery.kept.push(frame);
  if (seq <= peer.seq) return;
  const skipped = seq !== peer.seq + 1;
  const first = peer.seq === 0;
  apply(peers, peer, frame.events);
  peer.seq = seq;
  if (skipped) recover(peers, peer, first ? "start" : "gap");
}

function apply(peers: Peers, peer: Peer, events: readonly SequenceEvent[]): void {
  for (const event of events) {
    switch (event.type) {
      case "add":
        if (peer.book.add(event.booking)) count(peers, peer, event.booking);
        break;
      case "first_token":
        firstToken(peers, peer, event.request);
        break;
      case "free":
        free(peers, peer, event.request);
        break;
    }
  }
}

/** Counts a booking as load, if its worker is known and it does not count yet. */
function count({ load, clock, slotOf }: Peers, { routerId }: Peer, booking: SequenceBooking): void {
  const slot = slotOf(booking.workerId, booking.dpRank);
  if (slot === undefined) return;
  const { sequence, privateBlocks, prefillTokens, cachedTokens, expectedPrefillMs } = booking;
  load.add({
    ...{ slot, sequence, privateBlocks, prefillTokens, cachedTokens, expectedPrefillMs },
    key: bookingKey(routerId, booking.request),
    nowMs: clock.nowMs(),
  });
}

function firstToken({ load, clock }: Peers, { routerId, book }: Peer, request: number): void {
  if (!book.completePrefill(request)) return;
  load.markPrefillCompleted(bookingKey(routerId, request), clock.nowMs());
}

function free({ load, clock }: Peers, { routerId, book }: Peer, request: number): void {
  if (book.free(request)) load.free(bookingKey(routerId, request), clock.nowMs());
}

function recover(peers: Peers, peer: Peer, cause: ResyncCause): void {
  if (peer.recovery) return;
  const recovery: Recovery = { parts: new Map(), kept: [], asks: 0, cancel: () => {} };
  peer.recovery = recovery;
  peer.doubts = 0;
  peers.metrics.counter("tiergrid_replica_resyncs_total", { cause }).add();
  peers.log.info("replica's bookings are asked for", { router_id: peer.routerId, cause });
  const ask = (): void => {
    if (recovery.asks++ >= asksMax) {
      // The next heartbeat that is ahead, or differs, begins anew.
      peer.recovery = undefined;
      peer.doubts = doubtsMax - 1;
      peers.log.warn("a replica does not tell its bookings", { router_id: peer.routerId });
      return;
    }
    peers.ask(peer.routerId);
    recovery.cancel = peers.clock.after(askTimeoutMs, ask);
  };
  recovery.cancel = peers.clock.after(peers.random() * askSpreadMs, ask);
}

/** Parts of one list agree in their number; a newer list takes an older one's place. */
function takeListPart(peers: Peers, peer: Peer, part: SequenceFrame): void {
  const { recovery } = peer;
  if (!recovery) return;
  const [other] = recovery.parts.values();
  if (other && other.seq > part.seq) return;
  if (other && (other.seq < part.seq || other.parts !== part.parts)) recovery.parts.clear();
  recovery.parts.set(part.part, part);
  if (recovery.parts.size < part.parts) return;
  recovery.cancel();
  peer.recovery = undefined;
  replace(peers, peer, [...recovery.parts.values()]);
  resume(peers, peer, part.seq, recovery.kept);
}

/** The peer's book becomes the list; bookings that are in both keep their place in the load. */
function replace(peers: Peers, peer: Peer, parts: readonly SequenceFrame[]): void {
  const adds = parts.flatMap(({ events }) => events.filter((event) => event.type === "add"));
  const listed = new Set(adds.map(({ booking }) => booking.request));
  const gone = [...peer.book.values()].filter(({ request }) => !listed.has(request));
  const frees = gone.map(({ request }): SequenceEvent => ({ type: "free", request }));
  const done = adds.filter(({ booking }) => booking.prefillTokens === 0);
  const marks = done.map(({ booking }): SequenceEvent => {
    return { type: "first_token", request: booking.request };
  });
  apply(peers, peer, [...frees, ...marks, ...adds]);
  peers.log.info("replica's bookings replaced", {
    router_id: peer.routerId,
    bookings: adds.length,
    freed: gone.length,
  });
}

/** Takes the deltas behind the list; what is missing between them starts another recovery. */
function resume(peers: Peers, peer: Peer, seq: number, kept: SequenceFrame[]): void {
  const newest = peer.seq;
  peer.seq = seq;
  kept.sort((a, b) => a.seq - b.seq);
  for (const frame of kept) {
    if (frame.seq !== peer.seq + 1) continue;
    apply(peers, peer, frame.events);
    peer.seq = frame.seq;
  }
  if (peer.seq >= newest) return;
  peer.seq = newest;
  recover(peers, peer, "gap");
}

/** Silence voids what a peer had booked; not while our own way to the bus is in doubt. */
function sweep(peers: Peers): void {
  const nowMs = peers.clock.nowMs();
  for (const peer of [...peers.peers.values()]) {
    if (nowMs - peer.heardMs <= peerSilenceMs) continue;
    if (peers.gate.open) forget(peers, peer, "silence");
    else peer.heardMs = nowMs;
  }
}

function forget(peers: Peers, peer: Peer, cause: "silence" | "goodbye"): void {
  const { count: bookings } = peer.book;
  clear(peers, peer);
  peers.peers.delete(peer.routerId);
  peers.log.info("replica gone", { router_id: peer.routerId, cause, bookings });
}

function clear(peers: Peers, peer: Peer): void {
  peer.recovery?.cancel();
  peer.recovery = undefined;
  const requests = [...peer.book.values()].map(({ request }) => request);
  for (const request of requests) free(peers, peer, request);
}

function drop({ metrics }: Peers, cause: "capacity" | "duplicate"): void {
  metrics.counter("tiergrid_replica_dropped_total", { cause }).add();
}
