/** Quotes of real local routers, in a whole fleet. */
import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import { checkPoolConfig } from "../../src/config/load-pool-config.ts";
import { mockToken } from "../../src/protocol/mock-tokens.ts";
import { laterMs } from "../../src/runtime/notice-outbox.ts";
import { type Rig, rig } from "./fleet-rig.ts";

interface Leg {
  readonly grid: { readonly grid_pool: number };
  readonly live: {
    readonly outcome: string;
    readonly targets: { readonly ttft_ms: number; readonly itl_ms: number };
    readonly quotes: readonly {
      readonly pool: number;
      readonly outcome: string;
      readonly quote: Readonly<Record<string, number>>;
    }[];
  };
  readonly result: { readonly pool: number; readonly namespace: string };
  readonly local: {
    readonly chosen: { readonly worker_id: string };
    readonly fit_target_ms: number;
    readonly candidates: readonly { readonly terms: Readonly<Record<string, number>> }[];
  };
}

const gpus = [1, 4];

function poolConfig(live: object) {
  const result = checkPoolConfig(
    {
      mode: "agg",
      num_agg_pools: 2,
      agg_pool_dynamo_namespaces: ["small", "big"],
      agg_pool_metadata: gpus.map((count) => ({ gpus: count })),
      agg_pool_selection_strategy: {
        ...{ ttft_min_ms: 0, ttft_max_ms: 1000, ttft_resolution: 2 },
        ...{ itl_min_ms: 0, itl_max_ms: 100, itl_resolution: 1 },
        agg_pool_mapping: [[1], [0]],
        ...live,
      },
    },
    { ownNamespace: "dynamo" },
  );
  if (!result.ok) throw new Error(JSON.stringify(result.faults));
  return result.config;
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

async function post(it: Rig, path: string, body: object): Promise<Response> {
  return settled(it, send(it, path, body));
}

function send(it: Rig, path: string, body: object): Promise<Response> {
  const { app, admin } = it.fleet.frontend.http;
  const target = path.startsWith("/v1/") ? app : admin;
  const init = {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  };
  return Promise.resolve(target.request(path, init));
}

function promptOf(family: number, length: number): number[] {
  return Array.from({ length }, (_, at) => mockToken(family, at));
}

/** The best-fit rule over what a leg shows, written out anew. */
function bestPool({ live: { quotes, targets } }: Leg): number {
  const scores = quotes.map(({ pool, quote }) => {
    const late = 1.1 * quote["predicted_ttft_ms"]! - targets.ttft_ms;
    const itlLate = Math.max(0, quote["predicted_itl_ms"]! - targets.itl_ms);
    const own = quote["gpus"]!;
    const count = gpus[pool]!;
    const gpuMs = ((quote["prefill_gpu_ms"]! + quote["decode_gpu_ms"]!) / own) * count;
    const cost = gpuMs + 0.1 * quote["predicted_ttft_ms"]! * count;
    if (quote["predicted_ttft_ms"]! > targets.ttft_ms) return 2e9 + cost + itlLate;
    if (late > 0 || itlLate > 0) return 1e9 + 1000 * Math.max(0, late) + itlLate;
    return cost;
  });
  return scores.indexOf(Math.min(...scores));
}

it("sends requests where the quotes say, exactly as it explains", async () => {
  const it = await rig(3, { routerCostMode: "latency" }, poolConfig({ selection: "live" }));
  const random = mulberry32(3);
  const running: { readonly served: Promise<Response>; readonly namespace: string }[] = [];
  const settleAll = async (): Promise<void> => {
    for (const { served, namespace } of running.splice(0)) {
      expect((await settled(it, served)).headers.get("x-route-pool")).toBe(namespace);
    }
  };
  const taken = new Set<number>();
  let left = 0;
  for (let round = 0; round < 40; round++) {
    const prompt = promptOf(1 + Math.floor(random() * 8), 500 + Math.floor(random() * 6500));
    const router = { ttft_target: 60 + Math.floor(random() * 600), itl_target: 90 };
    const request = { model: "mock-model", prompt, max_tokens: 5, nvext: { router } };
    const { legs } = (await (await post(it, "/explain", request)).json()) as { legs: [Leg] };
    const [leg] = legs;
    expect(leg.live.quotes.map(({ outcome }) => outcome)).toEqual(["answered", "answered"]);
    expect(leg.result.pool).toBe(bestPool(leg));
    // The worker is then chosen by the same target.
    expect(leg.local.fit_target_ms).toBe(router.ttft_target);
    taken.add(leg.result.pool);
    if (leg.result.pool !== leg.grid.grid_pool) left++;
    const { namespace } = leg.result;
    running.push({ served: send(it, "/v1/completions", request), namespace });
    await it.clock.runFor(1);
    if (random() < 0.05) await settleAll();
  }
  await settleAll();
  expect(taken.size).toBe(2);
  expect(left).toBeGreaterThan(5);
  await it.clock.runFor(laterMs);
  expect(it.fleet.global.openRequests).toBe(0);
  await it.fleet.close();
});

it("answers 429 with the best there is when no pool can meet the targets", async () => {
  const live = { selection: "live", live: { refuse: true } };
  const it = await rig(4, { routerCostMode: "latency" }, poolConfig(live));
  const router = { ttft_target: 1, itl_target: 90 };
  const request = { model: "mock-model", prompt: promptOf(1, 2000), max_tokens: 5 };
  const refused = await post(it, "/v1/completions", { ...request, nvext: { router } });
  expect(refused.status).toBe(429);
  expect(Number(refused.headers.get("retry-after"))).toBeGreaterThan(0);
  expect(await refused.json()).toMatchObject({
    error: { code: "sla_unattainable" },
    details: { best_ttft_ms: expect.any(Number), best_itl_ms: expect.any(Number) },
  });
  expect((await post(it, "/v1/completions", request)).status).toBe(200);
  await it.fleet.close();
});

it("follows the grid when its local routers do not predict", async () => {
  const it = await rig(5, { routerCostMode: "blocks" }, poolConfig({ selection: "checked" }));
  const router = { ttft_target: 900, itl_target: 90 };
  const request = { model: "mock-model", prompt: promptOf(1, 100), max_tokens: 2 };
  const { headers } = await post(it, "/v1/completions", { ...request, nvext: { router } });
  expect(headers.get("x-route-pool")).toBe("small");
  expect(headers.get("x-route-reason")).toBe("grid");
  await it.fleet.close();
});
