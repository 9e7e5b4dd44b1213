import { expect, it } from "vitest";
import { type CancelTimer, type Clock, every, ManualClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { tickClock } from "../../src/base/tick-clock.ts";
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

/** Somebody judges by silence all the time. */
function keepAsking({ clock, gate }: Pick<ReturnType<typeof rig>, "clock" | "gate">): CancelTimer {
  return every(clock, 50, () => void gate.open);
}

it("freezes 300 ms after the last echo for those who ask, and tells the pause at the next", () => {
  const { clock, network, bus, gate, thaws } = rig();
  keepAsking({ clock, gate });
  clock.advanceTo(1000);
  network.faults.freeze(bus);
  const lastEchoMs = 950;
  clock.advanceTo(lastEchoMs + 300);
  expect(gate.open).toBe(true);
  clock.advanceTo(lastEchoMs + 301);
  expect(gate.open).toBe(false);
  expect(gate.frozenSinceMs).toBe(lastEchoMs);
  clock.advanceTo(5050);
  network.faults.thaw(bus);
  clock.advanceTo(5050);
  expect(gate.open).toBe(true);
  expect(thaws).toEqual([5050 - lastEchoMs]);
});

it("beats twice a second while nobody asks and freezes at the first beat without an echo", () => {
  const { clock, network, bus, gate, thaws } = rig();
  clock.advanceTo(10_000);
  const before = bus.totals.messagesOut;
  clock.advanceTo(20_000);
  expect(bus.totals.messagesOut - before).toBe(20);
  clock.advanceTo(20_010);
  network.faults.freeze(bus);
  clock.advanceTo(20_700);
  expect(gate.frozenSinceMs).toBeUndefined();
  clock.advanceTo(20_701);
  expect(gate.frozenSinceMs).toBe(20_000);
  clock.advanceTo(24_000);
  network.faults.thaw(bus);
  clock.advanceTo(24_000);
  expect(gate.frozenSinceMs).toBeUndefined();
  // From 300 ms before the gate froze on: the echo was due 200 ms before, the beat period earlier.
  expect(thaws).toEqual([24_000 - 20_400]);
});

it("beats once for a multiple of its period, however early or late its timer is", () => {
  for (const offMs of [-1.3, -0.4, 0.6, 10]) {
    const { clock, network } = rig();
    const bus = network.connect({ role: "lo" });
    const after: Clock["after"] = (delayMs, fire) => clock.after(delayMs + offMs, fire);
    const gate = startEchoGate(bus, tickClock({ ...methodsOf(clock), after }, 50));
    const beats: number[] = [];
    for (const atMs of [2_020, 2_480, 2_520, 2_980, 3_020, 3_480, 3_520]) {
      clock.advanceTo(atMs);
      beats.push(bus.totals.messagesOut);
    }
    expect(beats.map((count, at) => count - (beats[at - 1] ?? count))).toEqual([
      0, 0, 1, 0, 1, 0, 1,
    ]);
    gate.stop();
  }
});

it("beats at once when it is asked, so that 250 ms later it knows of a freeze before", () => {
  const { clock, network, bus, gate } = rig();
  clock.advanceTo(10_010);
  network.faults.freeze(bus);
  clock.advanceTo(10_020);
  expect(gate.open).toBe(true);
  clock.advanceTo(10_220);
  expect(gate.open).toBe(true);
  clock.advanceTo(10_221);
  expect(gate.open).toBe(false);
});

it("counts a pause of the event loop as frozen time, asked or not", () => {
  for (const asked of [true, false]) {
    const { clock, network, bus } = rig();
    let heldMs = 0;
    const held = { ...methodsOf(clock), nowMs: () => clock.nowMs() + heldMs };
    const other = network.connect({ role: "lo" });
    const gate = startEchoGate(other, held);
    const thaws: number[] = [];
    gate.onThaw((frozenMs) => void thaws.push(frozenMs));
    if (asked) keepAsking({ clock, gate });
    clock.advanceTo(10_010);
    expect(gate.frozenSinceMs).toBeUndefined();
    heldMs = 3_000;
    expect(gate.frozenSinceMs).toBe(asked ? 9_950 : 10_000);
    clock.advanceTo(11_000);
    expect(gate.frozenSinceMs).toBeUndefined();
    expect(thaws).toHaveLength(1);
    expect(thaws[0]).toBeGreaterThan(2_900);
    expect(thaws[0]).toBeLessThanOrEqual(3_600);
    expect(bus.state).toBe("connected");
  }
});

function methodsOf(clock: ManualClock): Clock {
  return {
    nowMs: () => clock.nowMs(),
    wallMs: () => clock.wallMs(),
    after: (delayMs, fire) => clock.after(delayMs, fire),
  };
}

it("says nothing of a pause of 400 ms or less", () => {
  const { clock, gate, network, bus, thaws } = rig();
  keepAsking({ clock, gate });
  clock.advanceTo(1000);
  network.faults.freeze(bus);
  clock.advanceTo(1300);
  network.faults.thaw(bus);
  clock.advanceTo(2000);
  expect(thaws).toEqual([]);
});

it("is frozen at once while disconnected, and beats as soon as it is connected again", () => {
  const { clock, network, gate, thaws } = rig();
  keepAsking({ clock, gate });
  clock.advanceTo(1000);
  network.faults.brokerDown();
  expect(gate.open).toBe(false);
  clock.advanceTo(4000);
  network.faults.brokerUp();
  clock.advanceTo(4050);
  expect(gate.open).toBe(true);
  expect(thaws).toHaveLength(1);
  expect(thaws[0]).toBeGreaterThanOrEqual(3000);
  expect(thaws[0]).toBeLessThanOrEqual(3150);
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
