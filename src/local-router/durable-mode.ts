/** Durable mode of a local router: its intake on the stream, wired to the router's tables. */
import { TiergridError } from "../base/errors.ts";
import { type KvRouterConfig, subscribesToKvEvents } from "../config/kv-router-config.ts";
import type { DurableLog } from "../runtime/durable-log.ts";
import {
  type DurableIntake,
  type DurableIntakeOptions,
  startDurableIntake,
} from "./durable-intake.ts";
import type { HeldIntake } from "./held-intake.ts";
import type { LocalMetrics } from "./local-metrics.ts";
import type { OverlapTables, WorkerDirectory } from "./worker-directory.ts";

export interface DurableModeOptions
  extends Pick<DurableIntakeOptions, "bus" | "clock" | "random" | "gate" | "log"> {
  readonly config: KvRouterConfig;
  readonly metrics: LocalMetrics;
  readonly endpoint: { readonly namespace: string };
  readonly blockSize: number;
  /** The stream of this pool's component; the caller closes it. */
  readonly durableLog?: DurableLog | undefined;
}

export interface DurableModeTables {
  readonly overlap: OverlapTables | undefined;
  readonly held: HeldIntake | undefined;
  readonly directory: WorkerDirectory;
}

/** The log that the config asks for; undefined outside durable mode. */
export function durableLogOf({
  config,
  durableLog,
}: Pick<DurableModeOptions, "config" | "durableLog">): DurableLog | undefined {
  if (!config.durableKvEvents || !subscribesToKvEvents(config)) return undefined;
  if (durableLog) return durableLog;
  throw new TiergridError("config_invalid", "durable_kv_events: expected a log, got none");
}

/** Starts to follow the stream; undefined outside durable mode. */
export function startDurableMode(
  options: DurableModeOptions,
  { overlap, held, directory }: DurableModeTables,
  inst: string,
): DurableIntake | undefined {
  const stream = durableLogOf(options);
  if (!stream || !overlap || !held) return undefined;
  const { clock, config, blockSize, endpoint, metrics } = options;
  const durable = startDurableIntake(
    {
      ...options,
      ...{ stream, inst, namespace: endpoint.namespace },
      tables: { index: overlap.index, intake: held, clock, blockSize },
      snapshotThreshold: config.routerSnapshotThreshold,
      resetStates: config.routerResetStates,
      workerCount: () => directory.workers.size,
      isPresent({ workerId, dpRank }) {
        const worker = directory.workers.get(workerId);
        return worker?.slots[dpRank - worker.card.dpStart] !== undefined;
      },
    },
    held,
  );
  collectDurable(metrics, durable);
  return durable;
}

function collectDurable(metrics: LocalMetrics, durable: DurableIntake): void {
  const { totals } = durable;
  const messages = (outcome: string) =>
    metrics.counter("tiergrid_durable_messages_total", { outcome });
  const snapshots = (outcome: string) =>
    metrics.counter("tiergrid_durable_snapshots_total", { outcome });
  metrics.onScrape(() => {
    messages("applied").follow(totals.applied);
    messages("foreign").follow(totals.foreign);
    messages("malformed").follow(totals.malformed);
    snapshots("saved").follow(totals.savedSnapshots);
    snapshots("failed").follow(totals.failedSnapshots);
    snapshots("bad").follow(totals.badSnapshots);
    metrics.counter("tiergrid_durable_rebuilds_total").follow(totals.rebuilds);
    metrics.counter("tiergrid_durable_restored_ranks_total").follow(totals.restoredRanks);
    const { messages: kept, snapshotSequence, absent } = durable.upkeep.view;
    metrics.gauge("tiergrid_durable_following").set(durable.following ? 1 : 0);
    metrics.gauge("tiergrid_durable_sequence").set(durable.sequence);
    metrics.gauge("tiergrid_durable_snapshot_sequence").set(snapshotSequence);
    metrics.gauge("tiergrid_durable_stream_messages").set(kept);
    metrics.gauge("tiergrid_durable_absent_workers").set(absent);
  });
}
