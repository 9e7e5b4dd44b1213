import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import {
  checkPublishSubject,
  checkSubscribeSubject,
  endpointSubject,
  isForeignReply,
  parseEndpointPath,
  subjectToken,
} from "../../src/protocol/subjects.ts";

interface Case {
  readonly name: string;
  readonly input_utf16: string;
  readonly recommended_token?: string;
}
const golden = JSON.parse(
  readFileSync(new URL("../golden/subject-tokens.json", import.meta.url), "utf8"),
) as { cases: Case[] };

function fromUtf16(hex: string): string {
  const units = hex.match(/.{4}/g) ?? [];
  return String.fromCharCode(...units.map((unit) => Number.parseInt(unit, 16)));
}

it.each(golden.cases)("encodes the name '$name' as the golden token or refuses it", (given) => {
  const name = fromUtf16(given.input_utf16);
  if (given.recommended_token === undefined) expect(() => subjectToken(name)).toThrow();
  else {
    expect(subjectToken(name)).toBe(given.recommended_token);
    expect(() => checkPublishSubject(`tg.hb.${subjectToken(name)}`)).not.toThrow();
  }
});

it("gives every accepted name its own token", () => {
  const tokens = golden.cases
    .filter((given) => given.recommended_token !== undefined)
    .map((given) => subjectToken(fromUtf16(given.input_utf16)));
  expect(new Set(tokens).size).toBe(tokens.length);
});

it.each([
  "tg.hb.a b",
  "tg.hb.a\r\nPUB x 1\r\n",
  "tg.hb.*",
  "tg..a",
  "$SYS.REQ",
  `tg.${"a".repeat(600)}`,
  "",
])("refuses to publish to %j", (subject) => {
  expect(() => checkPublishSubject(subject)).toThrow();
});

it("refuses subscriptions that leave the root or inject a line", () => {
  for (const subject of [">", "tg.hb.\r\nSUB", "foo.*", "tg.h*", "$SYS.>"]) {
    expect(() => checkSubscribeSubject(subject)).toThrow();
  }
  for (const subject of ["tg.hb.*", "_R.fe.x.>", "$SRV.PING.tiergrid"]) {
    expect(() => checkSubscribeSubject(subject)).not.toThrow();
  }
});

it("accepts the inbox of a foreign client as a reply, but no wildcard, root or system subject", () => {
  expect(isForeignReply("_INBOX.AbC.1")).toBe(true);
  for (const subject of ["a.*", "a.>", "$JS.ACK.x", "tg.w.1.gen", "a b", ""]) {
    expect(isForeignReply(subject)).toBe(false);
  }
});

it("parses an endpoint path and names the expected form when it is not one", () => {
  const path = parseEndpointPath("pool-1.backend.generate");
  expect(endpointSubject(path)).toBe("tg.ep.pool-1.backend.generate");
  expect(() => parseEndpointPath("a.b")).toThrow(/Expected format: namespace\.component\.endpoint/);
});
