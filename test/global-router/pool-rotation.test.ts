import { expect, it } from "vitest";
import type { PoolInfo } from "../../src/global-router/router-status.ts";
import type { Dispatch, Receipt } from "../../src/protocol/requests.ts";
import { type Answer, aggConfig, cardsMs, metric, startRig } from "./rig.ts";

const target = (ttft: number, itl: number) => ({ router: { ttft_target: ttft, itl_target: itl } });
/** The cell of the slow pool. */
const lax = target(900, 90);

async function poolRig(top: Record<string, unknown> = {}, strategy: Record<string, unknown> = {}) {
  const rig = startRig(aggConfig({ ...top, agg_pool_selection_strategy: strategy }));
  const [fast, middle, slow] = ["fast", "middle", "slow"].map((name) => rig.startPool(name));
  await rig.clock.runFor(cardsMs);
  const slowView = () => (rig.router.pools() as PoolInfo).roles["agg"]?.pools[2];
  return { ...rig, fast: fast!, middle: middle!, slow: slow!, slowView };
}

type PoolRig = Awaited<ReturnType<typeof poolRig>>;

const poolOf = (receipt: Receipt): unknown =>
  receipt.type === "accepted" ? receipt.decisions[0]?.pool : receipt.code;

/** One request, whose worker then says what became of it. */
async function run(rig: PoolRig, request: Dispatch = rig.request(lax)): Promise<unknown> {
  const receipt = await rig.ask(request);
  if (receipt.type === "accepted") {
    const { rid } = request.envelope;
    await rig.notify({ type: "first_output", rid, attempt: receipt.attempt, ttft_ms: 40 });
    await rig.finish(request);
  }
  return poolOf(receipt);
}

const retryOn = { enable_priority_retry: true };

it("takes a pool out of rotation after five failures in a row, and tells so everywhere", async () => {
  const rig = await poolRig(retryOn);
  rig.slow.answer = "engine_error";
  for (let count = 0; count < 5; count++) expect(await run(rig)).toBe("middle");
  expect(rig.slow.seen).toHaveLength(5);
  expect(await run(rig)).toBe("middle");
  expect(rig.slow.seen).toHaveLength(5);
  const view = { state: "failing", circuit: "open", error_rate: 1 };
  expect(rig.slowView()).toMatchObject({
    ...view,
    last_error: expect.stringContaining("scripted"),
  });
  expect(await rig.query("pool_info", new Uint8Array())).toMatchObject({
    roles: { agg: { pools: [{}, { circuit: "closed", ttft_ms: 40 }, view] } },
  });
  expect(rig.router.health().body).toMatchObject({ pools: [{}, {}, { state: "failing" }] });
  const labels = 'role="agg",pool="slow"';
  expect(await metric(rig, `tiergrid_pool_state{${labels},state="failing"}`)).toBe(1);
  expect(await metric(rig, `tiergrid_pool_error_ratio{${labels}}`)).toBe(1);
});

it("brings it back by one request at a time", async () => {
  const rig = await poolRig(retryOn);
  rig.slow.answer = "engine_error";
  for (let count = 0; count < 5; count++) await run(rig);
  await rig.clock.runFor(5_000);
  expect(await run(rig)).toBe("middle");
  expect(rig.slow.seen).toHaveLength(6);
  // The failed probe doubled the wait.
  await rig.clock.runFor(9_900);
  await run(rig);
  expect(rig.slow.seen).toHaveLength(6);
  rig.slow.answer = "accept";
  await rig.clock.runFor(200);
  const probe = rig.request(lax);
  const receipt = await rig.ask(probe);
  expect(poolOf(receipt)).toBe("slow");
  expect(rig.slowView()).toMatchObject({ state: "failing", circuit: "probing" });
  // While nobody knows how the probe does, the others go elsewhere.
  expect(await run(rig)).toBe("middle");
  const attempt = receipt.type === "accepted" ? receipt.attempt : 0;
  await rig.notify({ type: "first_output", rid: probe.envelope.rid, attempt, ttft_ms: 70 });
  expect(rig.slowView()).toMatchObject({ state: "ready", circuit: "closed", ttft_ms: 70 });
  expect(await run(rig)).toBe("slow");
});

it("counts workers that fail after acceptance, and workers that are lost", async () => {
  const rig = await poolRig();
  const fail = async (): Promise<void> => {
    const request = rig.request(lax);
    const receipt = await rig.ask(request);
    const attempt = receipt.type === "accepted" ? receipt.attempt : 0;
    const { rid } = request.envelope;
    await rig.notify({ type: "finished", rid, attempt, outcome: "error", output_tokens: 0 });
  };
  for (let count = 0; count < 4; count++) await fail();
  expect(rig.slowView()).toMatchObject({ state: "ready", error_rate: 1 });
  await run(rig);
  for (let count = 0; count < 4; count++) await fail();
  expect(rig.slowView()).toMatchObject({ state: "ready", error_rate: 0.889 });
  await rig.ask(rig.request(lax));
  await rig.clock.runFor(14_000);
  expect(rig.slowView()).toMatchObject({ state: "failing" });
});

it("does not hold refusals, cancels and faults of the request against a pool", async () => {
  const rig = await poolRig();
  for (const answer of ["queue_rejected", "no_endpoints", "invalid_request"] as const) {
    rig.slow.answer = answer;
    for (let count = 0; count < 6; count++) await rig.ask(rig.request(lax));
  }
  expect(rig.slowView()).toMatchObject({ circuit: "closed", error_rate: null });
});

it("sends a request to a failing pool rather than refuse it, where there is no other", async () => {
  const rig = await poolRig();
  rig.slow.answer = "engine_error";
  for (let count = 0; count < 6; count++) expect(await run(rig)).toBe("engine_error");
  expect(rig.slow.seen).toHaveLength(6);
  expect(rig.router.ready()).toBe(true);
});

it("keeps a failing pool out of a live choice", async () => {
  const rig = await poolRig({}, { selection: "live" });
  rig.slow.quote = { ttft: 1, gpuMs: 1 };
  rig.middle.quote = { ttft: 100, gpuMs: 100 };
  rig.slow.answer = "engine_error";
  for (let count = 0; count < 5; count++) expect(await run(rig)).toBe("engine_error");
  expect(await run(rig)).toBe("middle");
  expect(rig.slow.asked).toHaveLength(5);
});

it("stops retrying when the budget is used up, and not before", async () => {
  const rig = await poolRig(retryOn);
  const left = () => (rig.router.pools() as PoolInfo).retries_left;
  expect(left()).toBe(10);
  const answer = (slow: Answer, middle: Answer): void => {
    rig.slow.answer = slow;
    rig.middle.answer = middle;
  };
  const ends: unknown[] = [];
  // Two retries each; four failures in a row leave both pools in rotation.
  answer("engine_error", "engine_error");
  for (let count = 0; count < 4; count++) ends.push(await run(rig));
  answer("accept", "accept");
  ends.push(await run(rig), await run(rig, rig.request(target(900, 10))));
  expect(left()).toBe(3);
  answer("engine_error", "engine_error");
  ends.push(await run(rig), await run(rig));
  expect(ends).toEqual([...Array(4).fill("fast"), "slow", "middle", "fast", "engine_error"]);
  const refused = 'tiergrid_retry_refused_total{role="agg",why="budget"}';
  expect(await metric(rig, refused)).toBe(1);
  await rig.clock.runFor(1_000);
  expect(left()).toBe(10);
});

it("shows a pool's label and not its absence", async () => {
  const metadata = [{ label: "8 GPUs" }, {}, {}];
  const rig = await poolRig({ agg_pool_metadata: metadata });
  const [fast, middle] = rig.router.pools().roles["agg"]!.pools;
  expect(fast).toMatchObject({ index: 0, namespace: "fast", label: "8 GPUs" });
  expect(middle).not.toHaveProperty("label");
});

it("counts requests that no fallback could take", async () => {
  const fallbacks = [
    [[], []],
    [[], [0]],
  ];
  const rig = await poolRig({}, { agg_pool_fallbacks: fallbacks });
  for (const router of [rig.fast, rig.slow]) router.answer = "queue_rejected";
  expect(await run(rig)).toBe("queue_rejected");
  expect(rig.middle.seen).toHaveLength(0);
  const exhausted = 'tiergrid_spill_exhausted_total{role="agg",pool="slow"}';
  expect(await metric(rig, exhausted)).toBe(1);
});
