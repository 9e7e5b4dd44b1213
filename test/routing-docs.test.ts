/** The worked example of docs/routing.md: its state is read from the page, its costs are computed. */
import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { mulberry32 } from "../src/base/random.ts";
import type { BlocksTerms, LatencyTerms } from "../src/core/cost-terms.ts";
import { LatencyBook } from "../src/core/latency-book.ts";
import { defaultLatencyWeights, latencyCost } from "../src/core/latency-cost.ts";
import { ShapeLatency } from "../src/core/latency-model.ts";
import { polynomialPerf } from "../src/core/perf-model.ts";
import { blocksCost, type CostInput } from "../src/core/worker-cost.ts";

const page = readFileSync("docs/routing.md", "utf8");
const blockSize = 64;
const islTokens = 6000;
const fullBlocks = 93;
const nowMs = 10_000;

/** Cells of the rows below the header that starts with `head`; bold marks the lowest cost. */
function tableOf(head: string): string[][] {
  const lines = page.split("\n");
  const start = lines.findIndex((line) => line.startsWith(head));
  expect(start, head).toBeGreaterThan(0);
  const rows = lines.slice(start + 2, start + 6);
  return rows.map((row) =>
    row
      .split("|")
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );
}

const numberOf = (cell: string | undefined): number =>
  Number((cell ?? "").replaceAll(",", "").replaceAll("*", ""));

interface Worker {
  readonly cached: number;
  readonly pending: readonly { readonly tokens: number; readonly agoMs: number }[];
  readonly decoding: number;
  readonly firstTokenAgoMs: number;
  readonly active: number;
  readonly shared: number;
}

function workersOf(): Worker[] {
  return tableOf("| worker | cached blocks").map(
    ([, cached, pending, decoding, active, shared]) => ({
      cached: numberOf(cached),
      pending: [...(pending ?? "").matchAll(/([\d,]+)(?: tokens)? sent ([\d,]+) ms ago/g)].map(
        ([, tokens, agoMs]) => ({ tokens: numberOf(tokens), agoMs: numberOf(agoMs) }),
      ),
      decoding: numberOf(decoding?.split(" ")[0]),
      firstTokenAgoMs: numberOf(/\(([\d,]+) ms ago\)/.exec(decoding ?? "")?.[1]),
      active: numberOf(active),
      shared: numberOf(shared),
    }),
  );
}

const workers = workersOf();
const slots = Int32Array.from(workers.keys());

const input: CostInput = {
  nowMs,
  islTokens,
  blockSize,
  trackedBlocks: fullBlocks,
  trackPrefillTokens: true,
  decodeOnly: false,
  weights: {
    overlapScoreCredit: 1,
    overlapScoreCreditDecay: 0,
    prefillLoadScale: 1,
    hostCacheHitWeight: 0.75,
    diskCacheHitWeight: 0.25,
    sharedCacheMultiplier: 0,
    decodeActiveRequestWeight: 0,
  },
  overlap: { device: Int32Array.from(workers, ({ cached }) => cached) },
  load: {
    prefillTokens: Float64Array.from(workers, ({ pending }) =>
      pending.reduce((sum, { tokens }) => sum + tokens, 0),
    ),
    activeBlocks: Float64Array.from(workers, ({ active }) => active),
    activeRequests: Int32Array.from(workers, ({ pending, decoding }) => pending.length + decoding),
  },
  shared: Int32Array.from(workers, ({ shared }) => shared),
  expectedOutputTokens: 340,
};

it("states a prompt and workers that can be read from the page", () => {
  expect(page).toContain("A prompt of 6,000 tokens in blocks of 64: 93 full blocks");
  expect(workers).toHaveLength(4);
  expect(workers[0]?.pending).toEqual([
    { tokens: 9000, agoMs: 200 },
    { tokens: 3000, agoMs: 100 },
  ]);
});

it("computes the costs of blocks mode as the page has them", () => {
  const terms = Array.from(
    slots,
    (slot) => blocksCost.termsAt(input, slot, slots, slots.length) as BlocksTerms,
  );
  const shown = tableOf("| worker | prefill | decode | cost |");
  expect(shown.map((row) => row.map(numberOf))).toEqual(
    terms.map((term, at) => [
      at,
      term.rawPrefillBlocks - term.overlapCreditBlocks,
      term.potentialDecodeBlocks,
      term.cost,
    ]),
  );
  expect(shown.findIndex((row) => row[3]?.startsWith("**"))).toBe(lowest(terms));
});

it("computes the costs of latency mode as the page has them", () => {
  const cost = latencyCost({ book: bookOf(), weights: defaultLatencyWeights, gpus: 1 });
  const terms = Array.from(slots, (slot) => ({
    ...(cost.termsAt(input, slot, slots, slots.length) as LatencyTerms),
  }));
  const shown = tableOf("| worker | uncached tokens |");
  expect(shown.map((row) => row.map(numberOf))).toEqual(
    terms.map((term, at) => [
      at,
      term.uncachedTokens,
      Math.round(term.queuedTokens),
      tenths(term.ttftMs),
      tenths(term.ownPrefillMs),
      tenths(term.harmMs),
      tenths(term.fullMs),
      tenths(term.cost),
    ]),
  );
  expect(shown.findIndex((row) => row[7]?.startsWith("**"))).toBe(lowest(terms));
});

const tenths = (ms: number): number => Math.round(ms * 10) / 10;

function lowest(terms: readonly { readonly cost: number }[]): number {
  const costs = terms.map(({ cost }) => cost);
  return costs.indexOf(Math.min(...costs));
}

/** The queues of the page, reached as a router reaches them: by dispatches and first tokens. */
function bookOf(): LatencyBook {
  const { activeBlocks, activeRequests } = input.load;
  const load = {
    // A request holds a partly filled block beside the full ones.
    activeBlocks: activeBlocks.map((blocks, slot) => blocks - activeRequests[slot]!),
    activeRequests,
  };
  const book = new LatencyBook({ role: "aggregated", blockSize, load, random: mulberry32(1) });
  const shape = new ShapeLatency(polynomialPerf, {
    capacityTokens: 16_384 * blockSize,
    batchTokens: 8192,
  });
  const sequence = new Uint32Array(0);
  for (const [slot, { pending, decoding, firstTokenAgoMs }] of workers.entries()) {
    book.addHolder(slot, shape);
    const firstTokenMs = nowMs - firstTokenAgoMs;
    const prompt = { slot, cachedTokens: 0, sequence };
    for (let at = 0; at < decoding; at++) {
      const key = `${slot} decodes ${at}`;
      book.dispatched({ key, nowMs: firstTokenMs, uncachedTokens: 1, ...prompt });
      book.firstToken(key, firstTokenMs);
    }
    for (const [at, { tokens, agoMs }] of pending.entries()) {
      const key = `${slot} waits ${at}`;
      book.dispatched({ key, nowMs: nowMs - agoMs, uncachedTokens: tokens, ...prompt });
    }
  }
  return book;
}
