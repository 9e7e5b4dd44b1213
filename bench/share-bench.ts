/**
 * The routers' share of the CPU, from the real processes: what `tiergrid global` and `tiergrid local`
 * take, with hashing, index, KV events and notices, over what workers and frontend take.
 *
 *   readers ──HTTP──▶ frontend ──NATS──▶ global ──▶ local ──▶ workers (2 processes of 2 mock engines)
 *           ◀──SSE───          ◀──────────── tokens ───────────┘
 *
 * The frontend runs in a process of its own (`share-frontend.ts`) instead of beside the global router,
 * so that the kernel counts them apart; it is the same function. 64 readers ask again as soon as an
 * answer has ended: requests of a synthetic trace like the Mooncake conversation one (prompts of 12 k
 * tokens in the mean, answers of 340, 40 % of the blocks seen before), engines four times as
 * fast as their profile. The readers live in the bench's process, whose CPU is nobody's, as the broker's.
 */
import { type ChildProcess, fork } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { Agent, type IncomingMessage, request as openRequest } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { realClock, sleep } from "../src/base/clock.ts";
import type { TraceRequest } from "../src/sim/mooncake-trace.ts";
import { synthesisPresets, synthesizeTrace } from "../src/sim/trace-synth.ts";
import { promptTokens } from "../src/sim/workload.ts";
import type { BenchOptions, BenchRow } from "./bench-row.ts";
import {
  compile,
  cpuTimeOf,
  messageOf,
  outDir,
  profileArgs,
  startBroker,
} from "./stream-bench-fleet.ts";

const model = "mock-model";
const readers = 64;
/** Engines that many times as fast as their profile, so that the window holds many requests. */
const engineSpeed = 4;
const restSeconds = 5;
const readyMaxMs = 60_000;
const exitMaxMs = 5_000;
const retryMs = 250;

/** Like the Mooncake conversation trace: 12,230 prompt and 339 output tokens in the mean. */
const conversation = {
  ...synthesisPresets.toolagent,
  ...{ requests: 4_000, durationMs: 600_000, agentShare: 0, shortOutShare: 0 },
  ...{ firstMu: 8.6, turnMu: 7, sessionTurns: 1.8, sessionGapMs: 30_000, outMedian: 268 },
};

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
interface Pool {
  readonly namespace: string;
  readonly role: "aggregated" | "prefill" | "decode";
  readonly workerProcesses: number;
}

const layouts: Readonly<Record<string, { config: object; pools: readonly Pool[] }>> = {
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

export async function run({ quick, seed, groups }: BenchOptions): Promise<BenchRow[]> {
  await compile("bench/share-frontend.ts", "src/cli/main.ts");
  const requests = synthesizeTrace({ ...conversation, seed });
  const rows: BenchRow[] = [];
  for (const name of groups ?? Object.keys(layouts)) {
    const layout = layouts[name];
    if (!layout)
      throw new Error(`no rows '${name}'; there are: ${Object.keys(layouts).join(", ")}`);
    console.error(`share ${name} …`);
    const fleet = await startParts(layout.config, layout.pools);
    try {
      rows.push(shareRow(name, await measure(fleet, requests, quick)));
    } finally {
      await fleet.stop();
    }
  }
  return rows;
}

/** Names of a fleet's processes; several may share one. */
type PartName = "broker" | "frontend" | "global" | "local" | "worker";

interface Parts {
  readonly url: string;
  readonly pids: readonly (readonly [name: PartName, pid: number])[];
  stop(): Promise<void>;
}

async function startParts(config: object, pools: readonly Pool[]): Promise<Parts> {
  const folder = await mkdtemp(join(tmpdir(), "tiergrid-share-"));
  const path = join(folder, "pools.json");
  await writeFile(path, JSON.stringify(config));
  const server = await startBroker();
  const children: (readonly [PartName, ChildProcess])[] = [];
  const start = (name: PartName, args: readonly string[]): ChildProcess => {
    const program = name === "frontend" ? "bench/share-frontend.js" : "src/cli/main.js";
    const env = { ...process.env, DYN_SYSTEM_HOST: "127.0.0.1" };
    const execArgv = profileArgs(`${name}-${children.length}`);
    const stdio = ["ignore", "ignore", "inherit", "ipc"] as const;
    const child = fork(join(outDir, program), args, { env, execArgv, stdio: [...stdio] });
    children.push([name, child]);
    return child;
  };
  const common = ["--nats", server.url, "--system-port", "0", "--log", "error"];
  const patient = ["--accept-timeout-ms", "5000"];
  for (const { namespace, role, workerProcesses } of pools) {
    const served = ["--endpoint", `${namespace}.backend.generate`];
    const router = ["--role", role, "--router-block-size", "64", ...patient];
    start("local", ["local", ...served, ...router, ...common]);
    for (let count = 0; count < workerProcesses; count++) {
      const engines = ["--count", "2", "--role", role, "--speed", String(engineSpeed)];
      start("worker", ["worker", "mock", ...served, ...engines, ...common]);
    }
  }
  const named = ["--config", path, "--model-name", model, "--http-port", "0"];
  start("global", ["global", ...named, ...patient, ...common]);
  const frontend = start("frontend", [server.url, model]);
  const { url } = (await messageOf(frontend, "ready")) as unknown as { readonly url: string };
  const pids = children.map(([name, child]) => [name, child.pid ?? -1] as const);
  return {
    url,
    pids: [...pids, ["broker", server.pid]],
    stop: async () => {
      await Promise.all(children.map(([, child]) => ended(child)));
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

type CpuTimes = ReadonlyMap<PartName, number>;

interface Measured {
  /** CPU time in µs within the window, by part. */
  readonly cpuUs: CpuTimes;
  /** The same per second of a fleet that nobody asks anything. */
  readonly restUs: CpuTimes;
  readonly ms: number;
  /** Of answers that ended within the window. */
  readonly answers: number;
  readonly promptTokens: number;
  readonly outputTokens: number;
  readonly failed: number;
}

async function measure(
  { url, pids }: Parts,
  requests: readonly TraceRequest[],
  quick: boolean,
): Promise<Measured> {
  const agent = new Agent({ keepAlive: true, maxSockets: readers });
  const counts = { answers: 0, promptTokens: 0, outputTokens: 0, failed: 0 };
  let next = 0;
  let over = false;
  await firstAnswer(url, agent);
  const atRest = await cpuOf(pids);
  await sleep(realClock, 1000 * restSeconds);
  const restUs = spentBetween(atRest, await cpuOf(pids), restSeconds);
  const read = async (): Promise<void> => {
    while (!over) {
      const request = requests[next++ % requests.length]!;
      if (await answered(url, agent, request)) {
        counts.answers += 1;
        counts.promptTokens += request.inputTokens;
        counts.outputTokens += request.outputTokens;
      } else counts.failed += 1;
    }
  };
  const reading = Array.from({ length: readers }, read);
  await sleep(realClock, quick ? 10_000 : 30_000);
  const [before, startMs, start] = [await cpuOf(pids), realClock.nowMs(), { ...counts }];
  await sleep(realClock, quick ? 10_000 : 60_000);
  const [after, ms, end] = [await cpuOf(pids), realClock.nowMs() - startMs, { ...counts }];
  over = true;
  await Promise.all(reading);
  agent.destroy();
  return {
    cpuUs: spentBetween(before, after),
    restUs,
    ms,
    answers: end.answers - start.answers,
    promptTokens: end.promptTokens - start.promptTokens,
    outputTokens: end.outputTokens - start.outputTokens,
    failed: end.failed,
  };
}

function spentBetween(before: CpuTimes, after: CpuTimes, divisor = 1): CpuTimes {
  const spent = (name: PartName, us: number): number => (us - (before.get(name) ?? 0)) / divisor;
  return new Map([...after].map(([name, us]) => [name, spent(name, us)]));
}

/** Waits until the fleet serves. */
async function firstAnswer(url: string, agent: Agent): Promise<void> {
  const untilMs = realClock.nowMs() + readyMaxMs;
  const request = { arrivalMs: 0, inputTokens: 8, outputTokens: 1, hashIds: [0] };
  while (!(await answered(url, agent, request))) {
    if (realClock.nowMs() > untilMs) throw new Error("the fleet does not answer");
    await sleep(realClock, retryMs);
  }
}

/** Asks, reads and forgets; false unless the answer was complete. */
async function answered(url: string, agent: Agent, request: TraceRequest): Promise<boolean> {
  const { outputTokens } = request;
  const limits = JSON.stringify({
    model,
    max_tokens: outputTokens,
    ignore_eos: true,
    stream: true,
  });
  const body = `${limits.slice(0, -1)},"prompt":[${promptTokens(request).join(",")}]}`;
  const headers = { "content-type": "application/json", "content-length": body.length };
  try {
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const sent = openRequest(`${url}/v1/completions`, { agent, method: "POST", headers });
      sent.once("response", resolve).once("error", reject).end(body);
    });
    let last = "";
    response.setEncoding("latin1");
    for await (const text of response) last = (last + text).slice(-64);
    return response.statusCode === 200 && last.includes("[DONE]");
  } catch {
    return false;
  }
}

async function cpuOf(pids: Parts["pids"]): Promise<CpuTimes> {
  const times = new Map<PartName, number>();
  for (const [name, pid] of pids) {
    times.set(name, (times.get(name) ?? 0) + (await cpuTimeOf(pid)));
  }
  return times;
}

function shareRow(name: string, measured: Measured): BenchRow {
  const { cpuUs, restUs, ms, answers, promptTokens: prompts, outputTokens, failed } = measured;
  const of = (...parts: readonly PartName[]): number =>
    parts.reduce((sum, part) => sum + (cpuUs.get(part) ?? 0), 0);
  const partText = (part: PartName): string => {
    const perToken = (of(part) / outputTokens).toFixed(2);
    return `${part} ${perToken} µs/tok (at rest ${((restUs.get(part) ?? 0) / 1000).toFixed(0)} ms/s)`;
  };
  const note = [
    ...(["global", "local", "frontend", "worker", "broker"] as const).map(partText),
    `${((1000 * outputTokens) / ms).toFixed(0)} tok/s in ${answers} answers`,
    `prompts of ${(prompts / answers).toFixed(0)}, answers of ${(outputTokens / answers).toFixed(0)}`,
    ...(failed > 0 ? [`${failed} failed`] : []),
  ].join(", ");
  const id = `${name}: routers' CPU / workers' and frontend's`;
  const ours = of("global", "local") / of("worker", "frontend");
  return {
    id,
    unit: "of ends",
    baseline: Number.NaN,
    ours,
    ratio: Number.NaN,
    target: "≤ 0.10",
    note,
  };
}
