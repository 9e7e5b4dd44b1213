import { createServer, get, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, expect, it } from "vitest";
import { ManualClock, realClock } from "../../src/base/clock.ts";
import { nodeTransport, pullTransport } from "../../src/frontend/sse-transports.ts";
import {
  createSseWriter,
  gatheredCharsMax,
  type SseLoss,
  type SseTransport,
  sseHeaders,
  writeStallMs,
} from "../../src/frontend/sse-writer.ts";

/** A transport that records writes and is full when told to be. */
function recordingTransport() {
  const writes: string[] = [];
  const state = { full: false, ended: false, destroyed: false };
  const listeners = { drain: () => {}, gone: () => {} };
  const transport: SseTransport = {
    write(text) {
      writes.push(text);
      return !state.full;
    },
    end() {
      state.ended = true;
    },
    destroy() {
      state.destroyed = true;
    },
    onDrain(listener) {
      listeners.drain = listener;
    },
    onGone(listener) {
      listeners.gone = listener;
    },
  };
  return { transport, writes, state, listeners };
}

function openRecorded() {
  const clock = new ManualClock();
  const recorded = recordingTransport();
  const calls: string[] = [];
  const writer = createSseWriter(recorded.transport, {
    clock,
    keepAliveMs: 15_000,
    pause: () => calls.push("pause"),
    resume: () => calls.push("resume"),
    lost: (why: SseLoss) => calls.push(why),
  });
  return { ...recorded, clock, calls, writer };
}

it("writes the first event at once and gathers the others of one loop turn", () => {
  const { writer, writes, clock } = openRecorded();
  writer.send("a");
  expect(writes).toEqual(["a"]);
  writer.send("b");
  writer.send("c");
  expect(writes).toEqual(["a"]);
  clock.advanceTo(0);
  expect(writes).toEqual(["a", "bc"]);
});

it("writes what is gathered before the end, and nothing after it", () => {
  const { writer, writes, state, clock, calls, listeners } = openRecorded();
  writer.send("a");
  writer.send("b");
  writer.end();
  writer.end();
  writer.send("c");
  listeners.gone();
  clock.advanceTo(100_000);
  expect(writes).toEqual(["a", "b"]);
  expect(state.ended).toBe(true);
  expect(calls).toEqual([]);
  expect(clock.pending()).toBe(0);
});

it("pauses its source while the transport is full and goes on when it drains", () => {
  const { writer, writes, state, clock, calls, listeners } = openRecorded();
  state.full = true;
  writer.send("a");
  writer.send("b");
  clock.advanceTo(1000);
  expect(writes).toEqual(["a"]);
  expect(calls).toEqual(["pause"]);
  state.full = false;
  listeners.drain();
  expect(writes).toEqual(["a", "b"]);
  expect(calls).toEqual(["pause", "resume"]);
});

it("ends only when the full transport has drained", () => {
  const { writer, state, listeners } = openRecorded();
  state.full = true;
  writer.send("a");
  writer.end();
  expect(state.ended).toBe(false);
  state.full = false;
  listeners.drain();
  expect(state.ended).toBe(true);
});

it("cuts a client that reads nothing for 30 s", () => {
  const { writer, state, clock, calls } = openRecorded();
  state.full = true;
  writer.send("a");
  clock.advanceTo(writeStallMs - 1);
  expect(calls).toEqual(["pause"]);
  clock.advanceTo(writeStallMs);
  expect(calls).toEqual(["pause", "stalled"]);
  expect(state.destroyed).toBe(true);
  expect(writer.open).toBe(false);
  expect(clock.pending()).toBe(0);
});

it("holds exactly its bound for a client that does not read", () => {
  const { writer, state, calls } = openRecorded();
  state.full = true;
  writer.send("a");
  writer.send("x".repeat(gatheredCharsMax));
  expect(calls).toEqual(["pause"]);
  writer.send("y");
  expect(calls).toEqual(["pause", "stalled"]);
});

it("tells once that the client is gone", () => {
  const { writer, writes, clock, calls, listeners } = openRecorded();
  writer.send("a");
  listeners.gone();
  listeners.gone();
  writer.send("b");
  clock.advanceTo(100_000);
  expect(writes).toEqual(["a"]);
  expect(calls).toEqual(["client_gone"]);
  expect(clock.pending()).toBe(0);
});

it("sends a comment after 15 s without an event", () => {
  const { writer, writes, clock } = openRecorded();
  writer.send("a");
  clock.advanceTo(10_000);
  writer.send("b");
  clock.advanceTo(24_999);
  expect(writes).toEqual(["a", "b"]);
  clock.advanceTo(25_000);
  expect(writes).toEqual(["a", "b", ": keep-alive\n\n"]);
  clock.advanceTo(40_000);
  expect(writes).toHaveLength(4);
});

interface Opened {
  readonly transport: SseTransport;
  /** Reads until the answer ends. */
  readonly text: () => Promise<string>;
  readonly leave: () => Promise<void>;
}

const closers: (() => void)[] = [];
afterAll(() => {
  for (const close of closers) close();
});

async function openNode(): Promise<Opened> {
  return await new Promise((resolve, reject) => {
    let transport: SseTransport | undefined;
    const server = createServer((_incoming, outgoing) => {
      transport = nodeTransport(outgoing, sseHeaders);
      outgoing.flushHeaders();
    });
    closers.push(() => void server.close());
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address() as AddressInfo;
      const request = get({ port, host: "127.0.0.1", agent: false }, (answer: IncomingMessage) => {
        expect(answer.headers["content-type"]).toBe(sseHeaders["content-type"]);
        if (!transport) return reject(new Error("no transport"));
        resolve({
          transport,
          async text() {
            let text = "";
            for await (const chunk of answer.setEncoding("utf8")) text += chunk;
            return text;
          },
          async leave() {
            request.destroy();
          },
        });
      });
      request.on("error", () => {});
    });
  });
}

async function openPull(): Promise<Opened> {
  const transport = pullTransport();
  const response = new Response(transport.body);
  return {
    transport,
    text: () => response.text(),
    leave: async () => await response.body?.cancel(),
  };
}

for (const [name, open] of [
  ["node response", openNode],
  ["pulled stream", openPull],
] as const) {
  /** Sends until told to pause, goes on when told to resume. */
  const start = (transport: SseTransport) => {
    const state = { paused: false, waiting: () => {}, losses: [] as SseLoss[] };
    const writer = createSseWriter(transport, {
      clock: realClock,
      keepAliveMs: 15_000,
      pause() {
        state.paused = true;
      },
      resume() {
        state.paused = false;
        state.waiting();
      },
      lost: (why) => state.losses.push(why),
    });
    return { writer, state };
  };

  it(`${name}: delivers every event in order and ends`, async () => {
    const { transport, text } = await open();
    const { writer } = start(transport);
    let sent = "";
    for (let event = 0; event < 100; event++) {
      const line = `data: ${event} é\n\n`;
      writer.send(line);
      sent += line;
      if (event % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    writer.end();
    expect(await text()).toBe(sent);
  });

  it(`${name}: a client that starts to read late gets everything, and the source waits`, async () => {
    const { transport, text } = await open();
    const { writer, state } = start(transport);
    const event = `data: ${"x".repeat(60_000)}\n\n`;
    let sent = 0;
    let pauses = 0;
    let reading: Promise<string> | undefined;
    for (; sent < 400; sent++) {
      writer.send(event);
      await new Promise((resolve) => setImmediate(resolve));
      if (!state.paused) continue;
      pauses++;
      if (pauses === 1) {
        setImmediate(() => {
          reading = text();
        });
      }
      await new Promise<void>((resolve) => {
        state.waiting = resolve;
      });
    }
    writer.end();
    reading ??= text();
    expect((await reading).length).toBe(400 * event.length);
    expect(pauses).toBeGreaterThan(0);
    expect(state.losses).toEqual([]);
  });

  it(`${name}: tells that the client left, and later events go nowhere`, async () => {
    const { transport, leave } = await open();
    const { writer, state } = start(transport);
    writer.send("data: 1\n\n");
    await leave();
    while (state.losses.length === 0) await new Promise((resolve) => setImmediate(resolve));
    writer.send("data: 2\n\n");
    writer.end();
    expect(state.losses).toEqual(["client_gone"]);
    expect(writer.open).toBe(false);
  });
}
