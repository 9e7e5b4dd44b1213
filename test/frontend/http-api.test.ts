import { afterEach, expect, it } from "vitest";
import { islTokensOf } from "../../src/protocol/requests.ts";
import type { Unary } from "./answer-shapes.ts";
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
const chat = "/v1/chat/completions";
const completion = { model: "mock-model", prompt: "hello there" };
const conversation = { model: "mock-model", messages: [{ role: "user", content: "hi" }] };

const unary = async (response: Response): Promise<Unary> => (await response.json()) as Unary;

it("answers a completion", async () => {
  const fleet = fleetOf();
  fleet.scripts.set("aggregated", say("Hello, world", 4));
  const response = await fleet.post(completions, completion, { "x-request-id": "r-1" });
  expect(response.status).toBe(200);
  expect(response.headers.get("x-request-id")).toBe("r-1");
  const body = await unary(response);
  const prompt_tokens = islTokensOf(fleet.seen[0]!.prompt);
  expect(prompt_tokens).toBeGreaterThan(0);
  expect(body).toEqual({
    id: expect.stringMatching(/^cmpl-[0-9a-f-]{36}$/),
    object: "text_completion",
    created: expect.any(Number),
    model: "mock-model",
    choices: [{ index: 0, text: "Hello, world", logprobs: null, finish_reason: "stop" }],
    usage: {
      prompt_tokens,
      completion_tokens: 12,
      total_tokens: prompt_tokens + 12,
      prompt_tokens_details: { cached_tokens: 4 },
    },
  });
});

it("streams a chat with the role first, usage last, and [DONE]", async () => {
  const fleet = fleetOf();
  fleet.scripts.set("aggregated", say("Hé!"));
  const body = { ...conversation, stream: true, stream_options: { include_usage: true } };
  const response = await fleet.post(chat, body);
  expect(response.headers.get("content-type")).toBe("text/event-stream; charset=utf-8");
  expect(response.headers.get("x-route-pool")).toBe("pool-aggregated");
  expect(response.headers.get("x-route-cell")).toBe("0,1");
  expect(response.headers.get("x-route-decision-id")).toBe("g-aggregated");
  const events = eventsOf(await response.text()) as Record<string, unknown>[];
  expect(events.pop()).toBe("[DONE]");
  const last = events.pop();
  expect(last).toMatchObject({ choices: [], usage: { completion_tokens: 4 } });
  expect(last?.["usage"]).not.toHaveProperty("prompt_tokens_details");
  expect(events.map((event) => event["choices"])).toEqual([
    [
      {
        index: 0,
        delta: { role: "assistant", content: "" },
        logprobs: null,
        finish_reason: null,
      },
    ],
    ...["H", "é", "!"].map((content) => [
      { index: 0, delta: { content }, logprobs: null, finish_reason: null },
    ]),
    [{ index: 0, delta: {}, logprobs: null, finish_reason: "stop" }],
  ]);
  const same = ({ id, object, created, model }: Record<string, unknown>) =>
    JSON.stringify([id, object, created, model]);
  expect(new Set(events.map(same)).size).toBe(1);
  expect(events.every((event) => event["usage"] === null)).toBe(true);
});

it("hands every token id out when asked to, also of characters that are not complete", async () => {
  const fleet = fleetOf();
  fleet.scripts.set("aggregated", say("a😀b"));
  const body = { ...completion, return_token_ids: true };
  const whole = await unary(await fleet.post(completions, body));
  const ids = [...Buffer.from("a😀b")];
  expect(whole.choices[0]?.token_ids).toEqual(ids);
  const events = eventsOf(
    await (await fleet.post(completions, { ...body, stream: true })).text(),
  ) as Unary[];
  expect(events.slice(0, -1).flatMap((event) => event.choices[0]?.token_ids ?? [])).toEqual(ids);
});

it("fans prompts and n out, with neighbouring seeds, and counts each prompt once", async () => {
  const fleet = fleetOf();
  fleet.scripts.set("aggregated", say("x", 2));
  const prompt = [
    [1, 2, 3],
    [4, 5],
  ];
  const body = { model: "mock-model", prompt, n: 2, seed: 7 };
  const answer = await unary(await fleet.post(completions, body));
  expect(answer.choices.map(({ index }) => index)).toEqual([0, 1, 2, 3]);
  expect(answer.usage).toMatchObject({
    prompt_tokens: 5,
    completion_tokens: 4,
    prompt_tokens_details: { cached_tokens: 4 },
  });
  const sent = fleet.seen.map(({ prompt, body: sentBody }) => [
    [...(prompt.type === "tokens" ? prompt.tokens : [])],
    sentBody.sampling_options?.seed,
  ]);
  expect(sent).toEqual([
    [[1, 2, 3], 7],
    [[1, 2, 3], 8],
    [[4, 5], 7],
    [[4, 5], 8],
  ]);
});

it("stops at a stop string that lies across tokens, and cancels the worker", async () => {
  const fleet = fleetOf();
  fleet.scripts.set("aggregated", async (turn) => {
    const stream = turn.accept();
    for (const token of Buffer.from("one STOP two")) {
      stream.push({ tokenIds: [token] });
      turn.flush();
    }
    await turn.cancelled;
  });
  const body = { ...completion, stop: ["STOP"] };
  const answer = await unary(await fleet.post(completions, body));
  expect(answer.choices[0]).toMatchObject({ text: "one ", finish_reason: "stop" });
  expect(answer.usage.completion_tokens).toBe(8);
  expect(answer.usage).not.toHaveProperty("prompt_tokens_details");
  await expect.poll(() => fleet.cancels).toBe(1);
});

it("sends what it resolved: limits, stops, hints, never what only engines may send", async () => {
  const fleet = fleetOf({ contextLength: 100 });
  fleet.scripts.set("aggregated", say("x"));
  const body = {
    model: "mock-model",
    prompt: [1, 2, 3],
    stop: ["a", 5],
    stop_token_ids: [6],
    top_k: 3,
    guided_regex: "a+",
    extra_args: { ttft_target: 100, kv_transfer_params: { host: "x" }, other: 1 },
    kv_transfer_params: { host: "x" },
    nvext: {
      agent_hints: { priority: 3, osl: 9 },
      backend_instance_id: "18446744073709551615",
    },
  };
  const headers = { "x-dynamo-request-priority": "-4", "x-slo-tpot-ms": "12.5" };
  expect((await fleet.post(completions, body, headers)).status).toBe(200);
  const sent = fleet.seen[0]?.body;
  expect(sent?.stop_conditions).toEqual({
    max_tokens: 97,
    stop: ["a"],
    stop_token_ids: [5, 6],
  });
  expect(sent?.sampling_options).toEqual({ n: 1, top_k: 3, guided_decoding: { regex: "a+" } });
  expect(sent?.routing).toEqual({
    backend_instance_id: "18446744073709551615",
    expected_output_tokens: 9,
    priority: -4,
    priority_jump: -4,
  });
  expect(sent?.router).toEqual({
    ttft_target: 100,
    itl_target: 12.5,
    ttft_source: "extra_args",
    itl_source: "x-slo-tpot-ms",
  });
  expect(sent?.extra_args).toEqual({ other: 1 });
  expect(JSON.stringify(sent)).not.toMatch(/kv_transfer/);
});

it("adds the extras that nvext asks for to the finishing chunk", async () => {
  const fleet = fleetOf();
  fleet.scripts.set("aggregated", say("xyz"));
  const extra_fields = ["worker_id", "timing", "route", "stop_reason"];
  const body = { ...completion, stream: true, nvext: { extra_fields } };
  const events = eventsOf(await (await fleet.post(completions, body)).text()) as Unary[];
  const finishing = events.filter((event) => event.nvext !== undefined);
  expect(finishing).toHaveLength(1);
  expect(finishing[0]?.choices[0]?.finish_reason).toBe("stop");
  expect(finishing[0]?.nvext).toMatchObject({
    worker_id: {
      prefill_worker_id: "18446744073709551615",
      decode_worker_id: "18446744073709551615",
      prefill_dp_rank: 0,
      decode_dp_rank: 0,
    },
    timing: {
      ttft_ms: expect.any(Number),
      itl_ms: expect.any(Number),
      total_time_ms: expect.any(Number),
      kv_hit_rate: 1 / Math.ceil(islTokensOf(fleet.seen[0]!.prompt) / 16),
    },
    route: [{ decision_id: "g-aggregated", pool: "pool-aggregated", cell: "0,1", reason: "grid" }],
    stop_reason: null,
  });
});

it("sends the annotations that were asked for as chunks without choices", async () => {
  const fleet = fleetOf();
  fleet.scripts.set("aggregated", say("x"));
  const nvext = { annotations: ["request_id", "formatted_prompt"] };
  const body = { ...conversation, stream: true, nvext };
  const response = await fleet.post(chat, body, { "x-request-id": "abc" });
  const events = eventsOf(await response.text()) as Unary[];
  expect(events.slice(0, 2)).toMatchObject([
    { choices: [], nvext: { annotation: { name: "request_id", value: "abc" } } },
    {
      choices: [],
      nvext: {
        annotation: {
          name: "formatted_prompt",
          value: "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        },
      },
    },
  ]);
});

it("takes a prompt of 128k token ids within the body limit", async () => {
  const fleet = fleetOf({ contextLength: 131_072 });
  fleet.scripts.set("aggregated", say("x"));
  const prompt = Array.from({ length: 128_000 }, (_, place) => 100_000 + (place % 28_000));
  const response = await fleet.post(completions, { model: "mock-model", prompt, max_tokens: 1 });
  expect(response.status).toBe(200);
  expect(fleet.seen[0]?.prompt).toEqual({ type: "tokens", tokens: Uint32Array.from(prompt) });
});

it("lists models that are ready, and one by its name", async () => {
  const fleet = fleetOf();
  const { app } = fleet.frontend;
  const shown = {
    id: "mock-model",
    object: "model",
    created: 1_700_000_000,
    owned_by: "tiergrid",
  };
  expect(await (await app.request("/v1/models")).json()).toEqual({ object: "list", data: [shown] });
  expect(await (await app.request("/v1/models/mock-model")).json()).toEqual(shown);
  expect((await app.request("/v1/models/other/name")).status).toBe(404);
  fleet.model.ready = false;
  expect(await (await app.request("/v1/models")).json()).toEqual({ object: "list", data: [] });
});

it("is live always, healthy in words only, ready when it can serve", async () => {
  const fleet = fleetOf();
  const { app } = fleet.frontend;
  const status = async (path: string) => (await app.request(path)).status;
  expect(await (await app.request("/live")).json()).toEqual({ status: "live" });
  expect(await (await app.request("/health")).json()).toMatchObject({ status: "healthy" });
  expect(await status("/ready")).toBe(200);
  fleet.bus.connected = false;
  expect(await status("/ready")).toBe(503);
  fleet.bus.connected = true;
  fleet.model.ready = false;
  expect(await status("/ready")).toBe(503);
  const health = await app.request("/health");
  expect(health.status).toBe(200);
  expect(await health.json()).toMatchObject({ status: "unhealthy", endpoints: [] });
  fleet.model.ready = true;
  fleet.frontend.drain();
  expect(await status("/ready")).toBe(503);
  expect(await status("/live")).toBe(200);
});

it("counts a request once, by model, endpoint and outcome", async () => {
  const fleet = fleetOf();
  fleet.scripts.set("aggregated", say("four", 3));
  await (await fleet.post(chat, { ...conversation, stream: true })).text();
  await fleet.post(chat, { ...conversation, n: 99 });
  const counted = await fleet.metric("dynamo_frontend_requests_total{");
  expect(counted.sort()).toEqual([
    'dynamo_frontend_requests_total{model="mock-model",endpoint="chat_completions",request_type="stream",status="success",error_type=""} 1',
    'dynamo_frontend_requests_total{model="unknown",endpoint="chat_completions",request_type="unary",status="error",error_type="validation"} 1',
  ]);
  expect(await fleet.metric("dynamo_frontend_output_tokens_total{")).toEqual([
    'dynamo_frontend_output_tokens_total{model="mock-model"} 4',
  ]);
  const ttft = "dynamo_frontend_time_to_first_token_seconds_count{";
  expect(await fleet.metric(ttft)).toEqual([`${ttft}model="mock-model"} 1`]);
  const itl = "dynamo_frontend_inter_token_latency_seconds_count{";
  expect(await fleet.metric(itl)).toEqual([`${itl}model="mock-model"} 3`]);
  for (const gauge of ["inflight", "queued", "active"]) {
    const name = `dynamo_frontend_${gauge}_requests{`;
    expect(await fleet.metric(name)).toEqual([`${name}model="mock-model"} 0`]);
  }
  expect((await fleet.frontend.app.request("/metrics")).headers.get("content-type")).toMatch(
    /^text\/plain/,
  );
});
