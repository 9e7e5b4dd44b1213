/**
 * The KV index as its rules read: per holder a map from path to (name, tiers). A path is a node of one
 * trie of local hashes; its own key is chained here, from the path alone.
 */
import type { ChainHashes, RemoveResult, StoreResult } from "../../src/core/kv-index.ts";

export interface NaiveBlock {
  /** Local hash, lanes. */
  readonly local: readonly [number, number];
  readonly name: string;
}

interface Path {
  readonly lo: number;
  readonly hi: number;
  readonly children: Map<string, Path>;
}

interface Entry {
  name: string;
  readonly tiers: Set<number>;
}

export class NaiveHolder {
  readonly pathOf = new Map<string, Path>();
  readonly entries = new Map<Path, Entry>();

  /** Whether every block of the path's stretch is in one of the tiers; answers the run's length. */
  depth(paths: readonly Path[], tiers: readonly number[]): number {
    const missing = paths.findIndex((path) => {
      const held = this.entries.get(path)?.tiers;
      return !held || !tiers.some((tier) => held.has(tier));
    });
    return missing < 0 ? paths.length : missing;
  }

  digest(): { blocks: number; lo: number; hi: number } {
    let [lo, hi] = [0, 0];
    for (const path of this.entries.keys()) {
      lo ^= path.lo;
      hi ^= path.hi;
    }
    return { blocks: this.entries.size, lo: lo >>> 0, hi: hi >>> 0 };
  }

  forget(path: Path): void {
    const entry = this.entries.get(path);
    if (!entry) return;
    this.pathOf.delete(entry.name);
    this.entries.delete(path);
  }
}

export class NaiveIndex {
  readonly holders = new Map<string, NaiveHolder>();
  readonly #chain: ChainHashes;
  readonly #root: Path = { lo: 0, hi: 0, children: new Map() };

  constructor(chain: ChainHashes) {
    this.#chain = chain;
  }

  holder(key: string): NaiveHolder {
    const known = this.holders.get(key) ?? new NaiveHolder();
    this.holders.set(key, known);
    return known;
  }

  /** The paths of a prompt's blocks, one after each block. */
  pathsOf(locals: readonly (readonly [number, number])[], from: Path = this.#root): Path[] {
    let path = from;
    return locals.map((local) => {
      path = this.#child(path, local);
      return path;
    });
  }

  store(
    holder: NaiveHolder,
    parent: string | undefined,
    blocks: readonly NaiveBlock[],
    tier: number,
  ): StoreResult {
    const names = blocks.map((block) => block.name);
    if (new Set(names).size < names.length) return "invalid_block";
    if (parent !== undefined && names.includes(parent)) return "invalid_block";
    const from = parent === undefined ? this.#root : holder.pathOf.get(parent);
    if (!from) return "parent_block_not_found";
    const paths = this.pathsOf(
      blocks.map((block) => block.local),
      from,
    );
    for (const [at, path] of paths.entries()) {
      const name = names[at]!;
      const before = holder.pathOf.get(name);
      if (before && before !== path) holder.forget(before);
      const entry = holder.entries.get(path);
      if (entry) holder.pathOf.delete(entry.name);
      holder.pathOf.set(name, path);
      holder.entries.set(path, { name, tiers: new Set([...(entry?.tiers ?? []), tier]) });
    }
    return "ok";
  }

  remove(holder: NaiveHolder, names: readonly string[], tier: number): RemoveResult {
    let result: RemoveResult = "ok";
    for (const name of names) {
      const path = holder.pathOf.get(name);
      const entry = path && holder.entries.get(path);
      if (!path || !entry?.tiers.delete(tier)) result = "block_not_found";
      else if (entry.tiers.size === 0) holder.forget(path);
    }
    return result;
  }

  #child(parent: Path, [lo, hi]: readonly [number, number]): Path {
    const key = `${lo},${hi}`;
    const known = parent.children.get(key);
    if (known) return known;
    const lanes = Uint32Array.of(parent.lo, parent.hi, lo, hi);
    if (parent !== this.#root) this.#chain(lanes, 1, 2);
    const child = { lo: lanes[2]!, hi: lanes[3]!, children: new Map<string, Path>() };
    parent.children.set(key, child);
    return child;
  }
}
