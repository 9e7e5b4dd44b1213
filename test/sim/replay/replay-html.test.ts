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
