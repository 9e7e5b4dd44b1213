import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { runCommand } from "../../src/cli/commands.ts";
import { policyNames } from "../../src/sim/replay/policy-table.ts";

const folder = mkdtempSync(join(tmpdir(), "tiergrid-replay-"));
afterAll(() => rmSync(folder, { recursive: true }));

async function run(line: string) {
  const printed: string[] = [];
  const complaints: string[] = [];
  const code = await runCommand(["replay", ...line.split(" ").filter(Boolean)], {
    environment: {},
    print: (text) => void printed.push(text),
    complain: (text) => void complaints.push(text),
  });
  return { code, printed: printed.join(""), complaints };
}

function written(name: string, text: string): string {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
}

const small = "--synth demo --requests 120 --workers 3";

it("prints one line of JSON, the same bytes for the same seed", async () => {
  const line = `${small} --policies blocks,latency,shared-cache --speed 3 --json`;
  const [one, other] = [await run(line), await run(line)];
  expect(one.code).toBe(0);
  expect(one.printed).toBe(other.printed);
  expect(one.printed.split("\n")).toHaveLength(2);
  const report = JSON.parse(one.printed);
  expect(Object.keys(report.policies)).toEqual(["blocks", "latency"]);
  expect(report.bounds.shared_cache.requests).toBe(120);
  expect(report.policies.latency.ttft_ms).toMatchObject({ mean: expect.any(Number) });
  expect(report.policies.latency).not.toHaveProperty("decision_us");
  expect((await run(`${line} --seed 43`)).printed).not.toBe(one.printed);
});

it("runs all policies, and tells what capacity each has by every form", async () => {
  const bounds = "--speed-min 1 --speed-max 17 --steps 2 --curve 0";
  const { printed } = await run(
    `${small} --capacity --forms pair,deadline,prefill --classes 0.5:900,0.5:100+0.2 ${bounds} --json`,
  );
  const report = JSON.parse(printed);
  expect(Object.keys(report.policies)).toEqual([...policyNames]);
  expect(report.capacity).toMatchObject({ step: 4, prefill_step: 8, share: 0.95 });
  const { shared_cache, shared_cache_planned } = report.bounds;
  const rows = [...Object.values(report.policies), shared_cache, shared_cache_planned];
  for (const policy of rows as Record<string, unknown>[]) {
    const fields = ["pair", "deadline", "prefill", "scaled", "every_class"];
    for (const field of fields) expect(policy).toHaveProperty(`capacity_${field}`);
    expect(policy["classes_at_capacity"]).toHaveLength(2);
    expect(policy["curve"]).not.toHaveLength(0);
  }
});

it("leaves out the planned bound where no queue is planned", async () => {
  const { bounds } = JSON.parse((await run(`${small} --policies all --json`)).printed);
  expect(bounds).toHaveProperty("shared_cache");
  expect(bounds).not.toHaveProperty("shared_cache_planned");
});

it("adds wall times only when asked", async () => {
  const { printed } = await run(`${small} --policies latency --timings --json`);
  const { decision_us } = JSON.parse(printed).policies.latency;
  expect(decision_us.p50).toBeGreaterThan(0);
});

it("shows a table, and writes a page that needs nothing from elsewhere", async () => {
  const path = join(folder, "replay.html");
  const { printed } = await run(
    `${small} --policies blocks,latency --capacity --steps 2 --curve 3 --html ${path}`,
  );
  expect(printed).toMatch(/^policy +cap deadline +cap pair/m);
  expect(printed).toMatch(/^latency +\d/m);
  const page = readFileSync(path, "utf8");
  expect(page.match(/<svg/g)).toHaveLength(3);
  expect(page.match(/<polyline/g)).toHaveLength(4);
  expect(page).not.toMatch(/https?:|<script|src=|href=/);
});

it("replays sessions in a closed loop, and Azure traces with prefixes in common", async () => {
  const rows = [0, 1, 2, 3].map((turn) =>
    JSON.stringify({
      ...(turn === 0 ? { timestamp: 0 } : { delay: 1000 }),
      session_id: "s",
      input_length: 512 * (turn + 1),
      output_length: 10,
      hash_ids: Array.from({ length: turn + 1 }, (_, id) => id),
    }),
  );
  const trace = written("sessions.jsonl", `${rows.join("\n")}\n`);
  const sessions = JSON.parse((await run(`--trace ${trace} --policies latency --json`)).printed);
  expect(sessions.policies.latency.span_s).toBeGreaterThan(3);
  expect(sessions.policies.latency.hit_ratio).toBe(0.6);

  const csv = Array.from(
    { length: 60 },
    (_, row) => `2023-11-16 18:17:${String(row).padStart(2, "0")}.5000000,4000,3`,
  );
  const azure = written("azure.csv", `TIMESTAMP,ContextTokens,GeneratedTokens\n${csv.join("\n")}`);
  const hits = async (flags: string) =>
    JSON.parse((await run(`--trace ${azure} --policies latency --json ${flags}`)).printed).policies
      .latency.hit_ratio;
  expect(await hits("--prefix-share 0")).toBe(0);
  expect(await hits("")).toBeGreaterThan(0.1);
});

it("draws requests from a trace", async () => {
  const { printed } = await run(`${small} --policies random --resample 70 --json`);
  expect(JSON.parse(printed).trace.requests).toBe(70);
});

it("takes engine options and a wrong profile from files", async () => {
  const perf = (msPerToken: number) => ({
    kind: "coefficients",
    prefill: { pass_ms: 12, ms_per_token: msPerToken, ms_per_token_context: 0 },
    decode: { step_ms: 14, ms_per_active_kv_token: 0, ms_per_sequence: 0.1 },
  });
  const engine = written("engine.json", JSON.stringify({ perf_model: perf(0.055) }));
  const profile = written("profile.json", JSON.stringify(perf(0.5)));
  // Few enough that nothing has been learnt yet.
  const line = `--synth demo --requests 6 --policies latency --engine ${engine} --json`;
  const [right, wrong] = [await run(line), await run(`${line} --profile ${profile}`)];
  const errorOf = ({ printed }: { printed: string }): number =>
    JSON.parse(printed).policies.latency.ttft_prediction_error.p50;
  expect(errorOf(right)).toBeLessThan(errorOf(wrong));
});

it.each([
  ["", /expected either --trace or --synth/],
  ["--synth demo --trace x", /expected either --trace or --synth/],
  ["--trace /nowhere.jsonl", /no trace file at \/nowhere.jsonl/],
  [`${small} --policies blokcs`, /unknown policy blokcs .did you mean blocks/],
  [`${small} --capacity --forms tight`, /unknown objective tight/],
  [`${small} --capacity --speed-min 5 --speed-max 4`, /expected more than --speed-min/],
  [`${small} --block-size 96`, /divisor of 512, got 96/],
  [`${small} --engine /nowhere.json`, /--engine: no file/],
  [`${small} --classes 0.5:100`, /sum to 1/],
])("refuses %s with a reason, and exits 2", async (line, reason) => {
  const { code, complaints } = await run(line);
  expect(complaints.join("\n")).toMatch(reason);
  expect(code).toBe(2);
});
