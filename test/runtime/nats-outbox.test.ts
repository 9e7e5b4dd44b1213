import fc from "fast-check";
import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { readReplies } from "../../src/protocol/reply-bundle.ts";
import type { PublishOptions } from "../../src/runtime/bus.ts";
import { NatsOutbox } from "../../src/runtime/nats-outbox.ts";

/** A socket that keeps what it was given, by reference, as one that waits for its peer does. */
function slowSocket() {
  const writes: Uint8Array[] = [];
  return {
    writes,
    writableLength: 1,
    write: (bytes: Uint8Array) => void writes.push(bytes),
    cork() {},
    uncork() {},
  };
}

function outboxOn(socket: ReturnType<typeof slowSocket> | undefined) {
  const clock = new ManualClock();
  return { clock, outbox: new NatsOutbox(() => socket, clock) };
}

const textOf = (writes: readonly Uint8Array[]): string => Buffer.concat(writes).toString("latin1");

/** The protocol's text, as its documentation spells it. */
function expected(subject: string, payload: Uint8Array, options?: PublishOptions): string {
  const to = [subject, ...(options?.reply === undefined ? [] : [options.reply])].join(" ");
  const body = Buffer.from(payload).toString("latin1");
  if (!options?.headers) return `PUB ${to} ${payload.length}\r\n${body}\r\n`;
  const lines = ["NATS/1.0", ...[...options.headers].map(([name, value]) => `${name}: ${value}`)];
  const head = Buffer.from(`${lines.join("\r\n")}\r\n\r\n`);
  const sizes = `${head.length} ${head.length + payload.length}`;
  return `HPUB ${to} ${sizes}\r\n${head.toString("latin1")}${body}\r\n`;
}

it("writes what one loop turn publishes in one write", () => {
  const socket = slowSocket();
  const { clock, outbox } = outboxOn(socket);
  outbox.publish("tg.a", Buffer.from("one"), undefined);
  outbox.publish("tg.b", Buffer.from(""), { reply: "_R.x.1" });
  expect(socket.writes).toEqual([]);
  clock.advanceTo(0);
  expect(socket.writes).toHaveLength(1);
  expect(textOf(socket.writes)).toBe("PUB tg.a 3\r\none\r\nPUB tg.b _R.x.1 0\r\n\r\n");
  expect(outbox.bytes).toBe(0);
});

/** A loop whose every turn takes a tenth of a millisecond. */
function slowLoop() {
  let nowMs = 0;
  const due: (() => void)[] = [];
  const after = (_: number, fire: () => void): (() => void) => {
    due.push(fire);
    return () => {};
  };
  const turn = (): void => {
    nowMs += 0.1;
    for (const fire of due.splice(0)) fire();
  };
  return { clock: { nowMs: () => nowMs, wallMs: () => nowMs, after }, turn };
}

it("shares a write among turns that follow closely, until one adds nothing", () => {
  const socket = slowSocket();
  const loop = slowLoop();
  const outbox = new NatsOutbox(() => socket, loop.clock);
  const writesAfter = (subject: string | undefined): number => {
    if (subject) outbox.publish(subject, Buffer.from("x"), undefined);
    loop.turn();
    return socket.writes.length;
  };
  expect(["tg.a", "tg.b", "tg.c", undefined, undefined].map(writesAfter)).toEqual([1, 1, 1, 2, 2]);
  expect(textOf(socket.writes.slice(1))).toBe("PUB tg.b 1\r\nx\r\nPUB tg.c 1\r\nx\r\n");
});

it("writes a millisecond after the last write, although every turn adds something", () => {
  const socket = slowSocket();
  const loop = slowLoop();
  const outbox = new NatsOutbox(() => socket, loop.clock);
  const waitingMs: number[] = [];
  let writtenMs = 0;
  for (let turn = 0; turn < 100; turn++) {
    const before = socket.writes.length;
    outbox.publish("tg.a", Buffer.from("x"), undefined);
    loop.turn();
    if (socket.writes.length === before) continue;
    waitingMs.push(loop.clock.nowMs() - writtenMs);
    writtenMs = loop.clock.nowMs();
  }
  expect(waitingMs.length).toBeGreaterThan(7);
  expect(Math.max(...waitingMs)).toBeLessThan(1.15);
});

it("makes one message of the replies to a requester that have nothing between them", () => {
  const socket = slowSocket();
  const { clock, outbox } = outboxOn(socket);
  const publish = (subject: string, reply?: string): void =>
    outbox.publish(subject, Buffer.from("x"), reply === undefined ? undefined : { reply });
  for (const id of ["1", "2", "z"]) publish(`_R.fe.a.rq.${id}`);
  publish("_R.fe.b.rq.1");
  publish("tg.a");
  publish("_R.fe.a.rq.3");
  publish("_R.fe.a.rq.4", "_R.fe.c.rq.1");
  publish("_R.fe.a.s");
  const bundle = ["1", "2", "z"].map((id) => `\x01${id}\x01\0\0\0x`).join("");
  expect(outbox.bytes).toBeGreaterThan(0);
  clock.advanceTo(0);
  const single = (to: string): string => `PUB ${to} 1\r\nx\r\n`;
  const wanted = [
    `PUB _R.fe.a.rq ${bundle.length}\r\n${bundle}\r\n`,
    ...["_R.fe.b.rq.1", "tg.a", "_R.fe.a.rq.3", "_R.fe.a.rq.4 _R.fe.c.rq.1", "_R.fe.a.s"].map(
      single,
    ),
  ];
  expect(textOf(socket.writes)).toBe(wanted.join(""));
  expect([socket.writes.length, outbox.bytes]).toEqual([1, 0]);
});

it("keeps the order of replies among other messages, whatever their sizes", () => {
  const to = fc.constantFrom("_R.fe.a.rq.", "_R.fe.ab.rq.", "tg.a.");
  const message = fc.record({
    to,
    size: fc.oneof(fc.nat(50), fc.nat(9_000), fc.constantFrom(15_990, 15_994, 15_995, 16_384)),
    turnEnds: fc.nat(4).map((draw) => draw === 0),
  });
  fc.assert(
    fc.property(fc.array(message, { maxLength: 40 }), (messages) => {
      const socket = pacedSocket();
      const clock = new ManualClock();
      const outbox = new NatsOutbox(() => socket, clock);
      const sent = messages.map(({ to, size, turnEnds }, index) => {
        const [subject, payload] = [`${to}${index}`, Buffer.alloc(size, index)];
        outbox.publish(subject, payload, undefined);
        payload.fill(255, 0, size < 16_384 ? size : 0);
        if (turnEnds) clock.advanceTo(clock.nowMs() + 2);
        return [subject, size, size === 0 ? -1 : index];
      });
      outbox.flush();
      expect(received(socket.text())).toEqual(sent);
    }),
    { seed: 1123, numRuns: 300 },
  );
});

/** What a subscriber of everything gets, bundles taken apart: subject, size and first byte. */
function received(text: string): [string, number, number][] {
  const bytes = Buffer.from(text, "latin1");
  const found: [string, number, number][] = [];
  for (let at = 0; at < bytes.length; ) {
    const end = bytes.indexOf("\r\n", at);
    const [, subject = "", size = ""] = bytes.toString("latin1", at, end).split(" ");
    const payload = bytes.subarray(end + 2, end + 2 + Number(size));
    if (!subject.endsWith(".rq")) found.push([subject, payload.length, payload[0] ?? -1]);
    else {
      readReplies(payload, (id, one) => found.push([`${subject}.${id}`, one.length, one[0] ?? -1]));
    }
    at = end + 4 + Number(size);
  }
  return found;
}

it("writes at once when told to flush, and nothing more at the turn's end", () => {
  const socket = slowSocket();
  const { clock, outbox } = outboxOn(socket);
  outbox.publish("tg.a", Buffer.from("one"), undefined);
  outbox.flush();
  clock.advanceTo(0);
  expect(socket.writes).toHaveLength(1);
});

it("does not copy a large payload", () => {
  const socket = slowSocket();
  const { outbox } = outboxOn(socket);
  const payload = Buffer.alloc(100_000, 120);
  outbox.publish("tg.a", payload, undefined);
  expect(socket.writes).toContain(payload);
  expect(textOf(socket.writes)).toBe(expected("tg.a", payload));
});

it("loses what is published while the connection has no socket", () => {
  const { clock, outbox } = outboxOn(undefined);
  outbox.publish("tg.a", Buffer.from("one"), undefined);
  clock.advanceTo(0);
  expect(outbox.bytes).toBe(0);
});

it("writes every message whole and in order, whatever its size and headers", () => {
  const message = fc.record({
    size: fc.oneof(fc.nat(200), fc.nat(40_000), fc.constantFrom(16_383, 16_384, 65_536)),
    fill: fc.nat(255),
    reply: fc.option(fc.constant("_R.wk.1"), { nil: undefined }),
    header: fc.option(fc.string({ unit: "grapheme", maxLength: 20 }), { nil: undefined }),
    turnEnds: fc.boolean(),
    peer: fc.constantFrom("reads", "stops", "same"),
  });
  fc.assert(
    fc.property(fc.array(message, { maxLength: 30 }), (messages) => {
      const socket = pacedSocket();
      const clock = new ManualClock();
      const outbox = new NatsOutbox(() => socket, clock);
      let text = "";
      for (const { size, fill, reply, header, turnEnds, peer } of messages) {
        if (peer !== "same") socket.reading(peer === "reads");
        const headers = header === undefined ? {} : { headers: new Map([["h", header]]) };
        const options = { ...(reply === undefined ? {} : { reply }), ...headers };
        const payload = Buffer.alloc(size, fill);
        outbox.publish("tg.a", payload, options);
        text += expected("tg.a", payload, options);
        if (turnEnds) clock.advanceTo(clock.nowMs() + 1);
      }
      outbox.flush();
      socket.reading(true);
      expect(socket.text() === text).toBe(true);
    }),
    { seed: 1122, numRuns: 300 },
  );
});

/** Copies what it is given while its peer reads; else keeps it by reference until the peer does. */
function pacedSocket() {
  const kept: Uint8Array[] = [];
  let text = "";
  let reads = true;
  const drain = (): void => {
    for (const bytes of kept.splice(0)) text += Buffer.from(bytes).toString("latin1");
  };
  return {
    get writableLength() {
      return kept.reduce((sum, bytes) => sum + bytes.length, 0);
    },
    write(bytes: Uint8Array) {
      kept.push(bytes);
      if (reads) drain();
    },
    cork() {},
    uncork() {},
    reading(now: boolean) {
      reads = now;
      if (reads) drain();
    },
    text: () => text,
  };
}
