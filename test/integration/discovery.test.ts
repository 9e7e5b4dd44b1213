import { expect, it } from "vitest";
import { realClock as clock } from "../../src/base/clock.ts";
import { osRandom as random } from "../../src/base/random.ts";
import { announce, newEpoch } from "../../src/runtime/announce.ts";
import { watchInstances } from "../../src/runtime/discovery.ts";
import { startEchoGate } from "../../src/runtime/echo-gate.ts";
import type { InstanceCard } from "../../src/runtime/instance-card.ts";
import { connectNatsBus } from "../../src/runtime/nats-bus.ts";
import { until } from "../runtime/bus-conformance.ts";
import { sampleCard } from "../runtime/sample-card.ts";
import { startNats } from "./nats-fixture.ts";

const card = (inst: string): InstanceCard => sampleCard(inst, { epoch: newEpoch(random) });

it("finds instances on a real server, keeps them over its restart and hears a goodbye", async () => {
  const server = await startNats();
  const servers = [server.url];
  const near = await connectNatsBus({ servers, role: "lo", clock, random });
  const far = await connectNatsBus({ servers, role: "wk", clock, random });
  const gate = startEchoGate(near, clock);
  const table = watchInstances({ bus: near, clock, gate });
  const changes: string[] = [];
  table.onChange((change) => void changes.push(`${change.type} ${change.card.inst}`));
  // Nobody serves the question yet: the server's empty answer is not a heartbeat.
  await near.flush();
  const [one, two] = [card("1"), card("2")];
  const first = announce({ bus: far, clock, random, card: () => one });
  const second = announce({ bus: far, clock, random, card: () => two });
  await table.ready();
  await until(() => changes.length === 2 && gate.open);
  const late = watchInstances({ bus: far, clock, gate: startEchoGate(far, clock) });
  await until(() => [...late.instances()].length === 2);
  await server.kill("SIGKILL");
  await until(() => !gate.open);
  await server.restart();
  await until(() => gate.open && far.state === "connected");
  first.goodbye();
  await until(() => changes.includes("gone 1"));
  // A slow restart may make them suspect for a while; neither leaves but by its goodbye.
  const lasting = changes.filter((change) => !/^(suspect|changed) /.test(change));
  expect(lasting.toSorted()).toEqual(["gone 1", "up 1", "up 2"]);
  await until(() => table.isUsable("2"));
  expect(table.counts.malformed).toBe(0);
  second.stop();
  late.stop();
  table.stop();
  gate.stop();
  await Promise.all([near.close(), far.close()]);
  await server.stop();
});
