import { readdirSync } from "node:fs";
import { expect, it } from "vitest";
import { loadPoolConfigFile, loadPoolConfigText } from "../../src/config/load-pool-config.ts";
import { poolConfigText } from "../../src/config/write-pool-config.ts";

const options = { ownNamespace: "dynamo" };
const files = readdirSync("pool-configs").filter((name) => /\.(json|yaml)$/.test(name));

it.each(files)("writes %s so that it loads as the same version", async (name) => {
  const loaded = await loadPoolConfigFile(`pool-configs/${name}`, options);
  if (!loaded.ok) throw new Error(JSON.stringify(loaded.faults));
  const text = poolConfigText(loaded.config, "../schemas/pool-config.schema.json");
  expect(text).toMatch(/^\{\n {2}"\$schema": "\.\.\/schemas/);
  const again = loadPoolConfigText(text, "json", options);
  expect(again.ok && again.config.version).toBe(loaded.config.version);
});

it("writes a row of a mapping on a line, and no schema unless there is one", async () => {
  const loaded = await loadPoolConfigFile("pool-configs/demo.json", options);
  if (!loaded.ok) throw new Error("demo.json");
  const text = poolConfigText(loaded.config);
  expect(text).toMatch(/^\{\n {2}"mode": "disagg",\n/);
  expect(text).toContain('"prefill_pool_mapping": [\n      [0, 0, 1],\n      [0, 0, 1],\n');
  expect(text.split("\n").every((line) => line.length <= 110)).toBe(true);
});
