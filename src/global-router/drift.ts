/**
 * What operators see of the cells: recent latencies and attainment, and where the grid has gone
 * stale, i.e. the pools of a cell are not what they were when the grid came into use.
 */
import type { DriftState } from "../core/drift-detector.ts";
import type { Role } from "../core/sla-grid.ts";
import type { Log } from "../runtime/log.ts";
import { attainmentOf, type CellBook, type CellSeries, recentOf } from "./cell-latency.ts";
import type { GlobalMetrics } from "./router-metrics.ts";

/** Recent requests below which a cell shows no quantiles. */
export const quantileSamplesMin = 20;

/** Counts and logs that a cell left its band, or is back. */
export function tellDrift(
  { log, metrics }: { readonly log: Log; readonly metrics: GlobalMetrics },
  series: CellSeries,
): void {
  const { role, cell, pool, target, drift } = series;
  metrics.counter("tiergrid_grid_drift_total", { role, to: drift.state }).add(1);
  const fields = { role, cell, pool, target, state: drift.state };
  const measured = { reference_ms: shown(drift.referenceMs), measured_ms: shown(drift.currentMs) };
  if (isStale(drift.state)) log.warn("grid is stale in a cell", { ...fields, ...measured });
  else log.info("grid holds again in a cell", { ...fields, ...measured });
}

export interface CellScrape {
  readonly nowMs: number;
  /** True when it is another book than at the last scrape. */
  readonly isNew: boolean;
  /** False for a role whose cells are too many to be told apart in labels. */
  readonly isLabelled: (role: Role) => boolean;
}

/** Copies a book to the gauges. */
export function collectCells(metrics: GlobalMetrics, book: CellBook, scrape: CellScrape): void {
  const { nowMs, isNew, isLabelled } = scrape;
  if (isNew) for (const name of cellFamilies) metrics.remove(name, {});
  const stale = new Map<string, { series: CellSeries; stale: boolean }>();
  const met = new Map<string, { series: CellSeries; met: number; missed: number }>();
  for (const series of book.series) {
    const { role, cell, pool, target } = series;
    if (!isLabelled(role)) continue;
    const recent = recentOf(series, nowMs);
    collectQuantiles(metrics, series, recent.latencies);
    const place = `${role} ${cell} ${pool}`;
    const isBad = isStale(series.drift.state) || (stale.get(place)?.stale ?? false);
    stale.set(place, { series, stale: isBad });
    const sum = met.get(`${role} ${cell} ${target}`) ?? { series, met: 0, missed: 0 };
    sum.met += recent.met;
    sum.missed += recent.missed;
    met.set(`${role} ${cell} ${target}`, sum);
  }
  for (const { series, stale: isBad } of stale.values()) {
    const { role, cell, pool } = series;
    metrics.gauge("tiergrid_grid_stale", { role, cell, pool }).set(isBad ? 1 : 0);
  }
  for (const { series, ...sum } of met.values()) {
    const { role, cell, target } = series;
    const labels = { role, cell, target };
    const ratio = attainmentOf(sum);
    if (ratio === null) metrics.remove("tiergrid_cell_attainment_ratio", labels);
    else metrics.gauge("tiergrid_cell_attainment_ratio", labels).set(ratio);
  }
}

function collectQuantiles(
  metrics: GlobalMetrics,
  { role, cell, pool, target }: CellSeries,
  recent: CellSeries["total"]["latencies"],
): void {
  const labels = { role, cell, pool, target };
  if (recent.count < quantileSamplesMin) {
    metrics.remove("tiergrid_cell_latency_seconds", labels);
    return;
  }
  for (const quantile of [0.5, 0.9, 0.99]) {
    const gauge = metrics.gauge("tiergrid_cell_latency_seconds", { ...labels, quantile });
    gauge.set(recent.quantileMs(quantile) / 1000);
  }
}

const cellFamilies = [
  "tiergrid_cell_latency_seconds",
  "tiergrid_cell_attainment_ratio",
  "tiergrid_grid_stale",
] as const;

function shown(latencyMs: number): number {
  return Number(latencyMs.toPrecision(3));
}

function isStale(state: DriftState): boolean {
  return state === "slower" || state === "faster";
}
