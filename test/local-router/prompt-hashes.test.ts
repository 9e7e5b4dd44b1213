import fc from "fast-check";
import { expect, it } from "vitest";
import { hashPrompt } from "../../src/protocol/prompt-hashes.ts";
import type { HashedPrompt, RequestBody } from "../../src/protocol/requests.ts";
import { allHeartbeats } from "../../src/protocol/subjects.ts";
import { decodeHeartbeat } from "../../src/runtime/instance-card.ts";
import { blockHasher, blockSize, configOf, promptOf, startPool } from "./pool-rig.ts";

const card = { promptHashes: blockSize };
const promptFrom = "_R.fe.owner.p";

function hashed(tokens: Uint32Array, body: RequestBody = {}, size = blockSize): HashedPrompt {
  const { islTokens, local } = hashPrompt(blockHasher, body, tokens, size);
  return { type: "hashes", islTokens, blockSize: size, localHashes: local };
}

interface Asked {
  readonly family: number;
  readonly blocks: number;
  readonly tail: number;
  readonly salt: string | undefined;
  readonly lora: string | undefined;
  readonly cached: boolean;
}

const anyAsked: fc.Arbitrary<Asked> = fc.record({
  family: fc.nat({ max: 2 }),
  blocks: fc.nat({ max: 6 }),
  tail: fc.integer({ min: 1, max: blockSize - 1 }),
  salt: fc.constantFrom(undefined, "tenant"),
  lora: fc.constantFrom(undefined, "adapter"),
  cached: fc.boolean(),
});

/** Which worker and rank each request got, with what the router saw cached. */
async function choices(seed: number, asked: readonly Asked[], asHashes: boolean, config: object) {
  const pool = startPool(seed, { config: configOf(config) });
  const workers = ["1", "2", "3"].map((inst) => pool.worker(inst, { card }));
  await pool.clock.runFor(100);
  const made: unknown[] = [];
  for (const { family, blocks, tail, salt, lora, cached } of asked) {
    const tokens = promptOf(family, blocks + 1).subarray(0, blocks * blockSize + tail);
    if (cached) workers[family]?.cache(tokens);
    await pool.clock.runFor(10);
    const routing = { ...(salt && { cache_salt: salt }), ...(lora && { lora_name: lora }) };
    const prompt = asHashes ? hashed(tokens, { routing }) : tokens;
    const receipt = await pool.send(prompt, { routing }, { promptFrom }).receipt;
    const stats = pool.router.stats;
    made.push([receipt.type === "accepted" ? receipt.decisions : receipt, stats.bookedBlocks]);
  }
  return made;
}

it.each([
  ["events", {}],
  ["predicted blocks", { use_kv_events: false }],
  ["cost mode latency", { router_cost_mode: "latency" }],
])("chooses and books by hashes as by tokens, with %s", async (_name, config) => {
  const asks = fc.array(anyAsked, { minLength: 1, maxLength: 12 });
  await fc.assert(
    fc.asyncProperty(asks, fc.nat({ max: 99 }), async (asked, seed) => {
      const byTokens = await choices(seed, asked, false, config);
      expect(await choices(seed, asked, true, config)).toEqual(byTokens);
    }),
    { seed: 11, numRuns: 20 },
  );
});

it("passes hashes and their source on to the worker, and again to the next one", async () => {
  const pool = startPool(3);
  const workers = [
    pool.worker("1", { card, manner: "overloaded" }),
    pool.worker("2", { card, manner: "overloaded" }),
    pool.worker("3", { card }),
  ];
  await pool.clock.runFor(100);
  const prompt = hashed(promptOf(1, 5));
  for (let at = 0; at < 4; at++) {
    const receipt = await pool.send(prompt, {}, { promptFrom }).receipt;
    expect(receipt).toMatchObject({ type: "accepted", inst: "3" });
  }
  const taken = workers.flatMap((worker) => worker.taken);
  expect(taken.length).toBeGreaterThan(4);
  for (const dispatch of taken) {
    expect(dispatch.prompt).toEqual(prompt);
    expect(dispatch.envelope.promptFrom).toBe(promptFrom);
  }
});

it("wants tokens in place of hashes of other blocks, or for a worker that takes tokens only", async () => {
  const pool = startPool(4);
  pool.worker("1", { card });
  await pool.clock.runFor(100);
  const tokens = promptOf(1, 5);
  expect(await pool.send(hashed(tokens, {}, 32), {}, { promptFrom }).receipt).toMatchObject({
    type: "refused",
    code: "prompt_needed",
  });
  const older = startPool(4);
  const worker = older.worker("1");
  await older.clock.runFor(100);
  expect(await older.send(hashed(tokens), {}, { promptFrom }).receipt).toMatchObject({
    type: "refused",
    code: "prompt_needed",
  });
  expect(worker.taken).toEqual([]);
  expect(older.router.stats).toMatchObject({ openRequests: 0, bookings: 0, bookedBlocks: 0 });
  expect(await older.send(tokens).receipt).toMatchObject({ type: "accepted", inst: "1" });
});

it("announces hashes while all of its workers take them", async () => {
  const pool = startPool(5);
  let announced: number | undefined;
  pool.client.subscribe(allHeartbeats, ({ payload }) => {
    const beat = decodeHeartbeat(payload);
    if (beat?.card.inst === pool.router.inst) announced = beat.card.promptHashes;
  });
  pool.worker("1", { card });
  await pool.clock.runFor(3_000);
  expect(announced).toBe(blockSize);
  const older = pool.worker("2");
  await pool.clock.runFor(3_000);
  expect(announced).toBeUndefined();
  older.announcer.goodbye();
  await pool.clock.runFor(3_000);
  expect(announced).toBe(blockSize);
});
