import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";
import { realClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { connectNatsBus } from "../../src/runtime/nats-bus.ts";
import { until } from "../runtime/bus-conformance.ts";
import { startNats } from "./nats-fixture.ts";

/** Self-signed for 127.0.0.1, good for these tests and nothing else. */
const file = (name: string): string => fileURLToPath(new URL(`tls/${name}`, import.meta.url));
const certificate = file("test-only-cert.pem");
const tlsBlock = `tls { cert_file: "${certificate}", key_file: "${file("test-only-key.pem")}" }\n`;
const authority = { ca: readFileSync(certificate, "utf8") };
const base = { role: "fe", clock: realClock, random: mulberry32(5), failFast: true } as const;

/** Around the 64 KiB that one read takes, and in one write with others. */
const sizes = [1, 511, 65_535, 65_536, 65_537, 200_000, 3, 900_000, 17];
const byteOf = (size: number, at: number): number => (at * 31 + size) % 251;
const bodyOf = (size: number): Uint8Array =>
  Uint8Array.from({ length: size }, (_, at) => byteOf(size, at));

it.each([
  ["a server that asks for it after its greeting", tlsBlock, authority],
  ["a server that also takes plain connections", `${tlsBlock}allow_non_tls: true\n`, authority],
  ["no TLS", "", undefined],
])("carries every byte with %s", async (_, configText, tls) => {
  const server = await startNats(configText);
  const bus = await connectNatsBus({ ...base, servers: [server.url], ...(tls && { tls }) });
  try {
    const got: Uint8Array[] = [];
    bus.subscribe("tg.test.tls", ({ payload }) => void got.push(payload));
    await bus.flush();
    for (const size of sizes) bus.publish("tg.test.tls", bodyOf(size));
    await until(() => got.length === sizes.length);
    expect(got.map((bytes) => bytes.length)).toEqual(sizes);
    expect(got.every((bytes) => Buffer.from(bytes).equals(bodyOf(bytes.length)))).toBe(true);
    expect(bus.totals.handlerErrors).toBe(0);
  } finally {
    await bus.close();
    await server.stop();
  }
});

it("refuses a server whose certificate nobody vouches for", async () => {
  const server = await startNats(tlsBlock);
  try {
    await expect(connectNatsBus({ ...base, servers: [server.url], tls: {} })).rejects.toThrow(
      /self-signed|no server/,
    );
  } finally {
    await server.stop();
  }
});
