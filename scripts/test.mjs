#!/usr/bin/env node
/**
 * `npm test`: lint and format, types, then every vitest project. Arguments go to vitest, e.g.
 * `npm test -- --project unit test/core`. The last line is `N passed, N failed[, N skipped]`;
 * a check that fails counts as one failed item. Exits 0 only when nothing failed.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const root = resolve(import.meta.dirname, "..");

const checks = [
  { name: "lint and format", command: "biome", args: ["check", "--diagnostic-level=warn", "."] },
  { name: "types", command: "tsc", args: [] },
];
const failedChecks = checks.filter((check) => !runs(check.command, check.args));
const tests = runTests(process.argv.slice(2));

for (const check of failedChecks) process.stdout.write(`FAILED CHECK  ${check.name}\n`);
const failed = tests.failed + failedChecks.length;
const skipped = tests.skipped > 0 ? `, ${tests.skipped} skipped` : "";
process.stdout.write(`${tests.passed} passed, ${failed} failed${skipped}\n`);
process.exitCode = failed > 0 ? 1 : 0;

/** Runs vitest with its output on the terminal; counts come from its JSON report. */
function runTests(args) {
  const folder = mkdtempSync(join(tmpdir(), "tiergrid-test-"));
  const report = join(folder, "report.json");
  try {
    const reporters = ["--reporter=default", "--reporter=json", `--outputFile.json=${report}`];
    const clean = runs("vitest", ["run", ...reporters, ...args]);
    const counts = countsOf(report);
    // Unhandled errors and files that cannot be loaded fail the run without failing a test.
    return { ...counts, failed: counts.failed + (clean || counts.failed > 0 ? 0 : 1) };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function countsOf(report) {
  try {
    const { numPassedTests, numPendingTests, numTodoTests, testResults } = JSON.parse(
      readFileSync(report, "utf8"),
    );
    const failed = testResults.flatMap((file) => {
      const tests = file.assertionResults.filter((test) => test.status === "failed");
      return tests.length === 0 && file.status === "failed" ? [file] : tests;
    });
    return {
      passed: numPassedTests,
      failed: failed.length,
      skipped: numPendingTests + numTodoTests,
    };
  } catch {
    return { passed: 0, failed: 0, skipped: 0 };
  }
}

function runs(command, args) {
  const path = join(root, "node_modules", ".bin", command);
  const { status, error } = spawnSync(path, args, { cwd: root, stdio: "inherit" });
  if (error) process.stderr.write(`cannot run ${command}: ${error.message}\n`);
  return status === 0;
}
