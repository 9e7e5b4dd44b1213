import { connect } from "nats";
import { expect, it } from "vitest";
import { realClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { durableEventSubject } from "../../src/protocol/subjects.ts";
import { type DurableLog, durableNames } from "../../src/runtime/durable-log.ts";
import { createNatsDurableLog } from "../../src/runtime/nats-durable-log.ts";
import { rejection } from "../runtime/bus-conformance.ts";
import { durableLogConformance, testNamespace } from "../runtime/durable-log-conformance.ts";
import { startJetStream, startNats } from "./nats-fixture.ts";

const random = mulberry32(3);

function logAt(url: string, component: string): DurableLog {
  const names = durableNames(testNamespace, component);
  return createNatsDurableLog({ servers: [url], names, role: "lo", clock: realClock, random });
}

durableLogConformance(async () => {
  const server = await startJetStream();
  return { connect: (component) => logAt(server.url, component), stop: () => server.stop() };
});

it("says at once that a server keeps no streams", async () => {
  const server = await startNats();
  const log = logAt(server.url, "c");
  await expect(log.open()).rejects.toThrow(/need JetStream.*nats-server -js/);
  expect(await rejection(log.open())).toBe("config_invalid");
  await log.close();
  await server.stop();
});

it("fails while the server is away and goes on where it was when it is back", async () => {
  const server = await startJetStream();
  const log = logAt(server.url, "c");
  const subject = durableEventSubject({ namespace: testNamespace, component: "c" }, "1", 0);
  await log.open();
  await log.append(subject, new Uint8Array(1));
  const consumer = await log.consumer("router-1", 1);
  const waiting = consumer.next(1).then(() => consumer.next(30_000));
  waiting.catch(() => {});
  await server.kill("SIGKILL");
  expect(await rejection(waiting)).toBe("disconnected");
  expect(await rejection(log.append(subject, new Uint8Array(1)))).toBe("disconnected");
  await server.restart();
  expect(await log.append(subject, new Uint8Array(2))).toBe(2);
  const seen: number[] = [];
  const again = await log.consumer("router-1", 1);
  const batch = await again.next(1_000);
  seen.push(...batch.messages.map(({ sequence }) => sequence));
  expect(seen).toContain(2);
  await log.close();
  await server.stop();
});

it("tells what vanished on the server: chunks of an object, the stream", async () => {
  const server = await startJetStream();
  const log = logAt(server.url, "c");
  const { stream, bucket } = durableNames(testNamespace, "c");
  const subject = durableEventSubject({ namespace: testNamespace, component: "c" }, "1", 0);
  await log.open();
  await log.putObject("radix-state", [new Uint8Array(300_000)], "7 x");
  const consumer = await log.consumer("router-1", 1);
  const operator = await connect({ servers: [server.url] });
  const { streams } = await operator.jetstreamManager();
  await streams.purge(`OBJ_${bucket}`, { filter: `$O.${bucket}.C.>`, keep: 2 });
  expect(await rejection(log.getObject("radix-state"))).toBe("malformed_reply");
  expect(await log.noteOf("radix-state")).toBe("7 x");
  await streams.delete(stream);
  expect(await rejection(log.append(subject, new Uint8Array(1)))).toBe("not_found");
  expect(await rejection(log.state())).toBe("not_found");
  expect(await rejection(consumer.next(1))).toBe("not_found");
  await log.open();
  expect(await log.append(subject, new Uint8Array(1))).toBe(1);
  await operator.close();
  await log.close();
  await server.stop();
});
