import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { TiergridError } from "../../src/base/errors.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";
import {
  endpointsMax,
  serviceErrorHeaders,
  startMicroService,
} from "../../src/runtime/micro-service.ts";

function rig() {
  const clock = new ManualClock();
  const network = createMemoryNetwork({ clock, random: mulberry32(1) });
  const bus = network.connect({ role: "lo" });
  const service = startMicroService({
    bus,
    clock,
    name: "tiergrid-local",
    id: "pool 1",
    version: "0.1.0",
    description: "KV router of one pool",
  });
  return { clock, network, bus, service };
}

it("refuses the endpoint beyond the maximum, a bad subject and a bad name", () => {
  const { service, bus, clock } = rig();
  expect(() => service.addEndpoint({ name: "x", subject: "a b" })).toThrow("not a subject");
  for (let index = 0; index < endpointsMax; index++) {
    service.addEndpoint({ name: `e${index}`, subject: `tg.ep.a.b.e${index}` });
  }
  expect(() => service.addEndpoint({ name: "x", subject: "tg.ep.a.b.x" })).toThrow("at most 64");
  const wrong = { bus, clock, id: "1", version: "0.1.0", description: "" };
  expect(() => startMicroService({ ...wrong, name: "a.b" })).toThrow("not a service name");
});

it("answers nothing after stop", async () => {
  const { clock, network, service } = rig();
  const asker = network.connect({ role: "ob" });
  const ask = asker.request("$SRV.PING", new Uint8Array(0), { timeoutMs: 10 });
  clock.advanceTo(1);
  expect(JSON.parse(new TextDecoder().decode((await ask).payload))).toMatchObject({
    name: "tiergrid-local",
  });
  service.stop();
  const again = asker.request("$SRV.PING", new Uint8Array(0), { timeoutMs: 10 });
  clock.advanceTo(2);
  await expect(again).rejects.toMatchObject({ code: "no_responders" });
});

it("makes one-line headers of an error", () => {
  const headers = serviceErrorHeaders(new TiergridError("payload_too_large", "9 MB\r\nX: 1"));
  expect([...headers]).toEqual([
    ["Nats-Service-Error", "9 MB X: 1"],
    ["Nats-Service-Error-Code", "413"],
  ]);
});
