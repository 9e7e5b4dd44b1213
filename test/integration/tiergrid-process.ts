/** A `tiergrid` command as a process of its own, with what it prints. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { realClock, sleep } from "../../src/base/clock.ts";
import { compiledMain } from "./compiled.ts";
import { patienceMs } from "./processes.ts";

const root = fileURLToPath(new URL("../../", import.meta.url));
const pollMs = 25;

export interface TiergridProcess {
  readonly child: ChildProcess;
  readonly stdout: () => string;
  readonly stderr: () => string;
  /** Resolves with the first match in stderr; rejects with all of it after `patienceMs`. */
  says(pattern: RegExp): Promise<RegExpExecArray>;
  /** Resolves with the exit code. */
  ended(): Promise<number | null>;
  /** Sends SIGTERM; resolves with the exit code. */
  terminate(): Promise<number | null>;
}

export function tiergrid(
  args: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): TiergridProcess {
  const child = spawn(process.execPath, [compiledMain, ...args], {
    cwd: root,
    env: { ...process.env, ...environment },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const closed = once(child, "close").then(() => child.exitCode);
  return {
    child,
    stdout: () => stdout,
    stderr: () => stderr,
    ended: () => closed,
    says: async (pattern) => {
      const untilMs = realClock.nowMs() + patienceMs;
      for (;;) {
        const found = pattern.exec(stderr);
        if (found) return found;
        if (realClock.nowMs() > untilMs) throw new Error(`no ${pattern} in:\n${stderr}`);
        await sleep(realClock, pollMs);
      }
    },
    terminate: () => {
      child.kill("SIGTERM");
      return closed;
    },
  };
}
