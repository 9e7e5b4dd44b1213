import { readFileSync } from "node:fs";
import fc from "fast-check";
import { expect, it } from "vitest";
import {
  choiceSettings,
  defaultKvRouterConfig,
  fileKeyOf,
  type KvRouterConfig,
  loadKvRouterConfig,
  parseRouterConfigOverride,
  settingsOfOptions,
  subscribesToKvEvents,
} from "../../src/config/kv-router-config.ts";
import { kvRouterSchemaUrl } from "../../src/config/kv-router-schema.ts";
import { unsupportedFields } from "../../src/config/kv-router-support.ts";
import golden from "../golden/kv-router-config.json" with { type: "json" };

interface GoldenCase {
  readonly name: string;
  readonly input: Readonly<Record<string, unknown>>;
  readonly message_must_mention?: readonly string[];
  readonly expected: {
    readonly ok: boolean;
    readonly differs_from_defaults?: Readonly<Record<string, unknown>>;
    readonly subscribes_to_kv_events?: boolean;
    readonly error_fields?: readonly string[];
    readonly normalized?: Readonly<Record<string, unknown>>;
  };
}

function byFileKey(config: object): Record<string, unknown> {
  return Object.fromEntries(Object.entries(config).map(([key, value]) => [fileKeyOf(key), value]));
}

function differences(config: KvRouterConfig): Record<string, unknown> {
  const defaults = byFileKey(defaultKvRouterConfig);
  const entries = Object.entries(byFileKey(config));
  return Object.fromEntries(entries.filter(([key, value]) => value !== defaults[key]));
}

function loaded(...sources: readonly unknown[]): KvRouterConfig {
  const result = loadKvRouterConfig(sources);
  if (!result.ok) throw new Error(JSON.stringify(result.faults));
  return result.config;
}

function faultsOf(...sources: readonly unknown[]): string[] {
  const result = loadKvRouterConfig(sources);
  return result.ok ? [] : result.faults.map(({ pointer, message }) => `${pointer} ${message}`);
}

function expectFaults(
  faults: readonly { readonly pointer: string; readonly message: string }[],
  { expected, message_must_mention }: GoldenCase,
): void {
  const fields = new Set(faults.map(({ pointer }) => pointer.slice(1)));
  expect([...fields].sort()).toEqual([...(expected.error_fields ?? [])].sort());
  const text = faults.map(({ pointer, message }) => `${pointer} ${message}`).join("\n");
  for (const word of message_must_mention ?? []) expect(text).toContain(word);
}

for (const one of golden.config as readonly GoldenCase[]) {
  it(`validates a config as the vectors say: ${one.name}`, () => {
    const result = loadKvRouterConfig([one.input]);
    expect(result.ok).toBe(one.expected.ok);
    if (!result.ok) {
      expectFaults(result.faults, one);
      return;
    }
    expect(differences(result.config)).toEqual(one.expected.differs_from_defaults);
    if (one.expected.subscribes_to_kv_events === undefined) return;
    expect(subscribesToKvEvents(result.config)).toBe(one.expected.subscribes_to_kv_events);
  });
}

for (const one of golden.request_override as readonly GoldenCase[]) {
  it(`validates a request override as the vectors say: ${one.name}`, () => {
    const result = parseRouterConfigOverride(one.input);
    expect(result.ok).toBe(one.expected.ok);
    if (result.ok) expect(byFileKey(result.override)).toEqual(one.expected.normalized);
    else expectFaults(result.faults, one);
  });
}

it("has the defaults of the vectors and of the schema", () => {
  expect(byFileKey(defaultKvRouterConfig)).toMatchObject(golden.defaults);
  const schema = JSON.parse(readFileSync(kvRouterSchemaUrl, "utf8")) as {
    properties: Record<string, { default?: unknown } | true>;
  };
  const defaults = Object.entries(schema.properties).flatMap(([key, property]) =>
    property === true || property.default === undefined ? [] : [[key, property.default]],
  );
  expect(byFileKey(defaultKvRouterConfig)).toEqual(Object.fromEntries(defaults));
});

it("maps the older weight within its source before merging", () => {
  const file = { overlap_score_weight: 0 };
  expect(loaded(file, { prefill_load_scale: 3 })).toMatchObject({
    overlapScoreCredit: 0,
    prefillLoadScale: 3,
  });
  expect(loaded(file, { overlap_score_weight: 2, overlap_score_credit: 1 })).toMatchObject({
    overlapScoreCredit: 1,
    prefillLoadScale: 2,
  });
});

it("takes options of flags and environment as sources, the last one first", () => {
  const file = { router_temperature: 1, prefill_load_scale: 5, overlap_score_credit: 0.5 };
  const environment = { overlapScoreWeight: null, routerTemperature: 2, prefillLoadScale: 6 };
  const flags = { routerTemperature: 3, routerSnapshotThreshold: null, httpPort: 80 };
  const sources = [file, settingsOfOptions(environment), settingsOfOptions(flags)];
  expect(loaded(...sources)).toMatchObject({
    routerTemperature: 3,
    prefillLoadScale: 6,
    overlapScoreCredit: 0.5,
    routerSnapshotThreshold: null,
  });
  expect(loaded(settingsOfOptions({ overlapScoreWeight: 0 })).overlapScoreCredit).toBe(0);
});

it("names the nearest known key, the value and its type", () => {
  expect(faultsOf({ router_temprature: 1 })).toEqual([
    "/router_temprature unknown key router_temprature (did you mean router_temperature?)",
  ]);
  expect(faultsOf({ router_temperature: Number.POSITIVE_INFINITY })).toEqual([
    "/router_temperature must be number, got number Infinity",
  ]);
  expect(faultsOf("text")).toEqual([' must be object, got string "text"']);
  expect(faultsOf(null)).toEqual([" must be object, got null"]);
});

it("accepts comments, and prototype names are no way past the checks", () => {
  expect(loaded({ _note: "ours", $schema: "x" })).toEqual(defaultKvRouterConfig);
  expect(faultsOf({ constructor: 1 })).toHaveLength(1);
  const inherited = JSON.parse('{"__proto__": {"router_temperature": -1}}') as unknown;
  expect(loaded(inherited)).toEqual(defaultKvRouterConfig);
});

it("orders queue depth rules and reports each fault with its place", () => {
  const key = "router_queue_by_incoming_missing_isl";
  const rule = (floor: number, depth: number) => ({
    missing_cache_tokens_floor: floor,
    max_queue_depth: depth,
  });
  expect(loaded({ [key]: [rule(0, 8), rule(100, 2)] }).routerQueueByIncomingMissingIsl).toEqual([
    { missingCacheTokensFloor: 0, maxQueueDepth: 8 },
    { missingCacheTokensFloor: 100, maxQueueDepth: 2 },
  ]);
  expect(faultsOf({ [key]: [rule(1, 8), rule(1, 0)] })).toEqual([
    `/${key}/0/missing_cache_tokens_floor the first floor must be 0, got 1`,
    `/${key}/1/max_queue_depth must be >= 1, got number 0`,
    `/${key}/1/missing_cache_tokens_floor must be > 1, got 1`,
  ]);
  expect(faultsOf({ [key]: [{}] })).toHaveLength(2);
});

it("warns of settings without effect beside the others", () => {
  const result = loadKvRouterConfig([{ router_ttl_secs: 5, router_reset_states: true }]);
  const pointers = result.ok ? result.warnings.map(({ pointer }) => pointer) : [];
  expect(pointers).toEqual(["/router_reset_states", "/router_ttl_secs"]);
});

it("warns of queue settings without a queue", () => {
  const warned = (settings: object) => {
    const result = loadKvRouterConfig([settings]);
    return result.ok ? result.warnings.map(({ pointer }) => pointer) : [];
  };
  expect(warned({ router_queue_policy: "wspt" })).toEqual(["/router_queue_policy"]);
  expect(warned({ router_queue_policy: "wspt", router_queue_threshold: 1 })).toEqual([]);
});

it("turns a shared cache on with half its worth unless told", () => {
  const shared = { shared_cache_type: "hicache" };
  expect(loaded(shared).sharedCacheMultiplier).toBe(0.5);
  expect(loaded({ ...shared, shared_cache_multiplier: 0 }).sharedCacheMultiplier).toBe(0);
});

it("lets requests wait by uncached work with ageing unless a source names a policy", () => {
  const orderOf = (...sources: readonly unknown[]) => {
    const result = loadKvRouterConfig(sources);
    return result.ok ? result.queueOrder : undefined;
  };
  expect(orderOf({ router_queue_threshold: 2 })).toBe("aged");
  expect(orderOf({ router_queue_policy: "fcfs" }, { router_queue_threshold: 2 })).toBe("fcfs");
  expect(orderOf({ router_queue_policy: "fcfs" }, { router_queue_policy: "lcfs" })).toBe("lcfs");
});

it("names the settings that this release would not act on", () => {
  expect(unsupportedFields(defaultKvRouterConfig)).toEqual([]);
  expect(unsupportedFields(loaded({ use_kv_events: false, overlap_score_weight: 0 }))).toEqual([]);
  const asked = { use_kv_events: false, router_queue_threshold: 2, router_event_threads: 8 };
  expect(unsupportedFields(loaded(asked))).toEqual([]);
  expect(unsupportedFields(loaded({ serve_indexer: true }))).toEqual(["serve_indexer"]);
});

it("freezes a config and gives it back from its own file form", () => {
  const given = fc.record(
    {
      overlap_score_credit: fc.double({ min: 0, max: 1, noNaN: true }),
      prefill_load_scale: fc.double({ min: 0, noNaN: true, noDefaultInfinity: true }),
      router_temperature: fc.double({ min: 0, max: 9, noNaN: true }),
      use_kv_events: fc.boolean(),
      durable_kv_events: fc.boolean(),
      router_track_output_blocks: fc.boolean(),
      router_track_active_blocks: fc.boolean(),
      router_snapshot_threshold: fc.option(fc.integer({ min: 1, max: 2 ** 32 - 1 })),
      router_queue_policy: fc.constantFrom("fcfs", "lcfs", "wspt"),
    },
    { requiredKeys: [] },
  );
  const property = fc.property(given, (source) => {
    const result = loadKvRouterConfig([source]);
    if (!result.ok) return;
    expect(Object.isFrozen(result.config)).toBe(true);
    expect(loaded(byFileKey(result.config))).toEqual(result.config);
  });
  fc.assert(property);
});

it("lets a request override the settings of its own choice only", () => {
  const pool = { blockSize: 16, policy: "blocks", decodeOnly: false } as const;
  const parsed = parseRouterConfigOverride({ overlap_score_weight: 0, router_temperature: 0.5 });
  const override = parsed.ok ? parsed.override : {};
  const config = loaded({ prefill_load_scale: 2, router_track_prefill_tokens: false });
  expect(choiceSettings(config, override, pool)).toMatchObject({
    temperature: 0.5,
    trackPrefillTokens: false,
    weights: { overlapScoreCredit: 0, prefillLoadScale: 0 },
  });
  expect(choiceSettings(config, {}, pool).weights.prefillLoadScale).toBe(2);
  expect(parseRouterConfigOverride(undefined)).toEqual({ ok: true, override: {} });
  expect(parseRouterConfigOverride([]).ok).toBe(false);
});
