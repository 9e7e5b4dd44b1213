/**
 * What every long-running command has around its part: logs, bus, self-echo, system server, and the
 * way out. A broker that is missing at the start is waited for, as one that goes away later is.
 */
import type { Hono } from "hono";
import { type Clock, every, realClock } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import type { OptionsOf } from "../base/flags.ts";
import { osRandom } from "../base/random.ts";
import { commonTickMs, everyInStep, tickClock } from "../base/tick-clock.ts";
import type { BusRole } from "../protocol/subjects.ts";
import type { Bus } from "../runtime/bus.ts";
import { type EchoGate, startEchoGate } from "../runtime/echo-gate.ts";
import { type Health, startHealthServer } from "../runtime/health-server.ts";
import { boundedSink, createLogs, type LogFactory, readLogFilter } from "../runtime/log.ts";
import type { processMetrics } from "../runtime/metric-table.ts";
import type { Metrics } from "../runtime/metrics.ts";
import { connectNatsBus } from "../runtime/nats-bus.ts";
import { natsAccess } from "../runtime/nats-bus-credentials.ts";
import { letHeapGrow, runUntilSignal } from "../runtime/process.ts";
import { collectBus, collectLoopDelay, collectRuntime } from "../runtime/process-metrics.ts";
import type { processFlags } from "./flags-process.ts";
import { packageVersion } from "./package-version.ts";

export type ProcessOptions = OptionsOf<typeof processFlags>;
type ShellMetrics = Metrics<typeof processMetrics>;

export const noServerReminderMs = 3_000;

export interface Shell {
  readonly clock: typeof realClock;
  /** For what may wait a little, so that the process wakes once for all of it. */
  readonly ticks: Clock;
  readonly random: typeof osRandom;
  readonly bus: Bus;
  readonly gate: EchoGate;
  readonly logs: LogFactory;
  readonly version: string;
  /** Ends what `openShell` started, for a command that does not come up. */
  close(): Promise<void>;
}

/** Opens logs and bus; throws `config_invalid`. */
export async function openShell(
  options: ProcessOptions,
  role: BusRole,
  metrics: ShellMetrics,
): Promise<Shell> {
  letHeapGrow();
  const clock = realClock;
  const ticks = tickClock(clock, commonTickMs, collectLoopDelay(metrics));
  const random = osRandom;
  const filter = readLogFilter(options.log);
  if (!filter) {
    throw new TiergridError("config_invalid", `--log: not a filter: ${options.log.slice(0, 80)}`);
  }
  const access = accessOf(options);
  const dropped = metrics.counter("tiergrid_log_dropped_total");
  const sink = boundedSink(process.stderr, clock, () => dropped.add(1));
  process.once("exit", sink.flush);
  const format = options.logJson ? "json" : "text";
  const logs = createLogs({ filter, format, clock, sink });
  const log = logs("bus");
  let lastTrouble = "";
  const bus = await connectNatsBus({
    ...access,
    ...{ role, clock, ticks, random, name: `tiergrid-${role}` },
    onTrouble: (trouble) => {
      lastTrouble = trouble instanceof Error ? trouble.message : String(trouble);
    },
    onHandlerError: (error, subject) => log.error("handler failed", { subject, error: `${error}` }),
  });
  const servers = access.servers.join(",");
  const remind = (): void => {
    if (bus.state !== "disconnected") return;
    log.warn("no NATS server answers; dialling on", { servers, error: lastTrouble });
  };
  remind();
  bus.onState((state) => log.info("bus", { state, servers }));
  const stopReminder = everyInStep(ticks, noServerReminderMs, remind);
  const gate = startEchoGate(bus, ticks);
  collectRuntime(metrics, {
    version: packageVersion(),
    commit: process.env["COMMIT"] ?? "unknown",
  });
  collectBus(metrics, bus);
  return {
    ...{ clock, ticks, random, bus, gate, logs, version: packageVersion() },
    close: async () => {
      stopReminder();
      gate.stop();
      await bus.close();
    },
  };
}

/** Where and as whom a process connects; throws `config_invalid`. */
export function accessOf(options: ProcessOptions): ReturnType<typeof natsAccess> {
  return natsAccess({
    servers: options.nats,
    credsFile: options.natsCredsFile,
    nkeySeedFile: options.natsNkeySeedFile,
    caFile: options.natsCaFile,
    certFile: options.natsCertFile,
    keyFile: options.natsKeyFile,
  });
}

export interface ServedPart {
  /** As it stands in the log and on the ready line. */
  readonly name: string;
  readonly ready: () => boolean;
  readonly health: () => Health;
  readonly metrics: () => Promise<string>;
  readonly pages?: Readonly<Record<string, () => unknown>>;
  /** Served beside the pages. */
  readonly app?: Hono;
  /** What else the ready line tells. */
  readonly facts: Readonly<Record<string, unknown>>;
  readonly drain: () => Promise<void>;
}

const readyPollMs = 50;

/**
 * Serves the system pages and waits for a signal: the first drains and exits 0, the second exits 1
 * at once. Never resolves; rejects with `config_invalid` when the port cannot be had.
 */
export async function serveUntilSignal(
  shell: Shell,
  options: ProcessOptions,
  metrics: ShellMetrics,
  part: ServedPart,
): Promise<never> {
  const log = shell.logs("process");
  const port = options.systemPort < 0 ? undefined : await listen(options, part);
  const unhandled = metrics.counter("tiergrid_unhandled_errors_total");
  const drain = async (): Promise<void> => {
    await part.drain();
    await shell.close();
  };
  runUntilSignal({ host: process, log, drain, onUnhandled: () => unhandled.add(1) });
  const stop = every(shell.clock, readyPollMs, () => {
    if (!part.ready()) return;
    stop();
    log.info("ready", { part: part.name, ...part.facts, ...(port && { system_port: port }) });
  });
  return new Promise<never>(() => {});
}

async function listen(options: ProcessOptions, part: ServedPart): Promise<number> {
  const server = await startHealthServer({
    port: options.systemPort,
    host: options.systemHost,
    livePath: options.systemLivePath,
    healthPath: options.systemHealthPath,
    live: () => true,
    health: part.health,
    metrics: part.metrics,
    ...(part.pages && { extraRoutes: part.pages }),
    ...(part.app && { app: part.app }),
  });
  return server.port;
}
