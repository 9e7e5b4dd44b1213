import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterEach, beforeEach, expect, it } from "vitest";
import { loadFastCore } from "../../src/base/fast-core.ts";

const buildScript = join(import.meta.dirname, "..", "..", "scripts", "build-core.mjs");
let folder = "";

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "tiergrid-core-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

it("loads the module that the install has built", async () => {
  const { core, fallback } = await loadFastCore("wasm");
  expect(core).toBeDefined();
  expect(fallback).toBeUndefined();
});

it("does without the module when told to", async () => {
  expect(await loadFastCore("ts")).toEqual({ core: undefined, fallback: undefined });
});

it.each(["missing", "broken"])(
  "falls back from a %s module, unless it is asked for",
  async (state) => {
    const path = join(folder, "core.wasm");
    if (state === "broken") writeFileSync(path, "not WebAssembly");
    const { core, fallback } = await loadFastCore("auto", pathToFileURL(path));
    expect(core).toBeUndefined();
    expect(fallback).toMatch(state === "broken" ? /magic word/ : /no such file/);
    await expect(loadFastCore("wasm", pathToFileURL(path))).rejects.toMatchObject({
      code: "config_invalid",
    });
  },
);

it("an install without the compiler says so in one line and succeeds", () => {
  mkdirSync(join(folder, "scripts"));
  mkdirSync(join(folder, "assembly"));
  cpSync(buildScript, join(folder, "scripts", "build-core.mjs"));
  const ran = spawnSync(process.execPath, [join(folder, "scripts", "build-core.mjs")], {
    encoding: "utf8",
  });
  expect(ran.stderr).toBe("");
  expect(ran.stdout).toMatch(/^fast core not built: .*\n$/);
  expect(ran.status).toBe(0);
  expect(existsSync(join(folder, "dist"))).toBe(false);
});
