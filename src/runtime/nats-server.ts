/** Runs a private nats-server for the demo, tests and benches, with the recommended settings. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Clock, sleep } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import { greets } from "./nats-greeting.ts";

export interface NatsServerOptions {
  readonly binary: string;
  readonly clock: Clock;
  /** 0 or absent takes a free port. */
  readonly port?: number;
  /** Keeps streams, in the server's own directory; they outlive a restart, not `stop`. */
  readonly jetStream?: boolean;
  /** Further lines of the server's config. */
  readonly configText?: string;
}

export interface NatsServer {
  readonly url: string;
  readonly port: number;
  /** Process id of the current life. */
  readonly pid: number;
  /** Ends the server and removes its directory. Idempotent. */
  stop(): Promise<void>;
  /** Sends a signal; SIGKILL resolves when the process is gone, the others at once. */
  kill(signal: NodeJS.Signals): Promise<void>;
  /** A new life on the same port; ends the current one first if it still runs. */
  restart(): Promise<void>;
}

const readyMs = 10_000;
const greetingMs = 500;
const stopMs = 3000;
const logBytesMax = 16_384;

const recommendedConfig = `max_payload: 8MB
max_pending: 64MB
write_deadline: "2s"
ping_interval: "5s"
ping_max: 2
`;

/** Starts a server on the loopback address and resolves when it takes connections. */
export async function startNatsServer(options: NatsServerOptions): Promise<NatsServer> {
  const port = options.port || (await freePort());
  const dir = await mkdtemp(join(tmpdir(), "tiergrid-nats-"));
  const config = join(dir, "server.conf");
  const listen = `listen: "127.0.0.1:${port}"\n`;
  const streams = options.jetStream ? `jetstream { store_dir: ${JSON.stringify(dir)} }\n` : "";
  await writeFile(config, listen + recommendedConfig + streams + (options.configText ?? ""));
  const start = (): Promise<ChildProcess> => spawnServer(options, config, port);
  let child: ChildProcess;
  try {
    child = await start();
  } catch (error) {
    await rm(dir, { recursive: true, force: true });
    throw error;
  }
  return {
    url: `nats://127.0.0.1:${port}`,
    port,
    get pid() {
      return child.pid ?? -1;
    },
    kill: async (signal) => {
      const gone = exited(child);
      child.kill(signal);
      if (signal === "SIGKILL") await gone;
    },
    restart: async () => {
      await end(child, options.clock);
      child = await start();
    },
    stop: async () => {
      await end(child, options.clock);
      await rm(dir, { recursive: true, force: true });
    },
  };
}

async function spawnServer(
  { binary, clock }: NatsServerOptions,
  config: string,
  port: number,
): Promise<ChildProcess> {
  const child = spawn(binary, ["-c", config], { stdio: ["ignore", "ignore", "pipe"] });
  let log = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    log = (log + text).slice(-logBytesMax);
  });
  let failure: string | undefined;
  child.once("error", (error) => {
    failure = error.message;
  });
  // A parent that exits without `stop` must not leave a server behind.
  const killOnExit = (): void => void child.kill("SIGKILL");
  process.once("exit", killOnExit);
  child.once("exit", (code) => {
    process.off("exit", killOnExit);
    failure ??= `exited with ${code}: ${log.trim().split("\n").at(-1) ?? ""}`;
  });
  const untilMs = clock.nowMs() + readyMs;
  while (failure === undefined && clock.nowMs() < untilMs) {
    if (await greets(`127.0.0.1:${port}`, clock, greetingMs)) return child;
    await sleep(clock, 5);
  }
  child.kill("SIGKILL");
  const message = `${binary} did not start on port ${port}: ${failure ?? `not ready in ${readyMs} ms`}`;
  throw new TiergridError("not_ready", message);
}

async function freePort(): Promise<number> {
  const probe = createServer().listen(0, "127.0.0.1");
  await once(probe, "listening");
  const address = probe.address();
  probe.close();
  await once(probe, "close");
  if (address === null || typeof address === "string") {
    throw new TiergridError("internal_error", "the system named no free port");
  }
  return address.port;
}

const exited = async (child: ChildProcess): Promise<void> => {
  if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
};

/** SIGTERM, and SIGKILL when it does not help; a stopped process is woken first. */
async function end(child: ChildProcess, clock: Clock): Promise<void> {
  const gone = exited(child);
  child.kill("SIGCONT");
  child.kill("SIGTERM");
  const abort = new AbortController();
  const late = sleep(clock, stopMs, abort.signal).then(() => child.kill("SIGKILL"));
  await gone;
  // The process is gone; the late signal then hits nothing.
  abort.abort();
  await late;
}
