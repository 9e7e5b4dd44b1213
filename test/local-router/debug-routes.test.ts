import { expect, it } from "vitest";
import { debugRoutes } from "../../src/local-router/debug-routes.ts";
import { configOf, promptOf, startPool } from "./pool-rig.ts";

async function pool(seed: number, settings: object = {}) {
  const rig = startPool(seed, { config: configOf(settings) });
  rig.worker("1");
  rig.worker("2").cache(promptOf(1, 8));
  await rig.clock.runFor(100);
  const app = debugRoutes(rig.router.overlap);
  const info = async () => (await app.request("/debug/tree_info")).json() as Promise<object>;
  const inject = async (body: unknown) => {
    const text = JSON.stringify(body);
    const response = await app.request("/debug/inject_event", { method: "POST", body: text });
    return { status: response.status, json: (await response.json()) as object };
  };
  return { ...rig, app, info, inject };
}

it("tells what the index holds, in all and per rank", async () => {
  const { info } = await pool(1);
  expect(await info()).toEqual({
    mode: "opaque",
    num_blocks: 8,
    num_worker_blocks: 8,
    bytes: expect.any(Number),
    ranks: [
      { worker_id: "1", dp_rank: 0, num_blocks: 0, last_event_id: -1, settled: true },
      { worker_id: "2", dp_rank: 0, num_blocks: 8, last_event_id: 0, settled: true },
    ],
  });
});

it("gives a rank a first block, which choices see", async () => {
  const { inject, info, router } = await pool(2);
  const body = { worker_id: "1", tokens_hash: "18446744073709551615", block_hash: "7" };
  expect(await inject(body)).toEqual({ status: 200, json: { status: "ok", num_blocks: 1 } });
  const localHashes = Uint32Array.of(2 ** 32 - 1, 2 ** 32 - 1);
  const prompt = { type: "hashes", islTokens: 16, blockSize: 16, localHashes } as const;
  expect(router.admin.bestWorker(prompt)).toMatchObject({ workerId: "1", overlapBlocks: 1 });
  expect(await info()).toMatchObject({ num_blocks: 9 });
});

it.each([
  [404, { worker_id: "3", tokens_hash: 1 }, 'no rank 0 of worker "3"'],
  [404, { worker_id: "1", dp_rank: 1, tokens_hash: 1 }, "no rank 1"],
  [400, { worker_id: "1" }, "tokens_hash must be an unsigned 64-bit integer"],
  [400, { worker_id: "1", tokens_hash: 1, block_hash: -1 }, "block_hash must be"],
  [400, { worker_id: "1", tokens_hash: 1, mm_extra_info: {} }, "mm_extra_info must be absent"],
  [400, [], "must be a JSON object"],
])("answers %d to %j", async (status, body, message) => {
  const { inject } = await pool(3);
  const text = expect.stringContaining(message);
  expect(await inject(body)).toMatchObject({ status, json: { error: { message: text } } });
});

it("answers 404 where no KV events are followed", async () => {
  const { app } = await pool(4, { use_kv_events: false });
  expect((await app.request("/debug/tree_info")).status).toBe(404);
});
