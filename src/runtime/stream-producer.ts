/**
 * One answer at its source: frames numbered by token, kept until acknowledged.
 *
 *        released          sent              made
 *           │◀── credit ────▶│◀── pending ────▶│
 *   ────────┴────────────────┴─────────────────┴───▶ tokens, by index in the whole answer
 *
 * Invariants
 *   - With acks: sent - released <= creditFrames frames, and nothing un-acknowledged is dropped.
 *     Without: the newest creditFrames frames are kept, nothing waits.
 *   - The end comes after every token; it is sent again each heartbeat until `total + 1` is acked.
 *   - `accepted` is sent again each heartbeat until the owner was heard.
 * Pure: time comes in, frames are pulled with `next`.
 */
import { TiergridError } from "../base/errors.ts";
import type {
  AcceptedFrame,
  EndFrame,
  EngineOutput,
  ErrorFrame,
  StreamAck,
  StreamFrame,
  TokensFrame,
  WaitPhase,
} from "../protocol/stream-frames.ts";
import { streamDefaults } from "./stream-defaults.ts";

export type StreamEnding = Omit<EndFrame, "type" | "attempt" | "total" | "rest">;

/** Why a stream ends at its source although its engine did not end it. */
export type StopCause = "orphaned" | "stalled" | "overrun" | "deadline";

export interface ProducerOptions {
  readonly accepted: AcceptedFrame;
  /** Index of the first token this attempt makes. */
  readonly first: number;
  readonly acks: boolean;
  readonly deadlineAtMs: number;
}

export class StreamProducer {
  readonly #accepted: AcceptedFrame;
  readonly #acks: boolean;
  readonly #deadlineAtMs: number;
  /** Kept frames from `#head`; `#sent` is the next to send. Slots below `#head` are dead. */
  readonly #frames: (TokensFrame | undefined)[] = [];
  #head = 0;
  #sent = 0;
  /** Index of the next token to make, and the lowest index that can be sent again. */
  #made: number;
  #released: number;
  #held: EngineOutput | undefined;
  #terminal: EndFrame | ErrorFrame | undefined;
  #terminalSent = false;
  #acceptedDue = true;
  #beatDue = false;
  #heard = false;
  #done = false;
  #phase: WaitPhase = "queued";
  #sentMs: number;
  #heardMs: number;
  #stalledMs: number | undefined;

  constructor(options: ProducerOptions, nowMs: number) {
    this.#accepted = options.accepted;
    this.#acks = options.acks;
    this.#deadlineAtMs = options.deadlineAtMs;
    this.#made = options.first;
    this.#released = options.first;
    this.#sentMs = nowMs;
    this.#heardMs = nowMs;
  }

  get attempt(): number {
    return this.#accepted.attempt;
  }
  /** Index of the next token the engine makes. */
  get made(): number {
    return this.#made;
  }
  /** True when the engine is through with the answer. */
  get ended(): boolean {
    return this.#terminal !== undefined;
  }
  /** True when nothing of the stream is needed any more. */
  get done(): boolean {
    return this.#done;
  }
  /** True when frames wait for credit: an engine that can pause should. */
  get blocked(): boolean {
    return this.#frames.length > this.#sent && !this.#hasCredit();
  }

  /** Adds what the engine made; false when the pending frames are full and the stream failed. */
  push(output: EngineOutput): boolean {
    if (this.#terminal) return true;
    const whole = this.#held ? joined(this.#held, output) : output;
    if (whole.tokenIds.length === 0) {
      this.#held = whole;
      return true;
    }
    this.#held = undefined;
    if (this.#frames.length - this.#sent >= streamDefaults.pendingFramesMax) {
      const message = `the owner left ${streamDefaults.pendingFramesMax} frames waiting`;
      this.fail(new TiergridError("cancelled", message));
      return false;
    }
    this.#frames.push({ type: "tokens", attempt: this.attempt, first: this.#made, output: whole });
    this.#made += whole.tokenIds.length;
    this.#phase = "decode";
    return true;
  }

  setPhase(phase: WaitPhase): void {
    this.#phase = phase;
  }

  /** The engine finished; later calls do nothing. */
  end(ending: StreamEnding): void {
    if (this.#terminal) return;
    const rest = this.#held ? { rest: this.#held } : {};
    this.#terminal = {
      type: "end",
      attempt: this.attempt,
      total: this.#made,
      ...ending,
      ...rest,
    };
  }

  /** The stream failed; tokens that were not sent are dropped, so that nothing delays the news. */
  fail({ code, message, retryable }: TiergridError): void {
    if (this.#terminal) return;
    this.#made = this.#nextIndex();
    this.#frames.length = this.#sent;
    const started = this.#sent > 0;
    this.#terminal = { type: "error", attempt: this.attempt, code, message, retryable, started };
  }

  /** The next frame to publish, or undefined when nothing may be sent. */
  next(nowMs: number): StreamFrame | undefined {
    const frame = this.#done ? undefined : this.#nextFrame();
    if (frame) {
      this.#sentMs = nowMs;
      this.#beatDue = false;
    }
    if (!this.blocked) this.#stalledMs = undefined;
    else this.#stalledMs ??= nowMs;
    return frame;
  }

  /** The owner took every token below `ack.next`; `total + 1` takes the end too. */
  onAck({ next }: Pick<StreamAck, "next">, nowMs: number): void {
    this.onPing(nowMs);
    this.#release(Math.min(next, this.#made));
    const total = this.#terminal?.type === "end" ? this.#terminal.total : Number.POSITIVE_INFINITY;
    if (next > total) this.#done = true;
  }

  /** The owner lives. */
  onPing(nowMs: number): void {
    this.#heard = true;
    this.#heardMs = nowMs;
  }

  /** Sends again from token `from`; `resume_lost` when it is no longer kept. */
  onResume(from: number, nowMs: number): void {
    if (from < this.#released && !this.#acks) {
      this.onPing(nowMs);
      this.#terminal = undefined;
      const message = `token ${from} is gone; the oldest kept is ${this.#released}`;
      this.fail(new TiergridError("resume_lost", message));
      this.#terminalSent = false;
      return;
    }
    if (this.#acks) this.onAck({ next: from }, nowMs);
    else this.onPing(nowMs);
    this.#sent = this.#slotOf(from);
    this.#terminalSent = false;
    this.#beatDue = true;
  }

  /** Forgets the stream: cancelled, replaced or closed. */
  stop(): void {
    this.#done = true;
    this.#frames.length = 0;
    this.#head = 0;
    this.#sent = 0;
  }

  /** Looks at the timers; answers why the engine must stop. Afterwards `next` may have a frame. */
  tick(nowMs: number, gateOpen: boolean): StopCause | undefined {
    if (this.#done) return undefined;
    if (!gateOpen) {
      this.#heardMs = nowMs;
      if (this.#stalledMs !== undefined) this.#stalledMs = nowMs;
    }
    if (nowMs - this.#sentMs >= streamDefaults.heartbeatMs) this.#beat();
    const silentMs = nowMs - this.#heardMs;
    if (this.#terminal) {
      if ((this.#acks ? silentMs : nowMs - this.#sentMs) >= streamDefaults.orphanMs) this.stop();
      return undefined;
    }
    return this.#stopCause(nowMs, silentMs);
  }

  #stopCause(nowMs: number, silentMs: number): StopCause | undefined {
    if (nowMs >= this.#deadlineAtMs) {
      this.fail(new TiergridError("deadline_exceeded", "the request's time is over"));
      return "deadline";
    }
    if (this.#acks && silentMs >= streamDefaults.orphanMs) {
      this.stop();
      return "orphaned";
    }
    if (nowMs - (this.#stalledMs ?? nowMs) < streamDefaults.stalledMs) return undefined;
    const message = `the owner took nothing for ${streamDefaults.stalledMs} ms`;
    this.fail(new TiergridError("cancelled", message));
    return "stalled";
  }

  #nextFrame(): StreamFrame | undefined {
    if (this.#acceptedDue) {
      this.#acceptedDue = false;
      return this.#accepted;
    }
    if (this.#sent < this.#frames.length) {
      if (this.#hasCredit()) return this.#sendKept();
    } else if (this.#terminal && !this.#terminalSent) {
      this.#terminalSent = true;
      return this.#terminal;
    }
    if (!this.#beatDue || this.#terminalSent) return undefined;
    this.#beatDue = false;
    const next = this.#nextIndex();
    return { type: "heartbeat", attempt: this.attempt, next, phase: this.#phase };
  }

  #sendKept(): TokensFrame | undefined {
    const frame = this.#frames[this.#sent++];
    if (!this.#acks && this.#sent - this.#head > streamDefaults.creditFrames) {
      const oldest = this.#frames[this.#head];
      if (oldest) this.#release(oldest.first + oldest.output.tokenIds.length);
    }
    return frame;
  }

  #beat(): void {
    // Before it is heard, the owner may not know where to send control messages.
    if (!this.#heard && this.#acks) this.#acceptedDue = true;
    if (!this.#terminal || this.#sent < this.#frames.length) this.#beatDue = true;
    else if (this.#acks) this.#terminalSent = false;
  }

  #hasCredit(): boolean {
    return !this.#acks || this.#sent - this.#head < streamDefaults.creditFrames;
  }

  /** Index of the next token to send. */
  #nextIndex(): number {
    return this.#frames[this.#sent]?.first ?? this.#made;
  }

  #release(next: number): void {
    if (next <= this.#released) return;
    this.#released = next;
    for (; this.#head < this.#sent; this.#head++) {
      const frame = this.#frames[this.#head];
      if (frame && frame.first + frame.output.tokenIds.length > next) break;
      this.#frames[this.#head] = undefined;
    }
    if (this.#head < streamDefaults.creditFrames) return;
    this.#frames.splice(0, this.#head);
    this.#sent -= this.#head;
    this.#head = 0;
  }

  /** Slot of the first sent frame that holds token `from` or a later one. */
  #slotOf(from: number): number {
    let slot = this.#sent;
    while (slot > this.#head) {
      const before = this.#frames[slot - 1];
      if (!before || before.first + before.output.tokenIds.length <= from) break;
      slot -= 1;
    }
    return slot;
  }
}

function joined(held: EngineOutput, output: EngineOutput): EngineOutput {
  const text = (held.text ?? "") + (output.text ?? "");
  return {
    ...held,
    ...output,
    ...(text === "" ? {} : { text }),
    ...(held.extra || output.extra ? { extra: { ...held.extra, ...output.extra } } : {}),
  };
}
