#!/usr/bin/env node
/**
 * `npm test`: lint and format, types, then every vitest project, in two lanes:
 *
 *   checks ▶ unit ▶ sim        what computes, on this terminal
 *   integration                what mostly waits for processes; its output follows at the end
 *
 * With arguments there is one lane and they go to vitest: `npm test -- --project unit test/core`.
 * The last line is `N passed, N failed[, N skipped]`; a check that fails counts as one failed
 * item. Exits 0 only when nothing failed.
 */
import { spawn } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const root = resolve(import.meta.dirname, "..");
const checks = [
  { name: "lint and format", command: "biome", args: ["check", "--diagnostic-level=warn", "."] },
  { name: "types", command: "tsc", args: [] },
];

const folder = mkdtempSync(join(tmpdir(), "tiergrid-test-"));
try {
  const asked = process.argv.slice(2);
  report(await (asked.length > 0 ? computed(asked) : bothLanes()));
} finally {
  rmSync(folder, { recursive: true, force: true });
}

async function bothLanes() {
  const log = join(folder, "integration.log");
  const output = openSync(log, "w");
  const waiting = vitest("integration", ["--project", "integration"], output);
  const first = await computed(["--project", "unit", "--project", "sim"]);
  process.stdout.write("integration: its output follows when it is over\n");
  const second = await waiting;
  closeSync(output);
  process.stdout.write(readFileSync(log));
  return [...first, ...second];
}

/** The checks, then vitest with `args`. */
async function computed(args) {
  const failed = [];
  for (const { name, command, args: given } of checks) {
    if (!(await runs(command, given, "inherit"))) failed.push(name);
  }
  const counts = await vitest("first", args, "inherit");
  return [...counts, { passed: 0, failed: failed.length, skipped: 0, checks: failed }];
}

/** Runs vitest; counts come from its JSON report, which `lane` names. */
async function vitest(lane, args, output) {
  const json = join(folder, `${lane}.json`);
  const reporters = ["--reporter=default", "--reporter=json", `--outputFile.json=${json}`];
  const clean = await runs("vitest", ["run", ...reporters, ...args], output);
  const counts = countsOf(json);
  // Unhandled errors and files that cannot be loaded fail the run without failing a test.
  return [{ ...counts, failed: counts.failed + (clean || counts.failed > 0 ? 0 : 1) }];
}

function countsOf(json) {
  try {
    const { numPassedTests, numPendingTests, numTodoTests, testResults } = JSON.parse(
      readFileSync(json, "utf8"),
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

function report(counts) {
  const sum = (of) => counts.reduce((total, count) => total + of(count), 0);
  for (const name of counts.flatMap(({ checks = [] }) => checks)) {
    process.stdout.write(`FAILED CHECK  ${name}\n`);
  }
  const failed = sum((count) => count.failed);
  const skipped = sum((count) => count.skipped);
  const unrun = skipped > 0 ? `, ${skipped} skipped` : "";
  process.stdout.write(`${sum((count) => count.passed)} passed, ${failed} failed${unrun}\n`);
  process.exitCode = failed > 0 ? 1 : 0;
}

/** True when the command exits 0; stdout and stderr go to `output`. */
function runs(command, args, output) {
  const path = join(root, "node_modules", ".bin", command);
  const child = spawn(path, args, { cwd: root, stdio: ["inherit", output, output] });
  return new Promise((settle) => {
    child.once("exit", (code) => settle(code === 0));
    child.once("error", ({ message }) => {
      process.stderr.write(`cannot run ${command}: ${message}\n`);
      settle(false);
    });
  });
}
