/**
 * The global router: one process part that turns requests into pools.
 *
 *   discovery ──▶ PoolHealth ──▶ policy ◀──▶ Dispatcher ◀── tg.global.<inst>.gen, public endpoints
 *                     ▲             │ decisions
 *   offer ──▶ GridVersions          └──▶ ring ◀── explain, closed notices (attainment)
 *
 * It starts without any pool and serves each as it appears; nothing here ever ends the process.
 */
import type { Clock } from "../base/clock.ts";
import type { TiergridError } from "../base/errors.ts";
import { type Random, randomId } from "../base/random.ts";
import type { PoolConfig } from "../config/pool-config.ts";
import { newRetryBudget } from "../core/retry-budget.ts";
import type { SlaDefaults } from "../core/sla-targets.ts";
import type { BlockHasher } from "../protocol/block-hashes.ts";
import type { Notice } from "../protocol/notices.ts";
import type { Dispatch } from "../protocol/requests.ts";
import {
  endpointQueue,
  endpointSubject,
  heartbeatsOf,
  type RouterQuestion,
} from "../protocol/subjects.ts";
import { announce, newEpoch } from "../runtime/announce.ts";
import type { Bus, BusMessage, Subscription } from "../runtime/bus.ts";
import { watchInstances } from "../runtime/discovery.ts";
import type { DispatcherTotals } from "../runtime/dispatch-policy.ts";
import { Dispatcher } from "../runtime/dispatcher.ts";
import type { EchoGate } from "../runtime/echo-gate.ts";
import type { Health } from "../runtime/health-server.ts";
import type { Log } from "../runtime/log.ts";
import { type EndpointCounters, startMicroService } from "../runtime/micro-service.ts";
import { countClosed, type Scorer } from "./attainment.ts";
import { DecisionRing } from "./decision-ring.ts";
import {
  counted,
  explainKept,
  explainMessage,
  explainRequest,
  jsonOf,
  passThresholds,
  serveQuery,
} from "./global-endpoints.ts";
import { createGlobalPolicy, type GlobalRequest, heardQueued } from "./global-policy.ts";
import { createGridControl, type GridControl } from "./grid-control.ts";
import { createLiveChoice } from "./live-choice.ts";
import type { PoolDecision } from "./pool-decision.ts";
import { type ActiveConfig, PoolHealth, phaseOfRole } from "./pool-health.ts";
import { createRequestSeries } from "./request-series.ts";
import { collectGlobal, countCondition, type GlobalMetrics } from "./router-metrics.ts";
import {
  cardOf,
  healthOf,
  isReady,
  type PoolInfo,
  poolInfo,
  type RouterState,
  type StatusSource,
} from "./router-status.ts";

export interface GlobalRouterOptions {
  readonly bus: Bus;
  readonly clock: Clock;
  /** For what may wait; absent = `clock`. */
  readonly ticks?: Clock;
  readonly random: Random;
  readonly gate: EchoGate;
  readonly log: Log;
  readonly metrics: GlobalMetrics;
  readonly config: PoolConfig;
  /** Hashes the prompts that pools are asked about. */
  readonly blockHasher: BlockHasher;
  /** Warnings of the config file. */
  readonly warnings?: number;
  /** Share of requests, 0 to 100, that a new config gets before it is promoted; 0 swaps at once. */
  readonly canaryPercent?: number;
  readonly model: string;
  readonly namespace: string;
  readonly component: string;
  readonly defaults: SlaDefaults;
  readonly acceptTimeoutMs: number;
  readonly poolWaitMs: number;
  readonly requireAllPools: boolean;
  readonly overloadHoldMs: number;
  /** Semantic version of this build. */
  readonly version: string;
}

export interface GlobalRouter {
  readonly inst: string;
  readonly totals: Readonly<DispatcherTotals>;
  /** Requests in the books. */
  readonly openRequests: number;
  /** True when every role has a ready pool (or every pool is), on a live bus, not draining. */
  ready(): boolean;
  /** The body of `/health`. */
  health(): Health;
  /** The answer of `pool_info`. */
  pools(): PoolInfo;
  /** What would happen to a request; see `global-endpoints.ts`. */
  explain(dispatch: Dispatch): Promise<object>;
  /** What happened to one; rejects with `not_found` when the decision is not kept. */
  explainKept(decisionId: string): Promise<object>;
  /** Takes another config, answers operators; requests under way keep the config they have. */
  readonly grids: GridControl;
  /** Refuses new requests; resolves when none is being placed, or at `graceMs`. */
  drain(graceMs: number): Promise<void>;
  close(): Promise<void>;
}

/** The parts that belong to one running router. */
interface Parts extends StatusSource {
  readonly options: GlobalRouterOptions;
  readonly ring: DecisionRing;
}

export function startGlobalRouter(options: GlobalRouterOptions): GlobalRouter {
  const { bus, clock, ticks = clock, random, gate, log, metrics, config, model } = options;
  const inst = String(randomId(random));
  const table = watchInstances({
    ...{ bus, clock: ticks, gate, subject: heartbeatsOf("local") },
    accept: ({ kind }) => kind === "local",
  });
  let beat = (): void => {};
  const health = new PoolHealth({
    clock: ticks,
    random,
    table,
    log,
    model,
    overloadHoldMs: options.overloadHoldMs,
    onCondition: (pool, condition) => {
      countCondition(metrics, pool, condition);
      beat();
    },
  });
  const { warnings = 0, canaryPercent = 0 } = options;
  const grid = { clock, log, metrics, model, health, config, warnings, canaryPercent };
  const grids = createGridControl(grid);
  const state: RouterState = {
    get active() {
      return grids.versions.inForce.active;
    },
    draining: false,
  };
  const budget = newRetryBudget(clock.nowMs());
  const ring = new DecisionRing();
  const parts: Parts = { options, inst, health, grids, budget, ring, state };
  const endpoints = serveEndpoints(parts);
  collectGlobal({
    metrics,
    clock,
    health,
    dispatcher: endpoints.dispatcher,
    active: () => state.active,
  });
  const card = cardOf(parts, newEpoch(random));
  const announcer = announce({ bus, clock: ticks, random, card });
  beat = announcer.beatNow;
  return {
    inst,
    totals: endpoints.dispatcher.totals,
    get openRequests() {
      return endpoints.dispatcher.entries.size;
    },
    ready: () => isReady(parts),
    health: () => healthOf(parts),
    pools: () => poolInfo(parts),
    explain: endpoints.explain,
    explainKept: endpoints.explainKept,
    grids,
    drain: async (graceMs) => {
      state.draining = true;
      announcer.beatNow();
      endpoints.withdraw();
      await endpoints.dispatcher.drain(graceMs);
    },
    close: () => {
      state.draining = true;
      announcer.goodbye();
      endpoints.close();
      health.close();
      table.stop();
      return Promise.resolve();
    },
  };
}

interface Endpoints {
  readonly dispatcher: Dispatcher<GlobalRequest>;
  readonly explain: GlobalRouter["explain"];
  readonly explainKept: GlobalRouter["explainKept"];
  /** Leaves the public endpoints; requests of callers that know the instance still arrive. */
  withdraw(): void;
  close(): void;
}

function serveEndpoints(parts: Parts): Endpoints {
  const { options, inst, health, grids, budget, ring, state } = parts;
  const { bus, clock, namespace, component, metrics, version } = options;
  const service = startMicroService({
    bus,
    clock,
    name: "tiergrid-global",
    id: inst,
    version,
    description: "Chooses a pool for a request by its SLA",
    metadata: { model: options.model, mode: state.active.config.mode },
  });
  const counters = new Map<string, EndpointCounters>();
  const onEnded = ({ phase }: PoolDecision, durationMs: number, error?: TiergridError): void =>
    counters.get(phase)?.count(durationMs, error);
  const live = createLiveChoice({ bus, clock, health, hasher: options.blockHasher });
  const { versions } = grids;
  const active = (rid?: string): ActiveConfig =>
    rid === undefined ? versions.inForce.active : versions.activeFor(rid);
  const series = createRequestSeries(metrics, options.model);
  const scorer: Scorer = { clock, log: options.log, metrics, series, versions };
  const context = { ...options, health, ring, live, budget, active, series, scorer, onEnded };
  const policy = createGlobalPolicy(context);
  const onNotice = (notice: Notice): void => {
    if (notice.type === "queued") {
      const entry = dispatcher.entries.get(notice.rid);
      if (entry && notice.attempt >= entry.attempt) heardQueued(entry.state);
    }
    // `closed` mostly comes after `finished`, when the dispatcher has no entry for it any more.
    if (notice.type !== "closed") return;
    series.closed(countClosed(scorer, ring, notice)).add(1);
  };
  const dispatcher = new Dispatcher({ ...options, inst, level: "global", policy, onNotice });
  const subscriptions: Subscription[] = [];
  for (const { role } of state.active.config.roles) {
    const endpoint = role === "agg" ? "generate" : `${role}_generate`;
    const subject = endpointSubject({ namespace, component, endpoint });
    const phase = phaseOfRole[role];
    counters.set(phase, service.addEndpoint({ name: endpoint, subject }));
    const receive = (message: BusMessage): void => dispatcher.receive(message, phase);
    subscriptions.push(bus.subscribe(subject, receive, endpointQueue));
  }
  const answers: Readonly<Partial<Record<RouterQuestion, (message: BusMessage) => unknown>>> = {
    pool_info: () => poolInfo(parts),
    explain: (message) => explainMessage(context, message),
    thresholds: (message) => passThresholds(context, message),
    grid: (message) => grids.answer(jsonOf(message), "bus"),
    cells: (message) => grids.cells(jsonOf(message)),
  };
  for (const [endpoint, answer] of Object.entries(answers)) {
    const path = { namespace, component, inst, endpoint: endpoint as RouterQuestion };
    subscriptions.push(serveQuery(context, service, path, answer));
  }
  const withdraw = (): void => {
    for (const subscription of subscriptions.splice(0)) subscription.unsubscribe();
  };
  return {
    dispatcher,
    explain: (dispatch) => counted(context, () => explainRequest(context, dispatch)),
    explainKept: (id) => counted(context, () => explainKept(context, id)),
    withdraw,
    close: () => {
      withdraw();
      service.stop();
      dispatcher.close();
    },
  };
}
