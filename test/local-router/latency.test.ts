import { expect, it } from "vitest";
import { bestFitScore, defaultFit } from "../../src/core/best-fit.ts";
import type { Receipt } from "../../src/protocol/requests.ts";
import { blockSize, configOf, promptOf, startPool } from "./pool-rig.ts";

const latency = { config: configOf({ router_cost_mode: "latency", router_gpus_per_worker: 4 }) };

const instOf = (receipt: Receipt): string => {
  if (receipt.type === "refused") throw new Error(`${receipt.code}: ${receipt.message}`);
  return receipt.inst;
};

interface Quote {
  readonly predicted_ttft_ms: number;
  readonly predicted_itl_ms: number;
  readonly queue_ms: number;
  readonly prefill_ms: number;
  readonly cached_tokens: number;
  readonly uncached_tokens: number;
  readonly prefill_gpu_ms: number;
  readonly decode_gpu_ms: number;
  readonly gpus: number;
  readonly kv_usage: number;
  readonly meets?: boolean;
  readonly model: { readonly source: string; readonly periods: number };
}

interface Quoted {
  readonly worker_id: string;
  readonly overlap_blocks: number;
  readonly quote: Quote;
}

interface Explained {
  readonly cost_mode: string;
  readonly chosen: { readonly worker_id: string };
  readonly candidates: readonly {
    readonly worker_id: string;
    readonly cost: number;
    readonly terms: Readonly<Record<string, number>>;
  }[];
}

/** A pool of three whose workers differ in cache and load. */
async function unevenPool(seed: number) {
  const pool = startPool(seed, latency);
  const workers = ["1", "2", "3"].map((inst) => pool.worker(inst));
  workers[1]?.cache(promptOf(1, 50), true);
  await pool.clock.runFor(100);
  for (let at = 0; at < 8; at++) {
    await pool.send(promptOf(100 + at, 5 + 20 * (at % 3))).receipt;
    await pool.clock.runFor(7);
  }
  return pool;
}

const tokenIds = (family: number, blocks: number): number[] => [...promptOf(family, blocks)];

it("quotes the worker that generate then takes, whatever is asked of it", async () => {
  for (let seed = 1; seed <= 6; seed++) {
    const pool = await unevenPool(seed);
    for (let at = 0; at < 24; at++) {
      const family = 1 + (at % 3);
      const blocks = 10 + ((at * 37) % 60);
      const target = [undefined, 60, 90, 100_000][at % 4];
      const targets = target === undefined ? {} : { ttft_target_ms: target };
      const asked = { token_ids: tokenIds(family, blocks), quote: targets };
      const before = pool.router.stats.bookings;
      const { worker_id, quote } = (await pool.question("best_worker_id", asked)) as Quoted;
      expect(pool.router.stats.bookings).toBe(before);
      expect(quote.queue_ms + quote.prefill_ms).toBeCloseTo(quote.predicted_ttft_ms, 9);
      const router = target === undefined ? {} : { ttft_target: target, best_fit: true };
      const explained = (await pool.question("explain", {
        ...{ token_ids: asked.token_ids, router },
      })) as Explained;
      const lowest = Math.min(...explained.candidates.map(({ cost }) => cost));
      const cheapest = explained.candidates.filter(({ cost }) => cost === lowest);
      // Equal costs are drawn by lot.
      if (cheapest.length === 1) {
        expect(worker_id).toBe(cheapest[0]?.worker_id);
        expect(explained.chosen.worker_id).toBe(worker_id);
        const sent = pool.send(promptOf(family, blocks), { router });
        expect(instOf(await sent.receipt)).toBe(worker_id);
      } else await pool.send(promptOf(family, blocks), { router }).receipt;
      await pool.clock.runFor(5);
    }
    await pool.router.close();
  }
});

it("has the fields of a quote, in ms, tokens and GPU time", async () => {
  const pool = startPool(1, latency);
  pool.worker("7").cache(promptOf(1, 30), true);
  await pool.clock.runFor(100);
  const asked = {
    token_ids: tokenIds(1, 50),
    quote: { ttft_target_ms: 1000, itl_target_ms: 100, expected_output_tokens: 10 },
  };
  const quoted = (await pool.question("best_worker_id", asked)) as Quoted;
  const uncached = 20 * blockSize;
  const prefillMs = 4.209989e-7 * uncached ** 2 + 1.518344e-2 * uncached + 16.50142;
  const step = (kv: number): number => -25.74 * kv * kv + 54.01 * kv + 5.74;
  const itlMs = step(51 / 1000);
  const harmMs = ((itlMs - step(0)) * 1 + itlMs) * 10;
  const { quote } = quoted;
  expect(quoted).toMatchObject({ worker_id: "7", dp_rank: 0, overlap_blocks: 30 });
  expect(quote).toMatchObject({
    version: 1,
    cached_tokens: 30 * blockSize,
    uncached_tokens: uncached,
    gpus: 4,
    kv_usage: 0,
    meets: true,
    valid_for_ms: 50,
    model: { source: "default", periods: 0, median_error: 0 },
  });
  expect(quote.prefill_ms).toBeCloseTo(prefillMs, 9);
  expect(quote.predicted_itl_ms).toBeCloseTo(itlMs, 9);
  expect(quote.queue_ms).toBeCloseTo(step(0), 9);
  expect(quote.prefill_gpu_ms).toBeCloseTo(4 * prefillMs, 9);
  expect(quote.decode_gpu_ms).toBeCloseTo(4 * 0.006 * harmMs, 9);
});

it("says whether targets are met, TTFT with a margin, and nothing without one", async () => {
  const pool = startPool(1, latency);
  pool.worker("7");
  await pool.clock.runFor(100);
  const token_ids = tokenIds(1, 50);
  const ask = async (quote: object): Promise<Quote> =>
    ((await pool.question("best_worker_id", { token_ids, quote })) as Quoted).quote;
  const plain = await ask({});
  expect(Object.hasOwn(plain, "meets")).toBe(false);
  const ttft = 1.1 * plain.predicted_ttft_ms;
  const itl = plain.predicted_itl_ms;
  expect((await ask({ ttft_target_ms: ttft })).meets).toBe(true);
  expect((await ask({ ttft_target_ms: ttft - 0.01 })).meets).toBe(false);
  expect((await ask({ ttft_target_ms: ttft, itl_target_ms: itl })).meets).toBe(true);
  expect((await ask({ itl_target_ms: itl - 0.01 })).meets).toBe(false);
  expect((await ask({ ttft_target_ms: 0 })).meets).toBe(false);
});

it("takes the cheapest worker in time, and nobody being in time the least late", async () => {
  const pool = await unevenPool(3);
  for (const target of [1, 60, 80, 120, 400, 10_000]) {
    const question = {
      token_ids: tokenIds(1, 60),
      router: { ttft_target: target, best_fit: true },
    };
    const { candidates, chosen } = (await pool.question("explain", question)) as Explained;
    const scores = candidates.map(({ worker_id, terms, cost }) => {
      const gpuMs = 4 * ((terms["own_prefill_ms"] ?? 0) + (terms["decode_harm_ms"] ?? 0));
      const predictedMs = terms["predicted_ttft_ms"] ?? 0;
      const fit = { predictedMs, gpuMs, gpus: 4 };
      const score = bestFitScore(fit, target, defaultFit.latencyShare);
      expect(cost / score).toBeCloseTo(1, 9);
      return { worker_id, score };
    });
    const best = scores.reduce((low, other) => (other.score < low.score ? other : low));
    const found = scores.find(({ worker_id }) => worker_id === chosen.worker_id);
    expect(found?.score).toBe(best.score);
  }
});

it("refuses a quote that it cannot give or read", async () => {
  const pool = startPool(1, latency);
  await pool.clock.runFor(10);
  pool.worker("7");
  await pool.clock.runFor(100);
  const token_ids = tokenIds(1, 5);
  const wrong = { token_ids, quote: { ttft_target_ms: "soon" } };
  expect(await pool.question("best_worker_id", wrong)).toMatchObject({
    error: { code: "invalid_request", details: { field: "quote.ttft_target_ms" } },
  });
  const blocks = startPool(2);
  blocks.worker("7");
  await blocks.clock.runFor(100);
  expect(await blocks.question("best_worker_id", { token_ids, quote: {} })).toMatchObject({
    error: { code: "not_implemented" },
  });
});

it("learns a worker's speed from its notices, and shows what it learnt", async () => {
  const pool = startPool(5, latency);
  const worker = pool.worker("7", {
    card: {
      perfModel: {
        kind: "coefficients",
        prefill: { pass_ms: 5, ms_per_token: 0.02, ms_per_token_context: 0 },
        decode: { step_ms: 5, ms_per_active_kv_token: 0, ms_per_sequence: 0 },
      },
    },
  });
  await pool.clock.runFor(100);
  const ask = async (): Promise<Quote> => {
    const asked = { token_ids: tokenIds(900, 100), quote: {} };
    return ((await pool.question("best_worker_id", asked)) as Quoted).quote;
  };
  expect((await ask()).model).toMatchObject({ source: "profile", periods: 0 });
  expect((await ask()).prefill_ms).toBeCloseTo(5 + 0.02 * 1600, 9);
  // The engine takes 20 ms + 0.1 ms a token, and 15 ms a decode step.
  for (let at = 0; at < 40; at++) {
    const blocks = 20 + ((at * 53) % 200);
    const { rid, receipt } = pool.send(promptOf(at, blocks));
    await receipt;
    const attempt = worker.taken.at(-1)?.envelope.attempt ?? 0;
    await pool.clock.runFor(20 + 0.1 * blocks * blockSize + 15);
    worker.tell({ type: "first_output", rid, attempt, ttft_ms: 1, cached_tokens: 0 });
    await pool.clock.runFor(15 * 49);
    worker.tell({ type: "progress", rid, attempt, output_tokens: 50 });
    await pool.clock.runFor(15 * 50);
    const end = { outcome: "ok", output_tokens: 100 } as const;
    worker.tell({ type: "finished", rid, attempt, ...end });
    await pool.clock.runFor(50);
  }
  const learnt = await ask();
  expect(learnt.model.source).toBe("calibrated");
  expect(learnt.model.periods).toBe(40);
  expect(Math.abs(learnt.prefill_ms - 180)).toBeLessThan(18);
  expect(Math.abs(learnt.predicted_itl_ms - 15)).toBeLessThan(1);
  const text = await pool.metrics.text();
  const labels = 'worker_id="7",dp_rank="0"';
  expect(text).toContain(`tiergrid_latency_model_periods_total{${labels}} 40`);
  expect(text).toContain(`tiergrid_latency_model_calibrated{${labels}} 1`);
  expect(text).toContain("tiergrid_latency_model_output_tokens 100");
  expect(text).toMatch(
    /tiergrid_latency_model_coefficient\{[^}]*coefficient="decode_step"\} 1[45]/,
  );
  worker.announcer.goodbye();
  await pool.clock.runFor(100);
  expect(await pool.metrics.text()).not.toContain("tiergrid_latency_model_periods_total{");
});

it("goes by the pool's profile for workers whose own cannot be read", async () => {
  const router_perf_model = {
    kind: "coefficients",
    prefill: { pass_ms: 7, ms_per_token: 0, ms_per_token_context: 0 },
    decode: { step_ms: 3, ms_per_active_kv_token: 0, ms_per_sequence: 0 },
  };
  const config = configOf({ router_cost_mode: "latency", router_perf_model });
  const pool = startPool(1, { config });
  pool.worker("7", { card: { perfModel: { kind: "guess" } } });
  await pool.clock.runFor(100);
  const asked = { token_ids: tokenIds(1, 5), quote: {} };
  const { quote } = (await pool.question("best_worker_id", asked)) as Quoted;
  expect(quote).toMatchObject({ prefill_ms: 7, predicted_itl_ms: 3, model: { source: "profile" } });
});
