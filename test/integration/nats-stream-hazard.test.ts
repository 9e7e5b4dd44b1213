/**
 * Hazard N1 of the plain client: core NATS loses the messages of an outage without a word, so that a
 * token stream over a broker restart has a hole and its end marker arrives all the same.
 */
import { connect, type NatsConnection } from "nats";
import { afterEach, expect, it } from "vitest";
import { realClock } from "../../src/base/clock.ts";
import { osRandom } from "../../src/base/random.ts";
import { mockToken } from "../../src/protocol/mock-tokens.ts";
import type { BusRole } from "../../src/protocol/subjects.ts";
import type { Bus } from "../../src/runtime/bus.ts";
import { startEchoGate } from "../../src/runtime/echo-gate.ts";
import { connectNatsBus } from "../../src/runtime/nats-bus.ts";
import type { NatsServer } from "../../src/runtime/nats-server.ts";
import { createStreamOwner } from "../../src/runtime/stream-owner.ts";
import { until } from "../runtime/bus-conformance.ts";
import { routeTo, startWorker } from "../runtime/stream-fleet.ts";
import { startNats } from "./nats-fixture.ts";

const streamTokens = 200;
const itlMs = 5;
const promptTokens = 5;

const endings: (() => unknown)[] = [];
afterEach(async () => {
  while (endings.length > 0) await endings.pop()?.();
});

async function server(): Promise<NatsServer> {
  const started = await startNats();
  endings.push(() => started.stop());
  return started;
}

/** Kills the broker a quarter into the stream; it is back on the same port after half a second. */
async function outage(nats: NatsServer, received: () => number): Promise<void> {
  await until(() => received() >= streamTokens / 4);
  await nats.kill("SIGKILL");
  await pause(500);
  await nats.restart();
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

async function plainClient({ url }: NatsServer): Promise<NatsConnection> {
  const client = await connect({
    servers: url,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 50,
    reconnectJitter: 50,
  });
  endings.push(() => client.close());
  return client;
}

async function safeBus({ url }: NatsServer, role: BusRole): Promise<Bus> {
  const bus = await connectNatsBus({
    servers: [url],
    role,
    clock: realClock,
    random: osRandom,
    failFast: true,
  });
  endings.push(() => bus.close());
  return bus;
}

it("N1: a broker restart punches a hole into a stream of the plain client", async () => {
  const nats = await server();
  const [sender, receiver] = [await plainClient(nats), await plainClient(nats)];
  const received: string[] = [];
  const text = new TextDecoder();
  receiver.subscribe("tokens", { callback: (_, { data }) => received.push(text.decode(data)) });
  await receiver.flush();
  const broken = outage(nats, () => received.length);
  for (let token = 0; token < streamTokens; token++) {
    sender.publish("tokens", String(token));
    await pause(itlMs);
  }
  await broken;
  const marker = setInterval(() => sender.publish("tokens", "end"), 50);
  endings.push(() => clearInterval(marker));
  await until(() => received.includes("end"));
  const tokens = received.filter((data) => data !== "end");
  expect(tokens.length).toBeGreaterThanOrEqual(streamTokens / 4);
  expect(tokens.length).toBeLessThan(streamTokens);
});

it("N1: a stream of ours over the same restart has every token once", async () => {
  const nats = await server();
  const ownerBus = await safeBus(nats, "fe");
  const workerBus = await safeBus(nats, "wk");
  const gate = startEchoGate(ownerBus, realClock);
  endings.push(() => gate.stop());
  const worker = startWorker(workerBus, realClock, "w0", { itlMs });
  endings.push(() => worker.kill());
  const owner = createStreamOwner({ bus: ownerBus, clock: realClock, random: osRandom, gate });
  endings.push(() => owner.close());
  await until(() => gate.open);
  await Promise.all([ownerBus.flush(), workerBus.flush()]);
  const received: number[] = [];
  const ends: string[] = [];
  const call = owner.call({
    route: () => routeTo("w0"),
    phase: "aggregated",
    body: { model: "m", stop_conditions: { max_tokens: streamTokens } },
    tokens: Uint32Array.from({ length: promptTokens }, (_, at) => at),
    deadlineMs: 20_000,
    firstTokenTimeoutMs: 5_000,
    migration: { limit: 0, allowed: false },
    sink: {
      onAccepted: () => {},
      onOutput: ({ tokenIds }) => void received.push(...tokenIds),
      onEnd: ({ finishReason }) => void ends.push(finishReason),
      onError: (error) => void ends.push(`${error.code}: ${error.message}`),
    },
  });
  await outage(nats, () => received.length);
  await call.done;
  expect(ends).toEqual(["length"]);
  expect(received).toEqual(
    Array.from({ length: streamTokens }, (_, at) => mockToken(7, promptTokens + at)),
  );
  expect(owner.totals.migrations).toBe(0);
  expect(owner.open).toBe(0);
});
