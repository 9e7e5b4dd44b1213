/** `tiergrid global`: the global router and, in the same process, the OpenAI frontend. */
import { Hono } from "hono";
import { sleep } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import type { Given } from "../base/flags.ts";
import { formatFault } from "../config/config-fault.ts";
import { loadPoolConfigFile, poolConfigError } from "../config/load-pool-config.ts";
import type { FrontendSettings } from "../frontend/frontend-parts.ts";
import { startFrontend } from "../frontend/start-frontend.ts";
import { loadTokenizer, type ModelTokenizer } from "../frontend/tokenizer.ts";
import { watchPoolConfig } from "../global-router/config-watch.ts";
import { startGlobalRouter } from "../global-router/global-router.ts";
import { createGridAdmin } from "../global-router/grid-admin.ts";
import { poolStates } from "../global-router/router-status.ts";
import { loadBlockHasher } from "../protocol/block-hashes.ts";
import {
  bookingMetrics,
  componentMetrics,
  frontendMetrics,
  globalRouterMetrics,
  processMetrics,
} from "../runtime/metric-table.ts";
import { createMetrics } from "../runtime/metrics.ts";
import type { GlobalOptions, globalFlags } from "./flags-global.ts";
import { openShell, serveUntilSignal } from "./shell.ts";

const table = {
  ...frontendMetrics,
  ...globalRouterMetrics,
  ...bookingMetrics,
  ...componentMetrics,
  ...processMetrics,
};

/** Runs router and frontend until a signal ends the process. */
export async function run({ options }: Given<typeof globalFlags>): Promise<number> {
  const load = { ownNamespace: options.namespace, strict: options.strictConfig };
  const loaded = await loadPoolConfigFile(options.config, load);
  if (!loaded.ok) throw poolConfigError(loaded.faults);
  const tokenizer = tokenizerOf(options);
  const metrics = createMetrics(table);
  const shell = await openShell(options, "gl", metrics);
  const { clock, ticks, random, bus, gate, version } = shell;
  const log = shell.logs("global_router");
  for (const warning of loaded.warnings) log.warn(formatFault(warning));
  const parts = { clock, random, bus, gate, metrics, model: options.modelName };
  const blockHasher = await loadBlockHasher();
  const router = startGlobalRouter({
    ...parts,
    ...{ ticks, version, log, config: loaded.config, warnings: loaded.warnings.length },
    blockHasher,
    namespace: options.namespace,
    component: options.componentName,
    defaults: {
      ttftTargetMs: options.defaultTtftTargetMs,
      itlTargetMs: options.defaultItlTargetMs,
    },
    acceptTimeoutMs: options.acceptTimeoutMs,
    poolWaitMs: options.poolWaitMs,
    requireAllPools: options.requireAllPools,
    overloadHoldMs: options.overloadHoldMs,
    canaryPercent: options.canaryPercent,
  });
  const watch = watchPoolConfig(
    { path: options.config, load, clock, log, grids: router.grids },
    options.watchConfig,
  );
  process.on("SIGHUP", () => void watch.reloadNow("signal"));
  const frontend = startFrontend({
    ...parts,
    ticks,
    log: shell.logs("frontend"),
    acceptTimeoutMs: options.acceptTimeoutMs,
    settings: settingsOf(options),
    blockHasher,
    ...(tokenizer && { tokenizer }),
    pools: () => poolStates(router.pools()),
  });
  const server = await frontend.http.listen({ host: options.httpHost, port: options.httpPort });
  return serveUntilSignal(shell, options, metrics, {
    name: "global",
    ready: () => router.ready() && frontend.ready(),
    health: router.health,
    metrics: metrics.text,
    pages: { "/pools": router.pools },
    ...(options.adminRoutes && {
      app: new Hono()
        .route("/", frontend.http.admin)
        .route("/", createGridAdmin(router.grids, watch)),
    }),
    facts: { api: `${server.url}/v1`, model: options.modelName, inst: router.inst },
    drain: async () => {
      watch.stop();
      frontend.http.drain();
      await sleep(clock, options.gracePeriodSecs * 1000);
      const graceMs = options.drainTimeoutSecs * 1000;
      await Promise.all([server.close(), router.drain(graceMs)]);
      await frontend.close();
      await router.close();
    },
  });
}

function tokenizerOf({ tokenizer }: GlobalOptions): ModelTokenizer | undefined {
  if (tokenizer === null) return undefined;
  try {
    return loadTokenizer(tokenizer);
  } catch (thrown) {
    throw new TiergridError("config_invalid", `--tokenizer: ${(thrown as Error).message}`);
  }
}

function settingsOf(options: GlobalOptions): Partial<FrontendSettings> {
  return {
    bodyBytesMax: options.bodyLimitMb * 1024 * 1024,
    overloadStatus: options.overloadStatus,
    keepAliveMs: options.sseKeepAliveSecs * 1000,
    hashFirstMinTokens: options.hashFirstMinTokens,
    migrationLimit: options.migrationLimit,
    migrationMaxSeqTokens: options.migrationMaxSeqLen ?? undefined,
    enforceDisagg: options.enforceDisagg || !options.decodeFallback,
    routeHeaders: options.routeHeaders,
    disableNvext: options.disableNvext,
    gracefulShutdownMs: options.httpDrainSecs * 1000,
  };
}
