/** Prompts that their pool's router holds, in a whole fleet: through both tiers and the frontend. */
import { readFile } from "node:fs/promises";
import { expect, it } from "vitest";
import { checkPoolConfig } from "../../src/config/load-pool-config.ts";
import type { PoolConfig } from "../../src/config/pool-config.ts";
import { mockToken } from "../../src/protocol/mock-tokens.ts";
import { laterMs } from "../../src/runtime/notice-outbox.ts";
import { type Rig, rig } from "./fleet-rig.ts";

/** The demo's pools, with prefill pools chosen by quotes. */
async function liveConfig(): Promise<PoolConfig> {
  const demo = JSON.parse(await readFile("pool-configs/demo.json", "utf8"));
  demo.prefill_pool_selection_strategy.selection = "live";
  const checked = checkPoolConfig(demo, { ownNamespace: "dynamo" });
  if (!checked.ok) throw new Error(JSON.stringify(checked.faults));
  return checked.config;
}

interface Served {
  readonly ttftTargetMs: number;
  status: number;
  endMs: number;
}

function start({ fleet, clock }: Rig, family: number, ttftTargetMs: number): Served {
  const served: Served = { ttftTargetMs, status: 0, endMs: Number.POSITIVE_INFINITY };
  const body = {
    model: "mock-model",
    prompt: Array.from({ length: 6000 }, (_, at) => mockToken(family, at)),
    max_tokens: 2,
    nvext: { router: { ttft_target: ttftTargetMs } },
  };
  const headers = { "content-type": "application/json" };
  const init = { method: "POST", headers, body: JSON.stringify(body) };
  void Promise.resolve(fleet.frontend.http.app.request("/v1/completions", init)).then(
    (response) => {
      served.status = response.status;
      served.endMs = clock.nowMs();
    },
  );
  return served;
}

it("serves tight prompts before lax ones that came earlier, and all of them", async () => {
  const it = await rig(7, { routerCostMode: "latency" }, await liveConfig());
  const { clock, fleet } = it;
  const lax = Array.from({ length: 24 }, (_, at) => start(it, at, 60_000));
  await clock.runFor(60);
  const waiting = () => fleet.pools.reduce((sum, { router }) => sum + router.stats.waiting, 0);
  expect(waiting()).toBeGreaterThan(8);
  const tight = Array.from({ length: 4 }, (_, at) => start(it, 100 + at, 1_500));
  await clock.runFor(30_000);
  expect([...lax, ...tight].map(({ status }) => status)).toEqual(Array(28).fill(200));
  const lastTightMs = Math.max(...tight.map(({ endMs }) => endMs));
  expect(lax.filter(({ endMs }) => endMs > lastTightMs).length).toBeGreaterThan(8);
  await clock.runFor(laterMs);
  expect(fleet.global.openRequests).toBe(0);
  // Held for longer than a hop may be silent, and nobody was asked twice.
  expect(await fleet.metrics.text()).not.toMatch(/tiergrid_retry_total\{.*\} [1-9]/);
  expect(waiting()).toBe(0);
  await fleet.close();
});
