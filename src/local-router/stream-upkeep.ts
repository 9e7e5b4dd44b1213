/**
 * What a router does for the durable stream once a second, beside following it:
 *
 *   snapshot    when more than the threshold of messages, or one older than half the retention, is in
 *               no snapshot; one router at a time by lock
 *   purge       up to the snapshot, as far as every consumer has read
 *   consumers   of routers that are gone are deleted
 *   absentees   ranks restored for workers that never came are forgotten
 *
 * Other routers' snapshots are seen by their note, so that the same work is not done twice.
 */
import type { Clock } from "../base/clock.ts";
import { toTiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import { type LiveTable, leaseTiming } from "../runtime/discovery.ts";
import {
  type DurableLock,
  type DurableLog,
  retentionMs,
  storeToken,
} from "../runtime/durable-log.ts";
import type { Log } from "../runtime/log.ts";
import type { EventIntake, EventRank, HolderKey } from "./event-intake.ts";
import {
  type MadeSnapshot,
  makeSnapshot,
  purgeContained,
  purgerLock,
  type SnapshotTables,
  saveSnapshot,
  sequenceOfNote,
  snapshotName,
} from "./snapshots.ts";

export const tickMs = 1_000;
export const tickJitterMs = 100;
export const snapshotAgeMs: number = retentionMs / 2;
/** Consumers are compared with the live routers this often, besides when a router goes. */
export const consumerCheckMs = 60_000;
export const absentMsMax = 60_000;
/** Pause after an upload that failed. */
const failedSaveMs = 10_000;
const consumerPrefix = "router-";
/** One a tick while nothing is snapshotted: more than `snapshotAgeMs` of them. */
const marksMax = 4096;

/** Of a local router. */
export const consumerNameOf = (inst: string): string => `${consumerPrefix}${storeToken(inst)}`;

export interface DurableTotals {
  applied: number;
  /** Messages of ranks that are neither here nor in the snapshot. */
  foreign: number;
  malformed: number;
  restoredRanks: number;
  badSnapshots: number;
  savedSnapshots: number;
  failedSnapshots: number;
  /** Times the stream vanished and workers were asked for everything. */
  rebuilds: number;
}

export interface UpkeepSettings {
  /** Messages in no snapshot that call for one; null = no snapshots. */
  readonly snapshotThreshold: number | null;
}

export interface UpkeepOptions extends UpkeepSettings {
  readonly tables: SnapshotTables & { readonly intake: EventIntake };
  readonly stream: DurableLog;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly inst: string;
  readonly totals: DurableTotals;
  readonly consumerName: string;
  readonly routers: LiveTable;
  readonly gate: { readonly open: boolean };
  readonly isPresent: (holder: HolderKey) => boolean;
}

export interface UpkeepView {
  readonly messages: number;
  readonly snapshotSequence: number;
  readonly absent: number;
}

export interface StreamUpkeep {
  readonly view: UpkeepView;
  /** Workers restored from a snapshot that have not appeared. */
  readonly absent: number;
  isAbsent(workerId: string): boolean;
  otherRouters(): readonly string[];
  restored(sequence: number, ranks: readonly EventRank[]): void;
  streamLost(): void;
  /** The second's work, when a second has passed; `sequence` = newest applied. */
  tickIfDue(sequence: number): Promise<void>;
  /** Resolves when an upload under way has ended. */
  close(): Promise<void>;
}

interface Upkeep extends UpkeepOptions {
  /** Restored workers that have not appeared, and how many ticks they have been waited for. */
  readonly absentees: Map<string, number>;
  /** Sequence applied at a time, oldest first; all beyond the snapshot. */
  readonly marks: { readonly sequence: number; readonly atMs: number }[];
  /** Of the snapshot that is there, whoever made it. */
  snapshotSequence: number;
  /** Of the newest snapshot that this router has read back whole. */
  verifiedSequence: number;
  messages: number;
  nextTickMs: number;
  nextSaveMs: number;
  nextConsumerCheckMs: number;
  saving: Promise<void> | undefined;
  /** The snapshot that stood for purged events is gone. */
  exposed: boolean;
}

export function startUpkeep(options: UpkeepOptions): StreamUpkeep {
  const { clock, routers } = options;
  const upkeep: Upkeep = {
    ...options,
    absentees: new Map(),
    marks: [],
    snapshotSequence: 0,
    verifiedSequence: 0,
    messages: 0,
    nextTickMs: clock.nowMs(),
    nextSaveMs: 0,
    // Every live router has been heard by then.
    nextConsumerCheckMs: clock.nowMs() + leaseTiming.goneMs,
    saving: undefined,
    exposed: false,
  };
  routers.onChange(({ type }) => {
    if (type === "gone" || type === "restarted") upkeep.nextConsumerCheckMs = clock.nowMs();
  });
  return {
    get view() {
      const { messages, snapshotSequence, absentees } = upkeep;
      return { messages, snapshotSequence, absent: absentees.size };
    },
    get absent() {
      return upkeep.absentees.size;
    },
    isAbsent: (workerId) => upkeep.absentees.has(workerId),
    otherRouters: () => otherRouters(upkeep),
    restored(sequence, ranks) {
      upkeep.snapshotSequence = sequence;
      upkeep.verifiedSequence = sequence;
      for (const { workerId } of ranks) upkeep.absentees.set(workerId, 0);
    },
    streamLost() {
      upkeep.snapshotSequence = 0;
      upkeep.verifiedSequence = 0;
      upkeep.marks.length = 0;
      upkeep.exposed = true;
    },
    async tickIfDue(sequence) {
      if (clock.nowMs() < upkeep.nextTickMs) return;
      const jitterMs = tickJitterMs * (2 * options.random() - 1);
      upkeep.nextTickMs = clock.nowMs() + tickMs + jitterMs;
      await tick(upkeep, sequence);
    },
    async close() {
      await upkeep.saving;
    },
  };
}

function otherRouters({ routers, inst }: Upkeep): string[] {
  return [...routers.instances()].map(({ card }) => card.inst).filter((other) => other !== inst);
}

async function tick(upkeep: Upkeep, sequence: number): Promise<void> {
  const { clock, stream } = upkeep;
  forgetAbsentees(upkeep);
  const { messages, firstSequence, lastSequence } = await stream.state();
  upkeep.messages = messages;
  noteSnapshot(upkeep, await stream.noteOf(snapshotName), lastSequence);
  markSequence(upkeep, sequence);
  if (clock.nowMs() >= upkeep.nextConsumerCheckMs) {
    upkeep.nextConsumerCheckMs = clock.nowMs() + consumerCheckMs;
    await deleteOrphans(upkeep);
  }
  const threshold = upkeep.snapshotThreshold;
  if (threshold === null || upkeep.saving || clock.nowMs() < upkeep.nextSaveMs) return;
  const contained = Math.max(upkeep.snapshotSequence, firstSequence - 1);
  if (sequence - contained > threshold || isOverdue(upkeep)) await snapshot(upkeep, sequence);
  else if (messages > threshold && purgeable(upkeep) >= firstSequence) await purge(upkeep);
}

/** Counts only while our own bus works: workers cannot be heard before. */
function forgetAbsentees({ absentees, tables, gate, isPresent, log }: Upkeep): void {
  for (const rank of [...tables.intake.ranks()]) {
    if (absentees.has(rank.workerId) && isPresent(rank)) absentees.delete(rank.workerId);
  }
  if (!gate.open) return;
  for (const [workerId, ticks] of absentees) {
    absentees.set(workerId, ticks + 1);
    if (ticks * tickMs < absentMsMax) continue;
    absentees.delete(workerId);
    tables.intake.removeWorker(workerId);
    log.info("restored worker never came; its blocks are forgotten", { worker_id: workerId });
  }
}

/** A note beyond the stream's end is of an earlier stream. */
function noteSnapshot(upkeep: Upkeep, note: string | undefined, lastSequence: number): void {
  const told = sequenceOfNote(note);
  const sequence = told <= lastSequence ? told : 0;
  if (sequence === 0 && upkeep.snapshotSequence > 0) upkeep.exposed = true;
  upkeep.snapshotSequence = sequence;
  const { marks } = upkeep;
  while (marks[0] && marks[0].sequence <= sequence) marks.shift();
}

function markSequence({ marks, snapshotSequence, clock }: Upkeep, sequence: number): void {
  const newest = marks.at(-1)?.sequence ?? snapshotSequence;
  if (sequence > newest && marks.length < marksMax) marks.push({ sequence, atMs: clock.nowMs() });
}

function isOverdue({ marks, exposed, clock }: Upkeep): boolean {
  const oldest = marks[0];
  return exposed || (oldest !== undefined && clock.nowMs() - oldest.atMs > snapshotAgeMs);
}

/** Exports at once, so that the rows are of `sequence`; the upload goes on behind. */
async function snapshot(upkeep: Upkeep, sequence: number): Promise<void> {
  const { stream, inst, tables, totals } = upkeep;
  const lock = await stream.lock(purgerLock, inst);
  if (!lock) return;
  const note = await stream.noteOf(snapshotName);
  const isNewer = sequenceOfNote(note) > upkeep.snapshotSequence;
  const made = isNewer ? undefined : await makeSnapshot(tables, sequence);
  if (made) upkeep.saving = save(upkeep, made, lock);
  else {
    // Another router was faster, or the index did not hold still: the next tick looks again.
    if (!isNewer) totals.failedSnapshots++;
    await lock.release();
  }
}

/** Never rejects. */
async function save(upkeep: Upkeep, made: MadeSnapshot, lock: DurableLock): Promise<void> {
  const { stream, clock, totals, log } = upkeep;
  const startMs = clock.nowMs();
  const { sequence } = made;
  try {
    await saveSnapshot(stream, clock, made, lock);
    totals.savedSnapshots++;
    upkeep.verifiedSequence = sequence;
    upkeep.exposed = false;
    const bytes = made.parts.reduce((sum, part) => sum + part.length, 0);
    log.info("snapshot saved", { sequence, bytes, ms: Math.round(clock.nowMs() - startMs) });
  } catch (thrown) {
    totals.failedSnapshots++;
    upkeep.nextSaveMs = clock.nowMs() + failedSaveMs;
    log.warn("snapshot not saved", { sequence, error: toTiergridError(thrown).message });
  }
  await lock.release().catch(() => {}); // It ends by itself.
  upkeep.saving = undefined;
}

/** What may go: the snapshot that is there has it, and so had one that was read back. */
function purgeable({ snapshotSequence, verifiedSequence }: Upkeep): number {
  return Math.min(snapshotSequence, verifiedSequence);
}

/** What a consumer was still behind at the last snapshot. */
async function purge(upkeep: Upkeep): Promise<void> {
  const { stream, inst } = upkeep;
  const lock = await stream.lock(purgerLock, inst);
  if (!lock) return;
  await purgeContained(stream, purgeable(upkeep));
  await lock.release();
}

async function deleteOrphans(upkeep: Upkeep): Promise<void> {
  const { stream, consumerName, log } = upkeep;
  const live = new Set(otherRouters(upkeep).map(consumerNameOf));
  for (const { name } of await stream.consumers()) {
    if (name === consumerName || live.has(name) || !name.startsWith(consumerPrefix)) continue;
    await stream.deleteConsumer(name);
    log.info("consumer of a router that is gone was deleted", { consumer: name });
  }
}
