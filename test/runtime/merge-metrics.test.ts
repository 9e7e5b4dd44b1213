import { expect, it } from "vitest";
import { mergeMetricTexts } from "../../src/runtime/merge-metrics.ts";
import { processMetrics, workerMetrics } from "../../src/runtime/metric-table.ts";
import { createMetrics } from "../../src/runtime/metrics.ts";

const registry = (worker: string) =>
  createMetrics(workerMetrics, [{ prefix: "", labels: { worker } }]);

it("keeps the samples of a family together, and every family once", async () => {
  const [a, b, process] = [registry("0"), registry("1"), createMetrics(processMetrics)];
  a.gauge("dynamo_component_kvstats_active_blocks", { dp_rank: 0 }).set(3);
  b.gauge("dynamo_component_kvstats_active_blocks", { dp_rank: 0 }).set(5);
  process.gauge("tiergrid_bus_connected").set(1);
  const text = mergeMetricTexts(await Promise.all([process, a, b].map((one) => one.text())));
  expect(text).toContain(
    [
      "# TYPE dynamo_component_kvstats_active_blocks gauge",
      'dynamo_component_kvstats_active_blocks{worker="0",dp_rank="0"} 3',
      'dynamo_component_kvstats_active_blocks{worker="1",dp_rank="0"} 5',
      "",
    ].join("\n"),
  );
  expect(text).toContain("\ntiergrid_bus_connected 1\n");
  const heads = [...text.matchAll(/^# HELP (\S+)/gm)].map(([, name]) => name);
  expect(new Set(heads).size).toBe(heads.length);
});

it("leaves a single text as it is, but for blank lines", async () => {
  const text = await registry("0").text();
  const lines = (all: string) => all.split("\n").filter((line) => line !== "");
  expect(lines(mergeMetricTexts([text]))).toEqual(lines(text));
});
