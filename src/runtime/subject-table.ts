/**
 * Who wants which subject. Exact subjects stand in a map; patterns with `*` (one token) and `>` (one
 * token or more, at the end) stand in a tree of tokens:
 *
 *   tg ─ hb ─ *          [a]
 *      └ ev ─ pool-1 ─ > [b]
 *
 * Invariants: an answer array is never changed after it was handed out; a pattern's node goes with
 * its last value; the cache of pattern answers is cleared when a pattern comes or goes and holds at
 * most `cachedSubjectsMax` subjects.
 */

interface Node<T> {
  readonly children: Map<string, Node<T>>;
  values: readonly T[];
}

const cachedSubjectsMax = 8192;

export class SubjectTable<T> {
  readonly #exact = new Map<string, readonly T[]>();
  readonly #cache = new Map<string, readonly T[]>();
  readonly #root: Node<T> = newNode();
  #patterns = 0;

  add(pattern: string, value: T): void {
    if (!isPattern(pattern)) {
      this.#exact.set(pattern, [...(this.#exact.get(pattern) ?? []), value]);
      return;
    }
    let node = this.#root;
    for (const token of pattern.split(".")) {
      let child = node.children.get(token);
      if (!child) {
        child = newNode();
        node.children.set(token, child);
      }
      node = child;
    }
    node.values = [...node.values, value];
    this.#patterns += 1;
    this.#cache.clear();
  }

  /** Takes out what `add` put in; does nothing when it is not there. */
  remove(pattern: string, value: T): void {
    if (isPattern(pattern)) {
      if (!removeFrom(this.#root, pattern.split("."), 0, value)) return;
      this.#patterns -= 1;
      this.#cache.clear();
      return;
    }
    const left = (this.#exact.get(pattern) ?? []).filter((held) => held !== value);
    if (left.length === 0) this.#exact.delete(pattern);
    else this.#exact.set(pattern, left);
  }

  /** Every value whose subject or pattern matches `subject`. */
  match(subject: string): readonly T[] {
    const exact = this.#exact.get(subject);
    if (this.#patterns === 0) return exact ?? [];
    const matched = this.#matchPatterns(subject);
    if (!exact) return matched;
    return matched.length === 0 ? exact : [...exact, ...matched];
  }

  #matchPatterns(subject: string): readonly T[] {
    const cached = this.#cache.get(subject);
    if (cached) return cached;
    const found: T[] = [];
    collect(this.#root, subject.split("."), 0, found);
    if (this.#cache.size >= cachedSubjectsMax) this.#cache.clear();
    this.#cache.set(subject, found);
    return found;
  }
}

export const isPattern = (subject: string): boolean => /[*>]/.test(subject);

function newNode<T>(): Node<T> {
  return { children: new Map(), values: [] };
}

function collect<T>(node: Node<T>, tokens: readonly string[], depth: number, found: T[]): void {
  if (depth === tokens.length) {
    for (const value of node.values) found.push(value);
    return;
  }
  for (const value of node.children.get(">")?.values ?? []) found.push(value);
  const any = node.children.get("*");
  if (any) collect(any, tokens, depth + 1, found);
  const same = node.children.get(tokens[depth] ?? "");
  if (same) collect(same, tokens, depth + 1, found);
}

function removeFrom<T>(node: Node<T>, tokens: readonly string[], depth: number, value: T): boolean {
  const token = tokens[depth];
  if (token === undefined) {
    const left = node.values.filter((held) => held !== value);
    const removed = left.length < node.values.length;
    node.values = left;
    return removed;
  }
  const child = node.children.get(token);
  if (!child || !removeFrom(child, tokens, depth + 1, value)) return false;
  if (child.values.length === 0 && child.children.size === 0) node.children.delete(token);
  return true;
}
