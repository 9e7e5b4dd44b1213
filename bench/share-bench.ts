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
 * fast as their profile; in the `fast` rows twenty times, so that frontend or cores are the limit. The
 * readers live in the bench's process, whose CPU is nobody's, as the broker's.
 *
 * A router runs for weeks, and V8 compiles what a request runs until some thousands of them have come: at
 * 30 requests a second a fifth of a router's CPU after a minute, next to nothing after four. So the first
 * 8,000 answers are dropped (`--quick` drops 300), and rest is measured behind the load.
 *
 * `fast` rows also ask for answers four times as long. What a part's CPU per request grows by, over the
 * tokens that the answers grew by, is what a further token costs it; the rest is what a request
 * costs, decision included.
 */
import { Agent, type IncomingMessage, request as openRequest } from "node:http";
import { realClock, sleep } from "../src/base/clock.ts";
import type { TraceRequest } from "../src/sim/mooncake-trace.ts";
import { synthesisPresets, synthesizeTrace } from "../src/sim/trace-synth.ts";
import { promptTokens } from "../src/sim/workload.ts";
import type { BenchOptions, BenchRow } from "./bench-row.ts";
import { layouts, model, type PartName, type Parts, startParts } from "./process-fleet.ts";
import { compile, cpuTimeOf } from "./stream-bench-fleet.ts";

const readers = 64;
const restSeconds = 10;
/** How much longer the second answers of `fast` rows are. */
const longerBy = 4;
/** Answers that are dropped, and how often it is looked whether they are there. */
const warmAnswers = 8_000;
const quickWarmAnswers = 300;
const warmPollMs = 250;
const warmMaxMs = 600_000;
/** From the last answer to rest. */
const quietMs = 3_000;
const readyMaxMs = 60_000;
const retryMs = 250;

/** Engines are that many times as fast as their profile, so that the window holds many requests. */
const rowsOf = {
  agg: { layout: layouts.agg, engineSpeed: 4, asksLonger: false },
  disagg: { layout: layouts.disagg, engineSpeed: 4, asksLonger: false },
  "agg-fast": { layout: layouts.agg, engineSpeed: 20, asksLonger: true },
  "disagg-fast": { layout: layouts.disagg, engineSpeed: 20, asksLonger: true },
} as const;

/** Like the Mooncake conversation trace: 12,230 prompt and 339 output tokens in the mean. */
const conversation = {
  ...synthesisPresets.toolagent,
  ...{ requests: 4_000, durationMs: 600_000, agentShare: 0, shortOutShare: 0 },
  ...{ firstMu: 8.6, turnMu: 7, sessionTurns: 1.8, sessionGapMs: 30_000, outMedian: 268 },
};

export async function run({ quick, seed, groups }: BenchOptions): Promise<BenchRow[]> {
  await compile("bench/share-frontend.ts", "src/cli/main.ts");
  const requests = synthesizeTrace({ ...conversation, seed });
  const rows: BenchRow[] = [];
  for (const name of groups ?? Object.keys(rowsOf)) {
    if (!isRow(name)) {
      throw new Error(`no rows '${name}'; there are: ${Object.keys(rowsOf).join(", ")}`);
    }
    console.error(`share ${name} …`);
    const { layout, engineSpeed, asksLonger } = rowsOf[name];
    const fleet = await startParts(layout, { engineSpeed });
    const windowMs = quick ? 10_000 : 60_000;
    try {
      const warm = quick ? quickWarmAnswers : warmAnswers;
      const measured = await measure(fleet, requests, { warm, windowMs });
      rows.push(shareRow(name, measured));
      if (!asksLonger) continue;
      const longer = requests.map((request) => ({
        ...request,
        outputTokens: longerBy * request.outputTokens,
      }));
      const ofLonger = await measure(fleet, longer, { warm: quickWarmAnswers, windowMs });
      rows.push(tokenRow(name, measured, ofLonger));
    } finally {
      await fleet.stop();
    }
  }
  return rows;
}

function isRow(name: string): name is keyof typeof rowsOf {
  return Object.hasOwn(rowsOf, name);
}

const partNames: readonly PartName[] = ["global", "local", "frontend", "worker"];

type Timed = PartName | "broker";
type CpuTimes = ReadonlyMap<Timed, number>;

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
  fleet: Parts,
  requests: readonly TraceRequest[],
  { warm, windowMs }: { readonly warm: number; readonly windowMs: number },
): Promise<Measured> {
  const { url } = fleet;
  const agent = new Agent({ keepAlive: true, maxSockets: readers });
  const counts = { answers: 0, promptTokens: 0, outputTokens: 0, failed: 0 };
  let next = 0;
  let over = false;
  await firstAnswer(url, agent);
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
  const warmUntilMs = realClock.nowMs() + warmMaxMs;
  while (counts.answers < warm && realClock.nowMs() < warmUntilMs) {
    await sleep(realClock, warmPollMs);
  }
  const [before, startMs, start] = [await cpuOf(fleet), realClock.nowMs(), { ...counts }];
  await sleep(realClock, windowMs);
  const [after, ms, end] = [await cpuOf(fleet), realClock.nowMs() - startMs, { ...counts }];
  over = true;
  await Promise.all(reading);
  agent.destroy();
  await sleep(realClock, quietMs);
  const atRest = await cpuOf(fleet);
  await sleep(realClock, 1000 * restSeconds);
  const restUs = spentBetween(atRest, await cpuOf(fleet), restSeconds);
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
  const spent = (name: Timed, us: number): number => (us - (before.get(name) ?? 0)) / divisor;
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

async function cpuOf({ parts, brokerPid }: Parts): Promise<CpuTimes> {
  const times = new Map<Timed, number>([["broker", await cpuTimeOf(brokerPid)]]);
  for (const { name, child } of parts()) {
    times.set(name, (times.get(name) ?? 0) + (await cpuTimeOf(child.pid ?? -1)));
  }
  return times;
}

function shareRow(name: string, measured: Measured): BenchRow {
  const { cpuUs, restUs, ms, answers, promptTokens: prompts, outputTokens, failed } = measured;
  const of = (...parts: readonly Timed[]): number =>
    parts.reduce((sum, part) => sum + (cpuUs.get(part) ?? 0), 0);
  const partText = (part: Timed): string => {
    const perToken = (of(part) / outputTokens).toFixed(2);
    return `${part} ${perToken} µs/tok (at rest ${((restUs.get(part) ?? 0) / 1000).toFixed(0)} ms/s)`;
  };
  const note = [
    ...[...partNames, "broker" as const].map(partText),
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

/** What a further token and a request cost each part. */
function tokenRow(name: string, measured: Measured, ofLonger: Measured): BenchRow {
  const { perToken, perRequest } = costsOf(measured, ofLonger);
  const sum = (costs: ReadonlyMap<Timed, number>, ...parts: readonly Timed[]): number =>
    parts.reduce((total, part) => total + (costs.get(part) ?? 0), 0);
  const texts = partNames.map((part) => {
    const [token, request] = [perToken.get(part) ?? 0, perRequest.get(part) ?? 0];
    return `${part} ${token.toFixed(3)} µs/tok and ${request.toFixed(0)} µs/request`;
  });
  return {
    id: `${name}: the same of a further token`,
    unit: "of ends",
    baseline: Number.NaN,
    ours: sum(perToken, "global", "local") / sum(perToken, "worker", "frontend"),
    ratio: Number.NaN,
    target: "-",
    note: `${texts.join(", ")}; answers of ${tokensEach(measured).toFixed(0)} and ${tokensEach(ofLonger).toFixed(0)}`,
  };
}

const tokensEach = ({ outputTokens, answers }: Measured): number => outputTokens / answers;

/** The line through both measurements, by part, without what it takes at rest. */
function costsOf(short: Measured, long: Measured) {
  const [perToken, perRequest] = [new Map<Timed, number>(), new Map<Timed, number>()];
  for (const part of partNames) {
    const eachUs = ({ cpuUs, restUs, ms, answers }: Measured): number =>
      ((cpuUs.get(part) ?? 0) - ((restUs.get(part) ?? 0) * ms) / 1000) / answers;
    const [shortTokens, longTokens] = [tokensEach(short), tokensEach(long)];
    const token = (eachUs(long) - eachUs(short)) / (longTokens - shortTokens);
    perToken.set(part, token);
    perRequest.set(part, eachUs(short) - token * shortTokens);
  }
  return { perToken, perRequest };
}
