import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { startEchoGate } from "../../src/runtime/echo-gate.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";

function rig() {
  const clock = new ManualClock();
  const network = createMemoryNetwork({ clock, random: mulberry32(1) });
  const bus = network.connect({ role: "lo" });
  const gate = startEchoGate(bus, clock);
  const thaws: number[] = [];
  gate.onThaw((frozenMs) => void thaws.push(frozenMs));
  return { clock, network, bus, gate, thaws };
}

it("is frozen until the first echo, then open", () => {
  const { clock, gate } = rig();
  expect(gate.open).toBe(false);
  expect(gate.frozenSinceMs).toBe(0);
  clock.advanceTo(0);
  expect(gate.open).toBe(true);
  expect(gate.frozenSinceMs).toBeUndefined();
  clock.advanceTo(60_000);
  expect(gate.open).toBe(true);
});

it("freezes when the echo is older than 300 ms and tells the pause at the first echo", () => {
  const { clock, network, bus, gate, thaws } = rig();
  clock.advanceTo(1000);
  network.faults.freeze(bus);
  clock.advanceTo(1300);
  expect(gate.open).toBe(true);
  clock.advanceTo(1301);
  expect(gate.open).toBe(false);
  expect(gate.frozenSinceMs).toBe(1000);
  clock.advanceTo(5050);
  network.faults.thaw(bus);
  clock.advanceTo(5050);
  expect(gate.open).toBe(true);
  expect(thaws).toEqual([4050]);
});

it("says nothing of a pause of 400 ms or less", () => {
  const { clock, network, bus, thaws } = rig();
  clock.advanceTo(1000);
  network.faults.freeze(bus);
  clock.advanceTo(1400);
  network.faults.thaw(bus);
  clock.advanceTo(2000);
  expect(thaws).toEqual([]);
});

it("is frozen at once while disconnected", () => {
  const { clock, network, gate, thaws } = rig();
  clock.advanceTo(1000);
  network.faults.brokerDown();
  expect(gate.open).toBe(false);
  clock.advanceTo(4000);
  network.faults.brokerUp();
  clock.advanceTo(4100);
  expect(gate.open).toBe(true);
  expect(thaws).toEqual([3100]);
});

it("leaves no timer and no subscription behind", () => {
  const { clock, gate, bus } = rig();
  clock.advanceTo(1000);
  const before = bus.totals.messagesOut;
  gate.stop();
  clock.advanceTo(2000);
  expect(clock.pending()).toBe(0);
  expect(bus.totals.messagesOut).toBe(before);
});
