/**
 * Two replicas of one pool's local router as separate processes on a real nats-server, with replica
 * sync, before workers that hold a hundred thousand blocks.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from "vitest";
import { realClock, sleep } from "../../src/base/clock.ts";
import type { NatsServer } from "../../src/runtime/nats-server.ts";
import { type AggFleet, createAggFleet } from "./agg-fleet.ts";
import { startNats } from "./nats-fixture.ts";
import { kill, type Metrics, until } from "./processes.ts";
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
const blockSize = 4;
const cachedBlocks = 100_000;
const promptTokens = 16_000;
/** From the start of a router to its knowing all blocks of the workers and bookings of the others. */
const syncedWithinSeconds = 5;

/** Prompts are read two hundred times as fast as they are answered. */
const engine = {
  ...{ speedup_ratio: 200, decode_speedup_ratio: 1 / 200, num_gpu_blocks: 2 * cachedBlocks },
  block_size: blockSize,
};

const folder = mkdtempSync(join(tmpdir(), "tiergrid-replicas-"));
const engineConfig = join(folder, "engine.json");
writeFileSync(engineConfig, JSON.stringify(engine));

let nats: NatsServer;
let fleet: AggFleet;

beforeAll(async () => {
  nats = await startNats();
  fleet = createAggFleet(nats.url, {
    local: ["--router-replica-sync", "--router-block-size", String(blockSize)],
    worker: ["--engine-config", engineConfig],
    locals: 2,
    workers: 2,
  });
});

beforeEach(async () => {
  await fleet.up();
  await agree("the replicas hear each other", (one) => one.sum("tiergrid_replica_peers") === 1);
});

afterEach(async ({ task }) => {
  if (task.result?.state !== "fail") return;
  process.stderr.write(`${task.name}\n${fleet.logs()}\n`);
  await fleet.down();
});

afterAll(async () => {
  await fleet?.down();
  fleet?.forget();
  await nats?.stop();
  rmSync(folder, { recursive: true, force: true });
});

/** Waits until `check` holds of both replicas. */
async function agree(
  what: string,
  check: (one: Metrics, other: Metrics) => boolean,
): Promise<void> {
  await until(what, async () => {
    const [one, other] = await Promise.all(["local", "local 1"].map(fleet.metricsOf));
    return one !== undefined && other !== undefined && check(one, other) && check(other, one);
  });
}

const ownAndTold = (metrics: Metrics): number =>
  metrics.sum("tiergrid_bookings_active") + metrics.sum("tiergrid_replica_bookings");
const bookedBlocks = (metrics: Metrics): number =>
  metrics.sum("dynamo_frontend_worker_active_decode_blocks");

it("goes on with one replica when the other is killed under load, and the books close", async () => {
  const streams = await streamsInFlight(fleet.api, streamCount, tokens);
  await agree(
    "each knows every booking",
    (one, other) =>
      ownAndTold(one) === streamCount &&
      one.sum("tiergrid_bookings_active") < streamCount &&
      bookedBlocks(one) === bookedBlocks(other),
  );
  await kill(fleet.part("local 1"));
  for (let late = 0; late < 12; late++) {
    streams.push(openStream(fleet.api, promptOf(100 + late, 40)));
    await sleep(realClock, 50);
  }
  expect(await outcomesOf(streams)).toEqual({ exact: streamCount + 12 });
  await until("the dead replica is forgotten", async () => {
    const survivor = await fleet.metricsOf("local");
    return survivor.sum("tiergrid_replica_peers") === 0;
  });
  await fleet.idle();
});

it("serves at once after a restart, and soon knows all blocks and bookings", async () => {
  const prompts = Math.ceil((cachedBlocks * blockSize) / promptTokens);
  for (let at = 0; at < prompts; at += 5) {
    const batch = Array.from({ length: 5 }, (_, place) =>
      openStream(fleet.api, promptOf(200 + at + place, 1, promptTokens)),
    );
    expect(await outcomesOf(batch)).toEqual({ exact: 5 });
  }
  await agree("all blocks are known", (one) => one.sum("tiergrid_index_blocks") >= cachedBlocks);
  // Ten minutes of decoding: some bookings are there for as long as the test looks.
  const lasting = openStreams(fleet.api, 8, 30_000);
  await until("some of them are booked by the router that stays", async () => {
    await inFlight(lasting);
    const staying = await fleet.metricsOf("local");
    if (staying.sum("tiergrid_bookings_active") > 0) return true;
    // A router that was late once gets nothing for 5 s.
    lasting.push(openStream(fleet.api, promptOf(lasting.length, 30_000)));
    await sleep(realClock, 500);
    return false;
  });
  const streams = await streamsInFlight(fleet.api, streamCount, tokens);
  await kill(fleet.part("local 1"));
  const up = fleet.up();
  await until("it is started", () => fleet.part("local 1").facts !== undefined);
  const served = openStreams(fleet.api, 8, 20);
  let uptimeSeconds = 0;
  await until(
    "the new one knows the blocks of the workers and the bookings of the other",
    async () => {
      const [old, fresh] = await Promise.all(["local", "local 1"].map(fleet.metricsOf));
      if (!old || !fresh) return false;
      uptimeSeconds = fresh.sum("dynamo_component_uptime_seconds");
      const blocks = fresh.sum("tiergrid_index_blocks") / old.sum("tiergrid_index_blocks");
      const told = fresh.sum("tiergrid_replica_bookings");
      return blocks > 0.99 && told > 0 && told === old.sum("tiergrid_bookings_active");
    },
  );
  const text = `in sync ${uptimeSeconds} s after its start, by its own clock`;
  expect(uptimeSeconds, text).toBeLessThanOrEqual(syncedWithinSeconds);
  await up;
  expect(await outcomesOf([...streams, ...served])).toEqual({ exact: streamCount + 8 });
  expect(lasting.map(({ outcome }) => outcome)).toEqual(lasting.map(() => undefined));
  for (const stream of lasting) stream.leave();
  await fleet.idle();
});
