import type { InstanceCard } from "../../src/runtime/instance-card.ts";

/** Card of a ready worker with one rank, with `change` over it. */
export function sampleCard(inst: string, change: Partial<InstanceCard> = {}): InstanceCard {
  return {
    inst,
    epoch: "aaaaaaaaaaaaaaaa",
    kind: "w",
    namespace: "pool-1",
    component: "backend",
    endpoint: "generate",
    model: "m",
    role: "aggregated",
    workerId: inst,
    dpStart: 0,
    dpSize: 1,
    blockSize: 16,
    totalKvBlocks: 1000,
    maxNumBatchedTokens: 8192,
    contextLength: 32_768,
    state: "ready",
    protocolVersions: [1],
    identityHashes: false,
    kvEvents: true,
    ...change,
  };
}
