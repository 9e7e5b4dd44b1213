/** One mock engine on a virtual clock: the engine core, and when its next step is due. */
import { MockEngineCore } from "../../worker/mock-engine.ts";
import type { MockEngineConfig } from "../../worker/mock-engine-config.ts";
import type { MockPass } from "../../worker/mock-pass.ts";
import type { MockRequest } from "../../worker/mock-request.ts";

export interface ReplayEngineOptions {
  readonly config: MockEngineConfig;
  readonly pool: number;
  /** Its place among the pool's workers. */
  readonly worker: number;
  /** Leading blocks of a prompt that need not be computed although they are not here. */
  readonly sharedBlocks: (request: MockRequest, nowMs: number) => number;
}

export class ReplayEngine {
  readonly core: MockEngineCore;
  readonly pool: number;
  readonly worker: number;
  /** When its pass ends, or when it wakes; `Infinity` = idle. */
  dueMs: number = Number.POSITIVE_INFINITY;
  /** When the router sends the next request it holds; `Infinity` = none waits for its time. */
  wakeMs: number = Number.POSITIVE_INFINITY;
  /** Order of steps due at one instant. */
  turn = 0;
  pass: MockPass | undefined;
  passStartMs = 0;
  // Sums over the run.
  prefillMs = 0;
  computedTokens = 0;

  constructor({ config, pool, worker, sharedBlocks }: ReplayEngineOptions) {
    const freeBlocks = (request: MockRequest): number => sharedBlocks(request, this.passStartMs);
    this.core = new MockEngineCore(config, { stops, hashBlock, freeBlocks });
    this.pool = pool;
    this.worker = worker;
  }
}

/** Lengths are all that is known: no token ends an answer. */
function stops(): boolean {
  return false;
}

/** Blocks with output are nobody else's. */
function hashBlock(request: MockRequest, block: number, into: Uint32Array): void {
  const lo = Math.imul(request.key + 1, 0x9e3779b1);
  into.set([lo, ~block, lo, ~block]);
}
