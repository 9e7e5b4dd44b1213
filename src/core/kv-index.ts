/**
 * Which blocks each holder (worker, dp rank) has, in which storage tiers, for all holders of a pool:
 * what every implementation of the index does. `column-index.ts` is the one in plain TypeScript.
 *
 *   holder         slot 0: (worker 17, rank 0)    slot 1: (worker 17, rank 1)   …
 *   its blocks     own key -> tiers
 *   its names      engine hash -> own key         (opaque mode only)
 *
 * - The own key of a block is its sequence hash. Mode `identity`: engines name blocks by it, so
 *   there are no names. Mode `opaque`: own keys are chained from the local hashes of an event.
 * - A block is held while it is in any tier. `size` = pairs (holder, block), staged copies included;
 *   a block on 3 holders counts 3, a block in 3 tiers of one holder counts 1.
 * - A holder may have a staged copy, which nothing sees until it is committed.
 */
import type { Random } from "../base/random.ts";
import type { U64 } from "../protocol/u64.ts";

export type IndexMode = "opaque" | "identity";

/** Place of the tier in `storageTiers`: 0 device, 1 host_pinned, 2 disk, 3 external. */
export type Tier = 0 | 1 | 2 | 3;
export const tierCount = 4;

export type StoreResult = "ok" | "parent_block_not_found" | "invalid_block" | "capacity";
export type RemoveResult = "ok" | "block_not_found";

/** Chains `hashes` entries [from, to) in place, each from the entry before it. */
export type ChainHashes = (hashes: Uint32Array, from: number, to: number) => void;

export interface KvIndexOptions {
  readonly mode: IndexMode;
  readonly random: Random;
  readonly chain: ChainHashes;
  /** Holders at once. */
  readonly holdersMax?: number;
  /** Distinct blocks; a store beyond answers `capacity`. */
  readonly blocksMax?: number;
  /** Words in all interned sets. */
  readonly setWordsMax?: number;
  /** Another implementation than the one in plain TypeScript. */
  readonly core?: KvIndexCore | undefined;
}

export type KvIndexCore = (options: KvIndexOptions) => KvIndex;

export const holdersMaxDefault = 4096;
export const blocksMaxDefault: number = 1 << 26;

/** Equal digests mean equal blocks, but for chance; tiers make no difference. */
export interface BlockDigest {
  readonly blocks: number;
  readonly lo: number;
  readonly hi: number;
}

export interface IndexStats {
  /** (holder, block) pairs. */
  readonly size: number;
  /** Distinct blocks, those of removed holders included until they are swept. */
  readonly blocks: number;
  readonly sets: number;
  readonly bytes: number;
  readonly longestProbe: number;
  readonly holders: number;
  readonly duplicateStores: number;
}

export interface HolderId {
  readonly workerKey: string;
  readonly dpRank: number;
}

/** Runs from the first block per holder slot, each tier with all faster ones. */
export interface SlowDepths {
  /** Blocks in device or host memory. */
  readonly host: Int32Array;
  /** Blocks in any tier. */
  readonly disk: Int32Array;
}

/**
 * Words of one exported row:
 *
 *   opaque     [ slot << 4 | tiers | own lo | own hi | engine lo | engine hi ]
 *   identity   [ slot << 4 | tiers | own lo | own hi ]
 *
 * `tiers` has bit 1 << tier per tier. Rows come in no order; a (holder, block) may come in several
 * rows, whose tiers add up.
 */
export function rowWords(mode: IndexMode): number {
  return mode === "opaque" ? 5 : 3;
}

export interface KvIndex {
  readonly mode: IndexMode;
  readonly holdersMax: number;
  readonly size: number;
  readonly duplicateStores: number;
  /** Whether a block was ever stored in another tier than the device. */
  readonly slowTiers: boolean;
  /** Slots ever handed out at once: the length a `depths` column needs. */
  readonly slots: number;

  /**
   * Slot of a holder, handed out on first sight and again after `removeHolder`; -1 when
   * `holdersMax` are present. `expectedBlocks` sizes its name table.
   */
  holder(workerKey: string, dpRank: number, expectedBlocks?: number): number;
  findHolder(workerKey: string, dpRank: number): number | undefined;
  /** The holder in `slot`. */
  holderAt(slot: number): HolderId | undefined;
  /** Forgets a holder; its slot may be handed out again. */
  removeHolder(slot: number): void;
  /** Forgets all ranks of a worker. */
  removeWorker(workerKey: string): void;
  /** Blocks that a holder has; 0 for an unknown slot. */
  blocksOf(slot: number): number;
  /** Number and XOR of a holder's own keys, to compare with the worker's own digest. */
  digestOf(slot: number): BlockDigest;

  /**
   * Stores blocks behind `parent` (undefined = at the start of a sequence), which may be in any tier.
   * `blocks` has four words per block: local hash lo, hi, engine hash lo, hi. On any result but `ok`
   * and `capacity` nothing has changed.
   */
  store(slot: number, parent: U64 | undefined, blocks: Uint32Array, tier?: Tier): StoreResult;
  /** Removes blocks of one tier by engine hash, two words each; others are skipped and reported. */
  remove(slot: number, hashes: Uint32Array, tier?: Tier): RemoveResult;
  /** Forgets all blocks of a holder in every tier; the holder keeps its slot. */
  clear(slot: number): void;

  /**
   * Starts a second, invisible copy of a holder, filled by `storeStaged` and `restoreStaged`; a copy
   * under way is thrown away. `expectedBlocks` sizes its name table.
   */
  beginStaged(slot: number, expectedBlocks?: number): void;
  storeStaged(slot: number, parent: U64 | undefined, blocks: Uint32Array, tier?: Tier): StoreResult;
  /**
   * Adds exported rows to the staged copies of holders; `slotOf[slot in a row]` is the holder's
   * present slot. Rows of slots beyond `slotOf`, of negative ones and without a copy are skipped.
   */
  restoreStaged(rows: Uint32Array, slotOf: Int32Array): StoreResult;
  /** Lets the copy take the holder's place in one step, whatever its size. */
  commitStaged(slot: number): void;
  dropStaged(slot: number): void;

  /** Starts an export of the rows of all holders, without staged copies; ends one under way. */
  beginExport(): void;
  /**
   * The next rows, about `rowsMax` of them and possibly none; `done` after the last, `changed` when
   * anything but `match` and `maintain` was called since `beginExport`. The caller may keep them.
   */
  exportRows(rowsMax: number): Uint32Array | "done" | "changed";

  /**
   * Writes, per holder slot, how many consecutive blocks of the prompt from the first it has in
   * device memory, and answers the largest. `sequence` has two words per block; all columns are at
   * least `slots` long.
   */
  match(sequence: Uint32Array, blocks: number, depths: Int32Array, slow?: SlowDepths): number;

  /**
   * Advances growth and the clean-up of removed holders by up to `slots`; true while work is left.
   * Rests while an export is under way.
   */
  maintain(slots: number): boolean;
  stats(): IndexStats;
}
