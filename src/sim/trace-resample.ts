/**
 * New traces from a recorded one: prefixes, lengths and arrivals are drawn from what was recorded.
 *
 *   root ─5─▶ [0] ─3─▶ [1] ─2─▶ [2]      visits of the blocks that more than one request has
 *              │1      │1                 text of one request only: a leaf, its length is kept
 *              │1                         requests that end there
 *
 * A request walks down from the root, at each block by the counts: to a child, into a leaf of a drawn
 * length with ids of its own, or to its end. The scheme is that of Dynamo's trace synthesizer.
 */
import { TiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import { type TraceRequest, traceBlockTokens } from "./mooncake-trace.ts";

interface Node {
  readonly id: number;
  readonly children: Map<number, Node>;
  visits: number;
  ends: number;
}

/** Draws `count` requests; throws `config_invalid` for an empty recording. */
export function resampleTrace(
  recorded: readonly TraceRequest[],
  count: number,
  random: Random,
): TraceRequest[] {
  if (recorded.length === 0) throw new TiergridError("config_invalid", "the trace has no requests");
  const root = prefixTree(recorded);
  const leaves = leafBlocks(root, recorded);
  const batches = batchesOf(recorded);
  let nextId = recorded.reduce((next, { hashIds }) => Math.max(next, maxOf(hashIds) + 1), 0);
  const requests: TraceRequest[] = [];
  for (let arrivalMs = 0; requests.length < count; ) {
    const { gapMs, size } = drawn(batches, random);
    for (let place = 0; place < size && requests.length < count; place++) {
      const { ids, leaf } = walk(root, random);
      const fresh = leaf ? drawn(leaves, random) : 0;
      for (let block = 0; block < fresh; block++) ids.push(nextId++);
      const { inputTokens } = drawn(recorded, random);
      const lastTokens = ((inputTokens - 1) % traceBlockTokens) + 1;
      requests.push({
        arrivalMs,
        inputTokens: (ids.length - 1) * traceBlockTokens + lastTokens,
        outputTokens: drawn(recorded, random).outputTokens,
        hashIds: ids,
      });
    }
    arrivalMs += gapMs;
  }
  return requests;
}

function prefixTree(requests: readonly TraceRequest[]): Node {
  const root = newNode(-1);
  for (const { hashIds } of requests) {
    let node = root;
    node.visits++;
    for (const id of hashIds) {
      const child = node.children.get(id) ?? newNode(id);
      node.children.set(id, child);
      child.visits++;
      node = child;
    }
    node.ends++;
  }
  return root;
}

function newNode(id: number): Node {
  return { id, children: new Map(), visits: 0, ends: 0 };
}

/** Blocks that each request alone has, of those that have any. */
function leafBlocks(root: Node, requests: readonly TraceRequest[]): number[] {
  const lengths = requests.map(({ hashIds }) => {
    let node: Node | undefined = root;
    let common = 0;
    for (const id of hashIds) {
      node = node.children.get(id);
      if (!node || node.visits === 1) break;
      common++;
    }
    return hashIds.length - common;
  });
  return lengths.filter((blocks) => blocks > 0);
}

/** The blocks in common of one drawn request, and whether text of its own follows. */
function walk(root: Node, random: Random): { ids: number[]; leaf: boolean } {
  const ids: number[] = [];
  for (let node = root; ; ) {
    let left = random() * node.visits - node.ends;
    if (left < 0) return { ids, leaf: false };
    let next: Node | undefined;
    for (const child of node.children.values()) {
      if (child.visits === 1) continue;
      left -= child.visits;
      if (left >= 0) continue;
      next = child;
      break;
    }
    if (!next) return { ids, leaf: true };
    ids.push(next.id);
    node = next;
  }
}

interface Batch {
  /** To the batch after it. */
  readonly gapMs: number;
  /** Requests that arrive at one instant. */
  readonly size: number;
}

function batchesOf(requests: readonly TraceRequest[]): Batch[] {
  const sizes = new Map<number, number>();
  for (const { arrivalMs } of requests) sizes.set(arrivalMs, (sizes.get(arrivalMs) ?? 0) + 1);
  const sorted = [...sizes].sort(([one], [other]) => one - other);
  const batches = sorted.slice(1).map(([atMs], place) => {
    const [beforeMs, size] = sorted[place] ?? [atMs, 1];
    return { gapMs: atMs - beforeMs, size };
  });
  // All at once: there is no gap to draw.
  return batches.length > 0 ? batches : [{ gapMs: 0, size: requests.length }];
}

function drawn<Value>(values: readonly Value[], random: Random): Value {
  return values[Math.floor(random() * values.length)] as Value;
}

function maxOf(ids: readonly number[]): number {
  return ids.reduce((most, id) => Math.max(most, id), -1);
}
