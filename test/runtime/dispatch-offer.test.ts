import { expect, it } from "vitest";
import { CancelSwitch } from "../../src/base/cancel.ts";
import { ManualClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { type OfferOutcome, offerDispatch } from "../../src/runtime/dispatch-offer.ts";
import { startEchoGate } from "../../src/runtime/echo-gate.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";

const subject = "tg.w.1.gen";

/** A router at rest for 10 s before a worker that never answers. */
async function rig() {
  const clock = new ManualClock();
  const network = createMemoryNetwork({ clock, random: mulberry32(1) });
  const bus = network.connect({ role: "lo" });
  network.connect({ role: "wk" }).subscribe(subject, () => {});
  const gate = startEchoGate(bus, clock);
  await clock.runFor(10_010);
  const outcomes: { readonly atMs: number; readonly outcome: OfferOutcome }[] = [];
  const offer = (acceptTimeoutMs: number): void => {
    const payload = new Uint8Array(4);
    const signal = new CancelSwitch();
    offerDispatch(
      { bus, clock, gate, subject, payload, acceptTimeoutMs, leftMs: 60_000, signal },
      (outcome) => void outcomes.push({ atMs: clock.nowMs() - 10_010, outcome }),
    );
  };
  return { clock, network, bus, offer, outcomes };
}

it("gives a silent hop up at the accept timeout", async () => {
  for (const acceptTimeoutMs of [100, 300, 5_000]) {
    const { clock, offer, outcomes } = await rig();
    offer(acceptTimeoutMs);
    await clock.runFor(6_000);
    expect(outcomes).toMatchObject([
      { atMs: acceptTimeoutMs, outcome: { error: { code: "accept_timeout" } } },
    ]);
  }
});

it("does not judge by a freeze that began before the offer, although nobody asked the gate", async () => {
  const { clock, network, bus, offer, outcomes } = await rig();
  network.faults.freeze(bus);
  offer(300);
  await clock.runFor(3_000);
  expect(outcomes).toEqual([]);
  network.faults.thaw(bus);
  await clock.runFor(1_000);
  expect(outcomes).toMatchObject([{ outcome: { error: { code: "accept_timeout" } } }]);
  expect(outcomes[0]?.atMs).toBeGreaterThanOrEqual(3_000);
});
