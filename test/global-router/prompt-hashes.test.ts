import { expect, it } from "vitest";
import { createBlockHasher } from "../../src/protocol/block-hashes.ts";
import { hashPrompt } from "../../src/protocol/prompt-hashes.ts";
import type { Dispatch, RequestBody } from "../../src/protocol/requests.ts";
import { allHeartbeats } from "../../src/protocol/subjects.ts";
import { decodeHeartbeat } from "../../src/runtime/instance-card.ts";
import { aggConfig, cardsMs, type Rig, startRig } from "./rig.ts";

const hasher = createBlockHasher(undefined);
const blockSize = 16;
const card = { blockSize, promptHashes: blockSize };
const promptFrom = "_R.fe.owner.p";
const tokens = Uint32Array.from({ length: 100 }, (_, at) => at);
const { local: localHashes } = hashPrompt(hasher, {}, tokens, blockSize);
const slow: RequestBody = { router: { ttft_target: 900, itl_target: 90 } };

function hashed(rig: Rig, body: RequestBody): Dispatch {
  const { envelope } = rig.request(body);
  const prompt = { type: "hashes", islTokens: 100, blockSize, localHashes } as const;
  return { envelope: { ...envelope, promptFrom }, body, prompt };
}

it("announces hashes while the routers of all pools take those of one block size", async () => {
  const rig = startRig(aggConfig());
  let announced: number | undefined;
  rig.client.subscribe(allHeartbeats, ({ payload }) => {
    const beat = decodeHeartbeat(payload);
    if (beat?.card.kind === "global") announced = beat.card.promptHashes;
  });
  const [fast, middle] = ["fast", "middle"].map((name) =>
    rig.startPool(name, "aggregated", { ...card }),
  );
  await rig.clock.runFor(3_000);
  expect(announced).toBe(blockSize);
  middle!.card = { ...card, promptHashes: 32 };
  await rig.clock.runFor(3_000);
  expect(announced).toBeUndefined();
  middle!.card = { ...card };
  await rig.clock.runFor(3_000);
  expect(announced).toBe(blockSize);
  fast!.card = { blockSize };
  await rig.clock.runFor(3_000);
  expect(announced).toBeUndefined();
});

it("passes hashes and their source on, chooses by their length, and wants tokens for a router without", async () => {
  const rig = startRig(aggConfig());
  const pool = rig.startPool("slow", "aggregated", { ...card });
  rig.startPool("middle", "aggregated", { ...card });
  await rig.clock.runFor(cardsMs);
  const request = hashed(rig, slow);
  expect(await rig.ask(request)).toMatchObject({ type: "accepted" });
  expect(pool.seen).toMatchObject([{ prompt: request.prompt, envelope: { promptFrom } }]);
  pool.card = { blockSize };
  await rig.clock.runFor(3_000);
  expect(await rig.ask(hashed(rig, slow))).toMatchObject({ code: "prompt_needed" });
  expect(pool.seen).toHaveLength(1);
  expect(await rig.ask(rig.request(slow))).toMatchObject({ type: "accepted" });
  expect(rig.router.openRequests).toBe(2);
});

it("asks pools for quotes by the hashes that came", async () => {
  const live = { selection: "live" };
  const rig = startRig(aggConfig({ agg_pool_selection_strategy: live }));
  const pools = ["fast", "middle", "slow"].map((name) =>
    rig.startPool(name, "aggregated", { ...card }),
  );
  for (const pool of pools) pool.quote = { ttft: 50 };
  await rig.clock.runFor(cardsMs);
  expect(await rig.ask(hashed(rig, slow))).toMatchObject({ type: "accepted" });
  for (const { asked } of pools) {
    expect(asked).toMatchObject([{ islTokens: 100, blockSize, localHashes }]);
  }
});
