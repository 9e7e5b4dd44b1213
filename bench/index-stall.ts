/**
 * I5: how long one batch of events keeps the event loop, while the index fills from nothing to 4 M
 * (holder, block) pairs and grows on the way. Ours alone: the baseline does not fit into memory.
 */
import { mulberry32, type Random, randomInt, randomU32 } from "../src/base/random.ts";
import { createKvIndex } from "../src/core/create-kv-index.ts";
import type { ChainHashes, IndexMode, KvIndexCore } from "../src/core/kv-index.ts";
import type { U64 } from "../src/protocol/u64.ts";

const workers = 64;
/** Events that arrive in one message. */
const batchEvents = 16;
const systemPrompts = 24;
const systemBlocks = 64;

export interface StallOptions {
  readonly mode: IndexMode;
  readonly chain: ChainHashes;
  readonly core: KvIndexCore | undefined;
  readonly pairs: number;
  readonly seed: number;
}

interface Event {
  readonly worker: number;
  readonly parent: U64 | undefined;
  readonly blocks: Uint32Array;
}

/** Longest time of one batch, ms, of making the events excluded. */
export function longestStallMs(options: StallOptions): number {
  const { mode, chain, core, pairs, seed } = options;
  const index = createKvIndex({ mode, random: mulberry32(seed), chain, core });
  for (let worker = 0; worker < workers; worker++) index.holder(String(worker), 0);
  const next = eventMaker(options, mulberry32(seed + 1));
  let longestMs = 0;
  while (index.size < pairs) {
    const batch = Array.from({ length: batchEvents }, next);
    const startMs = performance.now();
    for (const { worker, parent, blocks } of batch) {
      const result = index.store(worker, parent, blocks);
      if (result !== "ok") throw new Error(`a store came to ${result}`);
    }
    longestMs = Math.max(longestMs, performance.now() - startMs);
  }
  return longestMs;
}

/** Prompts of 64 to 256 blocks; every second one begins with a system prompt of all workers. */
function eventMaker({ mode, chain }: StallOptions, random: Random): () => Event {
  const systems = Array.from({ length: systemPrompts }, () => {
    const locals = Uint32Array.from({ length: 2 * systemBlocks }, () => randomU32(random));
    const own = locals.slice();
    chain(own, 1, systemBlocks);
    return { locals, own };
  });
  return () => {
    const worker = randomInt(random, 0, workers - 1);
    const count = randomInt(random, systemBlocks, 4 * systemBlocks);
    const locals = Uint32Array.from({ length: 2 * count }, () => randomU32(random));
    const own = locals.slice();
    const system = random() < 0.5 ? systems[randomInt(random, 0, systemPrompts - 1)] : undefined;
    if (system) {
      locals.set(system.locals);
      own.set(system.own);
    }
    chain(own, system ? systemBlocks : 1, count);
    // An opaque engine's names are its own: the worker's number makes them differ.
    const salt = mode === "opaque" ? worker + 1 : 0;
    const blocks = new Uint32Array(4 * count);
    for (let block = 0; block < count; block++) {
      blocks[4 * block] = locals[2 * block]!;
      blocks[4 * block + 1] = locals[2 * block + 1]!;
      blocks[4 * block + 2] = own[2 * block]! ^ salt;
      blocks[4 * block + 3] = own[2 * block + 1]!;
    }
    return { worker, parent: undefined, blocks };
  };
}
