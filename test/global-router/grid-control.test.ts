import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import type { PoolConfig } from "../../src/config/pool-config.ts";
import { driftLimits } from "../../src/core/drift-detector.ts";
import { readMeasuredCells } from "../../src/core/grid-calibrate.ts";
import { watchPoolConfig } from "../../src/global-router/config-watch.ts";
import { createGridAdmin } from "../../src/global-router/grid-admin.ts";
import { shownFaultsMax } from "../../src/global-router/grid-control.ts";
import { decodeReceipt } from "../../src/protocol/receipts.ts";
import { encodeDispatch } from "../../src/protocol/request-frame.ts";
import type { Dispatch, Receipt } from "../../src/protocol/requests.ts";
import { generateSubject } from "../../src/protocol/subjects.ts";
import { silentLog } from "../../src/runtime/log.ts";
import { aggConfig, cardsMs, disaggConfig, metric, type Rig, startRig } from "./rig.ts";

const target = (ttft: number, itl: number) => ({ router: { ttft_target: ttft, itl_target: itl } });
const names = ["fast", "middle", "slow"];

async function gridRig(config = aggConfig(), options: Parameters<typeof startRig>[1] = {}) {
  const rig = startRig(config, options);
  const pools = new Map(names.map((name) => [name, rig.startPool(name)]));
  await rig.clock.runFor(cardsMs);
  return { ...rig, pools, grids: rig.router.grids };
}

/** The pools in another order, with another mapping. */
function variant(number: number): PoolConfig {
  const turn = <T>(list: readonly T[]): T[] => list.map((_, at) => list[(at + number) % 3]!);
  return aggConfig({
    enable_priority_retry: true,
    agg_pool_dynamo_namespaces: turn(names),
    agg_pool_priorities: turn([0, 1, 2]),
    agg_pool_selection_strategy: {
      agg_pool_mapping: [0, 2].map((row) => [0, 1].map((col) => (row + col + number) % 3)),
      ttft_max_ms: 1000 + number,
    },
  });
}

const acceptedBy = (receipt: Receipt) => {
  if (receipt.type !== "accepted") throw new Error(`${receipt.code}: ${receipt.message}`);
  return receipt.decisions[0]!;
};

it("fails no request while the grid is swapped 100 times, and each keeps the grid it came to", async () => {
  const rig = await gridRig(variant(0));
  const random = mulberry32(11);
  const to = generateSubject("global", rig.router.inst);
  // Slow pools look for a worker for a second: their requests live through dozens of swaps. One
  // pool fails everything, which the next faster pool of the request's own grid then takes.
  rig.pools.get("slow")!.answer = "slow";
  rig.pools.get("middle")!.answer = "engine_error";
  const asked: { dispatch: Dispatch; version: string; receipt: Promise<Receipt> }[] = [];
  const ask = (): void => {
    const dispatch = rig.request(target(1200 * random(), 120 * random()));
    const { version } = rig.grids.versions.activeFor(dispatch.envelope.rid).config;
    const reply = rig.client.request(to, encodeDispatch(dispatch), { timeoutMs: 30_000 });
    const receipt = reply.then(({ payload }) => decodeReceipt(payload));
    asked.push({ dispatch, version, receipt });
  };
  for (let swap = 1; swap <= 100; swap++) {
    for (let count = 0; count < 20; count++) ask();
    await rig.clock.runFor(5);
    const { versions } = rig.grids;
    if (swap % 10 === 0) rig.grids.answer({ action: "rollback" }, "http");
    else if (swap % 10 === 4) rig.grids.answer({ action: "promote" }, "http");
    else if (swap % 10 === 3) {
      const kept = versions.versions.filter(
        ({ version }) => version !== versions.inForce.kept.version,
      );
      const { version } = kept[Math.floor(random() * kept.length)]!;
      rig.grids.answer({ action: "canary", percent: 100 * random(), version }, "http");
    } else rig.grids.offer(variant(swap), 0, "file");
    await rig.clock.runFor(15);
  }
  await rig.clock.runFor(5_000);
  const moved = new Set<string>();
  for (const { version, receipt } of asked) {
    const { config_version: served, reason } = acceptedBy(await receipt);
    expect(served).toBe(version);
    moved.add(String(reason));
  }
  expect(moved).toEqual(new Set(["grid", "retry"]));
  for (const { dispatch } of asked) await rig.finish(dispatch);
  await rig.clock.runFor(15_000);
  expect(rig.router.openRequests).toBe(0);
  expect(await metric(rig, 'tiergrid_bookings_active{role="agg"}')).toBe(0);
  const tallies = rig.grids.versions.versions.map(({ tally }) => tally);
  expect(tallies.reduce((sum, { requests }) => sum + requests, 0)).toBeLessThanOrEqual(2000);
  expect(tallies.every(({ ended }) => ended.error === 0)).toBe(true);
  expect(await metric(rig, 'tiergrid_grid_changes_total{action="rolled_back"}')).toBe(10);
});

it("refuses every bad file whole while it runs, and says all that is wrong with it", async () => {
  const folder = await mkdtemp(join(tmpdir(), "tiergrid-grids-"));
  const path = join(folder, "pools.json");
  const golden = JSON.parse(
    await readFile(new URL("../golden/pool-config-invalid.json", import.meta.url), "utf8"),
  ) as { cases: { text?: string; config?: unknown; expectedErrors: { pointer: string }[] }[] };
  const rig = await gridRig();
  const before = rig.grids.versions.inForce;
  const load = { ownNamespace: "dynamo" };
  const options = { path, load, clock: rig.clock, log: silentLog, grids: rig.grids };
  const watch = watchPoolConfig(options, false);
  expect(golden.cases).toHaveLength(154);
  for (const { text, config, expectedErrors } of golden.cases) {
    await writeFile(path, text ?? JSON.stringify(config));
    await watch.reloadNow("signal");
    const { last_reload: last } = rig.router.pools().config;
    expect(last).toMatchObject({ result: "rejected", by: "signal" });
    const pointers = (last?.faults ?? []).map(({ pointer }) => pointer);
    expect(pointers.sort()).toEqual(expectedErrors.map(({ pointer }) => pointer).sort());
  }
  expect(rig.grids.versions.inForce).toBe(before);
  expect(rig.grids.versions.versions).toHaveLength(1);
  const rejected = 'tiergrid_config_reloads_total{kind="pool",result="rejected"}';
  expect(await metric(rig, rejected)).toBe(154);
  expect(acceptedBy(await rig.ask(rig.request())).config_version).toBe(aggConfig().version);
  await writeFile(path, JSON.stringify(disaggConfig().normal));
  await watch.reloadNow("signal");
  expect(rig.router.pools().config.last_reload?.faults?.[0]).toMatchObject({
    pointer: "/mode",
    reason: "needs-restart",
  });
  await writeFile(path, JSON.stringify(variant(1).normal));
  await watch.reloadNow("file");
  expect(rig.router.pools().config).toMatchObject({
    version: variant(1).version,
    last_reload: { result: "applied", by: "file" },
  });
  await watch.reloadNow("file");
  expect(rig.router.pools().config.last_reload?.result).toBe("applied");
  await rm(folder, { recursive: true });
});

it("shows a hundred faults of a file that has more", async () => {
  const rig = await gridRig();
  const fault = { pointer: "/x", reason: "unknown-key", message: "unknown" };
  rig.grids.rejected(Array(shownFaultsMax + 1).fill(fault), "file");
  expect(rig.grids.lastReload?.faults).toHaveLength(shownFaultsMax);
  expect(await metric(rig, 'tiergrid_config_errors{kind="pool"}')).toBe(shownFaultsMax + 1);
});

/** Sends a request and ends it as its owner would, measured. */
async function serve(
  rig: Pick<Rig, "ask" | "request" | "finish" | "notify">,
  measured: { readonly ttftMs: number; readonly itlMs: number },
): Promise<string> {
  const request = rig.request(target(900, 90));
  const { decision_id: id, config_version: version } = acceptedBy(await rig.ask(request));
  await rig.finish(request);
  const { rid, attempt } = request.envelope;
  const itl = { count: 2, sum_ms: 2 * measured.itlMs, buckets: [] };
  const ends = { outcome: "ok", output_tokens: 3, decision_ids: [id!] } as const;
  await rig.notify({ type: "closed", rid, attempt, ttft_ms: measured.ttftMs, itl, ...ends });
  return version!;
}

it("tells measured latencies per cell, in the form that calibration reads, and forgets them", async () => {
  const rig = await gridRig();
  for (let at = 0; at < 40; at++) await serve(rig, { ttftMs: 500 + at * 20, itlMs: 50 });
  const answer = await rig.query("cells", new TextEncoder().encode('{"reset":true}'));
  const [role] = readMeasuredCells(answer).roles;
  expect(role?.role).toBe("agg");
  expect(role?.cells.map(({ cell, pool, latency, count }) => [cell, pool, latency, count])).toEqual(
    [
      ["1.1", "slow", "ttft", 40],
      ["1.1", "slow", "itl", 40],
    ],
  );
  const [ttft, itl] = (answer as unknown as { roles: { cells: Record<string, number>[] }[] })
    .roles[0]!.cells;
  expect(ttft).toMatchObject({ met: 21, missed: 19, recent: { count: 40 } });
  expect(ttft!["p50_ms"]! / 880).toBeCloseTo(1, 1);
  expect(itl).toMatchObject({ met: 40, missed: 0, sum_ms: 2000 });
  const again = await rig.query("cells", new TextEncoder().encode("{}"));
  expect(again).toMatchObject({ config_version: aggConfig().version, roles: [] });
  expect(() => rig.grids.cells({ version: "none" })).toThrow("gets no requests");
});

it("sets measured latencies against those that the pool had quoted", async () => {
  const strategy = { selection: "live", live: { quote_deadline_ms: 50 } };
  const rig = await gridRig(aggConfig({ agg_pool_selection_strategy: strategy }));
  for (const pool of rig.pools.values()) pool.quote = { ttft: 400, itl: 20, gpuMs: 100 };
  for (let at = 0; at < 3; at++) await serve(rig, { ttftMs: 500, itlMs: 25 });
  const [ttft] = rig.grids.cells({}).roles[0]!.cells;
  expect(ttft?.predicted).toMatchObject({ count: 3 });
  expect(ttft!.predicted!.median_error).toBeCloseTo(0.25, 1);
  expect(ttft!.predicted!.p50_ms / 400).toBeCloseTo(1, 1);
  const { pool } = ttft!;
  const count = `tiergrid_quote_measured_ratio_count{role="agg",pool="${pool}",target="ttft"}`;
  expect(await metric(rig, count)).toBe(3);
});

it("shows recent quantiles and attainment from 20 requests on, until the window has passed", async () => {
  const rig = await gridRig();
  const series = 'tiergrid_cell_latency_seconds{role="agg",cell="1.1",pool="slow",target="ttft"';
  const half = `${series},quantile="0.5"}`;
  const ratio = 'tiergrid_cell_attainment_ratio{role="agg",cell="1.1",target="itl"}';
  for (let at = 0; at < 19; at++) await serve(rig, { ttftMs: 1000, itlMs: 50 });
  expect(await rig.metrics.text()).not.toContain(series);
  await serve(rig, { ttftMs: 1000, itlMs: 100 });
  expect(await metric(rig, half)).toBeCloseTo(1, 1);
  expect(await metric(rig, ratio)).toBe(0.95);
  await rig.clock.runFor(600_000);
  expect(await rig.metrics.text()).not.toContain(series);
  expect(await rig.metrics.text()).not.toContain(ratio);
});

it("labels the cells of a grid of 400, and not those of a larger one", async () => {
  const cells = (rows: number) => ({
    agg_pool_selection_strategy: {
      ttft_resolution: rows,
      itl_resolution: 20,
      agg_pool_mapping: Array(rows).fill(Array(20).fill(0)),
    },
  });
  for (const [rows, shown] of [
    [20, true],
    [21, false],
  ] as const) {
    const rig = await gridRig(aggConfig(cells(rows)));
    for (let at = 0; at < 20; at++) await serve(rig, { ttftMs: 1000, itlMs: 50 });
    expect((await rig.metrics.text()).includes("tiergrid_cell_latency_seconds{")).toBe(shown);
    expect(rig.grids.cells({}).roles[0]?.cells[0]?.count).toBe(20);
  }
});

it("marks a cell stale while its pool is slow, says so once, and starts anew with another grid", async () => {
  const rig = await gridRig();
  const stale = () => metric(rig, 'tiergrid_grid_stale{role="agg",cell="1.1",pool="slow"}');
  const run = async (batches: number, ttftMs: number): Promise<void> => {
    for (let at = 0; at < batches; at++) {
      await rig.clock.runFor(driftLimits.batchMs);
      await serve(rig, { ttftMs, itlMs: 50 });
    }
  };
  await run(driftLimits.referenceBatches + 1, 500);
  expect(await stale()).toBe(0);
  await run(20, 1000);
  expect(await stale()).toBe(1);
  const told = (text: string) => rig.lines.filter((line) => line.startsWith(text));
  expect(told("grid is stale in a cell")).toEqual([
    "grid is stale in a cell agg 1.1 slow ttft slower 500 1000",
  ]);
  await run(20, 500);
  expect(await stale()).toBe(0);
  expect(told("grid holds again in a cell")).toHaveLength(1);
  rig.grids.offer(variant(1), 0, "file");
  expect(await rig.metrics.text()).not.toContain("tiergrid_grid_stale{");
});

it("counts requests and targets by version, and drops the series of versions it forgot", async () => {
  const rig = await gridRig(aggConfig(), { canaryPercent: 100 });
  const first = aggConfig().version;
  await serve(rig, { ttftMs: 1000, itlMs: 50 });
  rig.grids.offer(variant(1), 0, "file");
  expect(await metric(rig, "tiergrid_grid_canary_percent")).toBe(100);
  expect(rig.router.pools().config.canary).toEqual({ version: variant(1).version, percent: 100 });
  expect(await serve(rig, { ttftMs: 100, itlMs: 500 })).toBe(variant(1).version);
  const missed = (version: string, of: string) =>
    `tiergrid_grid_version_sla_total{version="${version}",target="${of}",result="missed"}`;
  expect(await metric(rig, missed(first, "ttft"))).toBe(1);
  expect(await metric(rig, missed(variant(1).version, "itl"))).toBe(1);
  expect(rig.grids.versions.find(first)?.tally).toMatchObject({
    requests: 1,
    ended: { ok: 1 },
    ttft: { met: 0, missed: 1 },
    itl: { met: 1, missed: 0 },
  });
  rig.grids.answer({ action: "promote" }, "http");
  for (let at = 2; at < 40; at++) rig.grids.offer(variant(at), 0, "file");
  expect(await rig.metrics.text()).not.toContain(`version="${first}"`);
});

it("is operated over HTTP and over the bus alike", async () => {
  const rig = await gridRig();
  const reloads: string[] = [];
  const admin = createGridAdmin(rig.grids, {
    reloadNow: (by) => {
      reloads.push(by);
      rig.grids.offer(variant(1), 0, by);
      return Promise.resolve();
    },
  });
  const call = async (path: string, body?: string) => {
    const init = body === undefined ? {} : { method: "POST", body };
    const response = await admin.request(path, init);
    return { status: response.status, body: (await response.json()) as Record<string, unknown> };
  };
  const [first, second] = [aggConfig().version, variant(1).version];
  expect((await call("/grid/reload", "")).body).toMatchObject({ in_force: second });
  expect(reloads).toEqual(["http"]);
  expect((await call("/grid/rollback", "{}")).body).toMatchObject({ in_force: first });
  const canary = JSON.stringify({ percent: 25, version: second });
  expect(await call("/grid/canary", canary)).toMatchObject({
    status: 200,
    body: { canary: { version: second, percent: 25 } },
  });
  const ask = (question: object) =>
    rig.query("grid", new TextEncoder().encode(JSON.stringify(question)));
  expect(await ask({ action: "canary", percent: 50 })).toMatchObject({ canary: { percent: 50 } });
  expect(await ask({ action: "promote" })).toMatchObject({ in_force: second, canary: null });
  const shown = await call("/grid/versions");
  expect(shown.body).toEqual(await ask({ action: "versions" }));
  expect(shown.body).toMatchObject({
    versions: [
      { version: first, state: "kept", by: "start" },
      { version: second, state: "in_force", by: "http" },
    ],
  });
  const history = shown.body["history"] as { action: string; by: string }[];
  expect(history.map(({ action, by }) => `${action} ${by}`)).toEqual([
    "applied start",
    "applied http",
    "rolled_back http",
    "canary http",
    "canary bus",
    "promoted bus",
  ]);
  expect((await call("/grid/cells")).body).toMatchObject({ config_version: second, roles: [] });
});

it.each([
  ["/grid/promote", "", 404, "no version is on trial"],
  ["/grid/rollback", '{"version":"none"}', 404, "not kept"],
  ["/grid/rollback", "{}", 404, "no version before"],
  ["/grid/canary", '{"percent":101}', 400, "0 to 100"],
  ["/grid/canary", '{"percent":"5"}', 400, "0 to 100"],
  ["/grid/canary", '{"percent":5,"version":7}', 400, "must be a string"],
  ["/grid/canary", "[1]", 400, "JSON object"],
  ["/grid/canary", "{", 400, "JSON object"],
  ["/grid/cells", '{"version":"none"}', 404, "gets no requests"],
  ["/grid/canary", " ".repeat(4097), 413, "at most 4096"],
])("refuses at %s what it cannot do", async (path, body, status, why) => {
  const rig = await gridRig();
  const admin = createGridAdmin(rig.grids, { reloadNow: () => Promise.resolve() });
  const response = await admin.request(path, { method: "POST", body });
  expect(response.status).toBe(status);
  expect(((await response.json()) as { error: { message: string } }).error.message).toContain(why);
  expect(rig.grids.versions.events).toHaveLength(1);
  const ask = () => rig.grids.answer({ action: "swap" }, "bus");
  expect(ask).toThrow("versions, canary, promote or rollback");
});
