import { expect, it } from "vitest";
import { startAnswer } from "../../src/frontend/disaggregate.ts";
import { frontendDefaults } from "../../src/frontend/frontend-parts.ts";
import { mockToken } from "../../src/protocol/mock-tokens.ts";
import { type Rig, rig } from "./fleet-rig.ts";

const outputTokens = 20;

interface Answer {
  readonly seed: number;
  readonly isl: number;
  readonly tokens: number[];
  readonly workers: string[];
  readonly leave: AbortController;
  cachedTokens: number | undefined;
  end: string | undefined;
}

/** One request through both tiers; its caller leaves when `leave` aborts. */
function ask({ clock, fleet }: Rig, seed: number, isl: number): Answer {
  const model = fleet.frontend.models.find("mock-model");
  if (!model) throw new Error("the model is not served");
  const leave = new AbortController();
  const answer: Answer = {
    ...{ seed, isl, tokens: [], workers: [], leave },
    ...{ cachedTokens: undefined, end: undefined },
  };
  const stop_conditions = { max_tokens: outputTokens, ignore_eos: true };
  startAnswer(
    {
      model,
      body: { model: "mock-model", stop_conditions, sampling_options: { seed } },
      tokens: Uint32Array.from({ length: isl }, (_, at) => mockToken(seed, at)),
      deadlineAtMs: clock.nowMs() + 120_000,
      signal: leave.signal,
      sink: {
        onAccepted: (frame) => answer.workers.push(frame.workerId),
        onOutput: (output) => answer.tokens.push(...output.tokenIds),
        onEnd: (end, cachedTokens) => {
          answer.end = end.finishReason;
          answer.cachedTokens = cachedTokens;
        },
        onError: (error) => {
          answer.end = error.code;
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

const waiting = ({ fleet }: Rig): number =>
  fleet.pools.reduce((sum, { router }) => sum + router.stats.waiting, 0);

async function expectNothingLeft({ clock, fleet }: Rig): Promise<void> {
  await clock.runFor(15_000);
  expect(fleet.global.openRequests).toBe(0);
  for (const { router } of fleet.pools) {
    expect(router.stats).toMatchObject({ openRequests: 0, waiting: 0, bookings: 0 });
  }
  for (const { worker } of fleet.workers) expect(worker.active()).toBe(0);
  await fleet.close();
}

it("answers all of a burst that waits in the routers' queues, with exact tokens", async () => {
  const it = await rig(51, { routerQueueThreshold: 0 });
  const answers = Array.from({ length: 40 }, (_, seed) => ask(it, seed, 500 + 100 * seed));
  await it.clock.runFor(100);
  expect(waiting(it)).toBeGreaterThan(20);
  const ended = () => answers.every(({ end }) => end !== undefined);
  expect(await it.clock.runUntil(ended, 110_000)).toBe(true);
  for (const { seed, isl, tokens, end } of answers) {
    expect(end).toBe("length");
    expect(tokens).toEqual(
      Array.from({ length: outputTokens }, (_, at) => mockToken(seed, isl + at)),
    );
  }
  await expectNothingLeft(it);
});

it("lets callers leave the queue without a trace", async () => {
  const it = await rig(52, { routerQueueThreshold: 0 });
  const answers = Array.from({ length: 30 }, (_, seed) => ask(it, seed, 3000));
  await it.clock.runFor(50);
  const before = waiting(it);
  for (const { leave } of answers.slice(15)) leave.abort();
  await it.clock.runFor(50);
  expect(waiting(it)).toBeLessThanOrEqual(before - 12);
  const stayed = answers.slice(0, 15);
  expect(await it.clock.runUntil(() => stayed.every(({ end }) => end), 110_000)).toBe(true);
  expect(stayed.map(({ end }) => end)).toEqual(Array(15).fill("length"));
  await expectNothingLeft(it);
});

it("without KV events sends a prompt back to the worker that had it", async () => {
  const it = await rig(53, { useKvEvents: false });
  const first = ask(it, 9, 1000);
  await it.clock.runUntil(() => first.end !== undefined, 30_000);
  const again = ask(it, 9, 1000);
  await it.clock.runUntil(() => again.end !== undefined, 30_000);
  expect(again.workers[0]).toBe(first.workers[0]);
  expect([first.cachedTokens, again.cachedTokens]).toEqual([0, 992]);
  await expectNothingLeft(it);
});
