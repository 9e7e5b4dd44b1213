import { expect, it } from "vitest";
import {
  localRouterTable,
  localSeries,
  workerSeries,
} from "../../src/local-router/local-metrics.ts";
import type { PoolWorker } from "../../src/local-router/worker-directory.ts";
import { createMetrics } from "../../src/runtime/metrics.ts";
import { sampleCard } from "../runtime/sample-card.ts";

const workerOf = (inst: string): PoolWorker => ({
  ...{ inst, card: sampleCard(inst), slots: [0], selectable: true },
});
const itl = { count: 4, sum_ms: 80, buckets: [] };

async function shown(metrics: ReturnType<typeof createMetrics>, part: string): Promise<string[]> {
  const lines = (await metrics.text()).split("\n");
  return lines.filter((line) => line.includes(part) && !line.startsWith("#"));
}

it("shows a worker's last latencies while it is registered, and anew when it comes back", async () => {
  const metrics = createMetrics(localRouterTable);
  const workers = workerSeries(metrics, "aggregated");
  const lines = () => shown(metrics, 'worker_id="7"');
  workers.firstToken("7", 0, 250, 1024);
  expect(await lines()).toEqual([]);
  workers.registered(workerOf("7"));
  expect(await lines()).toHaveLength(1);
  workers.firstToken("7", 0, 250, 1024);
  workers.gaps("7", 0, { ...itl, count: 0 });
  expect(await lines()).toHaveLength(3);
  workers.gaps("7", 0, itl);
  const labels = 'worker_id="7",dp_rank="0",worker_type="decode"';
  const last = "dynamo_frontend_worker_last";
  expect(await lines()).toEqual(
    expect.arrayContaining([
      `${last}_time_to_first_token_seconds{${labels}} 0.25`,
      `${last}_input_sequence_tokens{${labels}} 1024`,
      `${last}_inter_token_latency_seconds{${labels}} 0.02`,
    ]),
  );
  workers.removed(workerOf("7"));
  workers.firstToken("7", 0, 500, 1024);
  workers.gaps("7", 0, itl);
  expect(await lines()).toEqual([]);
  workers.registered(workerOf("7"));
  workers.firstToken("7", 0, 500, 2048);
  expect(await lines()).toContain(`${last}_time_to_first_token_seconds{${labels}} 0.5`);
});

it("counts notices by kind and freed bookings by cause, from the first on", async () => {
  const metrics = createMetrics(localRouterTable);
  const series = localSeries(metrics);
  const lines = () => shown(metrics, "{");
  const before = await lines();
  expect(before.filter((line) => /notices_total|freed_total/.test(line))).toEqual([]);
  for (let count = 0; count < 3; count++) series.notices("progress").add();
  series.notices("finished").add();
  series.freed("finished").add();
  series.freed("failed").add();
  expect((await lines()).filter((line) => /notices_total|freed_total/.test(line)).sort()).toEqual([
    'tiergrid_bookings_freed_total{by="failed"} 1',
    'tiergrid_bookings_freed_total{by="finished"} 1',
    'tiergrid_lifecycle_notices_total{kind="finished",state="applied"} 1',
    'tiergrid_lifecycle_notices_total{kind="progress",state="applied"} 3',
  ]);
});
