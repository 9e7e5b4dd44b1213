/**
 * Frames of version 1: JSON, and words that end them. Questions by hashes travel so, and the requests
 * of owners that do not write version 2 (`request-frame.ts`). Little endian:
 *
 *   header 40 bytes | JSON padded with spaces to 4 | count x u32 tokens, or x (lo u32, hi u32) hashes
 *
 *    0 magic u16 "TG"    2 version u8 (1)      3 kind u8 (1 tokens, 2 hashes)  4 islTokens u32
 *    8 20 bytes: a request repeats fields of its JSON here, nobody reads them
 *   28 jsonBytes u32    32 count u32          36 blockSize u16 (0 unsaid)      38 flags u16 (0)
 *
 * The length must match exactly. Words are written through typed arrays: hosts are little endian,
 * as is every platform of Node 20.
 */

export const frameLayout = {
  magic: 0x4754,
  version: 1,
  kindTokens: 1,
  kindHashes: 2,
  headerBytes: 40,
} as const;
const { magic, version, kindTokens, kindHashes, headerBytes } = frameLayout;

/** The words that end a frame: tokens, or hashes of blocks, 2 words each. */
export interface FrameWords {
  readonly kind: typeof kindTokens | typeof kindHashes;
  readonly islTokens: number;
  /** 0 = unsaid. */
  readonly blockSize: number;
  readonly words: Uint32Array;
}

export interface Frame extends FrameWords {
  /** UTF-8; may be a view of the payload, as may the words. */
  readonly json: Uint8Array;
}

/** Says what was expected and what came, in the words of the message that is read. */
export type FrameFault = (expected: string, found: unknown) => never;

/** The header being written; encoding is synchronous and copies it. */
const scratch = new Uint8Array(headerBytes);
const scratchView = new DataView(scratch.buffer);

/** The frame; nothing of `part` is kept. */
export function encodeFrame(json: string, part: FrameWords): Uint8Array {
  const { kind, islTokens, blockSize, words } = part;
  const jsonBytes = Buffer.byteLength(json);
  const wordsAt = headerBytes + padded(jsonBytes);
  const bytes = Buffer.allocUnsafe(wordsAt + 4 * words.length);
  scratch.fill(0);
  scratchView.setUint16(0, magic, true);
  scratchView.setUint8(2, version);
  scratchView.setUint8(3, kind);
  scratchView.setUint32(4, islTokens, true);
  scratchView.setUint32(28, jsonBytes, true);
  scratchView.setUint32(32, words.length / wordsEach(kind), true);
  scratchView.setUint16(36, blockSize, true);
  bytes.set(scratch);
  bytes.write(json, headerBytes, "utf8");
  for (let at = headerBytes + jsonBytes; at < wordsAt; at++) bytes[at] = 0x20;
  bytes.set(new Uint8Array(words.buffer, words.byteOffset, 4 * words.length), wordsAt);
  return bytes;
}

export function isFrame(payload: Uint8Array): boolean {
  return payload[0] === (magic & 0xff) && payload[1] === magic >> 8;
}

/** True for a frame of this version that carries hashes. */
export function isHashFrame(payload: Uint8Array): boolean {
  return isFrame(payload) && payload[2] === version && payload[3] === kindHashes;
}

/** Takes a frame apart; calls `fault` unless version, kind and length can be read. */
export function splitFrame(payload: Uint8Array, fault: FrameFault): Frame {
  if (payload.length < headerBytes) fault(`a frame header of ${headerBytes} bytes`, payload.length);
  const header = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  if (header.getUint8(2) !== version) fault(`frame version ${version}`, header.getUint8(2));
  const kind = header.getUint8(3);
  if (kind !== kindTokens && kind !== kindHashes) {
    return fault("frame kind 1 (tokens) or 2 (hashes)", kind);
  }
  const jsonBytes = header.getUint32(28, true);
  const count = header.getUint32(32, true);
  const wordsAt = headerBytes + padded(jsonBytes);
  const each = 4 * wordsEach(kind);
  if (payload.length !== wordsAt + each * count) {
    const what = kind === kindTokens ? "tokens" : "hashes";
    const expected = `a frame of ${wordsAt} bytes and ${count} ${what} of ${each}`;
    fault(expected, `${payload.length} bytes`);
  }
  return {
    kind,
    islTokens: header.getUint32(4, true),
    blockSize: header.getUint16(36, true),
    json: payload.subarray(headerBytes, headerBytes + jsonBytes),
    words: wordsOf(payload, wordsAt),
  };
}

/**
 * The bytes from `at` as words: a view where they lie on a multiple of 4, else a copy, of a small
 * prompt in the pool of buffers, since an `ArrayBuffer` of its own costs more than the copy.
 */
export function wordsOf(bytes: Uint8Array, at: number): Uint32Array {
  const { buffer, byteOffset, byteLength } = bytes;
  const count = (byteLength - at) / 4;
  if ((byteOffset + at) % 4 === 0) return new Uint32Array(buffer, byteOffset + at, count);
  const copy = Buffer.allocUnsafe(byteLength - at);
  copy.set(new Uint8Array(buffer, byteOffset + at, byteLength - at));
  return new Uint32Array(copy.buffer, copy.byteOffset, count);
}

/** Words per counted item. */
export const wordsEach = (kind: FrameWords["kind"]): number => (kind === kindTokens ? 1 : 2);
const padded = (bytes: number): number => 4 * Math.ceil(bytes / 4);
