import { request as httpRequest, type IncomingMessage } from "node:http";
import { connect } from "node:net";
import { afterEach, expect, it } from "vitest";
import type { HttpServer } from "../../src/frontend/http-server.ts";
import type { Failure, Unary } from "./answer-shapes.ts";
import { eventsOf, type Fleet, type FleetOptions, say, startFleet } from "./scripted-fleet.ts";

const fleets: { fleet: Fleet; server: HttpServer }[] = [];
afterEach(async () => {
  for (const { fleet, server } of fleets.splice(0)) {
    await server.close();
    expect(fleet.frontend.inflight()).toBe(0);
    expect(fleet.owner.open).toBe(0);
    await fleet.close();
  }
});

async function served(options?: FleetOptions): Promise<{ fleet: Fleet; server: HttpServer }> {
  const fleet = startFleet(options);
  const server = await fleet.frontend.listen({ host: "127.0.0.1", port: 0 });
  fleets.push({ fleet, server });
  return { fleet, server };
}

const completion = { model: "mock-model", prompt: "hello there" };
const post = (server: HttpServer, body: unknown, init: RequestInit = {}) =>
  fetch(`${server.url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: typeof body === "string" ? body : JSON.stringify(body),
    ...init,
  });

it("streams over a real socket, headers and all", async () => {
  const { fleet, server } = await served();
  fleet.scripts.set("aggregated", say("Hello"));
  const response = await post(server, { ...completion, stream: true });
  expect(response.headers.get("content-type")).toBe("text/event-stream; charset=utf-8");
  expect(response.headers.get("x-route-pool")).toBe("pool-aggregated");
  const events = eventsOf(await response.text());
  expect(events.at(-1)).toBe("[DONE]");
  const text = events.slice(0, -1).map((event) => (event as Unary).choices[0]?.text);
  expect(text.join("")).toBe("Hello");
});

it("refuses 10 MB with 413, whether the length is told or not", async () => {
  const { server } = await served();
  const big = JSON.stringify({ ...completion, prompt: "x".repeat(10_000_000) });
  const told = await post(server, big);
  expect(told.status).toBe(413);
  expect(((await told.json()) as Failure).error.code).toBe("payload_too_large");
  const chunks = new ReadableStream<Uint8Array>({
    start(controller) {
      for (let at = 0; at < big.length; at += 1_000_000) {
        controller.enqueue(Buffer.from(big.slice(at, at + 1_000_000)));
      }
      controller.close();
    },
  });
  const untold = await post(server, "", { body: chunks, duplex: "half" } as RequestInit);
  expect(untold.status).toBe(413);
});

it.each([true, false])(
  "a client that leaves is noticed and its worker freed (stream %s)",
  async (stream) => {
    const { fleet, server } = await served();
    const leaving = new AbortController();
    fleet.scripts.set("aggregated", async (turn) => {
      const open = turn.accept();
      open.push({ tokenIds: [65] });
      turn.flush();
      if (!stream) leaving.abort();
      await turn.cancelled;
    });
    const asked = post(server, { ...completion, stream }, { signal: leaving.signal });
    if (stream) {
      expect((await asked).status).toBe(200);
      leaving.abort();
    } else await expect(asked).rejects.toThrow();
    await expect.poll(() => fleet.cancels).toBe(1);
    await expect.poll(() => fleet.frontend.inflight()).toBe(0);
    const counted = await fleet.metric("dynamo_frontend_requests_total{");
    expect(counted).toEqual([expect.stringContaining('error_type="cancelled"')]);
  },
);

it("stops a worker whose client does not read, and delivers all when it reads again", async () => {
  const { fleet, server } = await served();
  const tokensMax = 20_000;
  let made = 0;
  let waits = 0;
  fleet.scripts.set("aggregated", async (turn) => {
    const open = turn.accept();
    for (; made < tokensMax; made++) {
      while (open.blocked) {
        waits++;
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      open.push({ tokenIds: [65], text: "A".repeat(1000) });
      turn.flush();
      if (made % 16 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    open.end({ finishReason: "length" });
    turn.flush();
  });
  const answer = await new Promise<IncomingMessage>((resolve, reject) => {
    const asked = httpRequest(
      `${server.url}/v1/completions`,
      { method: "POST", headers: { "content-type": "application/json" }, agent: false },
      resolve,
    );
    asked.on("error", reject);
    asked.end(JSON.stringify({ ...completion, stream: true, max_tokens: 4000 }));
  });
  // Nobody reads: the worker gets stuck with most of its tokens unmade.
  await expect.poll(() => waits, { timeout: 10_000 }).toBeGreaterThan(20);
  expect(made).toBeLessThan(tokensMax);
  let letters = 0;
  let tail = "";
  for await (const chunk of answer.setEncoding("utf8")) {
    letters += (chunk as string).split("A").length - 1;
    tail = (tail + chunk).slice(-200);
  }
  expect(letters).toBe(tokensMax * 1000);
  expect(tail).toMatch(/\[DONE\]\n\n$/);
});

it("lets running answers end when it closes, and ends those that take too long", async () => {
  const fleet = startFleet({ settings: { gracefulShutdownMs: 200 } });
  const server = await fleet.frontend.listen({ host: "127.0.0.1", port: 0 });
  fleet.scripts.set("aggregated", async (turn) => {
    const open = turn.accept();
    open.push({ tokenIds: [65] });
    turn.flush();
    await turn.cancelled;
  });
  const endless = await post(server, { ...completion, stream: true });
  const closing = server.close();
  expect((await fleet.frontend.app.request("/ready")).status).toBe(503);
  const events = eventsOf(await endless.text());
  expect(events.at(-1)).toMatchObject({ code: 503, error: { code: "unavailable" } });
  await closing;
  await expect(post(server, completion)).rejects.toThrow();
  expect(fleet.frontend.inflight()).toBe(0);
  await fleet.close();
});

it("does not answer requests with two lengths or with a broken head", async () => {
  const { fleet, server } = await served();
  fleet.scripts.set("aggregated", say("x"));
  const { port } = new URL(server.url);
  const answerTo = (text: string): Promise<string> =>
    new Promise((resolve) => {
      const socket = connect(Number(port), "127.0.0.1", () => socket.write(text));
      let answer = "";
      socket.on("data", (chunk) => {
        answer += chunk;
      });
      socket.on("close", () => resolve(answer));
      socket.on("error", () => {});
    });
  const head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
  const both = `${head}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n`;
  expect(await answerTo(both)).toMatch(/^HTTP\/1\.1 400 /);
  expect(await answerTo(`${head}content-length: 2\r\ncontent-length: 3\r\n\r\n{}`)).toMatch(
    /^HTTP\/1\.1 400 /,
  );
  expect(await answerTo(`${head}x: ${"y".repeat(20_000)}\r\n\r\n`)).toMatch(/^HTTP\/1\.1 431 /);
  expect(fleet.seen).toEqual([]);
});
