/**
 * The requests a worker runs, one job each, from an accepted dispatch to the end of its stream.
 *
 *   dispatch ─▶ submit ─▶ job ──step──▶ stream frames, notices ──▶ finished
 *      └─ hashes: a job first, submitted when its owner has handed out the prompt
 *                          ├─ cancel, silence, newer attempt ────▶ engine told, finished
 *                          └─ fault before output ──▶ offered back: taken, or error and finished
 *
 * Invariants
 *   - A job is listed exactly as long as its stream is unsettled; its end is told once, by
 *     `finished`, unless a dispatcher took the request back.
 *   - The engine is told of every job that ends without it.
 *   - The output of a prefill leg leaves whole, with its handoff, when the leg ends.
 */
import { CancelSwitch } from "../base/cancel.ts";
import type { Clock } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import type { FinishedOutcome } from "../protocol/notices.ts";
import { type Dispatch, type Envelope, islTokensOf, type Receipt } from "../protocol/requests.ts";
import type {
  ControlMessage,
  ControlReply,
  EngineOutput,
  FinishReason,
} from "../protocol/stream-frames.ts";
import { controlSubject } from "../protocol/subjects.ts";
import type { Bus } from "../runtime/bus.ts";
import { publishQuietly } from "../runtime/dispatch-offer.ts";
import { ItlRecorder } from "../runtime/itl-recorder.ts";
import { acceptedWithinMs, NoticeOutbox } from "../runtime/notice-outbox.ts";
import type { EchoGate } from "../runtime/stream-defaults.ts";
import {
  type CancelCause,
  createStreamSender,
  type SenderStream,
  type StreamSender,
} from "../runtime/stream-sender.ts";
import type { Engine, EngineStep, StepEnd } from "./engine.ts";
import { type FetchedPrompt, fetchPrompt } from "./prompt-fetch.ts";
import { acceptedNotice, notifyActive, offerBack } from "./worker-notices.ts";
import { checkDispatch, type EnginePlace, engineRequestOf, rankOf } from "./worker-requests.ts";

export interface WorkerJobsOptions {
  readonly bus: Bus;
  readonly clock: Clock;
  /** Times notices that may wait; absent = `clock`. */
  readonly ticks?: Clock;
  readonly gate: EchoGate;
  readonly engine: Engine;
  readonly inst: string;
  readonly epoch: string;
  /** Called when the engine was told to drop a request, which no pass reports. */
  readonly onDropped: () => void;
  readonly onFinished: (outcome: FinishedOutcome, durationMs: number) => void;
  /** Called when asking for a prompt is over, `tookMs` after the request was accepted. */
  readonly onFetched: (outcome: FetchedPrompt["type"], tookMs: number) => void;
}

export interface JobTotals {
  /** Streams whose owner went away. */
  orphans: number;
  /** Times a stream ran out of its owner's credit. */
  creditStalls: number;
  cancelled: number;
  /** Requests that a dispatcher took back. */
  takenBack: number;
}

interface Job {
  readonly key: number;
  readonly envelope: Envelope;
  readonly stream: SenderStream;
  readonly promptTokens: number;
  readonly receivedMs: number;
  readonly itl: ItlRecorder;
  /** Tokens of a prefill leg that wait for its handoff. */
  readonly held: number[];
  outputTokens: number;
  /** Blocks that prompt and output fill or begin. */
  blocks: number;
  lastOutputMs: number;
  cachedTokens: number;
  blocked: boolean;
  /** The engine is through with it, by a fault. */
  failing: boolean;
  /** Present while the owner is asked for the prompt; the engine does not know the job yet. */
  fetch: CancelSwitch | undefined;
}

const outcomeOf: Readonly<Record<CancelCause, FinishedOutcome>> = {
  cancelled: "cancelled",
  orphaned: "cancelled",
  stalled: "cancelled",
  overrun: "cancelled",
  replaced: "migrated",
  deadline: "error",
  oversized: "error",
  closing: "error",
};

export class WorkerJobs {
  readonly totals: JobTotals = { orphans: 0, creditStalls: 0, cancelled: 0, takenBack: 0 };
  readonly #options: WorkerJobsOptions;
  readonly #sender: StreamSender;
  readonly #notices: NoticeOutbox;
  readonly #byKey = new Map<number, Job>();
  readonly #byRid = new Map<string, Job>();
  readonly #blockSize: number;
  #nextKey = 1;

  constructor(options: WorkerJobsOptions) {
    this.#options = options;
    this.#blockSize = options.engine.card.blockSize;
    const { bus, clock, ticks = clock, gate, inst, epoch } = options;
    const onCancel = (stream: SenderStream, cause: CancelCause) => this.#onCancel(stream, cause);
    this.#sender = createStreamSender({ bus, clock, gate, inst, epoch, onCancel });
    this.#notices = new NoticeOutbox(ticks, (subject, payload) =>
      publishQuietly(bus, subject, payload),
    );
  }

  get active(): number {
    return this.#byKey.size;
  }

  /** Streams that may still be asked for, finished ones included. */
  get heldStreams(): number {
    return this.#sender.held;
  }

  /**
   * Starts a request; undefined when this attempt is known already, or nobody waits for a receipt. Throws
   * `duplicate_request` when a newer attempt is known, and whatever makes the engine refuse it.
   */
  accept(dispatch: Dispatch): Receipt | undefined {
    const { engine, inst, epoch } = this.#options;
    const { envelope } = dispatch;
    const known = this.#byRid.get(envelope.rid)?.envelope.attempt;
    if (known === envelope.attempt) return undefined;
    if (known !== undefined && known > envelope.attempt) throw outdated(envelope);
    const { card } = engine;
    checkDispatch(dispatch, card);
    const key = this.#nextKey++;
    const dpRank = rankOf(dispatch, engine.load(), card);
    const { prompt } = dispatch;
    const place = { key, dpRank };
    if (prompt.type === "tokens") {
      engine.submit(engineRequestOf(dispatch, prompt.tokens, place, card));
    }
    const stream = this.#open(envelope, key, dpRank);
    if (!stream) return undefined;
    const job = this.#add(key, stream, islTokensOf(prompt));
    // Ends in the engine, or in the job's end.
    if (prompt.type === "hashes") void this.#fetchPrompt(job, dispatch, place);
    if (envelope.acceptNotice) {
      const notice = acceptedNotice(this.#options, envelope);
      this.#notices.tellLater(envelope.notify, notice, acceptedWithinMs);
      return undefined;
    }
    return {
      type: "accepted",
      attempt: envelope.attempt,
      inst,
      epoch,
      control: controlSubject("w", inst),
      workerId: inst,
      dpRank,
      decisions: envelope.decisions,
    };
  }

  onControl(message: ControlMessage): ControlReply {
    return this.#sender.onControl(message);
  }

  /** Turns one engine step into one message per stream owner. */
  onStep(step: EngineStep): void {
    for (const { key, cachedTokens } of step.started) {
      const job = this.#byKey.get(key);
      if (job) job.cachedTokens = cachedTokens;
    }
    let end = 0;
    for (let start = 0; start < step.count; start = end) {
      const key = step.keys[start] ?? 0;
      for (end = start + 1; end < step.count && step.keys[end] === key; ) end++;
      const job = this.#byKey.get(key);
      if (!job) continue;
      const tokenIds = tokensIn(step, start, end);
      if (job.envelope.phase === "prefill") job.held.push(...tokenIds);
      else this.#output(job, { tokenIds });
    }
    for (const ended of step.ended) this.#onEnd(ended);
    this.#sender.flush();
    this.#notices.flush();
  }

  /** Ends every request with `error`; resolves when dispatchers and owners were told. */
  async failAll(error: TiergridError): Promise<void> {
    const jobs = [...this.#byKey.values()];
    await Promise.all(
      jobs.map((job) => {
        this.#options.engine.cancel(job.key);
        return this.#fail(job, error);
      }),
    );
  }

  /** Tells dispatchers which requests still run. */
  tellActive(): void {
    const envelopes = [...this.#byKey.values()].map(({ envelope }) => envelope);
    notifyActive(this.#options.bus, this.#options.inst, envelopes);
  }

  close(): void {
    this.#sender.close();
    this.#notices.flushAll();
  }

  /** The request's stream; undefined for a known attempt. The engine forgets what gets none. */
  #open(envelope: Envelope, key: number, dpRank: number): SenderStream | undefined {
    const { engine, inst } = this.#options;
    let stream: ReturnType<StreamSender["open"]> = "stale";
    try {
      stream = this.#sender.open(envelope, { workerId: inst, dpRank });
    } finally {
      if (typeof stream === "string") engine.cancel(key);
    }
    if (stream === "stale") throw outdated(envelope);
    return stream === "duplicate" ? undefined : stream;
  }

  /** Gets the prompt from its owner and starts the engine on it. */
  async #fetchPrompt(job: Job, dispatch: Dispatch, place: EnginePlace): Promise<void> {
    const { engine, clock, onFetched } = this.#options;
    const cancel = new CancelSwitch();
    job.fetch = cancel;
    const fetched = await fetchPrompt(this.#options, dispatch, cancel);
    job.fetch = undefined;
    onFetched(fetched.type, clock.nowMs() - job.receivedMs);
    if (job.failing || this.#byKey.get(job.key) !== job) return;
    const { rid, attempt } = job.envelope;
    if (fetched.type === "lost") await this.#fail(job, fetched.error);
    else if (fetched.type === "unwanted") this.onControl({ type: "cancel", rid, attempt });
    else {
      try {
        engine.submit(engineRequestOf(dispatch, fetched.tokens, place, engine.card));
      } catch (thrown) {
        await this.#fail(job, toTiergridError(thrown));
      }
    }
  }

  #add(key: number, stream: SenderStream, promptTokens: number): Job {
    const nowMs = this.#options.clock.nowMs();
    const job: Job = {
      key,
      envelope: stream.envelope,
      stream,
      promptTokens,
      receivedMs: nowMs,
      itl: new ItlRecorder(),
      held: [],
      outputTokens: 0,
      blocks: this.#blocksOf(promptTokens),
      lastOutputMs: nowMs,
      cachedTokens: 0,
      blocked: false,
      failing: false,
      fetch: undefined,
    };
    this.#byKey.set(key, job);
    this.#byRid.set(stream.envelope.rid, job);
    return job;
  }

  #output(job: Job, output: EngineOutput): void {
    const { stream, envelope } = job;
    const count = output.tokenIds.length;
    const nowMs = this.#options.clock.nowMs();
    if (job.outputTokens === 0) this.#firstOutput(job, nowMs);
    else job.itl.observe(nowMs - job.lastOutputMs, count);
    job.lastOutputMs = nowMs;
    job.outputTokens += count;
    stream.push(output);
    if (stream.blocked && !job.blocked) this.totals.creditStalls += 1;
    job.blocked = stream.blocked;
    const blocks = this.#blocksOf(job.promptTokens + job.outputTokens);
    if (blocks === job.blocks || envelope.phase === "prefill" || !envelope.progress) return;
    job.blocks = blocks;
    const { rid, attempt } = envelope;
    const output_tokens = job.outputTokens;
    // Only the nearest dispatcher books output blocks.
    const nearest = envelope.notify.slice(0, 1);
    this.#notices.tell(nearest, { type: "progress", rid, attempt, output_tokens });
  }

  #firstOutput({ envelope, receivedMs, cachedTokens }: Job, nowMs: number): void {
    const { rid, attempt } = envelope;
    this.#notices.tell(envelope.notify, {
      type: "first_output",
      rid,
      attempt,
      ttft_ms: nowMs - receivedMs,
      cached_tokens: cachedTokens,
    });
  }

  #onEnd(end: StepEnd): void {
    const job = this.#byKey.get(end.key);
    if (!job) return;
    const { finishReason, disaggregatedParams } = end;
    if (finishReason === "error") {
      // Whoever can take the request back is asked first; the outcome is told then.
      void this.#fail(job, end.error ?? new TiergridError("engine_error", "the engine gave up"));
      return;
    }
    if (job.held.length > 0) this.#output(job, { tokenIds: job.held, disaggregatedParams });
    const usage = {
      prompt_tokens: end.promptTokens,
      completion_tokens: end.outputTokens,
      prompt_tokens_details: { cached_tokens: end.cachedTokens },
    };
    job.stream.end({ finishReason, usage });
    this.#finish(job, "ok", finishReason);
  }

  async #fail(job: Job, error: TiergridError): Promise<void> {
    if (job.failing) return;
    job.failing = true;
    job.fetch?.abort();
    const { envelope, stream } = job;
    // Whoever takes the request back has to know that it was accepted.
    this.#notices.flushAll();
    if (job.outputTokens === 0 && (await offerBack(this.#options.bus, envelope, error))) {
      this.#takenBack(job);
      return;
    }
    stream.fail(error);
    this.#sender.flush();
    this.#finish(job, "error");
  }

  /** Another attempt has the request: this one's stream falls silent. */
  #takenBack(job: Job): void {
    if (!this.#remove(job)) return;
    const { rid, attempt } = job.envelope;
    this.totals.takenBack += 1;
    this.#sender.onControl({ type: "cancel", rid, attempt });
  }

  #onCancel(stream: SenderStream, cause: CancelCause): void {
    const job = this.#byRid.get(stream.envelope.rid);
    if (job?.stream !== stream) return;
    this.#options.engine.cancel(job.key);
    if (cause === "orphaned") this.totals.orphans += 1;
    if (cause === "cancelled") this.totals.cancelled += 1;
    this.#finish(job, outcomeOf[cause]);
    this.#options.onDropped();
  }

  #finish(job: Job, outcome: FinishedOutcome, finishReason?: FinishReason): void {
    if (!this.#remove(job)) return;
    const { clock, onFinished } = this.#options;
    const { rid, attempt, notify } = job.envelope;
    this.#notices.tell(notify, {
      type: "finished",
      rid,
      attempt,
      outcome,
      output_tokens: job.outputTokens,
      ...(finishReason ? { finish_reason: finishReason } : {}),
      ...(job.outputTokens > 1 ? { itl: job.itl.summary() } : {}),
    });
    onFinished(outcome, clock.nowMs() - job.receivedMs);
  }

  /** False when the job has ended already. */
  #remove(job: Job): boolean {
    const { rid } = job.envelope;
    if (this.#byRid.get(rid) === job) this.#byRid.delete(rid);
    job.fetch?.abort();
    return this.#byKey.delete(job.key);
  }

  #blocksOf(tokens: number): number {
    return Math.ceil(tokens / this.#blockSize);
  }
}

/** One token is what most requests get of a step; a list of one is made without a view. */
function tokensIn({ tokenIds }: EngineStep, start: number, end: number): number[] {
  if (end === start + 1) return [tokenIds[start] ?? 0];
  return Array.from(tokenIds.subarray(start, end));
}

function outdated({ rid, attempt }: Envelope): TiergridError {
  const message = `attempt ${attempt} of ${rid} is older than the one that runs here`;
  return new TiergridError("duplicate_request", message);
}
