/** `tiergrid grid show`, `tiergrid grid lint`, `tiergrid explain`: a pool config without a fleet. */
import { TiergridError } from "../base/errors.ts";
import type { Given } from "../base/flags.ts";
import { type ConfigFault, formatFault } from "../config/config-fault.ts";
import { loadPoolConfigFile, poolConfigError } from "../config/load-pool-config.ts";
import type { PoolConfig, RolePools } from "../config/pool-config.ts";
import { renderGrid } from "../config/render-grid.ts";
import { type AxisReading, type PoolSelection, selectPool } from "../core/sla-grid.ts";
import type { ExplainOptions, explainFlags, GridOptions, gridFlags } from "./flags-grid.ts";
import { askRouter, liveText } from "./live-explain.ts";

type Print = (text: string) => void;

/** Draws the grid of every role; returns the exit code. */
export async function showGrid(given: Given<typeof gridFlags>, print: Print): Promise<number> {
  const { config } = await load(given);
  for (const { role } of config.roles) print(`${renderGrid(config, role)}\n`);
  return 0;
}

/** Lists warnings, or throws all faults. */
export async function lintGrid(given: Given<typeof gridFlags>, print: Print): Promise<number> {
  const { config, warnings } = await load(given);
  for (const warning of warnings) print(`warning  ${formatFault(warning)}\n`);
  const pools = config.roles.map((role) => `${role.pools.length} ${role.role}`).join(", ");
  print(`ok  config ${config.version}: pools ${pools}; ${warnings.length} warnings\n`);
  return 0;
}

/** Says which pool of every role a request would go to, and why. */
export async function explainPool(
  given: Given<typeof explainFlags>,
  print: Print,
): Promise<number> {
  const { config } = await load(given);
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
    const records = config.roles.map((role, at) => recordOf(role, selections[at]));
    print(jsonText(records));
  } else {
    config.roles.forEach((role, at) => {
      print(selectionText(role, selections[at]));
    });
  }
  return 0;
}

async function load({
  operands,
  options,
}: {
  readonly operands: readonly string[];
  readonly options: GridOptions;
}): Promise<{ config: PoolConfig; warnings: readonly ConfigFault[] }> {
  const [path] = operands;
  if (path === undefined) throw new TiergridError("config_invalid", "<file> is missing");
  const { namespace, strictConfig } = options;
  const result = await loadPoolConfigFile(path, { ownNamespace: namespace, strict: strictConfig });
  if (!result.ok) throw poolConfigError(result.faults);
  return result;
}

function jsonText(value: unknown): string {
  return `${JSON.stringify(value, undefined, 2)}\n`;
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

function recordOf({ pools }: RolePools, selection: PoolSelection | undefined): object {
  return { namespace: pools[selection?.pool ?? -1]?.namespace, ...selection };
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
