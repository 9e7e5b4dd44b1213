/**
 * The index of a pool as bytes: every holder's rows, where each holder stands in its event sequence,
 * and up to where the durable stream is contained. Little endian, every part on a multiple of 4.
 *
 *   0 magic u32 | version u32 | checksum of the head behind this word | head words u32
 *   16 mode u32 (0 opaque, 1 identity) | block size u32 | stream sequence u64
 *   32 checksum of the rows | row count u32 | holder count u32 | holders … | rows …
 *
 *   holder: slot u32 | dp rank u32 | worker id u64 | next event id u64 | blocks u32
 *           source bytes u32 | source utf8, padded to 4
 *   row:    as `rowWords` of the index; its slot is one of the holders'
 *
 * Rows are made and checked in slices; the checksums are CRC-32. A snapshot that does not match is of
 * no use at all: the state is then rebuilt from the workers.
 */
import { crc32 } from "node:zlib";
import { TiergridError } from "../base/errors.ts";
import { formatU64, readU64Decimal } from "../protocol/u64.ts";
import { type IndexMode, rowWords } from "./kv-index.ts";

const magic = 0x58494754;
const version = 1;
const fixedWords = 11;
const holderFixedWords = 8;
const modes: readonly IndexMode[] = ["opaque", "identity"];
const two32 = 4294967296;
export const snapshotHoldersMax = 1 << 20;
const sourceBytesMax = 256;

export interface SnapshotHolder {
  /** As it stands in the rows. */
  readonly slot: number;
  readonly workerId: string;
  readonly dpRank: number;
  /** Newest event that the rows contain; -1 = none was emitted. */
  readonly last: number;
  /** The process life that emitted it; "" = not told. */
  readonly stateSource: string;
  /** Sizes tables at the restore; the rows may hold others. */
  readonly blocks: number;
}

export interface SnapshotHead {
  readonly mode: IndexMode;
  readonly blockSize: number;
  /** Every event of the stream up to here is in the rows, or was none of theirs. */
  readonly sequence: number;
  readonly rowsChecksum: number;
  readonly rowCount: number;
  readonly holders: readonly SnapshotHolder[];
}

/** Checksum of rows that follow those of checksum `before`; 0 for the first. */
export function rowsChecksum(rows: Uint32Array, before = 0): number {
  return crc32(bytesOf(rows), before);
}

/** The part that comes before the rows. */
export function encodeSnapshotHead(head: SnapshotHead): Uint8Array {
  const sources = head.holders.map(({ stateSource }) => Buffer.from(stateSource, "utf8"));
  const words = sources.reduce(
    (sum, source) => sum + holderFixedWords + Math.ceil(source.length / 4),
    fixedWords,
  );
  const out = new Uint32Array(words);
  out.set([magic, version, 0, words, modes.indexOf(head.mode), head.blockSize]);
  out.set([head.sequence >>> 0, Math.floor(head.sequence / two32)], 6);
  out.set([head.rowsChecksum, head.rowCount, head.holders.length], 8);
  let at = fixedWords;
  for (const [i, holder] of head.holders.entries()) {
    const worker = readU64Decimal(holder.workerId);
    const source = sources[i] ?? Buffer.alloc(0);
    if (!worker || source.length > sourceBytesMax) {
      throw new TiergridError("internal_error", `holder ${holder.workerId} fits no snapshot`);
    }
    const next = holder.last + 1;
    out.set([holder.slot, holder.dpRank, worker.lo, worker.hi], at);
    out.set([next >>> 0, Math.floor(next / two32), holder.blocks, source.length], at + 4);
    new Uint8Array(out.buffer).set(source, 4 * (at + holderFixedWords));
    at += holderFixedWords + Math.ceil(source.length / 4);
  }
  out[2] = crc32(bytesOf(out.subarray(3)));
  return bytesOf(out);
}

export interface OpenedSnapshot {
  readonly head: SnapshotHead;
  /** Views of the given bytes, not yet compared with `head.rowsChecksum`. */
  readonly rows: Uint32Array;
}

/** Reads and checks all but the rows. Throws `malformed_reply` for bytes that are no snapshot. */
export function openSnapshot(bytes: Uint8Array): OpenedSnapshot {
  if (bytes.length % 4 !== 0 || bytes.length < 4 * fixedWords) {
    throw bad(`expected a multiple of 4 from ${4 * fixedWords} bytes, got ${bytes.length}`);
  }
  const words = wordsOf(bytes);
  const word = (at: number): number => words[at] ?? 0;
  if (word(0) !== magic || word(1) !== version) {
    throw bad(`expected version ${version}, got ${word(0).toString(16)} ${word(1)}`);
  }
  const headWords = word(3);
  if (headWords < fixedWords || headWords > words.length) {
    throw bad(`a head of ${headWords} words in ${words.length}`);
  }
  const found = crc32(bytesOf(words.subarray(3, headWords)));
  if (found !== word(2)) throw bad(`head: expected checksum ${word(2)}, got ${found}`);
  const mode = modes[word(4)];
  const holderCount = word(10);
  if (!mode || holderCount > snapshotHoldersMax) {
    throw bad(`mode ${word(4)}, ${holderCount} holders`);
  }
  const rows = words.subarray(headWords);
  if (rows.length !== word(9) * rowWords(mode)) {
    throw bad(`expected ${word(9)} rows, got ${rows.length} words`);
  }
  const head = {
    mode,
    blockSize: word(5),
    sequence: word(7) * two32 + word(6),
    rowsChecksum: word(8),
    rowCount: word(9),
    holders: readHolders(words.subarray(0, headWords), holderCount),
  };
  return { head, rows };
}

function readHolders(words: Uint32Array, count: number): SnapshotHolder[] {
  const word = (at: number): number => words[at] ?? 0;
  const holders: SnapshotHolder[] = [];
  let at = fixedWords;
  for (let left = count; left > 0; left--) {
    const sourceBytes = word(at + 7);
    const next = at + holderFixedWords + Math.ceil(sourceBytes / 4);
    if (sourceBytes > sourceBytesMax || next > words.length) throw bad("a holder is cut off");
    if (word(at) >= snapshotHoldersMax) throw bad(`slot ${word(at)}`);
    const start = words.byteOffset + 4 * (at + holderFixedWords);
    holders.push({
      slot: word(at),
      workerId: formatU64(word(at + 2), word(at + 3)),
      dpRank: word(at + 1),
      last: word(at + 5) * two32 + word(at + 4) - 1,
      stateSource: Buffer.from(words.buffer, start, sourceBytes).toString("utf8"),
      blocks: word(at + 6),
    });
    at = next;
  }
  if (at !== words.length) throw bad(`${words.length - at} words behind the last holder`);
  return holders;
}

function bytesOf(words: Uint32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}

/** The bytes as words, without a copy where they lie right. */
function wordsOf(bytes: Uint8Array): Uint32Array {
  if (bytes.byteOffset % 4 === 0) {
    return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  }
  return new Uint32Array(new Uint8Array(bytes).buffer);
}

function bad(message: string): TiergridError {
  return new TiergridError("malformed_reply", `index snapshot: ${message}`);
}
