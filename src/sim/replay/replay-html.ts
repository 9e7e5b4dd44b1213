/** A replay's result as one page that needs nothing from elsewhere: charts in SVG, one table. */
import type { CurvePoint } from "./replay-plan.ts";
import type { ReplayReport } from "./replay-report.ts";
import { columnsOf, rowsOf } from "./replay-text.ts";

const width = 640;
const height = 340;
const margin = { left: 48, right: 150, top: 12, bottom: 36 } as const;
const ticks = 5;
const legendRow = 17;
/** Room for a letter of the page's font. */
const letterWide = 6.5;
/** From the right end of the plot. */
const [legendLeft, legendTextLeft] = [12, 33];

interface Series {
  readonly name: string;
  readonly colour: string;
  readonly points: readonly { readonly x: number; readonly y: number }[];
}

interface Box {
  readonly xMin: number;
  readonly xMax: number;
  readonly yMin: number;
}

export function replayHtml(report: ReplayReport): string {
  const { trace, pool, seed, speed, targets } = report;
  const title = `Replay of ${trace.name}`;
  const facts =
    `${trace.requests} requests on ${pool.workers} workers of ${pool.blocks} × ` +
    `${pool.block_size} tokens; table at ${speed} × the trace's rate; seed ${seed}; targets ` +
    `TTFT ${targets.ttft_ms} ms, ${targets.tpot_ms} ms per token`;
  return htmlPage(
    title,
    `<p>${escaped(facts)}</p>
${curveChart(report, "deadline", "Requests within the deadline, by load")}
${curveChart(report, "pair", "Requests within TTFT and time per token, by load")}
${capacityChart(report)}
${table(report)}`,
  );
}

/** A page of `body` under its title. */
export function htmlPage(title: string, body: string): string {
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>${escaped(title)}</title>
<style>${style}</style></head><body>
<h1>${escaped(title)}</h1>${body}
</body></html>
`;
}

const style =
  "body{font:14px system-ui,sans-serif;margin:24px;color:#1a1a1a;background:#fff}" +
  "table{border-collapse:collapse}td,th{padding:2px 8px;text-align:right;white-space:nowrap}" +
  "td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f4f4f6}" +
  "figure{margin:0 0 24px}figcaption{font-weight:600}text{font-size:11px;fill:#333}";

function curveChart(report: ReplayReport, form: "pair" | "deadline", caption: string): string {
  const rows = rowsOf(report).filter(([, { curve }]) => curve.length > 1);
  const series = rows.map(([name, { curve }]) => ({
    name,
    points: curve.map((point: CurvePoint) => ({ x: point.speed, y: point[form] })),
  }));
  return lineChart(caption, series, report.capacity?.share);
}

/** Shares in 0.5..1 over a load, with a dashed line at `goal`; nothing without series. */
export function lineChart(
  caption: string,
  named: readonly Omit<Series, "colour">[],
  goal: number | undefined,
): string {
  if (named.length === 0) return "";
  const series = named.map((each, place) => ({ ...each, colour: colourOf(place, named.length) }));
  const points = series.flatMap((each) => each.points);
  const box = {
    xMin: Math.min(...points.map(({ x }) => x)),
    xMax: Math.max(...points.map(({ x }) => x)),
    yMin: 0.5,
  };
  const dashes = goal === undefined ? "" : goalLine(box, goal);
  const lines = series.map((each) => line(box, each)).join("");
  const tall = Math.max(height, margin.top + series.length * legendRow);
  const legendWide = legendTextLeft + textWide(series.map(({ name }) => name));
  const wide = Math.max(width, width - margin.right + legendWide);
  return figure(caption, `${axes(box)}${dashes}${lines}\n${legend(series)}`, { tall, wide });
}

function axes(box: Box): string {
  const steps = Array.from({ length: ticks + 1 }, (_, step) => step / ticks);
  const left = margin.left;
  const right = width - margin.right;
  const rows = steps.map((step) => {
    const y = box.yMin + step * (1 - box.yMin);
    const at = yOf(box, y);
    return `<line x1="${left}" x2="${right}" y1="${at}" y2="${at}" stroke="#ddd"/>
<text x="${left - 6}" y="${at + 4}" text-anchor="end">${Math.round(y * 100)} %</text>`;
  });
  const columns = steps.map((step) => {
    const x = box.xMin + step * (box.xMax - box.xMin);
    const y = height - margin.bottom + 16;
    return `<text x="${xOf(box, x)}" y="${y}" text-anchor="middle">${tidy(x)} ×</text>`;
  });
  return [...rows, ...columns].join("\n");
}

function goalLine(box: Box, share: number): string {
  const at = yOf(box, share);
  const right = width - margin.right;
  return `<line x1="${margin.left}" x2="${right}" y1="${at}" y2="${at}" stroke="#888"
 stroke-dasharray="4 3"/>`;
}

function line(box: Box, { points, colour }: Series): string {
  const places = points.map(({ x, y }) => `${xOf(box, x)},${yOf(box, Math.max(y, box.yMin))}`);
  return `<polyline points="${places.join(" ")}" fill="none" stroke="${colour}" stroke-width="1.8"/>`;
}

function legend(series: readonly Series[]): string {
  const right = width - margin.right;
  const left = right + legendLeft;
  return series
    .map(({ name, colour }, place) => {
      const y = margin.top + 8 + place * legendRow;
      return `<line x1="${left}" x2="${left + 16}" y1="${y}" y2="${y}" stroke="${colour}"
 stroke-width="3"/><text x="${right + legendTextLeft}" y="${y + 4}">${escaped(name)}</text>`;
    })
    .join("\n");
}

function capacityChart(report: ReplayReport): string {
  const rows = rowsOf(report).filter(([, policy]) => policy.capacity_deadline !== undefined);
  const { capacity } = report;
  if (rows.length === 0 || !capacity) return "";
  const bar = 16;
  const left = 130;
  const scale = (width - left - 60) / capacity.speed_max;
  const bars = rows.flatMap(([name, policy], place) => {
    const y = 8 + place * 2.4 * bar;
    return [
      `<text x="${left - 8}" y="${y + bar}" text-anchor="end">${escaped(name)}</text>`,
      barOf(left, y, scale, { colour: "#3b6fb6", speed: policy.capacity_deadline ?? 0 }),
      barOf(left, y + bar, scale, { colour: "#d08a2e", speed: policy.capacity_pair ?? 0 }),
    ];
  });
  const tall = 8 + rows.length * 2.4 * bar;
  return figure(
    "Capacity, × the trace's rate: deadline (blue), TTFT and time per token (orange)",
    bars.join("\n"),
    { tall },
  );
}

export function barOf(
  x: number,
  y: number,
  scale: number,
  { colour, speed }: { readonly colour: string; readonly speed: number },
): string {
  const long = tidy(speed * scale);
  return `<rect x="${x}" y="${y}" width="${long}" height="14" fill="${colour}"/>
<text x="${x + long + 4}" y="${y + 11}">${speed === 0 ? "–" : speed.toFixed(2)}</text>`;
}

function table(report: ReplayReport): string {
  const columns = columnsOf(report);
  const head = columns.map(({ head }) => `<th>${escaped(head)}</th>`).join("");
  const rows = rowsOf(report).map(([name, policy]) => {
    const cells = columns.map(({ cell }) => `<td>${escaped(cell(policy))}</td>`).join("");
    return `<tr><td>${escaped(name)}</td>${cells}</tr>`;
  });
  return `<table><tr><th>policy</th>${head}</tr>\n${rows.join("\n")}</table>`;
}

export function figure(
  caption: string,
  content: string,
  { tall = height, wide = width }: { readonly tall?: number; readonly wide?: number } = {},
): string {
  return `<figure><figcaption>${escaped(caption)}</figcaption>
<svg viewBox="0 0 ${tidy(wide)} ${tidy(tall)}" width="${tidy(wide)}" role="img"
 aria-label="${escaped(caption)}">
${content}
</svg></figure>`;
}

function xOf({ xMin, xMax }: Box, x: number): number {
  const wide = width - margin.left - margin.right;
  return tidy(margin.left + (wide * (x - xMin)) / Math.max(xMax - xMin, Number.EPSILON));
}

function yOf({ yMin }: Box, y: number): number {
  const tall = height - margin.top - margin.bottom;
  return tidy(margin.top + (tall * (1 - y)) / (1 - yMin));
}

/** Hues around the circle, every other one darker. */
function colourOf(place: number, count: number): string {
  return `hsl(${Math.round((360 * place) / count)} 65% ${place % 2 === 0 ? 45 : 32}%)`;
}

/** Room for the longest of `texts`. */
export function textWide(texts: readonly string[]): number {
  return letterWide * Math.max(...texts.map(({ length }) => length));
}

export function tidy(value: number): number {
  return Math.round(value * 100) / 100;
}

export function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll('"', "&quot;");
}
