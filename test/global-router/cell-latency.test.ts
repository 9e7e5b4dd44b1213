import fc from "fast-check";
import { expect, it } from "vitest";
import {
  attainmentOf,
  CellBook,
  type CellSample,
  cellSeriesMax,
  cellsOf,
  recentOf,
  recentWindowMs,
} from "../../src/global-router/cell-latency.ts";

const sample: CellSample = { target: "ttft", measuredMs: 100, targetMs: 200, explicit: true };
const place = { role: "prefill", pool: "p", cell: "0.0" } as const;

it("follows 2048 series, and counts the samples of one more as untracked", () => {
  const book = new CellBook(0);
  for (let at = 0; at < cellSeriesMax; at++) book.add({ ...place, cell: `${at}` }, sample, 0);
  expect([[...book.series].length, book.untracked]).toEqual([cellSeriesMax, 0]);
  book.add({ ...place, cell: "one more" }, sample, 0);
  book.add({ ...place, cell: "0" }, sample, 0);
  expect([[...book.series].length, book.untracked]).toEqual([cellSeriesMax, 1]);
  book.reset(7);
  expect([[...book.series].length, book.untracked, book.sinceWallMs]).toEqual([0, 0, 7]);
});

it("keeps between half and all of the recent window, whenever samples come", () => {
  const gaps = fc.array(fc.integer({ min: 0, max: recentWindowMs / 4 }), { maxLength: 60 });
  fc.assert(
    fc.property(gaps, fc.integer({ min: 0, max: 2 * recentWindowMs }), (steps, rest) => {
      const book = new CellBook(0);
      const times: number[] = [];
      let nowMs = 0;
      for (const step of steps) {
        nowMs += step;
        times.push(nowMs);
        book.add(place, sample, nowMs);
      }
      nowMs += rest;
      const [series] = [...book.series];
      if (!series) return;
      const within = (ageMs: number): number => times.filter((at) => at > nowMs - ageMs).length;
      const { latencies, met } = recentOf(series, nowMs);
      expect(latencies.count).toBeGreaterThanOrEqual(within(recentWindowMs / 2));
      expect(latencies.count).toBeLessThanOrEqual(within(recentWindowMs + 1));
      expect(met).toBe(latencies.count);
      expect(series.total.latencies.count).toBe(times.length);
    }),
    { seed: 5, numRuns: 500 },
  );
});

it("scores only requests that named a target, and tells cells by role", () => {
  const book = new CellBook(0);
  book.add(place, { ...sample, explicit: false }, 0);
  expect(attainmentOf([...book.series][0]!.total)).toBeNull();
  book.add(place, sample, 0);
  book.add(place, { ...sample, measuredMs: 200 }, 0);
  book.add(place, { ...sample, measuredMs: 200.1 }, 0);
  expect(attainmentOf([...book.series][0]!.total)).toBeCloseTo(2 / 3, 10);
  book.add({ ...place, role: "decode" }, { ...sample, target: "itl", predictedMs: 0 }, 0);
  const roles = cellsOf(book, 3 * recentWindowMs);
  expect(roles.map(({ role, cells }) => [role, cells.length])).toEqual([
    ["prefill", 1],
    ["decode", 1],
  ]);
  expect(roles[1]?.cells[0]).toMatchObject({
    cell: "0.0",
    pool: "p",
    latency: "itl",
    count: 1,
    recent: null,
    predicted: null,
    drift: { state: "learning", reference_ms: null },
  });
});
