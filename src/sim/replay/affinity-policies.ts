/** Choices that follow prefixes: consistent hashing with bounded loads, and SGLang's router. */
import type { Random } from "../../base/random.ts";
import type { HashRing } from "./hash-ring.ts";
import type { Policy, PolicyRequest, WorkerViews } from "./policies.ts";
import { lowest } from "./policies.ts";

export interface RingSettings {
  /** Blocks of the prompt that make the key. */
  readonly keyBlocks: number;
  /** A worker may exceed the mean load by this factor. */
  readonly loadFactor: number;
}

/** The first worker clockwise from the prompt's key that is not overloaded (KubeAI). */
export function chwbl(ring: HashRing, settings: RingSettings): Policy {
  return (request, views) => {
    const start = startOf(ring, request, settings.keyBlocks);
    for (let step = 0; step < ring.size; step++) {
      const worker = ring.workerAt(start + step);
      if (hasRoom(views, worker, settings.loadFactor)) return worker;
    }
    return ring.workerAt(start);
  };
}

/** The worker of the prompt's key; when it is overloaded the least loaded one with room (SMG). */
export function prefixHash(ring: HashRing, settings: RingSettings): Policy {
  return (request, views, random) => {
    const target = ring.workerAt(startOf(ring, request, settings.keyBlocks));
    if (hasRoom(views, target, settings.loadFactor)) return target;
    const other = lowest(views.count, random, (worker) =>
      hasRoom(views, worker, settings.loadFactor)
        ? (views.inFlight[worker] ?? 0)
        : Number.POSITIVE_INFINITY,
    );
    return hasRoom(views, other, settings.loadFactor) ? other : target;
  };
}

/** The key is the sequence hash of the last block that counts; 0 for a prompt without full block. */
function startOf(ring: HashRing, { sequence }: PolicyRequest, keyBlocks: number): number {
  const at = 2 * (Math.min(keyBlocks, sequence.length >> 1) - 1);
  return ring.find({ lo: sequence[at] ?? 0, hi: sequence[at + 1] ?? 0 });
}

/** A worker that has not joined has none. */
function hasRoom({ count, inFlight }: WorkerViews, worker: number, loadFactor: number): boolean {
  if (worker >= count) return false;
  let total = 0;
  for (let other = 0; other < count; other++) total += inFlight[other] ?? 0;
  return total === 0 || (inFlight[worker] ?? 0) <= ((total + 1) / count) * loadFactor;
}

export interface SglangSettings {
  /** Share of the prompt that must match; 0 = any match counts. */
  readonly matchAbove: number;
  /** Loads differ too much when they do by more than both. */
  readonly balanceAbs: number;
  readonly balanceRel: number;
}

/** The worker with the longest match unless loads differ too much, by the exact index. */
export function sglang(settings: SglangSettings): Policy {
  return (request, views, random) =>
    isImbalanced(settings, views)
      ? leastProcessed(views, random)
      : (longestMatch(settings, request, views, exactMatches(views), random) ??
        leastProcessed(views, random));
}

/** What a router believes its workers have. */
interface Matches {
  /** Leading blocks of the prompt, by worker. */
  readonly matched: Int32Array;
  /** Blocks in all, by worker. */
  readonly held: ArrayLike<number>;
}

function exactMatches({ overlapBlocks, cachedBlocks }: WorkerViews): Matches {
  return { matched: overlapBlocks, held: cachedBlocks };
}

/** The same by a tree of past decisions: per worker the blocks it was sent, least recent out. */
export function sglangApproximate(settings: SglangSettings, blocksMax: number): Policy {
  const sent: Set<string>[] = [];
  return (request, views, random) => {
    while (sent.length < views.count) sent.push(new Set());
    const names = blockNames(request);
    const matched = Int32Array.from(sent, (blocks) => {
      const miss = names.findIndex((name) => !blocks.has(name));
      return miss < 0 ? names.length : miss;
    });
    const held = sent.map(({ size }) => size);
    const worker = isImbalanced(settings, views)
      ? leastProcessed(views, random)
      : (longestMatch(settings, request, views, { matched, held }, random) ??
        leastProcessed(views, random));
    remember(sent[worker], names, blocksMax);
    return worker;
  };
}

export function isImbalanced(settings: SglangSettings, { count, inFlight }: WorkerViews): boolean {
  const loads = inFlight.subarray(0, count);
  const min = Math.min(...loads);
  const max = Math.max(...loads);
  return max - min > settings.balanceAbs && max > settings.balanceRel * min;
}

/** Least requests in flight, then least requests ever given. */
function leastProcessed({ count, inFlight, processed }: WorkerViews, random: Random): number {
  const least = Math.min(...inFlight.subarray(0, count));
  return lowest(count, random, (worker) =>
    inFlight[worker] === least ? (processed[worker] ?? 0) : Number.POSITIVE_INFINITY,
  );
}

/** The longest match; on a tie the less loaded, then the one that holds fewer blocks. */
function longestMatch(
  settings: SglangSettings,
  request: PolicyRequest,
  views: WorkerViews,
  matches: Matches,
  random: Random,
): number | undefined {
  const { count, inFlight } = views;
  const { matched, held } = matches;
  const longest = Math.max(...matched.subarray(0, count));
  if (longest === 0 || longest <= settings.matchAbove * (request.sequence.length >> 1)) {
    return undefined;
  }
  const ifLongest = (worker: number, score: number | undefined): number =>
    matched[worker] === longest ? (score ?? 0) : Number.POSITIVE_INFINITY;
  const least = inFlight[lowest(count, random, (worker) => ifLongest(worker, inFlight[worker]))];
  return lowest(count, random, (worker) =>
    ifLongest(worker, inFlight[worker] === least ? held[worker] : Number.POSITIVE_INFINITY),
  );
}

function blockNames({ sequence }: PolicyRequest): string[] {
  const names: string[] = [];
  for (let at = 0; at < sequence.length; at += 2) names.push(`${sequence[at]} ${sequence[at + 1]}`);
  return names;
}

/** Touches blocks from last to first, so that a prefix outlives what continues it. */
function remember(blocks: Set<string> | undefined, names: readonly string[], max: number): void {
  if (!blocks) return;
  for (const name of names.toReversed()) {
    blocks.delete(name);
    blocks.add(name);
  }
  for (const oldest of blocks) {
    if (blocks.size <= max) break;
    blocks.delete(oldest);
  }
}
