/** What a worker says of itself in its heartbeats. */
import type { EndpointPath } from "../protocol/subjects.ts";
import type { CardState, InstanceCard, RankDigest } from "../runtime/instance-card.ts";
import type { Engine, EngineCard } from "./engine.ts";

/** One heartbeat in so many carries the digests of the ranks, on average. */
export const digestBeats = 5;

/** A larger profile is not announced: heartbeats stay small. */
const perfModelCharactersMax = 16_384;

export interface CardFacts {
  readonly inst: string;
  readonly epoch: string;
  readonly endpoint: EndpointPath;
  readonly engine: Engine;
  readonly state: WorkerState;
  readonly digests: readonly RankDigest[] | undefined;
  readonly taints?: readonly string[] | undefined;
}

/** `dead`: the engine is gone and its requests are being handed back. */
export type WorkerState = CardState | "dead" | "closed";

/** Without a limit of its own an engine's context ends where its blocks do. */
export function workerCardOf(facts: CardFacts): InstanceCard {
  const { inst, epoch, endpoint, engine, state, digests, taints } = facts;
  const { card } = engine;
  const load = { running: 0, waiting: 0, kvUsedBlocks: 0 };
  for (const { running, waiting, activeBlocks } of engine.load()) {
    load.running += running;
    load.waiting += waiting;
    load.kvUsedBlocks += activeBlocks;
  }
  return {
    inst,
    epoch,
    kind: "w",
    ...endpoint,
    model: card.model,
    role: card.role,
    workerId: inst,
    dpStart: card.dpStart,
    dpSize: card.dpSize,
    blockSize: card.blockSize,
    totalKvBlocks: card.totalKvBlocks,
    maxNumBatchedTokens: card.maxNumBatchedTokens ?? 0,
    contextLength: card.contextLength ?? card.totalKvBlocks * card.blockSize,
    state: state === "dead" || state === "closed" ? "draining" : state,
    protocolVersions: [1],
    identityHashes: true,
    kvEvents: true,
    promptHashes: card.blockSize,
    load,
    ...(digests ? { digests } : {}),
    ...(taints?.length ? { taints } : {}),
    ...perfModelOf(card),
  };
}

function perfModelOf({ perfModel }: EngineCard): Pick<InstanceCard, "perfModel"> {
  if (perfModel === undefined) return {};
  return JSON.stringify(perfModel).length > perfModelCharactersMax ? {} : { perfModel };
}
