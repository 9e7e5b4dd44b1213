/** Flags of `tiergrid demo`. */
import type { Command, FlagTable, OptionsOf } from "../base/flags.ts";
import { coreFlags } from "./flags-process.ts";

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
  speedup: {
    flag: "speedup",
    type: "number",
    above: 0,
    max: 1000,
    default: 1,
    group: "Load",
    help: "Divides the gaps between arrivals and every duration of the engines alike.",
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
  prefillWorkers: {
    flag: "prefill-workers",
    type: "integer",
    min: 1,
    max: 32,
    default: 4,
    group: "Fleet",
    help: "Workers of each prefill or aggregated pool.",
  },
  decodeWorkers: {
    flag: "decode-workers",
    type: "integer",
    min: 1,
    max: 32,
    default: 2,
    group: "Fleet",
    help: "Workers of each decode pool.",
  },
  cacheBlocks: {
    flag: "cache-blocks",
    type: "integer",
    min: 2048,
    max: 1_000_000,
    default: 16_384,
    group: "Fleet",
    help: "KV blocks of each worker, 64 tokens each.",
  },
  routerPolicy: {
    flag: "router-policy",
    type: "choice",
    choices: ["blocks", "random", "round-robin"],
    default: "blocks",
    group: "Fleet",
    help: "How the local routers choose a worker; blocks: lowest cost of overlap and load.",
  },
  durableKvEvents: {
    flag: "durable-kv-events",
    type: "boolean",
    default: false,
    group: "Fleet",
    help: "KV events through JetStream, or through memory on the in-process bus.",
  },
  httpPort: {
    flag: "http-port",
    type: "integer",
    min: 0,
    max: 65_535,
    default: null,
    group: "Fleet",
    help: "Port of the OpenAI API on this machine; without it 8000, or any free one with --exit.",
  },
} as const satisfies FlagTable;

const outputFlags = {
  exit: {
    flag: "exit",
    type: "boolean",
    default: false,
    group: "Output",
    help: "Ends after the load; without it the fleet stays up until Ctrl-C.",
  },
  json: {
    flag: "json",
    type: "boolean",
    default: false,
    group: "Output",
    help: "The summary is one JSON object on stdout; everything else goes to stderr.",
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
    default: "error",
    group: "Logs",
    help: "Filter: a level, then target=level pairs.",
  },
} as const satisfies FlagTable;

export const demoFlags = { ...loadFlags, ...fleetFlags, ...coreFlags, ...outputFlags, ...busFlags };
export type DemoOptions = OptionsOf<typeof demoFlags>;

export const demoCommand: Command<typeof demoFlags> = {
  name: "tiergrid demo",
  summary:
    "Runs a whole two-tier fleet with mock engines on this machine: global router, local routers, " +
    "workers, OpenAI API. Replays a trace with several SLAs, checks every token, shows where requests went.",
  flags: demoFlags,
  examples: [
    { does: "about half a minute of load, then a fleet to talk to", line: "tiergrid demo" },
    {
      does: "what KV-aware routing is worth here",
      line: "tiergrid demo --exit --router-policy random",
    },
    {
      does: "replay a recorded trace ten times as fast",
      line: "tiergrid demo --trace conversation_trace.jsonl --requests 1000 --speedup 10 --exit",
    },
    {
      does: "one JSON object for a script",
      line: "tiergrid demo --exit --json 2> progress.log | tail -n 1",
    },
  ],
};
