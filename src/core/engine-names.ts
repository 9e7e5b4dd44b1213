/**
 * One holder's names for its blocks: engine hash -> own key (the chained hash the index is keyed
 * by). Engines name blocks by hashes of their own, so removals and parents arrive as these.
 *
 *   engine hash   own key
 *   [ 0x51…     | 0xa0… ]
 *   [ 0x77…     | 0xb4… ]   replaced: 0x90… named the same block later
 *   [ 0x90…     | 0xb4… ]   current
 *
 * - A block has one current name; a name that another one replaced stays in the table, so that its
 *   late removal is recognised, but addresses nothing.
 * - `#replaced` has an entry for exactly those own keys that have replaced names. It is empty in
 *   normal operation and is purged, with the names, at `replacedMax` entries.
 */
import type { Random } from "../base/random.ts";
import { LaneTable } from "./lane-table.ts";

/** Own keys with replaced names that one holder keeps. */
export const replacedMax = 4096;

interface Replaced {
  /** Current name as "hi:lo", or undefined when the block is not held. */
  current: string | undefined;
  /** Names in the table that are not current. */
  stale: number;
}

export class EngineNames {
  /** Own key that `find` found, as signed lanes. */
  ownLo = 0;
  ownHi = 0;

  /** Engine hash -> own key lo, hi. */
  readonly table: LaneTable;
  readonly #replaced = new Map<string, Replaced>();

  constructor(slots: number, random: Random) {
    this.table = new LaneTable(4, slots, random);
  }

  get bytes(): number {
    return this.table.bytes;
  }

  get count(): number {
    return this.table.count;
  }

  /** Makes room for `names` more; offsets become invalid. */
  reserve(names: number): void {
    if (this.#replaced.size >= replacedMax) this.#purge();
    this.table.reserve(names);
  }

  /** Offset of a name, with `ownLo` and `ownHi` set to what it names; -1 = unknown. */
  find(lo: number, hi: number): number {
    const at = this.table.find(lo, hi);
    if (at >= 0) {
      this.ownLo = this.table.words[at + 2]!;
      this.ownHi = this.table.words[at + 3]!;
    }
    return at;
  }

  /** Whether the name at `at` has been replaced by another of the same block. */
  isReplaced(at: number): boolean {
    if (this.#replaced.size === 0) return false;
    const entry = this.#replaced.get(this.#ownText(at));
    return entry !== undefined && entry.current !== this.#nameText(at);
  }

  /** Adds a name that is absent; reserved before. */
  insert(lo: number, hi: number, ownLo: number, ownHi: number): number {
    const at = this.table.insert(lo, hi);
    this.table.words[at + 2] = ownLo;
    this.table.words[at + 3] = ownHi;
    return at;
  }

  /** Points the name at `at` to another block; its old block loses it. */
  repoint(at: number, ownLo: number, ownHi: number): void {
    this.#leave(at);
    this.table.words[at + 2] = ownLo;
    this.table.words[at + 3] = ownHi;
  }

  /** Deletes the name at `at`. */
  removeAt(at: number): void {
    this.#leave(at);
    this.table.removeAt(at);
  }

  /** The name at `at` is the current one of its block, which was (`wasHeld`) or was not held. */
  makeCurrent(at: number, wasHeld: boolean, wasReplaced: boolean): void {
    if (!wasHeld && this.#replaced.size === 0) return;
    const own = this.#ownText(at);
    const entry = this.#replaced.get(own);
    if (!entry) {
      if (wasHeld) this.#replaced.set(own, { current: this.#nameText(at), stale: 1 });
      return;
    }
    // The former current name joins the stale ones if there was one; this one leaves them.
    entry.stale += (wasHeld ? 1 : 0) - (wasReplaced ? 1 : 0);
    entry.current = this.#nameText(at);
    if (entry.stale === 0) this.#replaced.delete(own);
  }

  #purge(): void {
    const table = this.table;
    table.migrate(Number.POSITIVE_INFINITY);
    const names: number[] = [];
    for (let at = 0; at < table.words.length; at += 4) {
      if ((table.words[at]! | table.words[at + 1]!) === 0 || !this.isReplaced(at)) continue;
      names.push(table.keyLo(at), table.keyHi(at));
    }
    for (let name = 0; name < names.length; name += 2) {
      table.removeAt(table.find(names[name]!, names[name + 1]!));
    }
    this.#replaced.clear();
  }

  #leave(at: number): void {
    if (this.#replaced.size === 0) return;
    const own = this.#ownText(at);
    const entry = this.#replaced.get(own);
    if (!entry) return;
    if (entry.current === this.#nameText(at)) entry.current = undefined;
    else entry.stale--;
    if (entry.stale === 0) this.#replaced.delete(own);
  }

  #ownText(at: number): string {
    return `${this.table.words[at + 3]}:${this.table.words[at + 2]}`;
  }

  #nameText(at: number): string {
    return `${this.table.words[at + 1]}:${this.table.words[at]}`;
  }
}
