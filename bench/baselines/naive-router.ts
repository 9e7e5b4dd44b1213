/**
 * A worker decision as it is usually written: BigInt hashes from a native call per block, a radix
 * tree of Maps, live blocks counted in one Map per worker, costs in objects that are sorted.
 */
import type { Random } from "../../src/base/random.ts";
import { nativeBlockHashes } from "./native-block-hash.ts";
import { selectWithObjects } from "./object-selector.ts";
import { RadixTree } from "./radix-tree.ts";

interface Worker {
  readonly id: string;
  readonly taints: ReadonlySet<string>;
  /** References by sequence hash. */
  readonly live: Map<bigint, number>;
  prefillTokens: number;
}

interface Booked {
  readonly worker: Worker;
  readonly sequence: readonly bigint[];
  readonly prefillTokens: number;
}

export class NaiveRouter {
  readonly #tree = new RadixTree();
  readonly #workers = new Map<string, Worker>();
  readonly #booked = new Map<string, Booked>();
  readonly #blockSize: number;
  readonly #random: Random;

  constructor(workers: number, blockSize: number, random: Random) {
    this.#blockSize = blockSize;
    this.#random = random;
    for (let slot = 0; slot < workers; slot++) {
      const id = String(slot);
      this.#workers.set(id, { id, taints: new Set(), live: new Map(), prefillTokens: 0 });
    }
  }

  store(slot: number, tokens: Uint32Array, blocks: number): void {
    const sequence = nativeBlockHashes(tokens, this.#blockSize).slice(0, blocks);
    const pairs = sequence.map((hash): [bigint, bigint] => [hash, hash]);
    this.#tree.store(slot, undefined, pairs);
  }

  /** Slot of the worker that the prompt is booked on. */
  decide(tokens: readonly number[], key: string): number {
    const sequence = nativeBlockHashes(Uint32Array.from(tokens), this.#blockSize);
    const overlaps = new Map<string, number>();
    for (const [slot, depth] of this.#tree.match(sequence)) overlaps.set(String(slot), depth);
    const loads = new Map<string, { prefillTokens: number; activeBlocks: number }>();
    for (const [id, worker] of this.#workers) {
      const end = sequence.findIndex((hash) => !worker.live.has(hash));
      const shared = end < 0 ? sequence.length : end;
      const { prefillTokens, live } = worker;
      loads.set(id, { prefillTokens, activeBlocks: live.size - shared });
    }
    const query = {
      islTokens: tokens.length,
      blockSize: this.#blockSize,
      overlaps,
      temperature: 0,
    };
    const id = selectWithObjects({ workers: this.#workers, loads }, query, this.#random);
    const worker = this.#workers.get(id)!;
    const cached = (overlaps.get(id) ?? 0) * this.#blockSize;
    const prefillTokens = Math.max(tokens.length - cached, 0);
    for (const hash of sequence) worker.live.set(hash, (worker.live.get(hash) ?? 0) + 1);
    worker.prefillTokens += prefillTokens;
    this.#booked.set(key, { worker, sequence, prefillTokens });
    return Number(id);
  }

  free(key: string): void {
    const booked = this.#booked.get(key);
    if (!booked) return;
    const { worker, sequence, prefillTokens } = booked;
    for (const hash of sequence) {
      const refs = worker.live.get(hash)! - 1;
      if (refs > 0) worker.live.set(hash, refs);
      else worker.live.delete(hash);
    }
    worker.prefillTokens -= prefillTokens;
    this.#booked.delete(key);
  }
}
