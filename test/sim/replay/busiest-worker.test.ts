import { expect, it } from "vitest";
import { mulberry32 } from "../../../src/base/random.ts";
import { busiestShares } from "../../../src/sim/replay/busiest-worker.ts";
import { prepareTrace } from "../../../src/sim/replay/prepared-trace.ts";
import { ReplayRun } from "../../../src/sim/replay/replay-run.ts";

/** Twenty requests of 1,000 tokens in the first window, four in the third; each takes a second. */
const arrivalsMs = [...Array.from({ length: 20 }, (_, at) => 100 * at), 61e3, 62e3, 63e3, 64e3];
const requests = arrivalsMs.map((arrivalMs, at) => ({
  ...{ arrivalMs, inputTokens: 1000, outputTokens: 5 },
  hashIds: [2 * at, 2 * at + 1],
}));
const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: mulberry32(1) });

/** `workerOf` of every place; prompts of worker 1 are half cached. */
function runOf(workerOf: (place: number) => number): ReplayRun {
  const run = new ReplayRun(trace.count);
  const totals = { prefillMs: 0, computedTokens: 0, preemptions: 0, evictedBlocks: 0 };
  run.engines.push(totals, totals);
  for (let place = 0; place < run.count; place++) {
    run.arrivalMs[place] = arrivalsMs[place] ?? 0;
    run.lastMs[place] = (arrivalsMs[place] ?? 0) + 1000;
    run.worker[place] = workerOf(place);
    run.cached[place] = workerOf(place) === 1 ? 500 : 0;
  }
  return run;
}

it("counts requests and uncached tokens, over the run and in windows with enough requests", () => {
  // 15 of the first 20, then all four of a window that is too thin to count.
  const run = runOf((place) => (place % 4 === 3 && place < 20 ? 1 : 0));
  expect(busiestShares(trace, run)).toEqual({
    requests: 0.7917,
    tokens: 0.8837,
    requests_30s: 0.75,
    tokens_30s: 0.8571,
    in_flight: 8,
  });
});

it("is even where the workers are, and leaves out requests that nobody got", () => {
  const even = runOf((place) => place % 2);
  expect(busiestShares(trace, even)).toMatchObject({
    requests: 0.5,
    requests_30s: 0.5,
    in_flight: 5,
  });
  const refused = runOf((place) => (place % 2 === 0 ? 0 : -1));
  expect(busiestShares(trace, refused)).toMatchObject({ requests: 1, tokens: 1, in_flight: 5 });
});
