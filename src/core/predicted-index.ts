/**
 * Blocks that holders (worker, dp rank) are believed to have because prompts were sent to them: the
 * index of a pool without KV events, and, with a short life, of one whose events are on their way.
 *
 *   record ──▶ blocks (BlockHolders)   hash -> set of holders      what `match` reads
 *          └─▶ lists  (ForgetList)     what is forgotten, and when
 *
 *   ttl   one list for all holders; a block lives `ttlMs` from the last prompt that had it. Above
 *         `sizeMax` blocks the oldest go until `floor(sizeMax * pruneTargetRatio)` are left; many go
 *         in slices, one per prompt, so the size is at most `sizeMax` and one prompt.
 *   lru   one list per holder, at most as long as the holder's cache; no life time.
 *
 * - Slots are the caller's; a block on 3 holders counts 3.
 * - A block is in a holder's set exactly while it is in a list.
 */
import type { Random } from "../base/random.ts";
import { BlockHolders } from "./block-holders.ts";
import { ForgetList, nowhere, pruneTarget } from "./forget-list.ts";
import { setsFull } from "./holder-sets.ts";

/** Slots above get no blocks. */
export const predictedSlotsMax = 65_536;
/** Blocks that one prompt prunes at least, if so many are to go: some milliseconds' work. */
const pruneSlice = 2048;

export interface PredictedIndexOptions {
  readonly random: Random;
  readonly policy: "ttl" | "lru";
  /** Life of a block; means nothing to `lru`. */
  readonly ttlMs: number;
  /** Blocks of all holders; in `lru`, of a holder that does not tell its cache. */
  readonly sizeMax: number;
  readonly pruneTargetRatio: number;
}

interface PredictedHolder {
  readonly slot: number;
  readonly bit: number;
  readonly blocksMax: number;
  readonly list: ForgetList;
}

/** Why blocks were forgotten, beside their holder's going. */
export interface ForgottenTotals {
  expired: number;
  pruned: number;
  pruneRuns: number;
}

export class PredictedIndex {
  /** Pairs (holder, block). */
  size = 0;
  readonly totals: ForgottenTotals = { expired: 0, pruned: 0, pruneRuns: 0 };

  readonly #options: PredictedIndexOptions;
  readonly #blocks: BlockHolders;
  readonly #shared: ForgetList;
  readonly #holders: (PredictedHolder | undefined)[] = [];
  #isPruning = false;

  constructor(options: PredictedIndexOptions) {
    this.#options = options;
    this.#blocks = new BlockHolders(options.random, predictedSlotsMax);
    this.#shared = new ForgetList(options.random);
  }

  /** Slots ever in use: the length a `depths` column needs. */
  get slots(): number {
    return this.#holders.length;
  }

  get bytes(): number {
    let bytes = this.#blocks.table.bytes + this.#blocks.sets.bytes + this.#shared.bytes;
    if (this.#options.policy === "ttl") return bytes;
    for (const holder of this.#holders) bytes += holder?.list.bytes ?? 0;
    return bytes;
  }

  blocksOf(slot: number): number {
    return this.#holders[slot]?.list.countOf(slot) ?? 0;
  }

  /** `cacheBlocks` = KV blocks the holder says it has, 0 = it does not say. */
  addHolder(slot: number, workerId: string, dpRank: number, cacheBlocks: number): void {
    if (this.#holders[slot]) this.removeHolder(slot);
    if (slot >= predictedSlotsMax) return;
    const { policy, random, sizeMax } = this.#options;
    const list = policy === "lru" ? new ForgetList(random) : this.#shared;
    list.addHolder(slot, workerId, dpRank);
    const bit = this.#blocks.takeBit(slot, true);
    this.#holders[slot] = { slot, bit, blocksMax: cacheBlocks || sizeMax, list };
  }

  /** Forgets a holder and its blocks. */
  removeHolder(slot: number): void {
    const holder = this.#holders[slot];
    if (!holder) return;
    const { list, bit } = holder;
    this.size -= list.countOf(slot);
    list.removeHolder(slot, (lo, hi) => this.#blocks.drop(bit, lo, hi));
    this.#blocks.retireBit(bit, true);
    this.#holders[slot] = undefined;
  }

  /**
   * The holder got a prompt: drops what has expired, takes the prompt's blocks (hash lanes
   * interleaved) as stored from `nowMs` on, prunes. Answers how many blocks were pruned.
   */
  record(slot: number, sequence: Uint32Array, blocks: number, nowMs: number): number {
    const holder = this.#holders[slot];
    if (!holder) return 0;
    const { policy, ttlMs } = this.#options;
    const { list, bit, blocksMax } = holder;
    this.expire(nowMs);
    const forgetAtMs = policy === "ttl" ? nowMs + ttlMs : nowMs;
    const taken = policy === "ttl" ? blocks : Math.min(blocks, blocksMax);
    this.#blocks.advance(taken);
    for (let block = 0; block < taken; block++) {
      const lo = sequence[2 * block]! | 0;
      const hi = sequence[2 * block + 1]! | 0;
      const added = this.#blocks.add(bit, lo, hi);
      if (added === setsFull) break;
      this.size += added;
      list.put(slot, lo, hi, block, forgetAtMs);
    }
    if (policy === "lru") return this.#prune(list, list.size - blocksMax);
    return this.#pruneToTarget(2 * blocks);
  }

  /** Forgets blocks whose time is at or before `nowMs`; answers how many. */
  expire(nowMs: number): number {
    if (this.#options.policy === "lru") return 0;
    const list = this.#shared;
    let expired = 0;
    while (list.first !== nowhere && list.forgetAtMsOf(list.first) <= nowMs) {
      this.#forget(list, list.first);
      expired++;
    }
    this.totals.expired += expired;
    return expired;
  }

  /**
   * Writes, per slot, how many consecutive blocks of the prompt from the first the holder is believed
   * to have at `nowMs`; answers the largest. `depths` is at least `slots` long.
   */
  match(sequence: Uint32Array, blocks: number, depths: Int32Array, nowMs: number): number {
    this.expire(nowMs);
    return this.#blocks.match(sequence, blocks, depths);
  }

  /** One slice of pruning, from the moment that the size passes its maximum until the target. */
  #pruneToTarget(sliceMin: number): number {
    const { sizeMax, pruneTargetRatio } = this.#options;
    const { size } = this.#shared;
    const target = pruneTarget(sizeMax, pruneTargetRatio);
    if (size <= (this.#isPruning ? target : sizeMax)) {
      this.#isPruning = false;
      return 0;
    }
    const pruned = this.#prune(
      this.#shared,
      Math.min(size - target, Math.max(pruneSlice, sliceMin)),
    );
    this.#isPruning = size - pruned > target;
    if (!this.#isPruning) this.totals.pruneRuns++;
    return pruned;
  }

  #prune(list: ForgetList, count: number): number {
    for (let left = count; left > 0; left--) this.#forget(list, list.first);
    this.totals.pruned += Math.max(count, 0);
    return Math.max(count, 0);
  }

  #forget(list: ForgetList, entry: number): void {
    const { bit } = this.#holders[list.slotOf(entry)]!;
    this.#blocks.drop(bit, list.loOf(entry), list.hiOf(entry));
    list.remove(entry);
    this.size--;
  }
}
