import { expect, it } from "vitest";
import type { Receipt } from "../../src/protocol/requests.ts";
import { blockSize, configOf, promptOf, startPool } from "./pool-rig.ts";

interface Overlaps {
  readonly workers: readonly {
    readonly worker_id: string;
    readonly dp_rank: number;
    readonly device_blocks: number;
  }[];
}

type Pool = ReturnType<typeof startPool>;

const approximate = { use_kv_events: false };

async function overlapsOf({ question }: Pool, prompt: Uint32Array): Promise<number[]> {
  const answer: Overlaps = await question("get_overlap_scores", { token_ids: [...prompt] });
  return answer.workers.map(({ device_blocks }) => device_blocks);
}

const workerOf = (receipt: Receipt): string =>
  receipt.type === "accepted" ? receipt.inst : receipt.code;

/** A pool of workers "1", "2", … and requests that end as soon as they are taken. */
async function startFleet(settings: object, workers: number) {
  const pool = startPool(21, { config: configOf(settings) });
  const started = Array.from({ length: workers }, (_, at) => pool.worker(String(at + 1)));
  await pool.clock.runFor(100);
  const route = async (prompt: Uint32Array, body = {}): Promise<string> => {
    const { rid, receipt } = pool.send(prompt, body);
    const inst = workerOf(await receipt);
    started.find((worker) => worker.inst === inst)?.finish(rid);
    await pool.clock.runFor(10);
    return inst;
  };
  return { ...pool, workers: started, route };
}

it("without events expects a prompt's full blocks on the worker that got it, for a while", async () => {
  const pool = await startFleet({ ...approximate, router_ttl_secs: 60 }, 3);
  const prompt = promptOf(1, 10);
  expect(await overlapsOf(pool, prompt)).toEqual([0, 0, 0]);
  const inst = await pool.route(prompt.subarray(0, 6 * blockSize + 3));
  const expected = ["1", "2", "3"].map((worker) => (worker === inst ? 6 : 0));
  expect(await overlapsOf(pool, prompt)).toEqual(expected);
  for (let round = 0; round < 5; round++) expect(await pool.route(prompt)).toBe(inst);
  await pool.clock.runFor(59_000);
  expect(await pool.route(prompt)).toBe(inst);
  await pool.clock.runFor(60_000);
  expect(await overlapsOf(pool, prompt)).toEqual([0, 0, 0]);
  expect(pool.router.stats.predictedBlocks).toBe(0);
});

it("without events subscribes to none, and says that its overlaps are approximate", async () => {
  const pool = await startFleet(approximate, 1);
  pool.workers[0]?.cache(promptOf(1, 4));
  await pool.clock.runFor(100);
  expect(await overlapsOf(pool, promptOf(1, 4))).toEqual([0]);
  const explained = await pool.question("explain", { token_ids: [1, 2] });
  expect(explained).toMatchObject({ index: { mode: "approximate" } });
});

it("records pinned requests, and nothing for questions", async () => {
  const pool = await startFleet(approximate, 2);
  const prompt = promptOf(2, 5);
  const asked = { token_ids: [...prompt] };
  for (const endpoint of ["best_worker_id", "explain", "get_overlap_scores"]) {
    await pool.question(endpoint, asked);
  }
  expect(pool.router.stats.predictedBlocks).toBe(0);
  expect(await pool.route(prompt, { routing: { backend_instance_id: "2" } })).toBe("2");
  expect(await overlapsOf(pool, prompt)).toEqual([0, 5]);
});

it("records what a caller books through route", async () => {
  const pool = await startFleet(approximate, 2);
  const prompt = promptOf(3, 5);
  const booked: { worker_id: string } = await pool.question("route", {
    method: "new",
    token_ids: [...prompt],
  });
  const expected = ["1", "2"].map((worker) => (worker === booked.worker_id ? 5 : 0));
  expect(await overlapsOf(pool, prompt)).toEqual(expected);
});

it("predicts for the rank that was chosen", async () => {
  const pool = startPool(22, { config: configOf(approximate) });
  pool.worker("9", { card: { dpStart: 2, dpSize: 2 } });
  await pool.clock.runFor(100);
  await pool.send(promptOf(1, 4), { routing: { dp_rank: 3 } }).receipt;
  const answer: Overlaps = await pool.question("get_overlap_scores", {
    token_ids: [...promptOf(1, 4)],
  });
  expect(answer.workers).toMatchObject([
    { worker_id: "9", dp_rank: 2, device_blocks: 0 },
    { worker_id: "9", dp_rank: 3, device_blocks: 4 },
  ]);
});

it("keeps the predicted blocks within router_max_tree_size, the oldest going first", async () => {
  const sizes = { router_max_tree_size: 20, router_prune_target_ratio: 0.5 };
  const pool = await startFleet({ ...approximate, ...sizes }, 1);
  for (let family = 1; family <= 3; family++) await pool.route(promptOf(family, 8));
  expect(pool.router.stats.predictedBlocks).toBe(10);
  expect(await overlapsOf(pool, promptOf(1, 8))).toEqual([0]);
  expect(await overlapsOf(pool, promptOf(2, 8))).toEqual([2]);
  expect(await overlapsOf(pool, promptOf(3, 8))).toEqual([8]);
  const text = await pool.metrics.text();
  expect(text).toContain("tiergrid_prune_runs_total 1");
  expect(text).toContain('tiergrid_predicted_blocks_forgotten_total{by="size"} 14');
});

it("with lru keeps as many blocks per rank as its worker caches, whatever their age", async () => {
  const settings = { ...approximate, router_approximate_cache_policy: "lru", router_ttl_secs: 1 };
  const pool = startPool(23, { config: configOf(settings) });
  const small = pool.worker("1", { card: { totalKvBlocks: 12 } });
  await pool.clock.runFor(100);
  for (let family = 1; family <= 2; family++) {
    const { rid, receipt } = pool.send(promptOf(family, 8));
    await receipt;
    small.finish(rid);
    await pool.clock.runFor(10_000);
  }
  expect(pool.router.stats.predictedBlocks).toBe(12);
  expect(await overlapsOf(pool, promptOf(1, 8))).toEqual([4]);
  expect(await overlapsOf(pool, promptOf(2, 8))).toEqual([8]);
});

it("forgets what it predicted of a worker that is gone", async () => {
  const pool = await startFleet(approximate, 1);
  await pool.route(promptOf(1, 8));
  expect(pool.router.stats.predictedBlocks).toBe(8);
  pool.workers[0]?.announcer.goodbye();
  await pool.clock.runFor(100);
  expect(pool.router.stats.predictedBlocks).toBe(0);
});

it("neither predicts nor matches without overlap credit", async () => {
  const pool = await startFleet({ ...approximate, overlap_score_credit: 0 }, 1);
  await pool.route(promptOf(1, 8));
  expect(pool.router.stats.predictedBlocks).toBe(0);
});

it("beside events counts the larger overlap until the prediction is over", async () => {
  const pool = await startFleet({ router_predicted_ttl_secs: 5 }, 2);
  const prompt = promptOf(4, 10);
  pool.workers[0]?.cache(prompt.subarray(0, 4 * blockSize));
  await pool.clock.runFor(100);
  expect(await overlapsOf(pool, prompt)).toEqual([4, 0]);
  const short = prompt.subarray(0, 2 * blockSize);
  await pool.route(short, { routing: { backend_instance_id: "2" } });
  await pool.route(prompt.subarray(0, 6 * blockSize), { routing: { backend_instance_id: "1" } });
  expect(await overlapsOf(pool, prompt)).toEqual([6, 2]);
  await pool.clock.runFor(5_000);
  expect(await overlapsOf(pool, prompt)).toEqual([4, 0]);
});

it("beside events keeps a burst of siblings together before the first event comes", async () => {
  const siblings = async (settings: object): Promise<number> => {
    const pool = await startFleet(settings, 4);
    const seen = new Set<string>();
    for (let sibling = 0; sibling < 8; sibling++) {
      const prompt = promptOf(5, 21);
      prompt[20 * blockSize] = sibling;
      seen.add(await pool.route(prompt));
    }
    return seen.size;
  };
  expect(await siblings({ router_predicted_ttl_secs: 5 })).toBe(1);
  expect(await siblings({})).toBeGreaterThan(1);
});
