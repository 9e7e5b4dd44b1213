/**
 * KV events of one worker into the durable stream, a batch at a time per rank:
 *
 *   event ──▶ pending ──32 blocks or 4 ms──▶ append ──acknowledged──▶ the next batch
 *               ▲                               │ failed
 *               └─────────── again after 100 ms, doubling to 2 s ◀───┘
 *
 * - One append per rank is under way, so events keep their order and batches grow with its delay.
 * - `pendingEventsMax` events wait per rank; beyond, the oldest are dropped. Their numbers are a gap
 *   that routers ask the worker about.
 * - An append whose answer got lost is made again: routers drop what they have by its number.
 */
import { type CancelTimer, type Clock, sleep } from "../base/clock.ts";
import { type TiergridError, toTiergridError } from "../base/errors.ts";
import { encodeKvEvents } from "../protocol/kv-event-frame.ts";
import type { KvEvent, KvEventBatch } from "../protocol/kv-events.ts";
import type { DurableLog } from "../runtime/durable-log.ts";

export const batchBlocks = 32;
export const lingerMs = 4;
export const pendingEventsMax = 4096;
/** Blocks in one message, unless a single event has more: 512 KB. */
export const messageBlocksMax = 32_768;
export const retryFirstMs = 100;
export const retryMaxMs = 2_000;

/** Where and as whom the events of a rank travel. */
export interface DurableSource extends Omit<KvEventBatch, "events"> {
  readonly subject: string;
}

export interface DurableEventsOptions {
  readonly log: Pick<DurableLog, "open" | "append">;
  readonly clock: Clock;
  readonly sourceOf: (dpRank: number) => DurableSource;
  /** Told when appends begin to fail, and with undefined when they work again. */
  readonly onTrouble: (error: TiergridError | undefined) => void;
}

export interface DurableTotals {
  events: number;
  messages: number;
  failures: number;
  dropped: number;
}

export interface DurableEvents {
  readonly totals: Readonly<DurableTotals>;
  publish(dpRank: number, events: readonly KvEvent[]): void;
  /** Ends at once; what waits is not sent. */
  close(): void;
}

interface Rank {
  readonly source: DurableSource;
  readonly pending: KvEvent[];
  pendingBlocks: number;
  appending: boolean;
  cancelLinger: CancelTimer | undefined;
}

interface Writer extends DurableEventsOptions {
  readonly totals: DurableTotals;
  readonly ranks: Map<number, Rank>;
  readonly abort: AbortController;
  opened: boolean;
  failing: boolean;
}

export function createDurableEvents(options: DurableEventsOptions): DurableEvents {
  const writer: Writer = {
    ...options,
    totals: { events: 0, messages: 0, failures: 0, dropped: 0 },
    ranks: new Map(),
    abort: new AbortController(),
    opened: false,
    failing: false,
  };
  return {
    totals: writer.totals,
    publish: (dpRank, events) => publish(writer, rankOf(writer, dpRank), events),
    close() {
      writer.abort.abort();
      for (const { cancelLinger } of writer.ranks.values()) cancelLinger?.();
    },
  };
}

function rankOf(writer: Writer, dpRank: number): Rank {
  let rank = writer.ranks.get(dpRank);
  if (!rank) {
    const source = writer.sourceOf(dpRank);
    rank = { source, pending: [], pendingBlocks: 0, appending: false, cancelLinger: undefined };
    writer.ranks.set(dpRank, rank);
  }
  return rank;
}

function publish(writer: Writer, rank: Rank, events: readonly KvEvent[]): void {
  if (writer.abort.signal.aborted) return;
  for (const event of events) {
    rank.pending.push(event);
    rank.pendingBlocks += blocksOf(event);
  }
  const over = rank.pending.length - pendingEventsMax;
  if (over > 0) {
    writer.totals.dropped += over;
    for (const event of rank.pending.splice(0, over)) rank.pendingBlocks -= blocksOf(event);
  }
  if (rank.appending) return;
  if (rank.pendingBlocks >= batchBlocks) startAppending(writer, rank);
  else {
    rank.cancelLinger ??= writer.clock.after(lingerMs, () => startAppending(writer, rank));
  }
}

function startAppending(writer: Writer, rank: Rank): void {
  rank.cancelLinger?.();
  rank.cancelLinger = undefined;
  rank.appending = true;
  void appendAll(writer, rank); // Never rejects: what fails is made again.
}

async function appendAll(writer: Writer, rank: Rank): Promise<void> {
  const { subject, ...source } = rank.source;
  while (rank.pending.length > 0) {
    const events = takeBatch(rank);
    const payload = encodeKvEvents({ ...source, events });
    if (!(await appendOne(writer, subject, payload))) return;
    writer.totals.messages += 1;
    writer.totals.events += events.length;
  }
  rank.appending = false;
}

function takeBatch(rank: Rank): KvEvent[] {
  let count = 0;
  let blocks = 0;
  for (const event of rank.pending) {
    blocks += blocksOf(event);
    if (count > 0 && blocks > messageBlocksMax) break;
    rank.pendingBlocks -= blocksOf(event);
    count++;
  }
  return rank.pending.splice(0, count);
}

/** Tries until the stream has the message; false when the worker ends. */
async function appendOne(writer: Writer, subject: string, payload: Uint8Array): Promise<boolean> {
  const { log, clock, totals, abort } = writer;
  for (let waitMs = retryFirstMs; !abort.signal.aborted; waitMs = nextWait(waitMs)) {
    try {
      if (!writer.opened) await log.open();
      writer.opened = true;
      await log.append(subject, payload);
      if (writer.failing) writer.onTrouble(undefined);
      writer.failing = false;
      return true;
    } catch (thrown) {
      const error = toTiergridError(thrown);
      // A stream that vanished is made again.
      writer.opened = false;
      totals.failures += 1;
      if (!writer.failing) writer.onTrouble(error);
      writer.failing = true;
    }
    await sleep(clock, waitMs, abort.signal);
  }
  return false;
}

const nextWait = (waitMs: number): number => Math.min(2 * waitMs, retryMaxMs);

function blocksOf(event: KvEvent): number {
  if (event.type === "cleared") return 0;
  return event.type === "stored" ? event.blocks.length / 4 : event.hashes.length / 2;
}
