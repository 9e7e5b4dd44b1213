/** Two whole local routers of one pool: what one books, the other one counts. */
import { expect, it } from "vitest";
import { noBusyThresholds } from "../../src/core/worker-roster.ts";
import { localRouterTable } from "../../src/local-router/local-metrics.ts";
import { startLocalRouter } from "../../src/local-router/local-router.ts";
import { askSubject } from "../../src/protocol/subjects.ts";
import { startEchoGate } from "../../src/runtime/echo-gate.ts";
import { silentLog } from "../../src/runtime/log.ts";
import { createMetrics } from "../../src/runtime/metrics.ts";
import { blockHasher, blockSize, configOf, promptOf, startPool } from "./pool-rig.ts";

/** A pool's router, a second one beside it, and two workers, all acquainted. */
async function twoRouters(seed: number, config = configOf({ router_replica_sync: true })) {
  const pool = startPool(seed, { config });
  const { clock, random, network } = pool;
  const bus = network.connect({ role: "lo" });
  const gate = startEchoGate(bus, clock);
  const metrics = createMetrics(localRouterTable);
  const other = startLocalRouter({
    ...{ bus, clock, random, gate, log: silentLog, metrics, blockHasher, blockSize, config },
    endpoint: { namespace: "pool", component: "backend", endpoint: "generate" },
    ...{ role: "aggregated", policy: "blocks", thresholds: noBusyThresholds },
    ...{ minInitialWorkers: 0, acceptTimeoutMs: 300, version: "1.0.0" },
  });
  const workers = [pool.worker("1"), pool.worker("2")];
  await clock.runFor(1000);
  const load = (router: typeof other): number[][] =>
    router
      .holders()
      .map(({ activeBlocks, activeRequests }) => [activeBlocks, activeRequests])
      .sort();
  return { ...pool, other, metrics: [pool.metrics, metrics] as const, workers, load };
}

it("counts what the other router dispatched, from its choice to its end", async () => {
  const { clock, router, other, send, workers, load, metrics } = await twoRouters(1);
  const { rid, receipt } = send(promptOf(1, 4));
  await receipt;
  await clock.runFor(5);
  expect(load(other)).toEqual(load(router));
  expect(load(other)).toContainEqual([4, 1]);
  expect(other.stats.replicas).toEqual({ peers: 1, recovering: 0, booked: 1, held: 0 });
  const [own, told] = await Promise.all(metrics.map((one) => one.text()));
  expect(own).toContain('tiergrid_bookings_active{role="aggregated"} 1');
  expect(told).toContain('tiergrid_bookings_active{role="aggregated"} 0');
  expect(told).toContain('tiergrid_replica_bookings{state="booked"} 1');
  for (const worker of workers) worker.finish(rid);
  await clock.runFor(5);
  expect(other.stats).toMatchObject({ bookings: 0, bookedBlocks: 0 });
});

it("puts the next request elsewhere than the other router did", async () => {
  const { clock, other, send, workers } = await twoRouters(2);
  await send(promptOf(1, 40)).receipt;
  await clock.runFor(5);
  const busy = workers.findIndex(({ taken }) => taken.length > 0);
  for (let family = 2; family < 6; family++) {
    const choice = other.admin.bestWorker({ type: "tokens", tokens: promptOf(family, 4) });
    expect(choice).toMatchObject({ outcome: "chosen", workerId: workers[1 - busy]?.inst });
  }
});

it("tells bookings of the route endpoint, and their ends", async () => {
  const { clock, router, other, question, client, settled } = await twoRouters(3);
  const asked = { method: "new", token_ids: [...promptOf(1, 4)], request_id: "r1" };
  const { route_subject } = (await question("route", asked)) as { route_subject: string };
  await clock.runFor(5);
  expect([router.stats.bookings, other.stats.bookings]).toEqual([1, 1]);
  const end = Buffer.from(JSON.stringify({ method: "mark_free", request_id: "r1" }));
  await settled(client.request(route_subject, end, { timeoutMs: 1000 }));
  await clock.runFor(5);
  expect([router.stats.bookings, other.stats.bookings]).toEqual([0, 0]);
});

it("wakes a request that waits because of the other router's prefill when that is done", async () => {
  const config = configOf({ router_replica_sync: true, router_queue_threshold: 0.01 });
  const { clock, other, send, client, settled } = await twoRouters(5, config);
  const subject = askSubject("local", other.inst, "route");
  const tell = (json: object): Promise<unknown> =>
    client.request(subject, Buffer.from(JSON.stringify(json)), { timeoutMs: 1000 });
  for (const id of ["1", "2"]) {
    const routing = { backend_instance_id: id };
    const asked = { method: "new", token_ids: [...promptOf(1, 40)], request_id: id, routing };
    await settled(tell(asked));
  }
  await clock.runFor(5);
  expect(other.holders().map(({ activeRequests }) => activeRequests)).toEqual([1, 1]);
  const startMs = clock.nowMs();
  clock.after(700, () => void tell({ method: "mark_prefill", request_id: "2" }));
  const { receipt } = send(promptOf(2, 4));
  expect(await receipt).toMatchObject({ type: "accepted", workerId: "2" });
  const waitedMs = clock.nowMs() - startMs;
  expect([waitedMs >= 700, waitedMs < 710]).toEqual([true, true]);
});

it("leaves nothing behind when a worker dies under requests of both", async () => {
  const { clock, router, other, send, workers } = await twoRouters(4);
  await Promise.all([1, 2, 3].map((family) => send(promptOf(family, 4)).receipt));
  await clock.runFor(5);
  expect(other.stats.bookings).toBe(3);
  for (const { announcer } of workers) announcer.goodbye();
  await clock.runFor(100);
  for (const { stats } of [router, other]) {
    expect(stats).toMatchObject({ bookings: 0, bookedBlocks: 0 });
    expect(stats.replicas).toMatchObject({ peers: 1, held: 0 });
  }
});
