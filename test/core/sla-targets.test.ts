import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { makeAxis, type SlaGrid, selectPool } from "../../src/core/sla-grid.ts";
import { readSlaTargets, resolveSlaTargets } from "../../src/core/sla-targets.ts";

interface TargetCase {
  name: string;
  body: unknown;
  headers: Record<string, string>;
  defaults: { ttft?: number; itl?: number };
  expect: {
    ttft?: { value: number; source: string };
    itl?: { value: number; source: string };
    status?: number;
    errors?: { where: string; reason: string }[];
  };
}
const readGolden = (name: string): unknown =>
  JSON.parse(readFileSync(new URL(`../golden/${name}.json`, import.meta.url), "utf8"));
const { cases } = readGolden("sla-targets") as { cases: TargetCase[] };
const { rejects } = readGolden("grid") as {
  rejects: {
    json_texts: string[];
    accepts_as_absent: string[];
    accepts_as_number: { json: string; value: number }[];
    bus_floats: string[];
  };
};

const grid: SlaGrid = {
  role: "agg",
  axes: [
    makeAxis("ttft", { min: 10, max: 3000 }, 1, "linear"),
    makeAxis("itl", { min: 5, max: 200 }, 1, "linear"),
  ],
  poolOfCell: [0],
  overrides: [],
};
const noDefaults = { ttftTargetMs: null, itlTargetMs: null };
const noHeader = () => undefined;

it("has golden cases", () => {
  expect(cases).toHaveLength(30);
});

for (const testCase of cases) {
  it(`resolves targets from frontend to axis: ${testCase.name}`, () => {
    const read = readSlaTargets(testCase.body, (name) => testCase.headers[name]);
    if (testCase.expect.status === 400) {
      const faults = read.ok ? [] : read.faults.map(({ where, reason }) => ({ where, reason }));
      const order = (list: { where: string }[]) =>
        [...list].sort((a, b) => (a.where < b.where ? -1 : 1));
      expect(order(faults)).toEqual(order(testCase.expect.errors ?? []));
      return;
    }
    if (!read.ok) throw new Error(JSON.stringify(read.faults));
    const overTheBus = JSON.parse(JSON.stringify({ router: read.router })) as object;
    const { ttft: ttftTargetMs = null, itl: itlTargetMs = null } = testCase.defaults;
    const resolved = resolveSlaTargets(overTheBus, { ttftTargetMs, itlTargetMs });
    if (!resolved.ok) throw new Error(JSON.stringify(resolved.faults));
    const { axes } = selectPool(grid, { tokens: 1, priority: null, ...resolved });
    expect(axes.map(({ value, source }) => ({ value, source }))).toEqual([
      testCase.expect.ttft,
      testCase.expect.itl,
    ]);
  });
}

it("refuses every other JSON value in the body before any dispatch", () => {
  for (const json of rejects.json_texts) {
    const body: unknown = JSON.parse(`{"nvext":{"router":{"ttft_target":${json}}}}`);
    const read = readSlaTargets(body, noHeader);
    expect(read.ok, json).toBe(false);
  }
  for (const json of rejects.accepts_as_absent) {
    const body: unknown = JSON.parse(`{"nvext":{"router":{"ttft_target":${json}}}}`);
    expect(readSlaTargets(body, noHeader)).toMatchObject({ router: { ttft_target: null } });
  }
  for (const { json, value } of rejects.accepts_as_number) {
    const body: unknown = JSON.parse(`{"nvext":{"router":{"ttft_target":${json}}}}`);
    const read = readSlaTargets(body, noHeader);
    expect(read.ok && Object.is(read.router.ttft_target, value), json).toBe(true);
  }
});

it("checks finiteness and types again on the bus", () => {
  for (const text of rejects.bus_floats) {
    const resolved = resolveSlaTargets({ router: { itl_target: Number(text) } }, noDefaults);
    expect(resolved).toMatchObject({
      faults: [{ where: "router.itl_target", reason: "not-finite" }],
    });
  }
  const resolved = resolveSlaTargets(
    { router: { ttft_target: "5" }, extra_args: { itl_target: [] } },
    noDefaults,
  );
  expect(resolved.ok ? [] : resolved.faults.map(({ where }) => where)).toEqual([
    "router.ttft_target",
    "extra_args.itl_target",
  ]);
});

it("reads extra_args on the bus, as clients of the first published router send them", () => {
  const resolved = resolveSlaTargets({ extra_args: { ttft_target: 0 } }, noDefaults);
  expect(resolved).toEqual({
    ok: true,
    ttft: { valueMs: 0, source: "extra_args" },
    itl: { valueMs: null, source: "midpoint" },
  });
});

it("keeps the source label closed whatever the bus says", () => {
  const router = { ttft_target: 5, ttft_source: "made-up", itl_target: 6, itl_source: 7 };
  expect(resolveSlaTargets({ router }, noDefaults)).toMatchObject({
    ttft: { source: "nvext.router" },
    itl: { source: "nvext.router" },
  });
});

it("names a container of the wrong type once", () => {
  const read = readSlaTargets({ nvext: { router: [1] }, extra_args: "x" }, noHeader);
  expect(read.ok ? [] : read.faults).toMatchObject([
    { where: "nvext.router", reason: "wrong-type" },
    { where: "extra_args", reason: "wrong-type" },
  ]);
});
