#!/usr/bin/env node
/**
 * Compiles `assembly/` to `dist/core.wasm`, about 4 s; does nothing when the module is newer than
 * its sources. Without the compiler (an install of production dependencies) it says so and exits 0:
 * the TypeScript core serves.
 */
import { mkdirSync, readdirSync, renameSync, statSync } from "node:fs";
import { join, resolve } from "node:path";

const root = resolve(import.meta.dirname, "..");
const sources = join(root, "assembly");
const module = join(root, "dist", "core.wasm");
const flags = [
  ...["-O3", "--runtime", "stub", "--enable", "simd", "--noAssert", "--use", "abort="],
  // A usize is a u32: the module is for 32-bit memory.
  ...["--disableWarning", "201"],
];

if (isStale()) {
  const asc = await import("assemblyscript/asc").catch(() => undefined);
  if (asc) await compile(asc);
  else process.stdout.write("fast core not built: no assemblyscript here; TypeScript serves\n");
}

/** Other processes see the old module or the new one, never a part. */
async function compile(asc) {
  mkdirSync(join(root, "dist"), { recursive: true });
  const { error, stderr } = await asc.main([
    ...["assembly/core.ts", "--baseDir", root, "--outFile", "dist/core-new.wasm"],
    ...flags,
  ]);
  const said = stderr.toString();
  if (said !== "") process.stderr.write(said);
  if (error) {
    process.exitCode = 1;
    return;
  }
  renameSync(join(root, "dist", "core-new.wasm"), module);
  process.stdout.write(`fast core: dist/core.wasm, ${statSync(module).size} bytes\n`);
}

function isStale() {
  const built = statSync(module, { throwIfNoEntry: false });
  if (!built) return true;
  const files = [...readdirSync(sources).map((name) => join(sources, name)), import.meta.filename];
  return files.some((path) => statSync(path).mtimeMs > built.mtimeMs);
}
