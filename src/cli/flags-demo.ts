/** Flags of `tiergrid demo`. */
import type { Command, FlagTable, OptionsOf } from "../base/flags.ts";

const loadFlags = {
  trace: {
    flag: "trace",
    type: "string",
    default: null,
    group: "Load",
    help: "Mooncake JSONL file to replay instead of generated requests.",
  },
  requests: {
    flag: "requests",
    type: "integer",
    min: 1,
    max: 1_000_000,
    default: null,
    group: "Load",
    help: "Sends only the first so many requests.",
  },
  rate: {
    flag: "rate",
    type: "number",
    above: 0,
    max: 1000,
    default: 1,
    group: "Load",
    help: "Divides the gaps between arrivals; 2 sends twice as fast.",
  },
  seed: {
    flag: "seed",
    env: "TIERGRID_SEED",
    type: "integer",
    min: 0,
    max: 4_294_967_295,
    default: 42,
    group: "Load",
    help: "Of the generated requests, their arrivals and targets.",
  },
} as const satisfies FlagTable;

const fleetFlags = {
  config: {
    flag: "config",
    type: "string",
    default: null,
    group: "Fleet",
    help: "Pool config; without it the package's pool-configs/demo.json.",
  },
  workers: {
    flag: "workers",
    type: "integer",
    min: 1,
    max: 32,
    default: 2,
    group: "Fleet",
    help: "Workers of each pool.",
  },
  engineSpeed: {
    flag: "engine-speed",
    type: "number",
    above: 0,
    default: 1,
    group: "Fleet",
    help: "Divides every duration of the mock engines.",
  },
  workerPolicy: {
    flag: "worker-policy",
    type: "choice",
    choices: ["cost", "random", "round-robin"],
    default: "cost",
    group: "Fleet",
    help: "How the local routers choose a worker.",
  },
  compare: {
    flag: "compare",
    type: "boolean",
    default: false,
    group: "Fleet",
    help: "Runs the load again with round-robin and shows both.",
  },
  httpPort: {
    flag: "http-port",
    type: "integer",
    min: 0,
    max: 65_535,
    default: 8000,
    group: "Fleet",
    help: "Port of the OpenAI API on this machine; 0 takes a free one.",
  },
  keep: {
    flag: "keep",
    type: "boolean",
    default: false,
    group: "Fleet",
    help: "Keeps the fleet running after the load, until Ctrl-C.",
  },
} as const satisfies FlagTable;

const busFlags = {
  bus: {
    flag: "bus",
    type: "choice",
    choices: ["auto", "nats", "embedded"],
    default: "auto",
    group: "Bus",
    help: "auto: a nats-server, or the in-process bus when none can be had.",
  },
  nats: {
    flag: "nats",
    env: "NATS_SERVER",
    otherEnv: ["NATS_URL"],
    type: "string",
    default: null,
    group: "Bus",
    help: "A server that runs; without it a private one is started.",
  },
  download: {
    flag: "download",
    type: "boolean",
    default: true,
    group: "Bus",
    help: "A missing nats-server may be unpacked from the distribution's package or downloaded.",
  },
  log: {
    flag: "log",
    env: "DYN_LOG",
    type: "string",
    default: "warn",
    group: "Logs",
    help: "Filter: a level, then target=level pairs.",
  },
} as const satisfies FlagTable;

export const demoFlags = { ...loadFlags, ...fleetFlags, ...busFlags };
export type DemoOptions = OptionsOf<typeof demoFlags>;

export const demoCommand: Command<typeof demoFlags> = {
  name: "tiergrid demo",
  summary:
    "Runs a whole two-tier fleet with mock engines on this machine: global router, local routers, " +
    "workers, OpenAI API. Sends requests with several SLAs and shows where they went.",
  flags: demoFlags,
  examples: [
    { does: "about half a minute, then a summary", line: "tiergrid demo" },
    { does: "what KV-aware routing is worth here", line: "tiergrid demo --compare" },
    {
      does: "replay a recorded trace, engines and arrivals ten times as fast",
      line: "tiergrid demo --trace conversation_trace.jsonl --requests 2000 --rate 10 --engine-speed 10",
    },
    { does: "leave it running and talk to it with curl", line: "tiergrid demo --keep" },
  ],
};
