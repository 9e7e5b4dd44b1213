import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import { mockToken } from "../../src/protocol/mock-tokens.ts";
import { type Rig, rig } from "./fleet-rig.ts";

interface Leg {
  readonly role: string;
  readonly decision_id: string;
  readonly dry_run: boolean;
  readonly result: { readonly namespace: string };
  readonly local: {
    readonly chosen: { readonly worker_id: string };
    readonly tie_break: { readonly tied: number };
  };
}

interface Answered {
  readonly status: number;
  readonly headers: Headers;
  readonly json: Record<string, unknown>;
}

async function settled<T>({ clock }: Rig, promise: Promise<T>): Promise<T> {
  let done = false;
  const end = (): void => {
    done = true;
  };
  promise.then(end, end);
  await clock.runUntil(() => done, 60_000);
  return promise;
}

async function post(it: Rig, path: string, body: object): Promise<Answered> {
  const { app, admin } = it.fleet.frontend.http;
  const target = path.startsWith("/v1/") ? app : admin;
  const init = {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  };
  const response = await settled(it, Promise.resolve(target.request(path, init)));
  const json = (await settled(it, response.json())) as Record<string, unknown>;
  return { status: response.status, headers: response.headers, json };
}

/** Prompts that share a system prompt, and some of them more. */
function promptOf(family: number, length: number): number[] {
  return Array.from({ length }, (_, at) => mockToken(at < 64 ? 0 : family, at));
}

it("explains a request as it is then served, whatever runs and is cached", async () => {
  const it = await rig(5);
  const random = mulberry32(5);
  let compared = 0;
  const running: Promise<Answered>[] = [];
  for (let round = 0; round < 40; round++) {
    const prompt = promptOf(1 + Math.floor(random() * 6), 80 + Math.floor(random() * 1500));
    const request = { model: "mock-model", prompt, max_tokens: 1 + Math.floor(random() * 40) };
    const explained = await post(it, "/explain", request);
    expect(explained.status).toBe(200);
    const legs = explained.json["legs"] as Leg[];
    expect(legs.map(({ role, dry_run }) => [role, dry_run])).toEqual([
      ["prefill", true],
      ["decode", true],
    ]);
    const served = post(it, "/v1/completions", {
      ...request,
      nvext: { extra_fields: ["worker_id"] },
    });
    running.push(served);
    const overlap = random() < 0.5;
    if (!overlap) await Promise.all(running.splice(0));
    const { headers, json } = await served;
    const pools = headers.get("x-route-pool")?.split(",");
    expect(pools).toEqual(legs.map(({ result }) => result.namespace));
    const { worker_id } = json["nvext"] as { worker_id: Record<string, string> };
    const [prefill, decode] = legs;
    // The decode leg starts after the prefill, when the pools may stand otherwise.
    if (prefill!.local.tie_break.tied === 1) {
      compared++;
      expect(worker_id["prefill_worker_id"]).toBe(prefill!.local.chosen.worker_id);
    }
    expect(decode!.local.chosen.worker_id).not.toBe("");
  }
  await Promise.all(running);
  expect(compared).toBeGreaterThan(10);
  await it.fleet.close();
});

it("names the decisions of a served request, and tells them by id", async () => {
  const it = await rig(6);
  const request = { model: "mock-model", prompt: promptOf(1, 300), max_tokens: 3 };
  const { headers } = await post(it, "/v1/completions", request);
  const ids = headers.get("x-route-decision-id")?.split(",") ?? [];
  expect(ids).toHaveLength(2);
  const { admin } = it.fleet.frontend.http;
  for (const id of ids) {
    const response = await settled(it, Promise.resolve(admin.request(`/explain/${id}`)));
    expect(await response.json()).toMatchObject({
      decision_id: id,
      dry_run: false,
      local: { dry_run: false, chosen: { dp_rank: 0 }, candidates: [{}, {}] },
    });
  }
  const unknown = await settled(it, Promise.resolve(admin.request("/explain/nothing")));
  expect(unknown.status).toBe(404);
  await it.fleet.close();
});

it("books nothing for an explanation or a query for instances", async () => {
  const it = await rig(7);
  const request = { model: "mock-model", prompt: promptOf(1, 300), max_tokens: 3 };
  await post(it, "/explain", request);
  const annotations = ["query_instance_id:"];
  const unary = await post(it, "/v1/completions", { ...request, nvext: { annotations } });
  expect(unary.json).toMatchObject({
    choices: [{ text: "", finish_reason: "stop" }],
    usage: { prompt_tokens: 300, completion_tokens: 0 },
    nvext: {
      worker_id: { prefill_dp_rank: 0, decode_dp_rank: 0 },
      token_ids: request.prompt,
    },
  });
  const { app } = it.fleet.frontend.http;
  const streamed = await settled(
    it,
    Promise.resolve(
      app.request("/v1/completions", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ ...request, stream: true, nvext: { annotations } }),
      }),
    ),
  );
  const events = (await settled(it, streamed.text())).split("\n\n");
  expect(events).toHaveLength(3);
  expect(events[0]).toContain('"worker_id":{"prefill_worker_id":"');
  expect(events[1]).toBe("data: [DONE]");
  for (const { router } of it.fleet.pools.flatMap(({ routers }) => routers)) {
    expect(router.stats).toMatchObject({ openRequests: 0, bookings: 0 });
    expect(router.totals.received).toBe(0);
  }
  await it.fleet.close();
});

it("sets the busy thresholds of every pool, and tells which confirmed", async () => {
  const it = await rig(8);
  const set = { model: "mock-model", active_prefill_tokens_threshold: 5000 };
  const { json } = await post(it, "/busy_threshold", set);
  const pools = json["pools"] as object[];
  expect(pools).toHaveLength(it.fleet.pools.length);
  for (const pool of pools) expect(pool).toMatchObject({ active_prefill_tokens_threshold: 5000 });
  for (const { router } of it.fleet.pools.flatMap(({ routers }) => routers)) {
    expect(router.admin.thresholds().activePrefillTokens).toBe(5000);
  }
  const { admin } = it.fleet.frontend.http;
  const read = await settled(it, Promise.resolve(admin.request("/busy_threshold")));
  expect(((await read.json()) as { thresholds: object[] }).thresholds).toHaveLength(pools.length);
  expect((await post(it, "/busy_threshold", { ...set, model: "x" })).status).toBe(404);
  await it.fleet.close();
});

it.each([
  [404, { model: "other", prompt: [1] }],
  [400, { model: "mock-model", prompt: [] }],
  [400, { model: "mock-model", prompt: [1], nvext: { router: { ttft_target: "fast" } } }],
])("answers %d to an explain of %j", async (status, body) => {
  const it = await rig(9);
  expect((await post(it, "/explain", body)).status).toBe(status);
  await it.fleet.close();
});
