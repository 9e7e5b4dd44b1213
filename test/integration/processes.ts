/**
 * A fleet of real processes, each started from the command line's own entry point, on one
 * nats-server. A test kills what it likes; `up` starts what is missing and waits until the global
 * router sees the whole fleet again. `down` leaves no process behind.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { realClock, sleep } from "../../src/base/clock.ts";
import { compiledMain } from "./compiled.ts";

export const root = fileURLToPath(new URL("../../", import.meta.url));

const stderrCharsMax = 32_768;
const pollMs = 25;
/** Longest wait for anything that a test awaits; far above what an idle machine needs. */
export const patienceMs = 90_000;

/**
 * Both routers and the frontend wait this long for a receipt: on a machine with more to do than
 * cores, a healthy process may be late by more than the default.
 */
export const acceptTimeoutMs = 1500;

/** How one process of a fleet is started. */
export interface Part {
  readonly name: string;
  /** Command line after `tiergrid`. */
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface RunningProcess {
  readonly name: string;
  readonly pid: number;
  /** Fields of the log line that says `ready`; undefined before. */
  readonly facts: Readonly<Record<string, unknown>> | undefined;
  readonly ended: Promise<Ended>;
  alive(): boolean;
  /** The newest part of what it wrote. */
  stderr(): string;
}

/** Starts one process with free ports; it is not ready yet. */
export function startProcess(part: Part, natsUrl: string): RunningProcess {
  const args = [...part.args, "--nats", natsUrl, "--system-port", "0", "--log-json"];
  const child = spawn(process.execPath, [compiledMain, ...args], {
    cwd: root,
    env: {
      ...process.env,
      DYN_SYSTEM_HOST: "127.0.0.1",
      TIERGRID_ACCEPT_TIMEOUT_MS: String(acceptTimeoutMs),
      DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS: "0.2",
      ...part.env,
    },
    stdio: ["ignore", "ignore", "pipe"],
  });
  return watched(part.name, child);
}

function watched(name: string, child: ChildProcess): RunningProcess {
  let stderr = "";
  let rest = "";
  let facts: Record<string, unknown> | undefined;
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    stderr = (stderr + text).slice(-stderrCharsMax);
    const lines = (rest + text).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) if (line.includes('"message":"ready"')) facts = JSON.parse(line);
  });
  // A test run that is cut short must not leave processes behind.
  const killOnExit = (): void => void child.kill("SIGKILL");
  process.once("exit", killOnExit);
  const ended = new Promise<Ended>((resolve) => {
    child.once("exit", (code, signal) => {
      process.off("exit", killOnExit);
      resolve({ code, signal });
    });
  });
  return {
    name,
    pid: child.pid ?? -1,
    get facts() {
      return facts;
    },
    ended,
    alive: () => child.exitCode === null && child.signalCode === null,
    stderr: () => stderr,
  };
}

/** SIGKILL; resolves when the pid is gone. */
export async function kill(victim: RunningProcess): Promise<void> {
  process.kill(victim.pid, "SIGKILL");
  await victim.ended;
  await until(`${victim.name} is gone`, () => stateOf(victim.pid) === undefined);
}

/** SIGSTOP for `durationMs`, then SIGCONT; throws when the process does not really stop. */
export async function freeze(pid: number, durationMs: number): Promise<void> {
  process.kill(pid, "SIGSTOP");
  try {
    await until(`${pid} is stopped`, () => stateOf(pid) === "T");
    await sleep(realClock, durationMs);
    if (stateOf(pid) !== "T") throw new Error(`${pid} went on by itself: ${stateOf(pid)}`);
  } finally {
    process.kill(pid, "SIGCONT");
  }
}

/** State letter of a process as the kernel tells it; undefined when it is gone. */
function stateOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return stat.slice(stat.lastIndexOf(")") + 2).charAt(0);
  } catch {
    return undefined;
  }
}

/** Polls until `check` answers true; throws after `patienceMs`. */
export async function until(
  what: string,
  check: () => boolean | Promise<boolean>,
  why: () => string = () => "",
): Promise<void> {
  const untilMs = realClock.nowMs() + patienceMs;
  while (!(await check())) {
    if (realClock.nowMs() > untilMs) throw new Error(`waited in vain until ${what}: ${why()}`);
    await sleep(realClock, pollMs);
  }
}

export interface Fleet {
  /** Starts what does not run; resolves when every part is ready and the routers know each other. */
  up(): Promise<void>;
  /** Ends everything at once. */
  down(): Promise<void>;
  part(name: string): RunningProcess;
  /** `http://host:port` of the OpenAI API. */
  readonly api: string;
  metricsOf(name: string): Promise<Metrics>;
  /** Resolves when every gauge of open work of every live process is 0. */
  idle(): Promise<void>;
  /** What every process wrote last. */
  logs(): string;
}

/** A fleet of `parts`, one of which is named `global`; nothing runs before `up`. */
export function createFleet(natsUrl: string, parts: readonly Part[]): Fleet {
  const running = new Map<string, RunningProcess>();
  const live = (): RunningProcess[] => [...running.values()].filter((part) => part.alive());
  const part = (name: string): RunningProcess => {
    const found = running.get(name);
    if (found === undefined) throw new Error(`${name} was not started`);
    return found;
  };
  const metricsOf = (name: string) => scrape(Number(part(name).facts?.["system_port"]));
  const logs = (): string =>
    [...running.values()].map(({ name, stderr }) => `--- ${name}\n${stderr()}`).join("\n");
  const ready = (): boolean => {
    const dead = [...running.values()].find((started) => !started.alive());
    if (dead) throw new Error(`${dead.name} ended: ${dead.stderr()}`);
    return live().every(({ facts }) => facts !== undefined);
  };
  return {
    part,
    metricsOf,
    logs,
    get api() {
      return String(part("global").facts?.["api"]).replace(/\/v1$/, "");
    },
    async up() {
      for (const started of parts) {
        if (running.get(started.name)?.alive()) continue;
        running.set(started.name, startProcess(started, natsUrl));
      }
      await until("every process is ready", ready, logs);
      await until("the fleet is whole", async () => whole(parts, await metricsOf("global")), logs);
    },
    async down() {
      await Promise.all(live().map(kill));
      running.clear();
    },
    async idle() {
      let open: string[] = [];
      const check = async (): Promise<boolean> => {
        const metrics = await Promise.all(live().map(({ name }) => metricsOf(name)));
        open = metrics.flatMap((scraped, at) =>
          scraped.open().map((line) => `${live()[at]?.name} ${line}`),
        );
        return open.length === 0;
      };
      await until("all books are closed", check, () => open.join("\n"));
    },
  };
}

/** The global router counts each router and each worker once. */
function whole(parts: readonly Part[], metrics: Metrics): boolean {
  const count = (command: string): number => parts.filter(({ args }) => args[0] === command).length;
  return (
    metrics.sum("tiergrid_pool_routers") === count("local") &&
    metrics.sum("tiergrid_pool_workers") === count("worker")
  );
}

export interface Metrics {
  /** Sum over all series of a name; throws when there is none. */
  sum(name: string): number;
  /** Series of open work that are not 0. */
  open(): string[];
}

/** Gauges that are 0 when nothing runs; every process has some of them. */
const openWork = new RegExp(
  `^(?:${[
    "tiergrid_bookings_active",
    "tiergrid_pool_inflight",
    "dynamo_component_inflight_requests",
    "dynamo_component_kvstats_active_blocks",
    "dynamo_frontend_(?:inflight|active|queued)_requests",
    "dynamo_frontend_worker_active_(?:decode_blocks|prefill_tokens)",
  ].join("|")})(?:\\{| )`,
);

async function scrape(port: number): Promise<Metrics> {
  const response = await fetch(`http://127.0.0.1:${port}/metrics`);
  const text = await response.text();
  const series = text.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  const readingOf = (line: string): number => Number(line.slice(line.lastIndexOf(" ") + 1));
  const books = series.filter((line) => openWork.test(line));
  if (books.length === 0) throw new Error(`port ${port} has no gauge of open work:\n${text}`);
  return {
    sum(name) {
      const own = series.filter(
        (line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `),
      );
      if (own.length === 0) throw new Error(`no metric ${name}`);
      return own.reduce((sum, line) => sum + readingOf(line), 0);
    },
    open: () => books.filter((line) => readingOf(line) !== 0),
  };
}
