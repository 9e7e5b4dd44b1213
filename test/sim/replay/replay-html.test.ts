import { expect, it } from "vitest";
import { lineChart } from "../../../src/sim/replay/replay-html.ts";

it.each([1, 20, 40])("keeps all names of a chart inside the picture: %i of them", (count) => {
  const points = [1, 2].map((x) => ({ x, y: 0.9 }));
  const names = Array.from({ length: count }, (_, place) => `policy ${place}`);
  const chart = lineChart(
    "Load",
    names.map((name) => ({ name, points })),
    0.95,
  );
  const tall = Number(/viewBox="0 0 \d+ ([\d.]+)"/.exec(chart)?.[1]);
  const places = names.map((name) => Number(new RegExp(`y="([\\d.]+)">${name}<`).exec(chart)?.[1]));
  expect(places.every((y) => y > 0 && y + 4 < tall)).toBe(true);
});

it("has room for the longest name beside the plot", () => {
  const points = [1, 2].map((x) => ({ x, y: 0.9 }));
  const name = "live, 25 % wrong, 10 % of quotes late";
  const chart = lineChart("Load", [{ name, points }], undefined);
  const wide = Number(/viewBox="0 0 ([\d.]+) /.exec(chart)?.[1]);
  const left = Number(new RegExp(`x="([\\d.]+)" y="[\\d.]+">${name}<`).exec(chart)?.[1]);
  // Letters of 11 px are 6 px wide on average.
  expect(left + 6 * name.length).toBeLessThan(wide);
  expect(left).toBeGreaterThan(490);
});
