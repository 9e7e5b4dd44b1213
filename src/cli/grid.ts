/** `tiergrid grid show` and `tiergrid explain`: a pool config without a fleet. */
import type { Given } from "../base/flags.ts";
import { type PoolConfig, type RolePools, rolePools } from "../config/pool-config.ts";
import { renderGrid } from "../config/render-grid.ts";
import { type CellNotes, gridHtml, gridSvg } from "../config/render-grid-svg.ts";
import { type GridTraffic, type TrafficPart, trafficOf } from "../core/grid-traffic.ts";
import { type AxisReading, cellText, type PoolSelection, selectPool } from "../core/sla-grid.ts";
import { axisJson, overrideJson } from "../global-router/decision-json.ts";
import type { ExplainOptions, explainFlags } from "./flags-explain.ts";
import type { gridShowFlags } from "./flags-grid.ts";
import { jsonText, loadGrid, type Print, percentText } from "./grid-file.ts";
import { gridJson } from "./grid-json.ts";
import { trafficRequests } from "./grid-requests.ts";
import { askRouter, liveText } from "./live-explain.ts";
import { writeOutput } from "./output-file.ts";

/** Draws the grid of every role, or states it as JSON; answers the exit code. */
export async function showGrid(
  { options, operands }: Given<typeof gridShowFlags>,
  print: Print,
): Promise<number> {
  const { config } = await loadGrid(operands[0], options);
  const requests = await trafficRequests(options);
  const traffic = new Map(
    requests &&
      config.roles.map(({ role, grid, pools }) => [role, trafficOf(grid, pools.length, requests)]),
  );
  const notes: CellNotes = new Map(
    [...traffic].map(([role, { cells, total }]) => [
      role,
      cells.map((cell) => percentText(cell.requests, total.requests)),
    ]),
  );
  const { svg, html, json } = options;
  if (svg !== null) await writeOutput("--svg", svg, gridSvg(config, notes));
  if (html !== null) await writeOutput("--html", html, gridHtml(config, notes));
  if (json) {
    const roles = config.roles.map((pools) => gridJson(pools, traffic.get(pools.role)));
    print(jsonText({ config_version: config.version, roles }));
    return 0;
  }
  for (const pools of config.roles) {
    print(`${renderGrid(config, pools.role, notes.get(pools.role))}\n`);
    const own = traffic.get(pools.role);
    if (own) print(`${sharesText(pools, own)}\n`);
  }
  return 0;
}

/** What each pool gets of the traffic, and what the priority rules decide of it. */
function sharesText({ grid, pools }: RolePools, traffic: GridTraffic): string {
  const shareOf = (part: TrafficPart | undefined): string =>
    percentText(part?.requests ?? 0, traffic.total.requests);
  const rows = pools.map(
    ({ namespace }, at) => `  ${at} ${namespace} ${shareOf(traffic.pools[at])}\n`,
  );
  grid.overrides.forEach(({ minPriority, maxPriority }, rule) => {
    const share = shareOf(traffic.overrides[rule]);
    rows.push(`  by request priority ${minPriority} .. ${maxPriority}: ${share}\n`);
  });
  return `share of the requests\n${rows.join("")}`;
}

/** Says which pool of every role a request would go to, and why. */
export async function explainPool(
  given: Given<typeof explainFlags>,
  print: Print,
): Promise<number> {
  const { config } = await loadGrid(given.operands[0], given.options);
  const { nats, json } = given.options;
  if (nats !== null) {
    const roles = config.roles.map(({ role }) => role);
    const answer = await askRouter({ ...given.options, nats }, roles);
    if (answer.type === "explained") {
      print(json ? jsonText(answer.roles) : answer.roles.map(liveText).join(""));
      return 0;
    }
    console.error(`note: no global router answered (${answer.why}); this is what the file says`);
  }
  const selections = config.roles.map((role) => select(role, given.options));
  if (json) {
    const { priority } = given.options;
    print(jsonText(selections.map((selection) => selectionJson(config, selection, priority))));
  } else {
    config.roles.forEach((role, at) => {
      print(selectionText(role, selections[at]));
    });
  }
  return 0;
}

function select({ grid }: RolePools, options: ExplainOptions): PoolSelection {
  const target = (valueMs: number | null) => ({ valueMs, source: "flag" });
  return selectPool(grid, {
    tokens: options.tokens,
    ttft: target(options.ttftTargetMs),
    itl: target(options.itlTargetMs),
    priority: options.priority,
  });
}

/** The parts of `tiergrid.explain/1` that need no fleet. */
function selectionJson(
  config: PoolConfig,
  selection: PoolSelection,
  priority: number | null,
): object {
  const { role, axes, cell, gridPool, pool, reason } = selection;
  const { pools } = rolePools(config, role);
  const namespaceOf = (index: number): string | undefined => pools[index]?.namespace;
  return {
    role,
    config_version: config.version,
    axes: axes.map(axisJson),
    grid: { cell: cellText(cell), grid_pool: gridPool, namespace: namespaceOf(gridPool) },
    override: overrideJson(selection, priority),
    result: { pool, reason, namespace: namespaceOf(pool) },
  };
}

function selectionText({ role, pools }: RolePools, selection: PoolSelection | undefined): string {
  if (selection === undefined) return "";
  const { cell, gridPool, pool, override, axes } = selection;
  const name = (index: number): string => `${index} ${pools[index]?.namespace ?? "?"}`;
  const lines = [`${role}: pool ${name(pool)}`, ...axes.map(axisText)];
  lines.push(`  cell ${cell.join(".")} holds pool ${name(gridPool)}`);
  if (override !== null) {
    const range = `${override.minPriority} to ${override.maxPriority}`;
    lines.push(`  priority rule ${override.rule} (${range}) moves it to pool ${name(pool)}`);
  }
  return `${lines.join("\n")}\n`;
}

function axisText({ axis, value, source, index, cellLow, cellHigh, clamped }: AxisReading): string {
  const edges = `${round(cellLow)} to ${round(cellHigh)}`;
  const note = clamped === null ? "" : `, ${clamped === "low" ? "below" : "above"} the axis`;
  return `  ${axis.name} ${round(value)} (${source}) in cell ${index}, ${edges}${note}`;
}

function round(value: number): number {
  return Number(value.toPrecision(6));
}
