/** The smallest whole fleet: one aggregated pool, with one local router and one worker or more. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createFleet, type Fleet, type Part } from "./processes.ts";

const poolConfig = {
  mode: "agg",
  num_agg_pools: 1,
  agg_pool_dynamo_namespaces: ["pool"],
  agg_pool_selection_strategy: {
    ttft_min_ms: 100,
    ttft_max_ms: 1100,
    ttft_resolution: 2,
    itl_min_ms: 10,
    itl_max_ms: 110,
    itl_resolution: 2,
    agg_pool_mapping: [
      [0, 0],
      [0, 0],
    ],
  },
};

export interface AggFleet extends Fleet {
  /** Removes the config file; the processes are ended by `down`. */
  forget(): void;
}

/** Extra arguments of the local router and the worker. */
export interface AggArgs {
  readonly local?: readonly string[];
  readonly worker?: readonly string[];
  /** Default 1: `local`; more are `local 1` and so on. */
  readonly locals?: number;
  readonly workers?: number;
}

export function createAggFleet(
  natsUrl: string,
  { local = [], worker = [], locals = 1, workers = 1 }: AggArgs = {},
): AggFleet {
  const folder = mkdtempSync(join(tmpdir(), "tiergrid-agg-"));
  const config = join(folder, "agg.json");
  writeFileSync(config, JSON.stringify(poolConfig));
  const served = ["--endpoint", "pool.backend.generate"];
  const named = ["--model-name", "mock-model"];
  const parts: readonly Part[] = [
    { name: "global", args: ["global", "--config", config, ...named, "--http-port", "0"] },
    ...several("local", locals, ["local", ...served, "--router-block-size", "64", ...local]),
    ...several("worker", workers, ["worker", "mock", ...served, ...worker]),
  ];
  return Object.assign(createFleet(natsUrl, parts), {
    forget: () => rmSync(folder, { recursive: true, force: true }),
  });
}

function several(name: string, count: number, args: readonly string[]): Part[] {
  return Array.from({ length: count }, (_, at) => ({
    name: at === 0 ? name : `${name} ${at}`,
    args,
  }));
}
