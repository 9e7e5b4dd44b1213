import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import { choiceSettings, defaultKvRouterConfig } from "../../src/config/kv-router-config.ts";
import type { ChoiceRequest, ChoiceTables } from "../../src/core/choice.ts";
import { choiceTables, latencyChoiceTables } from "../../src/core/choice.ts";
import { chooseAndBook, explain } from "../../src/core/decision.ts";
import { leaveOutCrowded } from "../../src/core/herd-guard.ts";
import { LatencyBook } from "../../src/core/latency-book.ts";
import { defaultLatencyWeights } from "../../src/core/latency-cost.ts";
import { ShapeLatency } from "../../src/core/latency-model.ts";
import { polynomialPerf } from "../../src/core/perf-model.ts";
import { WorkerLoad } from "../../src/core/worker-load.ts";
import { WorkerRoster } from "../../src/core/worker-roster.ts";

const blockSize = 64;
const promptBlocks = 500;
const prompt = Uint32Array.from({ length: 2 * promptBlocks }, (_, lane) => lane);
const settings = choiceSettings(
  defaultKvRouterConfig,
  {},
  { blockSize, policy: "blocks", decodeOnly: false },
);
const seed = 20261122;

function pool(mode: "blocks" | "latency", workers: number): ChoiceTables {
  const roster = new WorkerRoster();
  const load = new WorkerLoad(mulberry32(1));
  const shape = new ShapeLatency(polynomialPerf, { capacityTokens: 1 << 20, batchTokens: 8192 });
  const book = new LatencyBook({ role: "aggregated", blockSize, load, random: mulberry32(2) });
  for (let slot = 0; slot < workers; slot++) {
    roster.set(slot, { workerId: String(slot), taints: new Set() }, 0);
    load.addHolder(slot);
    book.addHolder(slot, shape);
  }
  if (mode === "blocks") return choiceTables(roster, load);
  return latencyChoiceTables(roster, load, { book, weights: defaultLatencyWeights, gpus: 1 });
}

/** The whole prompt is cached on worker 0 and nowhere else. */
function request(key: string, more: Partial<ChoiceRequest> = {}): ChoiceRequest {
  return {
    key,
    nowMs: 0,
    islTokens: promptBlocks * blockSize + 1,
    sequence: prompt,
    privateBlocks: 0,
    overlap: { device: Int32Array.of(promptBlocks) },
    constraints: {},
    settings,
    ...more,
  };
}

it.each(["blocks", "latency"] as const)(
  "sends the 26th request after a cache elsewhere: %s",
  (mode) => {
    const tables = pool(mode, 3);
    const random = mulberry32(seed);
    const slots = Array.from({ length: 26 }, (_, at) => {
      const choice = chooseAndBook(tables, request(String(at)), random);
      return choice.outcome === "chosen" ? choice.slot : choice.code;
    });
    expect(slots.slice(0, 25)).toEqual(new Array(25).fill(0));
    expect(slots[25]).not.toBe(0);
  },
);

it("keeps what is pinned, asked without guard, or chosen without cost", () => {
  const without = { ...settings, herdGuard: false };
  const cases: Partial<ChoiceRequest>[] = [
    { constraints: { pinnedWorkerId: "0" } },
    { settings: without },
  ];
  for (const more of cases) {
    const tables = pool("latency", 3);
    const random = mulberry32(seed);
    for (let at = 0; at < 100; at++) chooseAndBook(tables, request(String(at), more), random);
    expect(tables.load.activeRequests[0]).toBe(100);
  }
  const tables = pool("blocks", 3);
  const turns = { ...settings, policy: "round-robin" as const };
  for (let at = 0; at < 90; at++) {
    chooseAndBook(
      tables,
      request(String(at), { constraints: { pinnedWorkerId: "0" } }),
      mulberry32(at),
    );
  }
  const decision = explain(tables, request("x", { settings: turns }), mulberry32(1));
  expect(decision.choice).toMatchObject({ candidateCount: 3 });
});

it("tells who is crowded, and chooses what it explains", () => {
  const tables = pool("blocks", 3);
  const pinned = { constraints: { pinnedWorkerId: "0" } };
  for (let at = 0; at < 25; at++)
    chooseAndBook(tables, request(String(at), pinned), mulberry32(at));
  const decision = explain(tables, request("x"), mulberry32(seed));
  expect(decision.candidates.map(({ whyNot }) => whyNot)).toEqual(["crowded", null, null]);
  expect(decision.candidates[0]?.terms).toBeNull();
  expect(chooseAndBook(tables, request("x"), mulberry32(seed))).toEqual(decision.choice);
});

it("leaves out whoever has more than twice the mean of the others and the spare", () => {
  const worker = fc.record({
    isCandidate: fc.boolean(),
    requests: fc.oneof(fc.nat(60), fc.nat(2000)),
    tokens: fc.oneof(fc.nat(200_000), fc.nat(4_000_000)),
  });
  const workers = fc.array(worker, { minLength: 1, maxLength: 12 });
  fc.assert(
    fc.property(workers, fc.constantFrom("blocks", "latency"), (pool, mode) => {
      const slots = [...pool.keys()].filter((slot) => pool[slot]?.isCandidate);
      const candidates = Int32Array.from(pool, (_, place) => slots[place] ?? -1);
      const load = {
        activeRequests: Int32Array.from(pool, ({ requests }) => requests),
        prefillTokens: Float64Array.from(pool, ({ tokens }) => tokens),
      };
      const count = leaveOutCrowded(candidates, slots.length, load, mode as "blocks" | "latency");
      let expected = uncrowded(slots, (slot) => pool[slot]?.requests ?? 0, 24);
      if (mode === "blocks") {
        expected = uncrowded(expected, (slot) => pool[slot]?.tokens ?? 0, 98_304);
      }
      expect([...candidates.subarray(0, count)]).toEqual(expected);
      expect(count > 0).toBe(slots.length > 0);
    }),
    { seed, numRuns: 2000 },
  );
});

function uncrowded(slots: number[], loadOf: (slot: number) => number, spare: number): number[] {
  return slots.filter((slot) => {
    const others = slots.filter((other) => other !== slot);
    if (others.length === 0) return true;
    const mean = others.reduce((sum, other) => sum + loadOf(other), 0) / others.length;
    return loadOf(slot) <= 2 * mean + spare + 1e-6;
  });
}
