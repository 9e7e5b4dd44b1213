/** I1 to I6: the KV index against a Map/Set/BigInt radix tree, on one event stream. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { mulberry32 } from "../src/base/random.ts";
import { createKvIndex } from "../src/core/create-kv-index.ts";
import type { ChainHashes, IndexMode, KvIndex } from "../src/core/kv-index.ts";
import { loadBlockHasher } from "../src/protocol/block-hashes.ts";
import { RadixTree } from "./baselines/radix-tree.ts";
import { type BenchRow, medianRatio, quantile } from "./bench-row.ts";
import { makeWorkload, type Workload, type WorkloadEvent } from "./index-workload.ts";

const filledShare = 0.6;

interface Side {
  apply(event: WorkloadEvent): void;
  /** Longest stretch of 16 events while filling, ms. */
  longestMs: number;
}

export async function run(options: { quick: boolean; seed: number }): Promise<BenchRow[]> {
  const { chain } = await loadBlockHasher();
  const rows: BenchRow[] = [];
  for (const mode of ["identity", "opaque"] as const) {
    const workload = makeWorkload(
      {
        workers: 64,
        cacheBlocks: options.quick ? 2048 : 16_384,
        requests: options.quick ? 6000 : 40_000,
        identity: mode === "identity",
        seed: options.seed,
      },
      chain,
    );
    rows.push(...ingestRows(workload, mode, chain));
    rows.push(...matchRows(workload, mode, chain));
  }
  return rows;
}

function ingestRows(workload: Workload, mode: IndexMode, chain: ChainHashes): BenchRow[] {
  const stalls: { baseline: number[]; ours: number[] } = { baseline: [], ours: [] };
  const pair = medianRatio(
    () => ingest(workload, treeSide(new RadixTree()), stalls.baseline),
    () => ingest(workload, indexSide(newIndex(mode, chain)), stalls.ours),
    true,
  );
  const memory = bytesPerPair(workload, mode, chain);
  const stall = [quantile(stalls.baseline, 0.5), quantile(stalls.ours, 0.5)] as const;
  const id = mode === "identity" ? "I1" : "I2";
  return [
    {
      id,
      unit: "M blocks/s",
      ...pair,
      target: mode === "identity" ? ">= 6x" : ">= 3x",
      note: `${mode}, stored + removed blocks`,
    },
    {
      id: `I4 ${mode}`,
      unit: "B/pair",
      ...memory,
      ratio: memory.baseline / memory.ours,
      target: mode === "identity" ? "<= 40" : "<= 50",
    },
    {
      id: `I5 ${mode}`,
      unit: "ms",
      baseline: stall[0],
      ours: stall[1],
      ratio: stall[0] / stall[1],
      target: ">= 20x shorter, < 15 ms",
      note: "longest stretch of 16 events",
    },
  ];
}

function matchRows(workload: Workload, mode: IndexMode, chain: ChainHashes): BenchRow[] {
  const tree = new RadixTree();
  const index = newIndex(mode, chain);
  const sides = [treeSide(tree), indexSide(index)];
  for (const event of workload.events) for (const side of sides) side.apply(event);
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
function ingest(workload: Workload, side: Side, stalls: number[]): number {
  const { events } = workload;
  const filled = Math.floor(filledShare * events.length);
  let last = performance.now();
  for (let at = 0; at < filled; at++) {
    side.apply(events[at]!);
    if (at % 16 !== 15) continue;
    const time = performance.now();
    side.longestMs = Math.max(side.longestMs, time - last);
    last = time;
  }
  stalls.push(side.longestMs);
  const start = performance.now();
  for (let at = filled; at < events.length; at++) side.apply(events[at]!);
  return workload.blocksIn(filled, events.length) / (performance.now() - start) / 1000;
}

function bytesPerPair(workload: Workload, mode: IndexMode, chain: ChainHashes) {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const index = newIndex(mode, chain);
  for (const event of workload.events) indexSide(index).apply(event);
  const { size, bytes } = index.stats();
  collect();
  const before = process.memoryUsage().heapUsed;
  const tree = new RadixTree();
  const side = treeSide(tree);
  for (const event of workload.events) side.apply(event);
  collect();
  const baseline = (process.memoryUsage().heapUsed - before) / size;
  // The tree must live until it has been weighed.
  tree.match([]);
  return { baseline, ours: bytes / size };
}

function newIndex(mode: IndexMode, chain: ChainHashes): KvIndex {
  const index = createKvIndex({ mode, random: mulberry32(1), chain });
  for (let worker = 0; worker < 64; worker++) index.holder(String(worker), 0);
  return index;
}

function indexSide(index: KvIndex): Side {
  return {
    longestMs: 0,
    apply({ worker, stored, parent, lanes }) {
      if (stored) index.store(worker, parent, lanes);
      else index.remove(worker, lanes);
    },
  };
}

function treeSide(tree: RadixTree): Side {
  return {
    longestMs: 0,
    apply({ worker, stored, parentBig, blocksBig, namesBig }) {
      if (stored) tree.store(worker, parentBig, blocksBig);
      else tree.remove(worker, namesBig);
    },
  };
}
