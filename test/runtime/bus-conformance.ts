/** What every bus promises, as tests: the in-process bus and the real one both run them all. */
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { ErrorCode } from "../../src/base/errors.ts";
import { TiergridError } from "../../src/base/errors.ts";
import type { BusRole } from "../../src/protocol/subjects.ts";
import type { Bus, BusMessage } from "../../src/runtime/bus.ts";

const golden = JSON.parse(
  readFileSync(new URL("../golden/subject-tokens.json", import.meta.url), "utf8"),
) as {
  readonly cases: readonly {
    readonly input_utf16: string;
    readonly passthrough?: boolean;
    readonly recommended_token?: string;
  }[];
};

export interface BusUnderTest {
  /** A connection of the same network; connected when it resolves. */
  connect(role: BusRole): Promise<Bus>;
  stop(): Promise<void>;
}

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const text = (message: BusMessage): string => new TextDecoder().decode(message.payload);

/** A minute or more; what is waited for takes milliseconds where nothing else has the cores. */
const turnsMax = 60_000;

/** Waits for `done` by turns of the event loop; fails the test when it never comes. */
export async function until(done: () => boolean): Promise<void> {
  for (let turn = 0; turn < turnsMax && !done(); turn++) {
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  expect(done()).toBe(true);
}

export function codeOf(run: () => unknown): ErrorCode | undefined {
  try {
    run();
  } catch (error) {
    if (error instanceof TiergridError) return error.code;
    throw error;
  }
  return undefined;
}

export async function rejection(promise: Promise<unknown>): Promise<ErrorCode | undefined> {
  try {
    await promise;
  } catch (error) {
    return codeOf(() => {
      throw error;
    });
  }
  return undefined;
}

export function busConformance(start: () => Promise<BusUnderTest>): void {
  let network: BusUnderTest;
  let near: Bus;
  let far: Bus;
  let counter = 0;
  /** A subject of its own for each test, because tests share the network. */
  const fresh = (): string => `tg.test.s${counter++}`;
  /** Subscribes on `bus` and waits until the server knows. */
  async function collect(bus: Bus, subject: string, queue?: string): Promise<BusMessage[]> {
    const got: BusMessage[] = [];
    bus.subscribe(subject, (message) => void got.push(message), queue);
    await bus.flush();
    return got;
  }

  beforeAll(async () => {
    network = await start();
    near = await network.connect("fe");
    far = await network.connect("wk");
  });
  afterAll(() => network.stop());

  it("carries payload, reply and headers unchanged", async () => {
    const subject = fresh();
    const got = await collect(far, subject);
    const headers = new Map([["Trace", "a: b"]]);
    near.publish(subject, bytes("hello"), { reply: `${near.inboxPrefix}.x`, headers });
    near.publish(subject, new Uint8Array(0));
    await until(() => got.length === 2);
    expect(text(got[0]!)).toBe("hello");
    expect(got[0]!.subject).toBe(subject);
    expect(got[0]!.reply).toBe(`${near.inboxPrefix}.x`);
    expect(got[0]!.headers?.get("Trace")).toBe("a: b");
    expect(got[1]!.payload.length).toBe(0);
    expect(got[1]!.reply).toBeUndefined();
    expect(got[1]!.headers).toBeUndefined();
  });

  it("delivers to a connection's own subscriptions too", async () => {
    const subject = fresh();
    const got = await collect(near, subject);
    near.publish(subject, bytes("self"));
    await until(() => got.length === 1);
  });

  it("keeps the order of one publisher on one subject", async () => {
    const subject = fresh();
    const got = await collect(far, subject);
    for (let index = 0; index < 2000; index++) near.publish(subject, bytes(String(index)));
    await until(() => got.length === 2000);
    expect(got.map(text)).toEqual(Array.from({ length: 2000 }, (_, index) => String(index)));
  });

  it("matches * to one token and > to one or more", async () => {
    const root = fresh();
    const star = await collect(far, `${root}.*`);
    const rest = await collect(far, `${root}.>`);
    const middle = await collect(far, `${root}.*.c`);
    for (const subject of [root, `${root}.a`, `${root}.b.c`, `${root}.b.c.d`]) {
      near.publish(subject, bytes(""));
    }
    await until(() => rest.length === 3);
    expect(star.map((message) => message.subject)).toEqual([`${root}.a`]);
    expect(middle.map((message) => message.subject)).toEqual([`${root}.b.c`]);
  });

  it("gives each message to one member of a queue group and to every plain subscriber", async () => {
    const subject = fresh();
    const members = [
      await collect(far, subject, "q"),
      await collect(near, subject, "q"),
      await collect(far, subject, "q"),
    ];
    const plain = await collect(far, subject);
    for (let index = 0; index < 300; index++) near.publish(subject, bytes(String(index)));
    const total = (): number => members.reduce((sum, got) => sum + got.length, 0);
    await until(() => plain.length === 300 && total() === 300);
    for (const got of members) expect(got.length).toBeGreaterThan(0);
  });

  it("stops delivering after unsubscribe, twice is once", async () => {
    const subject = fresh();
    const kept = await collect(far, subject);
    const got: BusMessage[] = [];
    const subscription = far.subscribe(subject, (message) => void got.push(message));
    await far.flush();
    near.publish(subject, bytes("1"));
    await until(() => got.length === 1 && kept.length === 1);
    subscription.unsubscribe();
    subscription.unsubscribe();
    await far.flush();
    near.publish(subject, bytes("2"));
    await until(() => kept.length === 2);
    expect(got.length).toBe(1);
  });

  it("survives handlers that throw or reject, and counts them", async () => {
    const subject = fresh();
    const before = far.totals.handlerErrors;
    far.subscribe(subject, () => {
      throw new Error("sync");
    });
    far.subscribe(subject, () => Promise.reject(new Error("async")));
    far.subscribe(subject, (() => 7) as () => void);
    far.subscribe(subject, () => far.publish(`${subject}.b`, bytes("")));
    const got = await collect(far, subject);
    near.publish(subject, bytes("1"));
    near.publish(subject, bytes("2"));
    await until(() => got.length === 2 && far.totals.handlerErrors === before + 4);
    await far.flush();
  });

  it("answers a request with the reply", async () => {
    const subject = fresh();
    far.subscribe(subject, (message) => {
      far.publish(message.reply ?? "", bytes(`re: ${text(message)}`));
    });
    await far.flush();
    const replies = await Promise.all(
      ["a", "b", "c"].map((ask) => near.request(subject, bytes(ask), { timeoutMs: 2000 })),
    );
    expect(replies.map(text)).toEqual(["re: a", "re: b", "re: c"]);
  });

  it("tells apart the replies that one turn gives to many requests", async () => {
    const subject = fresh();
    const waiting: BusMessage[] = [];
    const count = 500;
    far.subscribe(subject, (message) => {
      if (waiting.push(message) < count) return;
      for (const { reply = "", payload } of waiting.reverse()) far.publish(reply, payload);
    });
    await far.flush();
    const sizes = Array.from({ length: count }, (_, index) => (31 * index) % 1_300);
    const asked = sizes.map((size, index) => {
      return near.request(subject, new Uint8Array(size).fill(index), { timeoutMs: 5000 });
    });
    const replies = (await Promise.all(asked)).map(({ payload }) => payload);
    expect(replies.map(({ length }) => length)).toEqual(sizes);
    for (const [index, payload] of replies.entries()) {
      expect(payload.every((byte) => byte === (index & 255))).toBe(true);
    }
  });

  it("passes an empty reply on", async () => {
    const subject = fresh();
    far.subscribe(subject, (message) => far.publish(message.reply ?? "", new Uint8Array(0)));
    await far.flush();
    const reply = await near.request(subject, bytes(""), { timeoutMs: 2000 });
    expect(reply.payload.length).toBe(0);
  });

  it("rejects a request that nobody serves with no_responders", async () => {
    expect(await rejection(near.request(fresh(), bytes(""), { timeoutMs: 5000 }))).toBe(
      "no_responders",
    );
  });

  it("rejects a request that nobody answers with request_timeout", async () => {
    const subject = fresh();
    await collect(far, subject);
    expect(await rejection(near.request(subject, bytes(""), { timeoutMs: 20 }))).toBe(
      "request_timeout",
    );
  });

  it("ends a request by its signal, before and after it was sent", async () => {
    const subject = fresh();
    const got = await collect(far, subject);
    const early = { timeoutMs: 2000, signal: AbortSignal.abort() };
    expect(await rejection(near.request(subject, bytes(""), early))).toBe("cancelled");
    const abort = new AbortController();
    const late = near.request(subject, bytes(""), { timeoutMs: 2000, signal: abort.signal });
    await until(() => got.length === 1);
    abort.abort();
    expect(await rejection(late)).toBe("cancelled");
  });

  it("refuses a payload above the maximum and takes one at the maximum", async () => {
    const subject = fresh();
    const got = await collect(far, subject);
    const most = new Uint8Array(near.maxPayloadBytes);
    expect(codeOf(() => near.publish(subject, new Uint8Array(most.length + 1)))).toBe(
      "payload_too_large",
    );
    near.publish(subject, most);
    await until(() => got.length === 1);
    expect(got[0]!.payload.length).toBe(most.length);
  });

  it("sheds data first and control later when too much waits to be sent", async () => {
    const subject = fresh();
    await collect(far, subject);
    const bus = await network.connect("ob");
    const chunk = new Uint8Array(1024 * 1024);
    let data = 0;
    while (codeOf(() => bus.publish(subject, chunk)) === undefined && data < 100) data += 1;
    expect(data).toBeGreaterThanOrEqual(8);
    expect(data).toBeLessThan(100);
    expect(codeOf(() => bus.publish(subject, chunk, { traffic: "control" }))).toBeUndefined();
    expect(bus.totals.shedMessages).toBe(1);
    await bus.close();
  });

  it.each([
    "tg.a b",
    "tg.a\r\nPUB tg.b 0\r\n\r\n",
    "tg.*",
    "tg.>",
    "$SYS.REQ.SERVER.PING",
    "",
    "tg..a",
  ])("refuses to publish to %j", (subject) => {
    expect(codeOf(() => near.publish(subject, bytes("")))).toBe("invalid_request");
    const reply = subject;
    if (subject !== "") {
      expect(codeOf(() => near.publish("tg.test.x", bytes(""), { reply }))).toBe("invalid_request");
    }
  });

  it("refuses every golden name that stands in a subject without being encoded", () => {
    for (const { input_utf16: hex, passthrough, recommended_token: token } of golden.cases) {
      const units = (hex.match(/.{4}/g) ?? []).map((unit) => Number.parseInt(unit, 16));
      const name = String.fromCharCode(...units);
      const code = codeOf(() => near.publish(`tg.test.${name}`, bytes("")));
      // Dots make more tokens and `=` is a legal character: such names stay inside the subject.
      const harmless = passthrough === true || /^[A-Za-z0-9_=-]+(?:\.[A-Za-z0-9_=-]+)*$/.test(name);
      if (!harmless) expect([name, code]).toEqual([name, "invalid_request"]);
      if (token) expect(codeOf(() => near.publish(`tg.test.${token}`, bytes("")))).toBeUndefined();
    }
  });

  it("refuses subscriptions outside its roots, foreign queues and headers that break lines", () => {
    for (const subject of [">", "*", "tg.a\r\nSUB > 9", "$SYS.>", "other.a"]) {
      expect(codeOf(() => near.subscribe(subject, () => {}))).toBe("invalid_request");
    }
    expect(codeOf(() => near.subscribe("tg.a", () => {}, "q 1\r\nPUB"))).toBe("invalid_request");
    for (const header of [
      ["A\r\nB", "c"],
      ["A", "b\r\nC: d"],
      ["A:B", "c"],
      ["", "c"],
    ] as const) {
      const headers = new Map([header]);
      expect(codeOf(() => near.publish("tg.a", bytes(""), { headers }))).toBe("invalid_request");
    }
  });

  it("gives every connection a private inbox whose subjects need no announcement", async () => {
    expect(near.inboxPrefix).not.toBe(far.inboxPrefix);
    expect(near.inboxPrefix).toMatch(/^_R\.fe\.[0-9a-z]+$/);
    const got: BusMessage[] = [];
    near.subscribe(`${near.inboxPrefix}.st.7`, (message) => void got.push(message));
    far.publish(`${near.inboxPrefix}.st.7`, bytes("frame"));
    await until(() => got.length === 1);
  });

  it("counts messages and bytes in and out", async () => {
    const subject = fresh();
    const got = await collect(far, subject);
    const out = { ...near.totals };
    const into = { ...far.totals };
    near.publish(subject, bytes("12345"));
    await until(() => got.length === 1);
    expect(near.totals.messagesOut - out.messagesOut).toBe(1);
    expect(near.totals.bytesOut - out.bytesOut).toBe(5);
    expect(far.totals.messagesIn - into.messagesIn).toBe(1);
    expect(far.totals.bytesIn - into.bytesIn).toBe(5);
  });

  it("delivers what was published before close, and refuses everything after it", async () => {
    const subject = fresh();
    const got = await collect(far, subject);
    await collect(far, `${subject}.slow`);
    const bus = await network.connect("ob");
    const states: string[] = [];
    bus.onState((state) => states.push(state));
    const asked = rejection(bus.request(`${subject}.slow`, bytes(""), { timeoutMs: 5000 }));
    bus.publish(subject, bytes("last words"));
    await bus.close();
    await bus.close();
    expect(await asked).toBe("bus_closed");
    expect(states).toEqual(["closed"]);
    expect(bus.state).toBe("closed");
    expect(codeOf(() => bus.publish(subject, bytes("")))).toBe("bus_closed");
    expect(codeOf(() => bus.subscribe(subject, () => {}))).toBe("bus_closed");
    expect(await rejection(bus.request(subject, bytes(""), { timeoutMs: 10 }))).toBe("bus_closed");
    expect(await rejection(bus.flush())).toBe("bus_closed");
    await until(() => got.length === 1);
  });
}
