/**
 * Snapshots of the index: made from it, kept in the durable log, put back into it.
 *
 *   make: rows in slices ──▶ upload ──▶ read back ──▶ purge the stream up to what it contains
 *   load: read until two reads agree ──▶ check ──▶ staged copies in slices ──▶ commit, cursors
 *
 * - A snapshot is of one moment: an index that changes under the export is exported again.
 * - Ranks that are being recovered stay out; routers that restore it ask their workers.
 * - Nothing is purged that is not in a snapshot that was read back, nor what a consumer still needs.
 */
import { type Clock, sleep } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import {
  encodeSnapshotHead,
  openSnapshot,
  rowsChecksum,
  type SnapshotHolder,
} from "../core/index-snapshot.ts";
import { type KvIndex, rowWords } from "../core/kv-index.ts";
import type { DurableLock, DurableLog } from "../runtime/durable-log.ts";
import type { EventIntake, EventRank } from "./event-intake.ts";

export const snapshotName = "radix-state";
export const purgerLock = "purger";
/** Rows exported, checked or restored per turn of the event loop. */
export const rowsPerSlice = 2048;
export const exportAttemptsMax = 5;
export const readsMax = 10;
export const readPauseMs = 100;

export interface SnapshotTables {
  readonly index: KvIndex;
  readonly intake: Pick<EventIntake, "ranks" | "rankOf">;
  readonly clock: Clock;
  readonly blockSize: number;
}

export interface MadeSnapshot {
  /** Events of the stream up to here are contained. */
  readonly sequence: number;
  readonly parts: readonly Uint8Array[];
  /** Tells one snapshot from another without its bytes; begins with the sequence. */
  readonly note: string;
}

/** Exports the index as it is; undefined when it did not hold still in any attempt. */
export async function makeSnapshot(
  tables: SnapshotTables,
  sequence: number,
): Promise<MadeSnapshot | undefined> {
  const { index, blockSize } = tables;
  for (let attempt = 0; attempt < exportAttemptsMax; attempt++) {
    const holders = holdersOf(tables);
    const exported = await exportRows(tables);
    if (!exported) continue;
    const { parts, checksum } = exported;
    const words = parts.reduce((sum, part) => sum + part.length, 0);
    const head = encodeSnapshotHead({
      ...{ mode: index.mode, blockSize, sequence, holders },
      rowsChecksum: checksum,
      rowCount: words / rowWords(index.mode),
    });
    const bytes = parts.map(
      (part) => new Uint8Array(part.buffer, part.byteOffset, part.byteLength),
    );
    return { sequence, parts: [head, ...bytes], note: noteOf(sequence, checksum, holders.length) };
  }
  return undefined;
}

const noteOf = (sequence: number, checksum: number, holders: number): string =>
  `${sequence} ${checksum.toString(16)} ${holders}`;

/** Sequence that a note begins with; 0 without one. */
export function sequenceOfNote(note: string | undefined): number {
  const sequence = Number.parseInt(note ?? "", 10);
  return Number.isSafeInteger(sequence) && sequence > 0 ? sequence : 0;
}

function holdersOf({ index, intake }: SnapshotTables): SnapshotHolder[] {
  const holders: SnapshotHolder[] = [];
  for (const { workerId, dpRank, slot, cursor } of intake.ranks()) {
    const { last, stateSource, settled } = cursor;
    if (!settled || last === null) continue;
    holders.push({ slot, workerId, dpRank, last, stateSource, blocks: index.blocksOf(slot) });
  }
  return holders;
}

async function exportRows({
  index,
  clock,
}: SnapshotTables): Promise<{ parts: Uint32Array[]; checksum: number } | undefined> {
  const parts: Uint32Array[] = [];
  let checksum = 0;
  index.beginExport();
  for (;;) {
    const rows = index.exportRows(rowsPerSlice);
    if (rows === "changed") return undefined;
    if (rows === "done") return { parts, checksum };
    if (rows.length > 0) {
      checksum = rowsChecksum(rows, checksum);
      parts.push(rows);
    }
    await sleep(clock, 0);
  }
}

/**
 * Uploads a snapshot, reads it back and purges what it contains and every consumer has. The caller
 * has `lock`; should it run out meanwhile, nothing is purged. Throws what the log throws, and
 * `malformed_reply` when other bytes came back; then the object is gone.
 */
export async function saveSnapshot(
  log: DurableLog,
  clock: Clock,
  made: MadeSnapshot,
  lock: DurableLock,
): Promise<void> {
  await log.putObject(snapshotName, made.parts, made.note);
  try {
    const stored = await log.getObject(snapshotName);
    if (stored?.note !== made.note) {
      throw new TiergridError("malformed_reply", "the snapshot that came back is another one");
    }
    await checkedSnapshot(stored.bytes, clock);
  } catch (thrown) {
    if (toTiergridError(thrown).code === "malformed_reply") {
      await discardSnapshot(log, made.note);
    }
    throw thrown;
  }
  if (await lock.renew()) await purgeContained(log, made.sequence);
}

/** Deletes a bad snapshot, unless another one has taken its place. */
export async function discardSnapshot(log: DurableLog, note: string): Promise<void> {
  if ((await log.noteOf(snapshotName)) === note) await log.deleteObject(snapshotName);
}

/** Purges up to `sequence` or the newest message that every consumer has acknowledged. */
export async function purgeContained(log: DurableLog, sequence: number): Promise<void> {
  const consumers = await log.consumers();
  const acknowledged = consumers.map((consumer) => consumer.acknowledgedSequence);
  const through = Math.min(sequence, ...acknowledged);
  if (through > 0) await log.purgeThrough(through);
}

export interface LoadedSnapshot {
  readonly note: string;
  readonly bytes: Uint8Array;
}

/**
 * Reads the snapshot until it is the same twice; undefined when there is none. One that cannot be
 * read comes without bytes.
 */
export async function loadSnapshot(
  log: DurableLog,
  clock: Clock,
): Promise<LoadedSnapshot | undefined> {
  for (let read = 0; read < readsMax; read++) {
    const object = await readSnapshot(log);
    await sleep(clock, readPauseMs);
    if ((await log.noteOf(snapshotName)) === object?.note) return object;
  }
  throw new TiergridError("request_timeout", `a snapshot that held still, in ${readsMax} reads`);
}

async function readSnapshot(log: DurableLog): Promise<LoadedSnapshot | undefined> {
  try {
    return await log.getObject(snapshotName);
  } catch (thrown) {
    if (toTiergridError(thrown).code !== "malformed_reply") throw thrown;
    const note = await log.noteOf(snapshotName);
    return note === undefined ? undefined : { note, bytes: new Uint8Array(0) };
  }
}

export interface Restored {
  /** Ranks whose blocks and cursors were put back. */
  readonly ranks: readonly EventRank[];
  /** False when the index has no room: then no rank was put back. */
  readonly fits: boolean;
}

/**
 * Puts a snapshot into the index, a slice per turn; ranks whose events are known already stay as they
 * are. Throws `malformed_reply`, with nothing changed, for bytes that are not a snapshot of this pool.
 */
export async function restoreSnapshot(
  tables: SnapshotTables,
  bytes: Uint8Array,
): Promise<Restored> {
  const { index, intake, clock, blockSize } = tables;
  const { head, rows } = await checkedSnapshot(bytes, clock);
  if (head.mode !== index.mode || head.blockSize !== blockSize) {
    const expected = `${index.mode} of ${blockSize} tokens`;
    const message = `expected blocks ${expected}, got ${head.mode} of ${head.blockSize}`;
    throw new TiergridError("malformed_reply", message);
  }
  const staged: { readonly rank: EventRank; readonly holder: SnapshotHolder }[] = [];
  const slots = head.holders.reduce((most, { slot }) => Math.max(most, slot + 1), 0);
  const slotOf = new Int32Array(slots).fill(-1);
  for (const holder of head.holders) {
    const rank = intake.rankOf(holder, holder.blocks);
    if (!rank || rank.cursor.last !== null || rank.cursor.recovering) continue;
    index.beginStaged(rank.slot, holder.blocks);
    slotOf[holder.slot] = rank.slot;
    staged.push({ rank, holder });
  }
  let result = "ok";
  for await (const slice of slicesOf(rows, rowWords(head.mode), clock)) {
    result = index.restoreStaged(slice, slotOf);
    if (result !== "ok") break;
  }
  const present = new Set(intake.ranks());
  const ranks: EventRank[] = [];
  for (const { rank, holder } of staged) {
    // A worker may have left while its rows came in.
    if (!present.has(rank)) continue;
    if (result !== "ok") index.dropStaged(rank.slot);
    else {
      index.commitStaged(rank.slot);
      rank.cursor.resume(holder.last, holder.stateSource);
      ranks.push(rank);
    }
  }
  return { ranks, fits: result === "ok" };
}

/** Throws `malformed_reply` unless the bytes are a whole snapshot. */
async function checkedSnapshot(
  bytes: Uint8Array,
  clock: Clock,
): Promise<ReturnType<typeof openSnapshot>> {
  const opened = openSnapshot(bytes);
  const { head, rows } = opened;
  let checksum = 0;
  for await (const slice of slicesOf(rows, rowWords(head.mode), clock)) {
    checksum = rowsChecksum(slice, checksum);
  }
  if (checksum === head.rowsChecksum) return opened;
  const message = `rows: expected checksum ${head.rowsChecksum}, got ${checksum}`;
  throw new TiergridError("malformed_reply", `index snapshot: ${message}`);
}

/** Views of whole rows, one per turn of the event loop. */
async function* slicesOf(
  rows: Uint32Array,
  words: number,
  clock: Clock,
): AsyncGenerator<Uint32Array> {
  for (let at = 0; at < rows.length; at += words * rowsPerSlice) {
    if (at > 0) await sleep(clock, 0);
    yield rows.subarray(at, at + words * rowsPerSlice);
  }
}
