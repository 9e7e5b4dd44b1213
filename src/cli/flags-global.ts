/** Flags of `tiergrid global`: the global router and, in the same process, the OpenAI frontend. */
import type { Command, FlagTable, OptionsOf } from "../base/flags.ts";
import { hashFirstMinTokens } from "../runtime/prompt-source.ts";
import { processFlags } from "./flags-process.ts";

const routerFlags = {
  config: {
    flag: "config",
    env: "DYN_GLOBAL_ROUTER_CONFIG",
    type: "string",
    required: true,
    group: "Global router",
    help: "Pool config: JSON or YAML with the pools and their SLA grids.",
  },
  modelName: {
    flag: "model-name",
    env: "DYN_GLOBAL_ROUTER_MODEL_NAME",
    type: "string",
    required: true,
    group: "Global router",
    help: "Model that all pools serve, as clients name it.",
  },
  namespace: {
    flag: "namespace",
    env: "DYN_NAMESPACE",
    type: "string",
    default: "dynamo",
    group: "Global router",
    help: "Own namespace; must not be that of a pool.",
  },
  componentName: {
    flag: "component-name",
    env: "DYN_GLOBAL_ROUTER_COMPONENT_NAME",
    type: "string",
    default: "global_router",
    group: "Global router",
    help: "Component under which the endpoints are served.",
  },
  defaultTtftTargetMs: {
    flag: "default-ttft-target-ms",
    env: "DYN_GLOBAL_ROUTER_DEFAULT_TTFT_TARGET_MS",
    olderFlags: ["default-ttft-target"],
    olderEnv: ["DYN_GLOBAL_ROUTER_DEFAULT_TTFT_TARGET"],
    type: "number",
    default: null,
    group: "Global router",
    help: "TTFT target in ms of requests that name none; without it the middle of the axis.",
  },
  defaultItlTargetMs: {
    flag: "default-itl-target-ms",
    env: "DYN_GLOBAL_ROUTER_DEFAULT_ITL_TARGET_MS",
    olderFlags: ["default-itl-target"],
    olderEnv: ["DYN_GLOBAL_ROUTER_DEFAULT_ITL_TARGET"],
    type: "number",
    default: null,
    group: "Global router",
    help: "ITL target in ms of requests that name none; without it the middle of the axis.",
  },
  responseMode: {
    env: "TIERGRID_RESPONSE_MODE",
    type: "choice",
    choices: ["delegate"],
    default: "delegate",
    group: "Global router",
    help: "Tokens go from the worker straight to the caller.",
  },
  adminRoutes: {
    flag: "admin-routes",
    env: "TIERGRID_ADMIN_ROUTES",
    type: "boolean",
    default: true,
    group: "Global router",
    help: "Serves /explain, /busy_threshold and /grid on the system port.",
  },
  acceptTimeoutMs: {
    flag: "accept-timeout-ms",
    env: "TIERGRID_ACCEPT_TIMEOUT_MS",
    type: "integer",
    min: 1,
    max: 60_000,
    default: 300,
    group: "Global router",
    help: "Time an attempt gets to be accepted, queued or refused.",
  },
  poolWaitMs: {
    flag: "pool-wait-ms",
    env: "TIERGRID_POOL_WAIT_MS",
    type: "integer",
    min: 0,
    max: 600_000,
    default: 0,
    group: "Global router",
    help: "Time a request may wait for a pool that is not ready.",
  },
  requireAllPools: {
    flag: "require-all-pools",
    env: "TIERGRID_REQUIRE_ALL_POOLS",
    type: "boolean",
    default: false,
    group: "Global router",
    help: "Ready only when every pool is, instead of one per role.",
  },
  strictConfig: {
    flag: "strict-config",
    env: "TIERGRID_STRICT_CONFIG",
    type: "boolean",
    default: false,
    group: "Global router",
    help: "Warnings about the pool config are errors.",
  },
  watchConfig: {
    flag: "watch-config",
    env: "TIERGRID_WATCH_CONFIG",
    type: "boolean",
    default: true,
    group: "Global router",
    help: "Applies changes of the pool config while running; a broken file changes nothing.",
  },
  canaryPercent: {
    flag: "canary-percent",
    env: "TIERGRID_CANARY_PERCENT",
    type: "number",
    min: 0,
    max: 100,
    default: 0,
    group: "Global router",
    help: "Share of requests that a changed pool config gets until it is promoted; 0 = all at once.",
  },
  overloadHoldMs: {
    flag: "overload-hold-ms",
    env: "TIERGRID_OVERLOAD_HOLD_MS",
    type: "integer",
    min: 0,
    max: 60_000,
    default: 1000,
    group: "Global router",
    help: "Time a pool that refused for lack of room is passed over.",
  },
} as const satisfies FlagTable;

const httpFlags = {
  httpHost: {
    flag: "http-host",
    env: "DYN_HTTP_HOST",
    type: "string",
    default: "127.0.0.1",
    group: "HTTP",
    help: "Address of the OpenAI API. Beyond loopback it needs --insecure.",
  },
  httpPort: {
    flag: "http-port",
    env: "DYN_HTTP_PORT",
    type: "integer",
    min: 0,
    max: 65_535,
    default: 8000,
    group: "HTTP",
    help: "Port of the OpenAI API; 0 takes a free one.",
  },
  insecure: {
    flag: "insecure",
    env: "TIERGRID_INSECURE",
    type: "boolean",
    default: false,
    group: "HTTP",
    help: "Serves beyond loopback although nobody has to authenticate.",
  },
  tokenizer: {
    flag: "tokenizer",
    env: "TIERGRID_TOKENIZER",
    type: "string",
    default: null,
    group: "HTTP",
    help: "Folder with the model's tokenizer.json; without it the mock model's.",
  },
  bodyLimitMb: {
    env: "DYN_HTTP_BODY_LIMIT_MB",
    type: "number",
    above: 0,
    max: 64,
    default: 4,
    group: "HTTP",
    help: "Largest request body.",
  },
  gracePeriodSecs: {
    env: "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS",
    type: "number",
    min: 0,
    max: 3600,
    default: 5,
    group: "HTTP",
    help:
      "Seconds between /ready saying no and the API refusing connections, so that load balancers " +
      "notice; an idle process waits as long.",
  },
  httpDrainSecs: {
    env: "DYN_HTTP_GRACEFUL_SHUTDOWN_TIMEOUT_SECS",
    type: "number",
    min: 0,
    max: 3600,
    default: 30,
    group: "HTTP",
    help: "Seconds that open answers get to end.",
  },
  overloadStatus: {
    env: "DYN_HTTP_OVERLOAD_STATUS_CODE",
    type: "integer",
    min: 400,
    max: 599,
    default: 529,
    group: "HTTP",
    help: "Status of a request that was refused for lack of room.",
  },
  sseKeepAliveSecs: {
    flag: "sse-keep-alive-secs",
    env: "TIERGRID_SSE_KEEP_ALIVE_SECS",
    type: "number",
    above: 0,
    max: 3600,
    default: 15,
    group: "HTTP",
    help: "A comment is sent after this much silence on an open stream.",
  },
  routeHeaders: {
    flag: "route-headers",
    env: "TIERGRID_ROUTE_HEADERS",
    type: "boolean",
    default: true,
    group: "HTTP",
    help: "Answers name the pool and the worker in x-route-* headers.",
  },
  disableNvext: {
    env: "DYN_DISABLE_FRONTEND_NVEXT",
    type: "boolean",
    default: false,
    group: "HTTP",
    help: "Drops nvext, extra_args and the routing and SLA headers of requests.",
  },
  hashFirstMinTokens: {
    flag: "hash-first-min-tokens",
    env: "TIERGRID_HASH_FIRST_MIN_TOKENS",
    type: "integer",
    min: 0,
    default: hashFirstMinTokens,
    group: "HTTP",
    help: "Prompts of that many tokens or more reach the routers as hashes; 0 = none does.",
  },
  migrationLimit: {
    flag: "migration-limit",
    env: "DYN_MIGRATION_LIMIT",
    type: "integer",
    min: 0,
    max: 100,
    default: 3,
    group: "HTTP",
    help: "Times a request may move to another worker, with the tokens it has.",
  },
  migrationMaxSeqLen: {
    flag: "migration-max-seq-len",
    env: "DYN_MIGRATION_MAX_SEQ_LEN",
    type: "integer",
    min: 1,
    default: null,
    group: "HTTP",
    help: "Longer sequences, in tokens, do not move.",
  },
  decodeFallback: {
    flag: "decode-fallback",
    env: "DYN_DECODE_FALLBACK",
    type: "boolean",
    default: true,
    group: "HTTP",
    help: "When prefill is not available a decode worker does it all.",
  },
  enforceDisagg: {
    flag: "enforce-disagg",
    env: "DYN_ENFORCE_DISAGG",
    type: "boolean",
    default: false,
    group: "HTTP",
    help: "Fails a request rather than fall back.",
  },
} as const satisfies FlagTable;

export const globalFlags = { ...routerFlags, ...httpFlags, ...processFlags };
export type GlobalOptions = OptionsOf<typeof globalFlags>;

export const globalCommand: Command<typeof globalFlags> = {
  name: "tiergrid global",
  summary:
    "Turns the SLA of a request into a pool of engines and serves the OpenAI API in front of it. " +
    "Starts without any pool and serves each as it appears.",
  flags: globalFlags,
  examples: [
    {
      does: "two prefill and two decode pools, API on port 8000",
      line: "tiergrid global --config pool-configs/demo.json --model-name mock-model",
    },
    {
      does: "the same from the environment, as in a container",
      line: "DYN_GLOBAL_ROUTER_CONFIG=/etc/tiergrid/pools.yaml NATS_SERVER=nats://nats:4222 tiergrid global --model-name llama --http-host 0.0.0.0 --insecure",
    },
  ],
};

const loopback = /^(?:localhost|127(?:\.\d{1,3}){3}|::1)$/;

/** Rules between options, checked when each is valid by itself. */
export function globalProblems(options: GlobalOptions): string[] {
  if (loopback.test(options.httpHost) || options.insecure) return [];
  return [`--http-host ${options.httpHost} is open to others without --insecure`];
}
