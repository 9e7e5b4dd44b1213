import { expect, it } from "vitest";
import { toTiergridError } from "../../src/base/errors.ts";
import { startAnswer } from "../../src/frontend/disaggregate.ts";
import { frontendDefaults } from "../../src/frontend/frontend-parts.ts";
import { mockToken } from "../../src/protocol/mock-tokens.ts";
import { type Rig, rig } from "./fleet-rig.ts";

interface Answer {
  readonly tokens: number[];
  cachedTokens: number | undefined;
  readonly workers: string[];
  end: string | undefined;
}

function ask({ clock, fleet }: Rig, prompt: Uint32Array, seed: number, maxTokens: number): Answer {
  const answer: Answer = { tokens: [], cachedTokens: undefined, workers: [], end: undefined };
  const model = fleet.frontend.models.find("mock-model");
  if (!model) throw new Error("the model is not served");
  startAnswer(
    {
      model,
      body: {
        model: "mock-model",
        stop_conditions: { max_tokens: maxTokens, ignore_eos: true },
        sampling_options: { seed },
      },
      tokens: prompt,
      deadlineAtMs: clock.nowMs() + 60_000,
      signal: new AbortController().signal,
      sink: {
        onAccepted: (frame) => answer.workers.push(frame.workerId),
        onOutput: (output) => answer.tokens.push(...output.tokenIds),
        onEnd: (end, cachedTokens) => {
          answer.end = end.finishReason;
          answer.cachedTokens = cachedTokens;
        },
        onError: (error) => {
          answer.end = `${error.code}: ${error.message}`;
        },
      },
    },
    {
      owner: fleet.frontend.owner,
      models: fleet.frontend.models,
      settings: frontendDefaults,
      clock,
      onFallback: () => {},
      onPrefillComplete: () => {},
    },
  );
  return answer;
}

const prompt = (seed: number, length: number): Uint32Array =>
  Uint32Array.from({ length }, (_, at) => mockToken(seed, at));

const expected = (seed: number, isl: number, count: number): number[] =>
  Array.from({ length: count }, (_, at) => mockToken(seed, isl + at));

it("answers over prefill and decode pools with exact tokens, and leaves nothing behind", async () => {
  const it = await rig(1);
  const { clock, fleet } = it;
  const answers = [100, 300, 900, 2500].map((length, at) => ask(it, prompt(at, length), at, 40));
  expect(await clock.runUntil(() => answers.every(({ end }) => end !== undefined), 30_000)).toBe(
    true,
  );
  for (const [at, length] of [100, 300, 900, 2500].entries()) {
    expect(answers[at]!.end).toBe("length");
    expect(answers[at]!.tokens).toEqual(expected(at, length, 40));
    expect(answers[at]!.workers).toHaveLength(2);
  }
  await clock.runFor(15_000);
  expect(fleet.frontend.owner.open).toBe(0);
  expect(fleet.global.openRequests).toBe(0);
  for (const { router } of fleet.pools) {
    expect(router.stats).toMatchObject({ openRequests: 0, bookings: 0, bookedBlocks: 0 });
  }
  for (const { worker } of fleet.workers) expect(worker.active()).toBe(0);
  await fleet.close();
  await clock.runFor(1000);
  expect(clock.pending()).toBe(0);
});

it("sends a prompt back to the worker that has its blocks", async () => {
  const it = await rig(2);
  const tokens = prompt(9, 1000);
  const first = ask(it, tokens, 1, 4);
  await it.clock.runUntil(() => first.end !== undefined, 30_000);
  await it.clock.runFor(1000);
  const again = ask(it, tokens, 2, 4);
  await it.clock.runUntil(() => again.end !== undefined, 30_000);
  expect(first.cachedTokens).toBe(0);
  expect(again.workers[0]).toBe(first.workers[0]);
  expect(again.cachedTokens).toBe(992);
  await it.fleet.close();
});

it("moves answers of a worker that disappears, token for token", async () => {
  const it = await rig(3);
  const answers = [1, 2, 3, 4].map((seed) => ask(it, prompt(seed, 200), seed, 1000));
  const started = () => answers.every(({ tokens }) => tokens.length > 20);
  expect(await it.clock.runUntil(started, 30_000)).toBe(true);
  const busy = it.fleet.workers.find(({ worker }) => worker.inst === answers[0]!.workers[1]);
  await busy?.kill();
  expect(await it.clock.runUntil(() => answers.every(({ end }) => end), 60_000)).toBe(true);
  for (const [at, seed] of [1, 2, 3, 4].entries()) {
    expect(answers[at]!.end).toBe("length");
    expect(answers[at]!.tokens).toEqual(expected(seed, 200, 1000));
  }
  await it.fleet.close();
});

it("says which pools are missing when it does not get ready", async () => {
  const it = await rig(4);
  for (const { kill, namespace } of it.fleet.workers) {
    if (namespace === "decode-bulk") await kill();
  }
  await it.clock.runFor(7000);
  const late = it.fleet.ready(100).catch(toTiergridError);
  await it.clock.runFor(1000);
  expect(await late).toMatchObject({ code: "not_ready" });
  expect(String(await late)).toContain("pools decode-bulk not ready after 100 ms");
  await it.fleet.close();
});

it("lists serving paths and pools on the frontend's /health", async () => {
  const { clock, fleet } = await rig(4);
  const response = await fleet.frontend.http.app.request("/health");
  expect(response.status).toBe(200);
  expect(await response.json()).toMatchObject({
    status: "healthy",
    endpoints: ["dyn://dynamo.global_router.decode_generate"],
    instances: [{ instance_id: fleet.global.inst, transport: "nats" }],
    pools: [
      { role: "prefill", index: 0, namespace: "prefill-fast", state: "ready" },
      { role: "prefill", index: 1, namespace: "prefill-bulk", state: "ready" },
      { role: "decode", index: 0, namespace: "decode-fast", state: "ready" },
      { role: "decode", index: 1, namespace: "decode-bulk", state: "ready" },
    ],
  });
  await fleet.close();
  await clock.runFor(1000);
});
