import { expect, it } from "vitest";
import { parseCommand } from "../../src/base/flags.ts";
import { defaultKvRouterConfig, loadKvRouterConfig } from "../../src/config/kv-router-config.ts";
import { kvRouterFlags, kvRouterSettings } from "../../src/config/kv-router-flags.ts";

const command = {
  name: "tiergrid local",
  summary: "test",
  flags: kvRouterFlags,
  examples: [],
} as const;

/** The config that a file, an environment and a command line make together. */
function configOf(file: object, environment: Record<string, string>, argv: readonly string[]) {
  const parsed = parseCommand(command, argv, environment);
  if (parsed.type !== "options") throw new Error(JSON.stringify(parsed));
  const { flags, environment: variables } = parsed;
  return loadKvRouterConfig([file, kvRouterSettings(variables), kvRouterSettings(flags)]);
}

const fileOnly = [
  "routerQueueByIncomingMissingIsl",
  "routerEnableCacheControl",
  "skipInitialWorkerWait",
];

it("has a row for every field that is not for files only, with the field's default", () => {
  const fields = Object.keys(defaultKvRouterConfig).filter((field) => !fileOnly.includes(field));
  const rows = Object.keys(kvRouterFlags).filter((name) => name !== "overlapScoreWeight");
  expect(rows.sort()).toEqual(fields.sort());
  for (const [name, row] of Object.entries(kvRouterFlags)) {
    if (name === "overlapScoreWeight") continue;
    expect(row.default).toBe(defaultKvRouterConfig[name as keyof typeof defaultKvRouterConfig]);
  }
});

it("lets a flag beat the environment, and the environment a file", () => {
  const file = { router_temperature: 1, prefill_load_scale: 5, overlap_score_credit: 0.5 };
  const environment = { DYN_ROUTER_TEMPERATURE: "2", DYN_ROUTER_PREFILL_LOAD_SCALE: "6" };
  expect(configOf(file, environment, ["--router-temperature", "3"])).toMatchObject({
    ok: true,
    config: { routerTemperature: 3, prefillLoadScale: 6, overlapScoreCredit: 0.5 },
  });
});

it("maps the older weight in its own source, and null is a value where it means something", () => {
  const environment = { DYN_KV_OVERLAP_SCORE_WEIGHT: "0" };
  const argv = ["--router-prefill-load-scale", "2", "--router-snapshot-threshold", "none"];
  expect(configOf({}, environment, argv)).toMatchObject({
    ok: true,
    config: { overlapScoreCredit: 0, prefillLoadScale: 2, routerSnapshotThreshold: null },
  });
});

it("reads the older spellings and the no- form", () => {
  const argv = ["--no-kv-events", "--router-ttl=5", "--no-router-track-prefill-tokens"];
  expect(configOf({}, {}, argv)).toMatchObject({
    ok: true,
    config: { useKvEvents: false, routerTtlSecs: 5, routerTrackPrefillTokens: false },
  });
});
