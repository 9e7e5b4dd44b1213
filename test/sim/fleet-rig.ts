/** The demo's pools on the in-process bus, under one manual clock. */
import { ManualClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { defaultKvRouterConfig, type KvRouterConfig } from "../../src/config/kv-router-config.ts";
import { loadPoolConfigFile } from "../../src/config/load-pool-config.ts";
import type { PoolConfig } from "../../src/config/pool-config.ts";
import { silentLog } from "../../src/runtime/log.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";
import { type Fleet, startFleet } from "../../src/sim/fleet.ts";
import { readMockEngineConfig } from "../../src/worker/mock-engine-config.ts";

export const blockSize = 16;

export interface Rig {
  readonly clock: ManualClock;
  readonly fleet: Fleet;
}

/** `config` in place of the demo's pools. */
export async function rig(
  seed: number,
  kvRouter: Partial<KvRouterConfig> = {},
  config?: PoolConfig,
): Promise<Rig> {
  const clock = new ManualClock();
  const random = mulberry32(seed);
  const network = createMemoryNetwork({ clock, random });
  const loaded = await loadPoolConfigFile("pool-configs/demo.json", { ownNamespace: "dynamo" });
  if (!loaded.ok) throw new Error(JSON.stringify(loaded.faults));
  const engine = (role: string) =>
    readMockEngineConfig({
      worker_type: role,
      block_size: blockSize,
      num_gpu_blocks: 1024,
      max_model_len: 8192,
    });
  const fleet = await startFleet({
    connect: (role) => Promise.resolve(network.connect({ role })),
    clock,
    random,
    logs: () => silentLog,
    config: config ?? loaded.config,
    kvRouter: { ...defaultKvRouterConfig, ...kvRouter },
    workerPolicy: "blocks",
    enginesOf: (role) => [engine(role), engine(role)],
    model: "mock-model",
    acceptTimeoutMs: 300,
    version: "0.0.0",
  });
  const ready = fleet.ready(5000);
  await clock.runUntil(() => fleet.global.ready() && fleet.pools.every((p) => p.ready()), 5000);
  await clock.runFor(100);
  await ready;
  return { clock, fleet };
}
