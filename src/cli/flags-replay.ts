/** Flags of `tiergrid replay`. */
import type { Command, FlagTable, OptionsOf } from "../base/flags.ts";

const inputFlags = {
  trace: {
    flag: "trace",
    type: "string",
    default: null,
    group: "Trace",
    help: "File to replay: Mooncake JSONL (also with session_id and delay), or Azure CSV.",
  },
  synth: {
    flag: "synth",
    type: "choice",
    choices: ["toolagent", "toolagent-ci", "demo"],
    default: null,
    group: "Trace",
    help: "Preset of a generated trace, made from --seed, instead of a file.",
  },
  requests: {
    flag: "requests",
    type: "integer",
    min: 1,
    max: 1_000_000,
    default: null,
    group: "Trace",
    help: "Replays only the first requests of the trace.",
  },
  seed: {
    flag: "seed",
    type: "integer",
    min: 0,
    max: 4_294_967_295,
    default: 42,
    group: "Trace",
    help: "Decides the generated trace, the spread of arrivals, prefixes, classes and ties.",
  },
  spreadMs: {
    flag: "spread-ms",
    type: "number",
    min: 0,
    max: 3_600_000,
    default: null,
    group: "Trace",
    help: "Moves each arrival by up to so many ms; by default the period of a batched recording.",
  },
  prefixShare: {
    flag: "prefix-share",
    type: "number",
    min: 0,
    max: 1,
    default: 0.5,
    group: "Trace",
    help: "Share of an Azure trace's prompts that begin with one of 24 drawn prompts.",
  },
  speed: {
    flag: "speed",
    type: "number",
    above: 0,
    max: 10_000,
    default: 1,
    group: "Trace",
    help: "Rate of the detailed run, times the rate of the trace.",
  },
} as const satisfies FlagTable;

const poolFlags = {
  workers: {
    flag: "workers",
    type: "integer",
    min: 1,
    max: 1024,
    default: 8,
    group: "Pool",
    help: "Equal engines behind one router.",
  },
  blockSize: {
    flag: "block-size",
    type: "integer",
    min: 1,
    max: 512,
    default: 512,
    group: "Pool",
    help: "Tokens of an engine's block; divides 512. Small blocks cost time and change little.",
  },
  blocks: {
    flag: "blocks",
    type: "integer",
    min: 1,
    max: 67_108_864,
    default: 2048,
    group: "Pool",
    help: "KV blocks of each worker.",
  },
  batchTokens: {
    flag: "batch-tokens",
    type: "integer",
    min: 1,
    max: 1_048_576,
    default: 8192,
    group: "Pool",
    help: "Tokens an engine computes in one pass.",
  },
  engine: {
    flag: "engine",
    type: "string",
    default: null,
    group: "Pool",
    help: "File with more options of the mock engine, perf_model among them, as JSON.",
  },
  reportPeriodMs: {
    flag: "report-period-ms",
    type: "number",
    min: 0,
    max: 600_000,
    default: 0,
    group: "Pool",
    help: "Age that the engines' load reports may reach; 0 = a choice sees the present.",
  },
  eventDelayMs: {
    flag: "event-delay-ms",
    type: "number",
    min: 0,
    max: 600_000,
    default: 0,
    group: "Pool",
    help: "KV events reach the router this late.",
  },
} as const satisfies FlagTable;

const measureFlags = {
  policies: {
    flag: "policies",
    type: "string",
    default: "all",
    group: "Measure",
    help: "Names separated by commas, or all.",
  },
  capacity: {
    flag: "capacity",
    type: "boolean",
    default: false,
    group: "Measure",
    help: "Finds the highest rate at which 95 % of the requests meet their objective.",
  },
  forms: {
    flag: "forms",
    type: "string",
    default: "pair,deadline",
    group: "Measure",
    help: "Objectives to find capacities for: pair, deadline, prefill (engines that only prefill).",
  },
  speedMin: {
    flag: "speed-min",
    type: "number",
    above: 0,
    max: 10_000,
    default: 1,
    group: "Measure",
    help: "Lower bound of the search, times the rate of the trace.",
  },
  speedMax: {
    flag: "speed-max",
    type: "number",
    above: 0,
    max: 10_000,
    default: 9,
    group: "Measure",
    help: "Upper bound of the search; twice as far from the lower one for engines that only prefill.",
  },
  steps: {
    flag: "steps",
    type: "integer",
    min: 1,
    max: 20,
    default: 7,
    group: "Measure",
    help: "Bisections of a search.",
  },
  attainment: {
    flag: "attainment",
    type: "number",
    above: 0,
    max: 1,
    default: 0.95,
    group: "Measure",
    help: "Share of the requests offered that has to meet its objective.",
  },
  curve: {
    flag: "curve",
    type: "integer",
    min: 0,
    max: 100,
    default: null,
    group: "Measure",
    help: "Speeds of the load curve, evenly between the bounds; 8 with --capacity or --html, else 0.",
  },
  ttftMs: {
    flag: "ttft-ms",
    type: "number",
    above: 0,
    default: 2000,
    group: "Measure",
    help: "Target from arrival to first token.",
  },
  tpotMs: {
    flag: "tpot-ms",
    type: "number",
    above: 0,
    default: 50,
    group: "Measure",
    help: "Target per output token after the first.",
  },
  prefillTtftMs: {
    flag: "prefill-ttft-ms",
    type: "number",
    above: 0,
    default: 1000,
    group: "Measure",
    help: "Target of the first token of engines that only prefill.",
  },
  classes: {
    flag: "classes",
    type: "string",
    default: null,
    group: "Measure",
    help: "Classes share:ms+ms per input token, separated by commas; their shares sum to 1.",
  },
} as const satisfies FlagTable;

const outputFlags = {
  jobs: {
    flag: "jobs",
    type: "integer",
    min: 1,
    max: 64,
    default: 1,
    group: "Output",
    help: "Policies measured at once, each in a process of its own; results stay the same.",
  },
  json: {
    flag: "json",
    type: "boolean",
    default: false,
    group: "Output",
    help: "One line of JSON on stdout instead of a table.",
  },
  html: {
    flag: "html",
    type: "string",
    default: null,
    group: "Output",
    help: "Writes a page with charts to this file.",
  },
  timings: {
    flag: "timings",
    type: "boolean",
    default: false,
    group: "Output",
    help: "Adds wall times of decisions, the only figures that differ between equal runs.",
  },
} as const satisfies FlagTable;

export const replayFlags = { ...inputFlags, ...poolFlags, ...measureFlags, ...outputFlags };

export type ReplayFlagOptions = OptionsOf<typeof replayFlags>;

export const replayCommand: Command<typeof replayFlags> = {
  name: "tiergrid replay",
  summary:
    "Replays a trace against mock engines in virtual time, with the router's own choice or that of " +
    "other routers, and tells which policy carries the most load within its objectives.",
  flags: replayFlags,
  examples: [
    {
      does: "every policy on a generated trace",
      line: "tiergrid replay --synth toolagent-ci --speed 4",
    },
    {
      does: "capacities from a recorded trace, for programs",
      line: "tiergrid replay --trace FILE --workers 8 --policies all --capacity --json",
    },
  ],
};
