import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import { bestCachedTokens, roomFor } from "../../src/core/admission-gate.ts";
import {
  AdmissionQueue,
  type AdmissionQueueOptions,
  type Arrival,
  agedTokensPerSec,
  type QueueOrder,
  scoreOf,
  type Ticket,
} from "../../src/core/admission-queue.ts";
import { choiceTables } from "../../src/core/choice.ts";
import { WorkerLoad } from "../../src/core/worker-load.ts";
import { WorkerRoster } from "../../src/core/worker-roster.ts";
import golden from "../golden/queue-order.json" with { type: "json" };

interface GoldenRequest {
  readonly id: string;
  readonly arrival_secs: number;
  readonly isl_tokens: number;
  readonly strict_priority?: number;
  readonly priority_jump?: number;
  readonly cached_tokens?: Readonly<Record<string, number>>;
  readonly pinned_worker?: string;
  readonly eligible_workers?: readonly string[];
  readonly expected_key: readonly number[];
}

const plain: Arrival = {
  strictPriority: 0,
  priorityJumpSecs: 0,
  arrivedSecs: 0,
  islTokens: 512,
  bestCachedTokens: 0,
};

function queueOf<Item>(order: QueueOrder, options: Partial<AdmissionQueueOptions> = {}) {
  const queue = new AdmissionQueue<Item>({ order, depthRules: null, ...options });
  const join = (item: Item, arrival: Partial<Arrival> = {}): Ticket<Item> => {
    const ticket = queue.join(item, { ...plain, ...arrival }, 1);
    if (typeof ticket === "string") throw new Error(ticket);
    return ticket;
  };
  const drain = (): Item[] => {
    const items: Item[] = [];
    for (let head = queue.head; head; head = queue.head) {
      items.push(head.item);
      queue.leave(head);
    }
    return items;
  };
  return { queue, join, drain };
}

/** Four workers of one-token blocks, so that cached blocks are the vectors' cached tokens. */
function cachedTokensOf(request: GoldenRequest): number {
  const tables = poolOf([{}, {}, {}, {}]);
  const { cached_tokens: cached = {}, eligible_workers: allowed, pinned_worker: pinned } = request;
  return bestCachedTokens(tables, {
    constraints: {
      allowedWorkerIds: allowed && new Set(allowed),
      pinnedWorkerId: pinned,
    },
    nowMs: 0,
    blockSize: 1,
    weights: {
      overlapScoreCredit: 1,
      overlapScoreCreditDecay: 0,
      prefillLoadScale: 1,
      hostCacheHitWeight: 0.75,
      diskCacheHitWeight: 0.25,
      sharedCacheMultiplier: 0,
      decodeActiveRequestWeight: 0,
    },
    overlap: { device: Int32Array.from([0, 1, 2, 3], (worker) => cached[worker] ?? 0) },
  });
}

interface GoldenWorker {
  readonly active_prefill_tokens?: number;
  readonly max_num_batched_tokens?: number | null;
}

function poolOf(workers: readonly GoldenWorker[]) {
  const roster = new WorkerRoster();
  const load = new WorkerLoad(mulberry32(1));
  for (const [slot, worker] of workers.entries()) {
    const maxNumBatchedTokens = worker.max_num_batched_tokens ?? undefined;
    roster.set(slot, { workerId: `${slot}`, taints: new Set(), maxNumBatchedTokens }, 0);
    load.addHolder(slot);
    load.add({
      key: `${slot}`,
      slot,
      nowMs: 0,
      sequence: new Uint32Array(0),
      privateBlocks: 0,
      prefillTokens: worker.active_prefill_tokens ?? 0,
      expectedPrefillMs: 0,
    });
  }
  return choiceTables(roster, load);
}

for (const { name, policy, requests, expected_dispatch_order } of golden.cases) {
  it(`orders requests as the vectors do: ${name}`, () => {
    const { join, drain } = queueOf<string>(policy as QueueOrder);
    for (const request of requests as readonly GoldenRequest[]) {
      const ticket = join(request.id, {
        strictPriority: request.strict_priority ?? 0,
        priorityJumpSecs: request.priority_jump ?? 0,
        arrivedSecs: request.arrival_secs,
        islTokens: request.isl_tokens,
        bestCachedTokens: cachedTokensOf(request),
      });
      const [strictPriority, score] = request.expected_key;
      expect(ticket.arrival.strictPriority).toBe(strictPriority);
      expect(ticket.score).toBeCloseTo(score ?? Number.NaN, 12);
    }
    expect(drain()).toEqual(expected_dispatch_order);
  });
}

for (const { name, threshold, workers, already_waiting, expected_queued } of golden.gate) {
  it(`lets requests pass as the vectors do: ${name}`, () => {
    const room = (value: number) =>
      roomFor(poolOf(workers), { constraints: {}, nowMs: 0, threshold: value });
    // Without a threshold there is no queue to ask.
    const full = threshold !== null && room(threshold) === "full";
    expect(full || (threshold !== null && already_waiting > 0)).toBe(expected_queued);
  });
}

it("says why nobody may take a request", () => {
  const tables = poolOf([{}]);
  const ask = (constraints: object) => roomFor(tables, { constraints, nowMs: 0, threshold: 1 });
  expect(ask({ pinnedWorkerId: "9" })).toBe("no_endpoints");
  expect(ask({ allowedWorkerIds: new Set() })).toBe("no_endpoints");
  tables.roster.setThresholds({
    activeDecodeBlocks: null,
    activePrefillTokens: 0,
    activePrefillTokensFrac: null,
  });
  tables.roster.report(0, { activePrefillTokens: 5 });
  expect(ask({})).toBe("all_eligible_workers_overloaded");
});

it("with ageing lets a small request overtake a large one, but not for ever", () => {
  const { join, drain } = queueOf<string>("aged");
  const largeTokens = 5 * agedTokensPerSec;
  join("large", { islTokens: largeTokens });
  join("small, soon", { islTokens: 1000, arrivedSecs: 4.8 });
  join("small, later", { islTokens: 1000, arrivedSecs: 5 });
  join("large but cached", { islTokens: largeTokens, bestCachedTokens: largeTokens });
  join("jumps", { islTokens: largeTokens, arrivedSecs: 1, priorityJumpSecs: 10 });
  expect(drain()).toEqual(["jumps", "large but cached", "small, soon", "large", "small, later"]);
});

const arrivals = fc.record({
  strictPriority: fc.nat(2),
  priorityJumpSecs: fc.integer({ min: -3, max: 5 }),
  arrivedSecs: fc.nat(20),
  islTokens: fc.nat(40),
  bestCachedTokens: fc.nat(50),
});

it("is, in any order, what sorting all tickets gives, whoever leaves", () => {
  const act = fc.record({ arrival: arrivals, leaves: fc.nat(4), at: fc.nat() });
  const orders = fc.constantFrom<QueueOrder>("fcfs", "lcfs", "wspt", "aged");
  const run = fc.property(orders, fc.array(act, { maxLength: 80 }), (order, acts) => {
    const { queue, join } = queueOf<number>(order);
    const waiting: Ticket<number>[] = [];
    for (const [number, { arrival, leaves, at }] of acts.entries()) {
      waiting.push(join(number, arrival));
      if (leaves === 0) {
        const [gone] = waiting.splice(at % waiting.length, 1);
        if (gone) queue.leave(gone);
        if (gone) queue.leave(gone);
      }
      const key = ({ item, arrival: own }: Ticket<number>) =>
        [-own.strictPriority, -scoreOf(order, own), item] as const;
      const sorted = waiting.toSorted((a, b) => {
        const [keyA, keyB] = [key(a), key(b)];
        return keyA[0] - keyB[0] || keyA[1] - keyB[1] || keyA[2] - keyB[2];
      });
      expect(queue.head?.item).toBe(sorted[0]?.item);
      expect(queue.count).toBe(waiting.length);
      expect(queue.islTokens).toBe(waiting.reduce((sum, one) => sum + one.arrival.islTokens, 0));
      const cached = waiting.reduce((sum, one) => sum + one.arrival.bestCachedTokens, 0);
      expect(queue.cachedTokens).toBe(cached);
    }
  });
  fc.assert(run, { seed: 11, numRuns: 200 });
});

it("holds its maximum of requests and refuses one more", () => {
  const { queue, join } = queueOf<number>("fcfs", { waitingMax: 3 });
  const first = join(1);
  join(2);
  join(3);
  expect(queue.join(4, plain, 1)).toBe("request_limit");
  queue.leave(first);
  expect(queue.join(4, plain, 1)).toMatchObject({ item: 4 });
});

it("limits waiting tokens per worker by the highest floor at or below the uncached tokens", () => {
  const depthRules = [
    { missingCacheTokensFloor: 0, maxQueueDepth: 1000 },
    { missingCacheTokensFloor: 100, maxQueueDepth: 300 },
  ];
  const arrival = (islTokens: number, bestCachedTokens: number): Arrival => ({
    ...plain,
    islTokens,
    bestCachedTokens,
  });
  const { queue } = queueOf<string>("fcfs", { depthRules });
  expect(queue.join("a", arrival(301, 201), 1)).toBe("raw_isl_token_limit");
  expect(queue.join("a", arrival(300, 200), 1)).toMatchObject({ item: "a" });
  expect(queue.join("b", arrival(301, 201), 2)).toBe("raw_isl_token_limit");
  expect(queue.join("b", arrival(300, 0), 2)).toMatchObject({ item: "b" });
  expect(queue.join("c", arrival(401, 302), 1)).toBe("raw_isl_token_limit");
  expect(queue.join("c", arrival(400, 301), 1)).toMatchObject({ item: "c" });
});
