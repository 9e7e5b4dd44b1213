/**
 * Flags of `tiergrid local`: the KV router of one pool. The rows of `kvRouterFlags` are named like
 * the fields of `KvRouterConfig`; each source is validated and merged there, not here.
 */
import type { Command, FlagTable, OptionsOf } from "../base/flags.ts";
import { kvRouterFlags } from "./flags-kv-router.ts";
import { coreFlags, processFlags } from "./flags-process.ts";

const serviceFlags = {
  endpoint: {
    flag: "endpoint",
    env: "DYN_ROUTER_ENDPOINT",
    type: "string",
    required: true,
    group: "Local router",
    help: "Endpoint of the pool's workers: namespace.component.endpoint.",
  },
  config: {
    flag: "config",
    env: "TIERGRID_ROUTER_CONFIG",
    type: "string",
    default: null,
    group: "Local router",
    help: "JSON or YAML file with the settings under KV routing, by their snake_case names.",
  },
  blockSize: {
    flag: "router-block-size",
    env: "DYN_ROUTER_BLOCK_SIZE",
    olderFlags: ["block-size"],
    type: "integer",
    min: 1,
    max: 65_536,
    default: 128,
    group: "Local router",
    help: "Tokens per block; must be that of the workers.",
  },
  role: {
    flag: "role",
    env: "TIERGRID_ROLE",
    type: "choice",
    choices: ["aggregated", "prefill", "decode"],
    default: "aggregated",
    group: "Local router",
    help: "What the workers of this pool do.",
  },
  minInitialWorkers: {
    env: "DYN_ROUTER_MIN_INITIAL_WORKERS",
    type: "integer",
    min: 0,
    max: 10_000,
    default: 0,
    group: "Local router",
    help: "Serves only after this many workers have been seen.",
  },
  routerPolicy: {
    flag: "router-policy",
    env: "TIERGRID_ROUTER_POLICY",
    type: "choice",
    choices: ["blocks", "random", "round-robin"],
    default: "blocks",
    group: "Local router",
    help: "blocks: lowest cost of overlap and load; the others are for comparison.",
  },
  decisionsKept: {
    flag: "decisions-kept",
    env: "TIERGRID_DECISIONS_KEPT",
    type: "integer",
    min: 0,
    max: 1_000_000,
    default: 10_000,
    group: "Local router",
    help: "Latest decisions that explain can tell later; about 3 KB each.",
  },
  adminRoutes: {
    flag: "admin-routes",
    env: "TIERGRID_ADMIN_ROUTES",
    type: "boolean",
    default: true,
    group: "Local router",
    help: "Serves /busy_threshold and /find_best_worker on the system port.",
  },
  debugRoutes: {
    flag: "debug-routes",
    env: "TIERGRID_DEBUG_ROUTES",
    type: "boolean",
    default: false,
    group: "Local router",
    help: "Serves /debug/tree_info and /debug/inject_event on the system port.",
  },
  indexBlocksMax: {
    flag: "index-blocks-max",
    env: "TIERGRID_INDEX_BLOCKS_MAX",
    type: "integer",
    min: 1024,
    max: 1 << 28,
    default: 1 << 26,
    group: "Local router",
    help: "Distinct blocks in the KV index; events beyond are refused. 15 to 80 bytes a block and worker.",
  },
  indexRanksMax: {
    flag: "index-ranks-max",
    env: "TIERGRID_INDEX_RANKS_MAX",
    type: "integer",
    min: 1,
    max: 65_536,
    default: 4096,
    group: "Local router",
    help: "Data-parallel ranks in the KV index, of all workers; workers beyond are refused.",
  },
  acceptTimeoutMs: {
    flag: "accept-timeout-ms",
    env: "TIERGRID_ACCEPT_TIMEOUT_MS",
    type: "integer",
    min: 1,
    max: 60_000,
    default: 300,
    group: "Local router",
    help: "Time a worker gets to accept or refuse a request.",
  },
  activeDecodeBlocksThreshold: {
    flag: "active-decode-blocks-threshold",
    env: "DYN_ACTIVE_DECODE_BLOCKS_THRESHOLD",
    type: "number",
    min: 0,
    max: 1,
    default: null,
    group: "Busy thresholds",
    help: "A worker is busy above this share of its blocks.",
  },
  activePrefillTokensThreshold: {
    flag: "active-prefill-tokens-threshold",
    env: "DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD",
    type: "integer",
    min: 0,
    default: null,
    group: "Busy thresholds",
    help: "A worker is busy above this many prompt tokens not yet computed.",
  },
  activePrefillTokensThresholdFrac: {
    flag: "active-prefill-tokens-threshold-frac",
    env: "DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD_FRAC",
    type: "number",
    min: 0,
    default: null,
    group: "Busy thresholds",
    help: "The same as a multiple of the worker's tokens per pass.",
  },
} as const satisfies FlagTable;

export const localFlags = { ...serviceFlags, ...kvRouterFlags, ...coreFlags, ...processFlags };
export type LocalOptions = OptionsOf<typeof localFlags>;

export const localCommand: Command<typeof localFlags> = {
  name: "tiergrid local",
  summary:
    "Turns the tokens of a request into a worker of one pool: the one that has most of the " +
    "prompt's KV blocks for the least load.",
  flags: localFlags,
  examples: [
    {
      does: "the router of the pool prefill-fast",
      line: "tiergrid local --endpoint prefill-fast.prefill.generate --role prefill --router-block-size 64 --system-port 8082",
    },
    {
      does: "spread equal costs by softmax instead of always taking the lowest",
      line: "tiergrid local --endpoint decode-fast.backend.generate --role decode --router-temperature 0.3",
    },
  ],
};
