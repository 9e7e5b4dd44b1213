import { connect, type NatsConnection } from "nats";
import { afterAll, beforeAll, expect, it } from "vitest";
import { realClock } from "../../src/base/clock.ts";
import { TiergridError } from "../../src/base/errors.ts";
import { osRandom } from "../../src/base/random.ts";
import type { Bus } from "../../src/runtime/bus.ts";
import { type MicroService, startMicroService } from "../../src/runtime/micro-service.ts";
import { connectNatsBus } from "../../src/runtime/nats-bus.ts";
import type { NatsServer } from "../../src/runtime/nats-server.ts";
import { startNats } from "./nats-fixture.ts";

let server: NatsServer;
let bus: Bus;
let plain: NatsConnection;
let service: MicroService;

beforeAll(async () => {
  server = await startNats();
  plain = await connect({ servers: server.url });
  const clock = realClock;
  bus = await connectNatsBus({ servers: [server.url], role: "lo", clock, random: osRandom });
  service = startMicroService({
    bus,
    clock,
    name: "tiergrid-local",
    id: "i1",
    version: "0.1.0",
    description: "KV router of one pool",
    metadata: { pool: "pool-1" },
  });
  const generate = service.addEndpoint({
    name: "generate",
    subject: "tg.ep.pool-1.router.generate",
  });
  generate.count(2);
  generate.count(4, new TiergridError("overloaded", "all busy"));
  await bus.flush();
});
afterAll(async () => {
  await plain.close();
  await bus.close();
  await server.stop();
});

const identity = {
  name: "tiergrid-local",
  id: "i1",
  version: "0.1.0",
  metadata: { pool: "pool-1" },
};

it.each(["", ".tiergrid-local", ".tiergrid-local.i1"])(
  "answers a plain client on $SRV.<verb>%s",
  async (suffix) => {
    const ask = async (verb: string): Promise<unknown> =>
      (await plain.request(`$SRV.${verb}${suffix}`)).json();
    expect(await ask("PING")).toEqual({ ...identity, type: "io.nats.micro.v1.ping_response" });
    expect(await ask("INFO")).toEqual({
      ...identity,
      type: "io.nats.micro.v1.info_response",
      description: "KV router of one pool",
      endpoints: [
        {
          name: "generate",
          subject: "tg.ep.pool-1.router.generate",
          queue_group: "q",
          metadata: {},
        },
      ],
    });
    expect(await ask("STATS")).toEqual({
      ...identity,
      type: "io.nats.micro.v1.stats_response",
      started: expect.stringMatching(/^\d{4}-\d\d-\d\dT.*Z$/),
      endpoints: [
        {
          name: "generate",
          subject: "tg.ep.pool-1.router.generate",
          queue_group: "q",
          num_requests: 2,
          num_errors: 1,
          last_error: "529:all busy",
          processing_time: 6_000_000,
          average_processing_time: 3_000_000,
        },
      ],
    });
  },
);

it("is found by the micro client of the nats package", async () => {
  const found = [];
  for await (const one of await plain.services.client().ping()) found.push(one.name);
  expect(found).toEqual(["tiergrid-local"]);
});

it("does not answer for another name or id", async () => {
  for (const suffix of [".other", ".tiergrid-local.i2"]) {
    await expect(plain.request(`$SRV.PING${suffix}`)).rejects.toMatchObject({ code: "503" });
  }
});
