/**
 * Hazards of the plain client, each beside our bus: the first half of a test shows the symptom on
 * the client itself, so that the test tells when a release of it cures one.
 */
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { connect, type NatsConnection } from "nats";
import { afterEach, expect, it, vi } from "vitest";
import { realClock } from "../../src/base/clock.ts";
import type { Bus } from "../../src/runtime/bus.ts";
import { outboundHardBytes, outboundSoftBytes } from "../../src/runtime/bus-requests.ts";
import { connectNatsBus } from "../../src/runtime/nats-bus.ts";
import type { NatsServer } from "../../src/runtime/nats-server.ts";
import { codeOf, rejection, until } from "../runtime/bus-conformance.ts";
import { startNats } from "./nats-fixture.ts";

const endings: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  vi.restoreAllMocks();
  while (endings.length > 0) await endings.pop()?.();
});

async function server(): Promise<NatsServer> {
  const started = await startNats();
  endings.push(() => started.stop());
  return started;
}

/** Always dials the first server first. */
async function safeBus(...servers: NatsServer[]): Promise<Bus> {
  const bus = await connectNatsBus({
    servers: servers.map(({ url }) => url),
    role: "ob",
    clock: realClock,
    random: () => 0,
    failFast: true,
  });
  endings.push(() => bus.close());
  return bus;
}

/** The plain client, with the settings that its own options allow. */
async function plainClient(...servers: NatsServer[]): Promise<NatsConnection> {
  const client = await connect({
    servers: servers.map(({ url }) => url),
    noRandomize: true,
    maxReconnectAttempts: -1,
    reconnectDelayHandler: () => 100,
    pingInterval: 500,
    maxPingOut: 2,
  });
  // A client whose reader has died or whose peer hangs cannot be closed in an orderly way.
  endings.push(async () => {
    internals(client).transport.socket?.destroy();
    void client.close();
  });
  return client;
}

interface Internals {
  readonly outbound: { size(): number };
  readonly transport: { readonly socket?: { readonly writableLength: number; destroy(): void } };
}
const internals = (client: NatsConnection): Internals =>
  (client as unknown as { protocol: Internals }).protocol;

/** Stops the process and sees that it is stopped. */
async function freeze(frozen: NatsServer): Promise<void> {
  await frozen.kill("SIGSTOP");
  const stopped = (): boolean =>
    / \(nats-server\) T /.test(` ${readFileSync(`/proc/${frozen.pid}/stat`, "utf8")}`);
  await until(stopped);
}
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
const megabyte = new Uint8Array(1024 * 1024);

it("N2: a server that hangs while we publish captures the client; the bus goes to the next", async () => {
  const [hung, healthy] = [await server(), await server()];
  const [client, bus] = [await plainClient(hung, healthy), await safeBus(hung, healthy)];
  const events: string[] = [];
  void (async () => {
    for await (const { type } of client.status()) events.push(type);
  })();
  const got: string[] = [];
  bus.subscribe("tg.test.a", (message) => void got.push(message.subject));
  await bus.flush();
  await freeze(hung);
  for (let count = 0; count < 8; count++) {
    client.publish("tg.test.b", megabyte);
    bus.publish("tg.test.b", megabyte);
  }
  await until(() => bus.state === "disconnected");
  await until(() => bus.state === "connected");
  expect(bus.totals).toMatchObject({ forcedCloses: 1, reconnects: 1, outboundBytes: 0 });
  const other = await safeBus(healthy);
  other.publish("tg.test.a", new Uint8Array(0));
  await until(() => got.length === 1);
  await until(() => events.includes("staleConnection"));
  await pause(1000);
  expect(events).not.toContain("disconnect");
  expect(client.getServer()).toBe(`127.0.0.1:${hung.port}`);
});

it("N3: a throwing callback deafens the client; the bus goes on", async () => {
  const one = await server();
  const [client, bus] = [await plainClient(one), await safeBus(one)];
  vi.spyOn(console, "log").mockImplementation(() => {});
  let [heardByClient, heardByBus] = [0, 0];
  const fail = (): never => {
    throw new Error("handler");
  };
  client.subscribe("tg.test.fail", { callback: fail });
  client.subscribe("tg.test.good", { callback: () => void heardByClient++ });
  bus.subscribe("tg.test.fail", fail);
  bus.subscribe("tg.test.good", () => void heardByBus++);
  await Promise.all([client.flush(), bus.flush()]);
  bus.publish("tg.test.fail", new Uint8Array(0));
  await until(() => bus.totals.handlerErrors === 1);
  await pause(50);
  bus.publish("tg.test.good", new Uint8Array(0));
  await until(() => heardByBus === 1);
  await bus.flush();
  let flushed = false;
  void client.flush().then(
    () => {
      flushed = true;
    },
    () => {},
  );
  await pause(300);
  expect([heardByClient, flushed]).toEqual([0, false]);
});

it("N4: a wall clock that steps back during an outage stops the client; the bus returns", async () => {
  const one = await server();
  const [client, bus] = [await plainClient(one), await safeBus(one)];
  let clientReturned = false;
  void (async () => {
    for await (const { type } of client.status()) clientReturned ||= type === "reconnect";
  })();
  await one.kill("SIGKILL");
  await until(() => bus.state === "disconnected");
  const wallNow = Date.now;
  vi.spyOn(Date, "now").mockImplementation(() => wallNow() - 3_600_000);
  await one.restart();
  await until(() => bus.state === "connected");
  await pause(1500);
  expect(clientReturned).toBe(false);
  vi.restoreAllMocks();
  await until(() => clientReturned);
});

it("N5: the client buffers without bound for a stuck server; the bus refuses", async () => {
  const one = await server();
  const [client, bus] = [await plainClient(one), await safeBus(one)];
  await freeze(one);
  const fill = (traffic: "data" | "control"): number => {
    let count = 0;
    const refused = (): boolean =>
      codeOf(() => bus.publish("tg.test.a", megabyte, { traffic })) === "bus_overloaded";
    while (count < 100 && !refused()) count += 1;
    return count;
  };
  const data = fill("data");
  expect(data).toBeGreaterThanOrEqual(8);
  expect(bus.totals.outboundBytes).toBeLessThan(outboundSoftBytes + 2 * megabyte.length);
  expect(fill("control")).toBeLessThan(40);
  expect(bus.totals.outboundBytes).toBeLessThan(outboundHardBytes + 2 * megabyte.length);
  for (let count = 0; count < 64; count++) client.publish("tg.test.a", megabyte);
  const { outbound, transport } = internals(client);
  const waiting = outbound.size() + (transport.socket?.writableLength ?? 0);
  expect(waiting).toBeGreaterThan(outboundHardBytes + 8 * megabyte.length);
});

it("N6: an unread iterator of the client queues without bound; the bus keeps nothing", async () => {
  const one = await server();
  const [client, bus] = [await plainClient(one), await safeBus(one)];
  const unread = client.subscribe("tg.test.a");
  let heard = 0;
  bus.subscribe("tg.test.a", () => void heard++);
  await Promise.all([client.flush(), bus.flush()]);
  for (let count = 0; count < 20_000; count++) bus.publish("tg.test.a", new Uint8Array(64));
  await until(() => heard === 20_000 && unread.getPending() === 20_000);
});

it("N7: names with line breaks forge messages through the client; the bus refuses them", async () => {
  const one = await server();
  const [client, bus] = [await plainClient(one), await safeBus(one)];
  const forged: string[] = [];
  bus.subscribe("tg.forged.*", (message) => void forged.push(message.subject));
  await bus.flush();
  const inject = (from: string): string => `0\r\n\r\nPUB tg.forged.${from} 2\r\nhi\r\n`;
  const subject = `tg.test ${inject("subject")}PUB tg.test`;
  const reply = `r ${inject("reply")}PUB tg.test`;
  const queue = `q 99\r\nPUB tg.forged.queue 2\r\nhi\r\nSUB tg.test.b`;
  client.publish(subject, megabyte.subarray(0, 1));
  client.publish("tg.test", megabyte.subarray(0, 1), { reply });
  client.subscribe("tg.test.a", { queue, callback: () => {} });
  await until(() => forged.length === 3);
  expect(forged).toEqual(["tg.forged.subject", "tg.forged.reply", "tg.forged.queue"]);
  const none = new Uint8Array(0);
  expect(codeOf(() => bus.publish(subject, none))).toBe("invalid_request");
  expect(codeOf(() => bus.publish("tg.test", none, { reply }))).toBe("invalid_request");
  expect(codeOf(() => bus.subscribe("tg.test.a", () => {}, queue))).toBe("invalid_request");
  expect(codeOf(() => bus.subscribe(subject, () => {}))).toBe("invalid_request");
  await bus.flush();
  expect(forged.length).toBe(3);
});

it("N8: a request in flight at a disconnect waits out its timeout on the client, not on the bus", async () => {
  const one = await server();
  const [client, bus] = [await plainClient(one), await safeBus(one)];
  const asked: string[] = [];
  bus.subscribe("tg.test.silent", (message) => void asked.push(message.reply ?? ""));
  await bus.flush();
  const ended: string[] = [];
  const options = { timeoutMs: 60_000 };
  const none = new Uint8Array(0);
  const ours = rejection(bus.request("tg.test.silent", none, options)).then((code) =>
    ended.push(`bus: ${code}`),
  );
  const theirs = client
    .request("tg.test.silent", none, { timeout: 1500 })
    .catch((error) => ended.push(`client: ${(error as { code: string }).code}`));
  await until(() => asked.length === 2);
  await one.kill("SIGKILL");
  await Promise.all([ours, theirs]);
  expect(ended).toEqual(["bus: disconnected", "client: TIMEOUT"]);
});

it("N11: a dial to a server that never speaks leaves the client's socket open, not the bus's", async () => {
  const silent = createServer().listen(0, "127.0.0.1");
  const open = new Set<Socket>();
  silent.on("connection", (socket) => {
    open.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => open.delete(socket));
  });
  await once(silent, "listening");
  const { port } = silent.address() as AddressInfo;
  const servers = [`127.0.0.1:${port}`];
  const clock = realClock;
  const ours = connectNatsBus({ servers, role: "ob", clock, random: () => 0, failFast: true });
  expect(await rejection(ours)).toBe("disconnected");
  await until(() => open.size === 0);
  await expect(connect({ servers, reconnect: false, timeout: 100 })).rejects.toThrow("TIMEOUT");
  await pause(200);
  expect(open.size).toBe(1);
  for (const socket of open) socket.destroy();
  silent.close();
});
