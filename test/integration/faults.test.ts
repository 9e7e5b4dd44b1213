/**
 * Faults under load, with separate processes on a real nats-server: one prefill and one decode pool
 * of two workers each. Every stream is checked token by token; after each fault all books close.
 * Prompts travel as hashes from 2 blocks on.
 */
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from "vitest";
import { realClock, sleep } from "../../src/base/clock.ts";
import type { NatsServer } from "../../src/runtime/nats-server.ts";
import { startNats } from "./nats-fixture.ts";
import { createFleet, type Fleet, freeze, kill, type Part, until } from "./processes.ts";
import {
  inFlight,
  openStream,
  openStreams,
  outcomesOf,
  promptOf,
  streamsInFlight,
} from "./stream-client.ts";

const streamCount = 24;
/** About three seconds of decoding. */
const tokens = 400;

const legs = [
  ["prefill", "prefill.prefill.generate"],
  ["decode", "decode.backend.generate"],
] as const;

const parts: readonly Part[] = [
  {
    name: "global",
    args: ["global", "--config", "pool-configs/small.json", "--model-name", "mock-model"].concat([
      "--http-port",
      "0",
      "--hash-first-min-tokens",
      "128",
    ]),
  },
  ...legs.flatMap(([role, endpoint]): Part[] => {
    const served = ["--endpoint", endpoint, "--role", role];
    const worker = ["worker", "mock", ...served];
    return [
      { name: `local ${role}`, args: ["local", ...served, "--router-block-size", "64"] },
      { name: `${role} worker 0`, args: worker },
      { name: `${role} worker 1`, args: worker },
    ];
  }),
];

let nats: NatsServer;
let fleet: Fleet;

beforeAll(async () => {
  nats = await startNats();
  fleet = createFleet(nats.url, parts);
});

beforeEach(async () => {
  await fleet.up();
});

afterEach(async ({ task }) => {
  if (task.result?.state !== "fail") return;
  process.stderr.write(`${task.name}\n${fleet.logs()}\n`);
  await fleet.down();
});

afterAll(async () => {
  await fleet?.down();
  await nats?.stop();
});

const migrations = async (): Promise<number> => {
  const metrics = await fleet.metricsOf("global");
  return metrics.sum("dynamo_frontend_model_migration_total");
};

const promptsHandedOut = async (): Promise<number> => {
  const metrics = await fleet.metricsOf("global");
  return metrics.sum("tiergrid_prompts_handed_out_total");
};

it("moves the streams of a killed worker to the other one, every token once", async () => {
  const streams = await streamsInFlight(fleet.api, streamCount, tokens);
  const victim = await fleet.metricsOf("decode worker 0");
  expect(victim.sum("dynamo_component_kvstats_active_blocks")).toBeGreaterThan(0);
  await kill(fleet.part("decode worker 0"));
  expect(await outcomesOf(streams)).toEqual({ exact: streamCount });
  const moved = await migrations();
  expect(moved).toBeGreaterThan(0);
  // Each stream has two legs, and asks once more for each migration.
  expect(await promptsHandedOut()).toBeGreaterThanOrEqual(2 * streamCount + moved);
  await fleet.idle();
});

it("reads the prompts of a killed prefill worker on the other one", async () => {
  // About half a second of prefill each: most are still queued or half read at the kill.
  const streams = Array.from({ length: streamCount }, (_, at) =>
    openStream(fleet.api, promptOf(at, 20, 4000)),
  );
  const victim = fleet.part("prefill worker 0");
  await until("it reads prompts", async () => {
    const metrics = await fleet.metricsOf(victim.name);
    return metrics.sum("dynamo_component_kvstats_active_blocks") > 0;
  });
  await kill(victim);
  expect(await outcomesOf(streams)).toEqual({ exact: streamCount });
  await fleet.idle();
});

it("fails new requests cleanly while a pool's local router is dead, and loses no stream", async () => {
  const streams = await streamsInFlight(fleet.api, streamCount, tokens);
  await kill(fleet.part("local decode"));
  const refused = openStreams(fleet.api, 4, 20);
  expect(await outcomesOf(refused)).toEqual({ "503 unavailable": 4 });
  expect(await outcomesOf(streams)).toEqual({ exact: streamCount });
  await fleet.up();
  expect(await outcomesOf(openStreams(fleet.api, 4, 20))).toEqual({ exact: 4 });
  await fleet.idle();
});

it("resumes every stream when a killed nats-server comes back after a second", async () => {
  const before = await migrations();
  const streams = await streamsInFlight(fleet.api, streamCount, tokens);
  await nats.kill("SIGKILL");
  await sleep(realClock, 1000);
  expect(await outcomesOf(openStreams(fleet.api, 4, 20))).toEqual({ "503 unavailable": 4 });
  await nats.restart();
  expect(await outcomesOf(streams)).toEqual({ exact: streamCount });
  expect(await migrations()).toBe(before);
  await fleet.idle();
});

it("moves no stream while nats-server hangs for two seconds", async () => {
  const before = await migrations();
  const streams = await streamsInFlight(fleet.api, streamCount, tokens);
  await freeze(nats.pid, 2000);
  expect(await outcomesOf(streams)).toEqual({ exact: streamCount });
  expect(await migrations()).toBe(before);
  await fleet.idle();
});

it("moves the streams of a worker that hangs, and ignores what it says when it wakes", async () => {
  const before = await migrations();
  const streams = await streamsInFlight(fleet.api, streamCount, tokens);
  await freeze(fleet.part("decode worker 1").pid, 3000);
  expect(await outcomesOf(streams)).toEqual({ exact: streamCount });
  expect(await migrations()).toBeGreaterThan(before);
  await fleet.idle();
});

it("stops the engines when the clients leave", async () => {
  // Ten minutes of decoding: only a cancel ends these in time.
  const streams = openStreams(fleet.api, streamCount, 30_000);
  await inFlight(streams);
  for (const stream of streams) stream.leave();
  await fleet.idle();
});

it("drains a worker that gets SIGTERM under load without failing a request", async () => {
  const streams = await streamsInFlight(fleet.api, streamCount, tokens);
  const leaving = fleet.part("decode worker 0");
  process.kill(leaving.pid, "SIGTERM");
  while (leaving.alive()) {
    streams.push(openStream(fleet.api, promptOf(streams.length, 20)));
    await sleep(realClock, 100);
  }
  expect(await leaving.ended).toEqual({ code: 0, signal: null });
  expect(await outcomesOf(streams)).toEqual({ exact: streams.length });
  await fleet.idle();
});

it("drains the global router: /ready says no, open answers end, exit 0", async () => {
  const { api } = fleet;
  const streams = await streamsInFlight(api, streamCount, tokens);
  const leaving = fleet.part("global");
  process.kill(leaving.pid, "SIGTERM");
  await until("/ready says no", async () => {
    const status = await fetch(`${api}/ready`)
      .then((answer) => answer.status)
      .catch(() => 0);
    return status !== 200;
  });
  expect(await outcomesOf(streams)).toEqual({ exact: streamCount });
  expect(await leaving.ended).toEqual({ code: 0, signal: null });
  await fleet.up();
  await fleet.idle();
});
