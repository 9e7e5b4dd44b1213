import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import type {
  ChoiceRequest,
  ChoiceSettings,
  ChoiceTables,
  ChosenWorker,
} from "../../src/core/choice.ts";
import { choiceTables } from "../../src/core/choice.ts";
import { chooseAndBook, explain } from "../../src/core/decision.ts";
import { type ChoiceMade, type Decision, recordCheapest } from "../../src/core/decision-record.ts";
import { WorkerLoad } from "../../src/core/worker-load.ts";
import { WorkerRoster } from "../../src/core/worker-roster.ts";

const blockSize = 16;
const weights = {
  overlapScoreCredit: 1,
  overlapScoreCreditDecay: 0,
  prefillLoadScale: 1,
  hostCacheHitWeight: 0.75,
  diskCacheHitWeight: 0.25,
  sharedCacheMultiplier: 0,
  decodeActiveRequestWeight: 0,
};
const settings: ChoiceSettings = {
  blockSize,
  policy: "blocks",
  temperature: 0,
  trackPrefillTokens: true,
  decodeOnly: false,
  herdGuard: false,
  weights,
};

function pool(workers: number, ranks = 1): ChoiceTables {
  const tables = choiceTables(new WorkerRoster(), new WorkerLoad(mulberry32(1)));
  for (let slot = 0; slot < workers * ranks; slot++) {
    const workerId = String(Math.floor(slot / ranks));
    const taints = new Set(slot % 2 === 0 ? ["even"] : []);
    tables.roster.set(slot, { workerId, taints, totalKvBlocks: 100 }, slot % ranks);
    tables.load.addHolder(slot);
  }
  return tables;
}

function request(key: string, more: Partial<ChoiceRequest> = {}): ChoiceRequest {
  return {
    key,
    nowMs: 0,
    islTokens: 160,
    sequence: Uint32Array.from({ length: 20 }, (_, lane) => lane),
    privateBlocks: 0,
    overlap: { device: new Int32Array(0) },
    constraints: {},
    settings,
    ...more,
  };
}

function chosen(tables: ChoiceTables, asked: ChoiceRequest, seed = 1): ChosenWorker {
  const choice = chooseAndBook(tables, asked, mulberry32(seed));
  if (choice.outcome === "refused") throw new Error(`refused: ${choice.code}`);
  return choice;
}

it("books the chosen holder before anyone else can choose", () => {
  const tables = pool(2);
  const first = chosen(tables, request("a"));
  expect(tables.load.prefillTokens[first.slot]).toBe(160);
  expect(tables.load.activeBlocks[first.slot]).toBe(10);
  const second = chosen(tables, request("b"));
  expect(second.slot).toBe(1 - first.slot);
});

it("reaches every tied holder", () => {
  const random = mulberry32(3);
  const tables = pool(4);
  const seen = new Set<number>();
  for (let round = 0; round < 120; round++) {
    const { choice } = explain(tables, request("a"), random);
    if (choice.outcome === "chosen") seen.add(choice.slot);
  }
  expect([...seen].sort()).toEqual([0, 1, 2, 3]);
});

it("prefers the holder with the cached prompt and books only the uncached tokens", () => {
  const tables = pool(3);
  const choice = chosen(tables, request("a", { overlap: { device: Int32Array.of(0, 4, 2) } }));
  expect(choice).toMatchObject({ workerId: "1", overlapBlocks: 4, cachedTokens: 64, cost: 16 });
  expect(tables.load.prefillTokens[1]).toBe(96);
});

it("counts a live shared prefix once in the decode term", () => {
  const tables = pool(1);
  chosen(tables, request("a"));
  expect(chosen(tables, request("b")).potentialDecodeBlocks).toBe(10);
  expect(tables.load.activeBlocks[0]).toBe(10);
  const apart = request("c", { sequence: new Uint32Array(0), privateBlocks: 10 });
  expect(chosen(tables, apart).potentialDecodeBlocks).toBe(20);
});

it("gives a pinned worker its cheapest rank, at any temperature and policy", () => {
  for (const policy of ["blocks", "random", "round-robin"] as const) {
    const tables = pool(2, 2);
    const overlap = { device: Int32Array.of(0, 0, 1, 3) };
    const hot = { ...settings, policy, temperature: 5 };
    const pinned = request("a", { constraints: { pinnedWorkerId: "1" }, overlap, settings: hot });
    expect(chosen(tables, pinned)).toMatchObject({ workerId: "1", dpRank: 1, overlapBlocks: 3 });
  }
});

it("ignores preferred taints for a pinned request and follows them otherwise", () => {
  const tables = pool(2);
  const preferredTaints = new Map([["even", -0.5]]);
  expect(chosen(tables, request("a", { preferredTaints })).workerId).toBe("1");
  const constraints = { pinnedWorkerId: "0" };
  const pinned = explain(tables, request("b", { preferredTaints, constraints }), mulberry32(1));
  expect(pinned.candidates[0]?.terms?.taintFactor).toBe(1);
});

it("refuses with the reason and books nothing", () => {
  const tables = pool(1);
  const random = mulberry32(1);
  const refused = (more: Partial<ChoiceRequest>) =>
    chooseAndBook(tables, request("x", more), random);
  expect(refused({ islTokens: 0 })).toEqual({ outcome: "refused", code: "invalid_request" });
  expect(refused({ constraints: { pinnedWorkerId: "9" } })).toEqual({
    outcome: "refused",
    code: "no_endpoints",
    workerId: "9",
  });
  const scaled = { ...settings, weights: { ...weights, prefillLoadScale: Number.MAX_VALUE } };
  expect(refused({ settings: scaled })).toMatchObject({ code: "booking_failed" });
  tables.load.removeHolder(0);
  expect(refused({})).toMatchObject({ code: "booking_failed" });
  tables.load.addHolder(0);
  expect(tables.load.requestCount).toBe(0);
  chosen(tables, request("x"));
  expect(refused({})).toMatchObject({ code: "duplicate_request" });
});

it("lets each weight change the winner", () => {
  const overlap = {
    device: Int32Array.of(6, 0),
    hostExt: Int32Array.of(0, 8),
    diskExt: Int32Array.of(0, 0),
    sharedBeyond: Int32Array.of(0, 3),
  };
  const winner = (changed: Partial<typeof weights>): string => {
    const tables = pool(2);
    const { load } = tables;
    load.add({ ...bookingOn(0), prefillTokens: 16, privateBlocks: 0 });
    const own = { ...settings, weights: { ...weights, hostCacheHitWeight: 0.5, ...changed } };
    return chosen(tables, request("a", { overlap, settings: own })).workerId;
  };
  expect(winner({})).toBe("0");
  expect(winner({ overlapScoreCredit: 0 })).toBe("1");
  expect(winner({ hostCacheHitWeight: 1 })).toBe("1");
  expect(winner({ sharedCacheMultiplier: 1 })).toBe("1");
  expect(winner({ decodeActiveRequestWeight: 4 })).toBe("1");
  expect(winner({ overlapScoreCreditDecay: 100 })).toBe("1");
});

function bookingOn(slot: number) {
  return { key: `on ${slot}`, slot, nowMs: 0, sequence: new Uint32Array(0), expectedPrefillMs: 0 };
}

it("walks the candidates in turn under round-robin", () => {
  const tables = pool(3);
  const turns = { ...settings, policy: "round-robin" as const };
  const walk = ["a", "b", "c", "d"].map((key) => {
    explain(tables, request(key, { settings: turns }), mulberry32(1));
    return chosen(tables, request(key, { settings: turns })).workerId;
  });
  expect(walk).toEqual(["0", "1", "2", "0"]);
});

it("records why a holder was no candidate", () => {
  const tables = pool(3);
  const off = { activePrefillTokens: null, activePrefillTokensFrac: null };
  tables.roster.setThresholds({ ...off, activeDecodeBlocks: 0.5 });
  tables.roster.report(2, { kvUsedBlocks: 51 });
  const constraints = { requiredTaints: ["even"] };
  const decision = explain(tables, request("a", { constraints }), mulberry32(1));
  expect(decision.candidates.map(({ whyNot }) => whyNot)).toEqual([null, "missing_taint", "busy"]);
  expect(decision).toMatchObject({ requiredBlocks: 10, lowestCost: 20, tiedAtLowest: 1 });
});

const asked = fc.record({
  islTokens: fc.integer({ min: 1, max: 400 }),
  first: fc.integer({ min: 0, max: 3 }),
  depths: fc.array(fc.integer({ min: 0, max: 10 }), { minLength: 6, maxLength: 6 }),
  policy: fc.constantFrom("blocks", "blocks", "random", "round-robin"),
  temperature: fc.constantFrom(0, 0, 0.5),
  pinnedWorkerId: fc.option(fc.integer({ min: 0, max: 3 }).map(String), { nil: undefined }),
  creditDecay: fc.constantFrom(0, 1),
  expectedPrefillMs: fc.constantFrom(0, 50),
  free: fc.boolean(),
});

it("explains exactly the decision it would book, and changes nothing by asking", () => {
  const property = fc.property(fc.array(asked, { maxLength: 30 }), fc.nat(), (steps, seed) => {
    const tables = pool(3, 2);
    for (const [at, one] of steps.entries()) {
      const { policy, temperature, creditDecay, pinnedWorkerId } = one;
      const own = { ...weights, overlapScoreCreditDecay: creditDecay };
      const next = request(`r${at}`, {
        nowMs: at * 10,
        islTokens: one.islTokens,
        sequence: Uint32Array.from({ length: 2 * (one.islTokens >> 4) }, (_, x) => x + one.first),
        overlap: { device: Int32Array.from(one.depths) },
        constraints: { pinnedWorkerId },
        expectedPrefillMs: one.expectedPrefillMs,
        settings: { ...settings, policy, temperature, weights: own },
      });
      const before = [...tables.load.activeBlocks, ...tables.load.prefillTokens];
      const explained = explain(tables, next, mulberry32(seed + at));
      expect([...tables.load.activeBlocks, ...tables.load.prefillTokens]).toEqual(before);
      let recorded: Decision | undefined;
      const record = (made: ChoiceMade): void => {
        recorded = recordCheapest(tables, made, 3);
      };
      const choice = chooseAndBook(tables, next, mulberry32(seed + at), record);
      expectCheapest(recorded!, explained);
      expect(choice).toEqual(explained.choice);
      if (choice.outcome === "chosen") {
        const taken = explained.candidates.find(
          ({ workerId, dpRank }) => workerId === choice.workerId && dpRank === choice.dpRank,
        );
        expect(taken?.terms?.cost).toBe(choice.cost);
        expect(tables.load.slotOf(next.key)).toBe(choice.slot);
      }
      if (one.free) tables.load.free(next.key, at * 10);
    }
  });
  fc.assert(property, { numRuns: 200 });
});

it("records what was compared also where the candidate with the least backlog is left out", () => {
  const tables = pool(3);
  const decaying = { ...settings, weights: { ...weights, overlapScoreCreditDecay: 1 } };
  // Worker 0 holds much and computes nothing; 1 and 2 have the prompt, and a queue.
  for (const [at, islTokens] of [16, 3200, 3300].entries()) {
    const privateBlocks = at === 0 ? 500 : 0;
    const pinned = { constraints: { pinnedWorkerId: String(at) }, islTokens, privateBlocks };
    chosen(tables, request(`queued${at}`, { ...pinned, sequence: new Uint32Array(0) }));
  }
  tables.load.markPrefillCompleted("queued0", 0, 0);
  const asked = request("a", { overlap: { device: Int32Array.of(0, 9, 9) }, settings: decaying });
  let recorded: Decision | undefined;
  const choice = chooseAndBook(tables, asked, mulberry32(1), (made) => {
    recorded = recordCheapest(tables, made, 2);
  });
  expect(choice).toMatchObject({ workerId: "1" });
  expect(recorded?.candidates.map(({ workerId }) => workerId)).toEqual(["1", "2"]);
  expect(recorded?.candidates[0]?.terms).toMatchObject({ cost: recorded?.lowestCost });
});

/** A live record is the explanation, cut to its cheapest candidates and the chosen one. */
function expectCheapest(recorded: Decision, explained: Decision): void {
  const { candidates, leftOut, ...rest } = recorded;
  const { candidates: all, leftOut: none, ...whole } = explained;
  expect(rest).toEqual(whole);
  expect([none, candidates.length + leftOut]).toEqual([0, all.length]);
  const { choice } = explained;
  if (choice.outcome === "refused") {
    expect(candidates).toEqual([]);
    return;
  }
  expect(candidates).toHaveLength(Math.min(3, choice.candidateCount));
  for (const candidate of candidates) expect(all).toContainEqual(candidate);
  const costOf = (candidate: Decision["candidates"][number]): number => candidate.terms!.cost;
  const isChosen = ({ workerId, dpRank }: Decision["candidates"][number]): boolean =>
    workerId === choice.workerId && dpRank === choice.dpRank;
  expect(candidates.filter(isChosen)).toHaveLength(1);
  const eligible = all.filter(({ terms }) => terms !== null).map(costOf);
  const cheapest = eligible.sort((a, b) => a - b).slice(0, candidates.length);
  // The chosen candidate may stand in for the last of the cheapest.
  expect(candidates.map(costOf).slice(0, -1)).toEqual(cheapest.slice(0, -1));
}
