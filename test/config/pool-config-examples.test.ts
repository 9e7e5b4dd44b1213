import { readdir } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";
import { loadPoolConfigFile, poolConfigError } from "../../src/config/load-pool-config.ts";
import { type PoolConfig, rolePools } from "../../src/config/pool-config.ts";
import { renderGrid } from "../../src/config/render-grid.ts";
import { type Role, selectPool } from "../../src/core/sla-grid.ts";

const folder = new URL("../../pool-configs/", import.meta.url);
const names = (await readdir(folder)).filter((name) => /\.(json|ya?ml)$/.test(name));

async function load(name: string): Promise<PoolConfig> {
  const path = fileURLToPath(new URL(name, folder));
  const result = await loadPoolConfigFile(path, { ownNamespace: "dynamo", strict: true });
  if (!result.ok) throw poolConfigError(result.faults);
  expect(result.warnings).toEqual([]);
  return result.config;
}

it("ships an example of every form of grid", () => {
  expect(names.sort()).toEqual([
    "agg-2d.yaml",
    "agg-3d.yaml",
    "demo.json",
    "disagg-log2-spill.yaml",
    "live.yaml",
    "small.json",
  ]);
});

for (const name of names) {
  it(`loads and draws the example ${name} without warnings`, async () => {
    const config = await load(name);
    for (const { role, pools } of config.roles) {
      const text = renderGrid(config, role);
      for (const { namespace } of pools) expect(text).toContain(namespace);
    }
  });
}

/** Namespace the demo chooses for a request of `tokens` with one target for both latencies. */
function chosen(config: PoolConfig, role: Role, tokens: number, valueMs: number | null): string {
  const { grid, pools } = rolePools(config, role);
  const target = { valueMs, source: "default" };
  const { pool } = selectPool(grid, { tokens, ttft: target, itl: target, priority: null });
  return pools[pool]?.namespace ?? "";
}

it("uses all four pools of the demo for 6.9k and 27k tokens without targets", async () => {
  const config = await load("demo.json");
  for (const role of ["prefill", "decode"] as const) {
    expect(chosen(config, role, 6_900, null)).toBe(`${role}-fast`);
    expect(chosen(config, role, 27_000, null)).toBe(`${role}-bulk`);
    expect(chosen(config, role, 126_000, null)).toBe(`${role}-bulk`);
  }
});

it("moves a short demo prompt between pools by its TTFT target", async () => {
  const config = await load("demo.json");
  expect(chosen(config, "prefill", 12, 100)).toBe("prefill-fast");
  expect(chosen(config, "prefill", 12, 2000)).toBe("prefill-bulk");
});
