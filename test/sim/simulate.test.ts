import { expect, it } from "vitest";
import { loadPoolConfigFile } from "../../src/config/load-pool-config.ts";
import { type SimulationOptions, type SimulationReport, simulate } from "../../src/sim/simulate.ts";

const loaded = await loadPoolConfigFile("pool-configs/demo.json", { ownNamespace: "dynamo" });

/** `SEED=17 npx vitest run --project sim` replays one seed. */
const firstSeed = Number(process.env["SEED"] ?? 1);
const seeds = process.env["SEED"] === undefined ? 50 : 1;

function run(
  seed: number,
  faults: number,
  routersPerPool = 1,
  durable = false,
  costMode: SimulationOptions["costMode"] = "blocks",
): Promise<SimulationReport> {
  if (!loaded.ok) throw new Error(JSON.stringify(loaded.faults));
  const { config } = loaded;
  const counts = { requests: 40, faults, workersPerPool: 2, routersPerPool, durable, costMode };
  return simulate({ seed, config, spanMs: 12_000, ...counts });
}

it("answers everything when nothing is broken", async () => {
  const report = await run(firstSeed, 0);
  expect(report.violations).toEqual([]);
  expect(report.completed + report.cancelled).toBe(40);
});

it("replays a seed to the last ending", async () => {
  const first = await run(firstSeed, 8);
  const again = await run(firstSeed, 8);
  expect(again.digest).toBe(first.digest);
  expect(again.tokens).toBe(first.tokens);
});

it.each(Array.from({ length: seeds }, (_, at) => firstSeed + at))(
  "keeps every invariant under the faults of seed %i",
  async (seed) => {
    const report = await run(seed, 8);
    const faults = report.faults.map(({ atMs, fault }) => `${atMs} ${fault.kind}`).join(", ");
    expect(report.violations, `seed ${seed}: ${faults}`).toEqual([]);
    expect(report.completed + report.failed + report.cancelled).toBe(40);
  },
);

it.each(Array.from({ length: Math.ceil(seeds / 4) }, (_, at) => firstSeed + at))(
  "keeps every invariant with three replicas of each router under the faults of seed %i",
  async (seed) => {
    const report = await run(seed, 8, 3);
    expect(report.violations, `seed ${seed}`).toEqual([]);
    expect(report.completed + report.failed + report.cancelled).toBe(40);
  },
);

it.each(Array.from({ length: Math.ceil(seeds / 8) }, (_, at) => firstSeed + at))(
  "keeps every invariant in durable mode under the faults of seed %i",
  async (seed) => {
    const report = await run(seed, 8, 1 + (seed % 2), true);
    expect(report.violations, `seed ${seed}`).toEqual([]);
    expect(report.completed + report.failed + report.cancelled).toBe(40);
  },
);

it.each(Array.from({ length: Math.ceil(seeds / 8) }, (_, at) => firstSeed + at))(
  "keeps every invariant in cost mode latency under the faults of seed %i",
  async (seed) => {
    const report = await run(seed, 8, 1 + (seed % 2), false, "latency");
    expect(report.violations, `seed ${seed}`).toEqual([]);
    expect(report.completed + report.failed + report.cancelled).toBe(40);
  },
);

it("survives worker deaths without losing an answer, with prompts as hashes and as tokens", async () => {
  let migrations = 0;
  let promptsHandedOut = 0;
  let completed = 0;
  for (let seed = 1; seed <= 6; seed++) {
    const report = await run(1000 + seed, 4);
    migrations += report.migrations;
    completed += report.completed;
    promptsHandedOut += report.promptsHandedOut;
  }
  expect(migrations).toBeGreaterThan(0);
  expect(completed).toBeGreaterThan(120);
  expect(promptsHandedOut).toBeGreaterThan(60);
});
