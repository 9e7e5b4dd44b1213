import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, expect, it } from "vitest";
import type { ErrorCode } from "../../src/base/errors.ts";
import type { Failure, Unary } from "./answer-shapes.ts";
import { eventsOf, type Fleet, type FleetOptions, say, startFleet } from "./scripted-fleet.ts";

const fleets: Fleet[] = [];
afterEach(async () => {
  for (const fleet of fleets.splice(0)) {
    await fleet.close();
    expect(fleet.owner.open).toBe(0);
    expect(fleet.frontend.inflight()).toBe(0);
  }
});

function fleetOf(options?: FleetOptions): Fleet {
  const fleet = startFleet(options);
  fleets.push(fleet);
  return fleet;
}

const completions = "/v1/completions";
const completion = { model: "mock-model", prompt: "hello there" };

interface Expected {
  readonly status: number;
  readonly type: string;
  readonly code: string;
  readonly retryAfter?: boolean;
  readonly shouldRetry?: "false";
}

async function expectFailure(response: Response, expected: Expected): Promise<Failure> {
  const body = (await response.json()) as Failure;
  expect(response.status).toBe(expected.status);
  expect(response.headers.get("content-type")).toMatch(/^application\/json/);
  expect(response.headers.get("x-request-id")).toMatch(/^[A-Za-z0-9._-]{1,128}$/);
  expect(response.headers.has("retry-after")).toBe(expected.retryAfter ?? false);
  expect(response.headers.get("x-should-retry")).toBe(expected.shouldRetry ?? null);
  expect(body).toEqual({
    message: expect.any(String),
    type: expected.type,
    code: expected.status,
    details: expect.any(Object),
    error: {
      message: body.message,
      type: expect.any(String),
      param: body.error.param,
      code: expected.code,
    },
  });
  return body;
}

const validation = { status: 400, type: "Bad Request", code: "invalid_request" };

it("400: broken JSON, and every fault of body and headers in one answer", async () => {
  const fleet = fleetOf();
  await expectFailure(await fleet.post(completions, "{"), validation);
  const body = { ...completion, n: 99, wrong: 1, nvext: { router: { ttft_target: "x" } } };
  const headers = { "x-slo-tpot-ms": "NaN", "x-request-timeout-ms": "soon", "x-dp-rank": "-1" };
  const failure = await expectFailure(await fleet.post(completions, body, headers), validation);
  expect(failure.details.errors?.map(({ pointer }) => pointer).sort()).toEqual([
    "/n",
    "/nvext/router/ttft_target",
    "/wrong",
    "x-dp-rank",
    "x-request-timeout-ms",
    "x-slo-tpot-ms",
  ]);
});

it("400: a prompt without tokens, and one that does not fit the model", async () => {
  const fleet = fleetOf({ contextLength: 8 });
  await expectFailure(await fleet.post(completions, { ...completion, prompt: "" }), validation);
  const tooLong = { ...validation, code: "context_length_exceeded" };
  const prompt = [1, 2, 3, 4, 5, 6];
  await expectFailure(
    await fleet.post(completions, { model: "mock-model", prompt, max_tokens: 3 }),
    tooLong,
  );
  await expectFailure(await fleet.post(completions, { ...completion, prompt: "x y ".repeat(99) }), {
    ...tooLong,
  });
  expect(fleet.seen).toEqual([]);
});

it("404: a model nobody serves, a path nobody knows", async () => {
  const fleet = fleetOf();
  const unknown = await fleet.post(completions, { ...completion, model: "other" });
  const failure = await expectFailure(unknown, {
    status: 404,
    type: "Not Found",
    code: "model_not_found",
  });
  expect(failure.error.param).toBe("model");
  await expectFailure(await fleet.frontend.app.request("/v2/chat"), {
    status: 404,
    type: "Not Found",
    code: "not_found",
  });
});

it("405: names the methods a path takes", async () => {
  const fleet = fleetOf();
  const response = await fleet.frontend.app.request(completions);
  expect(response.headers.get("allow")).toBe("POST");
  const expected = { status: 405, type: "Method Not Allowed", code: "method_not_allowed" };
  await expectFailure(response, expected);
  const models = await fleet.frontend.app.request("/v1/models", { method: "DELETE" });
  expect(models.headers.get("allow")).toBe("GET, HEAD");
  await expectFailure(models, expected);
});

it("409: a request id that is under way", async () => {
  const fleet = fleetOf();
  let go = () => {};
  fleet.scripts.set("aggregated", async (turn) => {
    await new Promise<void>((resolve) => {
      go = resolve;
    });
    await say("x")(turn);
  });
  const headers = { "x-request-id": "twice" };
  const first = fleet.post(completions, completion, headers);
  await expect.poll(() => fleet.seen.length).toBe(1);
  await expectFailure(await fleet.post(completions, completion, headers), {
    status: 409,
    type: "Conflict",
    code: "duplicate_request",
  });
  go();
  expect((await first).status).toBe(200);
  fleet.scripts.set("aggregated", say("x"));
  expect((await fleet.post(completions, completion, headers)).status).toBe(200);
});

it("413: a body over the limit; 415: another media type", async () => {
  const fleet = fleetOf({ settings: { bodyBytesMax: 100 } });
  const exact = JSON.stringify({ ...completion, prompt: "" }).length;
  fleet.scripts.set("aggregated", say("x"));
  const fits = { ...completion, prompt: "x".repeat(100 - exact) };
  expect((await fleet.post(completions, fits)).status).toBe(200);
  const over = { ...completion, prompt: "x".repeat(101 - exact) };
  await expectFailure(await fleet.post(completions, over), {
    status: 413,
    type: "Payload Too Large",
    code: "payload_too_large",
  });
  await expectFailure(await fleet.post(completions, fits, { "content-type": "text/plain" }), {
    status: 415,
    type: "Unsupported Media Type",
    code: "unsupported_media_type",
  });
});

it("501: known routes that are not built, and query_instance_id without routers to ask", async () => {
  const fleet = fleetOf();
  const notBuilt: Expected = {
    status: 501,
    type: "Not Implemented",
    code: "not_implemented",
    shouldRetry: "false",
  };
  await expectFailure(await fleet.post("/v1/embeddings", {}), notBuilt);
  const nvext = { annotations: ["query_instance_id:"] };
  await expectFailure(await fleet.post(completions, { ...completion, nvext }), notBuilt);
});

const unavailable: Expected = {
  status: 503,
  type: "Service Unavailable",
  code: "unavailable",
  retryAfter: true,
};
const overloaded: Expected = {
  status: 529,
  type: "Overloaded",
  code: "overloaded",
  retryAfter: true,
};

it("503: the model is not ready, the bus is down, no router is there", async () => {
  const fleet = fleetOf();
  await expectFailure(await fleet.post(completions, completion), unavailable);
  fleet.model.ready = false;
  await expectFailure(await fleet.post(completions, completion), unavailable);
  fleet.model.ready = true;
  fleet.bus.connected = false;
  await expectFailure(await fleet.post(completions, completion), unavailable);
});

it.each<[ErrorCode, Expected]>([
  ["invalid_request", validation],
  ["pinned_worker_not_allowed", validation],
  ["payload_too_large", { status: 413, type: "Payload Too Large", code: "payload_too_large" }],
  ["duplicate_request", { status: 409, type: "Conflict", code: "duplicate_request" }],
  ["no_endpoints", unavailable],
  ["not_ready", unavailable],
  ["pool_unavailable", unavailable],
  ["subscriber_shutdown", unavailable],
  ["all_eligible_workers_overloaded", overloaded],
  ["pinned_worker_overloaded", overloaded],
  ["queue_rejected", overloaded],
  ["do_not_queue", overloaded],
  [
    "deadline_exceeded",
    {
      status: 504,
      type: "Gateway Timeout",
      code: "response_timeout",
      shouldRetry: "false",
    },
  ],
  [
    "internal_error",
    {
      status: 500,
      type: "Internal Server Error",
      code: "internal_error",
      shouldRetry: "false",
    },
  ],
])("a router that refuses with %s decides the status", async (code, expected) => {
  const fleet = fleetOf();
  fleet.scripts.set("aggregated", (turn) => turn.refuse(code, "refused", 3000));
  const response = await fleet.post(completions, completion);
  const failure = await expectFailure(response, expected);
  if (!expected.retryAfter) return;
  expect(failure.details.retry_after_ms).toBeGreaterThanOrEqual(3000);
  expect(failure.details.retry_after_ms).toBeLessThanOrEqual(3750);
});

it("answers overload with the configured status", async () => {
  const fleet = fleetOf({ settings: { overloadStatus: 503 } });
  fleet.scripts.set("aggregated", (turn) => turn.refuse("queue_rejected", "full"));
  const expected = { ...unavailable, code: "overloaded" };
  await expectFailure(await fleet.post(completions, completion), expected);
  expect(await fleet.metric("dynamo_frontend_model_rejection_total{")).toHaveLength(1);
});

it("504: no first token in time, and the caller's own deadline", async () => {
  const silent = fleetOf({ settings: { firstTokenTimeoutMs: 80 } });
  const accepting = async (turn: {
    accept(): unknown;
    flush(): void;
    cancelled: Promise<void>;
  }) => {
    turn.accept();
    turn.flush();
    await turn.cancelled;
  };
  silent.scripts.set("aggregated", accepting);
  const expected: Expected = {
    status: 504,
    type: "Gateway Timeout",
    code: "response_timeout",
    shouldRetry: "false",
  };
  await expectFailure(await silent.post(completions, completion), expected);
  const fleet = fleetOf();
  fleet.scripts.set("aggregated", accepting);
  const headers = { "x-request-timeout-ms": "120" };
  await expectFailure(await fleet.post(completions, completion, headers), expected);
  await expect.poll(() => fleet.cancels).toBe(1);
});

it("a fault before the first token has its status also for streams", async () => {
  const fleet = fleetOf();
  fleet.scripts.set("aggregated", (turn) => turn.refuse("queue_rejected", "full"));
  const response = await fleet.post(completions, { ...completion, stream: true });
  await expectFailure(response, overloaded);
});

it("a fault after the first token is an event, and [DONE] does not come", async () => {
  const fleet = fleetOf({ settings: { migrationLimit: 0 } });
  fleet.scripts.set("aggregated", async (turn) => {
    const stream = turn.accept();
    stream.push({ tokenIds: [65] });
    turn.flush();
    const { TiergridError } = await import("../../src/base/errors.ts");
    stream.fail(new TiergridError("engine_error", "the engine broke"));
    turn.flush();
  });
  const response = await fleet.post(completions, { ...completion, stream: true });
  expect(response.status).toBe(200);
  const events = eventsOf(await response.text());
  expect(events).toHaveLength(2);
  expect(events[0]).toMatchObject({ choices: [{ text: "A", finish_reason: null }] });
  expect(events[1]).toMatchObject({ code: 500, error: { code: "internal_error" } });
});

it("one failing choice ends its siblings and the whole answer", async () => {
  const fleet = fleetOf();
  fleet.scripts.set("aggregated", async (turn) => {
    if (fleet.seen.length === 1) {
      turn.accept();
      turn.flush();
      await turn.cancelled;
    } else turn.refuse("invalid_request", "no");
  });
  await expectFailure(await fleet.post(completions, { ...completion, n: 2 }), validation);
  await expect.poll(() => fleet.cancels).toBe(1);
});

interface TargetCase {
  readonly name: string;
  readonly body: Readonly<Record<string, unknown>>;
  readonly headers: Readonly<Record<string, string>>;
  readonly expect: {
    readonly status?: number;
    readonly errors?: readonly { readonly where: string; readonly reason: string }[];
    readonly ttft?: { readonly value: number; readonly source: string };
    readonly itl?: { readonly value: number; readonly source: string };
  };
}
const vectors = JSON.parse(
  readFileSync(join(import.meta.dirname, "../golden/sla-targets.json"), "utf8"),
) as { readonly cases: readonly TargetCase[] };

/** Sources that the router fills in; the frontend sends null for them. */
const routerSources = new Set(["default", "midpoint"]);

it.each(vectors.cases.map((vector) => [vector.name, vector] as const))(
  "SLA targets through HTTP: %s",
  async (_name, vector) => {
    const fleet = fleetOf();
    fleet.scripts.set("aggregated", say("x"));
    const response = await fleet.post(
      completions,
      { ...completion, ...vector.body },
      { ...vector.headers },
    );
    if (vector.expect.status !== undefined) {
      const failure = await expectFailure(response, validation);
      const found = failure.details.errors?.map(({ pointer, reason }) => ({
        where: pointer.replace(/^\//, "").replaceAll("/", "."),
        reason,
      }));
      const sorted = (list: readonly unknown[] = []) =>
        list.map((one) => JSON.stringify(one)).sort();
      expect(sorted(found)).toEqual(sorted(vector.expect.errors));
      return;
    }
    expect(((await response.json()) as Unary).choices).toHaveLength(1);
    const { ttft, itl } = vector.expect;
    const sent = (target: typeof ttft) =>
      target && !routerSources.has(target.source) ? [target.value, target.source] : [null, null];
    const router = fleet.seen[0]?.body.router;
    expect([router?.ttft_target ?? null, router?.ttft_source ?? null]).toEqual(sent(ttft));
    expect([router?.itl_target ?? null, router?.itl_source ?? null]).toEqual(sent(itl));
  },
);
