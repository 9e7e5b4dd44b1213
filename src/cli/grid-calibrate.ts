/** `tiergrid grid calibrate`: a grid from measurements, with its evidence and what would change. */
import { TiergridError } from "../base/errors.ts";
import type { Given } from "../base/flags.ts";
import { workerCost } from "../config/grid-curves.ts";
import { checkPoolConfig, poolConfigError } from "../config/load-pool-config.ts";
import { nestCells, type PoolConfig, type RolePools } from "../config/pool-config.ts";
import { poolConfigText, withMappings } from "../config/write-pool-config.ts";
import { cellsOf } from "../core/grid-builder.ts";
import {
  type CellProposal,
  calibrateGrid,
  type MeasuredCell,
  type MeasuredCells,
  type PoolEvidence,
} from "../core/grid-calibrate.ts";
import { cellText } from "../core/sla-grid.ts";
import type { gridCalibrateFlags } from "./flags-grid.ts";
import { diffJson, diffRoles, diffText } from "./grid-diff.ts";
import { jsonText, loadGrid, type Print, percentText } from "./grid-file.ts";
import { loadTraffic } from "./grid-requests.ts";
import { measuredCells } from "./measured-cells.ts";
import { writeOutput } from "./output-file.ts";

interface RoleProposal {
  readonly pools: RolePools;
  readonly cells: readonly CellProposal[];
  readonly measured: readonly MeasuredCell[];
}

/** Prints the proposal, and writes the config where `--out` says; answers 0. */
export async function runGridCalibrate(
  { options, operands }: Given<typeof gridCalibrateFlags>,
  print: Print,
): Promise<number> {
  const { config } = await loadGrid(operands[0], options);
  const traffic = await loadTraffic(options);
  const measured = await measuredCells(config, options, traffic);
  if (!options.anyVersion) checkVersion(config, measured);
  const proposals = config.roles.map((pools) => {
    const own = measured.roles.find(({ role }) => role === pools.role)?.cells ?? [];
    tellForeignCells(pools, own);
    return proposalOf(pools, own, options.countMin);
  });
  const proposed = proposedConfig(config, proposals, options.namespace);
  if (options.out !== null) await writeOutput("--out", options.out, poolConfigText(proposed));
  const diffs = diffRoles(config, proposed, traffic?.requests);
  if (options.json) {
    const versions = { config_version: config.version, proposed_version: proposed.version };
    const roles = proposals.map(jsonOf);
    print(jsonText({ ...versions, config: proposed.normal, roles, diff: diffs.map(diffJson) }));
    return 0;
  }
  print(proposals.map(proposalText).join(""));
  print(`\nconfig ${config.version} to ${proposed.version}\n`);
  print(diffs.map(diffText).join(""));
  return 0;
}

/** Cells have meaning under the axes that they were counted with. */
function checkVersion({ version }: PoolConfig, { configVersion }: MeasuredCells): void {
  if (configVersion === null || configVersion === version) return;
  const message =
    `the cells were measured under config ${configVersion}, the file is ${version}; ` +
    "give --any-version when their axes are equal";
  throw new TiergridError("config_invalid", message);
}

/** Measurements that no cell of the grid can use are no evidence, but may be a mistake. */
function tellForeignCells(
  { role, grid, pools }: RolePools,
  measured: readonly MeasuredCell[],
): void {
  const names = new Set(cellsOf(grid.axes).map(cellText));
  const namespaces = new Set(pools.map(({ namespace }) => namespace));
  const foreign = measured.filter(({ cell, pool }) => !names.has(cell) || !namespaces.has(pool));
  const [first] = foreign;
  if (!first) return;
  const example = `such as cell ${first.cell} of pool ${first.pool}`;
  console.error(`note: ${role}: ${foreign.length} measured cells are not the config's, ${example}`);
}

function proposalOf(
  pools: RolePools,
  measured: readonly MeasuredCell[],
  countMin: number,
): RoleProposal {
  const namespaces = pools.pools.map(({ namespace }) => namespace);
  const costs = costsOf(pools);
  const cells = calibrateGrid(pools.grid, measured, { costs, namespaces, countMin });
  return { pools, cells, measured };
}

/** By metadata; where that leaves a pool out, a faster pool counts as the dearer one. */
function costsOf({ pools }: RolePools): number[] {
  const costs = pools.map(workerCost);
  const known = costs.filter((cost) => cost !== undefined);
  return known.length === pools.length ? known : pools.map(({ priority }) => -priority);
}

function proposedConfig(
  config: PoolConfig,
  proposals: readonly RoleProposal[],
  ownNamespace: string,
): PoolConfig {
  const file = withMappings(config.normal, (_, role) => {
    const own = proposals.find(({ pools }) => pools.role === role);
    const cells = own?.cells.map(({ proposed }) => proposed) ?? [];
    return nestCells(cells, own?.pools.grid.axes.slice(1) ?? []);
  });
  const result = checkPoolConfig(file, { ownNamespace });
  if (!result.ok) throw poolConfigError(result.faults);
  return result.config;
}

function proposalText({ pools, cells, measured }: RoleProposal): string {
  const total = cells.reduce((sum, cell) => sum + countIn(measured, cell), 0);
  const changed = cells.filter(({ pool, proposed }) => pool !== proposed);
  const lines = changed.map((cell) => changeText(pools, cell));
  const kept = new Map<string, number>();
  for (const { pool, proposed, reason } of cells) {
    if (pool === proposed) kept.set(reason, (kept.get(reason) ?? 0) + 1);
  }
  for (const [reason, count] of kept) {
    lines.push(`  ${count === 1 ? "1 cell stays" : `${count} cells stay`}: ${reason}`);
  }
  const moved = changed.reduce((sum, cell) => sum + countIn(measured, cell), 0);
  lines.push(`  ${percentText(moved, total)} of the measured requests move`);
  return `${pools.role}: ${changed.length} of ${cells.length} cells change\n${lines.join("\n")}\n`;
}

function changeText({ pools }: RolePools, proposal: CellProposal): string {
  const { cell, pool, proposed, reason, targets, evidence } = proposal;
  const name = (index: number): string => pools[index]?.namespace ?? "?";
  const wanted = targets.map(({ latency, targetMs }) => `${latency} ${round(targetMs)} ms`);
  const head = `  cell ${cellText(cell)} (${wanted.join(", ")}): ${name(pool)} to ${name(proposed)}`;
  const rows = evidence.map(
    ({ pool: own, latency, p90Ms, lowMs, highMs, count }) =>
      `    ${name(own)} ${latency} p90 ${round(p90Ms)} ms ` +
      `(${round(lowMs)} .. ${round(highMs)}) of ${count}`,
  );
  return [`${head}, ${reason}`, ...rows].join("\n");
}

/** Requests that were counted in the cell, at whichever pool; in agg by their TTFT. */
function countIn(measured: readonly MeasuredCell[], { cell, targets }: CellProposal): number {
  const own = measured.filter(
    (each) => each.cell === cellText(cell) && each.latency === targets[0]?.latency,
  );
  return own.reduce((sum, { count }) => sum + count, 0);
}

function jsonOf({ pools: { role, pools }, cells, measured }: RoleProposal): object {
  const name = (index: number): string | undefined => pools[index]?.namespace;
  return {
    role,
    cells: cells.map((proposal) => ({
      cell: cellText(proposal.cell),
      pool: name(proposal.pool),
      proposed: name(proposal.proposed),
      reason: proposal.reason,
      requests: countIn(measured, proposal),
      targets: proposal.targets.map(({ latency, targetMs }) => ({ latency, target_ms: targetMs })),
      evidence: proposal.evidence.map((part) => evidenceJson(part, name(part.pool))),
    })),
  };
}

function evidenceJson(
  { latency, count, p50Ms, p90Ms, lowMs, highMs }: PoolEvidence,
  pool: string | undefined,
): object {
  return {
    pool,
    latency,
    count,
    p50_ms: p50Ms,
    p90_ms: p90Ms,
    p90_low_ms: lowMs,
    p90_high_ms: highMs,
  };
}

function round(value: number): number {
  return Number(value.toPrecision(4));
}
