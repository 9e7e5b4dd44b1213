import { expect, it } from "vitest";
import { encodeLoadSample } from "../../src/protocol/load-sample.ts";
import { loadSubject } from "../../src/protocol/subjects.ts";
import { configOf, promptOf, startPool } from "./pool-rig.ts";

const off = { activeDecodeBlocks: null, activePrefillTokens: null, activePrefillTokensFrac: null };
const twoRanks = { dpStart: 0, dpSize: 2 };

/** A pool with one worker and one request of four blocks under way. */
async function startAnswer(settings: object, routing: object = {}) {
  const pool = startPool(41, { config: configOf(settings) });
  const worker = pool.worker("1");
  await pool.clock.runFor(100);
  const { rid, receipt } = pool.send(promptOf(1, 4), { routing });
  await receipt;
  const attempt = worker.taken[0]?.envelope.attempt ?? 0;
  const grow = async (output_tokens: number): Promise<number | undefined> => {
    worker.tell({ type: "progress", rid, attempt, output_tokens });
    await pool.clock.runFor(5);
    return pool.router.holders()[0]?.activeBlocks;
  };
  return { ...pool, worker, rid, grow };
}

it("books one block per boundary that the output crosses, however many at once", async () => {
  const { grow, worker, rid, router, clock } = await startAnswer({
    router_track_output_blocks: true,
  });
  expect(await grow(1)).toBe(5);
  expect(await grow(16)).toBe(5);
  expect(await grow(17)).toBe(6);
  expect(await grow(100)).toBe(11);
  expect(await grow(50)).toBe(11);
  worker.finish(rid);
  await clock.runFor(5);
  expect(router.holders()).toMatchObject([{ activeBlocks: 0, activeRequests: 0 }]);
});

it("weighs a request's own blocks by the share of its expected output still to come", async () => {
  const settings = { router_track_output_blocks: true };
  const { grow } = await startAnswer(settings, { expected_output_tokens: 64 });
  // ceil((64 + 17) / 16) = 6 blocks, 1 - 17/64 of each.
  expect(await grow(17)).toBe(4);
  expect(await grow(33)).toBe(3);
  expect(await grow(65)).toBe(0);
});

it("leaves shared blocks at their weight while others use them", async () => {
  const settings = { router_track_output_blocks: true };
  const { grow, send } = await startAnswer(settings, { expected_output_tokens: 32 });
  await send(promptOf(1, 4)).receipt;
  expect(await grow(31)).toBe(4);
});

it("books no output unless it is told to, nor asks workers for it", async () => {
  const { grow, worker } = await startAnswer({});
  expect(worker.taken[0]?.envelope.progress ?? false).toBe(false);
  expect(await grow(100)).toBe(4);
});

it("frees what a caller booked and forgot, on an idle router too", async () => {
  const pool = startPool(42);
  pool.worker("1");
  await pool.clock.runFor(100);
  const call = (method: string, request_id: string) =>
    pool.question("route", { method, request_id, token_ids: [...promptOf(1, 2)] });
  await call("new", "a");
  await call("new", "b");
  await pool.clock.runFor(200_000);
  expect(await call("mark_prefill", "a")).toMatchObject({ success: true });
  await pool.clock.runFor(140_000);
  expect(pool.router.stats.bookings).toBe(1);
  expect(await call("mark_free", "b")).toMatchObject({ success: false });
  await pool.clock.runFor(200_000);
  expect(pool.router.stats).toMatchObject({ bookings: 0, bookedBlocks: 0 });
  expect(await pool.metrics.text()).toContain('tiergrid_bookings_freed_total{by="stale"} 2');
});

it("skips a busy rank, and refuses when every rank that may take the request is busy", async () => {
  const pool = startPool(43, { thresholds: { ...off, activeDecodeBlocks: 0.5 } });
  const { clock, send } = pool;
  const workers = ["1", "2"].map((inst) => pool.worker(inst, { card: twoRanks }));
  await clock.runFor(100);
  const report = async (inst: string, dpRank: number, kvUsedBlocks: number): Promise<void> => {
    const sample = encodeLoadSample({ workerId: inst, dpRank, kvUsedBlocks });
    workers.find((worker) => worker.inst === inst)?.bus.publish(loadSubject("pool", inst), sample);
    await clock.runFor(5);
  };
  const pinned = { routing: { backend_instance_id: "1" } };
  await report("1", 0, 501);
  for (let family = 1; family <= 3; family++) {
    const receipt = await send(promptOf(family, 2), pinned).receipt;
    expect(receipt).toMatchObject({ decisions: [{ worker_id: "1", dp_rank: 1 }] });
  }
  const onBusyRank = { routing: { backend_instance_id: "1", dp_rank: 0 } };
  expect(await send(promptOf(1, 2), onBusyRank).receipt).toMatchObject({
    code: "pinned_worker_overloaded",
    details: { worker_id: "1" },
  });
  await report("1", 1, 501);
  expect(await send(promptOf(1, 2), pinned).receipt).toMatchObject({
    code: "pinned_worker_overloaded",
  });
  expect(await send(promptOf(1, 2)).receipt).toMatchObject({ inst: "2" });
  await report("2", 0, 1000);
  await report("2", 1, 1000);
  expect(await send(promptOf(1, 2)).receipt).toMatchObject({
    code: "all_eligible_workers_overloaded",
  });
  await report("2", 1, 500);
  expect(await send(promptOf(1, 2)).receipt).toMatchObject({
    decisions: [{ worker_id: "2", dp_rank: 1 }],
  });
});

it("counts its own bookings towards the thresholds, before it chooses", async () => {
  const pool = startPool(44, { thresholds: { ...off, activePrefillTokens: 40 } });
  const { clock, send } = pool;
  const workers = ["1", "2"].map((inst) => pool.worker(inst));
  workers[0]?.cache(promptOf(1, 1));
  await clock.runFor(100);
  // Its cached block draws the prompt to worker 1, until that has more prefill than it may have.
  const posted = [send(promptOf(1, 4)), send(promptOf(1, 4)), send(promptOf(1, 4))];
  const receipts = await Promise.all(posted.map(({ receipt }) => receipt));
  expect(receipts).toMatchObject([
    { inst: "1" },
    { inst: "2" },
    { code: "all_eligible_workers_overloaded" },
  ]);
  const { rid, attempt } = workers[0]?.taken[0]?.envelope ?? { rid: "", attempt: 0 };
  workers[0]?.tell({ type: "first_output", rid, attempt, ttft_ms: 1 });
  await clock.runFor(5);
  expect(await send(promptOf(1, 4)).receipt).toMatchObject({ inst: "1" });
});

it("under a burst accepts what fits below the threshold and answers the rest with overload", async () => {
  const pool = startPool(45, { thresholds: { ...off, activeDecodeBlocks: 0.2 } });
  pool.worker("1", { card: { totalKvBlocks: 64 } });
  await pool.clock.runFor(100);
  const posted = Array.from({ length: 50 }, (_, family) => pool.send(promptOf(family, 4)));
  const receipts = await Promise.all(posted.map(({ receipt }) => receipt));
  const codes = receipts.map((receipt) => (receipt.type === "refused" ? receipt.code : "accepted"));
  const accepted = Array(4).fill("accepted");
  expect(codes).toEqual([...accepted, ...Array(46).fill("all_eligible_workers_overloaded")]);
  expect(pool.router.totals).toMatchObject({ accepted: 4, refused: 46 });
});
