import { expect, it } from "vitest";
import { quoteRoundsMax } from "../../src/global-router/live-choice.ts";
import { createBlockHasher } from "../../src/protocol/block-hashes.ts";
import { hashPrompt } from "../../src/protocol/prompt-hashes.ts";
import { encodeDispatch } from "../../src/protocol/request-frame.ts";
import type { Receipt } from "../../src/protocol/requests.ts";
import { encodeControl } from "../../src/protocol/stream-control.ts";
import { controlSubject } from "../../src/protocol/subjects.ts";
import { aggConfig, cardsMs, configOf, metric, type ScriptedRouter, startRig } from "./rig.ts";

const target = (ttft: number, itl: number) => ({ router: { ttft_target: ttft, itl_target: itl } });
/** The cell of the slow pool. */
const lax = target(900, 90);

async function liveRig(strategy: Record<string, unknown> = {}, top: Record<string, unknown> = {}) {
  const selection = { selection: "live", ...strategy };
  const rig = startRig(aggConfig({ ...top, agg_pool_selection_strategy: selection }));
  const [fast, middle, slow] = ["fast", "middle", "slow"].map((name) => rig.startPool(name));
  await rig.clock.runFor(cardsMs);
  return { ...rig, fast: fast!, middle: middle!, slow: slow! };
}

const placeOf = (receipt: Receipt): unknown =>
  receipt.type === "accepted"
    ? [receipt.decisions[0]?.pool, receipt.decisions[0]?.reason]
    : receipt.code;

async function explained(rig: Awaited<ReturnType<typeof liveRig>>, receipt: Receipt) {
  const decision_id = receipt.type === "accepted" ? receipt.decisions[0]?.decision_id : "";
  return rig.query("explain", new TextEncoder().encode(JSON.stringify({ decision_id })));
}

it("takes the cheapest pool that meets the targets, and says that it left the grid", async () => {
  const rig = await liveRig();
  rig.fast.quote = { ttft: 100, gpuMs: 900 };
  rig.middle.quote = { ttft: 300, gpuMs: 300 };
  rig.slow.quote = { ttft: 5000, gpuMs: 100 };
  const receipt = await rig.ask(rig.request(lax));
  expect(placeOf(receipt)).toEqual(["middle", "live"]);
  const left = 'tiergrid_live_choices_total{role="agg",outcome="left"}';
  expect(await metric(rig, left)).toBe(1);
  const selections = (pool: string, reason: string) =>
    `tiergrid_pool_selections_total{model="mock-model",role="agg",pool="${pool}",reason="${reason}"}`;
  expect(await metric(rig, selections("middle", "live"))).toBe(1);
  expect(await explained(rig, receipt)).toMatchObject({
    grid: { grid_pool: 2 },
    live: {
      ...{ mode: "live", outcome: "left", grid_pool: 2 },
      targets: { ttft_ms: 900, itl_ms: 90 },
      quotes: [
        { pool: 0, namespace: "fast", meets: true, score: 1810 },
        { pool: 1, outcome: "answered", router: rig.middle.inst, meets: true, score: 630 },
        { pool: 2, meets: false, quote: { predicted_ttft_ms: 5000 } },
      ],
    },
    result: { pool: 1, reason: "live" },
  });
});

it("asks by hashes of the prompt, with the hints that a choice depends on and the targets", async () => {
  const rig = await liveRig();
  rig.middle.card = { blockSize: 32 };
  rig.middle.beatNow();
  await rig.clock.runFor(cardsMs);
  const body = {
    ...lax,
    routing: { lora_name: "law", cache_salt: "t1", allowed_worker_ids: ["1"] },
    messages: "not asked about",
  };
  const tokens = Uint32Array.from({ length: 100 }, (_, i) => i);
  const request = { ...rig.request(body), prompt: { type: "tokens", tokens } as const };
  await rig.ask(request);
  const hasher = createBlockHasher(undefined);
  for (const [router, blockSize] of [
    [rig.fast, 16],
    [rig.middle, 32],
  ] as const) {
    const [question] = router.asked;
    const { local } = hashPrompt(hasher, body, tokens, blockSize);
    expect(question?.localHashes).toEqual(local);
    expect(question).toMatchObject({ islTokens: 100, blockSize });
    expect(question?.body).toEqual({
      routing: body.routing,
      quote: { ttft_target_ms: 900, itl_target_ms: 90 },
    });
  }
  expect(rig.fast.asked[0]?.localHashes).toEqual(rig.slow.asked[0]?.localHashes);
});

it("passes the targets on, so that the worker is chosen by the same rule", async () => {
  const rig = await liveRig();
  rig.fast.quote = { ttft: 100 };
  await rig.ask(rig.request({ routing: { priority: 1 } }));
  expect(rig.fast.seen[0]?.body.router).toEqual({
    ...{ ttft_target: 500, itl_target: 50, best_fit: true },
  });
  const blind = await liveRig();
  await blind.ask(blind.request(lax));
  expect(blind.slow.seen[0]?.body).toEqual(lax);
});

it.each([
  ["silent", "late"],
  ["not_implemented", "disabled"],
  ["not_ready", "failed"],
] as const)("follows the grid when quotes are %s", async (quote, outcome) => {
  const rig = await liveRig();
  for (const router of [rig.fast, rig.middle, rig.slow]) router.quote = quote;
  const beforeMs = rig.clock.nowMs();
  const receipt = await rig.ask(rig.request(lax));
  expect(placeOf(receipt)).toEqual(["slow", "grid"]);
  expect(rig.clock.nowMs() - beforeMs).toBeLessThanOrEqual(quote === "silent" ? 22 : 5);
  const asked = `tiergrid_pool_quotes_total{role="agg",pool="fast",outcome="${outcome}"}`;
  expect(await metric(rig, asked)).toBe(1);
});

it("passes over a pool that does not answer in time", async () => {
  const rig = await liveRig({ live: { quote_deadline_ms: 40 } });
  rig.fast.quote = { ttft: 200, gpuMs: 500 };
  rig.middle.quote = { ttft: 300, gpuMs: 50 };
  rig.middle.quoteAfterMs = 41;
  rig.slow.quote = { ttft: 200, gpuMs: 700 };
  expect(placeOf(await rig.ask(rig.request(lax)))).toEqual(["fast", "live"]);
  rig.middle.quoteAfterMs = 38;
  expect(placeOf(await rig.ask(rig.request(lax)))).toEqual(["middle", "live"]);
});

it("counts a quote as none when it waited for others longer than it is valid", async () => {
  const rig = await liveRig({ live: { quote_deadline_ms: 100 } });
  rig.fast.quote = { ttft: 100, gpuMs: 1 };
  rig.middle.quote = "silent";
  rig.slow.quote = { ttft: 100, gpuMs: 300, validForMs: 1000 };
  const receipt = await rig.ask(rig.request(lax));
  expect(placeOf(receipt)).toEqual(["slow", "grid"]);
  expect(await explained(rig, receipt)).toMatchObject({
    live: { outcome: "kept", quotes: [{ outcome: "stale" }, { outcome: "late" }, { meets: true }] },
  });
});

it("keeps the grid's pool that said nothing while the others are known to be late", async () => {
  const rig = await liveRig();
  rig.fast.quote = { ttft: 2000 };
  expect(placeOf(await rig.ask(rig.request(lax)))).toEqual(["slow", "grid"]);
  rig.fast.quote = { ttft: 200 };
  expect(placeOf(await rig.ask(rig.request(lax)))).toEqual(["fast", "live"]);
});

it("asks only the grid's pool in checked mode, and the others when it would be late", async () => {
  const rig = await liveRig({ selection: "checked" });
  rig.fast.quote = { ttft: 100, gpuMs: 1 };
  rig.middle.quote = { ttft: 400, gpuMs: 50 };
  rig.slow.quote = { ttft: 800, gpuMs: 500 };
  expect(placeOf(await rig.ask(rig.request(lax)))).toEqual(["slow", "grid"]);
  expect(rig.fast.asked).toHaveLength(0);
  // 820 ms with the margin of 1.1 is beyond 900 ms.
  rig.slow.quote = { ttft: 820, gpuMs: 500 };
  rig.fast.quote = { ttft: 100, gpuMs: 900 };
  expect(placeOf(await rig.ask(rig.request(lax)))).toEqual(["middle", "live"]);
  expect([rig.fast.asked.length, rig.slow.asked.length]).toEqual([1, 2]);
});

it("never asks for a request whose priority names its pool", async () => {
  const rig = await liveRig();
  rig.middle.quote = { ttft: 1, gpuMs: 1 };
  const receipt = await rig.ask(rig.request({ ...lax, routing: { priority: 15 } }));
  expect(placeOf(receipt)).toEqual(["fast", "override"]);
  expect(rig.middle.asked).toHaveLength(0);
});

it("weighs GPU time by the cost and the GPUs of the config", async () => {
  const costs = [1, 1, 4].map((cost_per_second) => ({ cost_per_second }));
  const quotes = (rig: { fast: ScriptedRouter; middle: ScriptedRouter; slow: ScriptedRouter }) => {
    rig.fast.quote = { ttft: 100, gpuMs: 300 };
    rig.middle.quote = { ttft: 100, gpuMs: 200 };
    rig.slow.quote = { ttft: 100, gpuMs: 100 };
  };
  const plain = await liveRig();
  quotes(plain);
  expect(placeOf(await plain.ask(plain.request(lax)))).toEqual(["slow", "grid"]);
  const priced = await liveRig({}, { agg_pool_metadata: costs });
  quotes(priced);
  expect(placeOf(await priced.ask(priced.request(lax)))).toEqual(["middle", "live"]);
  const gpus = await liveRig({}, { agg_pool_metadata: [{}, { gpus: 2 }, { gpus: 8 }] });
  quotes(gpus);
  expect(placeOf(await gpus.ask(gpus.request(lax)))).toEqual(["fast", "live"]);
});

it("goes on from the chosen pool by its own retry and spill order", async () => {
  const rig = await liveRig(
    { spill: { enabled: true } },
    { enable_priority_retry: true, agg_pool_priorities: [0, 1, 2] },
  );
  rig.middle.quote = { ttft: 100 };
  rig.middle.answer = "queue_rejected";
  expect(placeOf(await rig.ask(rig.request(lax)))).toEqual(["fast", "spill"]);
  expect(rig.fast.seen[0]?.body.router).toMatchObject({ best_fit: true });
});

it("refuses what no pool can meet, with the best there is and the time its queue needs", async () => {
  const rig = await liveRig({ live: { refuse: true } });
  rig.fast.quote = { ttft: 1100, itl: 20, queue: 900 };
  // The cheapest of the late ones would be chosen; the shortest queue says when to come back.
  rig.middle.quote = { ttft: 2000, itl: 15, queue: 1900, gpuMs: 1 };
  rig.slow.quote = { ttft: 3000, itl: 30 };
  const refused = await rig.ask(rig.request(lax));
  expect(refused).toMatchObject({
    ...{ type: "refused", code: "sla_unattainable" },
    details: { best_ttft_ms: 1100, best_itl_ms: 15 },
  });
  // 1,100 ms must become 900 / 1.1.
  expect(refused.type === "refused" && refused.retryAfterMs).toBeCloseTo(1100 - 900 / 1.1, 6);
  const missed = (name: string) =>
    `tiergrid_cell_sla_total{role="agg",cell="1.1",pool="slow",target="${name}",result="missed",explicit="true"}`;
  expect(await metric(rig, missed("ttft"))).toBe(1);
  expect(await metric(rig, missed("itl"))).toBe(0);
  expect(rig.router.openRequests).toBe(0);
  // Without a queue, waiting does not help.
  for (const router of [rig.fast, rig.middle]) router.quote = { ttft: 1100 };
  const hopeless = await rig.ask(rig.request(lax));
  expect(hopeless).not.toHaveProperty("retryAfterMs");
  rig.slow.quote = "silent";
  expect(placeOf(await rig.ask(rig.request(lax)))).toEqual(["slow", "grid"]);
});

it("explains before the fact what happens then, with the same quotes", async () => {
  const rig = await liveRig();
  rig.middle.quote = { ttft: 100, gpuMs: 1 };
  rig.slow.quote = { ttft: 100, gpuMs: 50 };
  const request = rig.request(lax);
  const before = await rig.query("explain", encodeDispatch(request));
  const receipt = await rig.ask(request);
  const after = await explained(rig, receipt);
  const told = ({ live, result, grid, order }: Record<string, unknown>) => ({
    live: JSON.parse(JSON.stringify(live), (key, value) => (key === "ms" ? 0 : value)),
    ...{ result, grid },
    retry: (order as Record<string, unknown>)["retry_order"],
  });
  expect(told(before)).toEqual(told(after));
  expect(rig.middle.seen).toHaveLength(1);
});

it("decides prefill by TTFT and decode by ITL", async () => {
  const axes = (size: string, latency: string) => ({
    ...{ [`${size}_min`]: 0, [`${size}_max`]: 200, [`${size}_resolution`]: 1 },
    ...{ [`${latency}_min_ms`]: 0, [`${latency}_max_ms`]: 1000, [`${latency}_resolution`]: 1 },
    selection: "live",
  });
  const strategy = { ...axes("isl", "ttft"), prefill_pool_mapping: [[0]] };
  const rig = startRig(
    configOf({
      num_prefill_pools: 2,
      prefill_pool_dynamo_namespaces: ["p0", "p1"],
      prefill_pool_selection_strategy: strategy,
      num_decode_pools: 2,
      decode_pool_dynamo_namespaces: ["d0", "d1"],
      decode_pool_selection_strategy: {
        ...axes("context_length", "itl"),
        decode_pool_mapping: [[0]],
      },
    }),
  );
  const routers = ["p0", "p1"].map((name) => rig.startPool(name, "prefill"));
  routers.push(...["d0", "d1"].map((name) => rig.startPool(name, "decode")));
  await rig.clock.runFor(cardsMs);
  routers[0]!.quote = { ttft: 600, itl: 1 };
  routers[1]!.quote = { ttft: 100, itl: 900 };
  routers[2]!.quote = { ttft: 1, itl: 80 };
  routers[3]!.quote = { ttft: 900, itl: 10 };
  const body = target(300, 50);
  expect(placeOf(await rig.ask(rig.request(body, "prefill")))).toEqual(["p1", "live"]);
  expect(placeOf(await rig.ask(rig.request(body, "decode")))).toEqual(["d1", "live"]);
  expect(routers[3]?.asked[0]?.body["quote"]).toEqual({ itl_target_ms: 50 });
});

it("uses a cell's fallbacks for its own pool, without spill", async () => {
  const fallbacks = [
    [[], []],
    [[], [0, 1]],
  ];
  const config = aggConfig({
    agg_pool_selection_strategy: { agg_pool_fallbacks: fallbacks },
  });
  const rig = startRig(config);
  const [fast, , slow] = ["fast", "middle", "slow"].map((name) => rig.startPool(name));
  await rig.clock.runFor(cardsMs);
  slow!.answer = "queue_rejected";
  expect(placeOf(await rig.ask(rig.request(lax)))).toEqual(["fast", "spill"]);
  fast!.answer = "queue_rejected";
  expect(placeOf(await rig.ask(rig.request(lax)))).toEqual(["middle", "spill"]);
  const explain = await rig.query("explain", encodeDispatch(rig.request(lax)));
  expect(explain).toMatchObject({ order: { spill_order: [0, 1], hops_allowed: 2 } });
});

it("forgets a request that is cancelled while its quotes are out", async () => {
  const rig = await liveRig({ live: { quote_deadline_ms: 500 } });
  for (const router of [rig.fast, rig.middle, rig.slow]) router.quote = "silent";
  const request = rig.request(lax);
  const { rid, attempt } = request.envelope;
  rig.clock.after(50, () => {
    const cancel = encodeControl({ type: "cancel", rid, attempt });
    rig.client.publish(controlSubject("global", rig.router.inst), cancel);
  });
  expect(placeOf(await rig.ask(request))).toBe("cancelled");
  expect(rig.clock.nowMs()).toBeLessThan(100);
  await rig.clock.runFor(1_000);
  expect(rig.slow.seen).toHaveLength(0);
  expect(rig.router.openRequests).toBe(0);
});

it("asks for as many requests at a time as it may, and lets one more follow the grid", async () => {
  const rig = await liveRig({ live: { quote_deadline_ms: 1000 } });
  for (const router of [rig.fast, rig.middle, rig.slow]) router.quote = "silent";
  const count = async (requests: number): Promise<number> => {
    const asked = Array.from({ length: requests }, () => rig.router.explain(rig.request(lax)));
    const all = Promise.all(asked);
    await rig.clock.runFor(2_000);
    const whys = (await all).map((answer) => (answer as { live: { why: string } }).live.why);
    return whys.filter((why) => why === "too_many_rounds").length;
  };
  expect(await count(quoteRoundsMax)).toBe(0);
  expect(await count(quoteRoundsMax + 1)).toBe(1);
});
