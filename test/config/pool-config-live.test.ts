import { readFileSync } from "node:fs";
import { Ajv2020 } from "ajv/dist/2020.js";
import { expect, it } from "vitest";
import type { ConfigFault } from "../../src/config/config-fault.ts";
import { checkPoolConfig } from "../../src/config/load-pool-config.ts";
import { type PoolConfig, rolePools } from "../../src/config/pool-config.ts";

type Json = Record<string, unknown>;

/** Two pools, 2 x 2 cells; `top` and `strategy` are laid over it. */
function fileOf(strategy: Json = {}, top: Json = {}): Json {
  return {
    mode: "agg",
    num_agg_pools: 3,
    agg_pool_dynamo_namespaces: ["a0", "a1", "a2"],
    agg_pool_selection_strategy: {
      ...{ ttft_min_ms: 0, ttft_max_ms: 1000, ttft_resolution: 2 },
      ...{ itl_min_ms: 0, itl_max_ms: 100, itl_resolution: 2 },
      agg_pool_mapping: [
        [0, 1],
        [1, 2],
      ],
      ...strategy,
    },
    ...top,
  };
}

function check(file: Json): { faults: readonly ConfigFault[]; warnings: readonly ConfigFault[] } {
  const result = checkPoolConfig(file, { ownNamespace: "dynamo" });
  return result.ok ? { faults: [], warnings: result.warnings } : { ...result, warnings: [] };
}

function configOf(file: Json): PoolConfig {
  const result = checkPoolConfig(file, { ownNamespace: "dynamo" });
  if (!result.ok) throw new Error(JSON.stringify(result.faults));
  return result.config;
}

const at = "/agg_pool_selection_strategy";
const cells = (...list: unknown[]) => [
  [list[0] ?? [], list[1] ?? []],
  [list[2] ?? [], list[3] ?? []],
];

/** [what, strategy keys, top-level keys, pointer, reason, words of the message] */
const wrong: readonly [string, Json, Json, string, string, string][] = [
  ["an unknown selection", { selection: "fast" }, {}, `${at}/selection`, "not-allowed", "live"],
  ["a selection of a wrong type", { selection: 1 }, {}, `${at}/selection`, "wrong-type", "string"],
  ["live that is no object", { live: [] }, {}, `${at}/live`, "wrong-type", "object"],
  [
    "an unknown key of live",
    { live: { quote_deadline: 3 } },
    {},
    `${at}/live/quote_deadline`,
    "unknown-key",
    "did you mean quote_deadline_ms?",
  ],
  [
    "a deadline of 0",
    { live: { quote_deadline_ms: 0 } },
    {},
    `${at}/live/quote_deadline_ms`,
    "not-positive",
    "got 0",
  ],
  [
    "a deadline of 1001",
    { live: { quote_deadline_ms: 1001 } },
    {},
    `${at}/live/quote_deadline_ms`,
    "above-maximum",
    "at most 1000, got 1001",
  ],
  [
    "a late rule that there is not",
    { live: { late_rule: "least-late" } },
    {},
    `${at}/live/late_rule`,
    "not-allowed",
    "least_late",
  ],
  [
    "a latency share above 1",
    { live: { latency_share: 1.5 } },
    {},
    `${at}/live/latency_share`,
    "above-maximum",
    "got 1.5",
  ],
  ["refuse as text", { live: { refuse: "yes" } }, {}, `${at}/live/refuse`, "wrong-type", '"yes"'],
  [
    "fallbacks without lists in the cells",
    {
      agg_pool_fallbacks: [
        [0, 1],
        [1, 2],
      ],
    },
    {},
    `${at}/agg_pool_fallbacks`,
    "mapping-depth",
    "nested like the mapping",
  ],
  [
    "fallbacks one level too deep",
    { agg_pool_fallbacks: cells([[1]]) },
    {},
    `${at}/agg_pool_fallbacks`,
    "mapping-depth",
    "nested like the mapping",
  ],
  [
    "a row of fallbacks too few",
    { agg_pool_fallbacks: cells().slice(1) },
    {},
    `${at}/agg_pool_fallbacks`,
    "rows-mismatch",
    "rows (1)",
  ],
  [
    "a cell of fallbacks too many",
    {
      agg_pool_fallbacks: [
        [[], [], []],
        [[], []],
      ],
    },
    {},
    `${at}/agg_pool_fallbacks/0`,
    "row-length-mismatch",
    "(3)",
  ],
  [
    "a fallback that is no pool",
    { agg_pool_fallbacks: cells([1, 3]) },
    {},
    `${at}/agg_pool_fallbacks/0/0/1`,
    "pool-index-out-of-range",
    "0 to 2",
  ],
  [
    "a cell's own pool as its fallback",
    { agg_pool_fallbacks: cells([], [0, 1]) },
    {},
    `${at}/agg_pool_fallbacks/0/1/1`,
    "fallback-is-own-pool",
    "pool 1",
  ],
  [
    "a fallback named twice",
    { agg_pool_fallbacks: cells([], [0, 2, 0]) },
    {},
    `${at}/agg_pool_fallbacks/0/1/2`,
    "duplicate-fallback",
    "pool 0",
  ],
  [
    "metadata of too few pools",
    {},
    { agg_pool_metadata: [{}, {}] },
    "/agg_pool_metadata",
    "metadata-length",
    "length (2)",
  ],
  [
    "metadata that is no list",
    {},
    { agg_pool_metadata: { gpus: 2 } },
    "/agg_pool_metadata",
    "wrong-type",
    "array",
  ],
  [
    "an unknown key of metadata",
    {},
    { agg_pool_metadata: [{}, { gpu: 2 }, {}] },
    "/agg_pool_metadata/1/gpu",
    "unknown-key",
    "did you mean gpus?",
  ],
  [
    "a worker without GPUs",
    {},
    { agg_pool_metadata: [{}, { gpus: 0 }, {}] },
    "/agg_pool_metadata/1/gpus",
    "not-positive",
    "got 0",
  ],
  [
    "a cost of nothing",
    {},
    { agg_pool_metadata: [1, 0, 2].map((cost_per_second) => ({ cost_per_second })) },
    "/agg_pool_metadata/1/cost_per_second",
    "not-positive",
    "got 0",
  ],
  [
    "a pool without a cost among others",
    {},
    { agg_pool_metadata: [{ cost_per_second: 1 }, {}, { cost_per_second: 2 }] },
    "/agg_pool_metadata/1/cost_per_second",
    "cost-incomplete",
    "for all pools or for none",
  ],
  [
    "a label of 65 characters",
    {},
    { agg_pool_metadata: [{ label: "x".repeat(65) }, {}, {}] },
    "/agg_pool_metadata/0/label",
    "too-long",
    "at most 64 characters, got 65",
  ],
];

for (const [what, strategy, top, pointer, reason, words] of wrong) {
  it(`reports ${what}, and nothing else`, () => {
    const { faults } = check(fileOf(strategy, top));
    expect(faults.map((fault) => [fault.pointer, fault.reason])).toEqual([[pointer, reason]]);
    expect(faults[0]?.message).toContain(words);
  });
}

it("takes every limit at its edge", () => {
  for (const quote_deadline_ms of [1, 1000]) {
    expect(check(fileOf({ selection: "live", live: { quote_deadline_ms } })).faults).toEqual([]);
  }
  const agg_pool_metadata = [{ gpus: 1 }, { label: "x".repeat(64) }, {}];
  expect(check(fileOf({}, { agg_pool_metadata })).faults).toEqual([]);
});

it("leaves out of the normal form what is not used, so that the version stays", () => {
  const { version } = configOf(fileOf());
  for (const unused of [{ selection: "grid" }, { live: { refuse: true } }]) {
    expect(configOf(fileOf(unused)).version).toBe(version);
  }
  expect(configOf(fileOf({}, { agg_pool_metadata: [{}, {}, {}] })).version).toBe(version);
  const used = [
    fileOf({ selection: "checked" }),
    fileOf({ selection: "live" }),
    fileOf({ selection: "live", live: { refuse: true } }),
    fileOf({ agg_pool_fallbacks: cells() }),
    fileOf({}, { agg_pool_metadata: [{ gpus: 2 }, {}, {}] }),
  ];
  expect(new Set([version, ...used.map((file) => configOf(file).version)]).size).toBe(6);
});

it("writes every default of what is used into the normal form, which loads to itself", () => {
  const agg_pool_metadata = [1, 2, 3].map((cost) => ({ cost_per_second: cost, gpus: 2 }));
  const agg_pool_fallbacks = cells([1], [0, 2], [], [1]);
  const { normal, version } = configOf(
    fileOf({ selection: "live", agg_pool_fallbacks }, { agg_pool_metadata }),
  );
  expect(normal["agg_pool_metadata"]).toEqual(agg_pool_metadata);
  expect(normal["agg_pool_selection_strategy"]).toMatchObject({
    selection: "live",
    live: { quote_deadline_ms: 20, refuse: false, late_rule: "cheapest", latency_share: 0.1 },
    agg_pool_fallbacks,
  });
  const again = configOf(normal);
  expect([again.normal, again.version]).toEqual([normal, version]);
});

it("gives each cell with fallbacks a plan of its own, with spill off", () => {
  const config = configOf(
    fileOf({ agg_pool_fallbacks: cells([1], [0, 2], [], [1]) }, { enable_priority_retry: true }),
  );
  const { cellPlans, plans } = rolePools(config, "agg");
  expect(cellPlans).toEqual([
    { selected: 0, retryPools: [], spillPools: [1], hopsMax: 1 },
    { selected: 1, retryPools: [0], spillPools: [0, 2], hopsMax: 2 },
    { selected: 1, retryPools: [0], spillPools: [], hopsMax: 0 },
    { selected: 2, retryPools: [1, 0], spillPools: [1], hopsMax: 1 },
  ]);
  expect(plans.map(({ spillPools }) => spillPools)).toEqual([[], [], []]);
});

it("nests fallbacks by three axes too", () => {
  const isl = { isl_min: 0, isl_max: 10, isl_resolution: 1 };
  const agg_pool_mapping = [
    [
      [0, 1],
      [1, 2],
    ],
  ];
  const strategy = { ...isl, agg_pool_mapping, agg_pool_fallbacks: [cells([1], [0])] };
  const config = configOf(fileOf(strategy));
  expect(rolePools(config, "agg").cellPlans?.map(({ spillPools }) => spillPools)).toEqual([
    [1],
    [0],
    [],
    [],
  ]);
  expect(config.normal["agg_pool_selection_strategy"]).toMatchObject(strategy);
  const flat = check(fileOf({ ...strategy, agg_pool_fallbacks: cells([2], [0], [0], [0]) }));
  expect(flat.faults.map(({ reason }) => reason)).toEqual(["mapping-depth"]);
});

it("warns about settings that cannot act, and about pools that nothing reaches", () => {
  const mapping = { agg_pool_mapping: cells(0, 0, 0, 1) };
  const reasons = (strategy: Json) =>
    check(fileOf({ ...mapping, ...strategy })).warnings.map(({ reason }) => reason);
  expect(reasons({})).toEqual(["unreachable-pool"]);
  expect(reasons({ agg_pool_fallbacks: cells([2]) })).toEqual([]);
  expect(reasons({ selection: "checked" })).toEqual([]);
  expect(reasons({ live: {} })).toEqual(["unreachable-pool", "live-has-no-effect"]);
  const other = check(fileOf({}, { prefill_pool_metadata: 3 }));
  expect(other.warnings.map(({ pointer, reason }) => [pointer, reason])).toEqual([
    ["/prefill_pool_metadata", "unused-field"],
  ]);
});

it("describes every key of the schema, with examples and defaults that are valid themselves", () => {
  const schema = JSON.parse(
    readFileSync(new URL("../../schemas/pool-config.schema.json", import.meta.url), "utf8"),
  ) as { $id: string; $defs: Record<string, SchemaPart> };
  const ajv = new Ajv2020({ strict: true, strictRequired: false });
  ajv.addSchema(schema);
  let checked = 0;
  const visit = (part: SchemaPart, pointer: string): void => {
    const values = [...(part.examples ?? []), ...("default" in part ? [part.default] : [])];
    for (const value of values) {
      checked++;
      expect(ajv.validate(`${schema.$id}#${pointer}`, value), pointer).toBe(true);
    }
    for (const [key, child] of Object.entries(part.properties ?? {})) {
      if (child === true || key === "$schema") continue;
      const referred = child.$ref ? schema.$defs[child.$ref.slice("#/$defs/".length)] : child;
      const described = child.description ?? referred?.description ?? "";
      if (!key.endsWith("_selection_strategy")) expect(described, `${pointer} ${key}`).not.toBe("");
      visit(child, `${pointer}/properties/${key}`);
    }
  };
  for (const [name, part] of Object.entries(schema.$defs)) visit(part, `/$defs/${name}`);
  expect(checked).toBeGreaterThan(20);
});

interface SchemaPart {
  readonly description?: string;
  readonly examples?: readonly unknown[];
  readonly default?: unknown;
  readonly $ref?: string;
  readonly properties?: Readonly<Record<string, SchemaPart | true>>;
}
