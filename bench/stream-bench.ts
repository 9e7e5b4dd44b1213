/**
 * R1-R3, P1: streams and large prompts over a real nats-server, every part in a process of its own,
 * compiled as it ships. The baseline is a relay, `baselines/relay.ts`, on the plain client of NATS; further
 * rows show the same relay on our bus. 64 streams; an engine step makes one token for each at once. Rows without
 * `of 1000` are answers of 100 tokens, the target: there, what a request costs counts as much as
 * what its tokens cost.
 */
import { realClock, sleep } from "../src/base/clock.ts";
import { type BenchOptions, type BenchRow, median, quantile } from "./bench-row.ts";
import {
  childOf,
  cpuTimes,
  type Fleet,
  messageOf,
  startFleet,
  stopFleet,
} from "./stream-bench-fleet.ts";
import { type ClientMode, type Counted, type Go, pacedStepMs } from "./stream-bench-go.ts";

/** How long the streams of a window may take to end after it. */
const idleMaxMs = 10_000;
/** Until the readers of events have started and asked. */
const sseWarmupMs = 2_000;
/** Length of the dropped round, in windows of the others. */
const firstRoundWindows = 8;
/** Mean answer of the Mooncake conversation trace. */
const meanOutputTokens = 343;
interface Measured {
  readonly unitsPerSecond: number;
  /** CPU per unit in µs: of all that take part, with the broker; of one router; of both ends. */
  readonly cpuUs: number;
  readonly routerCpuUs: number;
  readonly endsCpuUs: number;
  readonly failed: number;
  readonly firstTokensMs: readonly number[];
}

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
    await stopFleet(fleet);
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
    const [r1, onBus] = await againstRelays(load, "json", "router-a");
    return [
      rate("R1 direct JSON / relayed", "tok/s", r1, "≥ 2x"),
      cpu("R1 CPU per router", "µs/tok", r1, "routerCpuUs", "≥ 10x"),
      rate("R1, relay over our bus", "tok/s", onBus, "-"),
    ];
  },
  r2: async (load) => {
    const [r2, onBus] = await againstRelays(load, "bundle", "router-a");
    return [
      rate("R2 direct bundles / relayed", "tok/s", r2, "≥ 8x"),
      cpu("R2 CPU, all", "µs/tok", r2, "cpuUs", "≥ 8x"),
      cpu("R2 CPU per router", "µs/tok", r2, "routerCpuUs", "≥ 10x"),
      rate("R2, relay over our bus", "tok/s", onBus, "-"),
      cpu("R2, relay over our bus, CPU, all", "µs/tok", onBus, "cpuUs", "-"),
    ];
  },
  r3: async (load) => {
    const sides = [
      goOf(load, "relay", "plain-worker"),
      goOf(load, "relay", "relay-worker"),
      goOf(load, "json", "worker"),
      goOf(load, "bundle", "worker"),
    ];
    const [plain = [], onBus = [], sender = [], ours = []] = await alternate(load, sides);
    return [
      rate("R3 bundles / JSON per token, no hop", "tok/s", { baseline: plain, ours }, "≥ 4x"),
      cpu("R3 CPU, all", "µs/tok", { baseline: plain, ours }, "cpuUs", "-"),
      rate("R3, JSON over our bus", "tok/s", { baseline: onBus, ours }, "-"),
      rate("R3, JSON of our own sender", "tok/s", { baseline: sender, ours }, "-"),
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
    await alternate({ ...load, rounds: 0 }, relayAnd(load, "bundle", "dispatcher-a", 20));
    const mean = await againstRelay(load, "sse", "dispatcher-a", meanOutputTokens);
    const long = await againstRelay(load, "sse", "dispatcher-a", 1000);
    return [
      routerShare(`share of ${meanOutputTokens} tokens, client writes SSE`, mean, "≤ 0.10"),
      routerShare("share of 1000, client writes SSE", long, "≤ 0.10"),
      tokenShare("share of a further token, client writes SSE", mean, long, "-"),
      cpu("dispatcher's CPU per token, SSE", "µs/tok", mean, "routerCpuUs", "-"),
    ];
  },
  first: async (load) => {
    const first = await firstTokens(load);
    return [addedFirst(0.5, first, "+2 ms"), addedFirst(0.99, first, "+10 ms")];
  },
  p1: async (load) => {
    const of = (mode: ClientMode, inst: string): GoOptions => ({
      ...goOf(load, mode, inst, 0),
      streams: 4,
    });
    const sides = [
      of("prompt-relay", "plain-a"),
      of("prompt-json", "router-a"),
      of("prompt-frame", "router-a"),
    ];
    const [baseline = [], json = [], ours = []] = await alternate(load, sides);
    const p1 = { baseline, ours };
    return [
      rate("P1 128k prompt, frame / JSON", "req/s", p1, "≥ 3x"),
      cpu("P1 CPU per router", "µs/req", p1, "routerCpuUs", "≥ 6x"),
      rate("P1, JSON through our routers", "req/s", { baseline: json, ours }, "-"),
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
  return [goOf(load, "relay", "plain-a", outputTokens), goOf(load, mode, inst, outputTokens)];
}

async function againstRelay(
  load: Load,
  mode: ClientMode,
  inst: string,
  outputTokens: number,
): Promise<Comparison> {
  const sides = relayAnd(load, mode, inst, outputTokens);
  const [baseline = [], ours = []] = await alternate(load, sides);
  return { baseline, ours };
}

/** A candidate against the relay on the plain client, and against the relay on our bus. */
async function againstRelays(
  load: Load,
  mode: ClientMode,
  inst: string,
): Promise<readonly [Comparison, Comparison]> {
  const [relay, candidate] = relayAnd(load, mode, inst, 100);
  const sides = [relay, goOf(load, "relay", "relay-a"), candidate];
  const [plain = [], onBus = [], ours = []] = await alternate(load, sides);
  return [
    { baseline: plain, ours },
    { baseline: onBus, ours },
  ];
}

type GoOptions = Omit<Go, "type">;

interface Comparison {
  readonly baseline: readonly Measured[];
  readonly ours: readonly Measured[];
}

/** Measures the sides in turns; the first, longer round is dropped: by then all code is optimized. */
async function alternate(
  { fleet, rounds }: Load,
  sides: readonly GoOptions[],
): Promise<readonly Measured[][]> {
  const found: Measured[][] = sides.map(() => []);
  for (let round = 0; round <= rounds; round++) {
    for (const [index, side] of sides.entries()) {
      const windowMs = round === 0 ? firstRoundWindows * side.windowMs : side.windowMs;
      const measured = await measure(fleet, { ...side, windowMs });
      if (round > 0) found[index]?.push(measured);
    }
  }
  return found;
}

async function measure(fleet: Fleet, go: GoOptions): Promise<Measured> {
  const family = familyOf(go.inst);
  const client = childOf(fleet, family.client);
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
  return {
    unitsPerSecond: (1000 * counted.units) / counted.ms,
    cpuUs: spent(["server", ...family.routers, family.client, family.worker]) / counted.units,
    routerCpuUs: spent(family.routers) / 2 / counted.units,
    endsCpuUs: spent([family.client, family.worker]) / counted.units,
    failed: counted.failed,
    firstTokensMs: counted.firstTokensMs,
  };
}

/** The processes that a request to `inst` concerns. */
function familyOf(inst: string): { client: string; routers: readonly string[]; worker: string } {
  const name = inst.replace(/-.*/, "");
  const routers = [`${name}-a`, `${name}-b`];
  if (name === "plain") return { client: "plain-client", routers, worker: "plain-worker" };
  return { client: "client", routers, worker: name === "relay" ? "relay-worker" : "worker" };
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

/**
 * The same per token by which answers of 1000 are longer than `mean` ones: without what a request
 * costs on its way down, which is the same for both.
 */
function tokenShare(id: string, mean: Comparison, long: Comparison, target: string): BenchRow {
  const of = (side: "baseline" | "ours"): number => {
    const growth = (column: "routerCpuUs" | "endsCpuUs"): number => {
      const perToken = (found: Comparison): number => median(found[side].map((one) => one[column]));
      return 1000 * perToken(long) - meanOutputTokens * perToken(mean);
    };
    return (2 * growth("routerCpuUs")) / growth("endsCpuUs");
  };
  const [baseline, ours] = [of("baseline"), of("ours")];
  return { id, unit: "of ends", baseline, ours, ratio: baseline / ours, target };
}

function row(fields: Omit<BenchRow, "ratio">, ratios: readonly number[]): BenchRow {
  return { ...fields, ratio: median(ratios) };
}
