/**
 * A frontend on a bus: it finds the global routers of its model, owns the streams, and answers HTTP.
 * Nothing listens before `http.listen`.
 */
import type { Clock } from "../base/clock.ts";
import type { Random } from "../base/random.ts";
import type { BlockHasher } from "../protocol/block-hashes.ts";
import { heartbeatsOf } from "../protocol/subjects.ts";
import type { Bus } from "../runtime/bus.ts";
import { type Instance, watchInstances } from "../runtime/discovery.ts";
import type { EchoGate } from "../runtime/echo-gate.ts";
import type { Log } from "../runtime/log.ts";
import type { OwnerTotals } from "../runtime/owner-request.ts";
import type { PromptHashing } from "../runtime/prompt-source.ts";
import { createStreamOwner, type StreamOwner } from "../runtime/stream-owner.ts";
import { type FrontendSettings, frontendDefaults, type HealthDetails } from "./frontend-parts.ts";
import { createFrontend, type Frontend } from "./http-api.ts";
import { createModelDirectory } from "./model-directory.ts";
import type { FrontendMetrics } from "./request-record.ts";
import { createRouteExplainer } from "./route-explainer.ts";
import type { ModelDirectory } from "./served-model.ts";
import type { ModelTokenizer } from "./tokenizer.ts";

export interface StartFrontendOptions {
  readonly bus: Bus;
  readonly clock: Clock;
  /** Times what may wait a little; absent = `clock`. */
  readonly ticks?: Clock;
  readonly random: Random;
  readonly gate: EchoGate;
  readonly log: Log;
  readonly metrics: FrontendMetrics;
  readonly model: string;
  /** Time a request gets to be accepted, queued or refused. */
  readonly acceptTimeoutMs: number;
  readonly settings?: Partial<FrontendSettings>;
  /** Hashes prompts that go to the routers as hashes; without it none does. */
  readonly blockHasher?: Pick<BlockHasher, "hashBlocks">;
  /** Without it the mock model's. */
  readonly tokenizer?: ModelTokenizer;
  /** Pools behind the routers, for `/health`; without it none is listed. */
  readonly pools?: () => HealthDetails["pools"];
}

export interface RunningFrontend {
  readonly http: Frontend;
  readonly owner: StreamOwner;
  readonly models: ModelDirectory;
  /** True once a router can take requests of the model. */
  ready(): boolean;
  /** Ends the answers that are open, and every timer. */
  close(): Promise<void>;
}

export function startFrontend(options: StartFrontendOptions): RunningFrontend {
  const { bus, clock, random, gate, log, metrics, model, settings = {}, tokenizer } = options;
  const { ticks = clock, acceptTimeoutMs } = options;
  const table = watchInstances({
    ...{ bus, clock: ticks, gate, subject: heartbeatsOf("global") },
    accept: ({ kind }) => kind === "global",
  });
  const promptHashing = promptHashingOf(options);
  const owner = createStreamOwner({ bus, clock, random, gate, acceptTimeoutMs, promptHashing });
  const models = createModelDirectory({ table, model, clock, random });
  collectStreams(metrics, model, owner.totals);
  const http = createFrontend({
    owner,
    models,
    metrics,
    clock,
    random,
    log,
    settings,
    busConnected: () => bus.state === "connected",
    ...(tokenizer && { tokenizerOf: () => tokenizer }),
    explainer: createRouteExplainer({ bus, random, routers: models.routers }),
    healthDetails: () => ({
      ...servingPaths(table.instances()),
      pools: options.pools?.() ?? [],
    }),
  });
  return {
    http,
    owner,
    models,
    ready: () => models.find(model)?.ready ?? false,
    close: async () => {
      owner.close();
      table.stop();
      await http.close();
    },
  };
}

function promptHashingOf(options: StartFrontendOptions): PromptHashing | undefined {
  const { blockHasher: hasher, settings } = options;
  const minTokens = settings?.hashFirstMinTokens ?? frontendDefaults.hashFirstMinTokens;
  return hasher && minTokens > 0 ? { hasher, minTokens } : undefined;
}

/** Copies what the owner counts about its streams at each scrape. */
function collectStreams(
  metrics: FrontendMetrics,
  model: string,
  totals: Readonly<OwnerTotals>,
): void {
  const moved = { model, migration_type: "ongoing_request" };
  metrics.onScrape(() => {
    metrics.counter("dynamo_frontend_model_migration_total", moved).follow(totals.migrations);
    metrics.counter("tiergrid_hashed_dispatches_total").follow(totals.hashedDispatches);
    metrics.counter("tiergrid_prompts_handed_out_total").follow(totals.promptsHandedOut);
    metrics.counter("tiergrid_stream_resumes_total").follow(totals.resumes);
    metrics.counter("tiergrid_stream_fenced_frames_total").follow(totals.fenced);
    metrics.counter("tiergrid_stream_duplicate_tokens_total").follow(totals.duplicates);
    metrics.counter("tiergrid_stream_gaps_total").follow(totals.gaps);
  });
}

/** Routers that serve, as the reference's `/health` lists them. */
function servingPaths(live: Iterable<Instance>): Omit<HealthDetails, "pools"> {
  const ready = [...live].filter(({ health }) => health === "ready").map(({ card }) => card);
  const paths = ready.map((card) => `dyn://${card.namespace}.${card.component}.${card.endpoint}`);
  const instances = ready.map(({ namespace, component, endpoint, inst }) => ({
    ...{ namespace, component, endpoint },
    instance_id: inst,
    transport: "nats",
  }));
  return { endpoints: [...new Set(paths)], instances };
}
