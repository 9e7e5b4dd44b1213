import { expect, it } from "vitest";
import type { DemoSummary } from "../../src/sim/demo-report.ts";
import { natsBinary } from "./nats-fixture.ts";
import { tiergrid } from "./tiergrid-process.ts";

const small = ["--requests", "24", "--speedup", "4", "--prefill-workers", "2", "--exit", "--json"];

const summaryOf = (stdout: string): DemoSummary => {
  const last = stdout.trimEnd().split("\n").at(-1) ?? "";
  return JSON.parse(last) as DemoSummary;
};

it("answers every request of a small trace over NATS with the right tokens", async () => {
  const run = tiergrid(["demo", ...small], { NATS_SERVER_BIN: await natsBinary() });
  expect(await run.ended(), run.stderr()).toBe(0);
  const summary = summaryOf(run.stdout());
  expect(summary).toMatchObject({ requests: 24, completed: 24, failed: 0, token_mismatch: 0 });
  expect(summary).toMatchObject({ rejected: 0, migrated: 0, bus: "nats" });
  expect(summary.kv_hit_ratio).toBeGreaterThan(0.05);
  expect(summary.ttft_ms.p50).toBeGreaterThan(0);
  expect(summary.pools.map(({ role }) => role)).toEqual(["prefill", "prefill", "decode", "decode"]);
  for (const role of ["prefill", "decode"]) {
    const pools = summary.pools.filter((pool) => pool.role === role);
    expect(pools.reduce((sum, { requests }) => sum + requests, 0)).toBe(24);
  }
  for (const { requests, workers } of summary.pools) {
    expect(workers).toHaveLength(2);
    expect(workers.reduce((sum, worker) => sum + worker.requests, 0)).toBe(requests);
  }
});

it("runs on the embedded bus with another policy, and ends by itself", async () => {
  const run = tiergrid(["demo", ...small, "--bus", "embedded", "--router-policy", "round-robin"]);
  expect(await run.ended(), run.stderr()).toBe(0);
  expect(summaryOf(run.stdout())).toMatchObject({ completed: 24, bus: "embedded" });
});

it("refuses a trace that it cannot read, and a server that is not there", async () => {
  const missing = tiergrid(["demo", "--trace", "/nonexistent.jsonl"]);
  expect(await missing.ended()).toBe(2);
  expect(missing.stderr()).toContain("error: no trace file at /nonexistent.jsonl");
  const nowhere = tiergrid(["demo", "--nats", "nats://127.0.0.1:1", "--exit"]);
  expect(await nowhere.ended()).toBe(1);
  expect(nowhere.stderr()).toContain("error: no server");
});

it("keeps the fleet up until it is told to stop, and answers in the meantime", async () => {
  const run = tiergrid(["demo", "--requests", "2", "--http-port", "0", "--json"], {
    NATS_SERVER_BIN: await natsBinary(),
  });
  const [, url] = await run.says(/curl (http:\S+)\/v1/);
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      model: "mock-model",
      max_tokens: 8,
      messages: [{ role: "user", content: "Hello" }],
    }),
  });
  expect(response.status).toBe(200);
  expect(await response.json()).toMatchObject({ usage: { completion_tokens: 8 } });
  expect(await run.terminate()).toBe(0);
});
