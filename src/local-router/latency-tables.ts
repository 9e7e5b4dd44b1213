/**
 * The latency model of a pool's workers: which shape a worker belongs to, and the book that learns
 * from its requests. A worker's profile is the one on its card, else the pool's, else the polynomial.
 */
import type { Random } from "../base/random.ts";
import type { KvRouterConfig } from "../config/kv-router-config.ts";
import { LatencyBook } from "../core/latency-book.ts";
import type { LatencyCostOptions } from "../core/latency-cost.ts";
import { ShapeLatency } from "../core/latency-model.ts";
import { type PerfModel, polynomialPerf, readPerfModel } from "../core/perf-model.ts";
import type { WorkerLoad } from "../core/worker-load.ts";
import type { CardRole, InstanceCard } from "../runtime/instance-card.ts";
import type { Log } from "../runtime/log.ts";
import type { LocalMetrics } from "./local-metrics.ts";
import type { PoolWorker, WorkerDirectory } from "./worker-directory.ts";

/** Shapes without workers whose calibration is kept for workers that come back. */
const idleShapesMax = 64;
/** Pass size of an engine that does not tell. */
const batchTokensUnknown = 8192;

export interface LatencyTablesOptions {
  readonly role: CardRole;
  readonly blockSize: number;
  readonly config: KvRouterConfig;
  readonly random: Random;
  readonly log: Log;
  readonly metrics: LocalMetrics;
}

export interface LatencyTables {
  readonly cost: LatencyCostOptions;
  /** Keeps a model of every worker of the directory; called before the first one comes. */
  follow(directory: WorkerDirectory): void;
}

interface Shape {
  readonly latency: ShapeLatency;
  workers: number;
}

/** Tables over the columns of `load`; undefined in cost mode `blocks`. */
export function startLatencyTables(
  options: LatencyTablesOptions,
  load: WorkerLoad,
): LatencyTables | undefined {
  const { role, blockSize, config, random, metrics } = options;
  if (config.routerCostMode !== "latency") return undefined;
  const outputTokensAtStart = config.routerExpectedOutputTokens;
  const holds = config.routerFitHolds && config.routerFitKeepsPromises;
  const book = new LatencyBook({ role, blockSize, load, random, outputTokensAtStart, holds });
  const shapes = new Map<string, Shape>();
  const shapesByWorker = new Map<string, Shape>();
  const weights = {
    prefillExternality: config.routerPrefillExternality,
    decodeHarm: config.routerDecodeHarmWeight,
    kvUsage: config.routerKvUsageWeight,
  };
  const fit = {
    latencyShare: config.routerFitLatencyShare,
    frontShare: config.routerFitFrontShare,
    keepsPromises: config.routerFitKeepsPromises,
    holds,
  };
  const cost = { book, weights, gpus: config.routerGpusPerWorker, fit };
  const added = ({ inst, card, slots }: PoolWorker): void => {
    const key = shapeKeyOf(card);
    let shape = shapes.get(key);
    if (!shape) {
      forgetIdle(shapes);
      shape = { latency: shapeOf(options, card), workers: 0 };
      shapes.set(key, shape);
    }
    shape.workers++;
    shapesByWorker.set(inst, shape);
    for (const slot of slots) book.addHolder(slot, shape.latency);
  };
  const removed = ({ inst, slots }: PoolWorker): void => {
    for (const slot of slots) book.removeHolder(slot);
    const shape = shapesByWorker.get(inst);
    if (shape) shape.workers--;
    shapesByWorker.delete(inst);
    for (const family of workerFamilies) metrics.remove(family, { worker_id: inst });
  };
  return {
    cost,
    follow(directory) {
      directory.listen({ added, removed });
      collectAtScrape(metrics, book, () => directory.workers.values());
    },
  };
}

/** Engines that share a calibration announce the same of all that speed depends on. */
function shapeKeyOf(card: InstanceCard): string {
  const { model, totalKvBlocks, maxNumBatchedTokens, perfModel } = card;
  return JSON.stringify([model, totalKvBlocks, maxNumBatchedTokens, perfModel]);
}

/** Makes room for one more idle shape; the one made first goes. */
function forgetIdle(shapes: Map<string, Shape>): void {
  const idle = [...shapes].filter(([, { workers }]) => workers === 0);
  const [oldest] = idle;
  if (oldest && idle.length >= idleShapesMax) shapes.delete(oldest[0]);
}

/** Zero in a card means that the engine did not tell. */
function shapeOf(options: LatencyTablesOptions, card: InstanceCard): ShapeLatency {
  const { config, blockSize } = options;
  const announced = announcedProfile(options, card);
  const assumed = announced === undefined && config.routerPerfModel === null;
  const limits = {
    capacityTokens: card.totalKvBlocks * blockSize || Number.POSITIVE_INFINITY,
    batchTokens: card.maxNumBatchedTokens || batchTokensUnknown,
  };
  return new ShapeLatency(announced ?? poolProfile(config), limits, assumed);
}

function poolProfile({ routerPerfModel }: KvRouterConfig): PerfModel {
  return routerPerfModel === null ? polynomialPerf : readPerfModel(routerPerfModel);
}

/** A profile that cannot be read is as good as none. */
function announcedProfile(
  { log }: LatencyTablesOptions,
  { inst, perfModel }: InstanceCard,
): PerfModel | undefined {
  if (perfModel === undefined) return undefined;
  try {
    return readPerfModel(perfModel);
  } catch (thrown) {
    log.warn("perf_model of a worker not readable", { worker_id: inst, why: String(thrown) });
    return undefined;
  }
}

/** Copies what the model has learnt into gauges, at each scrape. */
function collectAtScrape(
  metrics: LocalMetrics,
  book: LatencyBook,
  workers: () => Iterable<PoolWorker>,
): void {
  metrics.onScrape(() => {
    for (const { inst, card, slots } of workers()) {
      for (const [at, slot] of slots.entries()) {
        const model = book.modelAt(slot);
        if (!model) continue;
        const rank = { worker_id: inst, dp_rank: card.dpStart + at };
        const coefficients = [...model.prefill.theta, ...model.decode.theta];
        for (const [place, coefficient] of coefficientNames.entries()) {
          const labels = { ...rank, coefficient };
          metrics.gauge("tiergrid_latency_model_coefficient", labels).set(coefficients[place] ?? 0);
        }
        metrics.counter("tiergrid_latency_model_periods_total", rank).follow(model.periods);
        metrics.gauge("tiergrid_latency_model_median_error", rank).set(model.medianError);
        const isCalibrated = model.source === "calibrated" ? 1 : 0;
        metrics.gauge("tiergrid_latency_model_calibrated", rank).set(isCalibrated);
      }
    }
    metrics.gauge("tiergrid_latency_model_output_tokens").set(book.outputTokensMean);
  });
}

/** Units: ms per pass, 10^3 tokens, 10^6 token^2; step, KV memory, sequence; share of the bend. */
const coefficientNames = [
  "prefill_pass",
  "prefill_kilotoken",
  "prefill_attention",
  "prefill_bend",
  "decode_step",
  "decode_kv_usage",
  "decode_sequence",
  "decode_bend",
] as const;

const workerFamilies = [
  "tiergrid_latency_model_coefficient",
  "tiergrid_latency_model_periods_total",
  "tiergrid_latency_model_median_error",
  "tiergrid_latency_model_calibrated",
] as const;
