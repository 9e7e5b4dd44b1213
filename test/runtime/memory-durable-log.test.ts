import { expect, it } from "vitest";
import { ManualClock, realClock } from "../../src/base/clock.ts";
import { lockTtlMs, retentionMs } from "../../src/runtime/durable-log.ts";
import {
  createMemoryDurableStore,
  type MemoryDurableStore,
} from "../../src/runtime/memory-durable-log.ts";
import { durableLogConformance } from "./durable-log-conformance.ts";

durableLogConformance(async () => {
  const stores = new Map<string, MemoryDurableStore>();
  return {
    connect(component) {
      const store = stores.get(component) ?? createMemoryDurableStore(realClock);
      stores.set(component, store);
      return store.connect();
    },
    stop: async () => {},
  };
});

it("keeps messages for the retention and a lock for its time", async () => {
  const clock = new ManualClock();
  const log = createMemoryDurableStore(clock).connect();
  const run = async <T>(work: Promise<T>): Promise<T> => {
    await clock.runFor(1);
    return work;
  };
  await run(log.open());
  await run(log.append("tg.evs.a.b.1.0", new Uint8Array(1)));
  const lock = await run(log.lock("purger", "1"));
  await clock.runFor(lockTtlMs - 10);
  expect(await run(log.lock("purger", "2"))).toBeUndefined();
  await clock.runFor(20);
  expect(lock && (await run(lock.renew()))).toBe(false);
  expect(await run(log.lock("purger", "2"))).toBeDefined();
  await clock.runFor(retentionMs - lockTtlMs - 100);
  expect((await run(log.state())).messages).toBe(1);
  await clock.runFor(200);
  expect(await run(log.state())).toEqual({ firstSequence: 2, lastSequence: 1, messages: 0 });
});
