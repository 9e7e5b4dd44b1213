/**
 * The grids of a config as a picture: a colour per pool, a row per length, a column per target. What
 * is noted of a cell, such as its share of the traffic, stands below its pool.
 */
import type { Axis, Role } from "../core/sla-grid.ts";
import type { PoolConfig, RolePools } from "./pool-config.ts";
import { cellRange } from "./render-grid.ts";

/** A text per cell of a role, row-major. */
export type CellNotes = ReadonlyMap<Role, readonly string[]>;

/** Told apart with any colour vision; dark text is readable on each. */
const colours = ["#56b4e9", "#e69f00", "#5fc9a5", "#f0e442", "#cc9fc0", "#d98a5f", "#b3b3b3"];
const cellWidth = 132;
const cellHeight = 40;
const labelWidth = 120;
const lineHeight = 20;
const gap = 16;
const font = 'font-family="system-ui,sans-serif" font-size="12"';

/** An SVG document with every role's grid, one below the other. */
export function gridSvg(config: PoolConfig, notes: CellNotes): string {
  const parts: string[] = [];
  let top = 0;
  let width = 0;
  for (const pools of config.roles) {
    const drawn = drawRole(pools, notes.get(pools.role), top);
    parts.push(...drawn.parts);
    top = drawn.bottom + gap;
    width = Math.max(width, drawn.width);
  }
  const size = `width="${width}" height="${top}" viewBox="0 0 ${width} ${top}"`;
  const background = `<rect width="100%" height="100%" fill="#fff"/>`;
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size} ${font}>
<title>${escaped(titleOf(config))}</title>
${[background, ...parts].join("\n")}
</svg>
`;
}

/** A page with the picture, and the pools and rules of every role as tables. */
export function gridHtml(config: PoolConfig, notes: CellNotes): string {
  const title = titleOf(config);
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>${escaped(title)}</title>
<style>${style}</style></head><body>
<h1>${escaped(title)}</h1>
${gridSvg(config, notes)}
${config.roles.map(roleTables).join("\n")}
</body></html>
`;
}

function titleOf({ version }: PoolConfig): string {
  return `SLA grids of config ${version}`;
}

const style =
  "body{font:14px system-ui,sans-serif;margin:24px;color:#1a1a1a;background:#fff}" +
  "table{border-collapse:collapse;margin:0 0 16px}td,th{padding:2px 10px;text-align:left}" +
  "tr:nth-child(even){background:#f4f4f6}i{display:inline-block;width:12px;height:12px}";

interface Drawing {
  readonly parts: readonly string[];
  readonly bottom: number;
  readonly width: number;
}

/** One table per cell of the first axis when there are three. */
function drawRole(pools: RolePools, notes: readonly string[] | undefined, top: number): Drawing {
  const { axes } = pools.grid;
  const [rows, columns] = axes.slice(-2);
  if (!rows || !columns) return { parts: [], bottom: top, width: 0 };
  const planes = axes.length === 3 ? axes[0] : undefined;
  const parts: string[] = [];
  let y = top;
  for (let plane = 0; plane < (planes?.cells ?? 1); plane++) {
    const within = planes ? `, ${planes.name} ${cellRange(planes, plane)}` : "";
    parts.push(text(8, y + lineHeight, `${pools.role}${within}`, 'font-weight="600"'));
    y += lineHeight + 6;
    parts.push(...drawHeader(rows, columns, y));
    y += lineHeight;
    parts.push(...drawCells(pools, notes, { rows, columns, plane, top: y }));
    y += rows.cells * cellHeight + gap / 2;
  }
  return { parts, bottom: y, width: labelWidth + columns.cells * cellWidth + 8 };
}

function drawHeader(rows: Axis, columns: Axis, top: number): string[] {
  const names = text(8, top + 14, `${rows.name} \\ ${columns.name}`, 'fill="#555"');
  const ranges = Array.from({ length: columns.cells }, (_, column) => {
    const middle = labelWidth + (column + 0.5) * cellWidth;
    return text(middle, top + 14, cellRange(columns, column), 'text-anchor="middle"');
  });
  return [names, ...ranges];
}

interface Table {
  readonly rows: Axis;
  readonly columns: Axis;
  readonly plane: number;
  readonly top: number;
}

function drawCells(
  { pools, grid }: RolePools,
  notes: readonly string[] | undefined,
  { rows, columns, plane, top }: Table,
): string[] {
  const parts: string[] = [];
  for (let row = 0; row < rows.cells; row++) {
    const y = top + row * cellHeight;
    parts.push(text(8, y + 25, cellRange(rows, row)));
    for (let column = 0; column < columns.cells; column++) {
      const flat = (plane * rows.cells + row) * columns.cells + column;
      const pool = grid.poolOfCell[flat] ?? 0;
      const x = labelWidth + column * cellWidth;
      const note = notes?.[flat];
      const size = `width="${cellWidth - 2}" height="${cellHeight - 2}"`;
      parts.push(`<rect x="${x}" y="${y}" ${size} rx="3" fill="${colourOf(pool)}"/>`);
      const name = `${pool} ${pools[pool]?.namespace ?? ""}`;
      const middle = x + cellWidth / 2 - 1;
      const nameAt = y + (note === undefined ? 24 : 17);
      parts.push(text(middle, nameAt, name, 'text-anchor="middle"'));
      if (note !== undefined) parts.push(text(middle, y + 32, note, 'text-anchor="middle"'));
    }
  }
  return parts;
}

function roleTables({ role, pools, grid }: RolePools): string {
  const rows = pools.map(({ index, namespace, priority }) => {
    const colour = `<i style="background:${colourOf(index)}"></i>`;
    return `<tr><td>${colour} ${index}</td><td>${escaped(namespace)}</td><td>${priority}</td></tr>`;
  });
  const rules = grid.overrides.map(({ minPriority, maxPriority, targetPool }) => {
    const name = `${targetPool} ${pools[targetPool]?.namespace ?? ""}`;
    return `<tr><td>${minPriority} to ${maxPriority}</td><td>${escaped(name)}</td></tr>`;
  });
  const head = "<tr><th>request priority</th><th>goes to pool</th></tr>";
  const overrides = rules.length === 0 ? "" : `\n<table>${head}${rules.join("")}</table>`;
  return `<h2>${role}</h2>
<table><tr><th>pool</th><th>namespace</th><th>priority (lower is faster)</th></tr>
${rows.join("\n")}</table>${overrides}`;
}

function colourOf(pool: number): string {
  return colours[pool % colours.length] ?? "#fff";
}

function text(x: number, y: number, content: string, attributes = ""): string {
  const own = attributes === "" ? "" : ` ${attributes}`;
  return `<text x="${x}" y="${y}"${own}>${escaped(content)}</text>`;
}

function escaped(content: string): string {
  return content
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;");
}
