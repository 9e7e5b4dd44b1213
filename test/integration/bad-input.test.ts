/**
 * What a fleet of real processes answers to input that it cannot serve: the documented status, both
 * forms of the body, `retry-after` where a repeat can help, and every process lives on.
 */
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from "vitest";
import { realClock } from "../../src/base/clock.ts";
import { osRandom } from "../../src/base/random.ts";
import { encodeDispatch } from "../../src/protocol/request-frame.ts";
import { endpointSubject } from "../../src/protocol/subjects.ts";
import { connectNatsBus } from "../../src/runtime/nats-bus.ts";
import type { NatsServer } from "../../src/runtime/nats-server.ts";
import { type AggFleet, createAggFleet } from "./agg-fleet.ts";
import { startNats } from "./nats-fixture.ts";
import { until } from "./processes.ts";
import { inFlight, openStream, outcomesOf, promptOf } from "./stream-client.ts";

const mib = 1024 * 1024;
/** Room for a prompt of 400,000 tokens; a worker with a thousandth of it in use counts as busy. */
const roomBlocks = 8192;
const busyAbove = 0.001;

let nats: NatsServer;
let fleet: AggFleet;
let pids: number[];

beforeAll(async () => {
  nats = await startNats("max_payload: 1MB\n");
  fleet = createAggFleet(nats.url, {
    local: ["--active-decode-blocks-threshold", String(busyAbove)],
    worker: ["--num-gpu-blocks", String(roomBlocks)],
  });
});

beforeEach(async () => {
  await fleet.up();
  pids = ["global", "local", "worker"].map((name) => fleet.part(name).pid);
});

afterEach(async ({ task }) => {
  if (task.result?.state !== "fail") return;
  process.stderr.write(`${task.name}\n${fleet.logs()}\n`);
  await fleet.down();
});

afterAll(async () => {
  await fleet?.down();
  fleet?.forget();
  await nats?.stop();
});

interface Refusal {
  readonly status: number;
  /** Reason phrase of the flat form. */
  readonly phrase: string;
  readonly type: "invalid_request_error" | "overloaded_error" | "server_error";
  readonly code: string;
  readonly param?: string;
  readonly details?: object;
}

const invalid: Refusal = {
  status: 400,
  phrase: "Bad Request",
  type: "invalid_request_error",
  code: "invalid_request",
};
const tooLarge: Refusal = {
  status: 413,
  phrase: "Payload Too Large",
  type: "invalid_request_error",
  code: "payload_too_large",
};
const unavailable: Refusal = {
  status: 503,
  phrase: "Service Unavailable",
  type: "server_error",
  code: "unavailable",
};

/** Both forms of the body agree with each other and with `refusal`; answers the message. */
async function expectRefusal(answer: Response, refusal: Refusal): Promise<string> {
  const { status, phrase, type, code, param = null, details } = refusal;
  const body = (await answer.json()) as { message: string; details: object };
  const { message } = body;
  expect({ status: answer.status, body }).toEqual({
    status,
    body: {
      message,
      type: phrase,
      code: status,
      details: details ?? body.details,
      error: { message, type, param, code },
    },
  });
  const retryAfter = answer.headers.get("retry-after");
  if (code === "unavailable" || code === "overloaded") {
    expect(retryAfter).toMatch(/^[1-9]\d*$/);
    expect(Number(answer.headers.get("retry-after-ms"))).toBeGreaterThan(0);
  } else expect(retryAfter).toBeNull();
  expect(message).not.toBe("");
  return message;
}

/** The same processes still serve, and none of them met an error that nobody caught. */
async function expectAlive(): Promise<void> {
  const stream = openStream(fleet.api, promptOf(0, 8));
  expect(await outcomesOf([stream])).toEqual({ exact: 1 });
  for (const [at, name] of ["global", "local", "worker"].entries()) {
    expect(fleet.part(name)).toMatchObject({ pid: pids[at] });
    expect(fleet.part(name).alive()).toBe(true);
    const metrics = await fleet.metricsOf(name);
    expect(metrics.sum("tiergrid_unhandled_errors_total")).toBe(0);
    expect(metrics.sum("tiergrid_bus_handler_errors_total")).toBe(0);
  }
  await fleet.idle();
}

function post(body: RequestInit["body"], headers: Record<string, string> = {}): Promise<Response> {
  return fetch(`${fleet.api}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: body ?? null,
    ...(body instanceof ReadableStream && { duplex: "half" }),
  } as RequestInit);
}

const asked = (fields: object): string =>
  JSON.stringify({ model: "mock-model", prompt: [1, 2, 3], max_tokens: 4, ...fields });

it("answers 413 with size and limit to bodies of 10 MB, announced or not", async () => {
  const text = asked({ prompt: "x".repeat(10 * mib) });
  const announced = { bytes: text.length, max: 4 * mib };
  await expectRefusal(await post(text), { ...tooLarge, details: announced });
  const chunked = await post(new Blob([text]).stream());
  const message = await expectRefusal(chunked, tooLarge);
  expect(message).toContain(String(4 * mib));
  await expectAlive();
});

it("answers 400 to broken JSON and to bodies that are no request", async () => {
  const bodies = [
    "",
    "{",
    "[]",
    "null",
    '{"model":"mock-model","prompt":[1,2',
    "\u0000\u0001",
    "1e999",
  ];
  for (const body of bodies) await expectRefusal(await post(body), invalid);
  await expectRefusal(await post(`${"[".repeat(100_000)}`), invalid);
  for (const fields of [{ prompt: [-1] }, { prompt: [] }, { max_tokens: 0 }, { no_such: 1 }]) {
    const [param = ""] = Object.keys(fields);
    await expectRefusal(await post(asked(fields)), { ...invalid, param });
  }
  await expectAlive();
});

it("answers 400 to targets that are not finite; a negative one is the lowest cell", async () => {
  const bare = asked({}).replace("{", '{"nvext":{"router":{"ttft_target":NaN}},');
  await expectRefusal(await post(bare), invalid);
  for (const target of ["NaN", "Infinity", true, "12 ms"]) {
    const nvext = { router: { ttft_target: target } };
    const param = "nvext.router.ttft_target";
    await expectRefusal(await post(asked({ nvext })), { ...invalid, param });
  }
  const header = "x-slo-ttft-ms";
  await expectRefusal(await post(asked({}), { [header]: "NaN" }), { ...invalid, param: header });
  const huge = asked({}).replace("{", '{"nvext":{"router":{"itl_target":1e999}},');
  await expectRefusal(await post(huge), { ...invalid, param: "nvext.router.itl_target" });
  const nvext = { router: { ttft_target: -5, itl_target: 1e9 } };
  const answer = await post(asked({ nvext }));
  expect(answer.status).toBe(200);
  expect(answer.headers.get("x-route-cell")).toBe("0.1");
  await expectAlive();
});

it("answers 404, 405 and 415 to what it does not serve", async () => {
  const notFound = { ...invalid, status: 404, phrase: "Not Found" };
  const model = { ...notFound, code: "model_not_found", param: "model" };
  await expectRefusal(await post(asked({ model: "no-such-model" })), model);
  const path = await fetch(`${fleet.api}/v2/completions`);
  await expectRefusal(path, { ...notFound, code: "not_found" });
  const method = await fetch(`${fleet.api}/v1/completions`);
  expect(method.headers.get("allow")).toBe("POST");
  const notAllowed = { status: 405, phrase: "Method Not Allowed", code: "method_not_allowed" };
  await expectRefusal(method, { ...invalid, ...notAllowed });
  const media = { status: 415, phrase: "Unsupported Media Type", code: "unsupported_media_type" };
  const plain = await post(asked({}), { "content-type": "text/plain" });
  await expectRefusal(plain, { ...invalid, ...media });
  await expectAlive();
});

it("answers 413 with size and limit to a prompt of 400,000 tokens, before it is sent", async () => {
  const tokens = 400_000;
  const answer = await post(asked({ prompt: new Array(tokens).fill(7) }));
  const body = (await answer.clone().json()) as { details: { bytes: number } };
  expect(body.details.bytes).toBeGreaterThan(4 * tokens);
  const details = { bytes: body.details.bytes, max: mib };
  await expectRefusal(answer, { ...tooLarge, details });
  await expectAlive();
});

it("refuses a frame above max_payload at the sender's own bus, which stays connected", async () => {
  const bus = await connectNatsBus({
    servers: [nats.url],
    role: "ob",
    clock: realClock,
    random: osRandom,
    name: "test",
  });
  try {
    const envelope = { rid: "0".repeat(32), attempt: 1 << 20, first: 0, phase: "aggregated" };
    const rest = { deadlineMs: 1000, notify: [], avoid: [], decisions: [] };
    const stream = { subject: bus.inboxPrefix, format: "json", key: 0, acks: false };
    const frame = encodeDispatch({
      envelope: { ...envelope, ...rest, stream },
      body: { model: "mock-model" },
      prompt: { type: "tokens", tokens: new Uint32Array(400_000) },
    } as Parameters<typeof encodeDispatch>[0]);
    const path = { namespace: "dynamo", component: "global_router", endpoint: "generate" };
    const details = { bytes: frame.length, max: mib };
    const request = bus.request(endpointSubject(path), frame, { timeoutMs: 1000 });
    await expect(request).rejects.toMatchObject({ code: "payload_too_large", details });
    expect(bus.state).toBe("connected");
  } finally {
    await bus.close();
  }
  await expectAlive();
});

it("answers 529 while all workers are busy, and serves again when they are not", async () => {
  const prompt = new Array(64 * Math.ceil(2 * busyAbove * roomBlocks)).fill(9);
  const held = openStream(fleet.api, { prompt, tokens: 30_000, seed: 1 });
  await inFlight([held]);
  const overloaded = {
    phrase: "Overloaded",
    type: "overloaded_error",
    code: "overloaded",
  } as const;
  await until("the worker counts as busy", async () => (await post(asked({}))).status !== 200);
  await expectRefusal(await post(asked({})), { status: 529, ...overloaded });
  held.leave();
  await fleet.idle();
  await until("the worker takes requests", async () => (await post(asked({}))).status === 200);
  await expectAlive();
});

it("answers 503 at once while there is no worker, and serves when one comes", async () => {
  const worker = fleet.part("worker");
  process.kill(worker.pid, "SIGTERM");
  expect(await worker.ended).toEqual({ code: 0, signal: null });
  await expectRefusal(await post(asked({})), unavailable);
  await fleet.up();
  pids[2] = fleet.part("worker").pid;
  await expectAlive();
});
