/**
 * Churn: prefixes, adapters and workers come and go for long; what is in memory follows what is
 * alive, not what ever was.
 */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { expect, it } from "vitest";
import { mulberry32, randomInt, randomU32 } from "../../src/base/random.ts";
import { createKvIndex } from "../../src/core/create-kv-index.ts";
import type { Tier } from "../../src/core/kv-index.ts";
import { blockHasher, promptOf, startPool } from "../local-router/pool-rig.ts";

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

function heapMb(): number {
  collect();
  return process.memoryUsage().heapUsed / 2 ** 20;
}

/** Least-squares slope of `values` per step. */
function slopeOf(values: readonly number[]): number {
  const middle = (values.length - 1) / 2;
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  let [above, below] = [0, 0];
  for (const [at, value] of values.entries()) {
    above += (at - middle) * (value - mean);
    below += (at - middle) ** 2;
  }
  return above / below;
}

it.each(["identity", "opaque"] as const)("the %s index is as large as its caches", (mode) => {
  const random = mulberry32(5);
  const index = createKvIndex({ mode, random, chain: blockHasher.chain });
  const cacheBlocks = 400;
  let born = 0;
  const caches = new Map<string, Uint32Array[]>();
  const systems = Array.from({ length: 6 }, () =>
    Uint32Array.from({ length: 64 }, () => randomU32(random)),
  );
  const serve = (worker: string, cache: Uint32Array[]): void => {
    const slot = index.holder(worker, 0);
    // A system prompt of some adapter, then blocks that nobody has seen.
    const locals = Uint32Array.from({ length: 128 }, () => randomU32(random));
    locals.set(systems[randomInt(random, 0, systems.length - 1)]!);
    const own = locals.slice();
    blockHasher.chain(own, 1, 64);
    const blocks = new Uint32Array(256);
    for (let block = 0; block < 64; block++) {
      blocks.set(locals.subarray(2 * block, 2 * block + 2), 4 * block);
      blocks.set(own.subarray(2 * block, 2 * block + 2), 4 * block + 2);
    }
    const tier = (random() < 0.9 ? 0 : 1) as Tier;
    expect(index.store(slot, undefined, blocks, tier)).toBe("ok");
    cache.push(own.subarray(64));
    while (cache.length > cacheBlocks / 32) {
      const oldest = cache.shift()!;
      for (const from of [0, 1] as const) index.remove(slot, oldest, from);
    }
  };
  const bytes: number[] = [];
  const heaps: number[] = [];
  for (let round = 0; round < 240; round++) {
    for (const worker of [...caches.keys()].slice(0, Math.max(0, caches.size - 12))) {
      caches.delete(worker);
      index.removeWorker(worker);
    }
    for (let come = 0; come < 2; come++) caches.set(`w${born++}`, []);
    // Adapters change: one system prompt goes out of use, another one comes.
    systems[round % systems.length] = Uint32Array.from({ length: 64 }, () => randomU32(random));
    for (const [worker, cache] of caches) for (let n = 0; n < 6; n++) serve(worker, cache);
    while (index.maintain(4096));
    if (round < 40) continue;
    bytes.push(index.stats().bytes);
    if (round % 8 === 0) heaps.push(heapMb());
  }
  expect(index.stats()).toMatchObject({ holders: 14, longestProbe: expect.any(Number) });
  expect(index.stats().sets).toBeLessThan(2000);
  // System prompts stay until their worker goes: no more than a worker's life of them.
  expect(index.size).toBeLessThan(14 * (cacheBlocks + 32 * 60));
  expect(Math.max(...bytes.slice(100))).toBeLessThanOrEqual(1.5 * Math.max(...bytes.slice(0, 100)));
  expect(slopeOf(heaps)).toBeLessThan(0.05);
  for (const worker of caches.keys()) index.removeWorker(worker);
  while (index.maintain(4096));
  expect(index.stats()).toMatchObject({ size: 0, blocks: 0, sets: 0, holders: 0 });
});

it("a router's books, series and heap do not grow with the workers and requests it has seen", async () => {
  const { router, send, worker, clock, metrics } = startPool(41);
  const seriesOf = async (): Promise<number> => (await metrics.text()).split("\n").length;
  const series: number[] = [];
  const heaps: number[] = [];
  for (let round = 0; round < 60; round++) {
    const workers = [0, 1, 2].map((at) => worker(String(3 * round + at + 1)));
    await clock.runFor(100);
    for (const [at, one] of workers.entries()) {
      one.cache(promptOf(round, 4 + at));
      one.cache(promptOf(1000 + at, 2), false, "host_pinned");
    }
    await clock.runFor(100);
    for (let n = 0; n < 12; n++) {
      const routing = n % 3 === 0 ? { lora_name: `adapter ${round}` } : {};
      const { rid, receipt } = send(promptOf(round + (n % 2), 6), { routing });
      const accepted = await receipt;
      if (accepted.type !== "accepted") throw new Error(accepted.code);
      // One request in four is never ended by its worker, which is about to go.
      if (n % 4 !== 0) workers.find(({ inst }) => inst === accepted.inst)?.finish(rid);
    }
    await clock.runFor(100);
    expect(router.stats.index?.size).toBeGreaterThan(10);
    for (const one of workers) one.announcer.stop();
    await clock.runFor(10_000);
    for (const one of workers) await one.bus.close();
    expect(router.holders()).toEqual([]);
    expect(router.stats).toMatchObject({ openRequests: 0, bookings: 0, bookedBlocks: 0 });
    expect(router.stats.index).toMatchObject({ size: 0, blocks: 0, sets: 0, holders: 0 });
    if (round < 20) continue;
    series.push(await seriesOf());
    heaps.push(heapMb());
  }
  expect(new Set(series).size).toBe(1);
  expect(slopeOf(heaps)).toBeLessThan(0.05);
});
