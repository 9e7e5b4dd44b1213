/**
 * One answer from its owner's side: sends the request, follows the stream, and when the way breaks
 * sends it again with the tokens so far. Ends once, with `onEnd` or `onError`, by its deadline.
 *
 *   call 1 ──dispatch──▶ accepted ──tokens──▶ ... ──end──▶ onEnd
 *     │ refused, silent       │ worker lost, error, silent
 *     └── next route ──┐      └── migrate: prompt + tokens so far ──┐
 *          call 2 ◀────┴────────────────────────────────────────────┘   bounded; else onError
 */
import { CancelSwitch } from "../base/cancel.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import type { ClosedNotice } from "../protocol/notices.ts";
import { decodeReceipt, refusedError } from "../protocol/receipts.ts";
import { avoidMax } from "../protocol/request-envelope.ts";
import { attemptNumber, callsMax, type Receipt } from "../protocol/requests.ts";
import { decodeControlReply, encodeControl } from "../protocol/stream-control.ts";
import type {
  AcceptedFrame,
  EndFrame,
  EngineOutput,
  StreamFrame,
} from "../protocol/stream-frames.ts";
import { AnswerRecord } from "./answer-record.ts";
import { CallPlaces, type Place } from "./call-places.ts";
import { migratedTokens, tokensLeft } from "./migration.ts";
import { encodeCall } from "./owner-dispatch.ts";
import type { CallRequest, OwnerShared, Route } from "./owner-request.ts";
import { fingerprintOf } from "./poison-guard.ts";
import { StreamConsumer, silenceTexts } from "./stream-consumer.ts";
import { streamDefaults } from "./stream-defaults.ts";

/** Failures that say a worker died with the request on it. */
const lostCodes: ReadonlySet<string> = new Set(["worker_lost", "stream_idle"]);
/** Failures after which the prompt itself is sent. */
const tokenCodes: ReadonlySet<string> = new Set(["prompt_needed", "prompt_lost"]);

export class Call {
  readonly rid: string;
  readonly key: number;
  readonly done: Promise<void>;
  readonly consumer: StreamConsumer;
  readonly #shared: OwnerShared;
  readonly #request: CallRequest;
  readonly #record: AnswerRecord;
  readonly #deadlineAtMs: number;
  readonly #places: CallPlaces;
  readonly #avoid: string[] = [];
  /** Tokens so far, kept while they may be needed for a migration. */
  readonly #made: number[] = [];
  #settle: () => void = () => {};
  #routeInst: string | undefined;
  /** True once a hop, or a worker, could not do with hashes of the prompt. */
  #sendsTokens = false;
  /** Set while a receipt is awaited: of a refusal, or of who sends no `accepted` notices. */
  #inFlight: CancelSwitch | undefined;
  #retries = 0;
  #migrations = 0;
  /** Time of the next dispatch while none is out. */
  #retryAtMs: number | undefined;
  #probing = false;
  #over = false;

  constructor(shared: OwnerShared, request: CallRequest, rid: string, key: number) {
    const nowMs = shared.clock.nowMs();
    this.rid = rid;
    this.key = key;
    this.#shared = shared;
    this.#request = request;
    this.#places = new CallPlaces(shared, rid);
    this.#record = new AnswerRecord(nowMs, request.priorDecisionIds);
    this.#deadlineAtMs = nowMs + request.deadlineMs;
    this.consumer = new StreamConsumer(request.firstTokenTimeoutMs, shared.totals, shared.acceptMs);
    this.done = new Promise((resolve) => {
      this.#settle = resolve;
    });
    request.signal?.addEventListener("abort", this.cancel, { once: true });
  }

  /** Control subject of the worker that is followed, once it is known. */
  get control(): string | undefined {
    return this.#places.at(this.consumer.attempt)?.control;
  }

  /** Sends the request for the first time. */
  start(): void {
    const { guard, clock } = this.#shared;
    const nowMs = clock.nowMs();
    if (this.#request.signal?.aborted) this.cancel();
    else if (guard.watching(nowMs) && guard.refused(this.#fingerprint(), nowMs)) {
      const message = "workers died while they ran this request; it is refused for a minute";
      this.#finishError(new TiergridError("poison_request", message));
    } else this.#dispatch();
  }

  readonly cancel = (): void => {
    this.#abandon(new TiergridError("cancelled", "the caller cancelled the request"));
  };

  /** Ends the call with `error` and tells the workers. */
  #abandon(error: TiergridError): void {
    if (this.#over) return;
    this.#cancelAttempts();
    this.#finishError(error);
  }

  close(): void {
    this.#abandon(new TiergridError("bus_closed", "the stream's owner is closing"));
  }

  /** A frame of this answer, received at `nowMs`. */
  take(frame: StreamFrame, nowMs: number): void {
    if (this.#over) return;
    const taken = this.consumer.take(frame, nowMs);
    this.#cancelFenced();
    if (!taken) this.#resume(nowMs);
    else if (taken.type === "tokens") this.#output(taken.output, taken.first, nowMs);
    else if (taken.type === "accepted") this.#accepted(taken);
    else if (taken.type === "end") this.#end(taken, nowMs);
    else if (taken.type === "error") {
      this.#fail(new TiergridError(taken.code, taken.message), taken.retryable);
    }
  }

  /** Looks at every timer of the call. */
  tick(nowMs: number): void {
    // A deadline before the next look counts as passed, so that no answer ends late.
    if (nowMs + streamDefaults.ownerSweepMs > this.#deadlineAtMs) {
      const message = `no complete answer within ${this.#request.deadlineMs} ms`;
      this.#abandon(new TiergridError("deadline_exceeded", message));
    } else if (this.#retryAtMs === undefined) this.#watch(nowMs);
    else if (nowMs >= this.#retryAtMs && this.#reachable()) {
      this.#dispatch();
    }
  }

  /** Watches the stream of the current call for silence and gaps. */
  #watch(nowMs: number): void {
    const { open } = this.#shared.gate;
    const silence = this.consumer.silence(nowMs, open);
    if (silence) {
      this.#fail(new TiergridError(silence, silenceTexts[silence]), true);
      return;
    }
    if (!open) return;
    this.#resume(nowMs);
    const { control } = this;
    if (control !== undefined && !this.#probing && this.consumer.takeProbe(nowMs)) {
      void this.#probe(control, this.consumer.attempt);
    }
  }

  thaw(nowMs: number): void {
    this.consumer.thaw(nowMs);
    this.#resume(nowMs);
  }

  /** Sends the next call; `failure` of the last one ends the answer when nobody is left to ask. */
  #dispatch(failure?: TiergridError): void {
    const { clock, totals } = this.#shared;
    const { consumer } = this;
    this.#retryAtMs = undefined;
    const call = consumer.call + 1;
    // A started answer would rather ask an instance that failed than end.
    const anybody = consumer.have > 0 ? this.#request.route([]) : undefined;
    const route = this.#request.route(this.#avoid) ?? anybody;
    if (!route || call > callsMax) {
      const message = "no instance can take the request";
      this.#finishError(failure ?? new TiergridError("no_endpoints", message));
      return;
    }
    this.#routeInst = route.inst;
    this.#places.reset(route.control);
    const inFlight = new CancelSwitch();
    this.#inFlight = inFlight;
    consumer.dispatched(call, clock.nowMs());
    totals.dispatches += 1;
    void this.#ask(route, call, inFlight);
  }

  /** One dispatch and its receipt; the stream's frames may come before it, or without it. */
  async #ask(route: Route, call: number, inFlight: CancelSwitch): Promise<void> {
    const { bus, clock } = this.#shared;
    try {
      const timeoutMs = Math.max(1, this.#deadlineAtMs - clock.nowMs());
      const options = { timeoutMs, signal: inFlight };
      const reply = await bus.request(route.subject, this.#payload(call, route), options);
      if (this.#inFlight === inFlight) this.#inFlight = undefined;
      if (this.#isCurrent(call)) this.#receipt(decodeReceipt(reply.payload));
    } catch (thrown) {
      const error = toTiergridError(thrown);
      // A stream that is under way needs no receipt.
      if (this.#isCurrent(call) && this.consumer.attempt === 0) this.#fail(error, error.retryable);
    }
  }

  #receipt(receipt: Receipt): void {
    if (receipt.type === "refused") {
      const error = refusedError(receipt);
      this.#fail(error, error.retryable);
      return;
    }
    this.#record.decided(receipt.decisions);
    this.#places.promised(receipt.attempt, receipt);
    this.consumer.receiptFor(receipt.attempt, this.#shared.clock.nowMs());
    this.#cancelFenced();
  }

  #payload(call: number, route: Route): Uint8Array {
    const made = this.consumer.have;
    const leftMs = this.#deadlineAtMs - this.#shared.clock.nowMs();
    const place = { rid: this.rid, key: this.key, call, made, leftMs, avoid: this.#avoid };
    const whole = migratedTokens(this.#request.tokens, this.#made);
    const to = this.#sendsTokens ? undefined : route.promptHashes;
    return encodeCall(this.#shared, this.#request, place, whole, to);
  }

  /** A sink that throws loses its stream, not its neighbours'; also below. */
  #accepted(frame: AcceptedFrame): void {
    this.#record.decided(frame.decisions);
    if (!this.#places.announced(frame)) return;
    try {
      this.#request.sink.onAccepted(frame);
    } catch (thrown) {
      this.#abandon(toTiergridError(thrown));
    }
  }

  #output(output: EngineOutput, first: number, nowMs: number): void {
    this.#record.output(output.tokenIds.length, nowMs);
    // Can no longer be refused.
    this.#inFlight?.abort();
    if (this.#request.migration.allowed) {
      for (const token of output.tokenIds) this.#made.push(token);
    }
    try {
      this.#request.sink.onOutput(output, first);
    } catch (thrown) {
      this.#abandon(toTiergridError(thrown));
    }
    if (this.#over || this.consumer.ackDue(nowMs) !== "frames") return;
    if (this.control !== undefined) this.#shared.ackNow(this.control);
  }

  #end(frame: EndFrame, nowMs: number): void {
    if (frame.rest) this.#output(frame.rest, frame.total, nowMs);
    if (this.#over) return;
    const { attempt } = frame;
    if (this.control !== undefined) {
      this.#shared.ackEnd(this.control, { rid: this.rid, attempt, next: frame.total + 1 });
    }
    this.#finish("ok", () => this.#request.sink.onEnd(frame));
  }

  /** The current call failed: tries another way, or ends the answer. */
  #fail(error: TiergridError, retryable: boolean): void {
    // Between calls there is nothing that could fail again.
    if (this.#over || this.#retryAtMs !== undefined) return;
    const place = this.#places.at(this.consumer.attempt);
    this.#inFlight?.abort();
    this.#cancelAttempts();
    const hashed = !this.#sendsTokens;
    this.#sendsTokens ||= tokenCodes.has(error.code);
    if (hashed && error.code === "prompt_needed") {
      this.#dispatch(error);
      return;
    }
    this.#avoidInst(place?.inst ?? this.#routeInst);
    if (place && lostCodes.has(error.code) && this.#isPoison(place.inst)) {
      this.#finishError(new TiergridError("poison_request", error.message));
    } else if (retryable && this.#mayGoOn(place)) this.#again(error);
    else this.#finishError(error);
  }

  /** Counts the failure; false when the answer's retries or migrations are used up. */
  #mayGoOn(place: Place | undefined): boolean {
    if (!this.consumer.pinned) {
      this.#retries += 1;
      const { dispatchRetriesMax, startedRetriesMax } = streamDefaults;
      return this.#retries <= (this.consumer.have > 0 ? startedRetriesMax : dispatchRetriesMax);
    }
    const { migration, tokens } = this.#request;
    const { allowed, limit, maxSeqTokens = Number.POSITIVE_INFINITY } = migration;
    const seqTokens = tokens.length + this.consumer.have;
    if (!allowed || this.#migrations >= limit || seqTokens > maxSeqTokens) return false;
    this.#migrations += 1;
    this.#retries = 0;
    this.#shared.totals.migrations += 1;
    if (place) this.#sendClosed(place, "migrated");
    return true;
  }

  /** Sends the request again: at once where there is another way, a started answer also later. */
  #again(error: TiergridError): void {
    const { have } = this.consumer;
    if (have > 0 && tokensLeft(this.#request.body, have) === 0) this.#endAtLimit();
    else if (this.#reachable() && this.#request.route(this.#avoid)) this.#dispatch(error);
    else if (have === 0) this.#finishError(error);
    else {
      const { retryDelayMs, retryDelayMaxMs } = streamDefaults;
      const delayMs = Math.min(retryDelayMs * 2 ** this.#retries, retryDelayMaxMs);
      this.#retryAtMs = this.#shared.clock.nowMs() + delayMs;
    }
  }

  #reachable(): boolean {
    return this.#shared.gate.open && this.#shared.bus.state === "connected";
  }

  /** Every token the request asked for is there; only the news of the end was lost. */
  #endAtLimit(): void {
    const { attempt, have } = this.consumer;
    const end: EndFrame = { type: "end", attempt, total: have, finishReason: "length" };
    this.#finish("ok", () => this.#request.sink.onEnd(end));
  }

  #isPoison(inst: string): boolean {
    const { guard, clock } = this.#shared;
    return guard.workerLost(this.#fingerprint(), inst, clock.nowMs());
  }

  #fingerprint(): string {
    return fingerprintOf(this.#request.body, this.#request.tokens);
  }

  #avoidInst(inst: string | undefined): void {
    if (inst === undefined || this.#avoid.includes(inst)) return;
    if (this.#avoid.length >= avoidMax) this.#avoid.shift();
    this.#avoid.push(inst);
  }

  /** Asks a silent worker whether it knows the stream; no answer is left to the liveness timer. */
  async #probe(control: string, attempt: number): Promise<void> {
    const { bus, totals } = this.#shared;
    const ping = encodeControl({ type: "ping", rid: this.rid, attempt });
    this.#probing = true;
    totals.probes += 1;
    let lost: string | undefined;
    try {
      const { probeTimeoutMs } = streamDefaults;
      const reply = await bus.request(control, ping, { timeoutMs: probeTimeoutMs });
      if (!decodeControlReply(reply.payload).ok) lost = "the worker no longer knows the stream";
    } catch (thrown) {
      if (toTiergridError(thrown).code === "no_responders") lost = "the worker is gone";
    }
    this.#probing = false;
    if (lost === undefined || this.#over || this.consumer.attempt !== attempt) return;
    this.#fail(new TiergridError("worker_lost", lost), true);
  }

  #resume(nowMs: number): void {
    const { control } = this;
    const from = control === undefined ? undefined : this.consumer.takeResume(nowMs);
    if (control === undefined || from === undefined) return;
    const { attempt } = this.consumer;
    this.#shared.totals.resumes += 1;
    this.#shared.send(control, encodeControl({ type: "resume", rid: this.rid, attempt, from }));
  }

  #cancelFenced(): void {
    for (const attempt of this.consumer.takeCancels()) this.#places.cancel(attempt);
  }

  /** Stops everything that may be working on the current call. */
  #cancelAttempts(): void {
    const { attempt, call } = this.consumer;
    if (call === 0) return;
    this.#places.cancelAll(attempt || attemptNumber({ call, global: 0, local: 0 }));
  }

  #sendClosed(place: Place, outcome: ClosedNotice["outcome"]): void {
    if (place.notify.length === 0) return;
    const { attempt, have } = this.consumer;
    const fields = { rid: this.rid, attempt, outcome, output_tokens: have };
    this.#shared.notices.tellLater(place.notify, this.#record.closed(fields));
  }

  #finishError(error: TiergridError): void {
    const outcome = error.code === "cancelled" ? error.code : "error";
    this.#finish(outcome, () => this.#request.sink.onError(error));
  }

  #finish(outcome: ClosedNotice["outcome"], tell: () => void): void {
    if (this.#over) return;
    this.#over = true;
    this.#inFlight?.abort();
    this.#request.signal?.removeEventListener("abort", this.cancel);
    this.#shared.forget(this.key);
    const place = this.#places.at(this.consumer.attempt);
    if (place) this.#sendClosed(place, outcome);
    try {
      tell();
    } finally {
      this.#settle();
    }
  }

  #isCurrent(call: number): boolean {
    return !this.#over && this.consumer.call === call;
  }
}
