import { afterEach, expect, it } from "vitest";
import { islTokensOf } from "../../src/protocol/requests.ts";
import type { Failure, Unary } from "./answer-shapes.ts";
import {
  blockSize,
  eventsOf,
  type Fleet,
  type FleetOptions,
  type Script,
  say,
  startFleet,
} from "./scripted-fleet.ts";

const fleets: Fleet[] = [];
afterEach(async () => {
  for (const fleet of fleets.splice(0)) {
    await fleet.close();
    expect(fleet.owner.open).toBe(0);
    expect(fleet.frontend.inflight()).toBe(0);
  }
});

function fleetOf(options?: FleetOptions): Fleet {
  const fleet = startFleet({ mode: "disagg", ...options });
  fleets.push(fleet);
  return fleet;
}

const prompt = Array.from({ length: 3 * blockSize }, (_, place) => place);
const body = { model: "mock-model", prompt, max_tokens: 40, min_tokens: 2 };
const post = (fleet: Fleet, changed: object = {}) =>
  fleet.post("/v1/completions", { ...body, ...changed });
const unary = async (response: Response): Promise<Unary> => (await response.json()) as Unary;

/** A prefill leg that hands over `params`. */
const handOver =
  (params: unknown, cachedTokens?: number): Script =>
  (turn) => {
    const stream = turn.accept();
    stream.push({ tokenIds: [90], disaggregatedParams: params });
    const prompt_tokens = islTokensOf(turn.dispatch.prompt);
    const details = cachedTokens !== undefined && {
      prompt_tokens_details: { cached_tokens: cachedTokens },
    };
    stream.end({
      finishReason: "length",
      usage: { prompt_tokens, completion_tokens: 1, ...details },
    });
    turn.flush();
  };

it("asks for one token first, hands the parameters on unchanged, and answers with decode", async () => {
  const fleet = fleetOf();
  const params = { remote: { blocks: [1, 2], id: "18446744073709551615" }, empty: null };
  fleet.scripts.set("prefill", handOver(params, 16));
  fleet.scripts.set("decode", say("abc", 48));
  const answer = await unary(await post(fleet));
  expect(answer.choices[0]?.text).toBe("abc");
  // The prefill worker knows what was cached; for the decode worker all of it came by transfer.
  expect(answer.usage).toEqual({
    prompt_tokens: 48,
    completion_tokens: 3,
    total_tokens: 51,
    prompt_tokens_details: { cached_tokens: 16 },
  });
  const [prefill, decode] = fleet.seen;
  expect(prefill?.envelope.phase).toBe("prefill");
  expect(prefill?.body.stop_conditions).toEqual({ max_tokens: 1 });
  expect(prefill?.body.prefill_result).toBeUndefined();
  expect(decode?.envelope.phase).toBe("decode");
  expect(decode?.body.stop_conditions).toEqual({ max_tokens: 40, min_tokens: 2 });
  expect(decode?.body.prefill_result).toEqual({
    disaggregated_params: params,
    prompt_tokens_details: { cached_tokens: 16 },
  });
  expect(decode?.body.router_config_override).toEqual({
    overlap_score_weight: 0,
    assume_kv_reuse: false,
    track_prefill_tokens: false,
  });
  expect(decode?.prompt).toEqual(prefill?.prompt);
});

it("leaves cached_tokens out when the prefill worker does not say, and keeps an honest 0", async () => {
  const fleet = fleetOf();
  fleet.scripts.set("decode", say("abc", 48));
  fleet.scripts.set("prefill", handOver({}));
  expect((await unary(await post(fleet))).usage).not.toHaveProperty("prompt_tokens_details");
  fleet.scripts.set("prefill", handOver({}, 0));
  const { usage } = await unary(await post(fleet));
  expect(usage.prompt_tokens_details).toEqual({ cached_tokens: 0 });
});

it("names both legs in headers and extras", async () => {
  const fleet = fleetOf();
  fleet.scripts.set("prefill", handOver({}));
  fleet.scripts.set("decode", say("abc"));
  const nvext = { extra_fields: ["route"] };
  const response = await post(fleet, { stream: true, nvext });
  expect(response.headers.get("x-route-pool")).toBe("pool-prefill,pool-decode");
  const events = eventsOf(await response.text()) as Unary[];
  const route = events.find((event) => event.nvext)?.nvext?.["route"];
  expect(route).toMatchObject([{ role: "prefill" }, { role: "decode" }]);
});

it("answers with the prefill's token when that token ended the answer", async () => {
  const fleet = fleetOf();
  fleet.scripts.set("prefill", say("E", 5));
  fleet.scripts.set("decode", say("never"));
  const answer = await unary(await post(fleet));
  expect(answer.choices[0]).toMatchObject({ text: "E", finish_reason: "stop" });
  expect(answer.usage.prompt_tokens_details).toEqual({ cached_tokens: 5 });
  expect(fleet.seen).toHaveLength(1);
  expect(await fleet.metric("tiergrid_prefill_complete_answers_total")).toEqual([
    "tiergrid_prefill_complete_answers_total 1",
  ]);
});

const silentPrefill: Script = (turn) => {
  const stream = turn.accept();
  stream.push({ tokenIds: [90] });
  stream.end({ finishReason: "length" });
  turn.flush();
};
const refusing: Script = (turn) => turn.refuse("no_endpoints", "nobody there");
const fallback = (why: string) => [`tiergrid_disagg_fallback_total{why="${why}"} 1`];

it.each<[string, Script | undefined, number[], string]>([
  ["no prefill pool", undefined, prompt, "no_prefill_pool"],
  ["a failing prefill pool", refusing, prompt, "prefill_failed"],
  ["a prefill without parameters", silentPrefill, prompt, "prefill_failed"],
  ["a prompt below one block", silentPrefill, prompt.slice(0, 15), "below_one_block"],
])("lets the decode worker read the prompt after %s", async (_name, script, ids, why) => {
  const fleet = fleetOf();
  if (script) fleet.scripts.set("prefill", script);
  fleet.scripts.set("decode", say("abc", 16));
  const answer = await unary(await post(fleet, { prompt: ids }));
  expect(answer.choices[0]?.text).toBe("abc");
  expect(answer.usage.prompt_tokens_details).toEqual({ cached_tokens: 16 });
  const decode = fleet.seen.at(-1)?.body;
  expect(decode?.prefill_result).toBeUndefined();
  expect(decode?.router_config_override).toBeUndefined();
  expect(await fleet.metric("tiergrid_disagg_fallback_total{")).toEqual(fallback(why));
});

it.each<[string, Script | undefined]>([
  ["no prefill pool", undefined],
  ["a failing prefill pool", refusing],
  ["a prefill without parameters", silentPrefill],
])("fails with 503 after %s when disaggregation is enforced", async (_name, script) => {
  const fleet = fleetOf({ settings: { enforceDisagg: true } });
  if (script) fleet.scripts.set("prefill", script);
  fleet.scripts.set("decode", say("never"));
  const response = await post(fleet);
  expect(response.status).toBe(503);
  expect(((await response.json()) as Failure).error.code).toBe("unavailable");
  expect(fleet.seen.every(({ envelope }) => envelope.phase === "prefill")).toBe(true);
});

it("does not try a decode worker with what no worker can take", async () => {
  const fleet = fleetOf();
  fleet.scripts.set("prefill", (turn) => turn.refuse("invalid_request", "bad pin"));
  fleet.scripts.set("decode", say("never"));
  expect((await post(fleet)).status).toBe(400);
  expect(fleet.seen).toHaveLength(1);
});

it.each(["prefill", "decode"] as const)(
  "a client that leaves during %s frees it",
  async (phase) => {
    const fleet = fleetOf();
    fleet.scripts.set("prefill", handOver({}));
    fleet.scripts.set("decode", say("never"));
    const leaving = new AbortController();
    fleet.scripts.set(phase, async (turn) => {
      turn.accept();
      turn.flush();
      leaving.abort();
      await turn.cancelled;
    });
    const response = await fleet.frontend.app.request("/v1/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...body, stream: true }),
      signal: leaving.signal,
    });
    expect(response.status).toBe(499);
    await expect.poll(() => fleet.cancels).toBe(1);
    expect(fleet.seen.at(-1)?.envelope.phase).toBe(phase);
    expect(fleet.owner.open).toBe(0);
    expect(await fleet.metric("dynamo_frontend_model_cancellation_total{")).toHaveLength(1);
  },
);
