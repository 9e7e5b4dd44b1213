/** `tiergrid demo`: a fleet with mock engines on this machine, a trace replayed on it, a summary. */
import { fileURLToPath } from "node:url";
import { every, realClock } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import { loadFastCore } from "../base/fast-core.ts";
import type { Given } from "../base/flags.ts";
import { mulberry32, osRandom } from "../base/random.ts";
import { defaultKvRouterConfig } from "../config/kv-router-config.ts";
import { loadPoolConfigFile, poolConfigError } from "../config/load-pool-config.ts";
import { wasmIndexCore } from "../core/wasm-index.ts";
import type { HttpServer } from "../frontend/http-server.ts";
import { createBlockHasher } from "../protocol/block-hashes.ts";
import { readableMockTokenRange } from "../protocol/mock-tokens.ts";
import type { CardRole } from "../runtime/instance-card.ts";
import { boundedSink, createLogs, readLogFilter } from "../runtime/log.ts";
import { DemoReport, type DemoSummary } from "../sim/demo-report.ts";
import { type Fleet, startFleet } from "../sim/fleet.ts";
import { forkLoad } from "../sim/forked-load.ts";
import { type TraceRequest, traceBlockTokens } from "../sim/mooncake-trace.ts";
import { prefixHits } from "../sim/trace-stats.ts";
import { synthesisPresets, synthesizeTrace } from "../sim/trace-synth.ts";
import { readTraceFile, recordedBatchMs, spreadArrivals } from "../sim/workload.ts";
import { type MockEngineConfig, readMockEngineConfig } from "../worker/mock-engine-config.ts";
import { type DemoBus, openDemoBus } from "./demo-bus.ts";
import { createScreen, progressLine, progressTable, type Screen } from "./demo-table.ts";
import type { DemoOptions, demoFlags } from "./flags-demo.ts";
import { packageVersion } from "./package-version.ts";

const model = "mock-model";
const host = "127.0.0.1";
const defaultPort = 8000;
const blockTokens = 64;
const contextTokens = 131_072;
const readyMs = 15_000;
/** Silence on one busy machine is load, not a lost hop. */
const acceptTimeoutMs = 10_000;
const terminalPeriodMs = 250;
const plainPeriodMs = 2_000;
const interruptedCode = 130;
const configPath = fileURLToPath(new URL("../../pool-configs/demo.json", import.meta.url));

/** Runs the demo; answers 0 when every request was answered with the right tokens. */
export async function run({ options }: Given<typeof demoFlags>): Promise<number> {
  const requests = await requestsOf(options);
  const screen = createScreen(options.json ? process.stderr : process.stdout);
  const stop = stopOnSignal();
  try {
    const bus = await openDemoBus(options, screen.say);
    try {
      return await runOn(bus, { options, requests, screen, signal: stop.signal });
    } finally {
      await bus.close();
    }
  } finally {
    stop.release();
  }
}

interface Run {
  readonly options: DemoOptions;
  readonly requests: readonly TraceRequest[];
  readonly screen: Screen;
  readonly signal: AbortSignal;
}

async function runOn(bus: DemoBus, run: Run): Promise<number> {
  const { options, screen, signal } = run;
  const fleet = await startDemoFleet(bus, options);
  let server: HttpServer | undefined;
  try {
    await fleet.ready(readyMs);
    server = await fleet.frontend.http.listen({ host, port: portOf(options) });
    screen.say(`bus    ${bus.description}`);
    screen.say(`fleet  ${fleet.pools.length} pools, ${fleet.workers.length} workers, mock engines`);
    screen.say(`api    ${server.url}/v1`);
    const summary = await replay(fleet, bus, server.url, run);
    if (!options.exit && !signal.aborted) {
      screen.say("");
      screen.say(`The fleet stays up until Ctrl-C. Try:\n  ${curlLine(server.url)}`);
      await aborted(signal);
      return 0;
    }
    if (signal.aborted) return interruptedCode;
    return summary.completed === summary.requests && summary.token_mismatch === 0 ? 0 : 1;
  } finally {
    await server?.close();
    await fleet.close();
  }
}

/** Runs the load to its end, showing it, and prints the summary. */
async function replay(fleet: Fleet, bus: DemoBus, url: string, run: Run): Promise<DemoSummary> {
  const { options, requests, screen, signal } = run;
  const pools = fleet.pools.map(({ namespace, role, workers }) => {
    return { namespace, role, workers: workers.map(({ worker }) => worker.inst) };
  });
  const report = new DemoReport({ requests: requests.length, pools });
  const show = (): void => screen.show(progressTable(report, fleet.pools), progressLine(report));
  const clock = realClock;
  const startMs = clock.nowMs();
  const stopShowing = every(clock, screen.live ? terminalPeriodMs : plainPeriodMs, show);
  await forkLoad({
    ...{ url, model, requests, seed: options.seed, signal },
    onStart: () => {
      report.started += 1;
    },
    onResult: (result) => report.take(result),
  });
  stopShowing();
  const durationMs = clock.nowMs() - startMs;
  const { migrations: migrated } = fleet.frontend.owner.totals;
  const summary = report.summary({ bus: bus.kind, durationMs, migrated });
  show();
  screen.keep();
  for (const fault of report.faults) screen.say(`fault  ${fault}`);
  if (options.json) process.stdout.write(`${JSON.stringify(summary)}\n`);
  else for (const line of summaryLines(summary, sharedCacheRatio(fleet, run))) screen.say(line);
  return summary;
}

function summaryLines(summary: DemoSummary, sharedRatio: number): string[] {
  const { completed, requests, token_mismatch: wrong, duration_s: seconds, migrated } = summary;
  const percent = (ratio: number): string => `${(100 * ratio).toFixed(1)} %`;
  return [
    "",
    `${completed} of ${requests} completed in ${seconds} s, ${wrong} wrong tokens, ` +
      `${summary.failed} failed, ${summary.rejected} rejected, ${migrated} migrated`,
    `prompt tokens from cache: ${percent(summary.kv_hit_ratio)}, as the engines counted; ` +
      `one cache of the same total size for all: ${percent(sharedRatio)}`,
  ];
}

/** Share of the prompt tokens that one LRU cache would hit, as large as all that take prefills. */
function sharedCacheRatio(fleet: Fleet, { options, requests }: Run): number {
  const prefilling = fleet.pools.filter(({ role }) => role !== "decode");
  const workers = prefilling.reduce((sum, pool) => sum + pool.workers.length, 0);
  const capacityTokens = workers * options.cacheBlocks * blockTokens;
  return prefixHits(requests, Math.floor(capacityTokens / traceBlockTokens)).tokenHitRatio;
}

async function requestsOf(options: DemoOptions): Promise<TraceRequest[]> {
  const { trace, requests: count, seed, speedup } = options;
  const recorded = trace === null ? generated(count, seed) : await readTraceFile(trace);
  const first = count === null ? recorded : recorded.slice(0, count);
  if (first.length === 0) throw new TiergridError("config_invalid", `${trace}: no requests`);
  const longest = Math.max(...first.map((one) => one.inputTokens + one.outputTokens));
  if (longest > contextTokens) {
    const message = `${trace}: the engines take ${contextTokens} tokens, a request has ${longest}`;
    throw new TiergridError("config_invalid", message);
  }
  const spreadMs = recordedBatchMs(first);
  return spreadArrivals(first, { spreadMs, speed: speedup, random: mulberry32(seed) });
}

function generated(count: number | null, seed: number): TraceRequest[] {
  const preset = synthesisPresets.demo;
  const requests = count ?? preset.requests;
  const durationMs = (preset.durationMs * requests) / preset.requests;
  return synthesizeTrace({ ...preset, seed, requests, durationMs });
}

async function startDemoFleet(bus: DemoBus, options: DemoOptions): Promise<Fleet> {
  const loaded = await loadPoolConfigFile(options.config ?? configPath, {
    ownNamespace: "dynamo",
  });
  if (!loaded.ok) throw poolConfigError(loaded.faults);
  const filter = readLogFilter(options.log);
  if (!filter) {
    throw new TiergridError("config_invalid", `--log: not a filter: ${options.log.slice(0, 80)}`);
  }
  const sink = boundedSink(process.stderr, realClock, () => {});
  const { routerPolicy, durableKvEvents } = options;
  const { core } = await loadFastCore(options.core);
  return startFleet({
    blockHasher: createBlockHasher(core),
    indexCore: core && wasmIndexCore(core),
    connect: bus.connect,
    durableLogOf: durableKvEvents ? bus.durableLogOf : undefined,
    clock: realClock,
    random: osRandom,
    logs: createLogs({ filter, format: "text", clock: realClock, sink }),
    config: loaded.config,
    kvRouter: { ...defaultKvRouterConfig, durableKvEvents },
    workerPolicy: routerPolicy,
    enginesOf: (role) => enginesOf(role, options),
    model,
    acceptTimeoutMs,
    version: packageVersion(),
  });
}

function enginesOf(role: CardRole, options: DemoOptions): MockEngineConfig[] {
  const engine = readMockEngineConfig({
    worker_type: role,
    block_size: blockTokens,
    num_gpu_blocks: options.cacheBlocks,
    max_model_len: contextTokens,
    speedup_ratio: options.speedup,
    token_id_min: readableMockTokenRange.idMin,
    token_id_count: readableMockTokenRange.idCount,
  });
  const length = role === "decode" ? options.decodeWorkers : options.prefillWorkers;
  return Array.from({ length }, () => engine);
}

function portOf({ httpPort, exit }: DemoOptions): number {
  return httpPort ?? (exit ? 0 : defaultPort);
}

function curlLine(url: string): string {
  const body = { model, max_tokens: 16, messages: [{ role: "user", content: "Hello" }] };
  return `curl ${url}/v1/chat/completions -H 'content-type: application/json' -d '${JSON.stringify(body)}'`;
}

/** The first SIGINT or SIGTERM aborts, the second ends the process at once. */
function stopOnSignal(): { readonly signal: AbortSignal; readonly release: () => void } {
  const controller = new AbortController();
  const onSignal = (): void => {
    if (controller.signal.aborted) process.exit(interruptedCode);
    controller.abort();
  };
  const names = ["SIGINT", "SIGTERM"] as const;
  for (const name of names) process.on(name, onSignal);
  const release = (): void => {
    for (const name of names) process.off(name, onSignal);
  };
  return { signal: controller.signal, release };
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}
