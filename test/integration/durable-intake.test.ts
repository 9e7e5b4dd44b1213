/** The durable intake of a router on a real JetStream that loses what it kept. */
import { connect } from "nats";
import { expect, it } from "vitest";
import { realClock as clock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { type DurableLog, durableNames } from "../../src/runtime/durable-log.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";
import { createNatsDurableLog } from "../../src/runtime/nats-durable-log.ts";
import { newRouter, newWorker, pool, type RigRouter } from "../local-router/durable-rig.ts";
import { startJetStream } from "./nats-fixture.ts";
import { until } from "./processes.ts";

const random = mulberry32(9);
const names = durableNames(pool.namespace, pool.component);

it("rebuilds from the workers when stream and buckets vanish, and survives the server's death", async () => {
  const server = await startJetStream();
  const logs: DurableLog[] = [];
  const connectLog = (): DurableLog => {
    const log = createNatsDurableLog({ servers: [server.url], names, role: "lo", clock, random });
    logs.push(log);
    return log;
  };
  const worker = newWorker(clock, random, connectLog(), "101");
  const network = createMemoryNetwork({ clock, random });
  const start = (inst: string): RigRouter =>
    newRouter({
      ...{ clock, random, inst, workers: [worker], stream: connectLog() },
      bus: network.connect({ role: "lo" }),
    });
  const acts = async (count: number): Promise<void> => {
    for (let left = count; left > 0; left--) {
      worker.act(1);
      await new Promise((resolve) => clock.after(5, () => resolve(undefined)));
    }
  };
  const first = start("9001");
  first.discover(worker);
  await until("the stream is followed", () => first.durable.following);
  await acts(40);
  const saved = (): number => first.durable.totals.savedSnapshots;
  await until("a snapshot is saved", () => saved() > 0 && first.agrees(worker));

  const operator = await connect({ servers: [server.url] });
  const { streams } = await operator.jetstreamManager();
  for (const stream of [names.stream, `OBJ_${names.bucket}`, `KV_${names.locks}`]) {
    await streams.delete(stream);
  }
  await operator.close();
  const before = saved();
  await acts(5);
  await until("the stream began anew", () => first.durable.totals.rebuilds === 1);
  await acts(40);
  await until("it is whole again", () => saved() > before && first.agrees(worker));

  await server.kill("SIGKILL");
  await acts(20);
  await server.restart();
  await until("it follows on", () => first.durable.following && first.agrees(worker));
  await first.crash();
  worker.reachable = false;
  await acts(10);
  const second = start("9002");
  second.discover(worker);
  await until("its successor agrees", () => second.agrees(worker));
  expect(second.asked()).toBe(0);
  expect(second.durable.totals.restoredRanks).toBe(1);
  await second.close();
  await Promise.all(logs.map((log) => log.close()));
  await server.stop();
});
