/**
 * Follows a pool config file. The folder is watched, not the file: editors replace it and
 * Kubernetes swaps a link beside it. Whether anything changed is for the config's version to say.
 */
import { type FSWatcher, watch } from "node:fs";
import { dirname } from "node:path";
import type { CancelTimer, Clock } from "../base/clock.ts";
import { toTiergridError } from "../base/errors.ts";
import { formatFault } from "../config/config-fault.ts";
import { loadPoolConfigFile, type PoolConfigOptions } from "../config/load-pool-config.ts";
import type { Log } from "../runtime/log.ts";
import type { GridControl } from "./grid-control.ts";
import type { ChangedBy } from "./grid-versions.ts";

/** Quiet time that ends a change, and the longest that a folder which never rests delays one. */
export const configSettleMs = 200;
export const configSettleMaxMs = 2_000;

export interface ConfigWatchOptions {
  readonly path: string;
  readonly load: PoolConfigOptions;
  readonly clock: Clock;
  readonly log: Log;
  readonly grids: Pick<GridControl, "offer" | "rejected">;
}

export interface ConfigWatch {
  /** Reads the file and takes it if it is valid and new; never rejects. */
  reloadNow(by: ChangedBy): Promise<void>;
  stop(): void;
}

/** Watches from the start when `follow` is set; without it, only `reloadNow` reads. */
export function watchPoolConfig(options: ConfigWatchOptions, follow: boolean): ConfigWatch {
  const { path, clock, log } = options;
  let cancelSettle: CancelTimer = () => {};
  let changedAtMs: number | undefined;
  let reading: Promise<string> = Promise.resolve("");
  const reloadNow = async (by: ChangedBy): Promise<void> => {
    // One after the other, so that an older file never replaces a newer one.
    reading = reading.then((refused) => reloadOnce(options, by, refused));
    await reading;
  };
  const changed = (): void => {
    cancelSettle();
    changedAtMs ??= clock.nowMs();
    const leftMs = changedAtMs + configSettleMaxMs - clock.nowMs();
    cancelSettle = clock.after(Math.min(configSettleMs, leftMs), () => {
      changedAtMs = undefined;
      void reloadNow("file");
    });
  };
  let watcher: FSWatcher | undefined;
  try {
    if (follow) watcher = watch(dirname(path), { persistent: false }, changed);
    watcher?.on("error", (cause) => log.warn("config is no longer watched", { error: `${cause}` }));
  } catch (thrown) {
    log.warn("config cannot be watched", { error: toTiergridError(thrown).message });
  }
  return {
    reloadNow,
    stop: () => {
      cancelSettle();
      watcher?.close();
    },
  };
}

/**
 * Answers what it refused, "" when nothing: faults, or the version of a config that cannot follow
 * the one in force. While other changes in the folder lead to `refused` again, nothing is said: this
 * process may be writing its log there.
 */
async function reloadOnce(
  options: ConfigWatchOptions,
  by: ChangedBy,
  refused: string,
): Promise<string> {
  const { path, load, log, grids } = options;
  let found = "";
  try {
    const result = await loadPoolConfigFile(path, load);
    const faults = result.ok ? [] : result.faults.map(formatFault);
    found = result.ok ? result.config.version : faults.join("\n");
    if (by === "file" && found === refused) return refused;
    if (result.ok) {
      const taken = grids.offer(result.config, result.warnings.length, by);
      if (taken === "unchanged") return "";
      for (const warning of result.warnings) log.warn(formatFault(warning));
      return "";
    }
    grids.rejected(result.faults, by);
    for (const fault of faults) log.error(fault);
  } catch (thrown) {
    log.error("pool config not applied", { error: toTiergridError(thrown).message });
  }
  return found;
}
