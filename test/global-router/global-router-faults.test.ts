import fc from "fast-check";
import { expect, it } from "vitest";
import type { Receipt } from "../../src/protocol/requests.ts";
import { type Answer, aggConfig, cardsMs, metric, type ScriptedRouter, startRig } from "./rig.ts";

const answers: readonly Answer[] = [
  "accept",
  "silent",
  "slow",
  "slow_refusal",
  "overloaded",
  "no_endpoints",
  "engine_error",
  "context_length_exceeded",
  "subscriber_shutdown",
];
const quotes: readonly ScriptedRouter["quote"][] = [
  { ttft: 100 },
  { ttft: 700, queue: 500 },
  "silent",
  "not_ready",
  undefined,
];
const pools = ["fast", "middle", "slow"];

it("answers every request once and closes every book, whatever routers and the bus do", async () => {
  const scenario = fc.record({
    seed: fc.nat(),
    retry: fc.boolean(),
    spill: fc.boolean(),
    selection: fc.constantFrom("grid", "checked", "live"),
    quotes: fc.array(fc.constantFrom(...quotes), { minLength: 6, maxLength: 6 }),
    loss: fc.constantFrom(0, 0.1, 0.4),
    answers: fc.array(fc.constantFrom(...answers), { minLength: 6, maxLength: 6 }),
    dies: fc.nat({ max: 5 }),
  });
  const property = fc.asyncProperty(scenario, async ({ seed, retry, spill, loss, ...script }) => {
    const { selection } = script;
    const live = selection === "grid" ? {} : { live: { refuse: retry } };
    const strategy = { spill: { enabled: spill, allow_slower: true }, selection, ...live };
    const config = aggConfig({
      enable_priority_retry: retry,
      agg_pool_selection_strategy: strategy,
    });
    const rig = startRig(config, { poolWaitMs: 500 }, seed);
    const routers = [...pools, ...pools].map((name) => rig.startPool(name));
    await rig.clock.runFor(cardsMs);
    for (const [index, router] of routers.entries()) {
      router.answer = script.answers[index]!;
      router.quote = script.quotes[index];
    }
    rig.network.faults.setMessageFaults([
      { subject: "tg.local.>", loss, delayMinMs: 0, delayMaxMs: 20 },
    ]);
    const receipts: Receipt[] = [];
    for (let count = 0; count < 12; count++) {
      if (count === 6) routers[script.dies]!.goodbye();
      if (count === 6) await routers[script.dies]!.bus.close();
      const router = { ttft_target: 80 * count, itl_target: 8 * count };
      receipts.push(await rig.ask(rig.request({ router })));
    }
    expect(receipts).toHaveLength(12);
    const accepted = receipts.filter(({ type }) => type === "accepted").length;
    expect(rig.router.totals).toMatchObject({ received: 12, accepted, refused: 12 - accepted });
    await rig.clock.runFor(20_000);
    expect(rig.router.openRequests).toBe(0);
    expect(await metric(rig, 'tiergrid_bookings_active{role="agg"}')).toBe(0);
    const inFlight = rig.router.pools().roles["agg"]!.pools.map((pool) => pool.inflight);
    expect(inFlight).toEqual([0, 0, 0]);
  });
  await fc.assert(property, { numRuns: 40 });
});
