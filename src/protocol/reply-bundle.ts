/**
 * Replies of one sender to one requester, in one binary message. A bus's requests wait on
 * `<inbox>.rq.<id>`; several replies that leave together travel to `<inbox>.rq`. Little endian:
 *
 *   record   idBytes u8   id ASCII   payloadBytes u32   payload        one after the other
 */
import { TiergridError } from "../base/errors.ts";

/** Last token of the subject that takes bundles, and before the id of a single reply. */
export const replyToken = "rq";
const privateRoot = "_R.";
const idBefore = `.${replyToken}.`;
const idBytesMax = 255;

/** Length of `<inbox>.rq` when `subject` is `<inbox>.rq.<id>` of a bus like ours, else 0. */
export function replyPrefixLength(subject: string): number {
  if (!subject.startsWith(privateRoot)) return 0;
  const at = subject.indexOf(idBefore);
  const idBytes = subject.length - at - idBefore.length;
  return at < 0 || idBytes > idBytesMax ? 0 : at + idBefore.length - 1;
}

export class ReplyBundle {
  readonly #bytes: Buffer;
  #used = 0;
  #count = 0;
  #id = "";

  /** Holds up to `bytesMax` bytes of records. */
  constructor(bytesMax: number) {
    this.#bytes = Buffer.allocUnsafeSlow(bytesMax);
  }

  get count(): number {
    return this.#count;
  }

  /** Bytes of the records so far. */
  get bytes(): number {
    return this.#used;
  }

  /** Id of the last reply. */
  get id(): string {
    return this.#id;
  }

  /** Copies a reply behind the others; false when there is no room. */
  add(id: string, payload: Uint8Array): boolean {
    const end = this.#used + recordBytes(id) + payload.length;
    if (end > this.#bytes.length) return false;
    this.#bytes[this.#used] = id.length;
    this.#bytes.write(id, this.#used + 1, "latin1");
    this.#bytes.writeUInt32LE(payload.length, this.#used + 1 + id.length);
    this.#bytes.set(payload, end - payload.length);
    this.#used = end;
    this.#count += 1;
    this.#id = id;
    return true;
  }

  /** The records; or the payload alone where there is one. Valid until the next `add`. */
  take(): Uint8Array {
    const from = this.#count === 1 ? recordBytes(this.#id) : 0;
    const taken = this.#bytes.subarray(from, this.#used);
    this.#used = 0;
    this.#count = 0;
    return taken;
  }
}

/** Calls `visit` for each reply in order; throws `malformed_reply` at the first cut one. */
export function readReplies(
  bytes: Uint8Array,
  visit: (id: string, payload: Uint8Array) => void,
): void {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 0; at < buffer.length; ) {
    const idEnd = at + 1 + (buffer[at] as number);
    const from = idEnd + 4;
    const end = from > buffer.length ? from : from + buffer.readUInt32LE(idEnd);
    if (end > buffer.length) {
      const message = `a reply of ${end - at} bytes, got ${buffer.length - at}`;
      throw new TiergridError("malformed_reply", message);
    }
    visit(buffer.toString("latin1", at + 1, idEnd), buffer.subarray(from, end));
    at = end;
  }
}

const recordBytes = (id: string): number => 1 + id.length + 4;
