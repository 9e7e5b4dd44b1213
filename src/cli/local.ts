/** `tiergrid local`: the KV router of one pool. */
import { Hono } from "hono";
import { TiergridError } from "../base/errors.ts";
import type { Given } from "../base/flags.ts";
import { type ConfigFault, formatFault } from "../config/config-fault.ts";
import { formatOfPath, parseConfigText, readConfigText } from "../config/config-text.ts";
import {
  type KvRouterConfig,
  loadKvRouterConfig,
  subscribesToKvEvents,
} from "../config/kv-router-config.ts";
import { unsupportedFields } from "../config/kv-router-support.ts";
import type { QueueOrder } from "../core/admission-queue.ts";
import { wasmIndexCore } from "../core/wasm-index.ts";
import { adminRoutes } from "../local-router/admin-routes.ts";
import { debugRoutes } from "../local-router/debug-routes.ts";
import { localRouterTable } from "../local-router/local-metrics.ts";
import { type LocalRouter, startLocalRouter } from "../local-router/local-router.ts";
import { createBlockHasher } from "../protocol/block-hashes.ts";
import { parseEndpointPath } from "../protocol/subjects.ts";
import { processMetrics } from "../runtime/metric-table.ts";
import { createMetrics } from "../runtime/metrics.ts";
import { coreName, openCore } from "./core.ts";
import { openDurableLog } from "./durable-log.ts";
import type { localFlags } from "./flags-local.ts";
import { kvRouterSources } from "./kv-router-sources.ts";
import { openShell, serveUntilSignal } from "./shell.ts";

/** Runs the router until a signal ends the process. */
export async function run(given: Given<typeof localFlags>): Promise<number> {
  const { options } = given;
  const endpoint = endpointOf(options.endpoint);
  const { config, queueOrder, warnings } = await configOf(given);
  const metrics = createMetrics({ ...localRouterTable, ...processMetrics });
  const shell = await openShell(options, "lo", metrics);
  const log = shell.logs("router");
  for (const warning of warnings) log.warn(formatFault(warning));
  const { clock, ticks, random, bus, gate, version } = shell;
  const core = await openCore(options.core, log, metrics);
  const durable = config.durableKvEvents && subscribesToKvEvents(config);
  const durableLog = durable ? await openDurableLog(options, shell, "lo", endpoint) : undefined;
  const router = startLocalRouter({
    ...{ clock, ticks, random, bus, gate, version, log, metrics, endpoint, config, queueOrder },
    durableLog,
    role: options.role,
    blockSize: options.blockSize,
    policy: options.routerPolicy,
    blockHasher: createBlockHasher(core),
    ...(core && { indexCore: wasmIndexCore(core) }),
    indexLimits: { blocksMax: options.indexBlocksMax, holdersMax: options.indexRanksMax },
    thresholds: {
      activeDecodeBlocks: options.activeDecodeBlocksThreshold,
      activePrefillTokens: options.activePrefillTokensThreshold,
      activePrefillTokensFrac: options.activePrefillTokensThresholdFrac,
    },
    minInitialWorkers: options.minInitialWorkers,
    decisionsKept: options.decisionsKept,
    acceptTimeoutMs: options.acceptTimeoutMs,
  });
  return serveUntilSignal(shell, options, metrics, {
    name: "local",
    ready: router.ready,
    health: () => ({
      ready: router.ready(),
      body: {
        core: coreName(core),
        endpoint: options.endpoint,
        workers: router.holders(),
        stats: router.stats,
      },
    }),
    metrics: metrics.text,
    app: routesOf(options, router),
    facts: { endpoint: options.endpoint, inst: router.inst },
    drain: async () => {
      await router.drain(options.drainTimeoutSecs * 1000);
      await router.close();
      await durableLog?.close();
    },
  });
}

function routesOf(
  options: Pick<Given<typeof localFlags>["options"], "adminRoutes" | "debugRoutes">,
  { admin, overlap }: LocalRouter,
): Hono {
  const app = new Hono();
  if (options.adminRoutes) app.route("/", adminRoutes(admin));
  if (options.debugRoutes) app.route("/", debugRoutes(overlap));
  return app;
}

function endpointOf(text: string): ReturnType<typeof parseEndpointPath> {
  try {
    return parseEndpointPath(text);
  } catch (thrown) {
    throw new TiergridError("config_invalid", `--endpoint: ${(thrown as Error).message}`);
  }
}

interface RouterConfig {
  readonly config: KvRouterConfig;
  readonly queueOrder: QueueOrder;
  readonly warnings: readonly ConfigFault[];
}

/** File, then environment, then flags; throws every fault at once. */
async function configOf(given: Given<typeof localFlags>): Promise<RouterConfig> {
  const { config: path } = given.options;
  const file = path === null ? {} : await fileOf(path);
  const loaded = loadKvRouterConfig([file, ...kvRouterSources(given)]);
  if (!loaded.ok) throw configError(loaded.faults);
  const unsupported = unsupportedFields(loaded.config);
  if (unsupported.length > 0) {
    const message = `not supported by this release: ${unsupported.join(", ")}`;
    throw new TiergridError("config_invalid", message);
  }
  return loaded;
}

async function fileOf(path: string): Promise<unknown> {
  const read = await readConfigText(path);
  if (!read.ok) throw configError([read.fault]);
  const parsed = parseConfigText(read.text, formatOfPath(path));
  if (!parsed.ok) throw configError([parsed.fault]);
  return parsed.value;
}

function configError(faults: readonly ConfigFault[]): TiergridError {
  return new TiergridError("config_invalid", faults.map(formatFault).join("\n"), { faults });
}
