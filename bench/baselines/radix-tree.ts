/**
 * Baseline of I1 to I7: a radix tree of Maps, Sets and BigInts, as a first implementation would have
 * it. Same semantics: membership is intersected, removal never cascades, empty nodes are detached.
 */
interface Node {
  readonly children: Map<bigint, Node>;
  readonly holders: Set<number>;
  readonly parent: Node | undefined;
  readonly local: bigint;
}

const newNode = (parent: Node | undefined, local: bigint): Node => ({
  children: new Map(),
  holders: new Set(),
  parent,
  local,
});

export class RadixTree {
  readonly #root = newNode(undefined, 0n);
  readonly #lookups = new Map<number, Map<bigint, Node>>();

  store(holder: number, parent: bigint | undefined, blocks: readonly [bigint, bigint][]): boolean {
    const lookup = this.#lookups.get(holder) ?? new Map<bigint, Node>();
    this.#lookups.set(holder, lookup);
    let node: Node | undefined = parent === undefined ? this.#root : lookup.get(parent);
    if (!node) return false;
    for (const [local, name] of blocks) {
      let child: Node | undefined = node.children.get(local);
      if (!child) {
        child = newNode(node, local);
        node.children.set(local, child);
      }
      child.holders.add(holder);
      lookup.set(name, child);
      node = child;
    }
    return true;
  }

  remove(holder: number, names: readonly bigint[]): void {
    const lookup = this.#lookups.get(holder);
    for (const name of names) {
      let node = lookup?.get(name);
      if (!node) continue;
      lookup?.delete(name);
      node.holders.delete(holder);
      while (node?.parent && node.holders.size === 0 && node.children.size === 0) {
        node.parent.children.delete(node.local);
        node = node.parent;
      }
    }
  }

  match(locals: readonly bigint[]): Map<number, number> {
    const depths = new Map<number, number>();
    let node = locals.length > 0 ? this.#root.children.get(locals[0]!) : undefined;
    if (!node) return depths;
    let active = [...node.holders];
    let depth = 1;
    for (; depth < locals.length && active.length > 0; depth++) {
      const child: Node | undefined = node.children.get(locals[depth]!);
      if (!child) break;
      const stay: number[] = [];
      for (const holder of active) {
        if (child.holders.has(holder)) stay.push(holder);
        else depths.set(holder, depth);
      }
      active = stay;
      node = child;
    }
    for (const holder of active) depths.set(holder, depth);
    return depths;
  }
}
