import { expect, it } from "vitest";
import { type TrafficRequest, tokensOf, trafficOf } from "../../src/core/grid-traffic.ts";
import { makeAxis, type SlaGrid } from "../../src/core/sla-grid.ts";

const grid: SlaGrid = {
  role: "prefill",
  axes: [
    makeAxis("isl", { min: 100, max: 300 }, 2, "linear"),
    makeAxis("ttft", { min: 10, max: 30 }, 2, "linear"),
  ],
  poolOfCell: [0, 1, 1, 1],
  overrides: [{ minPriority: 5, maxPriority: 9, targetPool: 2 }],
};

function request(
  tokens: number,
  ttftMs: number | null,
  priority: number | null = null,
): TrafficRequest {
  return {
    query: {
      tokens,
      ttft: { valueMs: ttftMs, source: "test" },
      itl: { valueMs: null, source: "test" },
      priority,
    },
    outputTokens: 7,
  };
}

it("counts requests and tokens by cell, by pool after rules, and beyond each end", () => {
  const traffic = trafficOf(grid, 4, [
    request(150, 10),
    request(99, 9),
    request(300, 30),
    request(301, 31),
    request(150, 10, 6),
    request(150, null),
  ]);
  expect(traffic.total).toEqual({ requests: 6, tokens: 1150 });
  expect(traffic.cells).toEqual([
    { requests: 3, tokens: 399 },
    { requests: 1, tokens: 150 },
    { requests: 0, tokens: 0 },
    { requests: 2, tokens: 601 },
  ]);
  expect(traffic.pools.map(({ requests }) => requests)).toEqual([2, 3, 1, 0]);
  expect(traffic.clamped).toEqual([
    { axis: "isl", end: "low", requests: 1, tokens: 99 },
    { axis: "isl", end: "high", requests: 1, tokens: 301 },
    { axis: "ttft", end: "low", requests: 1, tokens: 99 },
    { axis: "ttft", end: "high", requests: 1, tokens: 301 },
  ]);
});

it("weighs a request by what its role computes", () => {
  const one = request(100, null);
  expect([tokensOf("prefill", one), tokensOf("decode", one), tokensOf("agg", one)]).toEqual([
    100, 7, 107,
  ]);
});
