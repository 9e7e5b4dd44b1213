/**
 * Two ways to the client. `nodeTransport` writes on the server's response itself, past the web
 * stream that costs twice the socket write; the handler returns the adapter's "already sent"
 * answer. `pullTransport` is portable: a web stream whose reader sets the pace.
 */
import type { ServerResponse } from "node:http";
import type { SseTransport } from "./sse-writer.ts";

/** Sends status 200 and `headers`, then writes directly on `outgoing`. */
export function nodeTransport(
  outgoing: ServerResponse,
  headers: Readonly<Record<string, string>>,
): SseTransport {
  outgoing.writeHead(200, headers);
  // Without a listener a reset socket would end the process; `close` follows and tells the writer.
  outgoing.on("error", () => {});
  return {
    write(text) {
      if (outgoing.destroyed || outgoing.writableEnded) return true;
      return outgoing.write(text);
    },
    end: () => void outgoing.end(),
    destroy: () => void outgoing.destroy(),
    onDrain: (listener) => void outgoing.on("drain", listener),
    onGone(listener) {
      if (outgoing.destroyed) listener();
      else {
        outgoing.once("close", () => {
          if (!outgoing.writableFinished) listener();
        });
      }
    },
  };
}

export interface PullTransport extends SseTransport {
  readonly body: ReadableStream<Uint8Array>;
}

/** Bytes that may lie in the stream unread; one socket buffer. */
const pullBytesMax = 16_384;

/** A transport behind `body`, the body of a web `Response`. */
export function pullTransport(): PullTransport {
  const encoder = new TextEncoder();
  const drained: (() => void)[] = [];
  const gone: (() => void)[] = [];
  let controller: ReadableStreamDefaultController<Uint8Array> | undefined;
  let over = false;
  const body = new ReadableStream<Uint8Array>(
    {
      start(started) {
        controller = started;
      },
      pull() {
        for (const listener of drained) listener();
      },
      cancel() {
        over = true;
        for (const listener of gone) listener();
      },
    },
    { highWaterMark: pullBytesMax, size: (chunk) => chunk.byteLength },
  );
  return {
    body,
    write(text) {
      // An `enqueue` after the reader left throws, and would end the process.
      if (over || !controller) return true;
      controller.enqueue(encoder.encode(text));
      return (controller.desiredSize ?? 0) > 0;
    },
    end() {
      if (!over) controller?.close();
      over = true;
    },
    destroy() {
      if (!over) controller?.error(new Error("the answer was cut off"));
      over = true;
    },
    onDrain: (listener) => void drained.push(listener),
    onGone: (listener) => void gone.push(listener),
  };
}
