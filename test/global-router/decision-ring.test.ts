import fc from "fast-check";
import { expect, it } from "vitest";
import { errorTable, TiergridError } from "../../src/base/errors.ts";
import { rolePools } from "../../src/config/pool-config.ts";
import { explainDecision } from "../../src/global-router/decision-json.ts";
import { DecisionRing, decisionsKeptMax } from "../../src/global-router/decision-ring.ts";
import { DecisionRows, rowLimits } from "../../src/global-router/decision-rows.ts";
import {
  type AttemptRecord,
  decisionReasons,
  type LiveRecord,
  type PoolDecision,
  roleIn,
  selectIn,
} from "../../src/global-router/pool-decision.ts";
import {
  type ActiveConfig,
  type PoolStanding,
  poolConditions,
} from "../../src/global-router/pool-health.ts";
import type { Phase } from "../../src/protocol/requests.ts";
import { aggConfig, cardsMs, type configOf, disaggConfig, startRig } from "./rig.ts";

type Config = ReturnType<typeof configOf>;

function hexOf(words: readonly number[]): string {
  return words.map((word) => word.toString(16).padStart(4, "0")).join("");
}

/** A config in force whose pools nobody looks at. */
function activeOf(config: Config): ActiveConfig {
  const roles = config.roles.map(({ role }) => [role, { ...rolePools(config, role), live: [] }]);
  return { config, roles: new Map(roles as never) };
}

const quoted = aggConfig({
  agg_pool_selection_strategy: { selection: "live", spill: { enabled: true } },
});
const agg = activeOf(aggConfig());
const live = activeOf(quoted);
const disagg = activeOf(disaggConfig());
const phasesOf: readonly (readonly [ActiveConfig, Phase])[] = [
  ...([
    [agg, "aggregated"],
    [live, "aggregated"],
  ] as const),
  ...([
    [disagg, "prefill"],
    [disagg, "decode"],
  ] as const),
];

const text = fc.string({ maxLength: 12 });
const count = fc.nat();
const ms = fc.double({ noNaN: true, min: -1e6, max: 1e6 }).map((value) => value + 0);
const pool = fc.nat(3);
const hex128 = fc.array(fc.nat(0xffff), { minLength: 8, maxLength: 8 }).map(hexOf);
const target = fc.oneof(
  fc.record({ valueMs: ms, source: fc.constantFrom("nvext.router", "default", "x-slo-ttft-ms") }),
  fc.constant({ valueMs: null, source: "midpoint" }),
);
const attempt: fc.Arbitrary<AttemptRecord> = fc.record({
  pool,
  via: fc.constantFrom("selected" as const, "spill" as const, "retry" as const),
  router: text,
  startedMs: ms,
  outcome: fc.option(
    fc.constantFrom(
      ...(["accepted", "cancelled"] as const),
      ...(Object.keys(errorTable) as (keyof typeof errorTable)[]),
    ),
  ),
  tookMs: fc.option(ms),
});
const standing: fc.Arbitrary<PoolStanding> = fc.record({
  state: fc.constantFrom(...poolConditions),
  workersReady: count,
  inFlight: count,
});
const outcomes = ["kept", "left", "prior", "refused"] as const;

function liveIn({ role, plans }: PoolDecision["role"]): fc.Arbitrary<LiveRecord> {
  const quote = fc.record({
    ...{ predictedTtftMs: ms, predictedItlMs: ms, queueMs: ms, cachedTokens: count },
    ...{ prefillGpuMs: ms, decodeGpuMs: ms, gpus: count, validForMs: ms },
    breaksPromise: fc.boolean(),
  });
  const record = fc.record({
    ...{ pool, router: text, tookMs: ms, atMs: ms, quote: fc.option(quote, { nil: undefined }) },
    outcome: fc.constantFrom("answered" as const, "late" as const, "stale" as const),
    why: fc.option(text),
    scored: fc.option(
      fc.record({ score: ms, meets: fc.boolean(), missed: fc.constant(["ttft" as const]) }),
      { nil: undefined },
    ),
  });
  const error = new TiergridError("sla_unattainable", "no pool can meet the latency targets");
  return fc.record({
    targets: fc.record({ role: fc.constant(role), ttftMs: ms, itlMs: ms }),
    quotes: fc.array(record, { maxLength: 3 }),
    outcome: fc.constantFrom(...outcomes),
    why: fc.option(text),
    tookMs: ms,
    plan: fc.option(fc.constantFrom(...plans), { nil: undefined }),
    refusal: fc.constantFrom(undefined, {
      ...{ error, retryAfterMs: 3, missed: ["ttft" as const] },
    }),
  });
}

/** Settled decisions of any request under any config. */
const settled: fc.Arbitrary<PoolDecision> = fc
  .constantFrom(...phasesOf)
  .chain(([active, phase]) => {
    const role = roleIn(active, phase)!;
    const quotes = fc.option(liveIn(role), { nil: undefined });
    const query = fc.record({
      ...{ tokens: count, ttft: target, itl: target },
      priority: fc.option(fc.oneof(fc.integer(), fc.integer({ min: 8, max: 22 }))),
    });
    return fc.record({ query, live: quotes, id: hex128, rid: hex128 }).chain((made) => {
      const { selection, plan } = selectIn(role, made.query);
      return fc.record<PoolDecision>({
        id: fc.constant(made.id),
        rid: fc.constant(made.rid),
        requestId: fc.option(text),
        atWallMs: fc.nat(),
        phase: fc.constant(phase),
        active: fc.constant(active),
        role: fc.constant(role),
        query: fc.constant(made.query),
        selection: fc.constant(selection),
        plan: fc.constant(made.live?.plan ?? plan),
        live: fc.constant(made.live),
        pools: fc.array(standing, { minLength: role.pools.length, maxLength: role.pools.length }),
        attempts: fc.array(attempt, { maxLength: rowLimits.attemptsMax }),
        result: fc.option(fc.record({ pool, reason: fc.constantFrom(...decisionReasons) }), {
          nil: undefined,
        }),
        ended: fc.constant(true),
        counted: fc.constant(true),
      });
    });
  });

const explained = (decision: PoolDecision | undefined): string =>
  JSON.stringify(decision && explainDecision(decision, "m", false));

it("reads back from a row the decision that was written, whatever the row held before", () => {
  const rows = new DecisionRows();
  fc.assert(
    fc.property(settled, fc.nat(600), (decision, row) => {
      rows.write(row, decision);
      const read = rows.read(row, decision);
      expect(read).toEqual(decision);
      expect(explained(read)).toBe(explained(decision));
    }),
    { seed: 11, numRuns: 1_000 },
  );
});

it("answers the last decisions alike as objects and as rows, the oldest making room", () => {
  const ring = new DecisionRing();
  const made = fc.sample(settled, { seed: 12, numRuns: 500 });
  const all = Array.from({ length: decisionsKeptMax + 700 }, (_, at) => {
    const [id, rid] = [hexOf([7, at, 0, 0, 0, 0, 0, 9]), hexOf([at, 0, 0, 0, 0, 0, 0, 0])];
    return { ...made[at % made.length]!, id, rid };
  });
  for (const [at, decision] of all.entries()) {
    ring.add(decision);
    // Requests end in another order than they came.
    if (at % 3 !== 0) ring.settle(decision);
    if (at % 7 === 0) ring.settle(all[at - 21] ?? decision);
  }
  expect(ring.size).toBe(decisionsKeptMax);
  for (const [at, decision] of all.entries()) {
    const kept = at < all.length - decisionsKeptMax ? undefined : decision;
    expect(explained(ring.get(decision.id))).toBe(explained(kept));
  }
  const newest = all[all.length - 1]!.id;
  for (const other of [newest.slice(0, 31), `${newest.slice(0, 31)}8`, "g".repeat(32), ""]) {
    expect(ring.get(other)).toBeUndefined();
  }
});

it("keeps the object of a decision until nothing changes it any more", () => {
  const ring = new DecisionRing();
  const [any] = fc.sample(settled, { seed: 13, numRuns: 1 });
  const role = roleIn(live, "aggregated")!;
  const query = { ...any!.query, priority: null };
  const decision: PoolDecision = {
    ...{ ...any!, phase: "aggregated", active: live, role, query, ...selectIn(role, query) },
    ...{ live: undefined, ended: false, counted: false },
  };
  const isObject = (): boolean => {
    ring.settle(decision);
    return ring.get(decision.id) === decision;
  };
  ring.add(decision);
  expect(isObject()).toBe(true);
  decision.ended = true;
  expect(isObject()).toBe(true);
  decision.counted = true;
  // Quotes are out.
  expect(isObject()).toBe(true);
  const [found] = fc.sample(liveIn(role), { seed: 13, numRuns: 1 });
  decision.live = { ...found!, plan: undefined };
  expect(isObject()).toBe(false);
  expect(ring.get(decision.id)?.live).toBe(decision.live);
});

it("keeps the object of a decision that does not fit a row", () => {
  const [any] = fc.sample(settled, { seed: 14, numRuns: 1 });
  const [one] = fc.sample(attempt, { seed: 14, numRuns: 1 });
  const [seen] = fc.sample(standing, { seed: 14, numRuns: 1 });
  const { attemptsMax, poolsMax } = rowLimits;
  const kept = (attempts: number, pools: number): boolean => {
    const lists = { attempts: Array(attempts).fill(one), pools: Array(pools).fill(seen) };
    const decision = { ...any!, ...{ active: agg, role: roleIn(agg, "aggregated")! }, ...lists };
    const settledOne: PoolDecision = { ...decision, phase: "aggregated" };
    const ring = new DecisionRing();
    ring.add(settledOne);
    ring.settle(settledOne);
    const found = ring.get(settledOne.id);
    expect(found?.attempts).toEqual(lists.attempts);
    expect(found?.pools).toEqual(lists.pools);
    return found === settledOne;
  };
  expect(kept(attemptsMax, poolsMax)).toBe(false);
  expect(kept(attemptsMax + 1, 1)).toBe(true);
  expect(kept(1, poolsMax + 1)).toBe(true);
});

it("explains a request in the same words while it runs and after its owner has closed it", async () => {
  const rig = startRig(aggConfig());
  for (const namespace of ["fast", "middle", "slow"]) rig.startPool(namespace);
  await rig.clock.runFor(cardsMs);
  const dispatch = rig.request({ request_id: "r-1", router: { ttft_target: 300 } });
  const receipt = await rig.ask(dispatch);
  if (receipt.type !== "accepted") throw new Error("refused");
  const { decision_id: id } = receipt.decisions[0]!;
  const explain = () =>
    rig.query("explain", new TextEncoder().encode(JSON.stringify({ decision_id: id })));
  const running = await explain();
  expect(running).toMatchObject({ request_id: "r-1", result: { namespace: "middle" } });
  const { rid, attempt: asked } = dispatch.envelope;
  await rig.finish(dispatch);
  expect(await explain()).toEqual(running);
  const ends = { outcome: "ok", output_tokens: 3, decision_ids: [id] } as const;
  await rig.notify({ type: "closed", rid, attempt: asked + 1023, ...ends });
  expect(await explain()).toEqual(running);
});
