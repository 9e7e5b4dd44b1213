/**
 * Durable mode with real processes: a router is killed, its successor has the pool's state from the
 * snapshot and the stream alone, while no worker can be asked.
 */
import { afterAll, beforeAll, expect, it } from "vitest";
import { realClock } from "../../src/base/clock.ts";
import { osRandom } from "../../src/base/random.ts";
import { endpointSubject } from "../../src/protocol/subjects.ts";
import type { Bus } from "../../src/runtime/bus.ts";
import { connectNatsBus } from "../../src/runtime/nats-bus.ts";
import type { NatsServer } from "../../src/runtime/nats-server.ts";
import { startJetStream, startNats } from "./nats-fixture.ts";
import { kill, type Part, type RunningProcess, startProcess, until } from "./processes.ts";

const blockSize = 4;
const promptTokens = 64;
/** Before a refused prompt is followed by another. */
const refusedPauseMs = 500;
const served = ["--endpoint", "pool.backend.generate"];
const sized = ["--router-block-size", String(blockSize)];
const durable = ["--router-durable-kv-events", "--router-snapshot-threshold", "2"];
const workers: Part = {
  name: "workers",
  args: [
    ...["worker", "mock", ...served, "--count", "2", "--block-size", String(blockSize)],
    ...["--speed", "50", "--durable-kv-events"],
  ],
};
const router: Part = { name: "router", args: ["local", ...served, ...sized, ...durable] };
/** Knows the workers' caches because it asks them. */
const asking: Part = { name: "asking", args: ["local", ...served, ...sized] };

let nats: NatsServer;
let bus: Bus;
const started: RunningProcess[] = [];
let prompts = 0;

beforeAll(async () => {
  nats = await startJetStream();
  const clock = realClock;
  bus = await connectNatsBus({ servers: [nats.url], role: "fe", clock, random: osRandom });
});

afterAll(async () => {
  await Promise.all(started.filter((one) => one.alive()).map(kill));
  await bus?.close();
  await nats?.stop();
});

function start(part: Part, url = nats.url): RunningProcess {
  const process = startProcess(part, url);
  started.push(process);
  return process;
}

async function ready(process: RunningProcess): Promise<void> {
  const isReady = (): boolean => process.facts !== undefined || !process.alive();
  await until(`${process.name} is ready`, isReady, process.stderr);
}

/** Lets `count` new prompts be answered by whoever serves `component`; a refused one is asked anew. */
async function generate(component: string, count: number): Promise<void> {
  const endpoint = { namespace: "pool", component, endpoint: "generate" };
  let ended = 0;
  const refusals: string[] = [];
  const inbox = `${bus.inboxPrefix}.d${prompts}`;
  const ask = (): void => {
    const first = 1 + promptTokens * prompts++;
    const token_ids = Array.from({ length: promptTokens }, (_, at) => first + at);
    const body = { model: "mock-model", token_ids, stop_conditions: { max_tokens: 8 } };
    const payload = new TextEncoder().encode(JSON.stringify(body));
    bus.publish(endpointSubject(endpoint), payload, { reply: inbox });
  };
  const frames = bus.subscribe(inbox, ({ payload }) => {
    const text = new TextDecoder().decode(payload);
    const { type } = JSON.parse(text) as { type: string };
    if (type === "end") ended++;
    if (type !== "error") return;
    refusals.push(text);
    realClock.after(refusedPauseMs, ask);
  });
  for (let left = count; left > 0; left--) ask();
  const all = `${count} answers of ${component} end`;
  await until(
    all,
    () => ended === count,
    () => `${ended} ended; ${refusals.join("\n")}`,
  );
  frames.unsubscribe();
}

const portOf = (process: RunningProcess): number => Number(process.facts?.["system_port"]);

async function sumOf(port: number, name: string): Promise<number> {
  const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
  const own = text.split("\n").filter((line) => line.startsWith(name));
  return own.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" ") + 1)), 0);
}

interface HealthBody {
  readonly workers: readonly { readonly workerId: string; readonly cachedBlocks: number }[];
}

/** `worker blocks` of every worker, sorted. */
async function cachedBlocks(process: RunningProcess): Promise<string[]> {
  const response = await fetch(`http://127.0.0.1:${portOf(process)}/health`);
  const body = (await response.json()) as HealthBody;
  return body.workers.map((one) => `${one.workerId} ${one.cachedBlocks}`).sort();
}

it("restores a killed router's state from snapshot and stream while the workers stand still", async () => {
  const engines = start(workers);
  const first = start(router);
  await Promise.all([ready(engines), ready(first)]);
  for (let round = 0; round < 5; round++) await generate("router", 6);
  const saved = 'tiergrid_durable_snapshots_total{outcome="saved"';
  const isSaved = async (): Promise<boolean> => (await sumOf(portOf(first), saved)) > 0;
  await until("a snapshot is saved", isSaved, first.stderr);
  await kill(first);
  await generate("backend", 10);
  const oracle = start(asking);
  await ready(oracle);

  process.kill(engines.pid, "SIGSTOP");
  const next = start(router);
  const restored = (): boolean => /"ranks":2,.*"snapshot restored"/.test(next.stderr());
  await until("both ranks are restored", restored, next.stderr);
  process.kill(engines.pid, "SIGCONT");

  await ready(next);
  const same = async (): Promise<boolean> =>
    String(await cachedBlocks(next)) === String(await cachedBlocks(oracle));
  await until("it agrees with a router that asked", same, next.stderr);
  expect(await cachedBlocks(next)).toEqual([
    expect.stringMatching(/ [1-9]\d*$/),
    expect.stringMatching(/ [1-9]\d*$/),
  ]);
  expect(await sumOf(portOf(next), "tiergrid_index_resyncs_total")).toBe(0);
  await generate("router", 20);
  expect(await sumOf(portOf(next), "tiergrid_index_resyncs_total")).toBe(0);
});

it.each([
  ["local", router],
  ["worker", workers],
] as const)(
  "ends a %s at once, with one clear error, on a server without JetStream",
  async (_name, part) => {
    const plain = await startNats();
    const refused = start(part, plain.url);
    expect(await refused.ended).toEqual({ code: 2, signal: null });
    expect(refused.stderr().match(/^error: .*JetStream.*$/gm)?.length).toBe(1);
    await plain.stop();
  },
);
