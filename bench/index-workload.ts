/**
 * A seeded stream of KV events: conversations that grow by turns behind shared system prompts, sent
 * to the worker that has them (85 %) or to any, one LRU cache per worker, leaves evicted first.
 */
import { mulberry32, type Random, randomInt, randomU32 } from "../src/base/random.ts";
import type { ChainHashes } from "../src/core/kv-index.ts";

export interface WorkloadShape {
  readonly workers: number;
  readonly cacheBlocks: number;
  readonly requests: number;
  readonly identity: boolean;
  readonly seed: number;
}

export interface WorkloadEvent {
  readonly worker: number;
  readonly stored: boolean;
  /** Ours: blocks (4 words each) or names (2 words each). */
  readonly lanes: Uint32Array;
  readonly parent: { readonly lo: number; readonly hi: number } | undefined;
  /** The same for the baseline. */
  readonly parentBig: bigint | undefined;
  readonly blocksBig: readonly [bigint, bigint][];
  readonly namesBig: readonly bigint[];
}

export interface Workload {
  readonly events: readonly WorkloadEvent[];
  /** Stored and removed blocks of events [from, to). */
  blocksIn(from: number, to: number): number;
  /** Prompts for `match`: sequence hashes for ours, local hashes for the baseline. */
  readonly queries: readonly { readonly sequence: Uint32Array; readonly locals: bigint[] }[];
}

interface Block {
  readonly local: bigint;
  readonly own: bigint;
}

const systemPrompts = 24;
const systemBlocks = 64;
const eventBlocks = 512;
const queriesKept = 2000;

const big = (lo: number, hi: number): bigint => (BigInt(hi) << 32n) | BigInt(lo);
const low = (value: bigint): number => Number(value & 0xffffffffn);
const high = (value: bigint): number => Number(value >> 32n);

export function makeWorkload(shape: WorkloadShape, chain: ChainHashes): Workload {
  const random = mulberry32(shape.seed);
  const grow = (path: readonly Block[], count: number): Block[] => {
    const last = path.at(-1);
    const lanes = new Uint32Array(2 * count + 2);
    if (last) lanes.set([low(last.own), high(last.own)]);
    for (let word = 2; word < lanes.length; word++) lanes[word] = randomU32(random);
    const local = lanes.slice();
    chain(lanes, last ? 1 : 2, count + 1);
    return Array.from({ length: count }, (_, i) => ({
      local: big(local[2 * i + 2]!, local[2 * i + 3]!),
      own: big(lanes[2 * i + 2]!, lanes[2 * i + 3]!),
    }));
  };
  const prompts = Array.from({ length: systemPrompts }, () => grow([], systemBlocks));
  const chats: { path: Block[]; worker: number }[] = [];
  const caches = Array.from({ length: shape.workers }, () => new Map<bigint, true>());
  const events: WorkloadEvent[] = [];
  const queries: Workload["queries"][number][] = [];
  for (let request = 0; request < shape.requests; request++) {
    const chat = nextChat(random, chats, prompts, shape.workers);
    chat.path.push(...grow(chat.path, randomInt(random, 8, 120)));
    if (random() > 0.85) chat.worker = randomInt(random, 0, shape.workers - 1);
    serve(events, caches[chat.worker]!, chat, shape);
    if (queries.length < queriesKept && random() < 0.5) queries.push(queryOf(chat.path));
  }
  const blocksIn = (from: number, to: number): number => {
    let blocks = 0;
    for (const event of events.slice(from, to))
      blocks += event.lanes.length / (event.stored ? 4 : 2);
    return blocks;
  };
  return { events, blocksIn, queries };
}

function nextChat(
  random: Random,
  chats: { path: Block[]; worker: number }[],
  prompts: readonly Block[][],
  workers: number,
): { path: Block[]; worker: number } {
  const old = chats[randomInt(random, Math.max(0, chats.length - 400), chats.length)];
  if (old && old.path.length < 1500 && random() < 0.7) return old;
  const path = [...prompts[randomInt(random, 0, prompts.length - 1)]!];
  const chat = { path, worker: randomInt(random, 0, workers - 1) };
  chats.push(chat);
  return chat;
}

/** Stores what the cache lacks, touches the path, evicts what is too much. */
function serve(
  events: WorkloadEvent[],
  cache: Map<bigint, true>,
  { path, worker }: { path: readonly Block[]; worker: number },
  { cacheBlocks, identity }: WorkloadShape,
): void {
  const salt = identity ? 0n : BigInt(worker + 1) * 0x9e3779b97f4a7c15n;
  const name = (own: bigint): bigint => BigInt.asUintN(64, own ^ salt);
  let run: Block[] = [];
  const flush = (end: number): void => {
    if (run.length === 0) return;
    const before = path[end - run.length - 1];
    const parentBig = before && name(before.own);
    const lanes = Uint32Array.from(
      run.flatMap(({ local, own }) => [low(local), high(local), low(name(own)), high(name(own))]),
    );
    const parent =
      parentBig === undefined ? undefined : { lo: low(parentBig), hi: high(parentBig) };
    const blocksBig = run.map(({ local, own }): [bigint, bigint] => [local, name(own)]);
    events.push({ worker, stored: true, lanes, parent, parentBig, blocksBig, namesBig: [] });
    run = [];
  };
  path.forEach((block, at) => {
    if (cache.has(block.own) || run.length === eventBlocks) flush(at);
    if (!cache.has(block.own)) run.push(block);
  });
  flush(path.length);
  for (const block of [...path].reverse()) {
    cache.delete(block.own);
    cache.set(block.own, true);
  }
  const namesBig: bigint[] = [];
  for (const own of cache.keys()) {
    if (cache.size <= cacheBlocks) break;
    cache.delete(own);
    namesBig.push(name(own));
  }
  if (namesBig.length === 0) return;
  const lanes = Uint32Array.from(namesBig.flatMap((value) => [low(value), high(value)]));
  const none = { parent: undefined, parentBig: undefined, blocksBig: [] };
  events.push({ worker, stored: false, lanes, ...none, namesBig });
}

function queryOf(path: readonly Block[]): Workload["queries"][number] {
  const sequence = Uint32Array.from(path.flatMap(({ own }) => [low(own), high(own)]));
  return { sequence, locals: path.map(({ local }) => local) };
}
