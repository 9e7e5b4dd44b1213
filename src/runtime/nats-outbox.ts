/**
 * What one connection publishes within a loop turn, as protocol text in one block of memory that
 * goes to the socket in one write when the turn ends, or up to a millisecond after the last write
 * while turn after turn adds to it:
 *
 *   block  PUB tg.w.a.gen _R.x.1 12␍␊ payload ␍␊  PUB ...            0 .. used .. blockBytes
 *   run    replies to one requester, one after the other: one message of the block when it ends
 *
 * The client's own way encodes, queues and joins each message anew: twice the time. Writes
 * are a quarter to a third of a busy process, and reads of the server and the receiver follow them, so
 * turns that follow each other closely share one; after a pause nothing waits beyond its own turn.
 *   - Replies to one requester with nothing between them travel as one message (`reply-bundle.ts`):
 *     the server and the requester handle messages, not bytes.
 *   - Messages leave in the order of `publish`, each whole. The client writes its own commands
 *     (SUB, PING) beside them, between two messages.
 *   - A full block is written at once, so at most `blockBytes` wait here. A payload of
 *     `ownWriteBytes` or more is not copied.
 *   - What the socket has not passed on is never written to: it has a copy, or the block itself and
 *     a new one is filled.
 */
import type { Clock } from "../base/clock.ts";
import { ReplyBundle, replyPrefixLength } from "../protocol/reply-bundle.ts";
import type { PublishOptions } from "./bus.ts";

/** The part of a socket that is used. */
export interface OutboxSocket {
  readonly writableLength: number;
  write(bytes: Uint8Array): unknown;
  cork(): void;
  uncork(): void;
}

const blockBytes = 65_536;
const ownWriteBytes = 16_384;
/** So long after a write the next one waits while every loop turn adds to it. */
const gatherMs = 1;
/** Below `ownWriteBytes`: a run's bytes are always copied. */
const runBytesMax = 16_000;
const lineEnd = Buffer.from("\r\n");

export class NatsOutbox {
  readonly #socket: () => OutboxSocket | undefined;
  readonly #clock: Clock;
  #block: Buffer = Buffer.allocUnsafeSlow(blockBytes);
  #used = 0;
  readonly #run = new ReplyBundle(runBytesMax);
  /** Subject of the run's bundle. */
  #runTo = "";
  /** Bytes that waited when the last turn ended, and when bytes were written last. */
  #seen = 0;
  #writtenMs = Number.NEGATIVE_INFINITY;
  #armed = false;

  /** `socket` answers the connection's present socket: TLS replaces the first one. */
  constructor(socket: () => OutboxSocket | undefined, clock: Clock) {
    this.#socket = socket;
    this.#clock = clock;
  }

  /** Bytes that wait for the end of the turn. */
  get bytes(): number {
    return this.#used + this.#run.bytes;
  }

  /** Subject, reply and headers are ASCII and hold no line end: the bus has checked them. */
  publish(subject: string, payload: Uint8Array, options: PublishOptions | undefined): void {
    const isPlain = options?.reply === undefined && options?.headers === undefined;
    const prefixLength = isPlain ? replyPrefixLength(subject) : 0;
    if (prefixLength === 0 || !this.#addReply(subject, prefixLength, payload)) {
      this.#endRun();
      this.#put(subject, payload, options);
    }
    if (!this.#armed) this.#arm();
  }

  /** Adds to the run, or starts one; false for a reply too large for any. */
  #addReply(subject: string, prefixLength: number, payload: Uint8Array): boolean {
    const id = subject.slice(prefixLength + 1);
    const continues = this.#run.count > 0 && subject.startsWith(this.#runTo);
    if (continues && prefixLength === this.#runTo.length && this.#run.add(id, payload)) return true;
    this.#endRun();
    this.#runTo = subject.slice(0, prefixLength);
    return this.#run.add(id, payload);
  }

  #endRun(): void {
    const { count, id } = this.#run;
    if (count === 0) return;
    const subject = count === 1 ? `${this.#runTo}.${id}` : this.#runTo;
    this.#put(subject, this.#run.take(), undefined);
  }

  #put(subject: string, payload: Uint8Array, options: PublishOptions | undefined): void {
    const headers = options?.headers === undefined ? "" : headerText(options.headers);
    const to = options?.reply === undefined ? subject : `${subject} ${options.reply}`;
    const bytes = payload.length + headers.length;
    const head =
      headers === ""
        ? `PUB ${to} ${bytes}\r\n`
        : `HPUB ${to} ${headers.length} ${bytes}\r\n${headers}`;
    if (payload.length >= ownWriteBytes) {
      this.#writeAlone(head, payload);
      return;
    }
    if (this.#used + head.length + payload.length + 2 > blockBytes) this.flush();
    this.#text(head);
    this.#block.set(payload, this.#used);
    this.#used += payload.length;
    this.#block[this.#used++] = 13;
    this.#block[this.#used++] = 10;
  }

  #arm(): void {
    this.#armed = true;
    this.#clock.after(0, this.#endTurn);
  }

  /** Writes, or waits for the next turn: a turn that adds nothing is the last. */
  readonly #endTurn = (): void => {
    this.#armed = false;
    const gathers = this.#clock.nowMs() - this.#writtenMs < gatherMs;
    if (!gathers || this.bytes <= this.#seen) {
      this.flush();
      return;
    }
    this.#seen = this.bytes;
    this.#arm();
  };

  /** Writes what waits. */
  flush(): void {
    this.#endRun();
    if (this.#used === 0) return;
    const socket = this.#socket();
    const bytes = this.#block.subarray(0, this.#used);
    this.#used = 0;
    this.#seen = 0;
    this.#writtenMs = this.#clock.nowMs();
    // Behind others it waits as a copy of its size, not as a whole block.
    if (socket && socket.writableLength > 0) socket.write(Buffer.from(bytes));
    else {
      socket?.write(bytes);
      if (socket && socket.writableLength > 0) this.#block = Buffer.allocUnsafeSlow(blockBytes);
    }
  }

  #writeAlone(head: string, payload: Uint8Array): void {
    if (this.#used + head.length > blockBytes) this.flush();
    this.#text(head);
    const socket = this.#socket();
    socket?.cork();
    this.flush();
    socket?.write(payload);
    socket?.write(lineEnd);
    socket?.uncork();
  }

  #text(text: string): void {
    this.#used += this.#block.write(text, this.#used, "latin1");
  }
}

/** UTF-8 values as their bytes, one character each. */
function headerText(headers: ReadonlyMap<string, string>): string {
  let text = "NATS/1.0\r\n";
  for (const [name, value] of headers) text += `${name}: ${value}\r\n`;
  return Buffer.from(`${text}\r\n`).toString("latin1");
}
