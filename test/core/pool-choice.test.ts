import { readFileSync } from "node:fs";
import fc from "fast-check";
import { expect, it } from "vitest";
import { type ErrorCode, TiergridError } from "../../src/base/errors.ts";
import {
  type AttemptFailure,
  type AttemptStep,
  attemptFailureOf,
  defaultPriorities,
  firstStep,
  isRequestPriority,
  nextStep,
  type PoolState,
  planPools,
  retryOrder,
  type SpillRules,
  spillOrder,
} from "../../src/core/pool-choice.ts";

interface WireSpill {
  allow_peers: boolean;
  allow_slower: boolean;
  max_hops: number;
}
interface Scenario {
  name: string;
  selected: number;
  priorities: number[];
  retry: boolean;
  spill: WireSpill | null;
  unready?: number[];
  outcomes: Record<string, "ok" | AttemptFailure>;
  tried: number[];
  result: string;
}
interface OrderCase {
  selected: number;
  priorities: number[];
  enabled: boolean;
  order: number[];
  error: string;
}
const readGolden = (name: string): unknown =>
  JSON.parse(readFileSync(new URL(`../golden/${name}.json`, import.meta.url), "utf8"));
const golden = readGolden("retry-order") as {
  order: OrderCase[];
  order_errors: OrderCase[];
  default_priorities: { pools: number; priorities: number[] }[];
  spill_order: ({ selected: number; priorities: number[]; order: number[] } & WireSpill)[];
  scenarios: Scenario[];
};

const noSpill: SpillRules = { enabled: false, allowPeers: true, allowSlower: false, hopsMax: 2 };
function spillRules(spill: WireSpill | null): SpillRules {
  if (!spill) return noSpill;
  return {
    enabled: true,
    allowPeers: spill.allow_peers,
    allowSlower: spill.allow_slower,
    hopsMax: spill.max_hops,
  };
}

it("orders retries by strictly faster priority, nearest first, as the golden vectors say", () => {
  for (const { selected, priorities, enabled, order } of golden.order) {
    expect(retryOrder(selected, priorities, enabled)).toEqual(order);
  }
});

it("refuses a selected pool out of range, also with retry off", () => {
  for (const { selected, priorities, enabled, error } of golden.order_errors) {
    const call = () => retryOrder(selected, priorities, enabled);
    expect(call).toThrow(TiergridError);
    expect(call).toThrow(error);
  }
});

it("gives pools without priorities the order of the list", () => {
  for (const { pools, priorities } of golden.default_priorities) {
    expect(defaultPriorities(pools)).toEqual(priorities);
  }
});

it("orders spill by peers, faster and slower pools, as the golden vectors say", () => {
  for (const { selected, priorities, order, ...spill } of golden.spill_order) {
    expect(spillOrder(selected, priorities, spillRules(spill))).toEqual(order);
  }
});

/** Plays one request: the pools tried in order, how it ended, and the spill hops it took. */
function play(
  scenario: Pick<Scenario, "selected" | "priorities" | "retry" | "spill">,
  world: {
    stateOf: (pool: number) => PoolState;
    outcomeOf: (pool: number) => "ok" | AttemptFailure;
  },
) {
  const { priorities, retry, spill, selected } = scenario;
  const plan = planPools(priorities, retry, spillRules(spill))[selected]!;
  const steps: AttemptStep[] = [];
  const tried: number[] = [];
  let hops = 0;
  let step = firstStep(plan, world.stateOf);
  for (;;) {
    steps.push(step);
    if (step.type === "wait") return { tried, hops, steps, result: step.code };
    if (step.type === "surface") return { tried, hops, steps, result: step.failure };
    tried.push(step.pool);
    hops = step.progress.hops;
    const outcome = world.outcomeOf(step.pool);
    if (outcome === "ok") return { tried, hops, steps, result: "ok" };
    step = nextStep(plan, step.progress, outcome, world.stateOf);
  }
}

for (const scenario of golden.scenarios) {
  it(`attempts pools as the golden vectors say: ${scenario.name}`, () => {
    const { tried, result } = play(scenario, {
      stateOf: (pool) => (scenario.unready?.includes(pool) ? "unready" : "ready"),
      outcomeOf: (pool) => scenario.outcomes[pool]!,
    });
    expect(tried).toEqual(scenario.tried);
    expect(result).toBe(scenario.result);
  });
}

const threePools = { selected: 2, priorities: [0, 1, 2], retry: false, spill: null };
const allOk = () => "ok" as const;

it("waits for an unready pool when nothing else is allowed, naming the code to fail with", () => {
  const { tried, result, steps } = play(threePools, { stateOf: () => "unready", outcomeOf: allOk });
  expect(tried).toEqual([]);
  expect(result).toBe("pool_unavailable");
  expect(steps).toEqual([{ type: "wait", pool: 2, code: "pool_unavailable" }]);
});

it("sends a request to a held pool when spill is off", () => {
  const { tried } = play(threePools, { stateOf: () => "held", outcomeOf: allOk });
  expect(tried).toEqual([2]);
});

it("fails as overloaded when the selected pool and every spill pool are held", () => {
  const spill = { allow_peers: true, allow_slower: false, max_hops: 2 };
  const { tried, result } = play(
    { ...threePools, spill },
    { stateOf: () => "held", outcomeOf: allOk },
  );
  expect(tried).toEqual([]);
  expect(result).toBe("overloaded");
});

it("spills past a held peer, and counts the hop taken before the first dispatch", () => {
  const spill = { allow_peers: true, allow_slower: false, max_hops: 1 };
  const { tried, result, hops } = play(
    { selected: 2, priorities: [0, 1, 1], retry: false, spill },
    {
      stateOf: (pool) => (pool === 0 ? "ready" : "held"),
      outcomeOf: () => "refused_overloaded",
    },
  );
  expect(tried).toEqual([0]);
  expect(hops).toBe(1);
  expect(result).toBe("refused_overloaded");
});

it("retries a faster pool when the selected one is unready and no spill pool is", () => {
  const { tried, steps } = play(
    { ...threePools, retry: true },
    { stateOf: (pool) => (pool === 0 ? "ready" : "unready"), outcomeOf: allOk },
  );
  expect(tried).toEqual([0]);
  expect(steps[0]).toMatchObject({ via: "retry" });
});

it("never tries a pool twice, exceeds the hops, or dispatches to an unready pool", () => {
  const pools = fc.integer({ min: 1, max: 6 });
  const outcome = fc.constantFrom<"ok" | AttemptFailure>(
    "ok",
    "refused_overloaded",
    "refused_unavailable",
    "fail_before_output",
    "fail_after_output",
    "cancelled",
  );
  const world = pools.chain((count) =>
    fc.record({
      selected: fc.nat(count - 1),
      priorities: fc.array(fc.integer({ min: 0, max: 3 }), { minLength: count, maxLength: count }),
      retry: fc.boolean(),
      spill: fc.option(
        fc.record({
          allow_peers: fc.boolean(),
          allow_slower: fc.boolean(),
          max_hops: fc.integer({ min: 1, max: 4 }),
        }),
      ),
      states: fc.array(fc.constantFrom<PoolState>("ready", "held", "unready"), {
        minLength: count,
        maxLength: count,
      }),
      outcomes: fc.array(outcome, { minLength: count, maxLength: count }),
    }),
  );
  fc.assert(
    fc.property(world, ({ states, outcomes, ...scenario }) => {
      const { tried, hops } = play(scenario, {
        stateOf: (pool) => states[pool]!,
        outcomeOf: (pool) => outcomes[pool]!,
      });
      expect(new Set(tried).size).toBe(tried.length);
      expect(hops).toBeLessThanOrEqual(scenario.spill?.max_hops ?? 0);
      for (const pool of tried) expect(states[pool]).not.toBe("unready");
      // Only the last attempt may end in something that forbids another one.
      for (const pool of tried.slice(0, -1)) {
        expect(["refused_overloaded", "refused_unavailable", "fail_before_output"]).toContain(
          outcomes[pool],
        );
      }
    }),
  );
});

it("classes error codes as the table of notices says", () => {
  const classes: Record<string, ErrorCode[]> = {
    refused_overloaded: [
      "all_eligible_workers_overloaded",
      "pinned_worker_overloaded",
      "queue_rejected",
      "do_not_queue",
    ],
    refused_unavailable: ["no_endpoints", "not_ready", "subscriber_shutdown", "prompt_lost"],
    invalid_request: [
      "invalid_request",
      "pinned_worker_not_allowed",
      "payload_too_large",
      "duplicate_request",
    ],
    fail_before_output: ["worker_lost", "accept_timeout", "malformed_reply", "internal_error"],
    cancelled: ["cancelled"],
    deadline_exceeded: ["deadline_exceeded"],
  };
  for (const [failure, codes] of Object.entries(classes)) {
    for (const code of codes) expect(attemptFailureOf(code, false), code).toBe(failure);
  }
  expect(attemptFailureOf("worker_lost", true)).toBe("fail_after_output");
  expect(attemptFailureOf("cancelled", true)).toBe("cancelled");
});

it("takes i32 integers as request priorities and nothing else", () => {
  const { request_values } = readGolden("priority-overrides") as {
    request_values: {
      accepted: { json: string; priority: number | null }[];
      rejected_400: string[];
    };
  };
  for (const { json, priority } of request_values.accepted) {
    if (priority === null) continue;
    const value: unknown = JSON.parse(json);
    expect(isRequestPriority(value), json).toBe(true);
    expect(value).toBe(priority);
  }
  for (const json of request_values.rejected_400) {
    expect(isRequestPriority(JSON.parse(json)), json).toBe(false);
  }
});
