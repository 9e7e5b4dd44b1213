import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { expect, it } from "vitest";
import { TiergridError } from "../../src/base/errors.ts";
import type { ConfigFault } from "../../src/config/config-fault.ts";
import { configBytesMax, parseConfigText, yamlAliasesMax } from "../../src/config/config-text.ts";
import {
  checkPoolConfig,
  loadPoolConfigFile,
  loadPoolConfigText,
  type PoolConfigResult,
  poolConfigError,
} from "../../src/config/load-pool-config.ts";
import { type PoolConfig, rolePools } from "../../src/config/pool-config.ts";
import { type Role, selectPool } from "../../src/core/sla-grid.ts";

interface Place {
  pointer: string;
  reason: string;
}
interface InvalidCase {
  name: string;
  text?: string;
  config?: unknown;
  expectedErrors: Place[];
}
interface Selection {
  kind: Role;
  in: Partial<
    Record<"isl" | "context_length" | "ttft_target" | "itl_target" | "priority", number | null>
  >;
  cell: number[];
  grid_pool: number;
  pool: number;
  namespace: string;
  reason: string;
}
interface ExpectedFile {
  version: string;
  warnings: Place[];
  normalized: unknown;
  selections: Selection[];
}
const goldenUrl = new URL("../golden/", import.meta.url);
const readGolden = async (name: string): Promise<unknown> =>
  JSON.parse(await readFile(new URL(name, goldenUrl), "utf8"));
const invalid = (await readGolden("pool-config-invalid.json")) as {
  reasons: string[];
  cases: InvalidCase[];
};
const warned = (await readGolden("pool-config-warnings.json")) as {
  cases: { name: string; config: unknown; expectedWarnings: Place[] }[];
};
const expected = (await readGolden("pool-configs-expected.json")) as {
  files: Record<string, ExpectedFile>;
};

const options = { ownNamespace: "dynamo" };
const order = (a: Place, b: Place) =>
  `${a.pointer} ${a.reason}` < `${b.pointer} ${b.reason}` ? -1 : 1;
const placesOf = (faults: readonly ConfigFault[]): Place[] =>
  faults.map(({ pointer, reason }) => ({ pointer, reason }));
const faultsOf = (result: PoolConfigResult): readonly ConfigFault[] =>
  result.ok ? [] : result.faults;
function configOf(result: PoolConfigResult): PoolConfig {
  if (!result.ok) throw poolConfigError(result.faults);
  return result.config;
}

it("has golden cases", () => {
  expect(invalid.cases).toHaveLength(154);
  expect(warned.cases).toHaveLength(15);
  expect(Object.keys(expected.files)).toHaveLength(6);
});

for (const { name, text, config, expectedErrors } of invalid.cases) {
  it(`reports exactly the faults of an invalid config: ${name}`, () => {
    const result = loadPoolConfigText(text ?? JSON.stringify(config), "json", options);
    const places = placesOf(faultsOf(result));
    expect([...places].sort(order)).toEqual([...expectedErrors].sort(order));
    expect(places).toEqual([...places].sort((a, b) => (a.pointer < b.pointer ? -1 : 1)));
    for (const { message } of faultsOf(result)) expect(message).not.toBe("");
  });
}

for (const { name, config, expectedWarnings } of warned.cases) {
  it(`warns about a valid config: ${name}`, () => {
    const result = checkPoolConfig(config, options);
    expect(faultsOf(result)).toEqual([]);
    const warnings = result.ok ? placesOf(result.warnings) : [];
    expect(warnings).toEqual([...expectedWarnings].sort(order));
    const strict = checkPoolConfig(config, { ...options, strict: true });
    expect(placesOf(faultsOf(strict))).toEqual(
      warnings.filter(({ reason }) => reason !== "deprecated-alias"),
    );
  });
}

for (const [name, file] of Object.entries(expected.files)) {
  const path = fileURLToPath(new URL(`pool-configs-valid/${name}`, goldenUrl));

  it(`loads ${name} to its normal form, version and warnings`, async () => {
    const result = await loadPoolConfigFile(path, options);
    const config = configOf(result);
    expect(config.normal).toEqual(file.normalized);
    expect(JSON.stringify(config.normal)).toBe(JSON.stringify(file.normalized));
    expect(config.version).toBe(file.version);
    expect(result.ok && placesOf(result.warnings)).toEqual([...file.warnings].sort(order));
  });

  it(`selects pools with ${name} as expected`, async () => {
    const config = configOf(await loadPoolConfigFile(path, options));
    for (const selection of file.selections) {
      const { grid, pools } = rolePools(config, selection.kind);
      const input = selection.in;
      const chosen = selectPool(grid, {
        tokens: input.isl ?? input.context_length ?? 0,
        ttft: { valueMs: input.ttft_target ?? null, source: "default" },
        itl: { valueMs: input.itl_target ?? null, source: "default" },
        priority: input.priority ?? null,
      });
      expect(chosen).toMatchObject({
        cell: selection.cell,
        gridPool: selection.grid_pool,
        pool: selection.pool,
        reason: selection.reason,
      });
      expect(pools[chosen.pool]?.namespace).toBe(selection.namespace);
    }
  });

  it(`loads the normal form of ${name} to the same config, without warnings about spelling`, () => {
    const again = checkPoolConfig(file.normalized, options);
    expect(configOf(again).version).toBe(file.version);
    expect(configOf(again).normal).toEqual(file.normalized);
  });
}

it("freezes the config to the last cell", async () => {
  const { normalized } = expected.files["agg-3d.json"] as ExpectedFile;
  const config = configOf(checkPoolConfig(normalized, options));
  const unfrozen: string[] = [];
  const visit = (value: unknown, at: string): void => {
    if (typeof value !== "object" || value === null) return;
    if (!Object.isFrozen(value)) unfrozen.push(at);
    for (const [key, child] of Object.entries(value)) visit(child, `${at}/${key}`);
  };
  visit(config, "");
  expect(unfrozen).toEqual([]);
});

it("has a JSON file for every golden name and no other", async () => {
  const names = await readdir(new URL("pool-configs-valid/", goldenUrl));
  expect(names.sort()).toEqual(Object.keys(expected.files).sort());
});

const aggYaml = `
# A comment.
mode: agg
num_agg_pools: 2
agg_pool_dynamo_namespaces: [a0, a1]
agg_pool_selection_strategy:
  ttft_min_ms: 50
  ttft_max_ms: 1050
  ttft_resolution: 2
  itl_min_ms: 10
  itl_max_ms: 90
  itl_resolution: 2
  agg_pool_mapping:
    - &row [0, 1]
    - *row
`;

it("loads YAML to the same version as the same JSON", () => {
  const fromYaml = configOf(loadPoolConfigText(aggYaml, "yaml", options));
  const json = JSON.stringify({
    mode: "agg",
    num_agg_pools: 2,
    agg_pool_dynamo_namespaces: ["a0", "a1"],
    agg_pool_selection_strategy: {
      ttft_min_ms: 50,
      ttft_max_ms: 1050,
      ttft_resolution: 2,
      itl_min_ms: 10,
      itl_max_ms: 90,
      itl_resolution: 2,
      agg_pool_mapping: [
        [0, 1],
        [0, 1],
      ],
    },
  });
  expect(fromYaml.version).toBe(configOf(loadPoolConfigText(json, "json", options)).version);
});

it("points into YAML as into JSON", () => {
  const wrong = aggYaml.replace("[0, 1]", "[0, 7]").replace("itl_max_ms: 90", "itl_max_ms: .inf");
  expect(placesOf(faultsOf(loadPoolConfigText(wrong, "yaml", options)))).toEqual([
    {
      pointer: "/agg_pool_selection_strategy/agg_pool_mapping/0/1",
      reason: "pool-index-out-of-range",
    },
    {
      pointer: "/agg_pool_selection_strategy/agg_pool_mapping/1/1",
      reason: "pool-index-out-of-range",
    },
    { pointer: "/agg_pool_selection_strategy/itl_max_ms", reason: "not-finite" },
  ]);
});

it("refuses a key given twice, in both formats, with its line", () => {
  for (const [format, text] of [
    ["json", '{"mode":"agg",\n"mode":"disagg"}'],
    ["yaml", "mode: agg\nmode: disagg"],
  ] as const) {
    const [fault, ...more] = faultsOf(loadPoolConfigText(text, format, options));
    expect(fault).toMatchObject({ pointer: "", reason: "duplicate-key" });
    expect(fault?.message).toContain("line 2");
    expect(more).toEqual([]);
  }
});

it("reads any JSON text as JSON.parse does, without inventing repeated keys", () => {
  fc.assert(
    fc.property(fc.json(), (text) => {
      expect(parseConfigText(text, "json")).toEqual({ ok: true, value: JSON.parse(text) });
    }),
  );
});

it("expands as many YAML aliases as allowed and not one more", () => {
  const withAliases = (count: number) =>
    `_a: &a [1]\n_b: [${Array(count).fill("*a").join(", ")}]\n${aggYaml}`;
  // The mapping's own row alias counts too.
  expect(faultsOf(loadPoolConfigText(withAliases(yamlAliasesMax - 1), "yaml", options))).toEqual(
    [],
  );
  const bomb = `_a: &a [x, x]\n${[..."bcdefghij"]
    .map((name, i) => `_${name}: &${name} [${Array(9).fill(`*${"abcdefghi"[i]}`).join(", ")}]`)
    .join("\n")}\n${aggYaml}`;
  expect(placesOf(faultsOf(loadPoolConfigText(bomb, "yaml", options)))).toEqual([
    { pointer: "", reason: "invalid-yaml" },
  ]);
});

it("answers hostile texts with one fault and no exception", () => {
  const deep = "[".repeat(20_000);
  for (const [format, text, reason] of [
    ["yaml", deep, "invalid-yaml"],
    ["json", deep, "invalid-json"],
    ["yaml", "a: !!js/function 'x'", "invalid-yaml"],
    ["yaml", "? [a, b]\n: 1", "invalid-yaml"],
    ["yaml", "--- {}\n--- {}", "invalid-yaml"],
    ["yaml", "", "not-an-object"],
    ["json", "7", "not-an-object"],
  ] as const) {
    const faults = faultsOf(loadPoolConfigText(text, format, options));
    expect(placesOf(faults), text.slice(0, 20)).toEqual([{ pointer: "", reason }]);
  }
});

it("says where a key belongs that stands beside the strategies", async () => {
  const demo = JSON.parse(await readFile("pool-configs/demo.json", "utf8")) as object;
  const text = JSON.stringify({ ...demo, selection: "live", isl_min: 1, itl_max_ms: 2 });
  const faults = faultsOf(loadPoolConfigText(text, "json", options));
  const [prefill, decode] = ["prefill", "decode"].map((role) => `${role}_pool_selection_strategy`);
  expect(faults.map(({ message }) => message)).toEqual([
    `unknown key "isl_min" (it belongs in ${prefill})`,
    `unknown key "itl_max_ms" (it belongs in ${decode})`,
    `unknown key "selection" (it belongs in ${prefill} or ${decode})`,
  ]);
});

it("survives an alias inside its own anchor", () => {
  const text = aggYaml.replace(/agg_pool_mapping:.*/s, "agg_pool_mapping: &m [*m, [0, 1]]\n");
  expect(placesOf(faultsOf(loadPoolConfigText(text, "yaml", options)))).toEqual([
    { pointer: "/agg_pool_selection_strategy/agg_pool_mapping", reason: "mapping-depth" },
  ]);
});

it("ignores keys named like object built-ins only when they are comments", () => {
  const text = `{"__proto__":{"mode":"agg"},"constructor":1,${JSON.stringify(
    expected.files["agg-2d.json"]?.normalized,
  ).slice(1)}`;
  expect(placesOf(faultsOf(loadPoolConfigText(text, "json", options)))).toEqual([
    { pointer: "/constructor", reason: "unknown-key" },
  ]);
});

it("reports files that are missing, too large, not UTF-8 or not files", async () => {
  const folder = await mkdtemp(join(tmpdir(), "pool-config-"));
  try {
    const load = async (name: string, content?: string | Buffer) => {
      const path = join(folder, name);
      if (content !== undefined) await writeFile(path, content);
      return placesOf(faultsOf(await loadPoolConfigFile(path, options)));
    };
    expect(await load("none.json")).toEqual([{ pointer: "", reason: "file-not-found" }]);
    expect(await load(".")).toEqual([{ pointer: "", reason: "file-unreadable" }]);
    expect(await load("latin.json", Buffer.from([0x7b, 0xe9]))).toEqual([
      { pointer: "", reason: "not-utf8" },
    ]);
    const json = JSON.stringify(expected.files["agg-2d.json"]?.normalized);
    expect(await load("bom.json", `\ufeff${json}`)).toEqual([]);
    expect(await load("max.json", json.padEnd(configBytesMax))).toEqual([]);
    expect(await load("max-plus-one.json", json.padEnd(configBytesMax + 1))).toEqual([
      { pointer: "", reason: "file-too-large" },
    ]);
    expect(await load("grid.yml", aggYaml)).toEqual([]);
  } finally {
    await rm(folder, { recursive: true });
  }
});

it("names the nearest known key", () => {
  const messages = (config: unknown) =>
    faultsOf(checkPoolConfig(config, options)).map(({ message }) => message);
  expect(messages({ ...agg2d(), enable_priority_retries: true })).toEqual([
    'unknown key "enable_priority_retries" (did you mean enable_priority_retry?)',
  ]);
});

it("says where a JSON text stops being JSON", () => {
  for (const [text, at] of [
    ['{\n "mode": agg\n}', "line 2, column 10"],
    ['{"prefill_pool_mapping": [[0, 1],\n  [0, 1,]\n]}', "line 2, column 9"],
    ['{"a": 1,\n}', "line 2, column 1"],
    ['{"a": 1\n "b": 2}', "line 2, column 2"],
    ['{"a": "x', "line 1, column 9"],
    ["{}\n}", "line 2, column 1"],
    ["", "line 1, column 1"],
  ] as const) {
    const [fault] = faultsOf(loadPoolConfigText(text, "json", options));
    expect(fault?.message, text).toContain(`not JSON at ${at}: `);
  }
});

it("puts every fault into one error for a process that cannot start", () => {
  const error = poolConfigError(
    faultsOf(checkPoolConfig({ ...agg2d(), typo: 1, num_agg_pools: 9 }, options)),
  );
  expect(error).toBeInstanceOf(TiergridError);
  expect(error.code).toBe("config_invalid");
  expect(error.message).toContain("/num_agg_pools: ");
  expect(error.message).toContain("/typo: ");
});

function agg2d(): Record<string, unknown> {
  return expected.files["agg-2d.json"]?.normalized as Record<string, unknown>;
}

it("throws at no value, builds only what selects a pool, and repeats itself", () => {
  const keys = Object.keys(agg2d());
  const strategyKeys = Object.keys(agg2d()["agg_pool_selection_strategy"] as object);
  const value = fc.oneof(
    fc.jsonValue(),
    fc.integer({ min: -1, max: 4 }),
    fc.constant(Number.POSITIVE_INFINITY),
    fc.array(fc.array(fc.integer({ min: -1, max: 3 }), { maxLength: 4 }), { maxLength: 4 }),
  );
  const edits = fc.record({
    top: fc.dictionary(fc.constantFrom(...keys, "__proto__", "toString"), value, { maxKeys: 2 }),
    strategy: fc.dictionary(fc.constantFrom(...strategyKeys, "isl_min", "ttft_min"), value, {
      maxKeys: 3,
    }),
  });
  fc.assert(
    fc.property(edits, fc.double(), ({ top, strategy }, target) => {
      const base = agg2d()["agg_pool_selection_strategy"] as object;
      const file = { ...agg2d(), agg_pool_selection_strategy: { ...base, ...strategy }, ...top };
      const result = checkPoolConfig(file, options);
      expect(checkPoolConfig(file, options)).toEqual(result);
      if (!result.ok) {
        expect(result.faults.length).toBeGreaterThan(0);
        return;
      }
      const { grid, pools } = rolePools(result.config, "agg");
      const given = { valueMs: target, source: "default" };
      const { pool } = selectPool(grid, { tokens: 1, ttft: given, itl: given, priority: null });
      expect(pools[pool]).toBeDefined();
    }),
    { numRuns: 300 },
  );
});
