/**
 * The owner as a frontend: every answer is written as server-sent events, by our writer, to an HTTP
 * client that reads and forgets. The readers are a process of their own, `sink`, which asks again
 * as soon as an answer has ended; its CPU is nobody's.
 */
import { type ChildProcess, fork } from "node:child_process";
import { Agent, createServer, get, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { fileURLToPath } from "node:url";
import { realClock } from "../src/base/clock.ts";
import { createStreamFormat, doneEvent } from "../src/frontend/answer-format.ts";
import { nodeTransport } from "../src/frontend/sse-transports.ts";
import { createSseWriter, sseHeaders } from "../src/frontend/sse-writer.ts";
import type { OwnerCall, StreamSink } from "../src/runtime/owner-request.ts";
import { type Counter, closed, type Go } from "./stream-bench-go.ts";

type Ask = (go: Go, sink: StreamSink) => OwnerCall;

const format = createStreamFormat(
  { kind: "completions", id: "cmpl-0", created: 1, model: "mock-model" },
  { includeUsage: false, returnTokenIds: false },
);

/** A window of answers to HTTP clients. */
export function sseClient(ask: Ask): (go: Go, counter: Counter) => void {
  return (go, counter) => {
    let sink: ChildProcess | undefined;
    const server = createServer((_, response) => {
      // After the window readers wait until they are sent away.
      if (!counter.stopped) answer(ask, go, counter, response);
    });
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address() as AddressInfo;
      const self = fileURLToPath(new URL("stream-bench-process.js", import.meta.url));
      sink = fork(self, ["sink", String(port), String(go.streams)]);
    });
    const stop = setInterval(() => {
      if (!counter.stopped || counter.open > 1) return;
      clearInterval(stop);
      sink?.disconnect();
      server.close();
      closed(counter);
    }, 50);
  };
}

function answer(ask: Ask, go: Go, counter: Counter, response: ServerResponse): void {
  const writer = createSseWriter(nodeTransport(response, sseHeaders), {
    clock: realClock,
    keepAliveMs: 15_000,
    pause: () => call.pause(),
    resume: () => call.resume(),
    lost: () => call.cancel(),
  });
  const done = (): void => {
    writer.send(doneEvent);
    writer.end();
    closed(counter);
  };
  counter.open += 1;
  const call = ask(go, {
    onAccepted: () => {},
    onOutput({ tokenIds }) {
      counter.units += tokenIds.length;
      writer.send(format.piece(0, ` word${tokenIds[0]}`, tokenIds));
    },
    onEnd: done,
    onError() {
      counter.failed += 1;
      done();
    },
  });
}

/** Reads `streams` answers at a time, again and again, until the parent leaves. */
export function sink(port: number, streams: number): void {
  const agent = new Agent({ keepAlive: true, maxSockets: streams });
  const read = (): void => {
    get({ host: "127.0.0.1", port, agent }, (response) => {
      response.resume();
      response.on("end", read);
    }).on("error", () => process.exit(0));
  };
  for (let stream = 0; stream < streams; stream++) read();
  process.on("disconnect", () => process.exit(0));
}
