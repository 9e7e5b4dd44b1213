import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import { parseAzureTrace, withSharedPrefixes } from "../../src/sim/azure-trace.ts";
import { infiniteCacheHits } from "../../src/sim/trace-stats.ts";

const azure =
  "TIMESTAMP,ContextTokens,GeneratedTokens\r\n" +
  "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,0\n" +
  "2024-02-29 00:00:00,1,8";

it("reads Azure traces: arrivals from the first row, ids of their own", () => {
  const requests = parseAzureTrace(azure);
  expect(requests.map(({ inputTokens }) => inputTokens)).toEqual([4808, 3180, 1]);
  expect(requests.map(({ outputTokens }) => outputTokens)).toEqual([10, 1, 8]);
  expect(requests[1]?.arrivalMs).toBeCloseTo(52, 6);
  expect(requests.map(({ hashIds }) => hashIds.length)).toEqual([10, 7, 1]);
  expect(infiniteCacheHits(requests).hitBlocks).toBe(0);
});

it("names the lines of an Azure trace that are wrong", () => {
  const parse = (rows: string) => () =>
    parseAzureTrace(`TIMESTAMP,ContextTokens,GeneratedTokens\n${rows}`);
  expect(parse("2023-11-16 18:17:03,0,5")).toThrow(/line 2/);
  expect(parse("2023-11-16 18:17:03,5,5\nyesterday,5,5")).toThrow(/line 3/);
  expect(() => parseAzureTrace("a,b,c")).toThrow(/line 1: expected TIMESTAMP/);
});

it("gives a share of the prompts a beginning in common, and leaves lengths alone", () => {
  const requests = Array.from({ length: 2000 }, (_, place) => ({
    arrivalMs: place,
    inputTokens: 2100,
    outputTokens: 5,
    hashIds: [0, 1, 2, 3, 4].map((block) => 5 * place + block),
  }));
  const options = { share: 0.5, prompts: 4, zipf: 1.2, blocksMin: 1, blocksMax: 6 };
  const shared = withSharedPrefixes(requests, options, mulberry32(1));
  const changed = shared.filter(({ hashIds }, place) => hashIds[0] !== 5 * place).length;
  expect(changed / 2000).toBeCloseTo(0.5, 1);
  for (const [place, { hashIds, inputTokens }] of shared.entries()) {
    expect(hashIds).toHaveLength(Math.ceil(inputTokens / 512));
    expect(hashIds.at(-1)).toBe(5 * place + 4);
  }
  const parents = new Map<number, number | undefined>();
  for (const { hashIds } of shared) {
    for (const [block, id] of hashIds.entries()) {
      expect(parents.has(id) ? parents.get(id) : hashIds[block - 1]).toBe(hashIds[block - 1]);
      parents.set(id, hashIds[block - 1]);
    }
  }
});
