/** A comparison of pool layouts as one page that needs nothing from elsewhere. */
import type { SelectorReport } from "./pools-measure.ts";
import { classLines, headLine, type PoolsReport, poolsColumns } from "./pools-text.ts";
import { barOf, escaped, figure, htmlPage, lineChart, textWide } from "./replay-html.ts";

const barsWide = 300;
const barHeight = 20;

export function poolsHtml(report: PoolsReport): string {
  const title = report.name === "" ? `Pools on ${report.trace.name}` : report.name;
  const layouts = [...new Set(report.selectors.map(({ layout }) => layout))];
  const facts = [headLine(report), ...classLines(report)].map((line) => `${escaped(line)}<br>`);
  const parts = layouts.map((layout) => {
    const rows = report.selectors.filter((selector) => selector.layout === layout);
    return `<h2>${escaped(layout)}</h2>${curves(report, rows)}${table(report, rows)}`;
  });
  return htmlPage(title, `<p>${facts.join("\n")}</p>${capacityBars(report)}${parts.join("\n")}`);
}

function curves(report: PoolsReport, rows: readonly SelectorReport[]): string {
  const drawn = rows.filter(({ curve }) => curve.length > 1);
  const series = drawn.map(({ selector, curve }) => ({
    name: selector,
    points: curve.map(({ speed, attainment }) => ({ x: speed, y: attainment })),
  }));
  return lineChart("Requests that meet their class, by load", series, report.capacity?.share);
}

function capacityBars({ capacity, selectors }: PoolsReport): string {
  if (!capacity) return "";
  const labels = selectors.map(({ layout, selector }) => `${layout}: ${selector}`);
  const labelWidth = 16 + textWide(labels);
  const scale = barsWide / capacity.speed_max;
  const bars = selectors.map(({ selector, capacity: speed }, place) => {
    const y = 8 + place * barHeight;
    const label = escaped(labels[place] ?? "");
    const colour = selector.startsWith("live") ? "#d08a2e" : "#3b6fb6";
    const bar = barOf(labelWidth, y, scale, { colour, speed: speed ?? 0 });
    return `<text x="${labelWidth - 8}" y="${y + 11}" text-anchor="end">${label}</text>${bar}`;
  });
  const size = { tall: 8 + selectors.length * barHeight, wide: labelWidth + barsWide + 60 };
  return figure("Capacity, × the trace's rate", bars.join("\n"), size);
}

function table(report: PoolsReport, rows: readonly SelectorReport[]): string {
  const columns = poolsColumns(report);
  const head = columns.map(({ head }) => `<th>${escaped(head)}</th>`).join("");
  const lines = rows.map((row) => {
    const cells = columns.map(({ cell }) => `<td>${escaped(cell(row))}</td>`).join("");
    return `<tr><td>${escaped(row.selector)}</td>${cells}</tr>`;
  });
  return `<table><tr><th>choice</th>${head}</tr>\n${lines.join("\n")}</table>`;
}
