/**
 * The KV index on an instance of its own of the fast core: tables and rules live in `assembly/`,
 * who the holders are lives here.
 *
 *   holder slot ──▶ book (what it has)     staged copy of a slot ──▶ another book
 *
 *   event area   [ an event's words | … ]                store, remove, restore
 *                [ sequence u64 per block | depth u32 per slot ]        match
 *
 * - One call per event; it is checked here, because nobody checks bounds over there.
 * - Views of the memory are made anew after a call that grew it: a detached one has length 0.
 * - Every call that may change or move a row ends an export under way.
 * - Memory ends at 4 GiB: a store then answers `capacity`, a further holder traps.
 */
import type { CoreExports, FastCore } from "../base/fast-core.ts";
import { randomU32 } from "../base/random.ts";
import type { U64 } from "../protocol/u64.ts";
import { expectedBlocksMax, holderNamesMin } from "./column-index.ts";
import { setWordsMax } from "./holder-sets.ts";
import {
  type BlockDigest,
  blocksMaxDefault,
  type HolderId,
  holdersMaxDefault,
  type IndexMode,
  type IndexStats,
  type KvIndex,
  type KvIndexCore,
  type KvIndexOptions,
  type RemoveResult,
  rowWords,
  type SlowDepths,
  type StoreResult,
  type Tier,
  tierCount,
} from "./kv-index.ts";
import { eventBlocksMax } from "./repeat-check.ts";

/** By the number that the core answers. */
const storeResults = ["ok", "parent_block_not_found", "invalid_block", "capacity"] as const;
const areaBytesMin: number = 64 * 1024;
/** Below this many words a loop copies faster than a view is made. */
const loopWordsMax = 64;
/** Places of a table looked at per row asked for, so that empty stretches cost no more. */
const placesPerRow = 4;
const eventHeadWords = 4;

interface Holder extends HolderId {
  readonly slot: number;
  /** Address in the core's memory. */
  book: number;
}

/** Makes indexes on the fast core. */
export function wasmIndexCore(core: FastCore): KvIndexCore {
  return (options) => new WasmIndex(core, options);
}

export class WasmIndex implements KvIndex {
  readonly mode: IndexMode;
  readonly holdersMax: number;
  readonly #wasm: CoreExports;
  readonly #holders: (Holder | undefined)[] = [];
  readonly #slotOf = new Map<string, number>();
  readonly #freeSlots: number[] = [];
  /** Books of staged copies by slot. */
  readonly #staged = new Map<number, number>();
  #words: Uint32Array;
  #area = 0;
  #areaBytes = 0;
  #export: { slot: number; place: number } | undefined;

  constructor(core: FastCore, options: KvIndexOptions) {
    this.mode = options.mode;
    this.holdersMax = options.holdersMax ?? holdersMaxDefault;
    this.#wasm = core.instantiate();
    this.#wasm.seedRandom(randomU32(options.random), randomU32(options.random));
    const blocksMax = options.blocksMax ?? blocksMaxDefault;
    const wordsMax = options.setWordsMax ?? setWordsMax;
    this.#wasm.openIndex(options.mode === "opaque", this.holdersMax, blocksMax, wordsMax);
    this.#words = new Uint32Array(this.#wasm.memory.buffer);
    this.#reserveArea(areaBytesMin);
  }

  get size(): number {
    return this.#wasm.pairCount() >>> 0;
  }

  get duplicateStores(): number {
    return this.#wasm.duplicateCount();
  }

  get slowTiers(): boolean {
    return this.#wasm.hasSlowTiers() !== 0;
  }

  get slots(): number {
    return this.#holders.length;
  }

  holder(workerKey: string, dpRank: number, expectedBlocks: number = holderNamesMin): number {
    const key = `${workerKey}:${dpRank}`;
    const known = this.#slotOf.get(key);
    if (known !== undefined) return known;
    if (this.#slotOf.size >= this.holdersMax) return -1;
    this.#export = undefined;
    const slot = this.#freeSlots.pop() ?? this.#holders.length;
    const book = this.#wasm.openBook(slot, 1, namesFor(expectedBlocks));
    this.#holders[slot] = { slot, workerKey, dpRank, book };
    this.#slotOf.set(key, slot);
    return slot;
  }

  findHolder(workerKey: string, dpRank: number): number | undefined {
    return this.#slotOf.get(`${workerKey}:${dpRank}`);
  }

  holderAt(slot: number): HolderId | undefined {
    return this.#holders[slot];
  }

  blocksOf(slot: number): number {
    const holder = this.#holders[slot];
    return holder ? this.#wasm.blocksOf(holder.book) : 0;
  }

  digestOf(slot: number): BlockDigest {
    const holder = this.#holders[slot];
    if (!holder) return { blocks: 0, lo: 0, hi: 0 };
    const lo = this.#wasm.digestLo(holder.book) >>> 0;
    const hi = this.#wasm.digestHi(holder.book) >>> 0;
    return { blocks: this.#wasm.blocksOf(holder.book), lo, hi };
  }

  store(slot: number, parent: U64 | undefined, blocks: Uint32Array, tier: Tier = 0): StoreResult {
    const holder = this.#holders[slot];
    return holder ? this.#storeIn(holder.book, parent, blocks, tier) : "ok";
  }

  remove(slot: number, hashes: Uint32Array, tier: Tier = 0): RemoveResult {
    const holder = this.#holders[slot];
    if (!holder) return hashes.length === 0 ? "ok" : "block_not_found";
    this.#export = undefined;
    const words = hashes.length & ~1;
    const wordsMax = this.#areaBytes >>> 2;
    let result: RemoveResult = "ok";
    for (let from = 0; from < words; from += wordsMax) {
      const end = Math.min(words, from + wordsMax);
      this.#put(hashes, from, end, this.#area);
      const answer = this.#wasm.removeEvent(holder.book, tier, (end - from) >>> 1);
      if (answer !== 0) result = "block_not_found";
    }
    return result;
  }

  clear(slot: number): void {
    const holder = this.#holders[slot];
    if (!holder) return;
    this.#export = undefined;
    this.#wasm.clearBook(holder.book, Math.max(holderNamesMin, this.blocksOf(slot)));
  }

  removeHolder(slot: number): void {
    const holder = this.#holders[slot];
    if (!holder) return;
    this.dropStaged(slot);
    this.#export = undefined;
    this.#wasm.closeBook(holder.book);
    this.#holders[slot] = undefined;
    this.#slotOf.delete(`${holder.workerKey}:${holder.dpRank}`);
    this.#freeSlots.push(slot);
  }

  removeWorker(workerKey: string): void {
    for (const holder of this.#holders) {
      if (holder?.workerKey === workerKey) this.removeHolder(holder.slot);
    }
  }

  beginStaged(slot: number, expectedBlocks?: number): void {
    if (!this.#holders[slot]) return;
    this.dropStaged(slot);
    this.#export = undefined;
    const names = namesFor(expectedBlocks ?? this.blocksOf(slot));
    this.#staged.set(slot, this.#wasm.openBook(slot, 0, names));
  }

  storeStaged(
    slot: number,
    parent: U64 | undefined,
    blocks: Uint32Array,
    tier: Tier = 0,
  ): StoreResult {
    const book = this.#staged.get(slot);
    return book === undefined ? "ok" : this.#storeIn(book, parent, blocks, tier);
  }

  restoreStaged(rows: Uint32Array, slotOf: Int32Array): StoreResult {
    this.#export = undefined;
    const count = Math.floor(rows.length / rowWords(this.mode));
    const words = count * rowWords(this.mode);
    if (!this.#reserveArea(4 * (words + slotOf.length))) return "capacity";
    this.#put(rows, 0, words, this.#area);
    const books = this.#area + 4 * words;
    const view = this.#view();
    for (let slot = 0; slot < slotOf.length; slot++) {
      view[(books >>> 2) + slot] = this.#staged.get(slotOf[slot]!) ?? 0;
    }
    return storeResults[this.#wasm.restoreEvent(count, books, slotOf.length)]!;
  }

  commitStaged(slot: number): void {
    const holder = this.#holders[slot];
    const book = this.#staged.get(slot);
    if (!holder || book === undefined) return;
    this.#export = undefined;
    this.#staged.delete(slot);
    this.#wasm.closeBook(holder.book);
    this.#wasm.showBook(book);
    holder.book = book;
  }

  dropStaged(slot: number): void {
    const book = this.#staged.get(slot);
    if (book === undefined) return;
    this.#export = undefined;
    this.#staged.delete(slot);
    this.#wasm.closeBook(book);
  }

  beginExport(): void {
    this.#wasm.beginExport();
    for (const holder of this.#holders) if (holder) this.#wasm.exportBook(holder.book);
    this.#export = { slot: 0, place: 0 };
  }

  exportRows(rowsMax: number): Uint32Array | "done" | "changed" {
    const at = this.#export;
    if (!at) return "changed";
    const places = placesPerRow * rowsMax;
    const wasm = this.#wasm;
    let more: number;
    if (this.mode === "identity") {
      if (at.slot > 0) return this.#endExport();
      more = wasm.exportBlocks(at.place, places, rowsMax);
    } else {
      while (at.slot < this.slots && !this.#holders[at.slot]) at.slot++;
      const holder = this.#holders[at.slot];
      if (!holder) return this.#endExport();
      more = wasm.exportNames(holder.book, at.place, places, rowsMax);
    }
    at.place = wasm.rowsNext() >>> 0;
    if (!more) {
      at.slot++;
      at.place = 0;
    }
    const first = wasm.rowsAt() >>> 2;
    return this.#view().slice(first, first + (wasm.rowBytes() >>> 2));
  }

  match(sequence: Uint32Array, blocks: number, depths: Int32Array, slow?: SlowDepths): number {
    depths.fill(0);
    const { slots } = this;
    const count = Math.min(blocks, sequence.length >>> 1);
    if (!this.#reserveArea(8 * count + 4 * slots)) return 0;
    this.#put(sequence, 0, 2 * count, this.#area);
    const depthsAt = this.#area + 8 * count;
    const first = depthsAt >>> 2;
    this.#view().fill(0, first, first + slots);
    const deepest = this.#wasm.match(this.#area, count, depthsAt) >>> 0;
    const view = this.#view();
    if (deepest > 0) for (let slot = 0; slot < slots; slot++) depths[slot] = view[first + slot]!;
    if (slow) this.#matchSlow(count, depths, slow);
    return deepest;
  }

  maintain(slots: number): boolean {
    if (this.#export) return true;
    return this.#wasm.maintain(Math.min(slots, 0xffff_ffff)) !== 0;
  }

  stats(): IndexStats {
    const wasm = this.#wasm;
    return {
      size: this.size,
      blocks: wasm.blockCount() >>> 0,
      sets: wasm.interned() >>> 0,
      bytes: wasm.usedBytes() >>> 0,
      longestProbe: wasm.longestProbe() >>> 0,
      holders: this.#slotOf.size,
      duplicateStores: this.duplicateStores,
    };
  }

  #storeIn(book: number, parent: U64 | undefined, blocks: Uint32Array, tier: Tier): StoreResult {
    this.#export = undefined;
    const words = blocks.length & ~3;
    if (words > 4 * eventBlocksMax) return "invalid_block";
    if (!this.#reserveArea(4 * (eventHeadWords + words))) return "capacity";
    if (parent) {
      const view = this.#view();
      view[this.#area >>> 2] = parent.lo;
      view[(this.#area >>> 2) + 1] = parent.hi;
    }
    this.#put(blocks, 0, words, this.#area + 4 * eventHeadWords);
    return storeResults[this.#wasm.storeEvent(book, tier, parent ? 1 : 0, words >>> 2)]!;
  }

  /** Depths over slow tiers start from those over the device, which most holders share. */
  #matchSlow(blocks: number, depths: Int32Array, { host, disk }: SlowDepths): void {
    const wasm = this.#wasm;
    const walks = this.slowTiers;
    if (walks) wasm.readRuns(this.#area, blocks);
    for (let slot = 0; slot < this.slots; slot++) {
      const holder = this.#holders[slot];
      const isSlow = walks && holder !== undefined && wasm.isSlow(holder.book) !== 0;
      host[slot] = isSlow ? wasm.depthInRuns(holder.book, 2) : depths[slot]!;
      disk[slot] = isSlow ? wasm.depthInRuns(holder.book, tierCount) : depths[slot]!;
    }
  }

  #endExport(): "done" {
    this.#export = undefined;
    return "done";
  }

  /** Makes the event area hold `bytes`; its content may be lost. False = memory is full. */
  #reserveArea(bytes: number): boolean {
    if (bytes <= this.#areaBytes) return true;
    const ample = Math.ceil(bytes / areaBytesMin) * areaBytesMin;
    const area = this.#wasm.eventArea(ample) >>> 0;
    if (area === 0) return false;
    this.#area = area;
    this.#areaBytes = ample;
    return true;
  }

  /** Copies words [from, end) to an address in the event area. */
  #put(words: Uint32Array, from: number, end: number, address: number): void {
    const view = this.#view();
    const at = address >>> 2;
    if (end - from > loopWordsMax) view.set(words.subarray(from, end), at);
    else for (let word = from; word < end; word++) view[at + word - from] = words[word]!;
  }

  #view(): Uint32Array {
    if (this.#words.length === 0) this.#words = new Uint32Array(this.#wasm.memory.buffer);
    return this.#words;
  }
}

function namesFor(expectedBlocks: number): number {
  return Math.max(holderNamesMin, Math.min(expectedBlocks, expectedBlocksMax));
}
