/** `tiergrid worker mock`: workers with mock engines, each an instance of its own. */
import { TiergridError } from "../base/errors.ts";
import type { Given } from "../base/flags.ts";
import { formatFault } from "../config/config-fault.ts";
import { parseConfigText, readConfigText } from "../config/config-text.ts";
import { createBlockHasher } from "../protocol/block-hashes.ts";
import { parseEndpointPath } from "../protocol/subjects.ts";
import { mergeMetricTexts } from "../runtime/merge-metrics.ts";
import { componentMetrics, processMetrics, workerMetrics } from "../runtime/metric-table.ts";
import { createMetrics } from "../runtime/metrics.ts";
import { MockDriver } from "../worker/mock-driver.ts";
import { readMockEngineConfig } from "../worker/mock-engine-config.ts";
import { startWorker, type Worker } from "../worker/worker.ts";
import { coreName, openCore } from "./core.ts";
import { openDurableLog } from "./durable-log.ts";
import type { workerMockFlags } from "./flags-worker.ts";
import { mockEngineOptionsOf } from "./mock-engine-options.ts";
import { openShell, serveUntilSignal } from "./shell.ts";

/** Runs the workers until a signal ends the process. */
export async function run(given: Given<typeof workerMockFlags>): Promise<number> {
  const { options } = given;
  const endpoint = parseEndpointPath(options.endpoint);
  const { engineConfig, perfModel } = options;
  const config = readMockEngineConfig(mockEngineOptionsOf(given, await fileOf(engineConfig)));
  const announcedPerfModel = perfModel === null ? undefined : await fileOf(perfModel);
  const metrics = createMetrics(processMetrics);
  const shell = await openShell(options, "wk", metrics);
  const { clock, ticks, random, bus, gate, version } = shell;
  const core = await openCore(options.core, shell.logs("worker"), metrics);
  const hasher = createBlockHasher(core);
  const durableLog = options.durableKvEvents
    ? await openDurableLog(options, shell, "wk", endpoint)
    : undefined;
  const workers: Worker[] = [];
  const workerTexts: (() => Promise<string>)[] = [];
  for (let number = 0; number < options.count; number++) {
    const name = `${endpoint.namespace}-${number}`;
    const engine = new MockDriver({
      ...{ name, config, clock, random, hasher },
      model: options.modelName,
      announcedPerfModel,
    });
    const constants = options.count > 1 ? [{ prefix: "", labels: { worker: String(number) } }] : [];
    const ownMetrics = createMetrics({ ...workerMetrics, ...componentMetrics }, constants);
    workerTexts.push(ownMetrics.text);
    workers.push(
      startWorker({
        ...{ bus, clock, ticks, random, gate, version, engine, endpoint, durableLog },
        metrics: ownMetrics,
        log: shell.logs("worker"),
        blockHasher: hasher,
        eventLingerMs: options.eventLingerMs,
        taints: taintsOf(options.taints),
      }),
    );
  }
  const ready = (): boolean => workers.every((worker) => worker.ready());
  return serveUntilSignal(shell, options, metrics, {
    name: "worker",
    ready,
    health: () => ({
      ready: ready(),
      body: { core: coreName(core), workers: workers.map((worker) => worker.health().body) },
    }),
    metrics: async () =>
      mergeMetricTexts(await Promise.all([metrics.text, ...workerTexts].map((text) => text()))),
    facts: { endpoint: options.endpoint, workers: workers.map(({ inst }) => inst).join(",") },
    drain: async () => {
      await Promise.all(workers.map((worker) => worker.drain(options.drainTimeoutSecs * 1000)));
      await durableLog?.close();
    },
  });
}

function taintsOf(text: string | null): string[] {
  return (text ?? "").split(",").flatMap((taint) => taint.trim() || []);
}

async function fileOf(path: string | null): Promise<Readonly<Record<string, unknown>>> {
  if (path === null) return {};
  const read = await readConfigText(path);
  if (!read.ok) throw new TiergridError("config_invalid", formatFault(read.fault));
  const parsed = parseConfigText(read.text, "json");
  if (!parsed.ok) throw new TiergridError("config_invalid", formatFault(parsed.fault));
  const { value } = parsed;
  if (typeof value === "object" && value !== null && !Array.isArray(value)) {
    return value as Readonly<Record<string, unknown>>;
  }
  throw new TiergridError("config_invalid", `${path}: expected a JSON object`);
}
