import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";
import { loadPoolConfigFile, poolConfigError } from "../../src/config/load-pool-config.ts";
import type { PoolConfig } from "../../src/config/pool-config.ts";
import { renderGrid } from "../../src/config/render-grid.ts";

async function load(name: string): Promise<PoolConfig> {
  const path = fileURLToPath(new URL(`../golden/pool-configs-valid/${name}`, import.meta.url));
  const result = await loadPoolConfigFile(path, { ownNamespace: "dynamo" });
  if (!result.ok) throw poolConfigError(result.faults);
  return result.config;
}

it("draws a table with open border cells, then pools and rules", async () => {
  expect(`\n${renderGrid(await load("disagg-overrides-retry.json"), "decode")}`).toBe(`
decode grid of config 12fe29603b1f
  context_length: 0 .. 20000 tokens, 2 linear cells
  itl: 7.5 .. 57.5 ms, 2 linear cells

context_length \\ itl │ < 32.5 ms     >= 32.5 ms
─────────────────────┼───────────────────────────
< 10000              │ 1 tg-dc-mid   2 tg-dc-bulk
>= 10000             │ 0 tg-dc-fast  1 tg-dc-mid

pools (lower priority = faster)
  0 tg-dc-fast, priority 0
  1 tg-dc-mid, priority 5
  2 tg-dc-bulk, priority 5
  request priority 100 .. 1000 goes to pool 0
`);
});

it("draws one table per ISL cell of a grid with three axes", async () => {
  const text = renderGrid(await load("agg-3d.json"), "agg");
  expect(text).toContain("isl < 16384\nttft \\ itl");
  expect(text).toContain("isl >= 16384\nttft \\ itl");
  expect(text.match(/┼/g)).toHaveLength(2);
});

it("refuses a role the mode does not have", async () => {
  const config = await load("agg-2d.json");
  expect(() => renderGrid(config, "prefill")).toThrow("no prefill pools in agg mode");
});
