import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { createKvIndex } from "../../src/core/create-kv-index.ts";
import { PredictedIndex } from "../../src/core/predicted-index.ts";
import { createOverlapMatch } from "../../src/local-router/overlap-match.ts";
import { readRouteQuery } from "../../src/local-router/route-query.ts";
import { blockHasher, blockSize, configOf, promptOf, startPool } from "./pool-rig.ts";

it("slower tiers add what they have beyond the faster ones, and weigh by their credit", async () => {
  const config = configOf({ host_cache_hit_weight: 0.5, disk_cache_hit_weight: 0.125 });
  const pool = startPool(31, { config });
  const [first, second] = [pool.worker("1"), pool.worker("2")];
  await pool.clock.runFor(100);
  first.cache(promptOf(1, 2));
  first.cache(promptOf(1, 6), false, "host_pinned");
  first.cache(promptOf(1, 7), false, "external");
  first.cache(promptOf(1, 8), false, "disk");
  second.cache(promptOf(1, 3));
  await pool.clock.runFor(100);
  const prompt = { token_ids: [...promptOf(1, 10)] };
  expect(await pool.question("get_overlap_scores", prompt)).toMatchObject({
    num_blocks: 10,
    workers: [
      {
        device_blocks: 2,
        host_pinned_blocks: 6,
        disk_blocks: 8,
        host_pinned_extension_blocks: 4,
        disk_extension_blocks: 2,
        router_credit_blocks: 2 + 0.5 * 4 + 0.125 * 2,
      },
      {
        device_blocks: 3,
        host_pinned_blocks: 3,
        disk_blocks: 3,
        host_pinned_extension_blocks: 0,
        disk_extension_blocks: 0,
        router_credit_blocks: 3,
      },
    ],
  });
  expect(await pool.question("best_worker_id", prompt)).toMatchObject({
    worker_id: "1",
    overlap_blocks: 4,
  });
});

it("a predicted block counts as one on the device, and slower tiers begin beyond it", () => {
  const random = mulberry32(1);
  const index = createKvIndex({ mode: "identity", random, chain: blockHasher.chain });
  const slot = index.holder("1", 0);
  const predicted = new PredictedIndex({
    ...{ random, policy: "ttl", ttlMs: 1000, sizeMax: 100, pruneTargetRatio: 0.8 },
  });
  predicted.addHolder(slot, "1", 0, 100);
  const rules = { config: configOf(), policy: "blocks", role: "aggregated" } as const;
  const query = readRouteQuery(
    { ...rules, blockHasher, blockSize },
    { phase: "aggregated", body: {}, prompt: { type: "tokens", tokens: promptOf(1, 8) } },
  );
  const blocksOf = (count: number) => {
    const blocks = new Uint32Array(4 * count);
    for (let block = 0; block < count; block++) {
      blocks.set(query.sequence.subarray(2 * block, 2 * block + 2), 4 * block + 2);
    }
    return blocks;
  };
  index.store(slot, undefined, blocksOf(1));
  index.store(slot, undefined, blocksOf(5), 1);
  index.store(slot, undefined, blocksOf(6), 2);
  const match = createOverlapMatch({ clock: new ManualClock(), index, predicted });
  const at = () => {
    const { device, hostExt, diskExt } = match(query);
    return [device[slot], hostExt?.[slot], diskExt?.[slot]];
  };
  expect(at()).toEqual([1, 4, 1]);
  predicted.record(slot, query.sequence, 3, 0);
  expect(at()).toEqual([3, 2, 1]);
  predicted.record(slot, query.sequence, 7, 0);
  expect(at()).toEqual([7, 0, 0]);
});
