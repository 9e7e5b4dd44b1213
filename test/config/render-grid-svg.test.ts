import { expect, it } from "vitest";
import { loadPoolConfigFile } from "../../src/config/load-pool-config.ts";
import { gridHtml, gridSvg } from "../../src/config/render-grid-svg.ts";

async function configOf(path: string) {
  const loaded = await loadPoolConfigFile(path, { ownNamespace: "dynamo" });
  if (!loaded.ok) throw new Error(JSON.stringify(loaded.faults));
  return loaded.config;
}

it.each(["demo.json", "agg-2d.yaml", "agg-3d.yaml", "small.json"])(
  "draws one rectangle per cell of %s, each inside the picture",
  async (name) => {
    const config = await configOf(`pool-configs/${name}`);
    const svg = gridSvg(config, new Map());
    const cells = config.roles.reduce((sum, { grid }) => sum + grid.poolOfCell.length, 0);
    const rects = [...svg.matchAll(/<rect x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"/g)];
    expect(rects).toHaveLength(cells);
    expect(new Set(rects.map(([, x, y]) => `${x} ${y}`)).size).toBe(cells);
    const [, width, height] = /width="(\d+)" height="(\d+)"/.exec(svg) ?? [];
    for (const [, x, y, w, h] of rects) {
      expect(Number(x) + Number(w)).toBeLessThanOrEqual(Number(width));
      expect(Number(y) + Number(h)).toBeLessThanOrEqual(Number(height));
    }
  },
);

it("writes the note of each cell, and escapes what it writes", async () => {
  const config = await configOf("pool-configs/small.json");
  const svg = gridSvg(config, new Map([["prefill", ["<7 %>"]]]));
  expect(svg).toContain("&lt;7 %&gt;");
  expect(svg).not.toContain("<7");
});

it("loads nothing from elsewhere in a page, and lists pools and rules", async () => {
  const page = gridHtml(await configOf("pool-configs/demo.json"), new Map());
  const addresses = page.replaceAll('xmlns="http://www.w3.org/2000/svg"', "");
  expect(addresses).not.toMatch(/https?:|src=|href=|url\(/);
  expect(page).toContain("prefill-bulk</td><td>1</td>");
  expect(page).toContain("100 to 1000</td><td>0 prefill-fast");
});
