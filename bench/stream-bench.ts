/**
 * R1-R3, P1: streams and large prompts over a real nats-server, every part in a process of its own,
 * compiled as it ships. R is the baseline: two routers that each open a stream, parse and print one
 * JSON message per token. 64 streams; an engine step makes one token for each at once. Rows without
 * `of 1000` are answers of 100 tokens, the target: there, what a request costs counts as much as
 * what its tokens cost.
 */
import { type ChildProcess, execFile, fork } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { realClock, sleep } from "../src/base/clock.ts";
import { findNatsServer } from "../src/runtime/find-nats-server.ts";
import { type NatsServer, startNatsServer } from "../src/runtime/nats-server.ts";
import { type BenchOptions, type BenchRow, median, quantile } from "./bench-row.ts";
import { type ClientMode, type Counted, type Go, pacedStepMs } from "./stream-bench-go.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const cacheDir = join(root, ".cache", "nats-server");
/** Compiled processes; inside the project, so that they find its packages. */
const outDir = join(root, ".cache", "bench");
/** Names a directory to write a CPU profile of every process to. */
const profileDir = process.env["BENCH_CPU_PROFILES"];
/** How long the streams of a window may take to end after it. */
const idleMaxMs = 10_000;
/** Until the readers of events have started and asked. */
const sseWarmupMs = 2_000;
/** Mean answer of the Mooncake conversation trace. */
const meanOutputTokens = 343;
/** Clock ticks per second of /proc/<pid>/stat. */
const ticksPerSecond = 100;

interface Measured {
  readonly unitsPerSecond: number;
  /** CPU per unit in µs: of all processes with the broker, of one router, of client and worker. */
  readonly cpuUs: number;
  readonly routerCpuUs: number;
  readonly endsCpuUs: number;
  readonly failed: number;
  readonly firstTokensMs: readonly number[];
}

interface Fleet {
  readonly server: NatsServer;
  readonly children: ReadonlyMap<string, ChildProcess>;
}

const roles: readonly (readonly [name: string, role: string, next?: string])[] = [
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

export async function run({ quick, groups }: BenchOptions): Promise<BenchRow[]> {
  const chosen = groups ?? Object.keys(rowGroups);
  for (const name of chosen) {
    if (Object.hasOwn(rowGroups, name)) continue;
    throw new Error(`no rows '${name}'; there are: ${Object.keys(rowGroups).join(", ")}`);
  }
  const fleet = await startFleet();
  const load: Load = { fleet, rounds: quick ? 2 : 7, windowMs: quick ? 500 : 1_000 };
  const rows: BenchRow[] = [];
  try {
    for (const name of chosen) {
      console.error(`stream ${name} …`);
      rows.push(...((await rowGroups[name]?.(load)) ?? []));
    }
    return rows;
  } finally {
    for (const child of fleet.children.values()) child.disconnect();
    await fleet.server.stop();
  }
}

interface Load {
  readonly fleet: Fleet;
  readonly rounds: number;
  readonly windowMs: number;
}

/** What `--rows` can name. */
const rowGroups: Readonly<Record<string, (load: Load) => Promise<BenchRow[]>>> = {
  r1: async (load) => {
    const r1 = await againstRelay(load, "json", "router-a", 100);
    return [
      rate("R1 direct JSON / relayed", "tok/s", r1, "≥ 2x"),
      cpu("R1 CPU per router", "µs/tok", r1, "routerCpuUs", "≥ 10x"),
    ];
  },
  r2: async (load) => {
    const r2 = await againstRelay(load, "bundle", "router-a", 100);
    return [
      rate("R2 direct bundles / relayed", "tok/s", r2, "≥ 8x"),
      cpu("R2 CPU, all", "µs/tok", r2, "cpuUs", "≥ 8x"),
      cpu("R2 CPU per router", "µs/tok", r2, "routerCpuUs", "≥ 10x"),
    ];
  },
  r3: async (load) => {
    const [relay, bundle] = [goOf(load, "relay", "relay-worker"), goOf(load, "bundle", "worker")];
    const r3 = await compare(load, relay, bundle);
    return [
      rate("R3 bundles / JSON per token, no hop", "tok/s", r3, "≥ 4x"),
      cpu("R3 CPU, all", "µs/tok", r3, "cpuUs", "-"),
    ];
  },
  long: async (load) => {
    const long = await againstRelay(load, "bundle", "router-a", 1000);
    return [
      rate("R2 of 1000 tokens", "tok/s", long, "-"),
      cpu("R2 of 1000 tokens, CPU, all", "µs/tok", long, "cpuUs", "-"),
    ];
  },
  dispatchers: async (load) => {
    const whole = await againstRelay(load, "bundle", "dispatcher-a", 100);
    const mean = await againstRelay(load, "bundle", "dispatcher-a", meanOutputTokens);
    const long = await againstRelay(load, "bundle", "dispatcher-a", 1000);
    return [
      rate("R2 with dispatchers and notices", "tok/s", whole, "-"),
      cpu("R2 with dispatchers, CPU, all", "µs/tok", whole, "cpuUs", "-"),
      routerShare("R2 with dispatchers, CPU of both routers", whole, "-"),
      routerShare(`the same of ${meanOutputTokens} tokens`, mean, "-"),
      routerShare("the same of 1000 tokens", long, "-"),
    ];
  },
  share: async (load) => {
    // The readers' requests are few: the dispatchers' code has run often enough to be compiled.
    await compare({ ...load, rounds: 1 }, ...relayAnd(load, "bundle", "dispatcher-a", 20));
    const mean = await againstRelay(load, "sse", "dispatcher-a", meanOutputTokens);
    const long = await againstRelay(load, "sse", "dispatcher-a", 1000);
    return [
      routerShare(`share of ${meanOutputTokens} tokens, client writes SSE`, mean, "≤ 0.10"),
      routerShare("share of 1000, client writes SSE", long, "≤ 0.10"),
      cpu("dispatcher's CPU per token, SSE", "µs/tok", mean, "routerCpuUs", "-"),
    ];
  },
  first: async (load) => {
    const first = await firstTokens(load);
    return [addedFirst(0.5, first, "+2 ms"), addedFirst(0.99, first, "+10 ms")];
  },
  p1: async (load) => {
    const prompt = { streams: 4, outputTokens: 0 };
    const json = { ...goOf(load, "prompt-json", "router-a"), ...prompt };
    const p1 = await compare(load, json, { ...json, mode: "prompt-frame" });
    return [
      rate("P1 128k prompt, frame / JSON", "req/s", p1, "≥ 3x"),
      cpu("P1 CPU per router", "µs/req", p1, "routerCpuUs", "≥ 6x"),
    ];
  },
};

function goOf({ windowMs }: Load, mode: ClientMode, inst: string, outputTokens = 100): GoOptions {
  const warmupMs = mode === "sse" ? sseWarmupMs : 400;
  return { mode, inst, streams: 64, outputTokens, warmupMs, windowMs };
}

/** The relay and a candidate, both with answers of `outputTokens`. */
function relayAnd(
  load: Load,
  mode: ClientMode,
  inst: string,
  outputTokens: number,
): readonly [GoOptions, GoOptions] {
  return [goOf(load, "relay", "relay-a", outputTokens), goOf(load, mode, inst, outputTokens)];
}

function againstRelay(
  load: Load,
  mode: ClientMode,
  inst: string,
  outputTokens: number,
): Promise<Comparison> {
  return compare(load, ...relayAnd(load, mode, inst, outputTokens));
}

type GoOptions = Omit<Go, "type">;

interface Comparison {
  readonly baseline: readonly Measured[];
  readonly ours: readonly Measured[];
}

/** Alternates both sides; the first round warms up and is dropped. */
async function compare(
  { fleet, rounds }: Load,
  baseline: GoOptions,
  ours: GoOptions,
): Promise<Comparison> {
  const found: { baseline: Measured[]; ours: Measured[] } = { baseline: [], ours: [] };
  for (let round = 0; round <= rounds; round++) {
    const [theirs, mine] = [await measure(fleet, baseline), await measure(fleet, ours)];
    if (round === 0) continue;
    found.baseline.push(theirs);
    found.ours.push(mine);
  }
  return found;
}

async function measure(fleet: Fleet, go: GoOptions): Promise<Measured> {
  const client = childOf(fleet, "client");
  // Listened for before anything is asked: on a busy machine a window is over before all have
  // told their CPU time.
  const [warm, count, idle] = ["warm", "counted", "idle"].map((type) => messageOf(client, type));
  for (const told of [warm, count, idle]) told?.catch(() => {});
  client.send({ type: "go", ...go } satisfies Go);
  await warm;
  const before = await cpuTimes(fleet);
  const counted = (await count) as Counted;
  const after = await cpuTimes(fleet);
  // A relay that reads too far behind loses its connection, and streams with it, for good.
  await Promise.race([idle, sleep(realClock, idleMaxMs)]);
  const spent = (names: readonly string[]): number =>
    names.reduce((sum, name) => sum + (after.get(name) ?? 0) - (before.get(name) ?? 0), 0);
  const isRelay = go.mode === "relay";
  const kind = go.inst.startsWith("dispatcher") ? "dispatcher" : "router";
  const routers = isRelay ? ["relay-a", "relay-b"] : [`${kind}-a`, `${kind}-b`];
  const ends = ["client", isRelay ? "relay-worker" : "worker"];
  return {
    unitsPerSecond: (1000 * counted.units) / counted.ms,
    cpuUs: spent([...after.keys()]) / counted.units,
    routerCpuUs: spent(routers) / 2 / counted.units,
    endsCpuUs: spent(ends) / counted.units,
    failed: counted.failed,
    firstTokensMs: counted.firstTokensMs,
  };
}

interface FirstTokens {
  readonly direct: readonly number[];
  readonly tiers: readonly number[];
  readonly failed: number;
}

/** Times to the first token of 200 paced streams, asked of the worker or through both tiers. */
async function firstTokens({ fleet, rounds }: Load): Promise<FirstTokens> {
  const open = { mode: "open", streams: 200, outputTokens: 100, windowMs: 2_000 } as const;
  // Until as many answers are open as shall be.
  const warmupMs = 1.2 * pacedStepMs * open.outputTokens;
  const [direct, tiers]: [number[], number[]] = [[], []];
  let failed = 0;
  for (let round = 0; round <= rounds; round++) {
    const alone = await measure(fleet, { ...open, warmupMs, inst: "worker" });
    const routed = await measure(fleet, { ...open, warmupMs, inst: "dispatcher-a" });
    if (round === 0) continue;
    direct.push(...alone.firstTokensMs);
    tiers.push(...routed.firstTokensMs);
    failed += alone.failed + routed.failed;
  }
  return { direct, tiers, failed };
}

/** Here `ratio` says little: the target is the difference. */
function addedFirst(q: number, { direct, tiers, failed }: FirstTokens, target: string): BenchRow {
  const [baseline, ours] = [quantile(direct, q), quantile(tiers, q)];
  const added = `adds ${(ours - baseline).toFixed(2)} ms to ${direct.length} requests`;
  const note = failed > 0 ? `${added}, ${failed} answers failed` : added;
  const id = `first token p${100 * q}, through both tiers`;
  return { id, unit: "ms", baseline, ours, ratio: baseline / ours, target, note };
}

/** CPU time in µs so far, by process; `server` is the broker. */
async function cpuTimes(fleet: Fleet): Promise<Map<string, number>> {
  const times = new Map<string, number>();
  const ask = async ([name, child]: readonly [string, ChildProcess]): Promise<void> => {
    child.send({ type: "cpu" });
    const usage = (await messageOf(child, "cpu")) as unknown as NodeJS.CpuUsage;
    times.set(name, usage.user + usage.system);
  };
  await Promise.all([...fleet.children].map(ask));
  const stat = await readFile(`/proc/${fleet.server.pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const ticks = Number(fields[11]) + Number(fields[12]);
  return times.set("server", (1e6 * ticks) / ticksPerSecond);
}

function rate(id: string, unit: string, found: Comparison, target: string): BenchRow {
  const ratios = found.ours.map(
    (mine, round) => mine.unitsPerSecond / (found.baseline[round]?.unitsPerSecond ?? Number.NaN),
  );
  const of = (side: readonly Measured[]): number => median(side.map((one) => one.unitsPerSecond));
  const fields = { id, unit, baseline: of(found.baseline), ours: of(found.ours), target };
  const failed = found.ours.reduce((sum, one) => sum + one.failed, 0);
  const rounds = `rounds ${ratios.map((ratio) => ratio.toFixed(1)).join(" ")}`;
  const note = failed > 0 ? `${rounds}; ${failed} answers failed` : rounds;
  return row({ ...fields, note }, ratios);
}

function cpu(
  id: string,
  unit: string,
  found: Comparison,
  column: "cpuUs" | "routerCpuUs",
  target: string,
): BenchRow {
  const ratios = found.ours.map(
    (mine, round) => (found.baseline[round]?.[column] ?? Number.NaN) / mine[column],
  );
  const of = (side: readonly Measured[]): number => median(side.map((one) => one[column]));
  return row({ id, unit, baseline: of(found.baseline), ours: of(found.ours), target }, ratios);
}

/** CPU of both routers as a part of the client's and the worker's; below 1 is less. */
function routerShare(id: string, found: Comparison | undefined, target: string): BenchRow {
  const of = (side: readonly Measured[]): number =>
    median(side.map(({ routerCpuUs, endsCpuUs }) => (2 * routerCpuUs) / endsCpuUs));
  const [baseline, ours] = [of(found?.baseline ?? []), of(found?.ours ?? [])];
  return { id, unit: "of ends", baseline, ours, ratio: baseline / ours, target };
}

function row(fields: Omit<BenchRow, "ratio">, ratios: readonly number[]): BenchRow {
  return { ...fields, ratio: median(ratios) };
}

async function startFleet(): Promise<Fleet> {
  const onProgress = (line: string): void => console.error(line);
  const find = { cacheDir, env: process.env, onProgress, allowDownload: true, clock: realClock };
  const binary = await findNatsServer(find);
  if (binary === undefined) throw new Error("the stream bench needs a nats-server");
  await compile();
  const server = await startNatsServer({ binary, clock: realClock });
  const children = new Map<string, ChildProcess>();
  for (const [name, role, next = ""] of roles) {
    const args = [role, server.url, name, next];
    const execArgv = profileDir
      ? ["--cpu-prof", `--cpu-prof-dir=${profileDir}`, `--cpu-prof-name=${name}.cpuprofile`]
      : [];
    const child = fork(join(outDir, "bench", "stream-bench-process.js"), args, { execArgv });
    children.set(name, child);
    await messageOf(child, "ready");
  }
  return { server, children };
}

/** Plain JavaScript, as packages ship it: a loader's wrappers would be measured too. */
async function compile(): Promise<void> {
  const options = {
    target: "es2023",
    module: "nodenext",
    types: "node",
    rootDir: root,
    outDir,
  };
  const flags = Object.entries(options).flatMap(([name, value]) => [`--${name}`, value]);
  const switches = ["--rewriteRelativeImportExtensions", "--skipLibCheck", "--noCheck"];
  const source = join(root, "bench", "stream-bench-process.ts");
  const tsc = join(root, "node_modules", ".bin", "tsc");
  await promisify(execFile)(tsc, [source, "--ignoreConfig", ...flags, ...switches]);
}

function childOf(fleet: Fleet, name: string): ChildProcess {
  const child = fleet.children.get(name);
  if (!child) throw new Error(`no process ${name}`);
  return child;
}

/** The next IPC message of that type; rejects when the process ends before. */
function messageOf(child: ChildProcess, type: string): Promise<{ readonly type: string }> {
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
