/**
 * The worker's side of streams: many producers, one message per owner and engine step.
 *
 *   engine step ─push─▶ stream ─┐                       ┌─▶ owner A: one bundle
 *               ─push─▶ stream ─┼─ flush: by owner ─────┼─▶ owner B: one bundle
 *               ─end──▶ stream ─┘                       └─▶ JSON owner: one message per frame
 *
 * Nothing here throws into the engine: what the bus does not take stays in the stream's ring and is
 * sent again when the owner asks.
 */
import type { CancelTimer, Clock } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import type { Envelope } from "../protocol/requests.ts";
import { BundleWriter, bundleBytesMax } from "../protocol/stream-bundle.ts";
import type {
  AcceptedFrame,
  ControlMessage,
  ControlReply,
  EngineOutput,
  StreamAck,
  StreamFrame,
  WaitPhase,
} from "../protocol/stream-frames.ts";
import { encodeJsonFrame } from "../protocol/stream-json.ts";
import { controlSubject } from "../protocol/subjects.ts";
import type { Bus } from "./bus.ts";
import { alwaysOpen, type EchoGate, streamDefaults } from "./stream-defaults.ts";
import { type StopCause, type StreamEnding, StreamProducer } from "./stream-producer.ts";

/** Why the engine must stop working on a stream. */
export type CancelCause = StopCause | "cancelled" | "replaced" | "oversized" | "closing";

export interface StreamSenderOptions {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly gate?: EchoGate;
  readonly inst: string;
  /** This process life, as its heartbeats say. */
  readonly epoch: string;
  /** Called once per stream that ends before its engine ended it, and never after. */
  readonly onCancel: (stream: SenderStream, cause: CancelCause) => void;
}

/** One answer at its source; every call after its end does nothing. */
export interface SenderStream {
  readonly envelope: Envelope;
  /** Index of the next token the engine makes. */
  readonly made: number;
  /** True when the owner's credit is used up: an engine that can pause should. */
  readonly blocked: boolean;
  push(output: EngineOutput): void;
  phase(phase: WaitPhase): void;
  end(ending: StreamEnding): void;
  fail(error: TiergridError): void;
}

export interface SenderTotals {
  readonly opened: number;
  readonly ended: number;
  readonly cancelled: number;
  readonly resumes: number;
  readonly messages: number;
  /** Messages that the bus refused; repaired by resume. */
  readonly unsent: number;
}

export interface StreamSender {
  /**
   * Starts a stream; its `accepted` leaves with the step or loop turn under way. `duplicate`: this attempt is known; `stale`: a
   * newer one is. A newer attempt replaces an older one. Throws `overloaded` at `streamsMax`.
   */
  open(envelope: Envelope, place: WorkerPlace): SenderStream | "duplicate" | "stale";
  /** Ends an engine step: publishes everything it produced. */
  flush(): void;
  onControl(message: ControlMessage): ControlReply;
  /** Streams whose engine is not through. */
  active(): SenderStream[];
  /** Streams held, finished ones that wait for their last acknowledgement included. */
  readonly held: number;
  readonly totals: SenderTotals;
  /** Cancels every stream and stops the timers. */
  close(): void;
}

export interface WorkerPlace {
  readonly workerId: string;
  readonly dpRank: number;
}

/** An owner's subject and the streams that may have frames for it. */
interface Owner {
  readonly subject: string;
  readonly dirty: Stream[];
  streams: number;
}

interface Stream {
  readonly handle: SenderStream;
  readonly producer: StreamProducer;
  readonly owner: Owner;
  dirty: boolean;
  /** True once the engine ended, or was told to stop. */
  settled: boolean;
}

export function createStreamSender(options: StreamSenderOptions): StreamSender {
  const sender = new Sender(options);
  return {
    open: (envelope, place) => sender.open(envelope, place),
    flush: () => sender.flush(),
    onControl: (message) => sender.onControl(message),
    active: () => sender.active(),
    close: () => sender.close(),
    totals: sender.totals,
    get held() {
      return sender.held;
    },
  };
}

class Sender {
  readonly totals = { opened: 0, ended: 0, cancelled: 0, resumes: 0, messages: 0, unsent: 0 };
  readonly #options: StreamSenderOptions;
  readonly #gate: EchoGate;
  readonly #streams = new Map<string, Stream>();
  readonly #owners = new Map<string, Owner>();
  readonly #dirty: Owner[] = [];
  readonly #writer: BundleWriter;
  #cancelSweep: CancelTimer | undefined;
  #cancelStep: CancelTimer | undefined;
  #cancelTurn: CancelTimer | undefined;

  constructor(options: StreamSenderOptions) {
    this.#options = options;
    this.#gate = options.gate ?? alwaysOpen;
    this.#writer = new BundleWriter(options.epoch);
  }

  get held(): number {
    return this.#streams.size;
  }

  active(): SenderStream[] {
    const streams = [...this.#streams.values()].filter((stream) => !stream.settled);
    return streams.map((stream) => stream.handle);
  }

  open(envelope: Envelope, place: WorkerPlace): SenderStream | "duplicate" | "stale" {
    const older = this.#streams.get(envelope.rid);
    if (older && envelope.attempt === older.producer.attempt) return "duplicate";
    if (older && envelope.attempt < older.producer.attempt) return "stale";
    if (!older && this.#streams.size >= streamDefaults.streamsMax) {
      throw new TiergridError("overloaded", `${this.#streams.size} streams are already open`);
    }
    if (older) this.#stop(older, "replaced");
    const stream = this.#newStream(envelope, place);
    this.#streams.set(envelope.rid, stream);
    stream.owner.streams += 1;
    this.totals.opened += 1;
    this.#mark(stream);
    this.#cancelTurn ??= this.#options.clock.after(0, () => {
      this.#cancelTurn = undefined;
      this.flush();
    });
    this.#cancelSweep ??= this.#armSweep();
    return stream.handle;
  }

  flush(): void {
    for (const owner of this.#dirty.splice(0)) this.#publish(owner.dirty.splice(0));
  }

  onControl(message: ControlMessage): ControlReply {
    const nowMs = this.#options.clock.nowMs();
    if (message.type === "ack") {
      const known = message.acks.filter((ack) => this.#onAck(ack, nowMs));
      this.flush();
      return { ok: known.length === message.acks.length };
    }
    const stream = this.#find(message.rid, message.attempt);
    if (!stream) return { ok: false };
    if (message.type === "cancel") this.#stop(stream, "cancelled");
    else if (message.type === "ping") stream.producer.onPing(nowMs);
    else {
      this.totals.resumes += 1;
      stream.producer.onResume(message.from, nowMs);
      this.#touched(stream);
      this.flush();
    }
    return { ok: true };
  }

  close(): void {
    for (const stream of [...this.#streams.values()]) this.#stop(stream, "closing");
    this.#cancelSweep?.();
    this.#cancelStep?.();
    this.#cancelTurn?.();
    this.#cancelSweep = undefined;
    this.#cancelStep = undefined;
    this.#cancelTurn = undefined;
  }

  #onAck(ack: StreamAck, nowMs: number): boolean {
    const stream = this.#find(ack.rid, ack.attempt);
    if (!stream) return false;
    stream.producer.onAck(ack, nowMs);
    this.#touched(stream);
    return true;
  }

  #newStream(envelope: Envelope, place: WorkerPlace): Stream {
    const { clock, inst, epoch } = this.#options;
    const accepted: AcceptedFrame = {
      type: "accepted",
      attempt: envelope.attempt,
      epoch,
      inst,
      control: controlSubject("w", inst),
      notify: envelope.notify,
      workerId: place.workerId,
      dpRank: place.dpRank,
      decisions: envelope.decisions,
    };
    const nowMs = clock.nowMs();
    const { first, stream } = envelope;
    const deadlineAtMs = nowMs + envelope.deadlineMs;
    const producer = new StreamProducer(
      { accepted, first, acks: stream.acks, deadlineAtMs },
      nowMs,
    );
    const owner = this.#ownerOf(stream.subject);
    return this.#withHandle(envelope, producer, owner);
  }

  #withHandle(envelope: Envelope, producer: StreamProducer, owner: Owner): Stream {
    const handle: SenderStream = {
      envelope,
      get made() {
        return producer.made;
      },
      get blocked() {
        return producer.blocked;
      },
      push: (output) => {
        if (stream.settled) return;
        if (!producer.push(output)) this.#settle(stream, "overrun");
        this.#mark(stream);
      },
      phase: (phase) => producer.setPhase(phase),
      end: (ending) => this.#endBy(stream, () => producer.end(ending)),
      fail: (error) => this.#endBy(stream, () => producer.fail(error)),
    };
    const stream: Stream = { handle, producer, owner, dirty: false, settled: false };
    return stream;
  }

  #endBy(stream: Stream, end: () => void): void {
    if (stream.settled) return;
    stream.settled = true;
    this.totals.ended += 1;
    end();
    this.#mark(stream);
  }

  #ownerOf(subject: string): Owner {
    const known = this.#owners.get(subject);
    if (known) return known;
    const owner: Owner = { subject, dirty: [], streams: 0 };
    this.#owners.set(subject, owner);
    return owner;
  }

  #find(rid: string, attempt: number): Stream | undefined {
    const stream = this.#streams.get(rid);
    return stream?.producer.attempt === attempt ? stream : undefined;
  }

  /** The stream may have frames to send, or be over. */
  #touched(stream: Stream): void {
    if (stream.producer.done) this.#forget(stream);
    else this.#mark(stream);
  }

  #mark(stream: Stream): void {
    if (stream.dirty) return;
    stream.dirty = true;
    const { owner } = stream;
    if (owner.dirty.length === 0) this.#dirty.push(owner);
    owner.dirty.push(stream);
    this.#cancelStep ??= this.#options.clock.after(streamDefaults.stepMs, () => {
      this.#cancelStep = undefined;
      this.flush();
    });
  }

  #stop(stream: Stream, cause: CancelCause): void {
    stream.producer.stop();
    this.#forget(stream);
    this.#settle(stream, cause);
  }

  /** Tells the engine to stop, once. */
  #settle(stream: Stream, cause: CancelCause): void {
    if (stream.settled) return;
    stream.settled = true;
    this.totals.cancelled += 1;
    this.#options.onCancel(stream.handle, cause);
  }

  #forget(stream: Stream): void {
    const { rid } = stream.handle.envelope;
    if (this.#streams.get(rid) !== stream) return;
    this.#streams.delete(rid);
    stream.owner.streams -= 1;
    if (stream.owner.streams === 0) this.#owners.delete(stream.owner.subject);
  }

  /** Sends what these streams of one owner have to send. */
  #publish(streams: readonly Stream[]): void {
    const nowMs = this.#options.clock.nowMs();
    for (const stream of streams) {
      stream.dirty = false;
      const { producer, handle } = stream;
      for (let frame = producer.next(nowMs); frame; frame = producer.next(nowMs)) {
        if (handle.envelope.stream.format === "json") {
          this.#send(stream, encodeJsonFrame(handle.envelope.rid, frame));
        } else this.#write(stream, frame);
      }
    }
    const last = streams.at(-1);
    if (last && !this.#writer.empty) this.#send(last, this.#writer.take());
  }

  #write(stream: Stream, frame: StreamFrame): void {
    const { key } = stream.handle.envelope.stream;
    if (!this.#writer.add(key, frame)) {
      this.#send(stream, this.#writer.take());
      this.#writer.add(key, frame);
    }
    // A record of that size is alone in its message, so a refusal concerns this stream only.
    if (this.#writer.bytes > bundleBytesMax) this.#send(stream, this.#writer.take());
  }

  /** Publishes to the owner of `stream`, whose frame is in the message. */
  #send(stream: Stream, payload: Uint8Array): void {
    try {
      this.#options.bus.publish(stream.owner.subject, payload);
      this.totals.messages += 1;
    } catch (thrown) {
      this.totals.unsent += 1;
      const error = toTiergridError(thrown);
      if (error.code !== "payload_too_large") return;
      // Sending it again could not help.
      stream.producer.fail(error);
      this.#settle(stream, "oversized");
    }
  }

  #armSweep(): CancelTimer {
    const { senderSweepMs } = streamDefaults;
    return this.#options.clock.after(senderSweepMs, () => {
      this.#sweep();
      this.#cancelSweep = this.#streams.size > 0 ? this.#armSweep() : undefined;
    });
  }

  #sweep(): void {
    const nowMs = this.#options.clock.nowMs();
    const { open } = this.#gate;
    for (const stream of [...this.#streams.values()]) {
      const cause = stream.producer.tick(nowMs, open);
      if (cause) this.#settle(stream, cause);
      this.#touched(stream);
    }
    this.flush();
  }
}
