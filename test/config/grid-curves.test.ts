import { expect, it } from "vitest";
import { readGridCurves } from "../../src/config/grid-curves.ts";
import { checkPoolConfig } from "../../src/config/load-pool-config.ts";

const linear = { type: "linear", base_ms: 10, per_token_ms: 0.01 };
const strategy = {
  ttft_min_ms: 10,
  ttft_max_ms: 20,
  ttft_resolution: 1,
  itl_min_ms: 10,
  itl_max_ms: 20,
  itl_resolution: 1,
  agg_pool_mapping: [[0]],
};
const config = configOf({});

function configOf(more: object) {
  const loaded = checkPoolConfig(
    {
      mode: "agg",
      num_agg_pools: 2,
      agg_pool_dynamo_namespaces: ["a0", "a1"],
      agg_pool_selection_strategy: strategy,
      ...more,
    },
    { ownNamespace: "dynamo" },
  );
  if (!loaded.ok) throw new Error(JSON.stringify(loaded.faults));
  return loaded.config;
}

const entry = (namespace: string, more: object = {}) => ({
  ...{ namespace, cost: 1, ttft: linear, itl: linear },
  ...more,
});

function faults(value: unknown, own = config): string[] {
  const read = readGridCurves(value, own);
  return read.ok ? [] : read.faults.map(({ pointer, reason }) => `${pointer} ${reason}`);
}

it("reads curves in the order of the config's pools", () => {
  const table = {
    type: "table",
    points: [
      [1, 2],
      [3, 4],
    ],
  };
  const read = readGridCurves(
    {
      _comment: "p90",
      agg: [entry("a1", { cost: 7, itl: table }), entry("a0")],
      design_isl: 5,
      design_context: 6,
    },
    config,
  );
  if (!read.ok) throw new Error(JSON.stringify(read.faults));
  const curve = { type: "linear", baseMs: 10, perTokenMs: 0.01 };
  expect(read.curves.byRole.get("agg")).toEqual({
    costs: [1, 7],
    ttft: [curve, curve],
    itl: [curve, table],
  });
  expect(read.curves.design).toEqual({ islTokens: 5, contextTokens: 6 });
});

it("takes a cost that is left out from the pool's metadata", () => {
  const metadata = [{ cost_per_second: 2, gpus: 4 }, { cost_per_second: 3 }];
  const priced = configOf({ agg_pool_metadata: metadata });
  const without = { cost: undefined };
  const value = JSON.parse(JSON.stringify({ agg: [entry("a0", without), entry("a1", without)] }));
  const read = readGridCurves(value, priced);
  expect(read.ok && read.curves.byRole.get("agg")?.costs).toEqual([8, 3]);
  expect(faults(value)).toEqual(["/agg/0/cost wrong-type", "/agg/1/cost wrong-type"]);
});

it.each<[string, unknown, readonly string[]]>([
  ["no object", [], [" not-an-object"]],
  ["no list", {}, ["/agg wrong-type"]],
  ["a pool without curves", { agg: [entry("a0")] }, ["/agg required"]],
  ["no namespace", { agg: [{}, entry("a0"), entry("a1")] }, ["/agg/0 wrong-type"]],
  [
    "a pool twice",
    { agg: [entry("a0"), entry("a1"), entry("a1")] },
    ["/agg/2/namespace duplicate-namespace"],
  ],
  [
    "an unknown pool",
    { agg: [entry("a0"), entry("a1"), entry("b")] },
    ["/agg/2/namespace unknown-pool"],
  ],
  ["an unknown role", { agg: [entry("a0"), entry("a1")], prefil: [] }, ["/prefil unknown-key"]],
  [
    "half a design",
    { agg: [entry("a0"), entry("a1")], design_isl: 1 },
    ["/design_context wrong-type"],
  ],
])("refuses %s", (_name, value, expected) => {
  expect(faults(value)).toEqual(expected);
});

it.each<[string, object, string]>([
  ["an unknown key", { costs: 1 }, "costs unknown-key"],
  ["a negative cost", { cost: -1 }, "cost not-allowed"],
  ["a cost as text", { cost: "1" }, "cost wrong-type"],
  ["no curve", { itl: 5 }, "itl wrong-type"],
  ["an unknown form", { itl: { type: "poly" } }, "itl/type not-allowed"],
  ["an unknown key in a curve", { itl: { ...linear, slope: 1 } }, "itl/slope unknown-key"],
  ["a slope below 0", { itl: { ...linear, per_token_ms: -1 } }, "itl/per_token_ms not-allowed"],
  ["no points", { itl: { type: "table", points: [] } }, "itl/points wrong-type"],
  ["a point of one", { itl: { type: "table", points: [[1]] } }, "itl/points/0 wrong-type"],
  [
    "points that do not ascend",
    {
      itl: {
        type: "table",
        points: [
          [1, 1],
          [1, 2],
        ],
      },
    },
    "itl/points/1/0 not-ascending",
  ],
])("refuses %s", (_name, more, expected) => {
  expect(faults({ agg: [entry("a0"), entry("a1", more)] })).toEqual([`/agg/1/${expected}`]);
});
