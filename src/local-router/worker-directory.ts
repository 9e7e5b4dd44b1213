/**
 * The workers of one pool, from discovery into the tables that routing reads.
 *
 *   heartbeat ──fits?──▶ worker ──▶ one slot per dp rank
 *      │ no                           ├─ load    bookable until the worker is gone
 *      ▼                              ├─ index   KV events and recovery, when overlap counts
 *   refused: logged, counted          └─ roster  while the worker takes new requests
 *
 * - Slots come from the index when there is one, so that all columns line up.
 * - A worker that is silent or inhibited stays in the roster, but is held out: it gets requests only
 *   when no other can take them.
 * - A worker that left, or came back with another epoch, leaves no block, booking or slot behind.
 */
import type { Clock } from "../base/clock.ts";
import type { BlockDigest, KvIndex } from "../core/kv-index.ts";
import type { WorkerLoad } from "../core/worker-load.ts";
import type { WorkerProfile, WorkerRoster } from "../core/worker-roster.ts";
import { decodeKvEvents } from "../protocol/kv-event-frame.ts";
import { type KvEventBatch, kvEventFromJson } from "../protocol/kv-events.ts";
import { decodeLoadSample } from "../protocol/load-sample.ts";
import {
  type EndpointPath,
  heartbeatsOf,
  kvEventsOfNamespace,
  loadOfNamespace,
} from "../protocol/subjects.ts";
import { readU64Decimal } from "../protocol/u64.ts";
import type { Bus, Subscription } from "../runtime/bus.ts";
import { type Change, type LiveTable, watchInstances } from "../runtime/discovery.ts";
import type { EchoGate } from "../runtime/echo-gate.ts";
import type { CardRole, InstanceCard, RankDigest } from "../runtime/instance-card.ts";
import type { Log } from "../runtime/log.ts";
import type { DigestCheck } from "./digest-check.ts";
import type { EventIntake } from "./event-intake.ts";

/** Ranks one worker may have. */
export const ranksMax = 1024;
/** Refused instances remembered, so that each is logged once. */
const refusalsMax = 1024;

/** Why a worker of the endpoint is not accepted. */
export type RefusalReason = "block_size" | "role" | "worker_id" | "dp_size" | "holders";

export interface PoolWorker {
  /** Its instance, which is its worker id. */
  readonly inst: string;
  readonly card: InstanceCard;
  /** Slot of each rank, from `card.dpStart` on. */
  readonly slots: readonly number[];
  /** True while it takes new requests. */
  readonly selectable: boolean;
}

/** Each part is optional for a listener. */
export interface DirectoryListener {
  added(worker: PoolWorker): void;
  /** Called before the worker's bookings are freed. */
  removed(worker: PoolWorker): void;
  /** The set of workers that take requests changed. */
  changed(): void;
  refused(reason: RefusalReason): void;
}

export interface DirectoryOptions {
  readonly bus: Bus;
  readonly clock: Clock;
  /** Times the looks at leases; absent = `clock`. */
  readonly ticks?: Clock;
  readonly gate: EchoGate;
  readonly log: Log;
  readonly endpoint: EndpointPath;
  readonly role: CardRole;
  readonly blockSize: number;
  readonly roster: WorkerRoster;
  readonly load: WorkerLoad;
  /** Absent when overlap does not count: then nothing subscribes to KV events. */
  readonly overlap: OverlapTables | undefined;
}

/** Where the workers' cached blocks are known from. */
export interface OverlapTables {
  readonly index: KvIndex;
  readonly intake: EventIntake;
  readonly digests: DigestCheck;
}

export interface WorkerDirectory {
  /** By instance; those that drain or are silent included. */
  readonly workers: ReadonlyMap<string, PoolWorker>;
  /** Workers that take new requests. */
  readonly selectableCount: number;
  /** Workers to be used only when no other can take a request: silent, or inhibited. */
  heldOut(): ReadonlySet<string>;
  /** Keeps requests away from a worker for a while; not while our own bus is in doubt. */
  inhibit(inst: string, cause: string): void;
  /** Messages of KV events and load that could not be read, or named no worker of this pool. */
  readonly dropped: { malformed: number; foreign: number };
  listen(listener: Partial<DirectoryListener>): void;
  close(): void;
}

interface Worker extends PoolWorker {
  card: InstanceCard;
  readonly slots: number[];
  selectable: boolean;
}

interface Directory extends DirectoryOptions {
  readonly workers: Map<string, Worker>;
  readonly held: Set<string>;
  readonly refusals: Map<string, string>;
  readonly slots: SlotBook;
  readonly dropped: { malformed: number; foreign: number };
  readonly listeners: Partial<DirectoryListener>[];
}

export function watchWorkers(options: DirectoryOptions): WorkerDirectory {
  const { bus, clock, ticks = clock, gate } = options;
  const directory: Directory = {
    ...options,
    workers: new Map(),
    held: new Set(),
    refusals: new Map(),
    slots: new SlotBook(),
    dropped: { malformed: 0, foreign: 0 },
    listeners: [],
  };
  const accept = (card: InstanceCard): boolean => fits(directory, card);
  const subject = heartbeatsOf("w", options.endpoint.namespace);
  const table = watchInstances({ bus, clock: ticks, gate, subject, accept });
  table.onChange((change) => onChange(directory, table, change));
  const subscriptions = subscribe(directory);
  return {
    workers: directory.workers,
    get selectableCount() {
      let count = 0;
      for (const { selectable } of directory.workers.values()) if (selectable) count++;
      return count;
    },
    heldOut() {
      for (const inst of directory.held) if (table.isUsable(inst)) directory.held.delete(inst);
      return directory.held;
    },
    inhibit(inst, cause) {
      if (!gate.open || !directory.workers.has(inst)) return;
      table.inhibit(inst, cause);
      directory.held.add(inst);
      options.log.warn("worker held out", { worker_id: inst, cause });
    },
    dropped: directory.dropped,
    listen: (listener) => void directory.listeners.push(listener),
    close() {
      table.stop();
      for (const subscription of subscriptions) subscription.unsubscribe();
    },
  };
}

/** Numbers slots where no index does. */
class SlotBook {
  readonly #free: number[] = [];
  #next = 0;

  take(): number {
    return this.#free.pop() ?? this.#next++;
  }

  give(slot: number): void {
    this.#free.push(slot);
  }
}

/** True for a worker of this endpoint that agrees with the pool; names match whole. */
function fits(directory: Directory, card: InstanceCard): boolean {
  const { endpoint } = directory;
  if (card.kind !== "w" || card.namespace !== endpoint.namespace) return false;
  if (card.component !== endpoint.component || card.endpoint !== endpoint.endpoint) return false;
  const reason = mismatch(directory, card);
  if (reason === undefined) return true;
  refuse(directory, card, reason);
  return false;
}

function mismatch({ blockSize, role }: Directory, card: InstanceCard): RefusalReason | undefined {
  if (card.workerId !== card.inst || !readU64Decimal(card.workerId)) return "worker_id";
  if (card.blockSize !== blockSize) return "block_size";
  if (card.role !== role) return "role";
  if (card.dpSize < 1 || card.dpSize > ranksMax) return "dp_size";
  return undefined;
}

function refuse(directory: Directory, card: InstanceCard, reason: RefusalReason): void {
  const { refusals, log, listeners, blockSize, role } = directory;
  const life = `${card.epoch} ${reason}`;
  if (refusals.get(card.inst) === life) return;
  if (refusals.size >= refusalsMax) refusals.clear();
  refusals.set(card.inst, life);
  for (const listener of listeners) listener.refused?.(reason);
  log.error("worker refused: it does not fit this pool", {
    worker_id: card.inst,
    reason,
    block_size: card.blockSize,
    block_size_expected: blockSize,
    role: card.role,
    role_expected: role,
    dp_size: card.dpSize,
  });
}

function onChange(directory: Directory, table: LiveTable, { type, card }: Change): void {
  const { inst } = card;
  switch (type) {
    case "gone":
      remove(directory, inst);
      break;
    case "restarted":
      remove(directory, inst);
      add(directory, card);
      break;
    case "up":
      add(directory, card);
      break;
    case "changed":
    case "draining":
      update(directory, card);
      break;
    case "suspect":
      break;
  }
  if (directory.workers.has(inst) && !table.isUsable(inst)) directory.held.add(inst);
}

function add(directory: Directory, card: InstanceCard): void {
  const { load, overlap, listeners, log } = directory;
  const worker: Worker = { inst: card.inst, card, slots: [], selectable: false };
  directory.workers.set(card.inst, worker);
  for (let dpRank = card.dpStart; dpRank < card.dpStart + card.dpSize; dpRank++) {
    const slot = overlap
      ? overlap.index.holder(card.workerId, dpRank, card.totalKvBlocks)
      : directory.slots.take();
    if (slot < 0) {
      remove(directory, card.inst);
      refuse(directory, card, "holders");
      return;
    }
    worker.slots.push(slot);
    load.addHolder(slot);
    if (card.kvEvents) {
      overlap?.intake.onDiscovered({ workerId: card.workerId, dpRank }, card.totalKvBlocks);
    }
  }
  log.info("worker up", { worker_id: card.inst, dp_size: card.dpSize, state: card.state });
  for (const listener of listeners) listener.added?.(worker);
  update(directory, card);
}

/** Puts the worker's ranks into the roster while it takes requests, with its current profile. */
function update(directory: Directory, card: InstanceCard): void {
  const worker = directory.workers.get(card.inst);
  if (!worker) return;
  const { roster, listeners, log } = directory;
  const before = worker.card;
  const selectable = card.state === "ready";
  const sameProfile =
    before.totalKvBlocks === card.totalKvBlocks &&
    before.maxNumBatchedTokens === card.maxNumBatchedTokens;
  worker.card = card;
  for (const digest of card.digests ?? []) {
    const slot = worker.slots[digest.dpRank - card.dpStart];
    if (slot !== undefined) directory.overlap?.digests.heard(slot, digestOfCard(digest));
  }
  if (selectable === worker.selectable && sameProfile) return;
  if (selectable) {
    for (const [at, slot] of worker.slots.entries()) {
      roster.set(slot, profileOf(card), card.dpStart + at);
    }
  } else for (const slot of worker.slots) roster.remove(slot);
  if (selectable === worker.selectable) return;
  worker.selectable = selectable;
  log.info("worker changed", { worker_id: card.inst, state: card.state });
  for (const listener of listeners) listener.changed?.();
}

function remove(directory: Directory, inst: string): void {
  const worker = directory.workers.get(inst);
  if (!worker) return;
  const { roster, load, overlap, listeners, log } = directory;
  directory.workers.delete(inst);
  directory.held.delete(inst);
  for (const listener of listeners) listener.removed?.(worker);
  for (const slot of worker.slots) {
    roster.remove(slot);
    load.removeHolder(slot);
    overlap?.digests.forget(slot);
    if (!overlap) directory.slots.give(slot);
  }
  overlap?.intake.removeWorker(inst);
  // Ranks that never sent events are known to the index alone.
  overlap?.index.removeWorker(inst);
  log.info("worker gone", { worker_id: inst });
  if (!worker.selectable) return;
  for (const listener of listeners) listener.changed?.();
}

function digestOfCard({ blockCount, xor }: RankDigest): BlockDigest {
  const lanes = [xor.slice(0, 8), xor.slice(8)].map((hex) => Number.parseInt(hex, 16) >>> 0);
  return { blocks: blockCount, hi: lanes[0] ?? 0, lo: lanes[1] ?? 0 };
}

/** Zero in a card means that the engine did not tell. */
function profileOf(card: InstanceCard): WorkerProfile {
  return {
    workerId: card.workerId,
    taints: card.taints ? new Set(card.taints) : noTaints,
    totalKvBlocks: card.totalKvBlocks || undefined,
    maxNumBatchedTokens: card.maxNumBatchedTokens || undefined,
  };
}

const noTaints: ReadonlySet<string> = new Set();

function subscribe(directory: Directory): Subscription[] {
  const { bus, overlap, endpoint, roster, dropped } = directory;
  const samples = bus.subscribe(loadOfNamespace(endpoint.namespace), ({ payload }) => {
    const sample = decodeLoadSample(payload);
    if (!sample) {
      dropped.malformed++;
      return;
    }
    const slot = slotOf(directory, sample);
    if (slot !== undefined) roster.report(slot, sample);
  });
  if (!overlap) return [samples];
  const events = bus.subscribe(kvEventsOfNamespace(endpoint.namespace), ({ payload }) => {
    const batch = readEvents(payload);
    if (!batch) dropped.malformed++;
    // Events of a worker that is not known yet are asked for when it is.
    else if (slotOf(directory, batch) !== undefined) overlap.intake.onEvents(batch);
  });
  return [samples, events];
}

function slotOf(
  { workers, dropped }: Directory,
  { workerId, dpRank }: { readonly workerId: string; readonly dpRank: number },
): number | undefined {
  const worker = workers.get(workerId);
  const slot = worker?.slots[dpRank - worker.card.dpStart];
  if (slot === undefined) dropped.foreign++;
  return slot;
}

/** A binary batch, or one event as JSON from a plain publisher; undefined for anything else. */
function readEvents(payload: Uint8Array): KvEventBatch | undefined {
  try {
    if (payload[0] !== openingBrace) return decodeKvEvents(payload);
    return kvEventFromJson(JSON.parse(new TextDecoder().decode(payload)));
  } catch {
    return undefined;
  }
}

const openingBrace = 0x7b;
