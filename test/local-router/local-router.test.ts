import { expect, it } from "vitest";
import { encodeLoadSample } from "../../src/protocol/load-sample.ts";
import type { Receipt } from "../../src/protocol/requests.ts";
import { encodeControl } from "../../src/protocol/stream-control.ts";
import { controlSubject, endpointSubject, loadSubject } from "../../src/protocol/subjects.ts";
import { blockSize, configOf, promptOf, startPool } from "./pool-rig.ts";

const instOf = (receipt: Receipt): string => {
  if (receipt.type === "refused") throw new Error(`${receipt.code}: ${receipt.message}`);
  return receipt.inst;
};

it("is not ready, and refuses, until it has seen a worker", async () => {
  const { router, send, worker, clock } = startPool(1);
  await clock.runFor(100);
  expect(router.ready()).toBe(false);
  expect(await send(promptOf(1, 2)).receipt).toMatchObject({ code: "not_ready" });
  worker("1");
  await clock.runFor(100);
  expect(router.ready()).toBe(true);
  expect(instOf(await send(promptOf(1, 2)).receipt)).toBe("1");
});

it("serves without waiting for a worker when the config says so", async () => {
  const { send, clock } = startPool(1, { config: configOf({ skip_initial_worker_wait: true }) });
  await clock.runFor(10);
  expect(await send(promptOf(1, 2)).receipt).toMatchObject({ code: "no_endpoints" });
});

it("sends a prompt to the worker that has its blocks, told live or asked at discovery", async () => {
  const { send, worker, clock } = startPool(2);
  const early = worker("1");
  early.cache(promptOf(1, 20), true);
  const workers = [early, worker("2"), worker("3")];
  await clock.runFor(100);
  workers[2]?.cache(promptOf(2, 20));
  await clock.runFor(100);
  for (let round = 0; round < 5; round++) {
    const first = send(promptOf(1, 20));
    expect(instOf(await first.receipt)).toBe("1");
    const second = send(promptOf(2, 20));
    const receipt = await second.receipt;
    expect(receipt).toMatchObject({
      inst: "3",
      decisions: [{ tier: "local", worker_id: "3", overlap_blocks: 20, isl_blocks: 20 }],
    });
    workers[0]?.finish(first.rid);
    workers[2]?.finish(second.rid);
    await clock.runFor(10);
  }
});

it("isolates prompts of another adapter or tenant", async () => {
  const { send, worker, clock } = startPool(2);
  worker("1").cache(promptOf(1, 20), true);
  await clock.runFor(100);
  for (const routing of [{ lora_name: "a" }, { cache_salt: "t" }]) {
    const receipt = await send(promptOf(1, 20), { routing }).receipt;
    expect(receipt).toMatchObject({ decisions: [{ overlap_blocks: 0 }] });
  }
});

it("forwards the chosen rank to the worker", async () => {
  const { send, worker, clock } = startPool(3);
  const { taken } = worker("1", { card: { dpStart: 4, dpSize: 2 } });
  await clock.runFor(100);
  await send(promptOf(1, 2), { routing: { dp_rank: 5, lora_name: "a" } }).receipt;
  expect(taken[0]?.body.routing).toEqual({ dp_rank: 5, lora_name: "a" });
  await send(promptOf(2, 2)).receipt;
  expect(taken[1]?.body.routing).toEqual({ dp_rank: 4 });
});

it("leaves a body as it came that says the chosen rank, or needs no rank", async () => {
  const { send, worker, clock } = startPool(3);
  const { taken } = worker("1", { card: { dpStart: 4, dpSize: 1 } });
  await clock.runFor(100);
  await send(promptOf(1, 2), { routing: { lora_name: "a" }, newer_field: [1, { deep: 2 }] })
    .receipt;
  await send(promptOf(2, 2), { routing: { dp_rank: 4 } }).receipt;
  expect(taken[0]?.body).toMatchObject({
    routing: { lora_name: "a" },
    newer_field: [1, { deep: 2 }],
  });
  expect(taken.map(({ body }) => body.routing?.dp_rank)).toEqual([undefined, 4]);
});

it("tries another worker after a refusal or silence, at most three in all", async () => {
  const { send, worker, clock } = startPool(4);
  const refusing = worker("1", { manner: "overloaded" });
  const mute = worker("2", { manner: "mute" });
  await clock.runFor(100);
  const receipt = await send(promptOf(1, 2)).receipt;
  expect(receipt.type).toBe("refused");
  expect([refusing.taken.length, mute.taken.length]).toEqual([1, 1]);
  const good = worker("3");
  await clock.runFor(100);
  expect(instOf(await send(promptOf(1, 2)).receipt)).toBe("3");
  good.state.manner = "overloaded";
  const others = ["4", "5"].map((inst) => worker(inst, { manner: "overloaded" }));
  await clock.runFor(100);
  const before = [refusing, mute, good, ...others].map(({ taken }) => taken.length);
  expect(await send(promptOf(9, 2)).receipt).toMatchObject({ code: "overloaded" });
  const after = [refusing, mute, good, ...others].map(({ taken }) => taken.length);
  expect(after.reduce((a, b) => a + b) - before.reduce((a, b) => a + b)).toBe(3);
});

it("holds out a worker that did not answer, while others can take the request", async () => {
  const { send, worker, clock } = startPool(5);
  const mute = worker("1", { manner: "mute" });
  mute.cache(promptOf(1, 50), true);
  const other = worker("2");
  await clock.runFor(200);
  expect(instOf(await send(promptOf(1, 50)).receipt)).toBe("2");
  expect(instOf(await send(promptOf(1, 50)).receipt)).toBe("2");
  expect(mute.taken).toHaveLength(1);
  mute.state.manner = "accept";
  other.announcer.goodbye();
  await clock.runFor(10);
  expect(instOf(await send(promptOf(1, 50)).receipt)).toBe("1");
});

it("skips workers the owner saw fail, unless nobody else is there", async () => {
  const { send, worker, clock } = startPool(6);
  worker("1").cache(promptOf(1, 50), true);
  worker("2");
  await clock.runFor(200);
  expect(instOf(await send(promptOf(1, 50), {}, { avoid: ["1"] }).receipt)).toBe("2");
  expect(instOf(await send(promptOf(1, 50), {}, { avoid: ["1", "2"] }).receipt)).toBe("1");
});

it("sends a pinned request to its worker or to nobody", async () => {
  const { send, worker, clock } = startPool(7);
  const pinned = worker("1");
  worker("2").cache(promptOf(1, 50), true);
  await clock.runFor(200);
  const routing = { backend_instance_id: "001" };
  expect(instOf(await send(promptOf(1, 50), { routing }).receipt)).toBe("1");
  pinned.state.manner = "overloaded";
  expect(await send(promptOf(1, 50), { routing }).receipt).toMatchObject({ code: "overloaded" });
  const outside = { ...routing, allowed_worker_ids: ["2"] };
  expect(await send(promptOf(1, 50), { routing: outside }).receipt).toMatchObject({
    code: "pinned_worker_not_allowed",
  });
  const unknown = { backend_instance_id: "77" };
  expect(await send(promptOf(1, 2), { routing: unknown }).receipt).toMatchObject({
    code: "no_endpoints",
  });
});

it("refuses workers of another block size or role, and counts them", async () => {
  const { router, worker, clock, metrics } = startPool(8);
  worker("1", { card: { blockSize: 2 * blockSize } });
  worker("2", { card: { role: "prefill" } });
  worker("3", { card: { namespace: "pool-2" } });
  await clock.runFor(5000);
  expect(router.holders()).toEqual([]);
  const text = await metrics.text();
  expect(text).toContain('tiergrid_workers_refused_total{reason="block_size"} 1');
  expect(text).toContain('tiergrid_workers_refused_total{reason="role"} 1');
});

it("gives a draining worker no new work and keeps its bookings until they end", async () => {
  const { router, send, worker, clock } = startPool(9);
  const drains = worker("1");
  await clock.runFor(100);
  const { rid, receipt } = send(promptOf(1, 4));
  await receipt;
  drains.state.card = { state: "draining" };
  drains.announcer.beatNow();
  worker("2");
  await clock.runFor(100);
  expect(instOf(await send(promptOf(1, 4)).receipt)).toBe("2");
  expect(router.stats.bookings).toBe(2);
  drains.finish(rid);
  await clock.runFor(10);
  expect(router.stats.bookings).toBe(1);
});

it("frees bookings, blocks and series of a worker that is gone", async () => {
  const { router, send, worker, clock, metrics } = startPool(10);
  const lost = worker("1");
  lost.cache(promptOf(1, 8), true);
  await clock.runFor(100);
  await send(promptOf(1, 8)).receipt;
  expect(router.stats).toMatchObject({ openRequests: 1, bookings: 1, bookedBlocks: 8 });
  expect(await metrics.text()).toMatch(/active_decode_blocks\{worker_id="1".*\} 8/);
  lost.announcer.stop();
  await clock.runFor(8000);
  expect(router.stats).toMatchObject({ openRequests: 0, bookings: 0, bookedBlocks: 0 });
  expect(router.stats.index?.size).toBe(0);
  expect(await metrics.text()).not.toContain('worker_id="1"');
});

it("forgets the old life of a worker that came back", async () => {
  const { router, send, worker, clock } = startPool(11);
  const again = worker("1");
  await clock.runFor(100);
  await send(promptOf(1, 8)).receipt;
  again.state.card = { epoch: "00000000000000bb" };
  again.announcer.beatNow();
  await clock.runFor(100);
  expect(router.stats).toMatchObject({ openRequests: 0, bookings: 0 });
  expect(router.holders()).toMatchObject([{ workerId: "1", selectable: true }]);
});

it("counts prefill until the first output and blocks until the end, each notice once", async () => {
  const config = configOf({ router_track_output_blocks: true });
  const { router, send, worker, clock, metrics } = startPool(12, { config });
  const only = worker("1");
  await clock.runFor(100);
  const { rid, receipt } = send(promptOf(1, 4));
  await receipt;
  const attempt = only.taken[0]?.envelope.attempt ?? 0;
  expect(await metrics.text()).toMatch(/active_prefill_tokens\{worker_id="1".*\} 64/);
  for (let again = 0; again < 2; again++) {
    only.tell({ type: "first_output", rid, attempt, ttft_ms: 7, cached_tokens: 16 });
    only.tell({ type: "progress", rid, attempt, output_tokens: 17 });
    await clock.runFor(10);
  }
  expect(router.holders()).toMatchObject([{ activeBlocks: 6, activeRequests: 1 }]);
  const text = await metrics.text();
  expect(text).toMatch(/active_prefill_tokens\{worker_id="1".*\} 0/);
  expect(text).toContain("router_time_to_first_token_seconds_count 1");
  expect(text).toContain("tiergrid_kv_prediction_error_tokens_sum 16");
  only.finish(rid);
  only.finish(rid);
  await clock.runFor(10);
  const idle = await metrics.text();
  expect(router.stats).toMatchObject({ openRequests: 0, bookings: 0, bookedBlocks: 0 });
  expect(idle).toContain('tiergrid_bookings_freed_total{by="finished"} 1');
  expect(idle).toContain('tiergrid_bookings_active{role="aggregated"} 0');
  expect(idle).toContain("dynamo_component_router_requests_total 1");
});

it("never books blocks in a prefill pool", async () => {
  const { router, send, worker, clock } = startPool(13, { role: "prefill" });
  worker("1", { card: { role: "prefill" } });
  await clock.runFor(100);
  await send(promptOf(1, 4), {}, { phase: "prefill" }).receipt;
  expect(router.stats).toMatchObject({ bookings: 1, bookedBlocks: 0 });
});

it("frees a booking whose end nobody told, and cancels at the worker", async () => {
  const { router, send, worker, clock, client } = startPool(14);
  const only = worker("1");
  await clock.runFor(100);
  await send(promptOf(1, 4)).receipt;
  await clock.runFor(15_000);
  expect(router.stats.bookings).toBe(0);
  const { rid, receipt } = send(promptOf(1, 4));
  await receipt;
  const attempt = only.taken[1]?.envelope.attempt ?? 0;
  const cancel = encodeControl({ type: "cancel", rid, attempt });
  client.publish(controlSubject("local", router.inst), cancel);
  await clock.runFor(10);
  expect(only.controls).toMatchObject([{ type: "cancel", rid }]);
  only.tell({ type: "finished", rid, attempt, outcome: "cancelled", output_tokens: 0 });
  await clock.runFor(10);
  expect(router.stats.bookings).toBe(0);
});

it("keeps a booking that long lists of active requests name", async () => {
  const { router, send, worker, clock } = startPool(15);
  const only = worker("1");
  await clock.runFor(100);
  const { rid, receipt } = send(promptOf(1, 4), {}, { deadlineMs: 1_000_000 });
  await receipt;
  const attempt = only.taken[0]?.envelope.attempt ?? 0;
  for (let beat = 0; beat < 80; beat++) {
    only.tell({ type: "active", inst: "1", requests: [{ rid, attempt }] });
    await clock.runFor(5000);
  }
  expect(router.stats.bookings).toBe(1);
});

it("leaves out workers above a busy threshold, and all of them is an overload", async () => {
  const thresholds = {
    activeDecodeBlocks: 0.5,
    activePrefillTokens: null,
    activePrefillTokensFrac: null,
  };
  const { router, send, worker, clock } = startPool(16, { thresholds });
  const workers = [worker("1"), worker("2")];
  await clock.runFor(100);
  for (const [at, { bus, inst }] of workers.entries()) {
    const sample = { workerId: inst, dpRank: 0, kvUsedBlocks: 501 };
    bus.publish(loadSubject("pool", inst), encodeLoadSample(sample));
    await clock.runFor(10);
    const receipt = await send(promptOf(1, 2)).receipt;
    const expected = at === 0 ? { inst: "2" } : { code: "all_eligible_workers_overloaded" };
    expect(receipt).toMatchObject(expected);
  }
  expect(router.admin.updateThresholds({ active_decode_blocks_threshold: 2 }).ok).toBe(false);
  expect(router.admin.updateThresholds({})).toMatchObject({ thresholds });
  expect(router.admin.updateThresholds({ active_decode_blocks_threshold: null }).ok).toBe(true);
  expect(await send(promptOf(1, 2)).receipt).toMatchObject({ type: "accepted" });
});

it("answers questions without changing anything", async () => {
  const { router, worker, clock, question } = startPool(17);
  worker("1");
  worker("2").cache(promptOf(1, 6), true);
  await clock.runFor(200);
  const before = JSON.stringify([router.stats, router.totals, router.holders()]);
  const token_ids = Array.from(promptOf(1, 8));
  for (let round = 0; round < 3; round++) {
    expect(await question("best_worker_id", token_ids)).toBe(2);
    expect(await question("best_worker_id", { token_ids })).toEqual({
      ...{ worker_id: "2", dp_rank: 0, overlap_blocks: 6 },
    });
    expect(await question("get_overlap_scores", { token_ids })).toMatchObject({
      ...{ block_size: blockSize, num_blocks: 8 },
      workers: [
        { worker_id: "1", device_blocks: 0 },
        { worker_id: "2", device_blocks: 6 },
      ],
    });
  }
  expect(JSON.stringify([router.stats, router.totals, router.holders()])).toBe(before);
  expect(await question("best_worker_id", { token_ids: [] })).toMatchObject({
    error: { code: "invalid_request" },
  });
  const elsewhere = { token_ids, allowed_worker_ids: ["1"] };
  expect(await question("best_worker_id", elsewhere)).toMatchObject({ worker_id: "1" });
});

it("explains the choice a live request then takes", async () => {
  const { worker, clock, question, send } = startPool(18);
  for (const inst of ["1", "2", "3"]) worker(inst).cache(promptOf(Number(inst), 12), true);
  await clock.runFor(200);
  for (let family = 1; family <= 3; family++) {
    const token_ids = Array.from(promptOf(family, 16));
    const explained = (await question("explain", { token_ids })) as {
      readonly chosen: { readonly worker_id: string; readonly overlap_blocks: number };
      readonly candidates: readonly { readonly worker_id: string; readonly cost: number }[];
    };
    const receipt = await send(promptOf(family, 16)).receipt;
    expect(explained.chosen).toMatchObject({ worker_id: String(family), overlap_blocks: 12 });
    expect(instOf(receipt)).toBe(explained.chosen.worker_id);
    expect(explained.candidates.map(({ worker_id }) => worker_id)).toEqual(["1", "2", "3"]);
  }
});

it("refuses overrides, ids and query-only requests it cannot honour", async () => {
  const { send, worker, clock } = startPool(19);
  worker("1");
  await clock.runFor(100);
  const bad = { router_config_override: { overlap_score_credit: 2 } };
  expect(await send(promptOf(1, 2), bad).receipt).toMatchObject({ code: "invalid_request" });
  const id = { routing: { backend_instance_id: "99999999999999999999" } };
  expect(await send(promptOf(1, 2), id).receipt).toMatchObject({ code: "invalid_request" });
  const annotations = ["query_instance_id:"];
  const asked = await send(promptOf(1, 2), { annotations }).receipt;
  expect(asked).toMatchObject({ code: "invalid_request", details: { field: "annotations" } });
});

it("tells a plain client of the public endpoint which worker it would get, and books nothing", async () => {
  const { router, worker, clock, client } = startPool(19);
  worker("1");
  worker("2").cache(promptOf(1, 4));
  await clock.runFor(100);
  const frames: unknown[] = [];
  const inbox = `${client.inboxPrefix}.q`;
  client.subscribe(inbox, ({ payload }) => {
    frames.push(JSON.parse(new TextDecoder().decode(payload)));
  });
  const subject = endpointSubject({ namespace: "pool", component: "router", endpoint: "generate" });
  const ask = (json: object): void => {
    const token_ids = Array.from(promptOf(1, 4));
    const payload = new TextEncoder().encode(JSON.stringify({ token_ids, ...json }));
    client.publish(subject, payload, { reply: inbox });
  };
  ask({ annotations: ["query_instance_id:"] });
  await clock.runFor(50);
  const worker_id = {
    prefill_worker_id: "2",
    prefill_dp_rank: 0,
    decode_worker_id: "2",
    decode_dp_rank: 0,
  };
  const token_ids = Array.from(promptOf(1, 4));
  expect(frames).toMatchObject([
    {
      type: "end",
      total: 0,
      rest: { token_ids: [], disaggregated_params: { worker_id, token_ids } },
    },
  ]);
  ask({ annotations: ["query_instance_id"], routing: { backend_instance_id: 9 } });
  await clock.runFor(50);
  expect(frames[1]).toMatchObject({ type: "error", code: "no_endpoints" });
  expect(router.stats).toMatchObject({ openRequests: 0, bookings: 0 });
});

it("routes by load alone when overlap does not count, and subscribes to no events", async () => {
  const config = configOf({ overlap_score_weight: 0 });
  const { router, send, worker, clock } = startPool(20, { config });
  worker("1").cache(promptOf(1, 50));
  worker("2");
  await clock.runFor(200);
  expect(router.stats).toMatchObject({ index: undefined, streams: undefined });
  const places = [await send(promptOf(1, 50)).receipt, await send(promptOf(2, 50)).receipt];
  expect(new Set(places.map(instOf)).size).toBe(2);
});

it("takes workers in turn, or at random, when asked to", async () => {
  for (const policy of ["round-robin", "random"] as const) {
    const { send, worker, clock } = startPool(21, { policy });
    const insts = ["1", "2", "3"];
    worker("1").cache(promptOf(1, 50), true);
    for (const inst of insts.slice(1)) worker(inst);
    await clock.runFor(200);
    const places: string[] = [];
    for (let at = 0; at < 30; at++) places.push(instOf(await send(promptOf(1, 50)).receipt));
    const counts = insts.map((inst) => places.filter((place) => place === inst).length);
    if (policy === "round-robin") expect(counts).toEqual([10, 10, 10]);
    else for (const count of counts) expect(count).toBeGreaterThan(3);
  }
});

it("refuses while it drains, and closes without touching answers under way", async () => {
  const { router, send, worker, clock, settled } = startPool(22);
  const only = worker("1");
  await clock.runFor(100);
  await send(promptOf(1, 4)).receipt;
  await settled(router.drain(1000));
  expect(await send(promptOf(1, 4)).receipt).toMatchObject({ code: "subscriber_shutdown" });
  await router.close();
  expect(router.stats).toMatchObject({ openRequests: 0, bookings: 0 });
  expect(only.controls).toEqual([]);
  expect(router.ready()).toBe(false);
});

it("shows KV events, recoveries, stream states and silent workers at a scrape", async () => {
  const { send, worker, clock, metrics } = startPool(30);
  const only = worker("1");
  await clock.runFor(100);
  only.cache(promptOf(1, 2));
  await clock.runFor(70_000);
  const { rid, receipt } = send(promptOf(1, 4));
  await receipt;
  only.finish(rid);
  await clock.runFor(70_000);
  const text = await metrics.text();
  expect(text).toContain('kv_cache_events_applied{event_type="stored",status="ok"} 1');
  expect(text).toContain('kv_cache_event_warnings{warning_kind="duplicate_store"} 0');
  expect(text).toContain('tiergrid_index_resyncs_total{cause="discovered"} 1');
  expect(text).toContain('tiergrid_kv_event_streams{state="synced"} 1');
  expect(text).toContain("tiergrid_kv_events_silent_workers 1");
  expect(text).toContain('tiergrid_index_recoveries_total{outcome="tree_dump"} 1');
  expect(text).toContain("tiergrid_index_blocks 2");
  expect(text).toMatch(/tiergrid_index_bytes_per_block [1-9]\d*/);
});
