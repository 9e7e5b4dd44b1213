/** Flags of the commands that look at a pool config without running anything. */
import type { Command, FlagTable, OptionsOf } from "../base/flags.ts";

const fileFlags = {
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

export const gridFlags = fileFlags;
export type GridOptions = OptionsOf<typeof gridFlags>;

export const gridShowCommand: Command<typeof gridFlags> = {
  name: "tiergrid grid show",
  summary: "Draws the SLA grids of a pool config: axis edges, and the pool of every cell.",
  flags: gridFlags,
  operands: ["file"],
  examples: [{ does: "the demo's grids", line: "tiergrid grid show pool-configs/demo.json" }],
};

export const gridLintCommand: Command<typeof gridFlags> = {
  name: "tiergrid grid lint",
  summary:
    "Checks a pool config and reports everything that is wrong or suspicious at once, with JSON " +
    "pointers. Exits 2 when a global router would refuse the file.",
  flags: gridFlags,
  operands: ["file"],
  examples: [
    {
      does: "as a check before a rollout",
      line: "tiergrid grid lint --strict-config pool-configs/demo.json",
    },
  ],
};

export const explainFlags = {
  tokens: {
    flag: "tokens",
    type: "integer",
    min: 1,
    required: true,
    group: "Request",
    help: "Token ids the request carries: ISL, or context length at a decode pool.",
  },
  ttftTargetMs: {
    flag: "ttft-target-ms",
    type: "number",
    above: 0,
    default: null,
    group: "Request",
    help: "TTFT target; without it the middle of the axis.",
  },
  itlTargetMs: {
    flag: "itl-target-ms",
    type: "number",
    above: 0,
    default: null,
    group: "Request",
    help: "ITL target; without it the middle of the axis.",
  },
  priority: {
    flag: "priority",
    type: "integer",
    default: null,
    group: "Request",
    help: "Priority, higher is more important.",
  },
  json: {
    flag: "json",
    type: "boolean",
    default: false,
    group: "Output",
    help: "The records as JSON instead of text.",
  },
  nats: {
    flag: "nats",
    type: "string",
    default: null,
    group: "Bus",
    help: "Asks the global router that runs there; when none answers, the file alone decides.",
  },
  componentName: {
    flag: "component-name",
    env: "DYN_GLOBAL_ROUTER_COMPONENT_NAME",
    type: "string",
    default: "global_router",
    group: "Bus",
    help: "Component of that global router.",
  },
  ...fileFlags,
} as const satisfies FlagTable;
export type ExplainOptions = OptionsOf<typeof explainFlags>;

export const explainCommand: Command<typeof explainFlags> = {
  name: "tiergrid explain",
  summary:
    "Says which pool a request would go to and why: value, source, clamp and cell of every axis, " +
    "and the priority rule that decided, if any.",
  flags: explainFlags,
  operands: ["file"],
  examples: [
    {
      does: "a prompt of 12,000 tokens that wants its first token within 400 ms",
      line: "tiergrid explain pool-configs/demo.json --tokens 12000 --ttft-target-ms 400",
    },
    {
      does: "the same with the state the pools are in",
      line: "tiergrid explain pool-configs/demo.json --tokens 12000 --nats nats://localhost:4222",
    },
  ],
};
