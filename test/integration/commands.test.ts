import { execFileSync } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { realClock } from "../../src/base/clock.ts";
import { mockToken, readableMockTokenRange } from "../../src/protocol/mock-tokens.ts";
import { startNatsServer } from "../../src/runtime/nats-server.ts";
import { compiledMain } from "./compiled.ts";
import { natsBinary } from "./nats-fixture.ts";
import { root, until } from "./processes.ts";
import { type TiergridProcess, tiergrid } from "./tiergrid-process.ts";

const poolConfig = {
  mode: "agg",
  num_agg_pools: 1,
  agg_pool_dynamo_namespaces: ["only"],
  agg_pool_selection_strategy: {
    ttft_min_ms: 100,
    ttft_max_ms: 1000,
    ttft_resolution: 1,
    itl_min_ms: 10,
    itl_max_ms: 100,
    itl_resolution: 1,
    agg_pool_mapping: [[0]],
  },
};

let folder = "";
let config = "";
const running = new Set<TiergridProcess>();

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "tiergrid-commands-"));
  config = join(folder, "pools.json");
  await writeFile(config, JSON.stringify(poolConfig));
});

afterEach(async () => {
  for (const { child } of running) child.kill("SIGKILL");
  running.clear();
  await rm(folder, { recursive: true, force: true });
});

function start(line: string, port: number): TiergridProcess {
  const process = tiergrid([...line.split(" "), "--system-port", "0"], {
    NATS_SERVER: `nats://127.0.0.1:${port}`,
    DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS: "0",
  });
  running.add(process);
  return process;
}

const startGlobal = (port: number): TiergridProcess =>
  start(`global --config ${config} --model-name mock-model --http-port 0`, port);
const startLocal = (port: number): TiergridProcess =>
  start("local --endpoint only.backend.generate --router-block-size 64", port);
const startWorker = (port: number): TiergridProcess =>
  start("worker mock --endpoint only.backend.generate --count 2 --speed 10", port);

async function freePort(): Promise<number> {
  const probe = createServer();
  await new Promise<void>((resolve) => probe.listen(0, "127.0.0.1", resolve));
  const address = probe.address();
  await new Promise((resolve) => probe.close(resolve));
  return typeof address === "object" && address ? address.port : 0;
}

async function tokensOf(api: string, prompt: readonly number[], seed: number): Promise<number[]> {
  const body = {
    model: "mock-model",
    ...{ prompt, seed, max_tokens: 12, ignore_eos: true, return_token_ids: true },
  };
  const response = await fetch(`${api}/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const answer = (await response.json()) as { choices?: { token_ids: number[] }[] };
  if (!answer.choices?.[0]) throw new Error(`${response.status} ${JSON.stringify(answer)}`);
  return answer.choices[0].token_ids;
}

it("starts in any order, even before the broker, serves, and drains on SIGTERM", async () => {
  const port = await freePort();
  const processes = [startWorker(port), startGlobal(port), startLocal(port)];
  const [worker, global, local] = processes;
  await Promise.all(processes.map((one) => one.says(/no NATS server answers/)));
  const nats = await startNatsServer({ binary: await natsBinary(), clock: realClock, port });
  try {
    await Promise.all(processes.map((one) => one.says(/process: ready/)));
    const [, api = ""] = await global!.says(/ready .*api=(\S+)/);
    const prompt = Array.from({ length: 100 }, (_, at) => at);
    const expected = Array.from({ length: 12 }, (_, at) =>
      mockToken(5, 100 + at, readableMockTokenRange),
    );
    expect(await tokensOf(api, prompt, 5)).toEqual(expected);
    const asked = ["explain", config, "--tokens", "100", "--nats", `nats://127.0.0.1:${port}`];
    let said = "";
    const explains = async (): Promise<boolean> => {
      const explain = tiergrid(asked);
      expect(await explain.ended(), explain.stderr()).toBe(0);
      said = explain.stdout();
      return /^agg: pool only \(grid\)[\s\S]*ready, 2 workers, 0 in flight/.test(said);
    };
    await until("the pool is ready and its request over", explains, () => said);
    const models = await fetch(`${api}/models`).then((response) => response.json());
    expect(models).toMatchObject({ data: [{ id: "mock-model" }] });
    for (const one of processes) {
      const [, systemPort] = await one.says(/system_port=(\d+)/);
      const health = await fetch(`http://127.0.0.1:${systemPort}/health`);
      expect(health.status).toBe(200);
      const text = await fetch(`http://127.0.0.1:${systemPort}/metrics`).then((r) => r.text());
      expect(text).toContain("tiergrid_bus_connected 1");
    }
    expect(await worker!.terminate(), worker!.stderr()).toBe(0);
    expect(await local!.terminate(), local!.stderr()).toBe(0);
    expect(await global!.terminate(), global!.stderr()).toBe(0);
    expect(global!.stderr()).toMatch(/process: drained/);
  } finally {
    await nats.stop();
  }
});

it("exits 0 on SIGTERM while it still waits for a broker", async () => {
  const local = startLocal(await freePort());
  await local.says(/no NATS server answers/);
  // A second reminder, so that the process is past its start.
  await local.says(/(no NATS server answers[\s\S]*){2}/);
  expect(await local.terminate()).toBe(0);
});

it("prints everything that is wrong and exits 2", async () => {
  await writeFile(config, JSON.stringify({ ...poolConfig, num_agg_pools: 2, extra: 1 }));
  const port = await freePort();
  const global = startGlobal(port);
  expect(await global.ended()).toBe(2);
  expect(global.stderr()).toMatch(/pool config has \d error/);
  const router = `${config}.router.json`;
  await writeFile(router, JSON.stringify({ serve_indexer: true }));
  const local = start(`local --endpoint only.backend.generate --config ${router}`, port);
  expect(await local.ended()).toBe(2);
  expect(local.stderr()).toContain("not supported by this release: serve_indexer");
  const path = start("local --endpoint only.backend", port);
  expect(await path.ended()).toBe(2);
  expect(path.stderr()).toContain("namespace.component.endpoint");
});

it("is a program of its own once the package is prepared, as npx needs it", async () => {
  const { bin, scripts } = JSON.parse(await readFile(join(root, "package.json"), "utf8"));
  expect(scripts).toMatchObject({ prepare: "npm run -s build" });
  expect(join(root, bin.tiergrid)).toBe(compiledMain);
  expect(execFileSync(compiledMain, ["--help"], { encoding: "utf8" })).toContain("tiergrid global");
});
