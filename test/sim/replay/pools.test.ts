import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { mulberry32 } from "../../../src/base/random.ts";
import {
  type PoolsFile,
  readPoolsFile,
  type Selector,
} from "../../../src/sim/replay/pools-file.ts";
import { priorPools, staticGrid } from "../../../src/sim/replay/pools-grid.ts";
import { poolsHtml } from "../../../src/sim/replay/pools-html.ts";
import {
  measurePools,
  type PoolsPlan,
  type SelectorReport,
} from "../../../src/sim/replay/pools-measure.ts";
import { poolsReport, poolsText } from "../../../src/sim/replay/pools-text.ts";
import { synthesisPresets, synthesizeTrace } from "../../../src/sim/trace-synth.ts";

const requests = synthesizeTrace(synthesisPresets["toolagent-ci"]).slice(0, 1000);
const watch = { onRun: () => {}, onDone: () => {} };
const folder = "pool-configs/replay";
const prefill = json(`${folder}/prefill-32-gpus.json`);
const decode = json(`${folder}/decode-32-gpus.json`);
const drifting = json(`${folder}/prefill-drift.json`);

function json(path: string): Record<string, unknown> {
  return JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
}

function planOf(file: PoolsFile, more: Partial<PoolsPlan> = {}): PoolsPlan {
  const plan = { file, requests, blockSize: 512, seed: 7, spreadMs: 0, speed: 1 };
  return { ...plan, capacity: undefined, curveSpeeds: [], eventDelayMs: 0, ...more };
}

/** The layout of that name with only the named choices. */
function pick(file: PoolsFile, layout: string, names: readonly string[]): PoolsFile {
  const layouts = file.layouts.filter(({ name }) => name === layout);
  return {
    ...file,
    layouts: layouts.map((each) => ({
      ...each,
      selectors: names.map((name) => each.selectors.find((own) => own.name === name) as Selector),
    })),
  };
}

function selector(part: Partial<Selector>): Selector {
  return {
    name: "s",
    type: "live",
    grid: undefined,
    wrongCells: 0,
    inverted: false,
    sharedCache: false,
    plainFit: false,
    quoteMs: 0,
    quoteLoss: 0,
    ...part,
  };
}

/** Attainment of each choice by its name. */
async function attained(plan: PoolsPlan): Promise<Map<string, SelectorReport>> {
  const reports = await measurePools(plan, watch);
  return new Map(reports.map((report) => [report.selector, report]));
}

it("reads the layouts that are shipped, all at 32 GPUs", () => {
  for (const value of [prefill, decode, drifting]) {
    const file = readPoolsFile(value, 512, folder);
    expect(file.gpus).toBe(32);
    expect(file.classes.reduce((sum, { share }) => sum + share, 0)).toBeCloseTo(1);
  }
});

it("reports everything that is wrong with a file", () => {
  const layouts = prefill["layouts"] as { pools: object[] }[];
  const [first] = layouts;
  const broken = {
    ...prefill,
    layouts: [
      first,
      { ...first, name: "more", pools: [{ namespace: "p", engine: "tp3", workers: 1 }] },
    ],
  };
  expect(() => readPoolsFile(broken, 512)).toThrow(/no engine tp3[\s\S]*more has 0 GPUs, not 32/);
  expect(() => readPoolsFile({ ...prefill, classes: [] }, 512)).toThrow(/\/classes/);
  const drift = { after: 0.5, shares: [0.5, 0.4] };
  expect(() => readPoolsFile({ ...prefill, drift }, 512)).toThrow(/0\.9[\s\S]*each of 3 classes/);
  expect(() => readPoolsFile({ ...prefill, role: "decode" }, 512)).toThrow(/needs itl_ms/);
  expect(() => readPoolsFile({ ...prefill, layout: 1 }, 512)).toThrow(/additional.*layout/);
});

it("sends a request to the cheapest pool that is in time for the longest of its cell", async () => {
  const file = readPoolsFile(prefill, 512);
  const pools = file.layouts.find(({ name }) => name.startsWith("TP2 x 4"))?.pools ?? [];
  const built = { tokenEdges: [0, 1000, 8000], headroom: 1, designSequences: 1 };
  const msOf = (gpus: number, share: number): number =>
    6 + 1.5 * Math.log2(gpus) + (0.165 / (gpus * share)) * 8000 + (6e-6 / gpus) * 32e6;
  const [two, four, eight] = [msOf(2, 0.95), msOf(4, 0.86), msOf(8, 0.72)];
  const own = await staticGrid(
    "prefill",
    pools,
    { grid: { ...built, targetEdgesMs: undefined } },
    1,
  );
  const poolOf = (ttftMs: number): number =>
    own.at({ tokens: 5000, ttftMs, itlMs: undefined, group: 0 }).pool;
  expect([two, four, eight].map((ms) => poolOf(ms + 0.01))).toEqual([0, 1, 2]);
  expect([two, four, eight].map((ms) => poolOf(ms - 0.01))).toEqual([1, 2, 2]);
  const binned = await staticGrid(
    "prefill",
    pools,
    { grid: { ...built, targetEdgesMs: [100, four + 1, two + 1, 10_000] } },
    1,
  );
  const binOf = (ttftMs: number): number =>
    binned.at({ tokens: 5000, ttftMs, itlMs: undefined, group: 0 }).pool;
  // A cell promises its lower edge.
  expect([eight + 1, four + 2, two + 2].map(binOf)).toEqual([2, 1, 0]);
});

it("gives wrong cells to random pools and turns a grid around", async () => {
  const file = readPoolsFile(prefill, 512);
  const pools = file.layouts.find(({ name }) => name.startsWith("TP2 x 4"))?.pools ?? [];
  const grid = {
    cellCount: 100,
    at: ({ tokens }: { tokens: number }) => ({ cell: tokens, pool: 0 }),
  };
  const all = Array.from({ length: 100 }, (_, tokens) => ({
    tokens,
    ttftMs: 1,
    itlMs: undefined,
    group: 0,
  }));
  const priors = (part: Partial<Selector>): number[] => [
    ...priorPools(grid, pools, selector(part), { requests: all, random: mulberry32(1) }),
  ];
  expect(priors({})).toEqual(all.map(() => 0));
  expect(priors({ inverted: true })).toEqual(all.map(() => 2));
  const wrong = priors({ wrongCells: 0.25 }).filter((pool) => pool !== 0).length;
  expect(wrong).toBeGreaterThan(5);
  expect(wrong).toBeLessThan(30);
});

it("stays with the grid where no quote comes in time, and for checked where the grid's is kept", async () => {
  const two = "TP2 x 8 + TP8 x 2";
  const file = readPoolsFile(prefill, 512, folder);
  const grid = pick(file, two, ["grid, headroom 1.2"]).layouts[0]?.selectors[0]?.grid;
  const layout = pick(file, two, []).layouts[0];
  const selectors = [
    selector({ name: "grid", type: "grid", grid }),
    selector({ name: "silent", type: "live", grid, quoteLoss: 1 }),
    selector({ name: "checked", type: "checked", grid }),
  ];
  const layouts = layout ? [{ ...layout, selectors }] : [];
  const reports = await attained(planOf({ ...file, layouts }));
  expect(reports.get("silent")?.pools.map(({ share }) => share)).toEqual(
    reports.get("grid")?.pools.map(({ share }) => share),
  );
  expect(reports.get("checked")?.attainment).toBeGreaterThanOrEqual(
    reports.get("grid")?.attainment ?? 1,
  );
});

it("carries more load by quotes than by a grid or at random, and less than with a shared cache", async () => {
  const names = ["random", "grid, headroom 0.8", "live", "live, shared cache (bound)"];
  const file = pick(readPoolsFile(prefill, 512, folder), "TP2 x 8 + TP8 x 2", names);
  const reports = await attained(planOf(file, { speed: 2.4, seed: 8 }));
  const [random, grid, live, bound] = names.map((name) => reports.get(name)?.attainment ?? 0);
  expect(live).toBeGreaterThan((grid ?? 1) + 0.02);
  expect(grid).toBeGreaterThan((random ?? 1) + 0.02);
  expect(bound).toBeGreaterThanOrEqual((live ?? 1) - 0.01);
  expect(reports.get("live")?.pools.map(({ share }) => share > 0.05)).toEqual([true, true]);
});

it("carries more load than by the plain best fit", async () => {
  const layout = "TP2 x 4 + TP4 x 4 + TP8 x 1";
  const [only] = pick(readPoolsFile(prefill, 512, folder), layout, []).layouts;
  const selectors = [selector({ name: "plain", plainFit: true }), selector({ name: "live" })];
  const file = {
    ...readPoolsFile(prefill, 512, folder),
    layouts: only ? [{ ...only, selectors }] : [],
  };
  const reports = await attained(planOf(file, { speed: 2.4, seed: 8 }));
  const [plain, live] = ["plain", "live"].map((name) => reports.get(name)?.attainment ?? 0);
  expect(live).toBeGreaterThan((plain ?? 1) + 0.01);
});

it("draws the classes anew for the requests behind the drift", async () => {
  const file = pick(readPoolsFile(prefill, 512, folder), "TP2 x 8 + TP8 x 2", ["live"]);
  const lax = file.classes.map((row, at) => ({ ...row, share: at === 2 ? 1 : 0 }));
  const report = async (more: Partial<PoolsFile>) => {
    return (await attained(planOf({ ...file, ...more }, { speed: 2.4 }))).get("live");
  };
  const shares = [0, 0, 1];
  expect(await report({ drift: { after: 0, shares } })).toEqual(await report({ classes: lax }));
  const never = await report({ drift: { after: 1, shares } });
  expect(never).toEqual(await report({}));
  const half = await report({ drift: { after: 0.5, shares } });
  expect(half?.attainment).toBeGreaterThan(never?.attainment ?? 1);
});

it("chooses decode pools by the time between tokens", async () => {
  const names = ["random", "grid, headroom 1", "live"];
  const layout = "TP2 x 4 + TP4 x 4 + TP8 x 1";
  const file = pick(readPoolsFile(decode, 512, folder), layout, names);
  const reports = await attained(planOf(file, { speed: 3 }));
  for (const report of reports.values()) {
    expect(report.unfinished + report.rejected).toBe(0);
    expect(report.prefill_utilisation).toBe(0);
  }
  const [random, grid, live] = names.map((name) => reports.get(name)?.attainment ?? 0);
  expect(live).toBeGreaterThan((random ?? 1) + 0.02);
  expect(live).toBeGreaterThanOrEqual(grid ?? 1);
});

it("takes the time of a quote round before a request reaches its pool", async () => {
  const layout = "TP4 x 4 + TP8 x 2";
  const file = pick(readPoolsFile(prefill, 512, folder), layout, ["live"]);
  const [only] = file.layouts;
  const selectors = [selector({ name: "at once" }), selector({ name: "later", quoteMs: 40 })];
  const layouts = only ? [{ ...only, selectors }] : [];
  const few = requests.slice(0, 50);
  const reports = await attained(planOf({ ...file, layouts }, { requests: few, speed: 0.01 }));
  const mean = (name: string): number => reports.get(name)?.ttft_ms.mean ?? 0;
  expect(mean("later") - mean("at once")).toBeCloseTo(40, 3);
});

it("gives the same report for the same plan, as JSON, a table and a page", async () => {
  const layout = "TP2 x 8 + TP8 x 2";
  const file = pick(readPoolsFile(prefill, 512, folder), layout, ["grid, headroom 0.8", "live"]);
  const capacity = { speedMin: 0.5, speedMax: 3, steps: 2, share: 0.95 };
  const plan = planOf(file, { requests: requests.slice(0, 300), capacity });
  const measure = async () => poolsReport(plan, "t", await measurePools(plan, watch));
  const report = await measure();
  expect(JSON.stringify(await measure())).toBe(JSON.stringify(report));
  const text = poolsText(report);
  expect(text).toMatch(/TP2 x 8 \+ TP8 x 2 +capacity +each class/);
  expect(text).toMatch(/^live +\d\.\d\d/m);
  const page = poolsHtml(report);
  expect(page).toContain("<h2>TP2 x 8 + TP8 x 2</h2>");
  expect(page.match(/<polyline/g)).toHaveLength(2);
  expect(page.match(/<rect/g)).toHaveLength(2);
});
