/**
 * The server process of the SSE bench: `node sse-bench-server.ts`. Sends `{port}` when it listens,
 * answers any message with its CPU time in ms. Every request streams `tokens` tokens:
 *
 *   /baseline      hono `streamSSE`, one awaited `writeSSE` per token and loop turn
 *   /ours/<k>      our writer, k tokens per loop turn, gathered into one write
 */
import { createAdaptorServer, type HttpBindings } from "@hono/node-server";
import { RESPONSE_ALREADY_SENT } from "@hono/node-server/utils/response";
import { Hono } from "hono";
import { streamSSE } from "hono/streaming";
import { realClock } from "../src/base/clock.ts";
import { createStreamFormat, doneEvent } from "../src/frontend/answer-format.ts";
import { nodeTransport } from "../src/frontend/sse-transports.ts";
import { createSseWriter, sseHeaders } from "../src/frontend/sse-writer.ts";

const app = new Hono<{ Bindings: HttpBindings }>();
const identity = { id: "cmpl-0", object: "text_completion", created: 1, model: "mock-model" };
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

app.get("/baseline", (context) => {
  const tokens = Number(context.req.query("tokens"));
  return streamSSE(context, async (stream) => {
    for (let token = 0; token < tokens; token++) {
      const choice = { index: 0, text: ` word${token}`, logprobs: null, finish_reason: null };
      await stream.writeSSE({ data: JSON.stringify({ ...identity, choices: [choice] }) });
      await turn();
    }
    await stream.writeSSE({ data: "[DONE]" });
  });
});

app.get("/ours/:perTurn", (context) => {
  const tokens = Number(context.req.query("tokens"));
  const perTurn = Number(context.req.param("perTurn"));
  const format = createStreamFormat(
    { ...identity, kind: "completions" },
    { includeUsage: false, returnTokenIds: false },
  );
  let resume = (): void => {};
  let paused: Promise<void> | undefined;
  const writer = createSseWriter(nodeTransport(context.env.outgoing, sseHeaders), {
    clock: realClock,
    keepAliveMs: 15_000,
    pause() {
      paused = new Promise((resolve) => {
        resume = resolve;
      });
    },
    resume() {
      paused = undefined;
      resume();
    },
    lost: () => {},
  });
  const produce = async (): Promise<void> => {
    for (let token = 0; token < tokens && writer.open; token++) {
      writer.send(format.piece(0, ` word${token}`, []));
      if (token % perTurn < perTurn - 1) continue;
      if (paused !== undefined) await paused;
      await turn();
    }
    writer.send(doneEvent);
    writer.end();
  };
  void produce(); // Ends with the stream; `lost` and `open` end it early.
  return RESPONSE_ALREADY_SENT;
});

const server = createAdaptorServer({ fetch: app.fetch });
server.listen(0, "127.0.0.1", () => {
  const address = server.address();
  process.send?.({ port: typeof address === "object" ? address?.port : 0 });
});
process.on("message", () => {
  const { user, system } = process.cpuUsage();
  process.send?.({ cpuMs: (user + system) / 1000 });
});
process.on("disconnect", () => process.exit(0));
