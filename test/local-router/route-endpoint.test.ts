import { expect, it } from "vitest";
import { encodeHashQuestion } from "../../src/protocol/hash-frame.ts";
import { askSubject, endpointSubject } from "../../src/protocol/subjects.ts";
import { formatU64 } from "../../src/protocol/u64.ts";
import { blockHasher, blockSize, promptOf, startPool } from "./pool-rig.ts";

interface Routed {
  readonly request_id: string;
  readonly worker_id: string;
  readonly overlap_blocks: number;
  readonly route_subject: string;
}

const tokensOf = (family: number, blocks: number): number[] => Array.from(promptOf(family, blocks));

async function poolOfTwo(seed: number) {
  const pool = startPool(seed);
  pool.worker("1");
  pool.worker("2").cache(promptOf(1, 20));
  await pool.clock.runFor(100);
  const route = async (json: object): Promise<never> => pool.question("route", json);
  return { ...pool, route };
}

it("decides and books; prefill and end are marked by the caller, each once", async () => {
  const { router, route, metrics, clock } = await poolOfTwo(1);
  const routed: Routed = await route({
    method: "new",
    request_id: "r1",
    token_ids: tokensOf(1, 20),
  });
  expect(routed).toMatchObject({
    request_id: "r1",
    worker_id: "2",
    dp_rank: 0,
    overlap_blocks: 20,
  });
  expect(routed.route_subject).toBe(askSubject("local", router.inst, "route"));
  expect(router.stats.bookings).toBe(1);
  expect(await route({ method: "mark_prefill", request_id: "r1" })).toMatchObject({
    success: true,
  });
  expect(await route({ method: "mark_free", request_id: "r1" })).toMatchObject({ success: true });
  expect(await route({ method: "mark_free", request_id: "r1" })).toMatchObject({ success: false });
  expect(router.stats.bookings).toBe(0);
  expect(router.holders().every(({ activeBlocks }) => activeBlocks === 0)).toBe(true);
  await clock.runFor(10);
  expect(await metrics.text()).toContain("tiergrid_bookings_active");
});

it("makes up an id for a call without one, and refuses one that is booked", async () => {
  const { route } = await poolOfTwo(2);
  const first: Routed = await route({ token_ids: tokensOf(3, 2), request_id: "" });
  expect(first.request_id).toMatch(/^[0-9a-f]{32}$/);
  const again = await route({ token_ids: tokensOf(3, 2), request_id: first.request_id });
  expect(again).toMatchObject({ error: { code: "duplicate_request" } });
});

it("routes by hashes alone, as JSON and as a frame, as it does by tokens", async () => {
  const { route, client, settled, router } = await poolOfTwo(3);
  const { local } = blockHasher.hashBlocks(promptOf(1, 20), blockSize);
  const local_hashes = Array.from({ length: 20 }, (_, block) =>
    formatU64(local[2 * block]!, local[2 * block + 1]!),
  );
  const byJson: Routed = await route({ local_hashes, num_tokens: 20 * blockSize + 3 });
  const frame = encodeHashQuestion({
    body: { method: "new" },
    islTokens: 20 * blockSize + 3,
    blockSize,
    localHashes: local,
  });
  const subject = endpointSubject({ namespace: "pool", component: "router", endpoint: "route" });
  const reply = await settled(client.request(subject, frame, { timeoutMs: 1000 }));
  const byFrame = JSON.parse(new TextDecoder().decode(reply.payload)) as Routed;
  for (const routed of [byJson, byFrame]) {
    expect(routed).toMatchObject({ worker_id: "2", overlap_blocks: 20 });
  }
  expect(router.stats.bookings).toBe(2);
});

it("tells what each worker would carry, and changes nothing", async () => {
  const { route, router } = await poolOfTwo(4);
  await route({ request_id: "r1", token_ids: tokensOf(1, 20) });
  const loads = await route({ method: "potential_loads", token_ids: tokensOf(1, 20) });
  expect(loads).toEqual({
    method: "potential_loads",
    loads: [
      load("1", { tokens: 20 * blockSize, blocks: 20, requests: 0 }),
      load("2", { tokens: 0, blocks: 20, requests: 1 }),
    ],
    pending_count: 0,
    pending_isl_tokens: 0,
  });
  expect(router.stats.bookings).toBe(1);
});

function load(worker_id: string, { tokens = 0, blocks = 0, requests = 0 }) {
  return {
    worker_id,
    dp_rank: 0,
    potential_prefill_tokens: tokens,
    potential_decode_blocks: blocks,
    active_requests: requests,
  };
}

it("frees what its caller forgot, after 300 s without a word", async () => {
  const { route, router, clock } = await poolOfTwo(5);
  await route({ request_id: "r1", token_ids: tokensOf(1, 20) });
  await clock.runFor(290_000);
  expect(router.stats.bookings).toBe(1);
  await clock.runFor(60_000);
  expect(router.stats.bookings).toBe(0);
});

it.each([
  [{ method: "book" }, "method must be"],
  [{ method: "new" }, "token_ids must be"],
  [{ request_id: 5, token_ids: [1] }, "request_id must be"],
  [{ local_hashes: ["1"], num_tokens: 64 }, "64 tokens are 4 full blocks, got 1 hashes"],
  [{ local_hashes: ["1"], num_tokens: 16, block_size: 32 }, "hashes of 32-token blocks"],
  [{ local_hashes: [-1], num_tokens: 16 }, "local_hashes[0]"],
  [{ local_hashes: ["1"], num_tokens: 0 }, "num_tokens to be an integer > 0"],
])("refuses %j", async (json, message) => {
  const { route, router } = await poolOfTwo(6);
  const answer: { error: { code: string; message: string } } = await route(json);
  expect(answer.error.code).toBe("invalid_request");
  expect(answer.error.message).toContain(message);
  expect(router.stats.bookings).toBe(0);
});
