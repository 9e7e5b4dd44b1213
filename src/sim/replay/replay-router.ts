/**
 * The local router of one replayed pool without its bus: the choice tables, index and load book
 * that the process `tiergrid local` has, fed by the engines of the run.
 *
 *   arrival ──▶ choose ─▶ worker      first token, end ──▶ book
 *                 ▲                   KV events ─────────▶ index (identity: engines use our hashes)
 */
import { TiergridError } from "../../base/errors.ts";
import { mulberry32, type Random } from "../../base/random.ts";
import { choiceSettings, defaultKvRouterConfig } from "../../config/kv-router-config.ts";
import { defaultFit, type FitRules } from "../../core/best-fit.ts";
import {
  type ChoiceRequest,
  type ChoiceSettings,
  type ChoiceTables,
  choiceTables,
  latencyChoiceTables,
} from "../../core/choice.ts";
import { createKvIndex } from "../../core/create-kv-index.ts";
import { chooseAndBook, explain } from "../../core/decision.ts";
import {
  type Decision,
  type DecisionRecorder,
  recordCheapest,
} from "../../core/decision-record.ts";
import type { KvIndex } from "../../core/kv-index.ts";
import { LatencyBook } from "../../core/latency-book.ts";
import type { LatencyWeights } from "../../core/latency-cost.ts";
import { ShapeLatency } from "../../core/latency-model.ts";
import type { PerfModel } from "../../core/perf-model.ts";
import type { Quote } from "../../core/quote-choice.ts";
import { WorkerLoad } from "../../core/worker-load.ts";
import { WorkerRoster } from "../../core/worker-roster.ts";
import { quoteOf } from "../../global-router/pool-quotes.ts";
import { quoteJson } from "../../local-router/latency-quote.ts";
import type { EngineKvEvent } from "../../worker/engine.ts";
import type { MockEngineConfig } from "../../worker/mock-engine-config.ts";
import { type Policy, type PolicyRequest, uncachedTokens, type WorkerViews } from "./policies.ts";
import { type PolicyKind, type PolicyName, policyTable } from "./policy-table.ts";

export interface ReplayRouterOptions {
  readonly policy: PolicyName;
  readonly workers: number;
  readonly engine: MockEngineConfig;
  readonly seed: number;
  /** What the router believes of the engines at first; the truth when left out. */
  readonly profile?: PerfModel | undefined;
  readonly predictions?: boolean | undefined;
  readonly late?: LateWorkers | undefined;
  readonly herdGuard?: boolean | undefined;
  /** Of one worker; 1 when left out. */
  readonly gpus?: number | undefined;
  /** In place of the policy's weights, where it prices in milliseconds. */
  readonly weights?: LatencyWeights | undefined;
  readonly fit?: FitRules | undefined;
  /** Routers of all pools of the run, when all are made; for caches that all share. */
  readonly routers?: readonly ReplayRouter[] | undefined;
}

/** The last `count` workers of a pool get no request before `joinMs`. */
export interface LateWorkers {
  readonly count: number;
  readonly joinMs: number;
}

export interface ReplayArrival extends PolicyRequest {
  /** Unique among the run's requests. */
  readonly key: string;
  /** Target that the worker has to fit best, where choices are priced in milliseconds. */
  readonly fitTargetMs?: number | undefined;
  /** It may be held for its turn: sent when `nextHeld` says so. */
  readonly mayWait?: boolean;
}

/** A request that the router holds. */
export interface HeldArrival {
  readonly key: string;
  readonly atMs: number;
}

interface LateEvent {
  readonly worker: number;
  readonly event: EngineKvEvent;
  readonly visibleMs: number;
}

/** Delivered events that are kept before the list is cut. */
const deliveredMax = 1024;
const noConstraints = {};
const noTargets = {
  ttftTargetMs: undefined,
  itlTargetMs: undefined,
  expectedOutputTokens: undefined,
};
const noBlocks = new Uint32Array(0);

export class ReplayRouter {
  /** False when the policy never asks what is cached: then nobody need report it. */
  readonly usesIndex: boolean;
  /** Time to first token that the latest choice expects; `NaN` where none is predicted or kept. */
  predictedMs: number = Number.NaN;
  readonly #index: KvIndex;
  readonly #load: WorkerLoad;
  readonly #tables: ChoiceTables;
  readonly #settings: ChoiceSettings;
  readonly #tracksBlocks: boolean;
  /** Of each prompt, beside its full blocks. */
  readonly #privateBlocks: number;
  readonly #sharesCache: boolean;
  readonly #random: Random;
  /** Of ties in quotes: asking does not disturb the choices. */
  readonly #quoteRandom: Random;
  readonly #routers: readonly ReplayRouter[];
  readonly #gpus: number;
  readonly #depths: Int32Array;
  readonly #views: Mutable<WorkerViews>;
  readonly #policy: Policy | undefined;
  readonly #record: DecisionRecorder | undefined;
  readonly #engine: MockEngineConfig;
  readonly #workerIds: readonly string[];
  readonly #lateMs: number;
  /** Events on their way, in order; the first `#delivered` have arrived. */
  readonly #events: LateEvent[] = [];
  #delivered = 0;
  #stored: Uint32Array = new Uint32Array(256);

  constructor(options: ReplayRouterOptions) {
    const { policy, workers, engine, seed, late } = options;
    const kind: PolicyKind = policyTable[policy];
    const tableRandom = mulberry32(seed + 1);
    this.#random = mulberry32(seed);
    this.#quoteRandom = mulberry32(seed + 3);
    this.#routers = options.routers ?? [];
    this.#gpus = options.gpus ?? 1;
    this.#index = createKvIndex({ mode: "identity", random: tableRandom, chain: () => {} });
    this.#load = new WorkerLoad(tableRandom);
    const workerIds = Array.from({ length: workers }, (_, worker) => String(worker));
    for (const workerId of workerIds) this.#load.addHolder(this.#index.holder(workerId, 0));
    this.#tables = tablesOf(kind, options, workerIds, this.#load);
    const booksEveryBlock = kind.type === "router" && kind.booksEveryBlock === true;
    this.#tracksBlocks = booksEveryBlock || engine.workerType !== "prefill";
    this.#privateBlocks = booksEveryBlock ? 1 : 0;
    this.#settings = settingsOf(kind, engine, options.herdGuard ?? true);
    this.#sharesCache = kind.type === "router" && kind.sharesCache === true;
    this.usesIndex = kind.type === "router" ? kind.workerPolicy === "blocks" : kind.usesIndex;
    this.#depths = new Int32Array(workers);
    this.#views = {
      count: 0,
      overlapBlocks: this.#depths,
      cachedBlocks: new Float64Array(workers),
      pendingTokens: this.#load.prefillTokens,
      inFlight: this.#load.activeRequests,
      processed: new Float64Array(workers),
      engineWaiting: new Float64Array(workers),
      engineKvUsage: new Float64Array(workers),
    };
    if (options.predictions && this.#tables.latency) {
      this.#record = (made) => {
        this.predictedMs = predictionOf(recordCheapest(this.#tables, made, 1));
      };
    }
    this.#policy = kind.type === "baseline" ? kind.create({ workerIds, engine }) : undefined;
    this.#engine = engine;
    this.#workerIds = workerIds;
    this.#lateMs = late?.joinMs ?? 0;
    this.#join(workers - (late?.count ?? 0));
  }

  /** From here on the first `count` workers may be chosen. */
  #join(count: number): void {
    const { numGpuBlocks: totalKvBlocks } = this.#engine;
    for (let slot = this.#views.count; slot < count; slot++) {
      const workerId = this.#workerIds[slot] as string;
      this.#tables.roster.set(slot, { workerId, taints: new Set(), totalKvBlocks }, 0);
    }
    this.#views.count = count;
  }

  /** Chooses a worker and books the request there. */
  choose(arrival: ReplayArrival): number {
    const { length: workers } = this.#workerIds;
    if (this.#views.count < workers && arrival.nowMs >= this.#lateMs) this.#join(workers);
    if (this.usesIndex) {
      this.#overlap(arrival);
      for (let worker = 0; worker < this.#views.count; worker++) {
        this.#views.cachedBlocks[worker] = this.#index.blocksOf(worker);
      }
    }
    const worker = this.#policy ? this.#chooseBy(this.#policy, arrival) : this.#chooseOwn(arrival);
    this.#views.processed[worker] = (this.#views.processed[worker] ?? 0) + 1;
    return worker;
  }

  /**
   * What `choose` would answer and what it would take, as the pool's router tells the tier above;
   * throws `internal_error` where choices are not priced in milliseconds.
   */
  quote(arrival: ReplayArrival): Quote {
    const { latency: book } = this.#tables;
    if (!book) throw new TiergridError("internal_error", "replay: this policy gives no quotes");
    if (this.usesIndex) this.#overlap(arrival);
    const decision = explain(this.#tables, this.#requestOf(arrival), this.#quoteRandom);
    return quoteOf(quoteJson({ book, gpus: this.#gpus }, decision, noTargets));
  }

  /** Requests at its workers, as it has booked them. */
  get inFlight(): number {
    return this.#load.activeRequests.subarray(0, this.#views.count).reduce((a, b) => a + b, 0);
  }

  isHeld(key: string): boolean {
    return this.#tables.latency?.isHeld(key) ?? false;
  }

  /** What is sent next to a worker; undefined = nothing is held for it. */
  nextHeld(worker: number, nowMs: number): HeldArrival | undefined {
    const key = this.#tables.latency?.nextHeld(worker);
    if (key === undefined) return undefined;
    return { key, atMs: this.#tables.latency?.releaseAtMs(key, nowMs) ?? nowMs };
  }

  release(key: string, nowMs: number): void {
    this.#tables.latency?.release(key, nowMs);
  }

  firstToken(key: string, nowMs: number, cachedTokens: number): void {
    this.#load.markPrefillCompleted(key, nowMs, cachedTokens);
  }

  /** A stream has this many tokens by now. */
  decoded(key: string, tokens: number, nowMs: number): void {
    this.#tables.latency?.decoded(key, tokens, nowMs);
  }

  /** An answer is over; `tokens` is 0 for one that was refused. */
  ended(key: string, tokens: number, nowMs: number): void {
    this.#tables.latency?.answered(key, tokens, nowMs);
    this.#load.free(key, nowMs);
  }

  /** Leading blocks that an engine of the pool need not compute, wherever they are cached. */
  sharedBlocks(sequence: Uint32Array, nowMs: number): number {
    return this.#sharesCache ? this.#longest(sequence, nowMs) : 0;
  }

  reported(worker: number, waiting: number, kvUsage: number): void {
    this.#views.engineWaiting[worker] = waiting;
    this.#views.engineKvUsage[worker] = kvUsage;
  }

  /** An event that the router hears of at `visibleMs`; times never go back. */
  kvEvent(worker: number, event: EngineKvEvent, visibleMs: number): void {
    this.#events.push({ worker, event, visibleMs });
  }

  /** Fills the overlaps as a choice sees them. */
  #overlap({ sequence, nowMs }: ReplayArrival): void {
    this.#match(sequence, nowMs);
    if (this.#sharesCache) this.#depths.fill(this.#longest(sequence, nowMs));
  }

  /** Longest overlap in any pool. */
  #longest(sequence: Uint32Array, nowMs: number): number {
    let longest = this.#match(sequence, nowMs);
    for (const router of this.#routers) {
      if (router !== this) longest = Math.max(longest, router.#match(sequence, nowMs));
    }
    return longest;
  }

  /** Fills the overlaps as of now and answers the longest. */
  #match(sequence: Uint32Array, nowMs: number): number {
    this.#deliver(nowMs);
    return this.#index.match(sequence, sequence.length >> 1, this.#depths);
  }

  #deliver(nowMs: number): void {
    const events = this.#events;
    while (this.#delivered < events.length) {
      const next = events[this.#delivered] as LateEvent;
      if (next.visibleMs > nowMs) break;
      this.#apply(next);
      this.#delivered++;
    }
    if (this.#delivered < Math.min(events.length, deliveredMax)) return;
    events.splice(0, this.#delivered);
    this.#delivered = 0;
  }

  #apply({ worker, event }: LateEvent): void {
    switch (event.type) {
      case "stored": {
        const { parent } = event;
        const above = parent ? { lo: parent[0] ?? 0, hi: parent[1] ?? 0 } : undefined;
        this.#index.store(worker, above, this.#blocksOf(event.sequenceHashes));
        break;
      }
      case "removed":
        this.#index.remove(worker, event.sequenceHashes);
        break;
      case "cleared":
        this.#index.clear(worker);
        break;
    }
  }

  #chooseOwn(arrival: ReplayArrival): number {
    const request = this.#requestOf(arrival);
    const choice = chooseAndBook(this.#tables, request, this.#random, this.#record);
    if (choice.outcome === "chosen") return choice.slot;
    throw new TiergridError("internal_error", `replay: no worker was chosen: ${choice.code}`);
  }

  #requestOf({ key, nowMs, inputTokens, sequence, ...more }: ReplayArrival): ChoiceRequest {
    return {
      key,
      nowMs,
      islTokens: inputTokens,
      sequence: this.#tracksBlocks ? sequence : noBlocks,
      promptHashes: sequence,
      privateBlocks: this.#privateBlocks,
      overlap: { device: this.#depths },
      constraints: noConstraints,
      fitTargetMs: more.fitTargetMs,
      mayWait: more.mayWait,
      settings: this.#settings,
    };
  }

  #chooseBy(policy: Policy, arrival: ReplayArrival): number {
    const worker = policy(arrival, this.#views, this.#random);
    const booked = this.#load.add({
      key: arrival.key,
      slot: worker,
      nowMs: arrival.nowMs,
      sequence: noBlocks,
      privateBlocks: 0,
      prefillTokens: uncachedTokens(arrival, this.#depths[worker] ?? 0),
      expectedPrefillMs: 0,
    });
    if (booked === "ok") return worker;
    throw new TiergridError("internal_error", `replay: the request was not booked: ${booked}`);
  }

  /** The index's form of stored blocks: four words each, of which `identity` reads the last two. */
  #blocksOf(sequenceHashes: Uint32Array): Uint32Array {
    const words = 2 * sequenceHashes.length;
    if (this.#stored.length < words) this.#stored = new Uint32Array(2 * words);
    for (let at = 0; at < sequenceHashes.length; at += 2) {
      this.#stored[2 * at + 2] = sequenceHashes[at] ?? 0;
      this.#stored[2 * at + 3] = sequenceHashes[at + 1] ?? 0;
    }
    return this.#stored.subarray(0, words);
  }
}

function predictionOf({ choice, candidates }: Decision): number {
  if (choice.outcome === "refused") return Number.NaN;
  const terms = candidates.find(({ workerId }) => workerId === choice.workerId)?.terms;
  return terms?.mode === "latency" ? terms.ttftMs : Number.NaN;
}

type Mutable<Fields> = { -readonly [Name in keyof Fields]: Fields[Name] };

function tablesOf(
  kind: PolicyKind,
  { engine, seed, profile, gpus = 1, weights, fit }: ReplayRouterOptions,
  workerIds: readonly string[],
  load: WorkerLoad,
): ChoiceTables {
  const { numGpuBlocks, blockSize, maxNumBatchedTokens, workerType: role } = engine;
  const roster = new WorkerRoster();
  const tables = choiceTables(roster, load);
  if (kind.type === "baseline") return tables;
  if (!kind.latency) return kind.costMode ? { ...tables, costMode: kind.costMode } : tables;
  const limits = { capacityTokens: numGpuBlocks * blockSize, batchTokens: maxNumBatchedTokens };
  const believed = kind.sharesCache ? engine.perf : (profile ?? engine.perf);
  const shape = new ShapeLatency(believed, limits, false, kind.learns ?? true);
  const random = mulberry32(seed + 2);
  const { holds } = fit ?? defaultFit;
  const book = new LatencyBook({ role, blockSize, load, random, plans: kind.plans, holds });
  for (const slot of workerIds.keys()) book.addHolder(slot, shape);
  return latencyChoiceTables(roster, load, { book, weights: weights ?? kind.latency, gpus, fit });
}

function settingsOf(
  kind: PolicyKind,
  engine: MockEngineConfig,
  routerHerdGuard: boolean,
): ChoiceSettings {
  const override = kind.type === "router" ? kind.override : {};
  return choiceSettings({ ...defaultKvRouterConfig, routerHerdGuard }, override, {
    blockSize: engine.blockSize,
    policy: kind.type === "router" ? kind.workerPolicy : "blocks",
    decodeOnly: false,
  });
}
