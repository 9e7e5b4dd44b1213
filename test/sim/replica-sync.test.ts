/**
 * Several replicas of one pool's local router under an open load, in virtual time: do they agree, and
 * do they choose as well as a single router?
 */
import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { mulberry32, randomInt } from "../../src/base/random.ts";
import { defaultKvRouterConfig } from "../../src/config/kv-router-config.ts";
import { checkPoolConfig } from "../../src/config/load-pool-config.ts";
import type { PoolConfig } from "../../src/config/pool-config.ts";
import { startAnswer } from "../../src/frontend/disaggregate.ts";
import { frontendDefaults } from "../../src/frontend/frontend-parts.ts";
import { mockToken } from "../../src/protocol/mock-tokens.ts";
import { silentLog } from "../../src/runtime/log.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";
import type { MessageFault } from "../../src/runtime/memory-faults.ts";
import { type Fleet, startFleet } from "../../src/sim/fleet.ts";
import type { FleetPool } from "../../src/sim/fleet-pool.ts";
import { readMockEngineConfig } from "../../src/worker/mock-engine-config.ts";

const workers = 8;
const requests = 400;
const requestsPerSecond = 24;
const blockSize = 64;

const config = onePool();

function onePool(): PoolConfig {
  const checked = checkPoolConfig(
    {
      mode: "agg",
      num_agg_pools: 1,
      agg_pool_dynamo_namespaces: ["pool"],
      agg_pool_selection_strategy: {
        ...{ ttft_min_ms: 100, ttft_max_ms: 1100, ttft_resolution: 1 },
        ...{ itl_min_ms: 10, itl_max_ms: 110, itl_resolution: 1 },
        agg_pool_mapping: [[0]],
      },
    },
    { ownNamespace: "dynamo" },
  );
  if (!checked.ok) throw new Error(JSON.stringify(checked.faults));
  return checked.config;
}

interface Replicas {
  readonly routers: number;
  readonly sync: boolean;
  readonly faults?: readonly MessageFault[];
}

interface Outcome {
  readonly meanTtftMs: number;
  readonly ended: number;
  /** Disagreement of the two replicas that differ most, on average over looks from 5 s on. */
  readonly meanError: number;
  readonly bookings: readonly number[];
}

async function run({ routers, sync, faults = [] }: Replicas): Promise<Outcome> {
  const clock = new ManualClock();
  const random = mulberry32(7);
  const network = createMemoryNetwork({ clock, random });
  const engine = readMockEngineConfig({ block_size: blockSize, num_gpu_blocks: 4096 });
  const fleet = await startFleet({
    ...{ clock, random, config, routersPerPool: routers, model: "mock-model", version: "0.0.0" },
    connect: (role) => Promise.resolve(network.connect({ role })),
    logs: () => silentLog,
    kvRouter: { ...defaultKvRouterConfig, routerReplicaSync: sync },
    workerPolicy: "blocks",
    enginesOf: () => Array.from({ length: workers }, () => engine),
    acceptTimeoutMs: 300,
  });
  const ready = fleet.ready(10_000);
  await clock.runFor(10_100);
  await ready;
  const [pool] = fleet.pools;
  if (!pool) throw new Error("no pool");
  network.faults.setMessageFaults(faults);
  const ttfts: number[] = [];
  let ended = 0;
  let atMs = 0;
  const load = mulberry32(8);
  for (let place = 0; place < requests; place++) {
    atMs -= (Math.log(1 - load()) * 1000) / requestsPerSecond;
    const [isl, osl] = [randomInt(load, 1000, 16_000), randomInt(load, 5, 30)];
    clock.after(atMs, () => {
      const tokens = Uint32Array.from({ length: isl }, (_, at) => mockToken(place, at));
      ask(clock, fleet, { tokens, osl }, ttfts, () => ended++);
    });
  }
  const errors: number[] = [];
  for (let lookMs = 5_000; lookMs < atMs; lookMs += 97) {
    clock.after(lookMs, () => errors.push(disagreement(pool)));
  }
  await clock.runUntil(() => ended === requests, atMs + 120_000);
  network.faults.setMessageFaults([]);
  await clock.runFor(30_000);
  const bookings = pool.routers.map(({ router }) => router.stats.bookings);
  await fleet.close();
  await clock.runFor(1000);
  return { meanTtftMs: meanOf(ttfts), meanError: meanOf(errors), ended, bookings };
}

const meanOf = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length;

function ask(
  clock: ManualClock,
  { frontend }: Fleet,
  { tokens, osl }: { readonly tokens: Uint32Array; readonly osl: number },
  ttfts: number[],
  onEnd: () => void,
): void {
  const model = frontend.models.find("mock-model");
  if (!model) throw new Error("the model is not served");
  const askedMs = clock.nowMs();
  let first = true;
  startAnswer(
    {
      ...{ model, tokens, deadlineAtMs: askedMs + 60_000, signal: new AbortController().signal },
      body: { model: "mock-model", stop_conditions: { max_tokens: osl, ignore_eos: true } },
      sink: {
        onAccepted: () => {},
        onOutput() {
          if (first) ttfts.push(clock.nowMs() - askedMs);
          first = false;
        },
        onEnd,
        onError: onEnd,
      },
    },
    {
      ...{ owner: frontend.owner, models: frontend.models, settings: frontendDefaults, clock },
      onFallback: () => {},
      onPrefillComplete: () => {},
    },
  );
}

/** Σ |a - b| over the workers' booked blocks, over the larger sum; the worst pair of replicas. */
function disagreement({ routers }: FleetPool): number {
  const books = routers.map(({ router }) => {
    const blocks = router.holders().map(({ workerId, activeBlocks }) => [workerId, activeBlocks]);
    return new Map(blocks as [string, number][]);
  });
  let worst = 0;
  for (const a of books) {
    for (const b of books) {
      let apart = 0;
      let sum = 0;
      for (const [worker, blocks] of a) {
        apart += Math.abs(blocks - (b.get(worker) ?? 0));
        sum += Math.max(blocks, b.get(worker) ?? 0);
      }
      worst = Math.max(worst, sum === 0 ? 0 : apart / sum);
    }
  }
  return worst;
}

/** Between replicas in one data centre: 2 ms on the way, and one message of a hundred is lost. */
const imperfect: readonly MessageFault[] = [
  { subject: "tg.as.>", delayMinMs: 2, delayMaxMs: 2, loss: 0.01 },
];

it("chooses with four synchronised replicas as with one router, and without sync worse", async () => {
  const single = await run({ routers: 1, sync: false });
  const apart = await run({ routers: 4, sync: false });
  const together = await run({ routers: 4, sync: true, faults: imperfect });
  for (const { ended, bookings } of [single, apart, together]) {
    expect(ended).toBe(requests);
    expect(bookings.every((left) => left === 0)).toBe(true);
  }
  expect(apart.meanTtftMs).toBeGreaterThan(1.2 * single.meanTtftMs);
  expect(together.meanTtftMs).toBeLessThan(1.15 * single.meanTtftMs);
  expect(apart.meanError).toBeGreaterThan(0.5);
  expect(together.meanError).toBeLessThan(0.1);
}, 180_000);
