/**
 * S1: one selection over columns against objects, Maps and a sort; choose, book and free; D1, D2
 * (`prompt-decision.ts`).
 */
import type { Random } from "../src/base/random.ts";
import { mulberry32, randomInt, randomU32 } from "../src/base/random.ts";
import {
  type ChoiceRequest,
  type ChoiceSettings,
  type ChoiceTables,
  choiceTables,
} from "../src/core/choice.ts";
import { chooseAndBook } from "../src/core/decision.ts";
import { leaveOutCrowded } from "../src/core/herd-guard.ts";
import { blocksCost, type CostInput } from "../src/core/worker-cost.ts";
import { WorkerLoad } from "../src/core/worker-load.ts";
import { pickLowest, pickSoftmax } from "../src/core/worker-pick.ts";
import { WorkerRoster } from "../src/core/worker-roster.ts";
import { type ObjectPool, selectWithObjects } from "./baselines/object-selector.ts";
import type { BenchRow } from "./bench-row.ts";
import { promptDecisionFigures, promptDecisionRows } from "./prompt-decision.ts";

const blockSize = 64;
const weights = {
  overlapScoreCredit: 1,
  overlapScoreCreditDecay: 0,
  prefillLoadScale: 1,
  hostCacheHitWeight: 0.75,
  diskCacheHitWeight: 0.25,
  sharedCacheMultiplier: 0,
  decodeActiveRequestWeight: 0,
};

export async function run(options: { quick: boolean; seed: number }): Promise<BenchRow[]> {
  return [
    selectionRow(1024, 0, "≥ 30x", options),
    selectionRow(1024, 0.5, "≥ 5x", options),
    selectionRow(1024, 0, "report", { ...options, herdGuard: true }),
    bookingRow(64, options),
    bookingRow(1024, options),
    ...(await promptDecisionRows(options, weights)),
  ];
}

/** What `bench:decision --json` prints. */
export const figures = promptDecisionFigures;

/** Everything both sides compute is added here, so that nothing can be left out. */
let sink = 0;

interface Pool {
  readonly tables: ChoiceTables;
  readonly objects: ObjectPool;
  readonly depths: Int32Array;
  readonly overlaps: Map<string, number>;
}

function loadedPool(workers: number, random: Random): Pool {
  const tables = choiceTables(new WorkerRoster(), new WorkerLoad(random));
  const objects: ObjectPool = { workers: new Map(), loads: new Map() };
  const depths = new Int32Array(workers);
  const overlaps = new Map<string, number>();
  for (let slot = 0; slot < workers; slot++) {
    const id = String(1e15 + slot);
    const prefillTokens = randomInt(random, 0, 20_000);
    const activeBlocks = randomInt(random, 0, 4_000);
    tables.roster.set(slot, { workerId: id, taints: new Set() }, 0);
    tables.load.addHolder(slot);
    tables.load.add({
      ...unshared(`base ${slot}`, slot),
      prefillTokens,
      privateBlocks: activeBlocks,
    });
    objects.workers.set(id, { id, taints: new Set() });
    objects.loads.set(id, { prefillTokens, activeBlocks });
    if (random() < 0.5) continue;
    depths[slot] = randomInt(random, 1, 100);
    overlaps.set(id, depths[slot]!);
  }
  return { tables, objects, depths, overlaps };
}

function unshared(key: string, slot: number) {
  return { key, slot, nowMs: 0, sequence: new Uint32Array(0), expectedPrefillMs: 0 };
}

function selectionRow(
  workers: number,
  temperature: number,
  target: string,
  options: { quick: boolean; seed: number; herdGuard?: boolean },
): BenchRow {
  const { herdGuard = false } = options;
  const random = mulberry32(options.seed);
  const { tables, objects, depths, overlaps } = loadedPool(workers, random);
  const islTokens = 8_000;
  const query = { islTokens, blockSize, overlaps, temperature };
  const objectsOnce = (): void => {
    sink += selectWithObjects(objects, query, random).length;
  };
  const candidates = new Int32Array(workers);
  const costs = new Float64Array(workers);
  const scratch = new Float64Array(workers);
  const input: CostInput = {
    nowMs: 0,
    islTokens,
    blockSize,
    trackedBlocks: Math.ceil(islTokens / blockSize),
    trackPrefillTokens: true,
    decodeOnly: false,
    weights,
    overlap: { device: depths },
    load: tables.load,
    shared: new Int32Array(workers),
  };
  const columnsOnce = (): void => {
    const all = tables.roster.eligible({}, input.load, candidates) as number;
    const found = herdGuard ? leaveOutCrowded(candidates, all, input.load, "blocks") : all;
    blocksCost.price(input, candidates, found, costs);
    sink +=
      temperature === 0
        ? pickLowest(costs, found, random)
        : pickSoftmax(costs, found, temperature, random, scratch);
  };
  const calls = options.quick ? 100 : 1_000;
  const [baseline, ours] = alternate(objectsOnce, columnsOnce, calls);
  const guard = herdGuard ? ", herd guard" : "";
  const id = `S1 selection, ${workers} workers, T=${temperature}${guard}`;
  return { id, unit: "µs", baseline, ours, ratio: baseline / ours, target };
}

const settings: ChoiceSettings = {
  blockSize,
  policy: "blocks",
  temperature: 0,
  trackPrefillTokens: true,
  decodeOnly: false,
  herdGuard: true,
  weights,
};

/** A pool with 512 running requests of which a quarter shares a long prefix; one more comes and goes. */
function bookingRow(workers: number, options: { quick: boolean; seed: number }): BenchRow {
  const random = mulberry32(options.seed);
  const { tables, objects, depths, overlaps } = loadedPool(workers, random);
  const blocks = 250;
  const prefix = Uint32Array.from({ length: 64 }, () => randomU32(random));
  const sequences = Array.from({ length: 1024 }, (_, at) => {
    const sequence = Uint32Array.from({ length: 2 * blocks }, () => randomU32(random));
    if (at % 4 === 0) sequence.set(prefix);
    return sequence;
  });
  let next = 0;
  const request = (): ChoiceRequest => ({
    key: `r${next}`,
    nowMs: next,
    islTokens: blocks * blockSize,
    sequence: sequences[next++ & 1023]!,
    privateBlocks: 0,
    overlap: { device: depths },
    constraints: {},
    settings,
  });
  for (let at = 0; at < 512; at++) chooseAndBook(tables, request(), random);
  const oursOnce = (): void => {
    const choice = chooseAndBook(tables, request(), random);
    sink += choice.outcome === "chosen" ? choice.slot : 1e9;
    tables.load.free(`r${next - 512}`, next);
  };
  const query = { islTokens: blocks * blockSize, blockSize, overlaps, temperature: 0 };
  const objectsOnce = (): void => {
    sink += selectWithObjects(objects, query, random).length;
  };
  const [baseline, ours] = alternate(objectsOnce, oursOnce, options.quick ? 100 : 1_000);
  return {
    id: `choose + book + free, 16k tokens, ${workers} workers`,
    unit: "µs",
    baseline,
    ours,
    ratio: baseline / ours,
    target: "report",
    note: "the baseline selects only: it neither books nor looks at shared blocks",
  };
}

const rounds = 8;

/** Median µs a call of both sides, run in turns; the first round warms up. */
function alternate(baseline: () => void, ours: () => void, calls: number): [number, number] {
  const times: [number[], number[]] = [[], []];
  for (let round = 0; round < rounds; round++) {
    for (const [side, once] of [baseline, ours].entries()) {
      const startMs = performance.now();
      for (let call = 0; call < calls; call++) once();
      if (round > 0) times[side]!.push(((performance.now() - startMs) * 1000) / calls);
    }
  }
  if (!Number.isFinite(sink)) throw new Error(`sink overflowed: ${sink}`);
  return [median(times[0]), median(times[1])];
}

function median(values: number[]): number {
  values.sort((a, b) => a - b);
  return values[values.length >> 1]!;
}
