/**
 * The owner's side of streams: whoever asks for answers (the frontend, or any client). One inbox for
 * all streams, a table from key to call, one sweep for all timers, one acknowledgement message per
 * worker for all its streams.
 */
import type { CancelTimer, Clock } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import { type Random, randomHex128, randomU32 } from "../base/random.ts";
import { readBundle } from "../protocol/stream-bundle.ts";
import { acksPerMessageMax, encodeControl } from "../protocol/stream-control.ts";
import type { StreamAck, StreamFrame } from "../protocol/stream-frames.ts";
import type { Bus, BusMessage } from "./bus.ts";
import { NoticeOutbox } from "./notice-outbox.ts";
import { Call } from "./owner-call.ts";
import type { CallRequest, OwnerCall, OwnerShared, OwnerTotals } from "./owner-request.ts";
import { PoisonGuard } from "./poison-guard.ts";
import { type PromptHashing, PromptSource } from "./prompt-source.ts";
import { alwaysOpen, type EchoGate, streamDefaults } from "./stream-defaults.ts";

export interface StreamOwnerOptions {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly random: Random;
  readonly gate?: EchoGate;
  /** Workers that may die under one request before it is refused; default 3. */
  readonly poisonWorkersMax?: number;
  /** Dispatch to the first sign of life of whoever holds the request; default 300 ms. */
  readonly acceptTimeoutMs?: number;
  /** Absent = prompts always travel as tokens. */
  readonly promptHashing?: PromptHashing | undefined;
}

export interface StreamOwner {
  /**
   * Starts an answer; what goes wrong is told to its sink, perhaps before this returns. Throws
   * `overloaded` at `streamsMax` open answers.
   */
  call(request: CallRequest): OwnerCall;
  /** Answers that have not ended. */
  readonly open: number;
  /** Prompts that workers may ask for. */
  readonly promptsHeld: number;
  readonly totals: Readonly<OwnerTotals>;
  /** Ends every answer with `bus_closed`. */
  close(): void;
}

export function createStreamOwner(options: StreamOwnerOptions): StreamOwner {
  const owner = new Owner(options);
  return {
    call: (request) => owner.call(request),
    close: () => owner.close(),
    totals: owner.totals,
    get open() {
      return owner.open;
    },
    get promptsHeld() {
      return owner.prompts.size;
    },
  };
}

class Owner implements OwnerShared {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly gate: EchoGate;
  readonly guard: PoisonGuard;
  readonly acceptMs: number;
  readonly inbox: string;
  readonly notices: NoticeOutbox;
  readonly prompts: PromptSource;
  readonly totals: OwnerTotals = {
    dispatches: 0,
    migrations: 0,
    hashedDispatches: 0,
    promptsHandedOut: 0,
    resumes: 0,
    probes: 0,
    fenced: 0,
    duplicates: 0,
    gaps: 0,
    skipped: 0,
    malformed: 0,
  };
  readonly #random: Random;
  /** By `key | 0`: signed 32-bit integers are looked up without a number object. */
  readonly #calls = new Map<number, Call>();
  /** By control subject; filled and sent within one message. */
  readonly #endAcks = new Map<string, StreamAck[]>();
  readonly #detach: readonly (() => void)[];
  #nextKey: number;
  /** When the message that is being read came: one look at the clock for all its frames. */
  #receivedMs = 0;
  #cancelSweep: CancelTimer | undefined;

  constructor(options: StreamOwnerOptions) {
    const { bus, clock, random, gate = alwaysOpen, poisonWorkersMax = 3 } = options;
    this.bus = bus;
    this.clock = clock;
    this.gate = gate;
    this.acceptMs = options.acceptTimeoutMs ?? streamDefaults.acceptMs;
    this.guard = new PoisonGuard(poisonWorkersMax);
    this.inbox = `${bus.inboxPrefix}.s`;
    this.notices = new NoticeOutbox(clock, (subject, payload) => this.send(subject, payload));
    this.prompts = new PromptSource(bus, this.totals, options.promptHashing);
    this.#random = random;
    this.#nextKey = randomU32(random);
    const subscription = bus.subscribe(this.inbox, (message) => this.#receive(message));
    this.#detach = [() => subscription.unsubscribe(), gate.onThaw(() => this.#thaw())];
  }

  get open(): number {
    return this.#calls.size;
  }

  call(request: CallRequest): OwnerCall {
    if (this.#calls.size >= streamDefaults.streamsMax) {
      throw new TiergridError("overloaded", `${this.#calls.size} answers are already open`);
    }
    const call = new Call(this, request, randomHex128(this.#random), this.#freeKey());
    this.#calls.set(call.key | 0, call);
    call.start();
    if (this.#calls.size > 0) this.#cancelSweep ??= this.#armSweep();
    return {
      rid: call.rid,
      done: call.done,
      cancel: call.cancel,
      pause: () => call.consumer.pause(),
      resume: () => this.#resume(call),
    };
  }

  close(): void {
    for (const call of [...this.#calls.values()]) call.close();
    this.notices.flushAll();
    this.prompts.close();
    for (const detach of this.#detach) detach();
    this.#cancelSweep?.();
    this.#cancelSweep = undefined;
  }

  send(subject: string, payload: Uint8Array): void {
    try {
      this.bus.publish(subject, payload, { traffic: "control" });
    } catch {
      // Resume, ping, cancel, ack and notices are all repeated or made up for by a timer.
    }
  }

  ackNow(control: string): void {
    const nowMs = this.clock.nowMs();
    const acks: StreamAck[] = [];
    for (const call of this.#calls.values()) {
      if (call.control === control) acks.push(ackOf(call, nowMs));
    }
    this.#sendAcks(control, acks);
  }

  ackEnd(control: string, ack: StreamAck): void {
    const acks = this.#endAcks.get(control);
    if (acks) acks.push(ack);
    else this.#endAcks.set(control, [ack]);
  }

  #sendAcks(control: string, acks: readonly StreamAck[]): void {
    for (let from = 0; from < acks.length; from += acksPerMessageMax) {
      const part = acks.slice(from, from + acksPerMessageMax);
      this.send(control, encodeControl({ type: "ack", acks: part }));
    }
  }

  forget(key: number): void {
    const call = this.#calls.get(key | 0);
    if (call) this.prompts.forget(call.rid);
    this.#calls.delete(key | 0);
  }

  #resume(call: Call): void {
    call.consumer.resume(this.clock.nowMs());
    if (this.#calls.has(call.key | 0) && call.control !== undefined) this.ackNow(call.control);
  }

  #receive(message: BusMessage): void {
    this.#receivedMs = this.clock.nowMs();
    try {
      this.totals.skipped += readBundle(message.payload, this.#take);
    } catch {
      // Whatever was lost with the message is asked for again.
      this.totals.malformed += 1;
    }
    for (const [control, acks] of this.#endAcks) this.#sendAcks(control, acks);
    this.#endAcks.clear();
  }

  readonly #take = (key: number, frame: StreamFrame): void => {
    const call = this.#calls.get(key | 0);
    if (call) call.take(frame, this.#receivedMs);
    else this.totals.skipped += 1;
  };

  #thaw(): void {
    const nowMs = this.clock.nowMs();
    for (const call of this.#calls.values()) call.thaw(nowMs);
  }

  #freeKey(): number {
    do this.#nextKey = (this.#nextKey + 1) >>> 0;
    while (this.#calls.has(this.#nextKey | 0));
    return this.#nextKey;
  }

  #armSweep(): CancelTimer {
    return this.clock.after(streamDefaults.ownerSweepMs, () => {
      this.#sweep();
      this.#cancelSweep = this.#calls.size > 0 ? this.#armSweep() : undefined;
    });
  }

  #sweep(): void {
    const nowMs = this.clock.nowMs();
    const due = new Set<string>();
    for (const call of [...this.#calls.values()]) {
      call.tick(nowMs);
      if (call.control !== undefined && call.consumer.ackDue(nowMs)) due.add(call.control);
    }
    for (const control of due) this.ackNow(control);
  }
}

function ackOf(call: Call, nowMs: number): StreamAck {
  const { consumer, rid } = call;
  return { rid, attempt: consumer.attempt, next: consumer.takeAck(nowMs) };
}
