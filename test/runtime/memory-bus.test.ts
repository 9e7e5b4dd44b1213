import fc from "fast-check";
import { expect, it } from "vitest";
import { ManualClock, realClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import type { Bus, BusMessage } from "../../src/runtime/bus.ts";
import { createMemoryNetwork, type MemoryNetwork } from "../../src/runtime/memory-bus.ts";
import { type MessageFault, staleAfterMs } from "../../src/runtime/memory-faults.ts";
import { busConformance, codeOf, rejection } from "./bus-conformance.ts";

busConformance(async () => {
  const network = createMemoryNetwork({ clock: realClock, random: mulberry32(1) });
  return { connect: async (role) => network.connect({ role }), stop: async () => {} };
});

interface Rig {
  readonly clock: ManualClock;
  readonly network: MemoryNetwork;
  readonly near: Bus;
  readonly far: Bus;
  readonly got: string[];
}

function rig(seed = 1, faults: readonly MessageFault[] = []): Rig {
  const clock = new ManualClock();
  const network = createMemoryNetwork({ clock, random: mulberry32(seed), faults });
  const near = network.connect({ role: "fe" });
  const far = network.connect({ role: "wk" });
  const got: string[] = [];
  far.subscribe("tg.test.>", (message) => void got.push(text(message)));
  return { clock, network, near, far, got };
}
const bytes = (word: string): Uint8Array => new TextEncoder().encode(word);
const text = (message: BusMessage): string => new TextDecoder().decode(message.payload);

it("delivers nothing inside publish and everything of one instant with one timer", () => {
  const { clock, near, got } = rig();
  for (let index = 0; index < 100; index++) near.publish("tg.test.a", bytes(String(index)));
  expect(got.length).toBe(0);
  expect(clock.pending()).toBe(1);
  clock.advanceTo(0);
  expect(got.length).toBe(100);
  expect(near.totals.outboundBytes).toBe(0);
});

it("sheds data above 8 MiB and control above 32 MiB of one instant", () => {
  const { clock, near } = rig();
  const half = new Uint8Array(512 * 1024);
  const fill = (traffic: "data" | "control"): number => {
    let count = 0;
    const refused = (): boolean =>
      codeOf(() => near.publish("tg.test.a", half, { traffic })) === "bus_overloaded";
    while (count < 1000 && !refused()) count += 1;
    return count;
  };
  expect(fill("data")).toBe(17);
  expect(fill("control")).toBe(48);
  expect(near.totals.shedMessages).toBe(2);
  clock.advanceTo(0);
  expect(codeOf(() => near.publish("tg.test.a", half))).toBeUndefined();
});

it("delays within the given range", () => {
  const { clock, near, got, network } = rig(3, [
    { subject: "tg.test.>", delayMinMs: 10, delayMaxMs: 20 },
  ]);
  near.publish("tg.test.a", bytes("x"));
  clock.advanceTo(9);
  expect(got).toEqual([]);
  clock.advanceTo(21);
  expect(got).toEqual(["x"]);
  expect(network.faults.counts.delayed).toBe(1);
});

it("keeps each publisher's order on a subject under any delays, also while rules change", () => {
  const step = fc.record({
    from: fc.integer({ min: 0, max: 2 }),
    subject: fc.constantFrom("tg.test.a", "tg.test.b"),
    delayMaxMs: fc.constantFrom(0, 1, 5, 50),
    waitMs: fc.constantFrom(0, 0, 0.25, 1, 7),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 80 }), fc.integer(), (steps, seed) => {
      const { clock, network } = rig(seed);
      const buses = [0, 1, 2].map(() => network.connect({ role: "wk" }));
      const seen = new Map<string, number[]>();
      network.connect({ role: "ob" }).subscribe("tg.test.>", (message) => {
        const [from, index] = text(message).split(":");
        const key = `${from} ${message.subject}`;
        seen.set(key, [...(seen.get(key) ?? []), Number(index)]);
      });
      steps.forEach(({ from, subject, delayMaxMs, waitMs }, index) => {
        network.faults.setMessageFaults(delayMaxMs > 0 ? [{ subject: ">", delayMaxMs }] : []);
        buses[from]!.publish(subject, bytes(`${from}:${index}`));
        clock.advanceTo(clock.nowMs() + waitMs);
      });
      clock.advanceTo(clock.nowMs() + 1000);
      const arrived = [...seen.values()];
      expect(arrived.flat().length).toBe(steps.length);
      for (const order of arrived) expect(order).toEqual(order.toSorted((a, b) => a - b));
    }),
  );
});

it("reorders across publishers when delays differ", () => {
  const orders = new Set<string>();
  for (let seed = 0; seed < 20; seed++) {
    const { clock, network, near, got } = rig(seed, [{ subject: ">", delayMaxMs: 20 }]);
    near.publish("tg.test.a", bytes("1"));
    network.connect({ role: "gl" }).publish("tg.test.a", bytes("2"));
    clock.advanceTo(30);
    orders.add(got.join());
  }
  expect(orders).toEqual(new Set(["1,2", "2,1"]));
});

it("delivers the same in two runs of one seed, and differently under another", () => {
  const run = (seed: number): string => {
    const { clock, near, network, got } = rig(seed, [
      { subject: "tg.test.a", delayMaxMs: 30, loss: 0.3, duplication: 0.2 },
    ]);
    const third = network.connect({ role: "lo" });
    for (let index = 0; index < 200; index++) {
      (index % 2 ? near : third).publish("tg.test.a", bytes(String(index)));
      clock.advanceTo(clock.nowMs() + 1);
    }
    clock.advanceTo(1000);
    return got.join();
  };
  expect(run(7)).toBe(run(7));
  expect(run(7)).not.toBe(run(8));
});

it("loses and doubles only where asked, by the last rule that matches, and counts it", () => {
  const { clock, near, got, network } = rig(1, [
    { subject: ">", loss: 1 },
    { subject: "tg.test.twice", duplication: 1 },
    { subject: "tg.test.safe" },
  ]);
  for (const subject of ["tg.test.gone", "tg.test.twice", "tg.test.safe"]) {
    near.publish(subject, bytes(subject.slice(8)));
  }
  clock.advanceTo(0);
  expect(got).toEqual(["twice", "twice", "safe"]);
  expect(network.faults.counts).toMatchObject({ lost: 1, duplicated: 1 });
});

it("holds messages for a frozen connection and delivers them before newer ones", () => {
  const { clock, near, far, got, network } = rig();
  network.faults.freeze(far);
  near.publish("tg.test.a", bytes("1"));
  clock.advanceTo(5);
  near.publish("tg.test.a", bytes("2"));
  network.faults.thaw(far);
  near.publish("tg.test.a", bytes("3"));
  expect(got).toEqual([]);
  clock.advanceTo(5);
  expect(got.toSorted()).toEqual(["1", "2", "3"]);
  expect(got).toEqual(["1", "2", "3"]);
});

it("loses both ways for a cut connection, which notices late and comes back when healed", async () => {
  const { clock, near, far, got, network } = rig();
  const states: string[] = [];
  far.onState((state) => states.push(state));
  const back: string[] = [];
  near.subscribe("tg.back", (message) => void back.push(text(message)));
  network.faults.cut(far);
  near.publish("tg.test.a", bytes("lost"));
  far.publish("tg.back", bytes("lost"));
  const asked = rejection(far.request("tg.back", bytes(""), { timeoutMs: 60_000 }));
  clock.advanceTo(staleAfterMs - 1);
  expect(states).toEqual([]);
  clock.advanceTo(staleAfterMs);
  expect(states).toEqual(["disconnected"]);
  expect(await asked).toBe("disconnected");
  expect(codeOf(() => far.publish("tg.back", bytes("")))).toBe("disconnected");
  network.faults.heal(far);
  near.publish("tg.test.a", bytes("in"));
  far.publish("tg.back", bytes("out"));
  clock.advanceTo(staleAfterMs + 1);
  expect([got, back]).toEqual([["in"], ["out"]]);
  expect(far.totals.reconnects).toBe(1);
});

it("disconnects everyone while the broker is down and keeps their subscriptions", async () => {
  const { clock, near, far, got, network } = rig();
  far.subscribe("tg.ask", () => {});
  const asked = rejection(near.request("tg.ask", bytes(""), { timeoutMs: 60_000 }));
  near.publish("tg.test.a", bytes("under way"));
  network.faults.brokerDown();
  expect(await asked).toBe("disconnected");
  expect([near.state, far.state]).toEqual(["disconnected", "disconnected"]);
  expect(codeOf(() => near.publish("tg.test.a", bytes("")))).toBe("disconnected");
  expect(await rejection(near.request("tg.ask", bytes(""), { timeoutMs: 9 }))).toBe("disconnected");
  expect(await rejection(near.flush())).toBe("disconnected");
  const late = network.connect({ role: "ob" });
  expect(late.state).toBe("disconnected");
  late.subscribe("tg.test.*", (message) => void got.push(`late ${text(message)}`));
  network.faults.brokerUp();
  near.publish("tg.test.a", bytes("after"));
  clock.advanceTo(1);
  expect(got.toSorted()).toEqual(["after", "late after"]);
  expect(near.totals.outboundBytes).toBe(0);
});
