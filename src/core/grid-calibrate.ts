/**
 * A grid from measured latencies. The evidence is what a global router's `cells` question answers,
 * or a replay: per role, cell, pool and latency the count and two quantiles.
 *
 *   {"config_version": "ae6ef1b022cd",
 *    "roles": [{"role": "prefill", "cells": [
 *      {"cell": "1.0", "pool": "prefill-fast", "latency": "ttft",
 *       "count": 512, "p50_ms": 84.1, "p90_ms": 131.0}]}]}
 *
 * A latency depends on a request's length and not on its target, so the cells of one length are
 * evidence about one pool together. They are merged as log-normal parts, and the 90th percentile gets
 * an interval of 95 %. A cell keeps its pool unless that pool and the proposed one have enough
 * measurements and intervals that leave no doubt:
 *
 *             target ▼
 *   meets    ├──┤    │              misses      │  ├──┤          unsure   ├──│──┤
 */
import { TiergridError } from "../base/errors.ts";
import { cellsOf } from "./grid-builder.ts";
import { type AxisName, cellText, type Role, type SlaGrid } from "./sla-grid.ts";

export type Latency = "ttft" | "itl";

/** Measured latencies of the requests of one cell that one pool served. */
export interface MeasuredCell {
  /** Indexes joined by dots, as in metrics and explanations. */
  readonly cell: string;
  /** Namespace. */
  readonly pool: string;
  readonly latency: Latency;
  readonly count: number;
  readonly p50Ms: number;
  readonly p90Ms: number;
}

export interface MeasuredRole {
  readonly role: Role;
  readonly cells: readonly MeasuredCell[];
}

export interface MeasuredCells {
  /** Of the config under whose axes the cells were counted; null = not said. */
  readonly configVersion: string | null;
  readonly roles: readonly MeasuredRole[];
}

/** What is known of one pool for requests of one length; `low` to `high` holds the true p90. */
export interface PoolEvidence {
  readonly pool: number;
  readonly latency: Latency;
  readonly count: number;
  readonly p50Ms: number;
  readonly p90Ms: number;
  readonly lowMs: number;
  readonly highMs: number;
}

export type Verdict = "meets" | "misses" | "unsure" | "unknown";

/** Why a cell has the proposed pool; the first two change it. */
export type ProposalReason =
  | "too-slow"
  | "cheaper-meets"
  | "meets"
  | "misses-but-no-better"
  | "uncertain"
  | "not-enough-data";

export interface CellProposal {
  readonly cell: readonly number[];
  readonly pool: number;
  readonly proposed: number;
  readonly reason: ProposalReason;
  readonly targets: readonly { readonly latency: Latency; readonly targetMs: number }[];
  /** Of the cell's pool and, when it differs, of the proposed one. */
  readonly evidence: readonly PoolEvidence[];
}

export interface CalibrationOptions {
  /** By pool index; only the order counts. */
  readonly costs: readonly number[];
  readonly namespaces: readonly string[];
  /** Measurements of one length that a pool needs before its cells may change. */
  readonly countMin: number;
}

export const measuredCellsMax = 100_000;

/** Standard normal quantiles of 0.9 and of 0.975. */
const z90 = 1.2816;
const z975 = 1.96;
/**
 * Standard error of the empirical 90th percentile of log latencies, in units of sigma / sqrt(n):
 * sqrt(0.9 * 0.1) / density(z90).
 */
const p90Error = 1.709;
/** Histograms round; no spread is taken to be narrower than this. */
const sigmaMin = 0.05;

/** One proposal per cell, row-major. */
export function calibrateGrid(
  grid: SlaGrid,
  measured: readonly MeasuredCell[],
  options: CalibrationOptions,
): CellProposal[] {
  const rows = evidenceByRow(grid, measured, options.namespaces);
  const latencies = grid.axes.map(({ name }) => name).filter(isLatencyAxis);
  return cellsOf(grid.axes).map((cell, flat) => {
    const targets = latencies.map((latency) => ({
      latency,
      targetMs: targetOf(grid, cell, latency),
    }));
    const row = rows.get(rowOf(grid, cell)) ?? [];
    const pool = grid.poolOfCell[flat]!;
    const proposal = propose(pool, targets, row, options);
    const shown = [...new Set([pool, proposal.proposed])];
    const evidence = shown.flatMap((each) => row.filter((part) => part.pool === each));
    return { cell, pool, ...proposal, targets, evidence };
  });
}

/** Whether `evidence` keeps all `targets`; `unknown` while one has fewer than `countMin` counts. */
export function verdictOf(
  evidence: readonly PoolEvidence[],
  targets: CellProposal["targets"],
  countMin: number,
): Verdict {
  let verdict: Verdict = "meets";
  for (const { latency, targetMs } of targets) {
    const own = evidence.find((part) => part.latency === latency);
    if (!own || own.count < countMin) return "unknown";
    if (own.lowMs > targetMs) verdict = "misses";
    else if (own.highMs > targetMs && verdict === "meets") verdict = "unsure";
  }
  return verdict;
}

/** Reads the answer of `cells`, or a file of it; throws `config_invalid` naming the first fault. */
export function readMeasuredCells(value: unknown): MeasuredCells {
  if (!isObject(value)) throw invalid("", "an object", value);
  const version = value["config_version"] ?? null;
  if (version !== null && typeof version !== "string") {
    throw invalid("/config_version", "text", version);
  }
  const roles = value["roles"];
  if (!Array.isArray(roles)) throw invalid("/roles", "an array", roles);
  return { configVersion: version, roles: roles.map((role, at) => readRole(role, `/roles/${at}`)) };
}

/** The inverse of `readMeasuredCells`. */
export function measuredCellsJson({ configVersion, roles }: MeasuredCells): object {
  return {
    config_version: configVersion,
    roles: roles.map(({ role, cells }) => ({
      role,
      cells: cells.map(({ p50Ms, p90Ms, ...cell }) => ({ ...cell, p50_ms: p50Ms, p90_ms: p90Ms })),
    })),
  };
}

function propose(
  pool: number,
  targets: CellProposal["targets"],
  row: readonly PoolEvidence[],
  { costs, countMin }: CalibrationOptions,
): Pick<CellProposal, "proposed" | "reason"> {
  const verdicts = costs.map((_, each) =>
    verdictOf(
      row.filter((part) => part.pool === each),
      targets,
      countMin,
    ),
  );
  const own = verdicts[pool]!;
  if (own === "unknown") return { proposed: pool, reason: "not-enough-data" };
  if (own === "unsure") return { proposed: pool, reason: "uncertain" };
  let cheapest = own === "meets" ? pool : -1;
  verdicts.forEach((verdict, each) => {
    if (verdict !== "meets") return;
    if (cheapest < 0 || costs[each]! < costs[cheapest]!) cheapest = each;
  });
  if (own === "meets") {
    return { proposed: cheapest, reason: cheapest === pool ? "meets" : "cheaper-meets" };
  }
  if (cheapest < 0) return { proposed: pool, reason: "misses-but-no-better" };
  return { proposed: cheapest, reason: "too-slow" };
}

interface LogPart {
  readonly count: number;
  readonly mu: number;
  readonly sigma: number;
}

/** Evidence of every pool by row of the grid; measurements of unknown pools are left out. */
function evidenceByRow(
  grid: SlaGrid,
  measured: readonly MeasuredCell[],
  namespaces: readonly string[],
): Map<number, PoolEvidence[]> {
  const parts = new Map<string, LogPart[]>();
  const cells = new Map(cellsOf(grid.axes).map((cell) => [cellText(cell), cell]));
  for (const { cell: name, pool: namespace, latency, count, p50Ms, p90Ms } of measured) {
    const cell = cells.get(name);
    const pool = namespaces.indexOf(namespace);
    if (!cell || pool < 0 || count === 0) continue;
    const key = `${rowOf(grid, cell)} ${pool} ${latency}`;
    const sigma = Math.max(Math.log(p90Ms / p50Ms) / z90, sigmaMin);
    const own = parts.get(key) ?? [];
    own.push({ count, mu: Math.log(p50Ms), sigma });
    parts.set(key, own);
  }
  const rows = new Map<number, PoolEvidence[]>();
  for (const [key, own] of parts) {
    const [row = "", pool, latency] = key.split(" ");
    const evidence = { pool: Number(pool), latency: latency as Latency, ...mergedParts(own) };
    rows.set(Number(row), [...(rows.get(Number(row)) ?? []), evidence]);
  }
  return rows;
}

/** Moments of the mixture of `parts` in log space, as one log-normal distribution. */
function mergedParts(parts: readonly LogPart[]): Omit<PoolEvidence, "pool" | "latency"> {
  const count = parts.reduce((sum, part) => sum + part.count, 0);
  const mu = parts.reduce((sum, part) => sum + part.count * part.mu, 0) / count;
  const variance =
    parts.reduce((sum, part) => sum + part.count * (part.sigma ** 2 + (part.mu - mu) ** 2), 0) /
    count;
  const sigma = Math.sqrt(variance);
  const p90Ms = Math.exp(mu + z90 * sigma);
  const error = Math.exp((z975 * p90Error * sigma) / Math.sqrt(count));
  return { count, p50Ms: Math.exp(mu), p90Ms, lowMs: p90Ms / error, highMs: p90Ms * error };
}

/** Index on the length axis; a grid without one is a single row. */
function rowOf({ axes }: SlaGrid, cell: readonly number[]): number {
  const place = axes.findIndex(({ name }) => !isLatencyAxis(name));
  return place < 0 ? 0 : cell[place]!;
}

/** Lower edge of the cell: the tightest target it promises. */
function targetOf({ axes }: SlaGrid, cell: readonly number[], latency: Latency): number {
  const place = axes.findIndex(({ name }) => name === latency);
  return axes[place]!.edges[cell[place]!]!;
}

function isLatencyAxis(name: AxisName): name is Latency {
  return name === "ttft" || name === "itl";
}

function readRole(value: unknown, pointer: string): MeasuredRole {
  if (!isObject(value)) throw invalid(pointer, "an object", value);
  const { role, cells } = value;
  if (role !== "prefill" && role !== "decode" && role !== "agg") {
    throw invalid(`${pointer}/role`, "prefill, decode or agg", role);
  }
  if (!Array.isArray(cells) || cells.length > measuredCellsMax) {
    throw invalid(`${pointer}/cells`, `an array of at most ${measuredCellsMax}`, cells);
  }
  return { role, cells: cells.map((cell, at) => readCell(cell, role, `${pointer}/cells/${at}`)) };
}

/** `latency` may be left out where the role has only one; other keys are not read. */
function readCell(value: unknown, role: Role, pointer: string): MeasuredCell {
  if (!isObject(value)) throw invalid(pointer, "an object", value);
  const { cell, pool, count } = value;
  const latency: unknown = value["latency"] ?? latencyOfRole[role];
  const p50Ms = value["p50_ms"];
  const p90Ms = value["p90_ms"];
  if (typeof cell !== "string") throw invalid(`${pointer}/cell`, 'text such as "1.0"', cell);
  if (typeof pool !== "string") throw invalid(`${pointer}/pool`, "a namespace", pool);
  if (latency !== "ttft" && latency !== "itl") {
    throw invalid(`${pointer}/latency`, "ttft or itl", latency);
  }
  if (!Number.isSafeInteger(count) || (count as number) < 0) {
    throw invalid(`${pointer}/count`, "an integer >= 0", count);
  }
  const empty: MeasuredCell = { cell, pool, latency, count: 0, p50Ms: 0, p90Ms: 0 };
  if (count === 0) return empty;
  if (!isPositive(p50Ms)) throw invalid(`${pointer}/p50_ms`, "milliseconds above 0", p50Ms);
  if (!isPositive(p90Ms) || p90Ms < p50Ms) {
    throw invalid(`${pointer}/p90_ms`, "milliseconds, at least p50_ms", p90Ms);
  }
  return { ...empty, count: count as number, p50Ms, p90Ms };
}

const latencyOfRole = { prefill: "ttft", decode: "itl", agg: undefined } as const;

function isPositive(value: unknown): value is number {
  return typeof value === "number" && value > 0 && Number.isFinite(value);
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function invalid(pointer: string, expected: string, value: unknown): TiergridError {
  const got = (JSON.stringify(value) ?? "nothing").slice(0, 60);
  return new TiergridError(
    "config_invalid",
    `cells${pointer === "" ? "" : ` ${pointer}`}: expected ${expected}, got ${got}`,
  );
}
