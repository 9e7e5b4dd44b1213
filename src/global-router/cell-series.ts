/**
 * The series that a request counts in by the cell of its grid, held per role of a config:
 *
 *   ActiveRole ──▶ flat cell ──▶ { text, selections } ──▶ pool ──▶ { ended, targets, measured ratio }
 *
 * There are as many as the grid has cells and pools. A series appears when the first request counts
 * in it. Those of a config that a reload replaced go with its last request.
 */
import { cellText, flatCell } from "../core/sla-grid.ts";
import { type CounterSeries, type HistogramSeries, held } from "../runtime/metrics.ts";
import type { CellPlace, SlaMeasure } from "./cell-latency.ts";
import type { VersionTally } from "./grid-versions.ts";
import type { PoolDecision } from "./pool-decision.ts";
import type { ActiveRole } from "./pool-health.ts";
import { cellLabel, type GlobalMetrics } from "./router-metrics.ts";

/** A cell, and the pool that had a request of it. */
export interface PlaceSeries {
  /** With the cell as it is, also where the labels say `other`. */
  readonly place: CellPlace;
  ended(outcome: keyof VersionTally["ended"]): CounterSeries;
  target(target: SlaMeasure, result: "met" | "missed", explicit: boolean): CounterSeries;
  /** Measured over quoted latency. */
  measuredRatio(target: SlaMeasure): HistogramSeries;
}

export interface CellSeries {
  readonly selections: CounterSeries;
  /** By index of the pool in the config. */
  ofPool(pool: number): PlaceSeries;
}

/** The series of the cell that a decision selected. */
export type FindCellSeries = (decision: PoolDecision) => CellSeries;

export function createCellSeries(metrics: GlobalMetrics): FindCellSeries {
  const byRole = new WeakMap<ActiveRole, Map<number, CellSeries>>();
  return ({ role, selection: { cell } }) => {
    let cells = byRole.get(role);
    if (!cells) {
      cells = new Map();
      byRole.set(role, cells);
    }
    const flat = flatCell(role.grid, cell);
    let series = cells.get(flat);
    if (!series) {
      series = cellSeries(metrics, role, cell);
      cells.set(flat, series);
    }
    return series;
  };
}

function cellSeries(metrics: GlobalMetrics, role: ActiveRole, cell: readonly number[]): CellSeries {
  const labels = { role: role.role, cell: cellLabel(role.grid, cell) };
  const text = cellText(cell);
  return {
    selections: metrics.counter("tiergrid_grid_cell_selections_total", labels),
    ofPool: held((index) => {
      const pool = role.pools[index]?.namespace ?? "";
      return placeSeries(metrics, { ...labels, cell: text, pool }, { ...labels, pool });
    }),
  };
}

function placeSeries(metrics: GlobalMetrics, place: CellPlace, labels: CellPlace): PlaceSeries {
  const { role, pool } = place;
  const targets = held((target: SlaMeasure) =>
    held((result: "met" | "missed") =>
      held((isExplicit: boolean) => {
        const explicit = String(isExplicit);
        return metrics.counter("tiergrid_cell_sla_total", { ...labels, target, result, explicit });
      }),
    ),
  );
  return {
    place,
    target: (target, result, explicit) => targets(target)(result)(explicit),
    ended: held((outcome) =>
      metrics.counter("tiergrid_cell_requests_total", { ...labels, outcome }),
    ),
    measuredRatio: held((target) =>
      metrics.histogram("tiergrid_quote_measured_ratio", { role, pool, target }),
    ),
  };
}
