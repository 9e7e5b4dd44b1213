/**
 * What the global and the local router share: taking a request, finding a next hop that accepts it,
 * and keeping the request's entry until somebody says it is over. No token passes through here.
 *
 *   Dispatch ──▶ open ──plan──▶ offered ──accepted──▶ accepted ──first_output─▶ running ──▶ gone
 *                 ▲               │ refused, silent       │ failed                │
 *                 └───next plan───┴───────────────────────┘       finished | closed | lost ┘
 *
 * Invariants
 *   - Every dispatch is answered once: a receipt, or an error frame when nobody waits for receipts;
 *     an acceptance not at all where its owner hears of it in the stream (`acceptNotice`).
 *   - While no worker has accepted, the owner hears a `queued` heartbeat every 250 ms, and so does
 *     the dispatcher above.
 *   - An entry that no notice or list has named for 12 s is freed as lost, so books close although
 *     notices may be.
 */
import { type CancelTimer, type Clock, every, sleep } from "../base/clock.ts";
import { type ErrorCode, errorTable, TiergridError, toTiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import { everyInStep } from "../base/tick-clock.ts";
import { decodeNotices } from "../protocol/notice-frame.ts";
import type { AcceptedNotice, Notice, RequestNotice } from "../protocol/notices.ts";
import { type ReadDispatch, readDispatch } from "../protocol/request-frame.ts";
import type { Phase } from "../protocol/requests.ts";
import { decodeControl, encodeControlReply } from "../protocol/stream-control.ts";
import type { ControlMessage } from "../protocol/stream-frames.ts";
import { controlSubject, generateSubject, noticeSubject } from "../protocol/subjects.ts";
import type { Bus, BusMessage, Subscription } from "./bus.ts";
import { type Answer, answerTo, errorFrame, refusal, sayQueued } from "./dispatch-answer.ts";
import { DispatchBook } from "./dispatch-book.ts";
import {
  cancelledError,
  encodeForward,
  encodeTaken,
  type OfferOutcome,
  offerDispatch,
  publishFrame,
  publishQuietly,
  refuseUnread,
  reportFailed,
  sendCancel,
} from "./dispatch-offer.ts";
import type {
  DispatchEntry,
  DispatcherTotals,
  DispatchPolicy,
  Plan,
  SendPlan,
} from "./dispatch-policy.ts";

export const dispatcherDefaults = {
  acceptTimeoutMs: 300,
  queuedBeatMs: 250,
  failedNoticeTimeoutMs: 300,
  sweepPeriodMs: 1_000,
  drainPollMs: 20,
} as const;

export interface DispatcherOptions<State> {
  readonly bus: Bus;
  readonly clock: Clock;
  /** For what may wait; absent = `clock`. */
  readonly ticks?: Clock | undefined;
  readonly random: Random;
  /** While closed, silence proves nothing and no entry is lost. */
  readonly gate: { readonly open: boolean };
  readonly inst: string;
  readonly level: "global" | "local";
  readonly policy: DispatchPolicy<State>;
  readonly acceptTimeoutMs?: number;
  /** Told of every notice, whether or not it names an entry, before the entry changes. */
  readonly onNotice?: (notice: Notice) => void;
}

export class Dispatcher<State> {
  readonly #book: DispatchBook<State>;
  readonly #options: DispatcherOptions<State>;
  readonly #subscriptions: Subscription[];
  readonly #cancelSweep: CancelTimer;
  /** Where workers tell what became of a request. */
  readonly #noticeSubject: string;
  #draining = false;

  constructor(options: DispatcherOptions<State>) {
    this.#options = options;
    this.#book = new DispatchBook(options.policy, options.level);
    const { bus, clock, level, inst } = options;
    this.#noticeSubject = noticeSubject(inst);
    this.#subscriptions = [
      bus.subscribe(generateSubject(level, inst), (message) => this.receive(message)),
      bus.subscribe(controlSubject(level, inst), (message) => this.#onControl(message)),
      bus.subscribe(this.#noticeSubject, (message) => this.#onNotice(message)),
    ];
    this.#cancelSweep = everyInStep(options.ticks ?? clock, dispatcherDefaults.sweepPeriodMs, () =>
      this.#book.sweep(clock.nowMs(), options.gate),
    );
  }

  get entries(): Pick<DispatchBook<State>["entries"], "get" | "size" | "values"> {
    return this.#book.entries;
  }

  get totals(): Readonly<DispatcherTotals> {
    return this.#book.totals;
  }

  /** Takes a message of the generate subject, or of a public endpoint that stands for `phase`. */
  receive(message: BusMessage, phase?: Phase): void {
    this.#book.totals.received += 1;
    const { bus, random, clock } = this.#options;
    let read: ReadDispatch;
    try {
      read = inPhase(readDispatch(message, random), phase);
    } catch (thrown) {
      this.#book.totals.refused += 1;
      refuseUnread(bus, message, random, toTiergridError(thrown));
      return;
    }
    const { envelope } = read.dispatch;
    const older = this.#book.entries.get(envelope.rid);
    // Delivered twice: the first copy is answered, a second answer could only contradict it.
    if (older?.envelope.attempt === envelope.attempt) return;
    const answer = answerTo(bus, message, envelope, this.#book.totals);
    try {
      if (this.#draining) throw new TiergridError("subscriber_shutdown", "this router is stopping");
      const entry = this.#book.admit(read, clock.nowMs());
      if (older) this.#stopHop(older);
      this.#run(entry, answer);
    } catch (thrown) {
      answer(refusal(toTiergridError(thrown)));
    }
  }

  /** Ends every entry whose worker is gone; the streams' owners migrate or report. */
  workerGone(workerInst: string): void {
    for (const entry of [...this.#book.entries.values()]) {
      if (entry.worker?.inst === workerInst) this.#book.end(entry, "worker_lost");
    }
  }

  /** Refuses new requests with `subscriber_shutdown`; resolves when none is open, or at `graceMs`. */
  async drain(graceMs: number): Promise<void> {
    this.#draining = true;
    const { clock } = this.#options;
    const untilMs = clock.nowMs() + graceMs;
    const someOpen = (): boolean =>
      [...this.#book.entries.values()].some((entry) => entry.phase === "open");
    while (someOpen() && clock.nowMs() < untilMs) {
      await sleep(clock, dispatcherDefaults.drainPollMs);
    }
  }

  /** Ends every entry and refuses what is still open; answers under way go on. */
  close(): void {
    this.#draining = true;
    this.#cancelSweep();
    for (const subscription of this.#subscriptions) subscription.unsubscribe();
    for (const entry of [...this.#book.entries.values()]) {
      if (entry.phase === "open") this.#cancelEntry(entry);
      // An answer under way needs no dispatcher: its worker and its owner go on without.
      else this.#book.end(entry, "closed");
    }
  }

  /** Plans and offers until a hop accepts, the policy refuses, or the request is cancelled. */
  #run(entry: DispatchEntry<State>, answer: Answer): void {
    const { bus, clock } = this.#options;
    const stopSaying = every(clock, dispatcherDefaults.queuedBeatMs, () => sayQueued(bus, entry));
    this.#next(entry, (receipt, payload) => {
      stopSaying();
      answer(receipt, payload);
    });
  }

  /** One attempt. Callbacks instead of promises: nearly every request needs one, and waits once. */
  #next(entry: DispatchEntry<State>, answer: Answer): void {
    const { clock } = this.#options;
    try {
      const leftMs = entry.deadlineMs - clock.nowMs();
      const plan = this.#plan(entry, leftMs);
      if (plan.type === "wait") {
        const waitMs = Math.min(plan.waitMs, leftMs);
        void sleep(clock, waitMs, entry.cancel, plan.woken).then(() => this.#next(entry, answer));
      } else if (plan.type === "send") {
        this.#book.offered(entry, { inst: plan.inst, control: plan.control });
        this.#offer(entry, plan, leftMs, answer);
      } else this.#settled(entry, plan, answer);
    } catch (thrown) {
      this.#fault(entry, thrown, answer);
    }
  }

  #plan(entry: DispatchEntry<State>, leftMs: number): Plan {
    if (entry.cancel.aborted) return { type: "refuse", error: cancelledError() };
    if (leftMs <= 0) return refuse("deadline_exceeded", "the deadline passed while routing");
    if (!this.#book.raiseAttempt(entry)) {
      return refuse("pool_unavailable", "the attempts are used up");
    }
    return this.#options.policy.plan(entry);
  }

  #offer(entry: DispatchEntry<State>, plan: SendPlan, leftMs: number, answer: Answer): void {
    const { bus, clock, gate, acceptTimeoutMs } = this.#options;
    const { subject, control } = plan;
    const silenceMs = acceptTimeoutMs ?? dispatcherDefaults.acceptTimeoutMs;
    const hop = {
      bus,
      clock,
      gate,
      subject,
      payload: encodeForward(entry, plan, leftMs, this.#noticeSubject),
      acceptTimeoutMs: Math.min(silenceMs, leftMs),
      leftMs,
      signal: entry.cancel,
    };
    entry.offer = offerDispatch(hop, (outcome) => {
      entry.offer = undefined;
      // A hop that was silent may yet wake up and run it.
      if ("error" in outcome && outcome.error.code === "accept_timeout") {
        sendCancel(bus, control, entry.rid, entry.attempt);
      }
      this.#settled(entry, outcome, answer);
    });
  }

  /** Acts on how an attempt went. */
  #settled(entry: DispatchEntry<State>, outcome: OfferOutcome, answer: Answer): void {
    try {
      // A short answer may be over before its receipt has come through the hops.
      if ("accepted" in outcome && !entry.cancel.aborted) {
        const { accepted, receipt } = outcome;
        if (entry.phase !== "gone") {
          this.#book.accept(entry, accepted, this.#options.clock.nowMs());
        }
        answer(receipt?.receipt, receipt?.payload);
        return;
      }
      const { error, retryAfterMs } = "error" in outcome ? outcome : { error: cancelledError() };
      if (entry.phase === "gone") answer(refusal(cancelledError()));
      else if (entry.booked) {
        this.#book.failAttempt(entry, error);
        this.#next(entry, answer);
      } else {
        this.#book.end(entry, "refused");
        answer(refusal(error, retryAfterMs));
      }
    } catch (thrown) {
      this.#fault(entry, thrown, answer);
    }
  }

  /** A fault in the policy must not leave the caller waiting or the books open. */
  #fault(entry: DispatchEntry<State>, thrown: unknown, answer: Answer): void {
    this.#book.end(entry, "refused");
    answer(refusal(toTiergridError(thrown)));
  }

  #onControl(message: BusMessage): void {
    let control: ControlMessage | undefined;
    try {
      control = decodeControl(message.payload);
    } catch {
      // An unreadable message names no stream; the answer below says so.
    }
    if (control?.type === "ack") return;
    const entry = control && this.#book.entries.get(control.rid);
    const known = control !== undefined && (entry?.envelope.attempt ?? Infinity) <= control.attempt;
    publishQuietly(this.#options.bus, message.reply, encodeControlReply({ ok: known }));
    if (!entry || !known || control?.type !== "cancel") return;
    this.#book.totals.cancelled += 1;
    this.#cancelEntry(entry);
  }

  /** Stops an open request; one that a worker has is told to stop and ends by the worker's notice. */
  #cancelEntry(entry: DispatchEntry<State>): void {
    this.#stopHop(entry);
    entry.cancel.abort();
    if (entry.phase === "open") this.#book.end(entry, "cancelled");
  }

  /** Tells the hop that has the attempt, or is being asked, to drop it. */
  #stopHop({ rid, attempt, worker, target }: DispatchEntry<State>): void {
    const control = worker?.control ?? target?.control;
    if (control) sendCancel(this.#options.bus, control, rid, attempt);
  }

  #onNotice(message: BusMessage): void {
    let notices: readonly Notice[] = [];
    try {
      notices = decodeNotices(message.payload);
    } catch {
      this.#book.totals.lateNotices += 1;
    }
    for (const notice of notices) {
      this.#options.onNotice?.(notice);
      this.#take(notice, message);
    }
  }

  #take(notice: Notice, message: BusMessage): void {
    if (notice.type === "active") {
      this.#book.seen(notice.requests, this.#options.clock.nowMs());
      return;
    }
    const entry = this.#book.entries.get(notice.rid);
    if (notice.type === "queued") {
      entry?.offer?.extend();
      return;
    }
    if (notice.type === "accepted") {
      this.#onAccepted(entry, notice);
      return;
    }
    // A receipt may lie in the same batch of messages, read but not yet acted on.
    if (entry?.phase === "open" && notice.attempt >= entry.attempt) {
      this.#options.clock.after(0, () => this.#onRequestNotice(notice, message));
    } else this.#onRequestNotice(notice, message);
  }

  #onAccepted(entry: DispatchEntry<State> | undefined, notice: AcceptedNotice): void {
    const { attempt, inst, waited_ms: waitedMs } = notice;
    if (!entry || attempt < entry.attempt) {
      this.#book.totals.lateNotices += 1;
      return;
    }
    const control = controlSubject("w", inst);
    entry.offer?.accept({ attempt, inst, control, workerId: inst, waitedMs });
  }

  #onRequestNotice(notice: RequestNotice, message: BusMessage): void {
    const entry = this.#book.entries.get(notice.rid);
    if (notice.type === "failed") {
      void this.#onFailed(
        entry,
        notice.attempt,
        new TiergridError(notice.code, notice.message),
      ).then((taken) => publishQuietly(this.#options.bus, message.reply, encodeTaken(taken)));
      return;
    }
    if (!entry || notice.attempt < entry.attempt) {
      this.#book.totals.lateNotices += 1;
      return;
    }
    entry.attempt = notice.attempt;
    entry.lastSeenMs = this.#options.clock.nowMs();
    if (notice.type !== "closed") this.#book.running(entry);
    this.#options.policy.noticed(entry, notice);
    if (notice.type === "finished") this.#book.end(entry, "finished");
    if (notice.type === "closed") this.#book.end(entry, "closed");
  }

  /**
   * An attempt died before its first output. Answers whether somebody takes the request on: this
   * dispatcher with another hop, or the one above.
   */
  async #onFailed(
    entry: DispatchEntry<State> | undefined,
    attempt: number,
    error: TiergridError,
  ): Promise<boolean> {
    if (!entry || entry.phase === "running") return false;
    // An older attempt, or one this dispatcher is still offering: the newer one has the request.
    if (attempt < entry.attempt || entry.phase === "open") return true;
    if (!errorTable[error.code].retryable) {
      this.#book.end(entry, "finished");
      return this.#passUp(entry, error);
    }
    this.#book.failAttempt(entry, error);
    this.#run(entry, (receipt) => {
      if (receipt?.type === "refused" && receipt.code !== "cancelled") {
        void this.#giveUp(entry, new TiergridError(receipt.code, receipt.message));
      }
    });
    return true;
  }

  /** Nobody here can run it: the dispatcher above may, else the owner hears an error frame. */
  async #giveUp(entry: DispatchEntry<State>, error: TiergridError): Promise<void> {
    if (await this.#passUp(entry, error)) return;
    publishFrame(this.#options.bus, entry.envelope, errorFrame(entry.attempt, error));
  }

  async #passUp(entry: DispatchEntry<State>, error: TiergridError): Promise<boolean> {
    const [above] = entry.envelope.notify;
    if (above === undefined) return false;
    const { rid, attempt } = entry;
    const timeoutMs = dispatcherDefaults.failedNoticeTimeoutMs;
    return reportFailed(this.#options.bus, above, { rid, attempt, error, timeoutMs });
  }
}

function inPhase(read: ReadDispatch, phase: Phase | undefined): ReadDispatch {
  if (phase === undefined) return read;
  const { dispatch, frame } = read;
  return { dispatch: { ...dispatch, envelope: { ...dispatch.envelope, phase } }, frame };
}

function refuse(code: ErrorCode, message: string): Plan {
  return { type: "refuse", error: new TiergridError(code, message) };
}
