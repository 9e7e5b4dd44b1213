import fc from "fast-check";
import { expect, it } from "vitest";
import type { Choice } from "../../src/core/choice.ts";
import type { BlocksTerms, LatencyTerms } from "../../src/core/cost-terms.ts";
import type { Decision, DecisionCandidate } from "../../src/core/decision-record.ts";
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
const choice: fc.Arbitrary<Choice> = fc.oneof(
  fc.record({
    outcome: fc.constant("chosen" as const),
    slot: count,
    workerId: name,
    dpRank: count,
    requiredBlocks: count,
    overlapBlocks: count,
    cachedTokens: count,
    potentialDecodeBlocks: number,
    cost: fc.double(),
    candidateCount: count,
    nonFiniteCount: count,
  }),
  fc.record(
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
  ),
);

function decisionIn(costMode: Decision["costMode"]): fc.Arbitrary<Decision> {
  const candidate: fc.Arbitrary<DecisionCandidate> = fc.record({
    workerId: name,
    dpRank: count,
    whyNot: fc.constant(null),
    overlapBlocks: count,
    cachedTokens: count,
    potentialPrefillTokens: number,
    potentialDecodeBlocks: number,
    activeRequests: count,
    terms: costMode === "blocks" ? blocksTerms : latencyTerms,
  });
  return fc.record<Decision>({
    policy: fc.constantFrom("blocks", "random", "round-robin"),
    costMode: fc.constant(costMode),
    fitTargetMs: fc.option(number, { nil: undefined }),
    temperature: number,
    islTokens: count,
    requiredBlocks: count,
    candidates: fc.array(candidate, { maxLength: candidatesKept }),
    lowestCost: fc.option(number),
    leftOut: count,
    tiedAtLowest: count,
    choice,
  });
}

it.each(["blocks", "latency"] as const)(
  "answers every decision as it was kept, in cost mode %s",
  (mode) => {
    fc.assert(
      fc.property(fc.array(decisionIn(mode), { maxLength: 30 }), fc.nat(6), (decisions, more) => {
        const max = 5 + more;
        const ring = new DecisionRing(max, mode);
        const kept = decisions.map(
          (decision, at): KeptDecision => ({ id: `d${at}`, rid: `r${at}`, atWallMs: at, decision }),
        );
        for (const each of kept) ring.add(each);
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
  const [decision] = fc.sample(decisionIn("blocks"), { seed: 1, numRuns: 1 });
  if (!decision) throw new Error("no sample");
  const ring = new DecisionRing(2, "blocks");
  const add = (id: string, rid: string): void => ring.add({ id, rid, atWallMs: 1, decision });
  add("first", "a");
  add("retry", "a");
  expect(ring.get("a")?.id).toBe("retry");
  add("other", "b");
  expect([ring.get("first"), ring.get("a")?.id]).toEqual([undefined, "retry"]);
});

it("keeps more decisions than a slice of rows holds", () => {
  const decisions = fc.sample(decisionIn("latency"), { seed: 2, numRuns: 600 });
  const ring = new DecisionRing(1_000, "latency");
  for (const [at, decision] of decisions.entries()) {
    ring.add({ id: `d${at}`, rid: `r${at}`, atWallMs: at, decision });
  }
  const found = decisions.map((_, at) => ring.get(`d${at}`)?.decision);
  expect(found).toEqual(decisions);
});
