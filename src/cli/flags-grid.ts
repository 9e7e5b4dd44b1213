/** Flags of the commands that look at a pool config without running anything. */
import type { Command, FlagTable, OptionsOf } from "../base/flags.ts";

export const fileFlags = {
  namespace: {
    flag: "namespace",
    env: "DYN_NAMESPACE",
    type: "string",
    default: "dynamo",
    group: "Pool config",
    help: "Namespace of the global router; must not be that of a pool.",
  },
  strictConfig: {
    flag: "strict-config",
    env: "TIERGRID_STRICT_CONFIG",
    type: "boolean",
    default: false,
    group: "Pool config",
    help: "Warnings are errors.",
  },
} as const satisfies FlagTable;
export type GridFileOptions = OptionsOf<typeof fileFlags>;

export const trafficFlags = {
  traffic: {
    flag: "traffic",
    type: "string",
    default: null,
    group: "Traffic",
    help:
      "Requests to look at the grid with: a trace (Mooncake JSONL, Azure CSV), or the name of a " +
      "generated one (toolagent, toolagent-ci, demo).",
  },
  ttftTargets: {
    flag: "ttft-targets",
    type: "string",
    default: null,
    group: "Traffic",
    help:
      "TTFT targets of the requests, as share:ms or share:ms+ms per input token, separated by " +
      "commas, the shares adding up to 1; without it every request has none (the axis middle).",
  },
  itlTargets: {
    flag: "itl-targets",
    type: "string",
    default: null,
    group: "Traffic",
    help: "ITL targets of the requests, in the same form.",
  },
  priorities: {
    flag: "priorities",
    type: "string",
    default: null,
    group: "Traffic",
    help:
      "Priorities of the requests, for the grid's priority rules, as share:priority or share:none, " +
      "separated by commas; without it no request has one.",
  },
  seed: {
    flag: "seed",
    type: "integer",
    min: 0,
    max: 4_294_967_295,
    default: 42,
    group: "Traffic",
    help: "Decides the generated trace and which request has which targets and priority.",
  },
} as const satisfies FlagTable;
export type TrafficOptions = OptionsOf<typeof trafficFlags>;

export const jsonFlag = {
  json: {
    flag: "json",
    type: "boolean",
    default: false,
    group: "Output",
    help: "JSON on stdout instead of text.",
  },
} as const satisfies FlagTable;

export const gridShowFlags = {
  ...fileFlags,
  ...trafficFlags,
  svg: {
    flag: "svg",
    type: "string",
    default: null,
    group: "Output",
    help: "Writes the picture of the grids to this file.",
  },
  html: {
    flag: "html",
    type: "string",
    default: null,
    group: "Output",
    help: "Writes a page with the picture, pools and rules to this file; it loads nothing.",
  },
  ...jsonFlag,
} as const satisfies FlagTable;
export type GridShowOptions = OptionsOf<typeof gridShowFlags>;

export const gridShowCommand: Command<typeof gridShowFlags> = {
  name: "tiergrid grid show",
  summary:
    "Draws the SLA grids of a pool config: axis edges, the pool of every cell, and with traffic " +
    "the share of the requests that falls into it.",
  flags: gridShowFlags,
  operands: ["file"],
  examples: [
    { does: "the demo's grids", line: "tiergrid grid show pool-configs/demo.json" },
    {
      does: "where a trace falls, as a picture",
      line:
        "tiergrid grid show pool-configs/demo.json --traffic toolagent-ci " +
        "--ttft-targets 0.5:300,0.5:2000 --svg grid.svg",
    },
  ],
};

export const gridLintFlags = {
  ...fileFlags,
  ...trafficFlags,
  curves: {
    flag: "curves",
    type: "string",
    default: null,
    group: "Evidence",
    help: "Latency curves of the pools, as for grid build: finds cells whose pool is too slow.",
  },
  clampedShareMax: {
    flag: "clamped-share-max",
    type: "number",
    min: 0,
    max: 1,
    default: 0.02,
    group: "Traffic",
    help: "Share of the traffic that may lie beyond one end of an axis.",
  },
  ...jsonFlag,
} as const satisfies FlagTable;
export type GridLintOptions = OptionsOf<typeof gridLintFlags>;

export const gridLintCommand: Command<typeof gridLintFlags> = {
  name: "tiergrid grid lint",
  summary:
    "Checks a pool config and reports everything that is wrong or suspicious at once, with JSON " +
    "pointers. Exits 0 when it is clean (notes do not count), 1 when something was found, 2 when " +
    "a global router would refuse the file.",
  flags: gridLintFlags,
  operands: ["file"],
  examples: [
    {
      does: "as a check before a rollout",
      line: "tiergrid grid lint --strict-config pool-configs/demo.json",
    },
    {
      does: "with the requests it will see: dead cells, idle pools, requests beyond the axes",
      line: "tiergrid grid lint pool-configs/demo.json --traffic trace.jsonl --json",
    },
  ],
};

export const gridBuildFlags = {
  ...fileFlags,
  curves: {
    flag: "curves",
    type: "string",
    required: true,
    group: "Evidence",
    help: "JSON or YAML with a cost and latency curves for every pool; docs/grids.md has the form.",
  },
  out: {
    flag: "out",
    type: "string",
    default: null,
    group: "Output",
    help: "Writes the pool config to this file; the report goes to stdout.",
  },
  ...jsonFlag,
} as const satisfies FlagTable;
export type GridBuildOptions = OptionsOf<typeof gridBuildFlags>;

export const gridBuildCommand: Command<typeof gridBuildFlags> = {
  name: "tiergrid grid build",
  summary:
    "Fills the mappings of a pool config from latency curves: each cell gets the cheapest pool " +
    "that keeps the cell's tightest target for its longest request. The file gives pools, axes and " +
    "rules; its mappings may be left out.",
  flags: gridBuildFlags,
  operands: ["file"],
  examples: [
    {
      does: "a new grid beside the old one, and a report of what it promises",
      line: "tiergrid grid build pools.json --curves curves.json --out new.json",
    },
  ],
};

const cellsReplayFlags = {
  replay: {
    flag: "replay",
    type: "string",
    default: null,
    group: "Replay",
    help:
      "File with the workers and mock engines of each pool: measures --traffic in virtual time, one " +
      "role after the other; a role without engines is left out.",
  },
  explore: {
    flag: "explore",
    type: "number",
    min: 0,
    max: 1,
    default: 0.1,
    group: "Replay",
    help: "Share of the replayed requests that go to any pool of the role instead of the grid's.",
  },
  speed: {
    flag: "speed",
    type: "number",
    above: 0,
    max: 10_000,
    default: 1,
    group: "Replay",
    help: "Rate of the replay, times the rate of the trace.",
  },
} as const satisfies FlagTable;

export const gridCalibrateFlags = {
  ...fileFlags,
  cells: {
    flag: "cells",
    type: "string",
    default: null,
    group: "Evidence",
    help: "File with measured latencies per cell and pool, as a global router's cells question answers.",
  },
  nats: {
    flag: "nats",
    type: "string",
    default: null,
    group: "Evidence",
    help: "Asks the global router that runs there for its measured cells.",
  },
  componentName: {
    flag: "component-name",
    env: "DYN_GLOBAL_ROUTER_COMPONENT_NAME",
    type: "string",
    default: "global_router",
    group: "Evidence",
    help: "Component of that global router.",
  },
  countMin: {
    flag: "count-min",
    type: "integer",
    min: 1,
    default: 100,
    group: "Evidence",
    help: "Measured requests of one length that a pool needs before its cells may change.",
  },
  anyVersion: {
    flag: "any-version",
    type: "boolean",
    default: false,
    group: "Evidence",
    help: "Takes cells that were measured under another version of the config with equal axes.",
  },
  ...cellsReplayFlags,
  ...trafficFlags,
  out: {
    flag: "out",
    type: "string",
    default: null,
    group: "Output",
    help: "Writes the proposed pool config to this file.",
  },
  ...jsonFlag,
} as const satisfies FlagTable;
export type GridCalibrateOptions = OptionsOf<typeof gridCalibrateFlags>;

export const gridCalibrateCommand: Command<typeof gridCalibrateFlags> = {
  name: "tiergrid grid calibrate",
  summary:
    "Proposes a grid from measured TTFT and ITL: a cell changes when its pool's 90th percentile " +
    "misses the cell's tightest target and another pool keeps it, or when a cheaper pool keeps it " +
    "too; in both cases only with enough measurements, outside of their 95 % interval.",
  flags: gridCalibrateFlags,
  operands: ["file"],
  examples: [
    {
      does: "from the fleet that runs",
      line: "tiergrid grid calibrate pools.json --nats nats://localhost:4222 --out new.json",
    },
    {
      does: "from a trace, before there is a fleet",
      line:
        "tiergrid grid calibrate pools.json --replay engines.json --traffic trace.jsonl " +
        "--ttft-targets 0.5:300,0.5:2000",
    },
    {
      does: "from a saved answer",
      line: "tiergrid grid calibrate pools.json --cells cells.json --json",
    },
  ],
};

export const gridDiffFlags = {
  ...fileFlags,
  ...trafficFlags,
  ...jsonFlag,
} as const satisfies FlagTable;
export type GridDiffOptions = OptionsOf<typeof gridDiffFlags>;

export const gridDiffCommand: Command<typeof gridDiffFlags> = {
  name: "tiergrid grid diff",
  summary:
    "Says which regions of the grids change their pool from one config to another, what else " +
    "changes, and with traffic which share of the requests and tokens would move from where to " +
    "where. Axes may differ.",
  flags: gridDiffFlags,
  operands: ["before", "after"],
  examples: [
    {
      does: "what a new grid does to recorded traffic",
      line: "tiergrid grid diff old.json new.json --traffic trace.jsonl",
    },
  ],
};
