import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { runCommand } from "../../src/cli/commands.ts";

const demo = "pool-configs/demo.json";
const curves = "docs/grids/curves.json";
const folder = mkdtempSync(join(tmpdir(), "tiergrid-grid-"));
afterAll(() => rmSync(folder, { recursive: true }));

async function run(line: string) {
  const printed: string[] = [];
  const complaints: string[] = [];
  const code = await runCommand(line.split(" "), {
    environment: {},
    print: (text) => void printed.push(text),
    complain: (text) => void complaints.push(text),
  });
  return { code, printed: printed.join(""), complaints: complaints.join("\n") };
}

function fileOf(name: string, value: unknown): string {
  const path = join(folder, name);
  writeFileSync(path, JSON.stringify(value));
  return path;
}

const demoFile = (): Record<string, unknown> => JSON.parse(readFileSync(demo, "utf8"));
const strategyOf = (file: Record<string, unknown>): Record<string, unknown> =>
  file["prefill_pool_selection_strategy"] as Record<string, unknown>;

it("lints with exit codes 0 for clean, 1 for findings, 2 for a file that is refused", async () => {
  expect(await run(`grid lint ${demo}`)).toMatchObject({ code: 0, complaints: "" });
  const slow = demoFile();
  strategyOf(slow)["prefill_pool_mapping"] = [[1, 0, 0], ...new Array(6).fill([0, 0, 1])];
  const found = await run(`grid lint ${fileOf("slow.json", slow)} --json`);
  expect(found.code).toBe(1);
  expect(JSON.parse(found.printed)).toMatchObject({
    findings: [
      {
        pointer: "/prefill_pool_selection_strategy/prefill_pool_mapping/0/0",
        reason: "tighter-target-slower-pool",
        severity: "warning",
      },
    ],
  });
  const broken = await run(`grid lint ${fileOf("broken.json", { ...slow, num_prefill_pools: 3 })}`);
  expect(broken).toMatchObject({ code: 2, printed: "" });
});

it("does not fail for notes alone", async () => {
  const older = demoFile();
  const { ttft_min_ms: min, ...strategy } = strategyOf(older);
  older["prefill_pool_selection_strategy"] = { ...strategy, ttft_min: min };
  const { code, printed } = await run(`grid lint ${fileOf("older.json", older)}`);
  expect(code).toBe(0);
  expect(printed).toMatch(/^note {5}\/prefill_pool_selection_strategy\/ttft_min: .*deprecated/);
});

it("lints with traffic: cells, idle pools, requests beyond the axes", async () => {
  const line = `grid lint ${demo} --traffic demo --ttft-targets 1:50 --json`;
  const { code, printed } = await run(line);
  expect(code).toBe(1);
  const { findings, traffic } = JSON.parse(printed) as {
    readonly findings: readonly { readonly pointer: string; readonly reason: string }[];
    readonly traffic: readonly { readonly role: string; readonly requests: number }[];
  };
  expect(findings).toContainEqual(
    expect.objectContaining({
      pointer: "/prefill_pool_selection_strategy/ttft_min_ms",
      reason: "clamped-traffic",
      message: expect.stringContaining("100 % of the requests lie below ttft 100"),
    }),
  );
  expect(traffic.map(({ role, requests }) => [role, requests])).toEqual([
    ["prefill", 300],
    ["decode", 300],
  ]);
});

it("builds a grid that the loader takes, from a file without mappings", async () => {
  const template = demoFile();
  delete strategyOf(template)["prefill_pool_mapping"];
  const out = join(folder, "built.json");
  const path = fileOf("template.json", template);
  const built = await run(`grid build ${path} --curves ${curves} --out ${out}`);
  expect(built).toMatchObject({ code: 0, complaints: "" });
  const lint = await run(`grid lint ${out} --curves ${curves} --strict-config`);
  expect([lint.code, lint.printed]).toEqual([0, expect.stringContaining("target-unmeetable")]);
  const version = /config (\w{12})/.exec(built.printed)?.[1];
  expect(lint.printed).toContain(`config ${version}`);
  // Rules and axes are those of the template.
  expect((await run(`grid show ${out}`)).printed).toContain("request priority 100 .. 1000");
  const again = await run(`grid build ${out} --curves ${curves} --json`);
  expect(JSON.parse(again.printed).config).toEqual(withoutSchema(readFileSync(out, "utf8")));
});

function withoutSchema(text: string): object {
  const { $schema: _schema, ...config } = JSON.parse(text) as Record<string, unknown>;
  return config;
}

it("builds the three levels of an agg grid, and keeps fallbacks that still make sense", async () => {
  const linear = (base_ms: number, per_token_ms: number) => ({
    ...{ type: "linear", base_ms, per_token_ms },
  });
  const pool = (namespace: string, cost: number, slope: number) => ({
    ...{ namespace, cost, ttft: linear(20, slope), itl: linear(8, slope / 100) },
  });
  const path = fileOf("agg-curves.json", {
    agg: [pool("agg-short", 3, 0.01), pool("agg-standard", 1, 0.05), pool("agg-long", 2, 0.03)],
  });
  const { code, printed } = await run(
    `grid build pool-configs/agg-3d.yaml --curves ${path} --json`,
  );
  expect(code).toBe(0);
  const { config, report } = JSON.parse(printed);
  const mapping = config.agg_pool_selection_strategy.agg_pool_mapping as number[][][];
  // At 16,384 tokens TTFT is 184, 839, 512 ms for 200, 1200, 2200 ms; ITL 10, 16, 13 for 10, 50 ms.
  expect(mapping[0]).toEqual([
    [0, 0],
    [0, 1],
    [0, 1],
  ]);
  expect(report[0].cells).toHaveLength(12);
  expect(report[0].cells[3]).toMatchObject({ cell: "0.1.1", pool: "agg-standard", met: true });

  const withFallbacks = demoFile();
  const lists = new Array(7).fill([[1], [1], [0]]);
  const strategy = {
    ...strategyOf(withFallbacks),
    prefill_pool_fallbacks: lists,
    prefill_pool_mapping: new Array(7).fill([0, 0, 1]),
  };
  withFallbacks["prefill_pool_selection_strategy"] = strategy;
  const template = fileOf("fallbacks.json", withFallbacks);
  const built = await run(`grid build ${template} --curves ${curves} --json`);
  expect(built).toMatchObject({ code: 0, complaints: "" });
  const own = JSON.parse(built.printed).config.prefill_pool_selection_strategy;
  expect(own.prefill_pool_mapping[0]).toEqual([0, 1, 1]);
  expect(own.prefill_pool_fallbacks[0]).toEqual([[1], [], [0]]);
});

it("reports every fault of the template before it builds", async () => {
  const template = demoFile();
  strategyOf(template)["isl_resolution"] = 0;
  strategyOf(template)["ttft_min_ms"] = 9000;
  const out = join(folder, "never.json");
  const path = fileOf("faulty.json", template);
  const { code, complaints } = await run(`grid build ${path} --curves ${curves} --out ${out}`);
  expect(code).toBe(2);
  expect(complaints).toContain("/prefill_pool_selection_strategy/isl_resolution");
  expect(complaints).toContain("/prefill_pool_selection_strategy/ttft_min_ms");
  expect(() => readFileSync(out)).toThrow();
});

it("says what another config changes, and what of the traffic moves", async () => {
  const other = demoFile();
  other["prefill_pool_priorities"] = [0, 5];
  const mapping = (strategyOf(other)["prefill_pool_mapping"] as number[][]).map((row) => [...row]);
  strategyOf(other)["prefill_pool_mapping"] = [[0, 1, 1], ...mapping.slice(1)];
  const line = `grid diff ${demo} ${fileOf("other.json", other)} --traffic demo`;
  const { code, printed } = await run(line);
  expect(code).toBe(0);
  expect(printed).toContain("/prefill_pool_priorities: [0,1] to [0,5]");
  expect(printed).toContain("isl < 2048, ttft 400 .. 1600 ms: prefill-fast to prefill-bulk");
  expect(printed).toMatch(/[\d.]+ % of the requests, [\d.]+ % of the tokens: prefill-fast to/);
  expect(printed).toContain("decode: 0 regions change\n  none of 300 requests moves");
  const json = JSON.parse((await run(`${line} --json`)).printed);
  expect(json.roles[0].moves).toMatchObject([{ from: "prefill-fast", to: "prefill-bulk" }]);
  const same = await run(`grid diff ${demo} ${demo}`);
  expect(same.printed).toContain("prefill: 0 regions change\ndecode: 0 regions change");
  expect((await run(`grid diff ${demo} pool-configs/agg-2d.yaml`)).code).toBe(2);
});

it("calibrates from a file of cells, and refuses those of another version", async () => {
  const cell = (name: string, pool: string, p90: number) => ({
    ...{ cell: name, pool, count: 1000, p50_ms: p90 / 2, p90_ms: p90 },
  });
  const cells = [cell("4.0", "prefill-fast", 300), cell("4.1", "prefill-bulk", 900)];
  const measured = (version: string | null) =>
    fileOf("cells.json", {
      config_version: version,
      roles: [{ role: "prefill", cells }],
    });
  const out = join(folder, "calibrated.json");
  const line = `grid calibrate ${demo} --out ${out} --cells`;
  const { code, printed } = await run(`${line} ${measured(null)}`);
  expect(code).toBe(0);
  expect(printed).toContain("cell 4.1 (ttft 400 ms): prefill-bulk to prefill-fast, too-slow");
  expect(printed).toContain("50 % of the measured requests move");
  expect(printed).toContain("decode: 0 of 21 cells change");
  expect((await run(`grid diff ${demo} ${out}`)).printed).toContain("prefill: 1 region changes");
  const stale = await run(`${line} ${measured("000000000000")}`);
  expect(stale).toMatchObject({ code: 2, printed: "" });
  expect(stale.complaints).toContain("measured under config 000000000000");
  expect((await run(`${line} ${measured("000000000000")} --any-version`)).code).toBe(0);
  expect((await run(`grid calibrate ${demo}`)).complaints).toContain("expected one of");
});

it("draws pictures with the share of the traffic in each cell", async () => {
  const svg = join(folder, "grid.svg");
  const html = join(folder, "grid.html");
  const { printed } = await run(`grid show ${demo} --traffic demo --svg ${svg} --html ${html}`);
  const share = /0 prefill-fast ([\d.]+ %)/.exec(printed)?.[1];
  for (const path of [svg, html]) expect(readFileSync(path, "utf8")).toContain(`>${share}</text>`);
});
