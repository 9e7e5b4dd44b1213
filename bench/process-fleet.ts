/**
 * A fleet of the product's own processes for benches: broker, `tiergrid global`, a `tiergrid local` a
 * pool, mock workers, and the frontend in a process of its own (`share-frontend.ts`), so that the kernel
 * counts it apart from the global router.
 */
import { type ChildProcess, fork } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { realClock, sleep } from "../src/base/clock.ts";
import { messageOf, outDir, profileArgs, startBroker } from "./stream-bench-fleet.ts";

export const model = "mock-model";
const exitMaxMs = 5_000;

const aggregated = {
  mode: "agg",
  num_agg_pools: 1,
  agg_pool_dynamo_namespaces: ["pool"],
  agg_pool_selection_strategy: {
    ...{ ttft_min_ms: 100, ttft_max_ms: 1100, ttft_resolution: 2 },
    ...{ itl_min_ms: 10, itl_max_ms: 110, itl_resolution: 2 },
    agg_pool_mapping: [
      [0, 0],
      [0, 0],
    ],
  },
};

const disaggregated = {
  mode: "disagg",
  num_prefill_pools: 1,
  prefill_pool_dynamo_namespaces: ["prefill"],
  prefill_pool_selection_strategy: {
    ...{ isl_min: 0, isl_max: 131_072, isl_resolution: 1 },
    ...{ ttft_min_ms: 50, ttft_max_ms: 3000, ttft_resolution: 1 },
    prefill_pool_mapping: [[0]],
  },
  num_decode_pools: 1,
  decode_pool_dynamo_namespaces: ["decode"],
  decode_pool_selection_strategy: {
    ...{ context_length_min: 0, context_length_max: 131_072, context_length_resolution: 1 },
    ...{ itl_min_ms: 5, itl_max_ms: 100, itl_resolution: 1 },
    decode_pool_mapping: [[0]],
  },
};

/** A local router and its workers. */
export interface Pool {
  readonly namespace: string;
  readonly role: "aggregated" | "prefill" | "decode";
  readonly workerProcesses: number;
}

/** A pool config and the pools behind it. */
export interface Layout {
  readonly config: object;
  readonly pools: readonly Pool[];
}

export const layouts: { readonly agg: Layout; readonly disagg: Layout } = {
  agg: {
    config: aggregated,
    pools: [{ namespace: "pool", role: "aggregated", workerProcesses: 2 }],
  },
  disagg: {
    config: disaggregated,
    pools: [
      { namespace: "prefill", role: "prefill", workerProcesses: 1 },
      { namespace: "decode", role: "decode", workerProcesses: 1 },
    ],
  },
};

/** Several processes may share one. */
export type PartName = "frontend" | "global" | "local" | "worker";

/** What a process runs with, beside its own flags. */
export interface FleetOptions {
  /** Engines that many times as fast as their profile. */
  readonly engineSpeed: number;
  /** Flags of Node for every process. */
  readonly execArgv?: readonly string[];
}

export interface Part {
  readonly name: PartName;
  readonly child: ChildProcess;
}

export interface Parts {
  readonly url: string;
  readonly brokerPid: number;
  /** All but the broker, as they run now. */
  readonly parts: () => readonly Part[];
  /** Ends the last worker process of the first pool at once, and starts another in its place. */
  replaceWorker(): void;
  stop(): Promise<void>;
}

/** Resolves when the frontend listens; the fleet may not serve yet. */
export async function startParts(
  { config, pools }: Layout,
  { engineSpeed, execArgv = [] }: FleetOptions,
): Promise<Parts> {
  const folder = await mkdtemp(join(tmpdir(), "tiergrid-bench-"));
  const path = join(folder, "pools.json");
  await writeFile(path, JSON.stringify(config));
  const server = await startBroker();
  const parts: Part[] = [];
  let started = 0;
  const start = (name: PartName, args: readonly string[]): ChildProcess => {
    const program = name === "frontend" ? "bench/share-frontend.js" : "src/cli/main.js";
    const env = {
      ...process.env,
      DYN_SYSTEM_HOST: "127.0.0.1",
      // No load balancer has to notice that a process ends.
      DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS: "0",
    };
    const flags = [...execArgv, ...profileArgs(`${name}-${started++}`)];
    const stdio = ["ignore", "ignore", "inherit", "ipc"] as const;
    const child = fork(join(outDir, program), args, { env, execArgv: flags, stdio: [...stdio] });
    parts.push({ name, child });
    return child;
  };
  const common = ["--nats", server.url, "--system-port", "0", "--log", "error"];
  const patient = ["--accept-timeout-ms", "5000"];
  const startWorker = ({ namespace, role }: Pool): void => {
    const served = ["--endpoint", `${namespace}.backend.generate`];
    const engines = ["--count", "2", "--role", role, "--speed", String(engineSpeed)];
    start("worker", ["worker", "mock", ...served, ...engines, ...common]);
  };
  for (const pool of pools) {
    const served = ["--endpoint", `${pool.namespace}.backend.generate`];
    const router = ["--role", pool.role, "--router-block-size", "64", ...patient];
    start("local", ["local", ...served, ...router, ...common]);
    for (let count = 0; count < pool.workerProcesses; count++) startWorker(pool);
  }
  const named = ["--config", path, "--model-name", model, "--http-port", "0"];
  start("global", ["global", ...named, ...patient, ...common]);
  const frontend = start("frontend", [server.url, model]);
  const { url } = (await messageOf(frontend, "ready")) as unknown as { readonly url: string };
  return {
    url,
    brokerPid: server.pid,
    parts: () => parts,
    replaceWorker: () => {
      const last = parts.findLastIndex(({ name }) => name === "worker");
      const [old] = parts.splice(last, 1);
      old?.child.kill("SIGKILL");
      startWorker(pools[0]!);
    },
    stop: async () => {
      await Promise.all(parts.map(({ child }) => ended(child)));
      await server.stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** Ends a process in order, and after a while at once. */
async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGTERM");
  await Promise.race([exited, sleep(realClock, exitMaxMs)]);
  child.kill("SIGKILL");
  await exited;
}
