/** The processes of the stream bench and their broker: started, told, timed, stopped. */
import { type ChildProcess, execFile, fork } from "node:child_process";
import { readFile, rm, symlink } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { realClock } from "../src/base/clock.ts";
import { findNatsServer } from "../src/runtime/find-nats-server.ts";
import { type NatsServer, startNatsServer } from "../src/runtime/nats-server.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const cacheDir = join(root, ".cache", "nats-server");
/** Compiled processes; inside the project, so that they find its packages. */
export const outDir: string = join(root, ".cache", "bench");
/** What the program reads beside its code. */
const assets = ["schemas", "models", "dist", "package.json"];
/** Names a directory to write a CPU profile of every process to. */
const profileDir = process.env["BENCH_CPU_PROFILES"];
/** Clock ticks per second of /proc/<pid>/stat. */
const ticksPerSecond = 100;

export interface Fleet {
  readonly server: NatsServer;
  readonly children: ReadonlyMap<string, ChildProcess>;
}

const roles: readonly (readonly [name: string, role: string, next?: string])[] = [
  ["plain-worker", "plain-worker"],
  ["plain-b", "plain-router", "plain-worker"],
  ["plain-a", "plain-router", "plain-b"],
  ["plain-client", "plain-client"],
  ["relay-worker", "relay-worker"],
  ["relay-b", "relay-router", "relay-worker"],
  ["relay-a", "relay-router", "relay-b"],
  ["worker", "worker"],
  ["router-b", "router", "worker"],
  ["router-a", "router", "router-b"],
  ["dispatcher-b", "dispatcher", "worker"],
  ["dispatcher-a", "dispatcher", "dispatcher-b"],
  ["client", "client"],
];

/** A broker of the bench's own. */
export async function startBroker(): Promise<NatsServer> {
  const onProgress = (line: string): void => console.error(line);
  const find = { cacheDir, env: process.env, onProgress, allowDownload: true, clock: realClock };
  const binary = await findNatsServer(find);
  if (binary === undefined) throw new Error("the bench needs a nats-server");
  return startNatsServer({ binary, clock: realClock });
}

export async function startFleet(): Promise<Fleet> {
  await compile("bench/stream-bench-process.ts");
  const server = await startBroker();
  const children = new Map<string, ChildProcess>();
  for (const [name, role, next = ""] of roles) {
    const args = [role, server.url, name, next];
    const execArgv = profileArgs(name);
    const child = fork(join(outDir, "bench", "stream-bench-process.js"), args, { execArgv });
    children.set(name, child);
    await messageOf(child, "ready");
  }
  return { server, children };
}

export async function stopFleet({ server, children }: Fleet): Promise<void> {
  for (const child of children.values()) child.disconnect();
  await server.stop();
}

/** Flags of Node that write `<name>.cpuprofile`, when profiles are asked for. */
export function profileArgs(name: string): string[] {
  if (!profileDir) return [];
  return ["--cpu-prof", `--cpu-prof-dir=${profileDir}`, `--cpu-prof-name=${name}.cpuprofile`];
}

/** Plain JavaScript, as packages ship it: a loader's wrappers would be measured too. */
export async function compile(...sources: readonly string[]): Promise<void> {
  const options = {
    target: "es2023",
    module: "nodenext",
    types: "node",
    rootDir: root,
    outDir,
  };
  const flags = Object.entries(options).flatMap(([name, value]) => [`--${name}`, value]);
  const switches = ["--rewriteRelativeImportExtensions", "--skipLibCheck", "--noCheck"];
  const paths = sources.map((source) => join(root, source));
  const tsc = join(root, "node_modules", ".bin", "tsc");
  await promisify(execFile)(tsc, [...paths, "--ignoreConfig", ...flags, ...switches]);
  for (const name of assets) {
    const link = join(outDir, name);
    await rm(link, { force: true });
    await symlink(join(root, name), link);
  }
}

export function childOf(fleet: Fleet, name: string): ChildProcess {
  const child = fleet.children.get(name);
  if (!child) throw new Error(`no process ${name}`);
  return child;
}

/** The next IPC message of that type; rejects when the process ends before. */
export function messageOf(child: ChildProcess, type: string): Promise<{ readonly type: string }> {
  return new Promise((resolve, reject) => {
    const onMessage = (message: { readonly type: string }): void => {
      if (message.type !== type) return;
      child.off("message", onMessage).off("exit", onExit);
      resolve(message);
    };
    const onExit = (): void => reject(new Error(`a bench process ended before ${type}`));
    child.on("message", onMessage).once("exit", onExit);
  });
}

/** CPU time in µs so far, by process; `server` is the broker. */
export async function cpuTimes(fleet: Fleet): Promise<Map<string, number>> {
  const times = new Map<string, number>();
  const ask = async ([name, child]: readonly [string, ChildProcess]): Promise<void> => {
    child.send({ type: "cpu" });
    const usage = (await messageOf(child, "cpu")) as unknown as NodeJS.CpuUsage;
    times.set(name, usage.user + usage.system);
  };
  await Promise.all([...fleet.children].map(ask));
  return times.set("server", await cpuTimeOf(fleet.server.pid));
}

/** CPU time of any process in µs so far, as the kernel counts it: in ticks of 10 ms. */
export async function cpuTimeOf(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const ticks = Number(fields[11]) + Number(fields[12]);
  return (1e6 * ticks) / ticksPerSecond;
}
