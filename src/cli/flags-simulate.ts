/** Flags of `tiergrid simulate`. */
import type { Command, FlagTable, OptionsOf } from "../base/flags.ts";

export const simulateFlags = {
  seed: {
    flag: "seed",
    type: "integer",
    min: 0,
    max: 4_294_967_295,
    default: 1,
    group: "Simulation",
    help: "First seed; a seed decides requests, faults and every draw.",
  },
  seeds: {
    flag: "seeds",
    type: "integer",
    min: 1,
    max: 1_000_000,
    default: 10,
    group: "Simulation",
    help: "Seeds to run, one after the other.",
  },
  requests: {
    flag: "requests",
    type: "integer",
    min: 1,
    max: 100_000,
    default: 40,
    group: "Simulation",
    help: "Requests of each seed.",
  },
  faults: {
    flag: "faults",
    type: "integer",
    min: 0,
    max: 1000,
    default: 8,
    group: "Simulation",
    help: "Faults of each seed: loss, delay, freezes, dead workers and routers, broker outages.",
  },
  spanMs: {
    flag: "span-ms",
    type: "integer",
    min: 1,
    max: 3_600_000,
    default: 12_000,
    group: "Simulation",
    help: "Virtual time in ms within which requests and faults begin.",
  },
  routersPerPool: {
    flag: "routers-per-pool",
    type: "integer",
    min: 1,
    max: 64,
    default: 1,
    group: "Simulation",
    help: "Replicas of each pool's local router; above 1 with replica sync.",
  },
  config: {
    flag: "config",
    type: "string",
    default: null,
    group: "Simulation",
    help: "Pool config; without it the package's pool-configs/demo.json.",
  },
  json: {
    flag: "json",
    type: "boolean",
    default: false,
    group: "Output",
    help: "One JSON object per seed instead of a line of text.",
  },
} as const satisfies FlagTable;

export type SimulateOptions = OptionsOf<typeof simulateFlags>;

export const simulateCommand: Command<typeof simulateFlags> = {
  name: "tiergrid simulate",
  summary:
    "Runs a whole fleet under faults in virtual time, from a seed, and checks every token, every " +
    "ending, every book. Exits 1 when something that must hold did not.",
  flags: simulateFlags,
  examples: [
    { does: "a hundred seeds", line: "tiergrid simulate --seeds 100" },
    { does: "one seed again, to the last token", line: "tiergrid simulate --seed 17 --seeds 1" },
  ],
};
