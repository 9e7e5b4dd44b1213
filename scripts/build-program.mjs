#!/usr/bin/env node
/**
 * Compiles `src/` to `dist/`, about 2 s, so that `npx tiergrid` and the package have a program. Without
 * the compiler (an install of production dependencies) or without sources (a layer of an image) it
 * says so and exits 0.
 */
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync } from "node:fs";
import { join, resolve } from "node:path";

const root = resolve(import.meta.dirname, "..");
const project = join(root, "tsconfig.build.json");
const compiler = join(root, "node_modules", ".bin", "tsc");

if (!existsSync(project)) say("no sources here");
else if (!existsSync(compiler)) say("no typescript here");
else {
  const { status } = spawnSync(compiler, ["-p", project], { cwd: root, stdio: "inherit" });
  if (status === 0) chmodSync(join(root, "dist", "cli", "main.js"), 0o755);
  else process.exitCode = 1;
}

function say(why) {
  process.stdout.write(`program not compiled: ${why}\n`);
}
