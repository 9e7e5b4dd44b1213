/** Flags of `tiergrid worker mock`; engine options beyond these come from a file. */
import type { Command, FlagTable, OptionsOf } from "../base/flags.ts";
import { readableMockTokenRange } from "../protocol/mock-tokens.ts";
import { eventLingerMsDefault } from "../worker/engine-events.ts";
import { coreFlags, processFlags } from "./flags-process.ts";

const serviceFlags = {
  endpoint: {
    flag: "endpoint",
    env: "TIERGRID_WORKER_ENDPOINT",
    type: "string",
    default: "dynamo.backend.generate",
    group: "Worker",
    help: "Where the worker serves: namespace.component.endpoint; the namespace is its pool.",
  },
  modelName: {
    flag: "model-name",
    env: "TIERGRID_MODEL_NAME",
    type: "string",
    default: "mock-model",
    group: "Worker",
    help: "Model the worker registers.",
  },
  role: {
    flag: "role",
    env: "TIERGRID_ROLE",
    type: "choice",
    choices: ["aggregated", "prefill", "decode"],
    default: "aggregated",
    group: "Worker",
    help: "Whole requests, or one leg of them.",
  },
  count: {
    flag: "count",
    type: "integer",
    min: 1,
    max: 64,
    default: 1,
    group: "Worker",
    help: "Workers in this process, each an instance of its own.",
  },
  durableKvEvents: {
    flag: "durable-kv-events",
    env: "DYN_DURABLE_KV_EVENTS",
    type: "boolean",
    default: false,
    group: "Worker",
    help: "KV events through JetStream; the pool's local routers need it as well.",
  },
  eventLingerMs: {
    flag: "kv-event-linger-ms",
    env: "TIERGRID_KV_EVENT_LINGER_MS",
    type: "number",
    min: 0,
    max: 5_000,
    default: eventLingerMsDefault,
    group: "Worker",
    help: "Milliseconds that KV events may wait for others; 0 = a message per engine pass.",
  },
  taints: {
    flag: "taints",
    env: "TIERGRID_WORKER_TAINTS",
    type: "string",
    default: null,
    group: "Worker",
    help: "Names, separated by commas, that requests may require or prefer.",
  },
} as const satisfies FlagTable;

/** Named like the options of the mock engine in camel case. */
export const mockEngineFlags = {
  numGpuBlocks: {
    flag: "num-gpu-blocks",
    type: "integer",
    min: 1,
    default: 16_384,
    group: "Mock engine",
    help: "Blocks of the KV cache.",
  },
  blockSize: {
    flag: "block-size",
    env: "DYN_KV_CACHE_BLOCK_SIZE",
    type: "integer",
    min: 1,
    max: 65_536,
    default: 64,
    group: "Mock engine",
    help: "Tokens per block.",
  },
  tokenIdMin: {
    flag: "token-id-min",
    type: "integer",
    min: 0,
    default: readableMockTokenRange.idMin,
    group: "Mock engine",
    help: "Lowest token id it writes; the default is the first readable one of the shipped model.",
  },
  tokenIdCount: {
    flag: "token-id-count",
    type: "integer",
    min: 1,
    default: readableMockTokenRange.idCount,
    group: "Mock engine",
    help: "Token ids it writes, from the lowest on.",
  },
  maxNumSeqs: {
    flag: "max-num-seqs",
    type: "integer",
    min: 1,
    nullable: true,
    default: 256,
    group: "Mock engine",
    help: "Requests that run at a time.",
  },
  maxNumBatchedTokens: {
    flag: "max-num-batched-tokens",
    type: "integer",
    min: 1,
    nullable: true,
    default: 8192,
    group: "Mock engine",
    help: "Tokens of one pass.",
  },
  maxModelLen: {
    flag: "max-model-len",
    type: "integer",
    min: 1,
    default: null,
    group: "Mock engine",
    help: "Prompt and output tokens of a request.",
  },
  enablePrefixCaching: {
    flag: "enable-prefix-caching",
    type: "boolean",
    default: true,
    group: "Mock engine",
    help: "Keeps blocks for prompts that begin alike.",
  },
  enableChunkedPrefill: {
    flag: "enable-chunked-prefill",
    type: "boolean",
    default: true,
    group: "Mock engine",
    help: "Splits long prompts over several passes.",
  },
  speedupRatio: {
    flag: "speed",
    olderFlags: ["speedup-ratio"],
    type: "number",
    above: 0,
    default: 1,
    group: "Mock engine",
    help: "Divides every duration.",
  },
  dpSize: {
    flag: "dp-size",
    olderFlags: ["data-parallel-size"],
    type: "integer",
    min: 1,
    max: 1024,
    default: 1,
    group: "Mock engine",
    help: "Data-parallel ranks.",
  },
  startupTime: {
    flag: "startup-time",
    type: "number",
    min: 0,
    default: null,
    group: "Mock engine",
    help: "Seconds before the worker registers.",
  },
} as const satisfies FlagTable;

const engineFileFlags = {
  engineConfig: {
    flag: "engine-config",
    env: "TIERGRID_WORKER_CONFIG",
    olderFlags: ["extra-engine-args"],
    type: "string",
    default: null,
    group: "Mock engine",
    help: "JSON file with any of the engine's options by their snake_case names; flags beat it.",
  },
  perfModel: {
    flag: "perf-model",
    env: "TIERGRID_WORKER_PERF_MODEL",
    type: "string",
    default: null,
    group: "Mock engine",
    help: "JSON file with the profile the workers announce; default: the engine's own.",
  },
} as const satisfies FlagTable;

export const workerMockFlags = {
  ...serviceFlags,
  ...mockEngineFlags,
  ...engineFileFlags,
  ...coreFlags,
  ...processFlags,
};
export type WorkerMockOptions = OptionsOf<typeof workerMockFlags>;

export const workerMockCommand: Command<typeof workerMockFlags> = {
  name: "tiergrid worker mock",
  summary:
    "Registers workers with mock engines: real timing, KV cache, KV events and load, no GPU. Their " +
    "tokens follow from seed and position, so that any client can check a stream.",
  flags: workerMockFlags,
  examples: [
    {
      does: "two prefill workers of the pool prefill-fast",
      line: "tiergrid worker mock --endpoint prefill-fast.prefill.generate --role prefill --count 2 --system-port 8084",
    },
  ],
};
