/**
 * Blocks that workers are believed to have because prompts were sent to them: in place of KV events
 * (approximate mode), or beside them until the events of a prompt arrive.
 */
import type { Clock } from "../base/clock.ts";
import type { Random } from "../base/random.ts";
import { everyInStep } from "../base/tick-clock.ts";
import type { KvRouterConfig } from "../config/kv-router-config.ts";
import { PredictedIndex, type PredictedIndexOptions } from "../core/predicted-index.ts";
import type { LocalMetrics } from "./local-metrics.ts";
import type { WorkerDirectory } from "./worker-directory.ts";

const expiryPeriodMs = 1_000;
/** Blocks predicted beside KV events; they live for seconds. */
export const predictedBesideEventsMax: number = 1 << 20;

export interface Prediction {
  readonly index: PredictedIndex;
  close(): void;
}

export interface PredictionOptions {
  readonly config: KvRouterConfig;
  readonly clock: Clock;
  readonly ticks?: Clock;
  readonly random: Random;
  readonly metrics: LocalMetrics;
  readonly directory: WorkerDirectory;
}

/** Undefined when overlap does not count, or comes from KV events alone. */
export function startPrediction(options: PredictionOptions): Prediction | undefined {
  const { clock, ticks = clock, random, metrics, directory } = options;
  const settings = settingsOf(options.config);
  if (!settings) return undefined;
  const index = new PredictedIndex({ ...settings, random });
  const expire = (): void => void index.expire(clock.nowMs());
  const cancelExpiry = everyInStep(ticks, expiryPeriodMs, expire);
  metrics.onScrape(() => {
    metrics.gauge("tiergrid_predicted_blocks").set(index.size);
    metrics.gauge("tiergrid_predicted_bytes").set(index.bytes);
    const { expired, pruned, pruneRuns } = index.totals;
    metrics.counter("tiergrid_predicted_blocks_forgotten_total", { by: "ttl" }).follow(expired);
    metrics.counter("tiergrid_predicted_blocks_forgotten_total", { by: "size" }).follow(pruned);
    metrics.counter("tiergrid_prune_runs_total").follow(pruneRuns);
  });
  directory.listen({
    added({ inst, card, slots }) {
      for (const [at, slot] of slots.entries()) {
        index.addHolder(slot, inst, card.dpStart + at, card.totalKvBlocks);
      }
    },
    removed({ slots }) {
      for (const slot of slots) index.removeHolder(slot);
    },
  });
  return { index, close: cancelExpiry };
}

function settingsOf(config: KvRouterConfig): Omit<PredictedIndexOptions, "random"> | undefined {
  if (config.overlapScoreCredit === 0) return undefined;
  const { routerPredictedTtlSecs, routerTtlSecs, routerPruneTargetRatio } = config;
  if (!config.useKvEvents) {
    return {
      policy: config.routerApproximateCachePolicy,
      ttlMs: routerTtlSecs * 1000,
      sizeMax: config.routerMaxTreeSize,
      pruneTargetRatio: routerPruneTargetRatio,
    };
  }
  if (routerPredictedTtlSecs === null) return undefined;
  return {
    policy: "ttl",
    ttlMs: routerPredictedTtlSecs * 1000,
    sizeMax: predictedBesideEventsMax,
    pruneTargetRatio: routerPruneTargetRatio,
  };
}
