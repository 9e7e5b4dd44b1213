/** The fast core of a process as its options choose it, and what tells which core runs. */
import { type CoreChoice, type FastCore, loadFastCore } from "../base/fast-core.ts";
import type { Log } from "../runtime/log.ts";
import type { processMetrics } from "../runtime/metric-table.ts";
import type { Metrics } from "../runtime/metrics.ts";

/** Throws `config_invalid` when the module is asked for and cannot be had. */
export async function openCore(
  choice: CoreChoice,
  log: Log,
  metrics: Metrics<typeof processMetrics>,
): Promise<FastCore | undefined> {
  const { core, fallback } = await loadFastCore(choice);
  if (fallback !== undefined) log.warn("no fast core; TypeScript serves", { reason: fallback });
  metrics.gauge("tiergrid_core_info", { core: coreName(core) }).set(1);
  return core;
}

/** As `/health` and the gauge name it. */
export function coreName(core: FastCore | undefined): "wasm" | "ts" {
  return core ? "wasm" : "ts";
}
