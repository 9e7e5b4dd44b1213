import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { natsAccess, natsServers, serversMax } from "../../src/runtime/nats-bus-credentials.ts";

const nothing = {
  servers: "nats://a:4222",
  credsFile: null,
  nkeySeedFile: null,
  caFile: null,
  certFile: null,
  keyFile: null,
};
const file = (text: string): string => {
  const path = join(mkdtempSync(join(tmpdir(), "tiergrid-creds-")), "file");
  writeFileSync(path, text);
  return path;
};

it.each<[string, object]>([
  ["nats://a:4222", { servers: ["nats://a:4222"] }],
  ["a:4222, tls://b", { servers: ["nats://a:4222", "tls://b"] }],
  [
    "nats://me:p%40ss:word@a:4222",
    { servers: ["nats://a:4222"], credentials: { user: "me", pass: "p@ss:word" } },
  ],
  ["nats://secret@a", { servers: ["nats://a"], credentials: { token: "secret" } }],
])("reads the servers %s", (text, expected) => {
  expect(natsServers(text)).toEqual(expected);
});

it("takes TLS and an authenticator from files", () => {
  const seed = "SUAAVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVU\n";
  const paths = { caFile: file("ca"), certFile: file("cert"), keyFile: file("key") };
  const access = natsAccess({ ...nothing, ...paths, nkeySeedFile: file(seed) });
  expect(access.tls).toEqual(paths);
  expect(access.credentials?.authenticator).toBeTypeOf("function");
});

it.each<[string, object, RegExp]>([
  ["two identities", { credsFile: "/a", nkeySeedFile: "/b" }, /exclude each other/],
  ["a certificate without its key", { certFile: "/a" }, /belong together/],
  ["a file that is not there", { caFile: "/nonexistent" }, /ENOENT/],
  ["an empty address", { servers: "nats://a,," }, /expected nats:\/\/host:port/],
  [
    "too many servers",
    {
      servers: Array(serversMax + 1)
        .fill("a")
        .join(","),
    },
    /at most 64/,
  ],
])("refuses %s, and never shows a secret", (_name, change, message) => {
  expect(() => natsAccess({ ...nothing, ...change })).toThrow(message);
  expect(() => natsAccess({ ...nothing, ...change })).toThrow(
    expect.objectContaining({ code: "config_invalid" }),
  );
});

it("takes as many servers as it says", () => {
  const servers = Array(serversMax).fill("a").join(",");
  expect(natsServers(servers).servers).toHaveLength(serversMax);
});
