/**
 * The global router: one process part that turns requests into pools.
 *
 *   discovery ──▶ PoolHealth ──▶ policy ◀──▶ Dispatcher ◀── tg.global.<inst>.gen, public endpoints
 *                     ▲             │ decisions
 *   reload ──▶ ActiveConfig         └──▶ ring ◀── explain, closed notices (attainment)
 *
 * It starts without any pool and serves each as it appears; nothing here ever ends the process.
 */
import type { Clock } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import { type Random, randomId } from "../base/random.ts";
import type { PoolConfig } from "../config/pool-config.ts";
import type { SlaDefaults } from "../core/sla-targets.ts";
import type { Notice } from "../protocol/notices.ts";
import type { Dispatch } from "../protocol/requests.ts";
import { endpointQueue, endpointSubject, type RouterQuestion } from "../protocol/subjects.ts";
import { announce, newEpoch } from "../runtime/announce.ts";
import type { Bus, BusMessage, Subscription } from "../runtime/bus.ts";
import { watchInstances } from "../runtime/discovery.ts";
import type { DispatcherTotals } from "../runtime/dispatch-policy.ts";
import { Dispatcher } from "../runtime/dispatcher.ts";
import type { EchoGate } from "../runtime/echo-gate.ts";
import type { Health } from "../runtime/health-server.ts";
import type { Log } from "../runtime/log.ts";
import { type EndpointCounters, startMicroService } from "../runtime/micro-service.ts";
import { countClosed } from "./attainment.ts";
import {
  counted,
  explainKept,
  explainMessage,
  explainRequest,
  passThresholds,
  serveQuery,
} from "./global-endpoints.ts";
import { createGlobalPolicy, type GlobalRequest, heardQueued } from "./global-policy.ts";
import { DecisionRing, type PoolDecision } from "./pool-decision.ts";
import { type ActiveConfig, PoolHealth, phaseOfRole } from "./pool-health.ts";
import {
  collectGlobal,
  countCondition,
  declarePools,
  type GlobalMetrics,
} from "./router-metrics.ts";
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
  readonly random: Random;
  readonly gate: EchoGate;
  readonly log: Log;
  readonly metrics: GlobalMetrics;
  readonly config: PoolConfig;
  /** Warnings of the config file. */
  readonly warnings?: number;
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
  /**
   * Puts another config in force; requests under way keep theirs. Throws `config_invalid` for
   * another mode, which needs a restart.
   */
  reload(config: PoolConfig, warnings?: number): "applied" | "unchanged";
  /** Counts a file that was not put in force. */
  reloadRejected(errors: number): void;
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
  const { bus, clock, random, gate, log, metrics, config, model } = options;
  const inst = String(randomId(random));
  const table = watchInstances({ bus, clock, gate, accept: ({ kind }) => kind === "local" });
  let beat = (): void => {};
  const health = new PoolHealth({
    clock,
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
  const state = firstState(options, health.activate(config));
  const parts: Parts = { options, inst, health, ring: new DecisionRing(), state };
  countConfig(parts, undefined);
  const endpoints = serveEndpoints(parts);
  collectGlobal({
    metrics,
    clock,
    health,
    dispatcher: endpoints.dispatcher,
    active: () => state.active,
  });
  const card = cardOf(parts, newEpoch(random));
  const announcer = announce({ bus, clock, random, card });
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
    reload: (next, warnings = 0) => reload(parts, next, warnings),
    reloadRejected: (errors) => countReload(parts, "rejected", errors),
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

function firstState(
  { clock, warnings = 0 }: GlobalRouterOptions,
  active: ActiveConfig,
): RouterState {
  return { active, loadedWallMs: clock.wallMs(), warnings, lastReload: null, draining: false };
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
  const { options, inst, health, ring, state } = parts;
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
  const context = { ...options, health, ring, active: () => state.active, onEnded };
  const policy = createGlobalPolicy(context);
  const onNotice = (notice: Notice): void => {
    if (notice.type === "queued") {
      const entry = dispatcher.entries.get(notice.rid);
      if (entry && notice.attempt >= entry.attempt) heardQueued(entry.state);
    }
    // `closed` mostly comes after `finished`, when the dispatcher has no entry for it any more.
    if (notice.type !== "closed") return;
    const state = countClosed(metrics, ring, notice);
    metrics.counter("tiergrid_lifecycle_notices_total", { kind: "closed", state }).add(1);
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

function reload(parts: Parts, next: PoolConfig, warnings: number): "applied" | "unchanged" {
  const { options, health, state } = parts;
  const before = state.active;
  if (next.mode !== before.config.mode) {
    countReload(parts, "rejected", 1);
    const message = `mode ${before.config.mode} cannot become ${next.mode} without a restart`;
    throw new TiergridError("config_invalid", message);
  }
  if (next.version === before.config.version) {
    countReload(parts, "unchanged", 0);
    return "unchanged";
  }
  state.active = health.activate(next);
  state.loadedWallMs = options.clock.wallMs();
  state.warnings = warnings;
  countConfig(parts, before);
  countReload(parts, "applied", 0);
  options.log.info("pool config applied", { config_version: next.version, warnings });
  return "applied";
}

function countReload({ options, state }: Parts, result: string, errors: number): void {
  const { metrics, clock } = options;
  state.lastReload = { result, at: new Date(clock.wallMs()).toISOString() };
  metrics.counter("tiergrid_config_reloads_total", { kind: "pool", result }).add(1);
  metrics.gauge("tiergrid_config_errors", { kind: "pool" }).set(errors);
}

function countConfig({ options, state }: Parts, before: ActiveConfig | undefined): void {
  const { metrics, model } = options;
  const { active, loadedWallMs, warnings } = state;
  const kind = "pool";
  if (before) metrics.remove("tiergrid_config_info", { kind });
  metrics.gauge("tiergrid_config_info", { kind, version: active.config.version }).set(1);
  const applied = metrics.gauge("tiergrid_config_last_applied_timestamp_seconds", { kind });
  applied.set(loadedWallMs / 1000);
  metrics.gauge("tiergrid_config_warnings", { kind }).set(warnings);
  for (const result of ["applied", "rejected", "unchanged"]) {
    metrics.counter("tiergrid_config_reloads_total", { kind, result });
  }
  declarePools(metrics, model, active, before);
}
