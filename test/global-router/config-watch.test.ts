import { mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, vi } from "vitest";
import { every, realClock } from "../../src/base/clock.ts";
import { TiergridError } from "../../src/base/errors.ts";
import type { ConfigFault } from "../../src/config/config-fault.ts";
import type { PoolConfig } from "../../src/config/pool-config.ts";
import { configSettleMs, watchPoolConfig } from "../../src/global-router/config-watch.ts";
import { silentLog } from "../../src/runtime/log.ts";
import { aggConfig, disaggConfig } from "./rig.ts";

interface Files {
  readonly path: string;
  write(text: string): Promise<void>;
}

async function inFolder(test: (files: Files) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "tiergrid-config-"));
  const path = join(folder, "pools.json");
  // As editors and config maps do it: another file takes the name.
  const write = async (text: string): Promise<void> => {
    await writeFile(`${path}.next`, text);
    await rename(`${path}.next`, path);
  };
  try {
    await test({ path, write });
  } finally {
    await rm(folder, { recursive: true });
  }
}

function recorder() {
  const applied: string[] = [];
  const rejected: number[] = [];
  const grids = {
    offer: ({ version, mode }: PoolConfig) => {
      if (mode === "disagg") throw new TiergridError("config_invalid", "another mode");
      applied.push(version);
      return "applied" as const;
    },
    rejected: (faults: readonly ConfigFault[]) => void rejected.push(faults.length),
  };
  return { applied, rejected, grids };
}

const load = { ownNamespace: "dynamo" };
const textOf = (config: PoolConfig): string => JSON.stringify(config.normal);

it("puts a valid file in force, counts a broken or missing one, and never rejects", () =>
  inFolder(async ({ path, write }) => {
    const { applied, rejected, grids } = recorder();
    const options = { path, load, clock: realClock, log: silentLog, grids };
    const watch = watchPoolConfig(options, false);
    await watch.reloadNow("http");
    await write("{");
    await watch.reloadNow("http");
    expect(rejected).toEqual([1, 1]);
    await write(textOf(aggConfig()));
    await watch.reloadNow("http");
    expect(applied).toEqual([aggConfig().version]);
    await write(textOf(disaggConfig()));
    await watch.reloadNow("http");
    expect(applied).toHaveLength(1);
    watch.stop();
  }));

it("follows a file in a folder that never rests", () =>
  inFolder(async ({ path, write }) => {
    const { applied, grids } = recorder();
    await write(textOf(aggConfig()));
    const watch = watchPoolConfig({ path, load, clock: realClock, log: silentLog, grids }, true);
    const changed = (): boolean => applied.length > 0;
    const noise = every(realClock, configSettleMs / 4, () => void writeFile(`${path}.log`, "x"));
    await vi.waitFor(() => expect(changed()).toBe(true), { timeout: 10_000 });
    noise();
    watch.stop();
  }));

it("says once what is wrong with a file in a folder that never rests", () =>
  inFolder(async ({ path, write }) => {
    const { rejected, grids } = recorder();
    const offered: string[] = [];
    const offer = (config: PoolConfig): "applied" => {
      offered.push(config.mode);
      return grids.offer(config);
    };
    let noisy = 0;
    const errors: string[] = [];
    const log = { ...silentLog, error: (message: string) => void errors.push(message) };
    const options = { path, load, clock: realClock, log, grids: { ...grids, offer } };
    const reads = async (count: number): Promise<void> => {
      for (let read = 0; read < count; read++) {
        await writeFile(`${path}.log`, String(noisy++));
        await watch.reloadNow("file");
      }
    };
    await write("{");
    const watch = watchPoolConfig(options, false);
    await reads(3);
    expect([rejected, errors.length]).toEqual([[1], 1]);
    await watch.reloadNow("signal");
    expect(rejected).toHaveLength(2);
    await write(textOf(disaggConfig()));
    await reads(3);
    expect(offered).toEqual(["disagg"]);
    await write("{");
    await reads(2);
    expect([rejected.length, errors.length]).toEqual([3, 4]);
    watch.stop();
  }));

it("notices that another file took the name, and stops noticing", () =>
  inFolder(async ({ path, write }) => {
    const { applied, grids } = recorder();
    const options = { path, load, clock: realClock, log: silentLog, grids };
    await write(textOf(aggConfig()));
    const watch = watchPoolConfig(options, true);
    const next = aggConfig({ enable_priority_retry: true });
    await write(textOf(next));
    await vi.waitFor(() => expect(applied).toContain(next.version), { timeout: 5000 });
    watch.stop();
    const missing = watchPoolConfig({ ...options, path: join(path, "none", "x.json") }, true);
    missing.stop();
  }));
