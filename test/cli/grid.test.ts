import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it, vi } from "vitest";
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
  const wrong = { ...slow, num_prefill_pools: 3, enable_priority_retry: 3 };
  const broken = await run(`grid lint ${fileOf("broken.json", wrong)}`);
  expect(broken).toMatchObject({ code: 2, printed: "" });
  const refused = await run(`grid lint ${join(folder, "broken.json")} --json`);
  expect(refused.code).toBe(2);
  const { config_version: version, findings } = JSON.parse(refused.printed);
  expect(version).toBe(null);
  const lines = broken.complaints.split("\n").slice(1);
  expect(lines.length).toBeGreaterThan(1);
  expect(
    findings.map(
      ({ severity, pointer, message, reason }: Record<string, string>) =>
        `${severity}:   ${pointer}: ${message} [${reason}]`,
    ),
  ).toEqual(lines);
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

it("tells of measurements that no cell of the config can use", async () => {
  const foreign = { cell: "9.9", pool: "prefill-fast", count: 3, p50_ms: 1, p90_ms: 2 };
  const cells = fileOf("foreign.json", { roles: [{ role: "prefill", cells: [foreign] }] });
  const told = vi.spyOn(console, "error").mockReturnValue();
  expect((await run(`grid calibrate ${demo} --cells ${cells}`)).code).toBe(0);
  expect(told.mock.calls.flat().join()).toContain("such as cell 9.9 of pool prefill-fast");
  told.mockRestore();
});

it("calibrates decode grids from a replay, and says what of the traffic moves", async () => {
  const targets = "--itl-targets 0.5:15,0.5:50";
  const line = `grid calibrate ${demo} --traffic toolagent-ci ${targets} --json`;
  const { code, printed } = await run(`${line} --replay docs/grids/engines.json`);
  expect(code).toBe(0);
  const { roles, diff } = JSON.parse(printed);
  const [, decode] = roles;
  // A worker of the fast pool decodes in 8 ms, one of the bulk pool in 13, and then there is load.
  const evidence = decode.cells.flatMap((cell: { evidence: unknown[] }) => cell.evidence);
  expect(evidence.length).toBeGreaterThan(14);
  for (const { pool, latency, p50_ms: p50Ms } of evidence) {
    expect(latency).toBe("itl");
    expect(p50Ms).toBeGreaterThan(pool === "decode-fast" ? 8 : 13);
    expect(p50Ms).toBeLessThan(pool === "decode-fast" ? 13 : 20);
  }
  expect(decode.cells[0]).toMatchObject({ pool: "decode-fast", reason: "meets" });
  const moved = diff[1].moves.reduce((sum: number, { requests }: never) => sum + requests, 0);
  const changed = decode.cells.filter(({ pool, proposed }: never) => pool !== proposed);
  const counted = changed.reduce((sum: number, { requests }: never) => sum + requests, 0);
  expect(moved).toBe(counted);
});

it("leaves out a role without engines, and names everything wrong with the file", async () => {
  const prefill = { "prefill-fast": { workers: 1 }, "prefill-bulk": { workers: 1 } };
  const line = `grid calibrate ${demo} --traffic demo --json --replay`;
  const { printed } = await run(`${line} ${fileOf("prefill-only.json", prefill)}`);
  const [, decode] = JSON.parse(printed).roles;
  expect(new Set(decode.cells.map(({ reason }: never) => reason))).toEqual(
    new Set(["not-enough-data"]),
  );
  const wrong = {
    "prefil-fast": { workers: 1 },
    "prefill-bulk": { workers: 0, engine: { speedup_ratio: -1 } },
    "decode-fast": { workers: 1025, egine: {} },
    "decode-bulk": { workers: 1024, engine: 3 },
  };
  const refused = await run(`${line} ${fileOf("wrong.json", wrong)}`);
  expect(refused).toMatchObject({ code: 2, printed: "" });
  expect(refused.complaints.split("\n").slice(1)).toEqual([
    expect.stringMatching(/\/prefil-fast: unknown key .*did you mean prefill-fast\?/),
    expect.stringMatching(/\/prefill-fast: expected workers and engine of the prefill pool, got/),
    expect.stringMatching(/\/prefill-bulk\/engine\/speedup_ratio: expected a number > 0, got -1/),
    expect.stringMatching(
      /\/prefill-bulk\/workers: expected an integer from 1 to 1024, got number 0/,
    ),
    expect.stringMatching(/\/decode-fast\/egine: unknown key .*did you mean engine\?/),
    expect.stringMatching(/\/decode-fast\/workers: expected .* got number 1025/),
    expect.stringMatching(
      /\/decode-bulk\/engine: expected options of the mock engine, got number 3/,
    ),
  ]);
  const none = await run(`${line} ${fileOf("none.json", {})}`);
  expect(none.complaints).toContain("expected entries for the pools of a role");
});

it("lets priority rules act on the traffic", async () => {
  const traffic = "--traffic demo --ttft-targets 1:6000 --itl-targets 1:70 --priorities";
  const shown = await run(`grid show ${demo} ${traffic} 0.25:500,0.25:-3,0.5:none`);
  const [, share] = /by request priority 100 \.\. 1000: ([\d.]+) %/.exec(shown.printed) ?? [];
  expect(Math.abs(Number(share) - 25)).toBeLessThan(5);
  expect(shown.printed).toContain(`  0 prefill-fast ${share} %`);
  const file = demoFile();
  strategyOf(file)["priority_overrides"] = [];
  const line = `grid diff ${demo} ${fileOf("no-rules.json", file)} ${traffic}`;
  const moved = await run(`${line} 1:500`);
  expect(moved.printed).toContain("100 % of the requests, 100 % of the tokens: prefill-fast to");
  expect((await run(`${line} 1:none`)).printed).not.toContain("of the requests");
});

it("states the grid as JSON, and with traffic what falls into it", async () => {
  const bare = JSON.parse((await run(`grid show ${demo} --json`)).printed);
  const [prefill] = bare.roles;
  const ttft = {
    name: "ttft",
    min: 100,
    max: 6400,
    spacing: "log2",
    edges: [100, 400, 1600, 6400],
  };
  expect(prefill.axes[1]).toEqual(ttft);
  expect(prefill.pools[1]).toEqual({ pool: "prefill-bulk", index: 1, priority: 1 });
  expect(prefill.cells).toHaveLength(7 * 3);
  expect(prefill.cells[4]).toEqual({ cell: "1.1", pool: "prefill-fast" });
  const { roles } = JSON.parse((await run(`grid show ${demo} --traffic demo --json`)).printed);
  for (const { requests, cells, pools } of roles) {
    const sumOf = (parts: { requests: number }[]): number =>
      parts.reduce((sum, part) => sum + part.requests, 0);
    expect([sumOf(cells), sumOf(pools)]).toEqual([requests, requests]);
    expect(requests).toBeGreaterThan(0);
  }
});

it("refuses traffic flags that say nothing or cannot be read", async () => {
  const line = `grid show ${demo}`;
  for (const [flags, complaint] of [
    ["--priorities 1:1", "--priorities needs --traffic"],
    ["--ttft-targets 1:1", "--ttft-targets needs --traffic"],
    ["--traffic demo --itl-targets 0.5:1", "--itl-targets: SLO classes: expected at most 16"],
    ["--traffic demo --priorities 1:high", 'expected share:priority or share:none, got "1:high"'],
    ["--traffic demo --priorities 1:2147483648", "expected share:priority"],
    ["--traffic demo --priorities 0.5:1,0.4:2", "with shares that sum to 1, got 2 with 0.9"],
    ["--traffic dem", "no trace file at dem (did you mean demo?)"],
  ]) {
    const { code, printed, complaints } = await run(`${line} ${flags}`);
    expect([code, printed]).toEqual([2, ""]);
    expect(complaints).toContain(complaint);
  }
});

it("says which file it cannot write", async () => {
  const path = join(folder, "none", "x");
  for (const [line, flag] of [
    [`grid show ${demo} --svg`, "--svg"],
    [`grid show ${demo} --html`, "--html"],
    [`grid build ${demo} --curves ${curves} --out`, "--out"],
    [`grid calibrate ${demo} --cells ${fileOf("no-cells.json", { roles: [] })} --out`, "--out"],
    ["replay --synth demo --policies random --html", "--html"],
  ] as const) {
    const { code, complaints } = await run(`${line} ${path}`);
    expect([code, complaints]).toEqual([2, expect.stringMatching(`^error: ${flag}: cannot write`)]);
  }
});

it("draws pictures with the share of the traffic in each cell", async () => {
  const svg = join(folder, "grid.svg");
  const html = join(folder, "grid.html");
  const { printed } = await run(`grid show ${demo} --traffic demo --svg ${svg} --html ${html}`);
  const share = /0 prefill-fast ([\d.]+ %)/.exec(printed)?.[1];
  for (const path of [svg, html]) expect(readFileSync(path, "utf8")).toContain(`>${share}</text>`);
});
