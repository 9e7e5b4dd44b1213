/**
 * The program as it is installed, compiled once before the integration tests: its processes start
 * several times as fast as through a loader, and what is tested is what the package contains.
 */
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));

/** Entry point of every process that an integration test starts. */
export const compiledMain: string = fileURLToPath(
  new URL("../../dist/cli/main.js", import.meta.url),
);

/** Called once by vitest, before the first integration file. */
export function setup(): void {
  for (const script of ["build-core.mjs", "build-program.mjs"]) {
    execFileSync(process.execPath, [`${root}scripts/${script}`], { cwd: root, stdio: "inherit" });
  }
}
