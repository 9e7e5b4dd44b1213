/** Every policy a replay can run, by name. */
import type { RouterConfigOverride } from "../../config/kv-router-config.ts";
import type { WorkerPolicy } from "../../core/choice.ts";
import { defaultLatencyWeights, type LatencyWeights } from "../../core/latency-cost.ts";
import type { CostMode } from "../../core/worker-cost.ts";
import type { MockEngineConfig } from "../../worker/mock-engine-config.ts";
import { chwbl, prefixHash, sglang, sglangApproximate } from "./affinity-policies.ts";
import { dynamoLmetric } from "./dynamo-lmetric.ts";
import { hashRing } from "./hash-ring.ts";
import { leastLoaded, llmd, llmdSticky, lmetric, type Policy, powerOfTwo } from "./policies.ts";

/** What a policy may know of its pool when it is made. */
export interface PolicyPool {
  readonly workerIds: readonly string[];
  readonly engine: MockEngineConfig;
}

/** The product's own choice with its settings, or another router's. */
export type PolicyKind =
  | {
      readonly type: "router";
      readonly workerPolicy: WorkerPolicy;
      readonly override: RouterConfigOverride;
      /** Of cost mode `latency`; without them the mode is `blocks`. */
      readonly latency?: LatencyWeights;
      /** False: predictions stay those of the profile. */
      readonly learns?: false;
      /** Prices candidates instead of the router's own modes. */
      readonly costMode?: CostMode;
      /** Books also a block for the end of each prompt, and prompts in pools that only prefill. */
      readonly booksEveryBlock?: true;
      /** False: queues of workers that only prefill are known by their sums. */
      readonly plans?: false;
      /**
       * Every worker may use any cached block of the pool at once and for nothing, and the engines'
       * own model is known: a bound.
       */
      readonly sharesCache?: true;
    }
  | {
      readonly type: "baseline";
      readonly usesIndex: boolean;
      readonly create: (pool: PolicyPool) => Policy;
    };

const sglangBalance = { balanceAbs: 32, balanceRel: 1.1 } as const;
const ringSettings = { loadFactor: 1.25 } as const;
/** SMG hashes the first 256 tokens. */
const prefixHashTokens = 256;
const stickyDefaults = { affinity: 0.8, penaltyMaxMs: 18_000 } as const;

export const policyTable = {
  random: router("random"),
  "round-robin": router("round-robin"),
  "power-of-two": baseline(false, () => powerOfTwo),
  "least-loaded": baseline(false, () => leastLoaded),
  chwbl: baseline(false, ({ workerIds }) =>
    chwbl(hashRing(workerIds), { ...ringSettings, keyBlocks: 2 }),
  ),
  "prefix-hash": baseline(false, ({ workerIds, engine }) =>
    prefixHash(hashRing(workerIds), {
      ...ringSettings,
      keyBlocks: Math.max(1, Math.floor(prefixHashTokens / engine.blockSize)),
    }),
  ),
  sglang: baseline(true, () => sglang({ ...sglangBalance, matchAbove: 0.5 })),
  "sglang-events": baseline(true, () => sglang({ ...sglangBalance, matchAbove: 0 })),
  "sglang-approx": baseline(false, ({ engine }) =>
    sglangApproximate({ ...sglangBalance, matchAbove: 0.5 }, engine.numGpuBlocks),
  ),
  llmd: baseline(true, () => llmd({ prefix: 3, queue: 2, kvUsage: 2 })),
  "llmd-sticky": baseline(true, ({ engine }) =>
    llmdSticky({ ...stickyDefaults, prefillTokensPerSecond: peakPrefill(engine) }),
  ),
  lmetric: baseline(true, () => lmetric),
  "dynamo-lmetric": { ...router("blocks"), costMode: dynamoLmetric },
  "expected-ttft": latency({ prefillExternality: 0, decodeHarm: 0, kvUsage: 0 }),
  blocks: router("blocks"),
  "blocks-scale-10": router("blocks", { prefillLoadScale: 10 }),
  "blocks-all-booked": { ...router("blocks"), booksEveryBlock: true },
  latency: latency(defaultLatencyWeights),
  "latency-profile": { ...latency(defaultLatencyWeights), learns: false },
  "shared-cache": { ...sharedCache(), plans: false },
  "shared-cache-planned": sharedCache(),
} as const satisfies Record<string, PolicyKind>;

export type PolicyName = keyof typeof policyTable;

/** Not policies that could be run, but what one is compared with, by their names in a report. */
export const boundPolicies = {
  shared_cache: "shared-cache",
  shared_cache_planned: "shared-cache-planned",
} as const satisfies Record<string, PolicyName>;

export type BoundName = keyof typeof boundPolicies;

export const policyNames: readonly PolicyName[] = (Object.keys(policyTable) as PolicyName[]).filter(
  (name) => !isBound(name),
);

export function isBound(name: string): boolean {
  return Object.values<string>(boundPolicies).includes(name);
}

/** Tokens a second of one full chunk. */
function peakPrefill({ perf, maxNumBatchedTokens }: MockEngineConfig): number {
  const passMs = perf.prefillMs(maxNumBatchedTokens, maxNumBatchedTokens ** 2 / 2);
  return (maxNumBatchedTokens / passMs) * 1000;
}

function router(
  workerPolicy: WorkerPolicy,
  override: RouterConfigOverride = {},
): PolicyKind & { readonly type: "router" } {
  return { type: "router", workerPolicy, override };
}

function latency(weights: LatencyWeights): PolicyKind & { readonly type: "router" } {
  return { type: "router", workerPolicy: "blocks", override: {}, latency: weights };
}

function sharedCache(): PolicyKind & { readonly type: "router" } {
  const weights = { prefillExternality: 0, decodeHarm: 0.01, kvUsage: 1 };
  return { ...latency(weights), learns: false, sharesCache: true };
}

function baseline(
  usesIndex: boolean,
  create: (pool: PolicyPool) => Policy,
): PolicyKind & { readonly type: "baseline" } {
  return { type: "baseline", usesIndex, create };
}
