/**
 * P1, hash-first: a prompt of 131,072 tokens crosses the bus once.
 *
 *   client ──hashes, 64 kB──▶ `tiergrid local`   chooses and books; `mark_prefill`, `mark_free` follow
 *     └─────tokens, 512 kB──▶ worker
 *
 * The baseline is that of P1: two routers that parse and print the prompt as JSON (`baselines/relay.ts`).
 * Every part is a process of its own; workers accept and drop. CPU is the kernel's count, in ticks of
 * 10 ms.
 */
import { type ChildProcess, fork } from "node:child_process";
import { join } from "node:path";
import { type BenchOptions, type BenchRow, median } from "./bench-row.ts";
import { compile, cpuTimeOf, messageOf, outDir, startBroker } from "./stream-bench-fleet.ts";
import type { ClientMode, Counted, Go } from "./stream-bench-go.ts";

/** Programs, without their suffix. */
const plainProgram = "bench/stream-bench-process";
const hashProgram = "bench/hash-first-process";
const cliProgram = "src/cli/main";
const [warmupMs, windowMs, quickWindowMs] = [400, 2_000, 1_000];
/** The dropped round: a router runs for days, its code is optimized after some thousand requests. */
const firstWindowMs = 15_000;

/** Who asks, how, and the routers that are asked. */
interface Side {
  readonly client: ChildProcess;
  readonly mode: ClientMode;
  readonly inst: string;
  readonly routers: readonly ChildProcess[];
}

interface Measured {
  readonly requestsPerSecond: number;
  /** CPU of one router per request. */
  readonly routerUs: number;
  readonly failed: number;
}

export async function run({ quick }: BenchOptions): Promise<BenchRow[]> {
  await compile(`${plainProgram}.ts`, `${hashProgram}.ts`, `${cliProgram}.ts`);
  const server = await startBroker();
  const children: ChildProcess[] = [];
  const start = async (program: string, ...args: string[]): Promise<ChildProcess> => {
    const stdio = ["ignore", "ignore", "inherit", "ipc"] as const;
    const child = fork(join(outDir, `${program}.js`), args, { stdio: [...stdio] });
    children.push(child);
    if (program !== cliProgram) await messageOf(child, "ready");
    return child;
  };
  try {
    const [baseline, ours] = await alternate(await startSides(server.url, start), quick);
    return rowsOf(baseline, ours);
  } finally {
    for (const child of children) child.kill("SIGKILL");
    await server.stop();
  }
}

async function startSides(
  url: string,
  start: (program: string, ...args: string[]) => Promise<ChildProcess>,
): Promise<readonly [baseline: Side, ours: Side]> {
  const served = ["--endpoint", "pool.backend.generate", "--router-block-size", "16"];
  const local = await start(
    cliProgram,
    ...["local", ...served, "--nats", url, "--system-port", "0", "--log", "error"],
  );
  await start(plainProgram, "plain-worker", url, "plain-worker");
  const relays = [
    await start(plainProgram, "plain-router", url, "plain-b", "plain-worker"),
    await start(plainProgram, "plain-router", url, "plain-a", "plain-b"),
  ];
  const asker = await start(plainProgram, "plain-client", url, "plain-client");
  await start(hashProgram, "worker", url);
  const client = await start(hashProgram, "client", url);
  return [
    { client: asker, mode: "prompt-relay", inst: "plain-a", routers: relays },
    { client, mode: "prompt-frame", inst: "", routers: [local] },
  ];
}

/** Measures both sides in turns; the first round warms up, is longer, and is dropped. */
async function alternate(
  sides: readonly [Side, Side],
  quick: boolean,
): Promise<readonly [Measured[], Measured[]]> {
  const found: [Measured[], Measured[]] = [[], []];
  for (let round = 0; round <= (quick ? 2 : 7); round++) {
    for (const [index, side] of sides.entries()) {
      const ms = quick ? quickWindowMs : windowMs;
      const measured = await measure(side, round === 0 && !quick ? firstWindowMs : ms);
      if (round > 0) found[index]?.push(measured);
    }
  }
  return found;
}

async function measure({ client, mode, inst, routers }: Side, ms: number): Promise<Measured> {
  const cpuUs = async (): Promise<number> => {
    const times = await Promise.all(routers.map(({ pid = -1 }) => cpuTimeOf(pid)));
    return times.reduce((sum, time) => sum + time, 0) / routers.length;
  };
  const [warm, count, idle] = ["warm", "counted", "idle"].map((type) => messageOf(client, type));
  const go: Go = { type: "go", mode, inst, streams: 4, outputTokens: 0, warmupMs, windowMs: ms };
  client.send(go);
  await warm;
  const before = await cpuUs();
  const counted = (await count) as Counted;
  const spent = (await cpuUs()) - before;
  await idle;
  return {
    requestsPerSecond: (1000 * counted.units) / counted.ms,
    routerUs: spent / counted.units,
    failed: counted.failed,
  };
}

function rowsOf(baseline: readonly Measured[], ours: readonly Measured[]): BenchRow[] {
  const failed = [...baseline, ...ours].reduce((sum, one) => sum + one.failed, 0);
  const note = failed > 0 ? { note: `${failed} requests failed` } : {};
  const row = (id: string, unit: string, column: keyof Measured, target: string): BenchRow => {
    const ratios = baseline.map((theirs, round) => {
      const faster = (ours[round]?.[column] ?? Number.NaN) / theirs[column];
      return column === "routerUs" ? 1 / faster : faster;
    });
    const of = (side: readonly Measured[]): number => median(side.map((one) => one[column]));
    const ratio = median(ratios);
    return { id, unit, baseline: of(baseline), ours: of(ours), ratio, target, ...note };
  };
  return [
    row("P1 128k prompt, hash-first / JSON", "req/s", "requestsPerSecond", "≥ 4x"),
    row("P1 hash-first, CPU of one router", "µs/req", "routerUs", "≥ 15x"),
  ];
}
