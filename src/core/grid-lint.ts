/**
 * What a valid grid does that its owner hardly means, found without running anything: by pool
 * priorities, by latency curves when there are any, and by traffic when there is any.
 */
import { cellsOf, cornerOf, curveMs, type DesignLengths, type PoolCurves } from "./grid-builder.ts";
import type { GridTraffic } from "./grid-traffic.ts";
import { type AxisName, cellText, type SlaGrid } from "./sla-grid.ts";

export type FindingReason =
  | "tighter-target-slower-pool"
  | "override-inverted"
  | "target-missed"
  | "target-unmeetable"
  | "dead-cells"
  | "idle-pool"
  | "clamped-traffic";

export type FindingPlace =
  | { readonly type: "mapping" }
  | { readonly type: "cell"; readonly cell: readonly number[] }
  | { readonly type: "axis"; readonly axis: AxisName; readonly end: "min" | "max" }
  | { readonly type: "pool"; readonly pool: number }
  | { readonly type: "override"; readonly rule: number };

export interface GridFinding {
  readonly reason: FindingReason;
  readonly place: FindingPlace;
  readonly message: string;
}

export interface LintEvidence {
  /** By pool index; lower = faster. */
  readonly priorities: readonly number[];
  readonly curves?: PoolCurves | undefined;
  readonly design?: DesignLengths | undefined;
  readonly traffic?: GridTraffic | undefined;
  /** Share of the requests that may lie beyond one end of an axis. */
  readonly clampedShareMax: number;
}

/** Cells that one finding names; the rest are counted. */
export const namedCellsMax = 12;

/** All findings of `grid`, in the order of the rules. */
export function lintGrid(grid: SlaGrid, evidence: LintEvidence): GridFinding[] {
  const { curves, traffic } = evidence;
  return [
    ...slowerPools(grid, evidence),
    ...invertedOverrides(grid, evidence.priorities),
    ...(curves ? missedTargets(grid, curves, evidence.design) : []),
    ...(traffic ? trafficFindings(grid, traffic, evidence.clampedShareMax) : []),
  ];
}

/** Neighbours along a latency axis of which the tighter has the slower pool. */
function slowerPools(grid: SlaGrid, evidence: LintEvidence): GridFinding[] {
  const findings: GridFinding[] = [];
  const cells = cellsOf(grid.axes);
  grid.axes.forEach(({ name }, place) => {
    if (name !== "ttft" && name !== "itl") return;
    const stride = strideOf(grid, place);
    cells.forEach((cell, flat) => {
      if (cell[place]! + 1 === grid.axes[place]!.cells) return;
      const tight = speedOf(grid, evidence, flat, name);
      const lax = speedOf(grid, evidence, flat + stride, name, cell);
      if (tight.slowness <= lax.slowness) return;
      const message =
        `the tighter ${name} target has the slower pool: ${tight.text}, ` +
        `cell ${cellText(cells[flat + stride]!)} has ${lax.text}`;
      findings.push({
        reason: "tighter-target-slower-pool",
        place: { type: "cell", cell },
        message: `cell ${cellText(cell)}: ${message}`,
      });
    });
  });
  return findings;
}

/** Distance in `poolOfCell` of two neighbours along axis number `place`. */
function strideOf({ axes }: SlaGrid, place: number): number {
  return axes.slice(place + 1).reduce((cells, axis) => cells * axis.cells, 1);
}

/** Slowness of the pool of cell `flat`: predicted at the size of `cell`, else its priority. */
function speedOf(
  grid: SlaGrid,
  { priorities, curves, design }: LintEvidence,
  flat: number,
  latency: "ttft" | "itl",
  cell: readonly number[] = cellsOf(grid.axes)[flat]!,
): { readonly slowness: number; readonly text: string } {
  const pool = grid.poolOfCell[flat]!;
  if (!curves) {
    const slowness = priorities[pool]!;
    return { slowness, text: `pool ${pool} of priority ${slowness}` };
  }
  const { tokens } = cornerOf(grid.axes, cell, latency, design);
  const slowness = curveMs(curves[latency][pool]!, tokens);
  return { slowness, text: `pool ${pool} with ${msText(slowness)} at ${tokens} tokens` };
}

/** Rules for important requests that lead to a slower pool than rules for less important ones. */
function invertedOverrides({ overrides }: SlaGrid, priorities: readonly number[]): GridFinding[] {
  return overrides.flatMap((high, rule) => {
    const low = overrides.findIndex(
      ({ maxPriority, targetPool }) =>
        maxPriority < high.minPriority && priorities[targetPool]! < priorities[high.targetPool]!,
    );
    if (low < 0) return [];
    const message =
      `requests of priority ${high.minPriority} and more go to pool ${high.targetPool}, the less ` +
      `important ones of rule ${low} to the faster pool ${overrides[low]!.targetPool}`;
    return [{ reason: "override-inverted", place: { type: "override", rule }, message }];
  });
}

/** Cells whose pool does not keep the target at the worst corner by its curve. */
function missedTargets(
  grid: SlaGrid,
  curves: PoolCurves,
  design: DesignLengths | undefined,
): GridFinding[] {
  const findings: GridFinding[] = [];
  const unmeetable: string[] = [];
  cellsOf(grid.axes).forEach((cell, flat) => {
    const pool = grid.poolOfCell[flat]!;
    for (const { name } of grid.axes) {
      if (name !== "ttft" && name !== "itl") continue;
      const { tokens, targetMs } = cornerOf(grid.axes, cell, name, design);
      const predicted = curves[name].map((curve) => curveMs(curve, tokens));
      if (predicted[pool]! <= targetMs) continue;
      const other = predicted.findIndex((ms) => ms <= targetMs);
      if (other < 0) {
        unmeetable.push(`${cellText(cell)} (${name})`);
        continue;
      }
      const message =
        `cell ${cellText(cell)}: pool ${pool} needs ${msText(predicted[pool]!)} at ${tokens} ` +
        `tokens for the ${name} target ${msText(targetMs)}, pool ${other} needs ` +
        msText(predicted[other]!);
      findings.push({ reason: "target-missed", place: { type: "cell", cell }, message });
    }
  });
  if (unmeetable.length > 0) {
    const message = `no pool keeps the target of ${listText(unmeetable)}`;
    findings.push({ reason: "target-unmeetable", place: { type: "mapping" }, message });
  }
  return findings;
}

function trafficFindings(
  grid: SlaGrid,
  { total, cells, pools, clamped }: GridTraffic,
  clampedShareMax: number,
): GridFinding[] {
  const findings: GridFinding[] = [];
  const names = cellsOf(grid.axes).map(cellText);
  const dead = names.filter((_, flat) => cells[flat]!.requests === 0);
  if (dead.length > 0) {
    const message = `${dead.length} of ${cells.length} cells see no request: ${listText(dead)}`;
    findings.push({ reason: "dead-cells", place: { type: "mapping" }, message });
  }
  pools.forEach(({ requests }, pool) => {
    if (requests > 0) return;
    const message = `pool ${pool} is chosen for no request`;
    findings.push({ reason: "idle-pool", place: { type: "pool", pool }, message });
  });
  for (const { axis, end, requests } of clamped) {
    const share = requests / Math.max(total.requests, 1);
    if (share <= clampedShareMax) continue;
    const side = end === "low" ? "below" : "above";
    const bound = end === "low" ? "min" : "max";
    const at = grid.axes.find(({ name }) => name === axis)?.[bound];
    const message =
      `${percentText(share)} of the requests lie ${side} ${axis} ${at}: the cells at that end ` +
      "promise them nothing";
    findings.push({
      reason: "clamped-traffic",
      place: { type: "axis", axis, end: bound },
      message,
    });
  }
  return findings;
}

function listText(names: readonly string[]): string {
  const shown = names.slice(0, namedCellsMax).join(", ");
  const more = names.length - namedCellsMax;
  return more > 0 ? `${shown} and ${more} more` : shown;
}

function msText(ms: number): string {
  return `${Number(ms.toPrecision(4))} ms`;
}

function percentText(share: number): string {
  return `${Number((100 * share).toPrecision(3))} %`;
}
