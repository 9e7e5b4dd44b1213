/**
 * KV events of all holders of a pool, from the bus into the index. One cursor per holder decides
 * (`core/event-cursor.ts`); this file carries out what it decides.
 *
 *   onEvents ──▶ cursor ──actions──▶ index
 *                  │ query
 *                  ▼
 *               recovery: 8 attempts, at most 16 holders at once, the others wait in order
 *
 * - Recovery never blocks routing: until a holder is synced it is routed by load alone.
 * - A dump fills an invisible copy of the holder in slices and takes its place in one step.
 */
import type { CancelTimer, Clock } from "../base/clock.ts";
import { sleep } from "../base/clock.ts";
import type { CursorAction, RecoveryResult } from "../core/event-cursor.ts";
import { EventCursor } from "../core/event-cursor.ts";
import type { KvIndex } from "../core/kv-index.ts";
import type { KvEvent, KvEventBatch } from "../protocol/kv-events.ts";
import type { KvAnswer } from "../protocol/kv-query.ts";
import {
  type EventStatus,
  type IntakeCounters,
  newIntakeCounters,
  type ResyncCause,
} from "./intake-counters.ts";
import { stageDump, tierOf } from "./staged-dump.ts";

export interface HolderKey {
  readonly workerId: string;
  readonly dpRank: number;
}

/** Asks a worker for events from `startEventId`, or for everything. Rejects when it cannot. */
export type RecoveryQuery = (
  holder: HolderKey,
  startEventId: number | undefined,
  signal: AbortSignal,
) => Promise<KvAnswer>;

export interface EventIntakeOptions {
  readonly index: KvIndex;
  readonly clock: Clock;
  readonly query: RecoveryQuery;
  /** Told how long a recovery took from its need to its end, its wait for a place included. */
  readonly onRecovered?: (tookMs: number) => void;
}

export const attemptsMax = 8;
export const retryFirstMs = 200;
export const recoveriesMax = 16;
const restoreFirstMs = 30_000;
const restoreMaxMs = 300_000;
const maintainSlots = 4096;
const maintainPauseMs = 5;

/** Holders by state; every holder is in one. */
export interface HolderStates {
  readonly initial: number;
  readonly recovering: number;
  readonly synced: number;
  readonly degraded: number;
}

export interface EventIntake {
  readonly counters: Readonly<IntakeCounters>;
  /** A worker's rank can be asked: its blocks are restored unless they are known. */
  onDiscovered(holder: HolderKey, expectedBlocks?: number): void;
  onEvents(batch: KvEventBatch): void;
  /** Ranks and where they stand, for snapshots. */
  ranks(): Iterable<EventRank>;
  /** The rank, made if it is new; undefined beyond the index's maximum. */
  rankOf(holder: HolderKey, expectedBlocks: number): EventRank | undefined;
  /** The rank in `slot` holds other blocks than the index says: ask its worker for everything. */
  onMismatch(slot: number): void;
  /** Forgets one rank at once. */
  removeHolder(holder: HolderKey): void;
  /** Forgets all ranks of a worker at once. */
  removeWorker(workerId: string): void;
  holderStates(): HolderStates;
  /** Live events heard of a worker's present ranks, whatever became of them. */
  eventsOf(workerId: string): number;
  /** Ends recoveries and timers; later calls change nothing. */
  close(): void;
}

export interface EventRank extends HolderKey {
  readonly slot: number;
  readonly cursor: EventCursor;
}

interface Holder extends EventRank {
  eventsHeard: number;
  recovery: Recovery | undefined;
  restoreAfterMs: number;
  cancelRestore: CancelTimer | undefined;
}

interface Recovery {
  readonly holder: Holder;
  readonly start: number | undefined;
  readonly generation: number;
  readonly abort: AbortController;
  readonly sinceMs: number;
}

interface Intake extends EventIntakeOptions {
  readonly counters: IntakeCounters;
  readonly holders: Map<string, Holder>;
  /** Recoveries that wait for one of the `recoveriesMax` places; at most one per holder. */
  readonly waiting: Set<Recovery>;
  running: number;
  cancelMaintain: CancelTimer | undefined;
  closed: boolean;
}

export function createEventIntake(options: EventIntakeOptions): EventIntake {
  const counters = newIntakeCounters();
  const intake: Intake = {
    ...options,
    counters,
    holders: new Map(),
    waiting: new Set(),
    running: 0,
    cancelMaintain: undefined,
    closed: false,
  };
  return {
    counters,
    onDiscovered(key, expectedBlocks) {
      const holder = holderOf(intake, key, expectedBlocks);
      if (holder) perform(intake, holder, holder.cursor.onDiscovered(), "discovered");
    },
    onEvents(batch) {
      const holder = holderOf(intake, batch);
      if (!holder) counters.noHolder += batch.events.length;
      else {
        holder.eventsHeard += batch.events.length;
        for (const event of batch.events) {
          perform(intake, holder, holder.cursor.onEvent(event, batch.stateSource), "gap");
        }
      }
    },
    ranks: () => intake.holders.values(),
    rankOf: (key, expectedBlocks) => holderOf(intake, key, expectedBlocks),
    onMismatch(slot) {
      for (const holder of intake.holders.values()) {
        if (holder.slot !== slot) continue;
        counters.mismatches++;
        perform(intake, holder, holder.cursor.onDoubt(), "mismatch");
      }
    },
    removeHolder: (key) => removeHolder(intake, keyText(key)),
    removeWorker(workerId) {
      for (const [text, holder] of intake.holders) {
        if (holder.workerId === workerId) removeHolder(intake, text);
      }
    },
    holderStates: () => countStates(intake),
    eventsOf(workerId) {
      let events = 0;
      for (const holder of intake.holders.values()) {
        if (holder.workerId === workerId) events += holder.eventsHeard;
      }
      return events;
    },
    close() {
      intake.closed = true;
      for (const holder of intake.holders.values()) stopHolder(intake, holder);
      intake.cancelMaintain?.();
    },
  };
}

const keyText = (key: HolderKey): string => `${key.workerId}:${key.dpRank}`;

function holderOf(intake: Intake, key: HolderKey, expectedBlocks?: number): Holder | undefined {
  if (intake.closed) return undefined;
  const text = keyText(key);
  const known = intake.holders.get(text);
  if (known) return known;
  const { workerId, dpRank } = key;
  const slot = intake.index.holder(workerId, dpRank, expectedBlocks);
  if (slot < 0) return undefined;
  const holder: Holder = {
    workerId,
    dpRank,
    slot,
    cursor: new EventCursor(),
    eventsHeard: 0,
    recovery: undefined,
    restoreAfterMs: restoreFirstMs,
    cancelRestore: undefined,
  };
  intake.holders.set(text, holder);
  return holder;
}

function perform(
  intake: Intake,
  holder: Holder,
  actions: readonly CursorAction[],
  cause: ResyncCause,
): void {
  const { index, counters } = intake;
  let resyncCause = cause;
  for (const action of actions) {
    switch (action.type) {
      case "apply":
        applyEvent(intake, holder, action.event);
        break;
      case "clear":
      case "reset":
        stopRecovery(intake, holder);
        index.clear(holder.slot);
        counters.clears++;
        if (action.type === "clear") counters.events.cleared.ok++;
        else resyncCause = "restarted";
        scheduleMaintain(intake);
        break;
      case "replace":
        // `stageDump` has filled the copy; only the last step is left.
        index.commitStaged(holder.slot);
        holder.restoreAfterMs = restoreFirstMs;
        holder.cancelRestore?.();
        holder.cancelRestore = undefined;
        scheduleMaintain(intake);
        break;
      case "query":
        counters.resyncs[resyncCause]++;
        startRecovery(intake, holder, action.start, action.generation);
        break;
      case "drop":
        counters.stale++;
        break;
      case "buffer":
      case "ignore_result":
        break;
    }
  }
  if (holder.cursor.degraded) scheduleRestore(intake, holder);
}

function applyEvent({ index, counters }: Intake, { slot }: Holder, event: KvEvent): void {
  // The cursor turns a `cleared` into an action of its own.
  if (event.type === "cleared") return;
  const tier = tierOf(event);
  const status: EventStatus =
    event.type === "stored"
      ? index.store(slot, event.parent, event.blocks, tier)
      : index.remove(slot, event.hashes, tier);
  counters.events[event.type][status]++;
}

function startRecovery(
  intake: Intake,
  holder: Holder,
  start: number | undefined,
  generation: number,
): void {
  stopRecovery(intake, holder);
  const sinceMs = intake.clock.nowMs();
  holder.recovery = { holder, start, generation, abort: new AbortController(), sinceMs };
  intake.waiting.add(holder.recovery);
  startWaiting(intake);
}

function startWaiting(intake: Intake): void {
  for (const recovery of intake.waiting) {
    if (intake.running >= recoveriesMax) return;
    intake.waiting.delete(recovery);
    intake.running++;
    // `runRecovery` never rejects: whatever fails becomes a result.
    void runRecovery(intake, recovery).finally(() => {
      intake.running--;
      startWaiting(intake);
    });
  }
}

async function runRecovery(intake: Intake, recovery: Recovery): Promise<void> {
  const { holder, generation, abort, sinceMs } = recovery;
  intake.counters.recoveries++;
  const result = await recover(intake, recovery);
  intake.counters.outcomes[abort.signal.aborted ? "cancelled" : result.type]++;
  if (abort.signal.aborted) return;
  holder.recovery = undefined;
  if (result.type !== "tree_dump") intake.index.dropStaged(holder.slot);
  perform(intake, holder, holder.cursor.onResult(result, generation), "incomplete");
  intake.onRecovered?.(intake.clock.nowMs() - sinceMs);
}

async function recover(intake: Intake, recovery: Recovery): Promise<RecoveryResult> {
  const { holder, start } = recovery;
  const { signal } = recovery.abort;
  for (let attempt = 0; attempt < attemptsMax; attempt++) {
    if (attempt > 0) await sleep(intake.clock, retryFirstMs * 2 ** (attempt - 1), signal);
    if (signal.aborted) break;
    try {
      const answer = await intake.query(holder, start, signal);
      if (answer.type === "tree_dump") {
        intake.counters.dumpRefused += await stageDump(intake, holder.slot, answer.events, signal);
      }
      return answer;
    } catch {
      // Every failure is retried alike; the last one becomes the result.
      intake.counters.recoveryFailures++;
    }
  }
  return { type: "failed" };
}

function stopRecovery(intake: Intake, holder: Holder): void {
  if (!holder.recovery) return;
  holder.recovery.abort.abort();
  intake.waiting.delete(holder.recovery);
  holder.recovery = undefined;
  intake.index.dropStaged(holder.slot);
}

function scheduleRestore(intake: Intake, holder: Holder): void {
  if (holder.cancelRestore || intake.closed) return;
  holder.cancelRestore = intake.clock.after(holder.restoreAfterMs, () => {
    holder.cancelRestore = undefined;
    perform(intake, holder, holder.cursor.onRestoreDue(), "degraded");
  });
  holder.restoreAfterMs = Math.min(2 * holder.restoreAfterMs, restoreMaxMs);
}

/** Cleans up behind cleared holders, a slice at a time, until nothing is left. */
function scheduleMaintain(intake: Intake): void {
  if (intake.cancelMaintain || intake.closed) return;
  intake.cancelMaintain = intake.clock.after(maintainPauseMs, () => {
    intake.cancelMaintain = undefined;
    if (intake.index.maintain(maintainSlots)) scheduleMaintain(intake);
  });
}

function stopHolder(intake: Intake, holder: Holder): void {
  stopRecovery(intake, holder);
  holder.cancelRestore?.();
  holder.cancelRestore = undefined;
}

function removeHolder(intake: Intake, text: string): void {
  const holder = intake.holders.get(text);
  if (!holder) return;
  stopHolder(intake, holder);
  intake.holders.delete(text);
  intake.index.removeHolder(holder.slot);
  scheduleMaintain(intake);
}

function countStates(intake: Intake): HolderStates {
  const states = { initial: 0, recovering: 0, synced: 0, degraded: 0 };
  for (const { cursor } of intake.holders.values()) {
    if (cursor.degraded) states.degraded++;
    else if (cursor.recovering) states.recovering++;
    else if (cursor.last === null) states.initial++;
    else states.synced++;
  }
  return states;
}
