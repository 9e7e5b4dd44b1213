import { expect, it } from "vitest";
import { adminRoutes } from "../../src/local-router/admin-routes.ts";
import { askSubject } from "../../src/protocol/subjects.ts";
import { formatU64 } from "../../src/protocol/u64.ts";
import { blockHasher, blockSize, promptOf, startPool } from "./pool-rig.ts";

async function pool(seed: number) {
  const rig = startPool(seed);
  rig.worker("1");
  rig.worker("2").cache(promptOf(1, 8));
  await rig.clock.runFor(100);
  const app = adminRoutes(rig.router.admin);
  const post = async (path: string, body: unknown) => {
    const text = typeof body === "string" ? body : JSON.stringify(body);
    const response = await app.request(path, { method: "POST", body: text });
    return { status: response.status, json: (await response.json()) as object };
  };
  return { ...rig, app, post };
}

const off = {
  active_decode_blocks_threshold: null,
  active_prefill_tokens_threshold: null,
  active_prefill_tokens_threshold_frac: null,
};

it("shows the thresholds of every model, and sets what is given", async () => {
  const { app, post } = await pool(1);
  const shown = await app.request("/busy_threshold");
  expect(await shown.json()).toEqual({ thresholds: [{ model: "m", ...off }] });
  const set = { model: "m", active_decode_blocks_threshold: 0.5 };
  expect(await post("/busy_threshold", set)).toEqual({ status: 200, json: { ...off, ...set } });
  const other = { model: "m", active_prefill_tokens_threshold: 100 };
  expect((await post("/busy_threshold", other)).json).toEqual({ ...off, ...set, ...other });
  expect((await post("/busy_threshold", { model: "m" })).json).toEqual({
    ...off,
    ...set,
    ...other,
  });
  const cleared = { ...set, active_decode_blocks_threshold: null };
  expect((await post("/busy_threshold", cleared)).json).toEqual({ ...off, ...other });
});

it.each([
  [404, { model: "other" }, 'no workers of model "other"; of: m'],
  [400, {}, "model must be a string"],
  [400, { model: "m", active_decode_blocks_threshold: 2 }, "a number from 0 to 1"],
  [400, "{", "must be a JSON object"],
  [400, [1], "must be a JSON object"],
])("answers %d to %j", async (status, body, message) => {
  const { post, router } = await pool(2);
  const answer = await post("/busy_threshold", body);
  expect(answer).toMatchObject({
    status,
    json: { error: { message: expect.stringContaining(message) } },
  });
  expect(router.admin.thresholds()).toEqual({
    activeDecodeBlocks: null,
    activePrefillTokens: null,
    activePrefillTokensFrac: null,
  });
});

it("changes thresholds over the bus too, at the one router that is addressed", async () => {
  const { client, router, settled } = await pool(3);
  const ask = async (json: object): Promise<unknown> => {
    const payload = new TextEncoder().encode(JSON.stringify(json));
    const request = client.request(askSubject("local", router.inst, "thresholds"), payload, {
      timeoutMs: 1000,
    });
    return JSON.parse(new TextDecoder().decode((await settled(request)).payload));
  };
  expect(await ask({ model: "m", active_prefill_tokens_threshold: 7 })).toEqual({
    ...off,
    model: "m",
    active_prefill_tokens_threshold: 7,
  });
  expect(await ask({ model: "x" })).toMatchObject({ error: { code: "model_not_found" } });
});

it("finds the best worker from hashes without booking it", async () => {
  const { post, router } = await pool(4);
  const { local } = blockHasher.hashBlocks(promptOf(1, 8), blockSize);
  const local_hashes = Array.from({ length: 8 }, (_, block) =>
    formatU64(local[2 * block]!, local[2 * block + 1]!),
  );
  const found = await post("/find_best_worker", { local_hashes, num_tokens: 8 * blockSize + 2 });
  expect(found).toEqual({
    status: 200,
    json: { worker_id: "2", dp_rank: 0, matched_blocks: 8, overlap: 128 / 130 },
  });
  expect(router.stats.bookings).toBe(0);
  expect((await post("/find_best_worker", { local_hashes, num_tokens: 0 })).status).toBe(400);
  expect((await post("/find_best_worker", { num_tokens: 16 })).status).toBe(400);
});

it("answers 503 before it serves", async () => {
  const { router } = startPool(5);
  const response = await adminRoutes(router.admin).request("/find_best_worker", {
    method: "POST",
    body: JSON.stringify({ local_hashes: ["1"], num_tokens: 16 }),
  });
  expect(response.status).toBe(503);
});
