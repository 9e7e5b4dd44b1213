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

const acceptance = { attempt: 1, inst: "0", control: "tg.w.0.ctl", workerId: "0" };

/** An offer to a hop that says nothing by itself. */
function offered({ acceptTimeoutMs = 300, leftMs = 1_000 } = {}) {
  const clock = new ManualClock();
  const bus = createMemoryNetwork({ clock, random: mulberry32(1) }).connect({ role: "lo" });
  bus.subscribe(subject, () => {});
  const signal = new CancelSwitch();
  const outcomes: OfferOutcome[] = [];
  const gate = { open: true };
  const hop = { bus, clock, gate, subject, payload: new Uint8Array(1), signal };
  const offer = offerDispatch({ ...hop, acceptTimeoutMs, leftMs }, (outcome) => {
    outcomes.push(outcome);
  });
  const codes = () =>
    outcomes.map((outcome) => ("error" in outcome ? outcome.error.code : "accepted"));
  return { clock, bus, signal, gate, offer, codes };
}

it("settles once when a cancel and an acceptance come within one turn", async () => {
  for (const order of ["cancel first", "accept first"]) {
    const { clock, signal, offer, codes } = offered();
    if (order === "cancel first") signal.abort();
    offer.accept(acceptance);
    signal.abort();
    await clock.runFor(2_000);
    expect([order, codes()]).toEqual([order, ["accepted"]]);
    expect(clock.pending()).toBe(0);
  }
});

it("settles within a call of the dispatcher never, but after it", async () => {
  const { clock, bus, signal, codes } = offered();
  signal.abort();
  expect(codes()).toEqual([]);
  await clock.runFor(0);
  expect(codes()).toEqual(["cancelled"]);
  await bus.close();
  expect(clock.pending()).toBe(0);
});

it("waits no longer than the deadline, however often the hop says that it looks", async () => {
  const { clock, offer, gate, codes } = offered({ leftMs: 700 });
  for (let at = 0; at < 3; at++) {
    await clock.runFor(200);
    offer.extend();
  }
  gate.open = false;
  await clock.runFor(99);
  expect(codes()).toEqual([]);
  await clock.runFor(2);
  expect(codes()).toEqual(["accept_timeout"]);
  expect(clock.pending()).toBe(0);
});
