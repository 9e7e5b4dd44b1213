import fc from "fast-check";
import { expect, it } from "vitest";
import type { PoolConfig } from "../../src/config/pool-config.ts";
import type { PoolInfo } from "../../src/global-router/router-status.ts";
import { encodeDispatch } from "../../src/protocol/request-frame.ts";
import { encodeDispatchJson } from "../../src/protocol/request-json.ts";
import type { Dispatch, Receipt } from "../../src/protocol/requests.ts";
import { endpointSubject, noticeSubject } from "../../src/protocol/subjects.ts";
import { watchInstances } from "../../src/runtime/discovery.ts";
import { startEchoGate } from "../../src/runtime/echo-gate.ts";
import {
  type Answer,
  aggConfig,
  cardsMs,
  configOf,
  disaggConfig,
  metric,
  type Rig,
  startRig,
} from "./rig.ts";

const retryOn = { enable_priority_retry: true };
const spillOn = (spill: Record<string, unknown> = {}) => ({
  agg_pool_selection_strategy: { spill: { enabled: true, ...spill } },
});
const target = (ttft: number, itl: number) => ({ router: { ttft_target: ttft, itl_target: itl } });
const slow = target(900, 90);

async function aggRig(
  change: Record<string, unknown> = {},
  options: Parameters<typeof startRig>[1] = {},
) {
  const rig = startRig(aggConfig(change), options);
  const [fast, middle, last] = ["fast", "middle", "slow"].map((name) => rig.startPool(name));
  await rig.clock.runFor(cardsMs);
  return { ...rig, fast: fast!, middle: middle!, last: last! };
}

const poolOf = (receipt: Receipt): unknown =>
  receipt.type === "accepted" ? receipt.decisions[0]?.pool : receipt.code;
const reasonOf = (receipt: Receipt): unknown =>
  receipt.type === "accepted" ? receipt.decisions[0]?.reason : receipt.message;

it("sends a request to the pool of its grid cell and names the decision", async () => {
  const rig = await aggRig();
  const request = rig.request(target(100, 90));
  const receipt = await rig.ask(request);
  expect(receipt).toMatchObject({ type: "accepted", inst: "w1", workerId: "1" });
  expect(receipt.type === "accepted" && receipt.decisions).toEqual([
    {
      tier: "global",
      decision_id: expect.stringMatching(/^[0-9a-f]{32}$/),
      role: "aggregated",
      pool: "middle",
      cell: "0.1",
      reason: "grid",
      config_version: aggConfig().version,
    },
  ]);
  expect(rig.middle.seen).toHaveLength(1);
  expect(rig.middle.seen[0]?.body).toEqual(request.body);
  expect(rig.middle.seen[0]?.envelope.notify).toHaveLength(1);
  expect(poolOf(await rig.ask(rig.request(target(100, 10))))).toBe("fast");
  expect(poolOf(await rig.ask(rig.request(slow)))).toBe("slow");
});

it("uses the middle of an axis without a target, and the default where one is set", async () => {
  expect(poolOf(await aggRig().then((rig) => rig.ask(rig.request())))).toBe("slow");
  const rig = await aggRig({}, { defaults: { ttftTargetMs: 0, itlTargetMs: 0 } });
  expect(poolOf(await rig.ask(rig.request()))).toBe("fast");
  const labels = 'target="ttft",source="default"';
  expect(await metric(rig, `tiergrid_sla_target_source_total{${labels}}`)).toBe(1);
});

it("lets a priority rule replace the grid's pool", async () => {
  const rig = await aggRig();
  const receipt = await rig.ask(rig.request({ ...slow, routing: { priority: 15 } }));
  expect([poolOf(receipt), reasonOf(receipt)]).toEqual(["fast", "override"]);
  expect(await metric(rig, 'tiergrid_priority_override_total{role="agg",rule="0"}')).toBe(1);
});

it("routes prefill and decode of a disaggregated fleet by their own grids", async () => {
  const rig = startRig(disaggConfig());
  for (const name of ["p0", "p1"]) rig.startPool(name, "prefill");
  for (const name of ["d0", "d1"]) rig.startPool(name, "decode");
  await rig.clock.runFor(cardsMs);
  expect(rig.router.ready()).toBe(true);
  const body = target(900, 10);
  expect(poolOf(await rig.ask(rig.request(body, "prefill")))).toBe("p1");
  expect(poolOf(await rig.ask(rig.request(body, "decode")))).toBe("d0");
  const aggregated = await rig.ask(rig.request(body));
  expect(aggregated).toMatchObject({ type: "refused", code: "invalid_request" });
});

it("serves public endpoints, whose name is the phase, to plain clients", async () => {
  const rig = startRig(disaggConfig());
  const decode = rig.startPool("d1", "decode");
  await rig.clock.runFor(cardsMs);
  const path = { namespace: "dynamo", component: "global_router", endpoint: "decode_generate" };
  const plain = new TextEncoder().encode(JSON.stringify({ token_ids: [1, 2], ...slow }));
  const reply = `${rig.client.inboxPrefix}.s`;
  rig.client.publish(endpointSubject(path), plain, { reply });
  await rig.clock.runFor(10);
  expect(decode.seen.map(({ envelope }) => envelope.phase)).toEqual(["decode"]);
  decode.answer = "no_endpoints";
  rig.client.publish(endpointSubject(path), plain, { reply });
  await rig.clock.runFor(10);
  expect(rig.frames.map((frame) => JSON.parse(frame))).toMatchObject([
    { type: "error", code: "no_endpoints" },
  ]);
});

it("refuses targets and priorities that cannot be read, all faults at once", async () => {
  const rig = await aggRig();
  const router = { ttft_target: Number.POSITIVE_INFINITY, itl_target: "fast" };
  const bad = { ...rig.request(), body: { router } } as unknown as Dispatch;
  expect(await rig.ask(bad)).toMatchObject({ type: "refused", code: "invalid_request" });
  const args = { extra_args: { ttft_target: "soon", itl_target: [] } };
  const refused = await rig.ask(rig.request(args));
  expect(refused).toMatchObject({ code: "invalid_request", details: { faults: [{}, {}] } });
  const priority = await rig.ask(rig.request({ routing: { priority: 2 ** 31 } }));
  expect(priority).toMatchObject({ code: "invalid_request" });
  expect(rig.router.openRequests).toBe(0);
});

it("spills to a faster pool when the pool is full, and passes the full pool over for a while", async () => {
  const rig = await aggRig(spillOn());
  rig.last.answer = "all_eligible_workers_overloaded";
  const first = await rig.ask(rig.request(slow));
  expect([poolOf(first), reasonOf(first)]).toEqual(["middle", "spill"]);
  expect(rig.last.seen).toHaveLength(1);
  await rig.ask(rig.request(slow));
  expect(rig.last.seen).toHaveLength(1);
  const spill = (cause: string) =>
    `tiergrid_spill_total{role="agg",from_pool="slow",to_pool="middle",cause="${cause}"}`;
  expect(await metric(rig, spill("overloaded"))).toBe(1);
  expect(await metric(rig, spill("held"))).toBe(1);
  rig.last.answer = "accept";
  await rig.clock.runFor(1000);
  expect(poolOf(await rig.ask(rig.request(slow)))).toBe("slow");
});

it("surfaces an overload as it came when nothing may take the request", async () => {
  const rig = await aggRig();
  rig.last.answer = "queue_rejected";
  const receipt = await rig.ask(rig.request(slow));
  expect(receipt).toMatchObject({ type: "refused", code: "queue_rejected" });
  const labels = 'role="agg",why="disabled"';
  expect(await metric(rig, `tiergrid_retry_refused_total{${labels}}`)).toBe(1);
});

it("refuses with the rest of the hold when every pool that may take it is held", async () => {
  const rig = await aggRig(spillOn());
  for (const pool of [rig.fast, rig.middle, rig.last]) pool.answer = "overloaded";
  await rig.ask(rig.request(slow));
  await rig.clock.runFor(400);
  const refused = await rig.ask(rig.request(slow));
  expect(refused).toMatchObject({ code: "overloaded", retryAfterMs: expect.any(Number) });
  expect(refused.type === "refused" && refused.retryAfterMs).toBeLessThanOrEqual(600);
  const exhausted = 'tiergrid_spill_exhausted_total{role="agg",pool="slow"}';
  expect(await metric(rig, exhausted)).toBe(2);
});

it("does not hold a pool for one pinned worker that is full", async () => {
  const rig = await aggRig(spillOn());
  for (const pool of [rig.last, rig.middle]) pool.answer = "pinned_worker_overloaded";
  await rig.ask(rig.request(slow));
  for (const pool of [rig.last, rig.middle]) pool.answer = "accept";
  expect(poolOf(await rig.ask(rig.request(slow)))).toBe("slow");
});

it("retries a failed attempt in faster pools, nearest first, each once", async () => {
  const rig = await aggRig(retryOn);
  for (const pool of [rig.fast, rig.middle, rig.last]) pool.answer = "engine_error";
  const receipt = await rig.ask(rig.request(slow));
  expect(receipt).toMatchObject({ type: "refused", code: "engine_error" });
  const seen = [rig.last, rig.middle, rig.fast].map((pool) => pool.seen);
  expect(seen.map((dispatches) => dispatches.length)).toEqual([1, 1, 1]);
  const attempts = seen.map(([dispatch]) => dispatch!.envelope.attempt - (1 << 20));
  expect(attempts).toEqual([0, 1024, 2048]);
  const cause = 'cause="engine_error"';
  const moved = 'tiergrid_retry_total{role="agg",from_pool="middle",to_pool="fast"';
  expect(await metric(rig, `${moved},${cause}}`)).toBe(1);
  rig.middle.answer = "accept";
  const second = await rig.ask(rig.request(slow));
  expect([poolOf(second), reasonOf(second)]).toEqual(["middle", "retry"]);
});

it("does not retry what fails the same everywhere", async () => {
  const rig = await aggRig(retryOn);
  rig.last.answer = "context_length_exceeded";
  await rig.ask(rig.request(slow));
  expect([rig.middle.seen, rig.fast.seen]).toEqual([[], []]);
});

it("takes back an accepted request whose attempt died before its first output", async () => {
  const rig = await aggRig(retryOn);
  const request = rig.request(slow);
  await rig.ask(request);
  const { rid, attempt } = rig.last.seen[0]!.envelope;
  const failed = { type: "failed", rid, attempt, code: "worker_lost", worker_lost: true } as const;
  await rig.notify({ ...failed, message: "gone" });
  await rig.clock.runFor(10);
  expect(rig.middle.seen).toHaveLength(1);
  const cause = 'role="agg",from_pool="slow",to_pool="middle",cause="worker_lost"';
  expect(await metric(rig, `tiergrid_retry_total{${cause}}`)).toBe(1);
});

it.each<Answer>(["silent", "subscriber_shutdown"])(
  "asks another router of the same pool when one is %s, without calling it a retry",
  async (answer) => {
    const rig = await aggRig();
    rig.last.answer = answer;
    const other = rig.startPool("slow");
    await rig.clock.runFor(cardsMs);
    for (let round = 0; round < 8; round++) {
      const receipt = await rig.ask(rig.request(slow));
      expect([poolOf(receipt), reasonOf(receipt)]).toEqual(["slow", "grid"]);
    }
    expect(rig.last.seen.length).toBeLessThanOrEqual(1);
    expect(other.seen).toHaveLength(8);
    expect(await rig.metrics.text()).not.toContain("tiergrid_retry_total{");
  },
);

it("asks another router of the pool when one has just died", async () => {
  const rig = await aggRig();
  const other = rig.startPool("slow");
  await rig.clock.runFor(cardsMs);
  rig.last.stop();
  await rig.last.bus.close();
  for (let round = 0; round < 8; round++) {
    expect(poolOf(await rig.ask(rig.request(slow)))).toBe("slow");
  }
  expect(other.seen).toHaveLength(8);
});

it("spreads requests over the routers of a pool by attempts in flight", async () => {
  const rig = await aggRig();
  const other = rig.startPool("slow");
  await rig.clock.runFor(cardsMs);
  for (let round = 0; round < 10; round++) await rig.ask(rig.request(slow));
  expect([rig.last.seen.length, other.seen.length]).toEqual([5, 5]);
});

it("draws between routers that have equally much to do", async () => {
  const rig = await aggRig();
  const other = rig.startPool("slow");
  await rig.clock.runFor(cardsMs);
  for (let round = 0; round < 40; round++) {
    const request = rig.request(slow);
    await rig.ask(request);
    await rig.finish(request);
  }
  expect(Math.min(rig.last.seen.length, other.seen.length)).toBeGreaterThan(8);
});

it("asks each router of a pool once per request, also when inhibitions end meanwhile", async () => {
  const rig = await aggRig({}, { acceptTimeoutMs: 6000 });
  const other = rig.startPool("slow");
  await rig.clock.runFor(cardsMs);
  for (const router of [rig.last, other]) router.answer = "silent";
  expect(await rig.ask(rig.request(slow))).toMatchObject({ code: "accept_timeout" });
  expect([rig.last.seen.length, other.seen.length]).toEqual([1, 1]);
});

it("does not blame a router for what its workers did after it had the request accepted", async () => {
  const rig = await aggRig(retryOn);
  await rig.ask(rig.request(slow));
  const { rid, attempt } = rig.last.seen[0]!.envelope;
  const failed = { rid, attempt, code: "accept_timeout", message: "", worker_lost: true } as const;
  await rig.notify({ type: "failed", ...failed });
  const { pools } = rig.router.pools().roles["agg"]!;
  expect(pools[2]!.state).toBe("ready");
});

it("does not blame a router that said it was looking for its workers' silence", async () => {
  const rig = await aggRig();
  const other = rig.startPool("slow");
  await rig.clock.runFor(cardsMs);
  for (const router of [rig.last, other]) router.answer = "slow_refusal";
  expect(await rig.ask(rig.request(slow))).toMatchObject({ code: "accept_timeout" });
  expect(rig.last.seen.length + other.seen.length).toBe(1);
  expect(rig.router.pools().roles["agg"]!.pools[2]!.state).toBe("ready");
  expect(await rig.metrics.text()).not.toContain("tiergrid_inhibitions_total{");
});

it("still asks the only router of a pool after it was silent once", async () => {
  const rig = await aggRig();
  rig.last.answer = "silent";
  expect(await rig.ask(rig.request(slow))).toMatchObject({ code: "accept_timeout" });
  rig.last.answer = "accept";
  expect(poolOf(await rig.ask(rig.request(slow)))).toBe("slow");
});

it("gives a router that says it is looking for a worker more time", async () => {
  const rig = await aggRig();
  rig.last.answer = "slow";
  const startedMs = rig.clock.nowMs();
  expect(poolOf(await rig.ask(rig.request(slow)))).toBe("slow");
  expect(rig.clock.nowMs() - startedMs).toBeGreaterThanOrEqual(1000);
  expect(rig.last.seen).toHaveLength(1);
});

it("starts without pools, refuses until one is there, and waits where it may", async () => {
  const rig = startRig(aggConfig());
  await rig.clock.runFor(cardsMs);
  expect(rig.router.ready()).toBe(false);
  expect(await rig.ask(rig.request(slow))).toMatchObject({ code: "pool_unavailable" });
  const waiting = startRig(aggConfig(), { poolWaitMs: 2000 });
  waiting.clock.after(700, () => void waiting.startPool("slow"));
  expect(poolOf(await waiting.ask(waiting.request(slow)))).toBe("slow");
  expect(waiting.clock.nowMs()).toBeLessThan(800);
  const startedMs = waiting.clock.nowMs();
  const refused = await waiting.ask(waiting.request(target(0, 0)));
  expect(refused).toMatchObject({ code: "pool_unavailable" });
  expect(waiting.clock.nowMs() - startedMs).toBeGreaterThanOrEqual(2000);
});

it("tells a pool's state from connecting to gone", async () => {
  const rig = startRig(aggConfig());
  const state = () => rig.router.pools().roles["agg"]!.pools[2]!.state;
  expect(state()).toBe("connecting");
  const pool = rig.startPool("slow", "aggregated", { workersReady: 0 });
  await rig.clock.runFor(cardsMs);
  expect(state()).toBe("no_workers");
  pool.card = {};
  await rig.clock.runFor(1200);
  expect(state()).toBe("ready");
  pool.card = { state: "draining" };
  await rig.clock.runFor(1200);
  expect(state()).toBe("draining");
  pool.card = {};
  await rig.clock.runFor(1200);
  pool.stop();
  await rig.clock.runFor(3000);
  expect(state()).toBe("suspect");
  await rig.clock.runFor(4000);
  expect(state()).toBe("gone");
  const changes = 'tiergrid_pool_state_changes_total{role="agg",pool="slow",to="ready"}';
  expect(await metric(rig, changes)).toBe(2);
  expect(await metric(rig, 'tiergrid_pool_state{role="agg",pool="slow",state="gone"}')).toBe(1);
});

it("logs a change of a pool once, and what keeps failing every 30 s", async () => {
  const rig = startRig(aggConfig());
  const pool = rig.startPool("slow");
  await rig.clock.runFor(29_000);
  expect(rig.lines).toEqual(["pool is ready agg slow ready 2"]);
  rig.lines.length = 0;
  pool.goodbye();
  await rig.clock.runFor(70_000);
  const ofSlow = rig.lines.filter((line) => line.includes("slow"));
  const still = "pool is still not ready agg slow gone 0";
  expect(ofSlow).toEqual(["pool is not ready agg slow gone 0", still, still]);
});

it("calls a pool that serves another model or role a mismatch, with both in the text", async () => {
  const rig = startRig(aggConfig());
  rig.startPool("slow", "decode");
  rig.startPool("fast", "aggregated", { model: "other" });
  await rig.clock.runFor(cardsMs);
  const pools = rig.router.pools().roles["agg"]!.pools;
  expect(pools.map(({ state }) => state)).toEqual(["mismatch", "connecting", "mismatch"]);
  expect(pools[2]!.last_error).toContain('serves decode of "mock-model", not aggregated');
  expect(pools[0]!.last_error).toContain('"other"');
  expect(await rig.ask(rig.request(slow))).toMatchObject({ code: "pool_unavailable" });
});

it("keeps the roles of one namespace apart", async () => {
  const rig = startRig(
    configOf({
      ...disaggConfig().normal,
      prefill_pool_dynamo_namespaces: ["x", "p1"],
      decode_pool_dynamo_namespaces: ["x", "d1"],
    }),
  );
  const prefill = rig.startPool("x", "prefill");
  const decode = rig.startPool("x", "decode");
  await rig.clock.runFor(cardsMs);
  await rig.ask(rig.request(target(0, 0), "prefill"));
  await rig.ask(rig.request(target(0, 0), "decode"));
  expect([prefill.seen.length, decode.seen.length]).toEqual([1, 1]);
});

it("answers pool_info in its documented shape", async () => {
  const rig = await aggRig();
  await rig.ask(rig.request(slow));
  const info = await rig.query("pool_info", new Uint8Array(0));
  expect(info).toMatchObject({
    model_name: "mock-model",
    mode: "agg",
    enable_priority_retry: false,
    config: { version: aggConfig().version, warnings: 0, last_reload: null },
  });
  const { pools } = (info as unknown as PoolInfo).roles["agg"]!;
  expect(pools).toHaveLength(3);
  expect(pools[2]).toEqual({
    index: 2,
    namespace: "slow",
    priority: 2,
    state: "ready",
    since_ms: expect.any(Number),
    routers: 1,
    workers_ready: 2,
    inflight: 1,
    held_until_ms: null,
    last_error: null,
    error_rate: null,
    accept_ms: expect.any(Number),
    ttft_ms: null,
    circuit: "closed",
    probe_in_ms: null,
  });
  const { body, ready } = rig.router.health();
  expect(ready).toBe(true);
  expect(body["endpoints"]).toEqual({ generate: "ready" });
  expect(body["pools"]).toContainEqual({
    role: "agg",
    index: 0,
    namespace: "fast",
    state: "ready",
  });
});

it("describes itself to service tools and counts what it served", async () => {
  const rig = await aggRig();
  const request = rig.request(slow);
  await rig.ask(request);
  await rig.finish(request);
  await rig.query("pool_info", new Uint8Array(0));
  await rig.query("explain", new TextEncoder().encode("{"));
  const asked = rig.client.request("$SRV.STATS.tiergrid-global", new Uint8Array(0), {
    timeoutMs: 100,
  });
  await rig.clock.runFor(1);
  const { endpoints } = JSON.parse(new TextDecoder().decode((await asked).payload));
  const counts = endpoints.map((endpoint: Record<string, unknown>) => [
    endpoint["subject"],
    endpoint["num_requests"],
    endpoint["num_errors"],
  ]);
  expect(counts).toEqual([
    ["tg.ep.dynamo.global_router.generate", 1, 0],
    ["tg.ep.dynamo.global_router.pool_info", 1, 0],
    ["tg.ep.dynamo.global_router.explain", 1, 1],
    ["tg.ep.dynamo.global_router.thresholds", 0, 0],
    ["tg.ep.dynamo.global_router.grid", 0, 0],
    ["tg.ep.dynamo.global_router.cells", 0, 0],
  ]);
});

it("announces itself as the way to its model", async () => {
  const rig = await aggRig();
  const seen = watchInstances({
    bus: rig.client,
    clock: rig.clock,
    gate: startEchoGate(rig.client, rig.clock),
    accept: ({ kind }) => kind === "global",
  });
  await rig.clock.runFor(1200);
  const cards = [...seen.instances()].map(({ card }) => card);
  const role = { role: "aggregated", endpoint: "generate", model: "mock-model" };
  const sizes = { blockSize: 16, contextLength: 4096, workersReady: 6 };
  expect(cards).toMatchObject([{ inst: rig.router.inst, state: "ready", ...role, ...sizes }]);
  await rig.router.drain(100);
  await rig.clock.runFor(1);
  expect(seen.get(rig.router.inst)?.card.state).toBe("draining");
  expect(await rig.ask(rig.request(slow))).toMatchObject({ code: "subscriber_shutdown" });
  await rig.router.close();
  await rig.clock.runFor(1);
  expect(seen.get(rig.router.inst)).toBeUndefined();
});

/** Parts of an explanation that differ between two looks at the same request. */
const varying = ["decision_id", "at", "dry_run", "local", "local_error", "rid"];
function comparable(explained: Readonly<Record<string, unknown>>) {
  const { order, ...rest } = explained as { order: Record<string, unknown> };
  const { attempts: _attempts, ...orders } = order;
  return {
    ...Object.fromEntries(Object.entries(rest).filter(([k]) => !varying.includes(k))),
    orders,
  };
}

it("explains what a live request then does, and books nothing", async () => {
  const number = fc.option(fc.double({ min: -100, max: 2000, noNaN: true }), { nil: null });
  const requests = fc.record({
    ttft: number,
    itl: number,
    priority: fc.option(fc.integer({ min: 0, max: 30 }), { nil: null }),
    down: fc.subarray([0, 1, 2]),
    full: fc.subarray([0, 1, 2]),
    spill: fc.boolean(),
  });
  const property = fc.asyncProperty(
    requests,
    async ({ ttft, itl, priority, down, full, spill }) => {
      const rig = startRig(aggConfig({ ...retryOn, ...(spill ? spillOn() : {}) }));
      const names = ["fast", "middle", "slow"];
      const pools = names.map((name) => rig.startPool(name));
      for (const index of down) pools[index]!.card = { workersReady: 0 };
      await rig.clock.runFor(1500);
      for (const index of full) {
        pools[index]!.answer = "overloaded";
        await rig.ask(rig.request({ router: target(1, 1).router, routing: { priority: null } }));
        pools[index]!.answer = "accept";
      }
      const request = rig.request({
        ...target(ttft as number, itl as number),
        routing: { priority },
      });
      const before = rig.router.pools();
      const dry = await rig.query("explain", encodeDispatch(request));
      expect(rig.router.pools()).toEqual(before);
      const receipt = await rig.ask(request);
      const kept = receipt.type === "accepted" ? receipt.decisions[0]!.decision_id : undefined;
      if (kept === undefined) {
        expect(dry["result"]).toBeUndefined();
        return;
      }
      const id = new TextEncoder().encode(JSON.stringify({ decision_id: kept }));
      const live = await rig.query("explain", id);
      // The dry run waited for a second tier that is not there; time stands still for the rest.
      expect(comparable(dry)).toEqual(comparable(live));
      expect(dry["dry_run"]).toBe(true);
      expect(live["dry_run"]).toBe(false);
    },
  );
  await fc.assert(property, { numRuns: 60 });
});

it("adds the pool's own view to an explanation, and says when it has none", async () => {
  const rig = await aggRig();
  const path = { namespace: "slow", component: "router", endpoint: "explain" };
  const answer = new TextEncoder().encode('{"chosen":"9"}');
  rig.last.bus.subscribe(endpointSubject(path), ({ reply }) =>
    rig.last.bus.publish(reply!, answer),
  );
  const explained = await rig.query("explain", encodeDispatchJson(rig.request(slow)));
  expect(explained).toMatchObject({ local: { chosen: "9" }, result: { namespace: "slow" } });
  const refusal = new TextEncoder().encode('{"error":{"code":"not_ready"}}');
  const middle = endpointSubject({ ...path, namespace: "middle" });
  rig.middle.bus.subscribe(middle, ({ reply }) => rig.middle.bus.publish(reply!, refusal));
  const refused = await rig.query("explain", encodeDispatch(rig.request(target(0, 90))));
  expect(refused).toMatchObject({ local: null, local_error: "not_ready" });
  const without = await rig.query("explain", encodeDispatchJson(rig.request(target(0, 0))));
  expect(without).toMatchObject({ local: null, local_error: "no_responders" });
  expect(without["axes"]).toMatchObject([
    { name: "ttft", value: 0, index: 0, cell_low: 0, cell_high: 500, clamped: null },
    { name: "itl", value: 0 },
  ]);
});

it("answers not_found for a decision it does not keep, and what is wrong with a request", async () => {
  const rig = await aggRig();
  await expect(rig.router.explainKept("x")).rejects.toMatchObject({ code: "not_found" });
  const explained = rig.router.explain(rig.request({}));
  await rig.clock.runFor(1);
  expect(await explained).toMatchObject({ dry_run: true });
  const ask = (text: string) => rig.query("explain", new TextEncoder().encode(text));
  expect(await ask('{"decision_id":"x"}')).toMatchObject({ error: { code: "not_found" } });
  expect(await ask('{"token_ids":[]}')).toMatchObject({ error: { code: "invalid_request" } });
  expect(await ask("{")).toMatchObject({ error: { code: "invalid_request" } });
});

it("scores targets per cell from the owner's closed notice, once", async () => {
  const rig = await aggRig();
  const request = rig.request(target(900, 90));
  const receipt = await rig.ask(request);
  const { rid, attempt } = request.envelope;
  const { decision_id: id } = (receipt as Receipt & { type: "accepted" }).decisions[0]!;
  await rig.finish(request);
  expect(rig.router.openRequests).toBe(0);
  const itl = { count: 2, sum_ms: 200, buckets: [] };
  const outcome = { outcome: "ok", output_tokens: 3, decision_ids: [id, "unknown"] } as const;
  const closed = { type: "closed", rid, attempt, ttft_ms: 900, itl, ...outcome } as const;
  await rig.notify(closed);
  await rig.notify(closed);
  const place = 'role="agg",cell="1.1",pool="slow"';
  const sla = (rest: string) => metric(rig, `tiergrid_cell_sla_total{${place},${rest}}`);
  expect(await metric(rig, `tiergrid_cell_requests_total{${place},outcome="ok"}`)).toBe(1);
  expect(await sla('target="ttft",result="met",explicit="true"')).toBe(1);
  expect(await sla('target="itl",result="missed",explicit="true"')).toBe(1);
  const notices = (state: string) =>
    metric(rig, `tiergrid_lifecycle_notices_total{kind="closed",state="${state}"}`);
  expect([await notices("applied"), await notices("duplicate")]).toEqual([1, 1]);
  rig.client.publish(noticeSubject(rig.router.inst), new Uint8Array([1, 2]));
  await rig.clock.runFor(1);
  expect(rig.bus.totals.handlerErrors).toBe(0);
});

it("returns every book and gauge to zero, however requests end", async () => {
  const rig = await aggRig({ ...retryOn, ...spillOn() });
  const answers: Answer[] = ["accept", "silent", "overloaded", "engine_error", "no_endpoints"];
  const requests: Dispatch[] = [];
  for (const answer of answers) {
    for (const pool of [rig.fast, rig.middle, rig.last]) pool.answer = answer;
    for (let round = 0; round < 4; round++) {
      const request = rig.request(slow);
      requests.push(request);
      await rig.ask(request);
    }
  }
  expect(await metric(rig, 'tiergrid_bookings_active{role="agg"}')).toBe(rig.router.openRequests);
  expect(rig.router.openRequests).toBe(4);
  // Two end by notice, two because nobody ever names them again.
  for (const request of requests.slice(0, 2)) await rig.finish(request);
  await rig.clock.runFor(15_000);
  expect(rig.router.openRequests).toBe(0);
  for (const pool of ["fast", "middle", "slow"]) {
    expect(await metric(rig, `tiergrid_pool_inflight{role="agg",pool="${pool}"}`)).toBe(0);
  }
  expect(await metric(rig, 'tiergrid_bookings_active{role="agg"}')).toBe(0);
  expect(await metric(rig, 'tiergrid_bookings_freed_total{by="sweep"}')).toBe(2);
  expect(await metric(rig, "dynamo_component_inflight_requests")).toBe(0);
  expect(await metric(rig, "dynamo_component_requests_total")).toBe(requests.length);
});

it("puts another config in force for new requests while old ones end in theirs", async () => {
  const rig = await aggRig();
  const before = rig.request(slow);
  await rig.ask(before);
  const strategy = {
    agg_pool_mapping: [
      [0, 0],
      [0, 0],
    ],
  };
  const next = aggConfig({
    num_agg_pools: 2,
    agg_pool_dynamo_namespaces: ["middle", "fast"],
    agg_pool_selection_strategy: strategy,
  });
  const shared = rig.request(target(100, 90));
  await rig.ask(shared);
  const offer = (config: PoolConfig) => rig.router.grids.offer(config, 0, "file");
  expect(offer(next)).toBe("applied");
  const middle = () => rig.router.pools().roles["agg"]!.pools[0];
  expect(middle()).toMatchObject({ namespace: "middle", inflight: 1 });
  await rig.finish(shared);
  expect(middle()).toMatchObject({ inflight: 0, state: "ready" });
  expect(offer(next)).toBe("unchanged");
  expect(poolOf(await rig.ask(rig.request(slow)))).toBe("middle");
  const text = await rig.metrics.text();
  expect(text).toContain(`tiergrid_config_info{kind="pool",version="${next.version}"} 1`);
  expect(text).not.toContain('pool="slow"');
  await rig.finish(before);
  expect(rig.router.openRequests).toBe(1);
  expect(() => offer(disaggConfig())).toThrow("without a restart");
  expect(rig.router.pools()).toMatchObject({ config: { last_reload: { result: "rejected" } } });
  const reloads = 'tiergrid_config_reloads_total{kind="pool",result="rejected"}';
  expect(await metric(rig, reloads)).toBe(1);
  expect(await metric(rig, 'tiergrid_config_errors{kind="pool"}')).toBe(1);
  // The file is again what is in force.
  expect(offer(next)).toBe("unchanged");
  expect(rig.router.pools()).toMatchObject({ config: { last_reload: { result: "unchanged" } } });
  expect(await metric(rig, 'tiergrid_config_errors{kind="pool"}')).toBe(0);
});

it("is not ready without every pool where all are required, nor without a bus", async () => {
  const rig: Rig = startRig(aggConfig(), { requireAllPools: true });
  rig.startPool("fast");
  rig.startPool("middle");
  await rig.clock.runFor(cardsMs);
  expect(rig.router.ready()).toBe(false);
  rig.startPool("slow");
  await rig.clock.runFor(cardsMs);
  expect(rig.router.ready()).toBe(true);
  rig.network.faults.brokerDown();
  expect(rig.router.ready()).toBe(false);
});

it("leaves no timer behind", async () => {
  const rig = await aggRig();
  await rig.ask(rig.request(slow));
  await rig.router.close();
  for (const pool of [rig.fast, rig.middle, rig.last]) pool.stop();
  await rig.clock.runFor(2500);
  // The gate of the rig itself still beats.
  expect(rig.clock.pending()).toBe(1);
});
