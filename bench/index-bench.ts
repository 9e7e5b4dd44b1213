/**
 * I1 to I6: the KV index against a Map/Set/BigInt radix tree, on one event stream of more than 1 M
 * (worker, block) pairs. The first 60 % of the stream fill, the rest is timed.
 */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { mulberry32 } from "../src/base/random.ts";
import { createKvIndex } from "../src/core/create-kv-index.ts";
import type { ChainHashes, IndexMode, KvIndex, KvIndexCore } from "../src/core/kv-index.ts";
import { wasmIndexCore } from "../src/core/wasm-index.ts";
import { createBlockHasher } from "../src/protocol/block-hashes.ts";
import { RadixTree } from "./baselines/radix-tree.ts";
import { benchCore } from "./bench-core.ts";
import { type BenchRow, median, medianRatio, quantile } from "./bench-row.ts";
import { longestStallMs } from "./index-stall.ts";
import { makeWorkload, type Workload, type WorkloadEvent } from "./index-workload.ts";

const filledShare = 0.6;
const modes = ["identity", "opaque"] as const;
/** Timed rounds of filling; the tree takes most of the bench's time. */
const ingestRounds = 3;
const stallRuns = 3;

interface BenchOptions {
  readonly quick: boolean;
  readonly seed: number;
}

interface Subject {
  readonly mode: IndexMode;
  readonly chain: ChainHashes;
  readonly core: KvIndexCore | undefined;
}

interface Side {
  apply(event: WorkloadEvent): void;
}

export async function run(options: BenchOptions): Promise<BenchRow[]> {
  const fastCore = await benchCore();
  const { chain } = createBlockHasher(fastCore);
  const core = fastCore && wasmIndexCore(fastCore);
  const subjects = modes.map((mode): Subject => ({ mode, chain, core }));
  // Before the tree: its heap makes every collection of garbage long.
  const stalls = subjects.map((subject) => stallRow(subject, options));
  return [...stalls, ...subjects.flatMap((subject) => comparedRows(subject, options))];
}

/** What `bench:index --json` prints. */
export function figures(rows: readonly BenchRow[]): object {
  const row = (id: string): BenchRow => {
    const found = rows.find((one) => one.id === id);
    if (!found) throw new Error(`no row ${id}`);
    return found;
  };
  const ofMode = (mode: IndexMode) => ({
    blocks_per_s_ratio: row(`I${modes.indexOf(mode) + 1}`).ratio,
    bytes_per_pair: row(`I4 ${mode}`).ours,
    match_p99_ratio: row(`I3 ${mode} p99`).ratio,
    match_p99_us: row(`I3 ${mode} p99`).ours,
  });
  const stalls = modes.map((mode) => row(`I5 ${mode}`).ours);
  return {
    identity: ofMode("identity"),
    opaque: ofMode("opaque"),
    longest_stall_ms: Math.max(...stalls),
  };
}

function stallRow(subject: Subject, { quick, seed }: BenchOptions): BenchRow {
  longestStallMs({ ...subject, pairs: 100_000, seed });
  const pairs = quick ? 500_000 : 4_000_000;
  const runs = Array.from({ length: stallRuns }, (_, at) =>
    longestStallMs({ ...subject, pairs, seed: seed + at }),
  );
  return {
    id: `I5 ${subject.mode}`,
    unit: "ms",
    baseline: Number.NaN,
    ours: median(runs),
    ratio: Number.NaN,
    target: "< 15 ms",
    note: `longest batch of 16 events up to ${pairs / 1e6} M pairs, median of ${stallRuns} runs`,
  };
}

function comparedRows(subject: Subject, { quick, seed }: BenchOptions): BenchRow[] {
  const { mode, chain } = subject;
  const shape = {
    workers: 64,
    cacheBlocks: quick ? 2048 : 16_384,
    requests: quick ? 6000 : 24_000,
    identity: mode === "identity",
  };
  const workload = makeWorkload({ ...shape, seed }, chain);
  let tree = new RadixTree();
  let index = newIndex(subject, shape.cacheBlocks);
  const memory = weighed(() => {
    for (const event of workload.events) treeSide(tree).apply(event);
  });
  const pair = medianRatio(
    () => {
      tree = new RadixTree();
      return ingest(workload, treeSide(tree));
    },
    () => {
      index = newIndex(subject, shape.cacheBlocks);
      return ingest(workload, indexSide(index));
    },
    true,
    ingestRounds,
  );
  const { size, bytes } = index.stats();
  const perPair = { baseline: memory / size, ours: bytes / size };
  const isIdentity = mode === "identity";
  return [
    {
      id: isIdentity ? "I1" : "I2",
      unit: "M blocks/s",
      ...pair,
      target: ingestTarget(subject),
      note: `${mode}, stored + removed blocks, ${(size / 1e6).toFixed(2)} M pairs`,
    },
    {
      id: `I4 ${mode}`,
      unit: "B/pair",
      ...perPair,
      ratio: perPair.baseline / perPair.ours,
      target: isIdentity ? "<= 40" : "<= 50",
    },
    ...matchRows(workload, mode, tree, index),
  ];
}

function ingestTarget({ mode, core }: Subject): string {
  if (core) return mode === "identity" ? ">= 13x (floor 6x)" : ">= 6x (floor 3x)";
  return mode === "identity" ? ">= 6x (floor 4x)" : ">= 3x (floor 2x)";
}

function matchRows(
  workload: Workload,
  mode: IndexMode,
  tree: RadixTree,
  index: KvIndex,
): BenchRow[] {
  const depths = new Int32Array(index.slots);
  let differing = 0;
  for (const { sequence, locals } of workload.queries) {
    const expected = tree.match(locals);
    index.match(sequence, locals.length, depths);
    depths.forEach((depth, slot) => {
      if (depth !== (expected.get(slot) ?? 0)) differing++;
    });
  }
  const timed = (q: number, act: (query: Workload["queries"][number]) => void): number => {
    const times = workload.queries.map((query) => {
      const start = performance.now();
      act(query);
      return performance.now() - start;
    });
    return 1000 * quantile(times, q);
  };
  const quantiles = [0.5, 0.99].map((q): BenchRow => {
    const pair = medianRatio(
      () => timed(q, ({ locals }) => tree.match(locals)),
      () => timed(q, ({ sequence, locals }) => index.match(sequence, locals.length, depths)),
      false,
    );
    const target = q === 0.5 ? "report" : ">= 2x lower (floor 1.5x)";
    return { id: `I3 ${mode} p${100 * q}`, unit: "µs", ...pair, target };
  });
  const cells = `of ${workload.queries.length * 64} (query, holder) cells`;
  const exact = { baseline: 0, ours: differing, ratio: 1, target: "0", note: cells };
  return [...quantiles, { id: `I6 ${mode}`, unit: "differing", ...exact }];
}

/** Fills with the first part of the stream, times the rest: M blocks/s. */
function ingest(workload: Workload, side: Side): number {
  const { events } = workload;
  const filled = Math.floor(filledShare * events.length);
  for (let at = 0; at < filled; at++) side.apply(events[at]!);
  const start = performance.now();
  for (let at = filled; at < events.length; at++) side.apply(events[at]!);
  return workload.blocksIn(filled, events.length) / (performance.now() - start) / 1000;
}

/** Bytes of heap that `act` leaves behind. */
function weighed(act: () => void): number {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  collect();
  const before = process.memoryUsage().heapUsed;
  act();
  collect();
  return process.memoryUsage().heapUsed - before;
}

/** An index of 64 workers that announced their caches, as their cards do. */
function newIndex({ mode, chain, core }: Subject, cacheBlocks: number): KvIndex {
  const index = createKvIndex({ mode, random: mulberry32(1), chain, core });
  for (let worker = 0; worker < 64; worker++) index.holder(String(worker), 0, cacheBlocks);
  return index;
}

function indexSide(index: KvIndex): Side {
  return {
    apply({ worker, stored, parent, lanes }) {
      if (stored) index.store(worker, parent, lanes);
      else index.remove(worker, lanes);
    },
  };
}

function treeSide(tree: RadixTree): Side {
  return {
    apply({ worker, stored, parentBig, blocksBig, namesBig }) {
      if (stored) tree.store(worker, parentBig, blocksBig);
      else tree.remove(worker, namesBig);
    },
  };
}
