/** Flags of `tiergrid explain`. */
import type { Command, FlagTable, OptionsOf } from "../base/flags.ts";
import { fileFlags } from "./flags-grid.ts";

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
