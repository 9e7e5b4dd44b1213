import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import {
  type Choice,
  type ChoiceTables,
  choiceTables,
  type RefusedChoice,
} from "../../src/core/choice.ts";
import type { BlocksTerms, CostTerms, LatencyTerms } from "../../src/core/cost-terms.ts";
import { type ChoiceMade, recordCheapest } from "../../src/core/decision-record.ts";
import type { CostInput, CostMode } from "../../src/core/worker-cost.ts";
import { WorkerLoad } from "../../src/core/worker-load.ts";
import { WorkerRoster } from "../../src/core/worker-roster.ts";
import {
  candidatesKept,
  DecisionRing,
  type KeptDecision,
} from "../../src/local-router/decision-ring.ts";

const number = fc.double({ noNaN: true });
const count = fc.nat();
const name = fc.string({ minLength: 1, maxLength: 20 });

const blocksTerms = fc.record<BlocksTerms>({
  mode: fc.constant("blocks"),
  rawPrefillBlocks: number,
  creditDecay: number,
  overlapCreditBlocks: number,
  potentialDecodeBlocks: number,
  activeRequestTerm: number,
  taintFactor: number,
  cost: fc.double(),
});
const latencyTerms = fc.record<LatencyTerms>({
  mode: fc.constant("latency"),
  cachedTokens: count,
  uncachedTokens: count,
  progressTokens: number,
  queuedTokens: number,
  passes: number,
  prefillMs: number,
  ownPrefillMs: number,
  tierMs: number,
  decodeStepMs: number,
  itlMs: number,
  ttftMs: number,
  delayMs: number,
  harmMs: number,
  fullMs: number,
  taintFactor: number,
  prefillGpuMs: number,
  decodeGpuMs: number,
  breaksPromise: fc.boolean(),
  heldMs: number,
  frontGpuMs: number,
  costMs: number,
  cost: fc.double(),
});
const refused: fc.Arbitrary<RefusedChoice> = fc.record(
  {
    outcome: fc.constant("refused" as const),
    code: fc.constantFrom(
      "no_endpoints" as const,
      "pinned_worker_not_allowed" as const,
      "pinned_worker_overloaded" as const,
      "all_eligible_workers_overloaded" as const,
      "invalid_request" as const,
      "duplicate_request" as const,
      "booking_failed" as const,
    ),
    workerId: name,
  },
  { requiredKeys: ["outcome", "code"] },
);
const weights = {
  ...{ overlapScoreCredit: 1, overlapScoreCreditDecay: 0, prefillLoadScale: 1 },
  ...{ hostCacheHitWeight: 0.75, diskCacheHitWeight: 0.25, sharedCacheMultiplier: 0 },
  decodeActiveRequestWeight: 0,
};

/** A holder of the roster and what any cost mode could say of it. */
interface Holder {
  readonly workerId: string;
  readonly dpRank: number;
  readonly device: number;
  readonly cachedTokens: number;
  readonly prefillTokens: number;
  readonly activeBlocks: number;
  readonly activeRequests: number;
  readonly cost: number;
  readonly terms: CostTerms;
}

interface Scene {
  readonly tables: ChoiceTables;
  readonly made: ChoiceMade;
}

/** Any choice among any holders, as the tables show it before its booking. */
function sceneIn(mode: CostMode["name"]): fc.Arbitrary<Scene> {
  const holder: fc.Arbitrary<Holder> = fc.record({
    ...{ workerId: name, dpRank: count, device: fc.nat(1000), cachedTokens: count },
    ...{ prefillTokens: number, activeBlocks: number, activeRequests: count, cost: fc.double() },
    terms: mode === "blocks" ? blocksTerms : latencyTerms,
  });
  const request = fc.record({
    policy: fc.constantFrom("blocks" as const, "random" as const, "round-robin" as const),
    ...{ temperature: number, islTokens: fc.integer({ min: 1, max: 1e6 }) },
    fitTargetMs: fc.option(number, { nil: undefined }),
  });
  const holders = fc.array(holder, { maxLength: 2 * candidatesKept });
  return fc
    .record({ holders, request, refused: fc.option(refused), at: fc.nat() })
    .map((drawn) => sceneOf(mode, drawn));
}

function sceneOf(
  mode: CostMode["name"],
  drawn: {
    readonly holders: readonly Holder[];
    readonly request: {
      readonly policy: "blocks" | "random" | "round-robin";
      readonly temperature: number;
      readonly islTokens: number;
      readonly fitTargetMs: number | undefined;
    };
    readonly refused: RefusedChoice | null;
    readonly at: number;
  },
): Scene {
  const { holders, request } = drawn;
  const costMode: CostMode = {
    name: mode,
    cachedTokens: (_, slot) => holders[slot]!.cachedTokens,
    price: () => 0,
    termsAt: (_, slot) => holders[slot]!.terms,
  };
  const load = new WorkerLoad(mulberry32(1));
  const tables = { ...choiceTables(new WorkerRoster(), load), costMode };
  for (const [slot, { workerId, dpRank }] of holders.entries()) {
    tables.roster.set(slot, { workerId, taints: new Set(), totalKvBlocks: 1 }, dpRank);
  }
  const { scratch } = tables;
  scratch.cover(holders.length);
  // Not all holders are candidates, and those stand in any order.
  const slots = [...holders.keys()].filter((slot) => slot % 5 !== 3).reverse();
  for (const [place, slot] of slots.entries()) {
    scratch.candidates[place] = slot;
    scratch.costs[place] = holders[slot]!.cost;
  }
  const column = (of: (holder: Holder) => number): number[] => holders.map(of);
  const input: CostInput = {
    ...{ nowMs: 0, islTokens: request.islTokens, blockSize: 16, trackedBlocks: 7, weights },
    ...{ trackPrefillTokens: true, decodeOnly: false },
    overlap: { device: Int32Array.from(column(({ device }) => device)) },
    load: {
      prefillTokens: Float64Array.from(column(({ prefillTokens }) => prefillTokens)),
      activeBlocks: Float64Array.from(column(({ activeBlocks }) => activeBlocks)),
      activeRequests: Int32Array.from(column(({ activeRequests }) => activeRequests)),
    },
    shared: new Int32Array(holders.length),
  };
  const settings = { ...request, blockSize: 16, trackPrefillTokens: true, decodeOnly: false };
  const asked = {
    ...{ key: "k", nowMs: 0, ...request, sequence: new Uint32Array(0), privateBlocks: 0 },
    ...{ overlap: input.overlap, constraints: {} },
    settings: { ...settings, herdGuard: false, weights },
  };
  const slot = slots[drawn.at % slots.length];
  const choice = drawn.refused ?? (slot === undefined ? nobody : chosenOf(holders, slot, slots));
  return { tables, made: { request: asked, input, choice } };
}

const nobody: RefusedChoice = { outcome: "refused", code: "no_endpoints" };

function chosenOf(holders: readonly Holder[], slot: number, slots: readonly number[]): Choice {
  const { workerId, dpRank, device, cachedTokens, activeBlocks, cost } = holders[slot]!;
  return {
    ...{ outcome: "chosen", slot, workerId, dpRank, requiredBlocks: 3, overlapBlocks: device },
    ...{ cachedTokens, potentialDecodeBlocks: activeBlocks, cost },
    ...{ candidateCount: slots.length, nonFiniteCount: 1 },
  };
}

function keep(ring: DecisionRing, at: number, { tables, made }: Scene): KeptDecision {
  const names = { id: `d${at}`, rid: `r${at}`, atWallMs: at };
  ring.add(names, tables, made);
  return { ...names, decision: recordCheapest(tables, made, candidatesKept) };
}

it.each(["blocks", "latency"] as const)(
  "answers every decision as it was taken, in cost mode %s",
  (mode) => {
    fc.assert(
      fc.property(fc.array(sceneIn(mode), { maxLength: 30 }), fc.nat(6), (scenes, more) => {
        const max = 5 + more;
        const ring = new DecisionRing(max, mode);
        const kept = scenes.map((scene, at) => keep(ring, at, scene));
        const last = kept.slice(-max);
        expect(last.map(({ id }) => ring.get(id))).toEqual(last);
        expect(last.map(({ rid }) => ring.get(rid))).toEqual(last);
        for (const { id, rid } of kept.slice(0, -max)) {
          expect([ring.get(id), ring.get(rid)]).toEqual([undefined, undefined]);
        }
        expect(ring.size).toBe(last.length);
      }),
      { seed: 42, numRuns: 200 },
    );
  },
);

it("answers by request the latest decision, and keeps it when an older one makes room", () => {
  const [scene] = fc.sample(sceneIn("blocks"), { seed: 1, numRuns: 1 });
  const ring = new DecisionRing(2, "blocks");
  const add = (id: string, rid: string): void =>
    ring.add({ id, rid, atWallMs: 1 }, scene!.tables, scene!.made);
  add("first", "a");
  add("retry", "a");
  expect(ring.get("a")?.id).toBe("retry");
  add("other", "b");
  expect([ring.get("first"), ring.get("a")?.id]).toEqual([undefined, "retry"]);
});

it("keeps more decisions than a slice of rows holds", () => {
  const ring = new DecisionRing(1_000, "latency");
  const scenes = fc.sample(sceneIn("latency"), { seed: 2, numRuns: 600 });
  const kept = scenes.map((scene, at) => keep(ring, at, scene));
  expect(kept.map(({ id }) => ring.get(id))).toEqual(kept);
});
