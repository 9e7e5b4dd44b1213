import { expect, it } from "vitest";
import { realClock } from "../../src/base/clock.ts";
import { mulberry32, osRandom } from "../../src/base/random.ts";
import type { Bus } from "../../src/runtime/bus.ts";
import { connectNatsBus, type NatsBusOptions } from "../../src/runtime/nats-bus.ts";
import { type NatsServer, startNatsServer } from "../../src/runtime/nats-server.ts";
import { busConformance, codeOf, until } from "../runtime/bus-conformance.ts";
import { natsBinary, startNats } from "./nats-fixture.ts";

busConformance(async () => {
  const server = await startNats();
  const buses: Bus[] = [];
  return {
    connect: async (role) => {
      const bus = await connectNatsBus({
        servers: [server.url],
        role,
        clock: realClock,
        random: osRandom,
        failFast: true,
      });
      buses.push(bus);
      return bus;
    },
    stop: async () => {
      await Promise.all(buses.map((bus) => bus.close()));
      await server.stop();
    },
  };
});

const base = { role: "fe", clock: realClock, random: mulberry32(5) } as const;

async function withServer(
  options: Partial<NatsBusOptions>,
  run: (bus: Bus, server: NatsServer) => Promise<void>,
): Promise<void> {
  const server = await startNats();
  const bus = await connectNatsBus({ ...base, servers: [server.url], ...options });
  try {
    await run(bus, server);
  } finally {
    await bus.close();
    await server.stop();
  }
}

it("keeps inbox and subscriptions over a server restart, and buffers nothing meanwhile", () =>
  withServer({}, async (bus, server) => {
    const got: string[] = [];
    const states: string[] = [];
    bus.onState((state) => states.push(state));
    bus.subscribe("tg.test.a", (message) => void got.push(message.subject));
    bus.subscribe(`${bus.inboxPrefix}.st.1`, (message) => void got.push(message.subject));
    const dropped = bus.subscribe("tg.test.dropped", () => void got.push("dropped"));
    await server.kill("SIGKILL");
    await until(() => bus.state === "disconnected");
    expect(codeOf(() => bus.publish("tg.test.a", new Uint8Array(1)))).toBe("disconnected");
    dropped.unsubscribe();
    bus.subscribe("tg.test.late", (message) => void got.push(message.subject));
    await server.restart();
    await until(() => bus.state === "connected");
    const inbox = `${bus.inboxPrefix}.st.1`;
    for (const subject of ["tg.test.a", inbox, "tg.test.late", "tg.test.dropped"]) {
      bus.publish(subject, new Uint8Array(1));
    }
    await bus.flush();
    await until(() => got.length === 3);
    expect(got).toEqual(["tg.test.a", inbox, "tg.test.late"]);
    expect(states).toEqual(["disconnected", "connected"]);
    expect(bus.totals.reconnects).toBe(1);
  }));

it("resolves without a server, dials on and connects when it comes up", async () => {
  const first = await startNats();
  const { port } = first;
  await first.stop();
  const errors: unknown[] = [];
  const servers = [`nats://127.0.0.1:${port}`];
  const onTrouble = (error: unknown): void => void errors.push(error);
  await expect(connectNatsBus({ ...base, servers, failFast: true })).rejects.toMatchObject({
    code: "disconnected",
  });
  const bus = await connectNatsBus({ ...base, servers, onTrouble });
  expect(bus.state).toBe("disconnected");
  const got: string[] = [];
  bus.subscribe("tg.test.a", (message) => void got.push(message.subject));
  await until(() => errors.length >= 3);
  const server = await startNatsServer({ binary: await natsBinary(), clock: realClock, port });
  await until(() => bus.state === "connected");
  bus.publish("tg.test.a", new Uint8Array(0));
  await until(() => got.length === 1);
  await bus.close();
  await server.stop();
});

it("survives a trouble listener and state listeners that throw", () => {
  const onTrouble = (): never => {
    throw new Error("listener");
  };
  return withServer({ onTrouble }, async (bus, server) => {
    bus.onState(onTrouble);
    await server.kill("SIGKILL");
    await until(() => bus.state === "disconnected");
    await server.restart();
    await until(() => bus.state === "connected");
    expect(bus.totals.handlerErrors).toBeGreaterThan(0);
  });
});

it("logs in with a user, and reports a wrong password without giving up", async () => {
  const server = await startNats(`authorization { user: "a", password: "right" }\n`);
  const credentials = { user: "a", pass: "right" };
  const bus = await connectNatsBus({ ...base, servers: [server.url], credentials });
  expect(bus.state).toBe("connected");
  const wrong = { user: "a", pass: "wrong" };
  const errors: unknown[] = [];
  const onTrouble = (error: unknown): void => void errors.push(error);
  const out = await connectNatsBus({
    ...base,
    servers: [server.url],
    credentials: wrong,
    onTrouble,
  });
  await until(() => errors.length >= 3);
  expect(out.state).toBe("disconnected");
  await Promise.all([bus.close(), out.close()]);
  await server.stop();
});

it("takes the maximum payload from the server", async () => {
  const server = await startNats("max_payload: 64KB\n");
  const bus = await connectNatsBus({ ...base, servers: [server.url] });
  expect(bus.maxPayloadBytes).toBe(65_536);
  expect(codeOf(() => bus.publish("tg.test.a", new Uint8Array(65_537)))).toBe("payload_too_large");
  await bus.close();
  await server.stop();
});
