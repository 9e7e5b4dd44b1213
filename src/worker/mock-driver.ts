/**
 * Runs the mock engine's ranks on a clock, virtual or real, behind the `Engine` interface.
 *
 *   rank 0   |── pass ──|─ pass ─|       engine time is continuous: the next pass is planned from
 *   rank 1      |──── pass ────|─ ...    the planned end, not from the wake that noticed it
 *   wakes              ^      ^ ^        one timer, at the earliest planned end
 *
 * A wake that comes late finishes every pass that is due, in order of planned ends, each with its
 * own events and tokens. A pass noticed more than `lateMaxMs` late is planned anew from the wake.
 * From idle, a pass starts at the zero-delay wake after the arrivals of that instant.
 */
import type { CancelTimer, Clock } from "../base/clock.ts";
import { sleep } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import type { BlockHasher } from "../protocol/block-hashes.ts";
import type { Engine, EngineCard, EngineLoad, EngineRequest, EngineSink } from "./engine.ts";
import { MockEngineCore } from "./mock-engine.ts";
import type { MockEngineConfig } from "./mock-engine-config.ts";
import type { MockFaults } from "./mock-faults.ts";
import { changeFaults, containsRun, noFaults } from "./mock-faults.ts";
import { handoffDelayMs, missingTransferMs } from "./mock-handoff.ts";
import type { MockEntry } from "./mock-output.ts";
import { cachedTokensOf, MockOutput } from "./mock-output.ts";
import type { MockPass } from "./mock-pass.ts";
import type { MockRequest, MockSubmission } from "./mock-request.ts";
import { handoffOf, refuse, submissionOf } from "./mock-submit.ts";
import { StepBuffer } from "./step-buffer.ts";

export interface MockDriverOptions {
  /** Worker name that handoffs carry. */
  readonly name: string;
  readonly model: string;
  readonly config: MockEngineConfig;
  readonly dpStart?: number;
  /** Profile to announce instead of the engine's own. */
  readonly announcedPerfModel?: unknown;
  readonly clock: Clock;
  /** Draws for faults. */
  readonly random: Random;
  readonly hasher: BlockHasher;
}

interface Rank {
  readonly dpRank: number;
  readonly core: MockEngineCore;
  pass: MockPass | undefined;
  /** Planned end of the pass, or when an idle rank looks for work; `Infinity` = not by itself. */
  dueMs: number;
}

const lateMaxMs = 50;
const workMaxMs = 10;

export class MockDriver implements Engine {
  readonly #options: MockDriverOptions;
  readonly #dpStart: number;
  readonly #ranks: readonly Rank[];
  readonly #entries = new Map<number, MockEntry>();
  readonly #output: MockOutput;
  readonly #step = new StepBuffer();
  #faults: MockFaults = noFaults;
  #tokensUntilHang = Number.POSITIVE_INFINITY;
  #staleLoad: readonly EngineLoad[] | undefined;
  #sink: EngineSink | undefined;
  #timer: CancelTimer | undefined;
  #timerAtMs = Number.POSITIVE_INFINITY;
  /** Passes that were planned anew because the process noticed them too late. */
  reanchors = 0;

  constructor(options: MockDriverOptions) {
    const { config } = options;
    this.#options = options;
    this.#dpStart = options.dpStart ?? 0;
    this.#output = new MockOutput(options.name, config, options.hasher);
    const output = {
      stops: (core: MockRequest) => this.#output.stops(this.#entryOf(core), core.generated),
      hashBlock: (core: MockRequest, block: number, into: Uint32Array) =>
        this.#output.hashBlock(this.#entryOf(core), core, block, into),
    };
    this.#ranks = Array.from({ length: config.dpSize }, (_, rank) => ({
      dpRank: this.#dpStart + rank,
      core: new MockEngineCore(config, output),
      pass: undefined,
      dueMs: Number.POSITIVE_INFINITY,
    }));
  }

  get card(): EngineCard {
    const { config, model } = this.#options;
    const limit = (value: number) => (Number.isFinite(value) ? value : undefined);
    return {
      model,
      role: config.workerType,
      blockSize: this.#faults.wrongBlockSize ?? config.blockSize,
      totalKvBlocks: config.numGpuBlocks,
      maxNumSeqs: limit(config.maxNumSeqs),
      maxNumBatchedTokens: limit(config.maxNumBatchedTokens),
      contextLength: limit(config.maxModelLen),
      dpStart: this.#dpStart,
      dpSize: config.dpSize,
      perfModel: this.#options.announcedPerfModel ?? config.perfModel,
    };
  }

  async start(sink: EngineSink): Promise<void> {
    await sleep(this.#options.clock, this.#options.config.startupTimeMs);
    this.#sink = sink;
  }

  async stop(): Promise<void> {
    this.#sink = undefined;
    this.#timer?.();
    this.#timer = undefined;
    for (const key of [...this.#entries.keys()]) this.cancel(key);
    for (const rank of this.#ranks) {
      if (rank.pass) rank.core.endPass();
      rank.pass = undefined;
      rank.dueMs = Number.POSITIVE_INFINITY;
    }
  }

  submit(request: EngineRequest): void {
    const { clock, config, random, hasher } = this.#options;
    if (!this.#sink) throw new TiergridError("not_ready", "mock engine: not started");
    if (this.#faults.rejectRate > 0 && random() < this.#faults.rejectRate) {
      throw new TiergridError("overloaded", "mock engine: refused by fault reject_rate");
    }
    if (this.#entries.has(request.key)) {
      throw new TiergridError("duplicate_request", `mock engine: key ${request.key} is running`);
    }
    const rank = this.#rankFor(request.dpRank);
    const handoff = handoffOf(request, config);
    const submission = submissionOf(request, config, hasher, clock.nowMs());
    const refusal = rank.core.refusal(submission);
    if (refusal && refusal !== "nothing_to_decode") {
      throw refuse(refusal, request.tokens.length, config);
    }
    const entry: MockEntry = {
      request,
      dpRank: rank.dpRank,
      firstToken: handoff?.first_token,
      core: undefined,
      started: false,
      cancelTimer: undefined,
    };
    this.#entries.set(request.key, entry);
    if (handoff && (refusal || this.#output.stops(entry, 1))) {
      entry.cancelTimer = clock.after(0, () => this.#endAtOnce(rank, entry));
      return;
    }
    const transferMs = handoff ? missingTransferMs(config, rank.core, submission) : 0;
    if (transferMs === 0) this.#queue(rank, entry, submission);
    else {
      entry.cancelTimer = clock.after(transferMs, () => {
        this.#queue(rank, entry, { ...submission, arrivedAtMs: clock.nowMs() });
      });
    }
  }

  cancel(key: number): void {
    const entry = this.#entries.get(key);
    if (!entry) return;
    this.#entries.delete(key);
    entry.cancelTimer?.();
    const rank = this.#rankAt(entry.dpRank);
    if (entry.core) rank.core.cancel(entry.core);
    this.#nudge(rank);
  }

  load(): readonly EngineLoad[] {
    return this.#staleLoad ?? this.#ranks.map(({ core, dpRank }) => core.load(dpRank));
  }

  get faults(): MockFaults {
    return this.#faults;
  }

  /** Changes faults while the engine runs; counts and freezes start anew. */
  setFaults(change: Partial<MockFaults>): void {
    const next = changeFaults(this.#faults, change);
    this.#staleLoad = next.staleLoad ? this.load() : undefined;
    this.#faults = next;
    this.#tokensUntilHang = next.hangAfterTokens ?? Number.POSITIVE_INFINITY;
    this.#arm();
  }

  /** Draws whether the events of a pass get lost; the worker asks once it has numbered them. */
  losesKvEvents(): boolean {
    return this.#options.random() < this.#faults.dropKvEvents;
  }

  /** Forgets the prefix cache of every rank that holds no block; answers whether all did. */
  clearCache(): boolean {
    let all = true;
    for (const { core, dpRank } of this.#ranks) {
      const event = core.clearCache();
      if (event) this.#sink?.onKvEvents(dpRank, [event]);
      else all = false;
    }
    return all;
  }

  #wake(): void {
    this.#timer = undefined;
    this.#timerAtMs = Number.POSITIVE_INFINITY;
    const startMs = this.#options.clock.nowMs();
    for (let nowMs = startMs; nowMs - startMs < workMaxMs; nowMs = this.#options.clock.nowMs()) {
      const rank = this.#earliest();
      if (this.#frozen || !this.#sink || rank.dueMs > nowMs) break;
      this.#advance(rank, nowMs);
    }
    this.#arm();
  }

  #advance(rank: Rank, nowMs: number): void {
    let atMs = nowMs;
    if (rank.pass) {
      if (nowMs - rank.dueMs > lateMaxMs) this.reanchors++;
      else atMs = rank.dueMs;
      rank.pass = undefined;
      rank.dueMs = atMs;
      this.#finishPass(rank, atMs);
    }
    if (!this.#frozen && this.#sink) this.#startPass(rank, atMs);
  }

  #startPass(rank: Rank, atMs: number): void {
    const pass = rank.core.startPass(atMs);
    if (!pass) {
      const arrivesMs = rank.core.waiting.head?.arrivedAtMs ?? 0;
      rank.dueMs = arrivesMs > atMs ? arrivesMs : Number.POSITIVE_INFINITY;
      return;
    }
    rank.pass = pass;
    rank.dueMs = atMs + pass.durationMs * this.#faults.slowFactor;
    if (pass.events.length > 0) this.#sink?.onKvEvents(rank.dpRank, pass.events);
    this.#reportAdmissions(rank, pass);
  }

  /** Token 0 of a decode leg exists before its first pass; it leaves when the engine takes it. */
  #reportAdmissions(rank: Rank, pass: MockPass): void {
    const step = this.#step;
    step.clear(rank.dpRank);
    for (const { request: core } of pass.admitted) {
      const entry = this.#entries.get(core.key);
      if (!entry) continue;
      const marker = this.#faults.crashOnMarker;
      if (marker && containsRun(entry.request.tokens, marker)) {
        this.#die();
        return;
      }
      if (core.generated === 1 && entry.firstToken !== undefined && !entry.started) {
        this.#pushToken(entry, 0);
      }
    }
    this.#deliver();
  }

  #finishPass(rank: Rank, atMs: number): void {
    const emitted = rank.core.endPass();
    this.#step.clear(rank.dpRank);
    for (const core of emitted) {
      const entry = this.#entryOf(core);
      this.#pushToken(entry, core.generated - 1);
      if (core.state === "held") this.#handOff(rank, entry, atMs);
      else if (core.state === "ended") this.#pushEnd(entry);
      else if (core.generated >= (this.#faults.errorAfterTokens ?? Number.POSITIVE_INFINITY)) {
        rank.core.cancel(core);
        this.#pushEnd(entry, new TiergridError("engine_error", "mock engine: injected fault"));
      }
    }
    this.#tokensUntilHang -= emitted.length;
    this.#deliver();
    if (!this.#staleLoad) this.#sink?.onLoad(rank.core.load(rank.dpRank));
  }

  /** The prefill leg ends when its KV has moved; until then its blocks stay held. */
  #handOff(rank: Rank, entry: MockEntry, atMs: number): void {
    const { clock, config } = this.#options;
    const full = config.kvTransferTimingMode === "full_prompt";
    const delayMs = full ? handoffDelayMs(config, entry.request.tokens.length) : 0;
    const finish = (): void => {
      if (entry.core) rank.core.releaseHeld(entry.core);
      this.#pushEnd(entry);
    };
    if (delayMs === 0) {
      finish();
      return;
    }
    entry.cancelTimer = clock.after(atMs + delayMs - clock.nowMs(), () => {
      this.#step.clear(rank.dpRank);
      finish();
      this.#deliver();
      this.#nudge(rank);
    });
  }

  /** A decode leg with nothing left to compute: its only token is the prefill's. */
  #endAtOnce(rank: Rank, entry: MockEntry): void {
    this.#step.clear(rank.dpRank);
    this.#pushToken(entry, 0);
    this.#pushEnd(entry);
    this.#deliver();
  }

  #pushToken(entry: MockEntry, index: number): void {
    const { key } = entry.request;
    if (!entry.started) {
      entry.started = true;
      this.#step.started.push({ key, cachedTokens: cachedTokensOf(entry) });
    }
    this.#step.pushToken(key, index, this.#output.token(entry, index));
  }

  #pushEnd(entry: MockEntry, error?: TiergridError): void {
    this.#entries.delete(entry.request.key);
    this.#step.ended.push(this.#output.endOf(entry, error));
  }

  #deliver(): void {
    if (!this.#step.empty) this.#sink?.onStep(this.#step);
  }

  #queue(rank: Rank, entry: MockEntry, submission: MockSubmission): void {
    const answer = rank.core.submit(submission);
    entry.cancelTimer = undefined;
    if (typeof answer === "string") {
      this.#step.clear(rank.dpRank);
      this.#pushEnd(entry, refuse(answer, submission.promptTokens, this.#options.config));
      this.#deliver();
      return;
    }
    entry.core = answer;
    this.#nudge(rank);
  }

  /** An idle rank looks for work once the tasks of this instant are done. */
  #nudge(rank: Rank): void {
    if (rank.pass || rank.core.waiting.count + rank.core.running.length === 0) return;
    rank.dueMs = Math.min(rank.dueMs, this.#options.clock.nowMs());
    this.#arm();
  }

  #arm(): void {
    if (this.#frozen || !this.#sink) return;
    const { dueMs } = this.#earliest();
    if (this.#timer && this.#timerAtMs <= dueMs) return;
    this.#timer?.();
    this.#timer = undefined;
    this.#timerAtMs = dueMs;
    if (dueMs === Number.POSITIVE_INFINITY) return;
    const delayMs = Math.max(0, dueMs - this.#options.clock.nowMs());
    this.#timer = this.#options.clock.after(delayMs, () => this.#wake());
  }

  get #frozen(): boolean {
    return this.#faults.freeze || this.#tokensUntilHang <= 0;
  }

  #die(): void {
    const sink = this.#sink;
    void this.stop(); // Synchronous in effect; nothing to wait for.
    sink?.onDeath(new TiergridError("worker_lost", "mock engine: crashed on a marker"));
  }

  /** The rank a request names, else the one with the least to do, the lowest on ties. */
  #rankFor(dpRank: number | undefined): Rank {
    if (dpRank !== undefined) return this.#rankAt(dpRank);
    let least = this.#ranks[0] as Rank;
    for (const rank of this.#ranks) if (requestsAt(rank) < requestsAt(least)) least = rank;
    return least;
  }

  #rankAt(dpRank: number): Rank {
    const rank = this.#ranks[dpRank - this.#dpStart];
    if (rank) return rank;
    const last = this.#dpStart + this.#ranks.length - 1;
    const message = `dp_rank: expected ${this.#dpStart} to ${last}, got ${dpRank}`;
    throw new TiergridError("invalid_request", message);
  }

  #earliest(): Rank {
    let earliest = this.#ranks[0] as Rank;
    for (const rank of this.#ranks) if (rank.dueMs < earliest.dueMs) earliest = rank;
    return earliest;
  }

  #entryOf(core: MockRequest): MockEntry {
    const entry = this.#entries.get(core.key);
    if (entry) return entry;
    throw new TiergridError("internal_error", `mock engine: request ${core.key} is not known`);
  }
}

function requestsAt({ core }: Rank): number {
  return core.running.length + core.waiting.count;
}
