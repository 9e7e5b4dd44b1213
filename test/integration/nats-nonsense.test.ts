import { type AddressInfo, createServer, type Socket } from "node:net";
import { expect, it } from "vitest";
import { realClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { connectNatsBus } from "../../src/runtime/nats-bus.ts";
import { until } from "../runtime/bus-conformance.ts";

const greeting = {
  ...{ server_id: "x", version: "2.12.12", proto: 1, headers: true, max_payload: 1_048_576 },
  ...{ host: "127.0.0.1", port: 4222 },
};

/** Greets and answers pings as a NATS server does; `sockets` are its clients. */
async function startGreeter() {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {}).on("close", () => sockets.delete(socket));
    socket.write(`INFO ${JSON.stringify(greeting)}\r\n`);
    socket.on("data", (bytes) => {
      for (const _ of bytes.toString("latin1").matchAll(/^PING\r$/gm)) socket.write("PONG\r\n");
    });
  }).listen(0, "127.0.0.1");
  await until(() => server.listening);
  const { port } = server.address() as AddressInfo;
  return { server, sockets, url: `nats://127.0.0.1:${port}` };
}

it("leaves a connection that speaks no NATS any more, and dials again", async () => {
  const { server, sockets, url } = await startGreeter();
  const errors: unknown[] = [];
  const bus = await connectNatsBus({
    ...{ servers: [url], role: "fe", clock: realClock, random: mulberry32(5) },
    onTrouble: (error) => void errors.push(error),
  });
  try {
    const states: string[] = [];
    bus.onState((state) => states.push(state));
    expect(bus.state).toBe("connected");
    for (const socket of sockets) socket.write("NONSENSE\r\n");
    await until(() => states.length === 2);
    expect(states).toEqual(["disconnected", "connected"]);
    expect(bus.totals.reconnects).toBe(1);
    expect(String(errors[0])).toMatch(/parse error/i);
  } finally {
    await bus.close();
    for (const socket of sockets) socket.destroy();
    server.close();
  }
});
