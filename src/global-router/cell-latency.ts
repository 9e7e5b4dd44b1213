/**
 * What the cells of one grid really get: measured latencies per role, pool, cell and target.
 *
 *   ended request ──▶ CellSeries ── total    since the grid is in use, or the last reset
 *                        │       ├─ recent   two halves of a window; the older half is dropped whole
 *                        │       └─ drift    reference and detector
 *                        └──▶ `cells` (JSON, for `tiergrid grid calibrate`), gauges
 *
 * - TTFT as the stream's owner saw it; ITL is the mean of one request. One sample per request.
 * - At most `cellSeriesMax` series; samples of further ones are counted as untracked.
 */
import { DriftDetector, type DriftState } from "../core/drift-detector.ts";
import { LatencyHistogram } from "../core/latency-histogram.ts";
import type { Role } from "../core/sla-grid.ts";

export const cellSeriesMax = 2048;
/** Length of the recent window; it holds between half of it and all of it. */
export const recentWindowMs = 600_000;

export type SlaMeasure = "ttft" | "itl";

/** The cell of a grid, and the pool that served a request of it. */
export interface CellPlace {
  readonly role: Role;
  readonly pool: string;
  /** Cell indexes as text, e.g. `1.0`. */
  readonly cell: string;
}

export interface CellSample {
  readonly target: SlaMeasure;
  readonly measuredMs: number;
  readonly targetMs: number;
  /** What the pool had quoted, if it was asked. */
  readonly predictedMs?: number | undefined;
  /** True when the request, not a default, named the target. */
  readonly explicit: boolean;
}

/** Latencies, and how many requests with a target of their own met it. */
interface Tally {
  readonly latencies: LatencyHistogram;
  met: number;
  missed: number;
}

/** What pools had quoted for requests of a cell, and by how much it was wrong. */
interface Prediction {
  readonly latencies: LatencyHistogram;
  /** |measured - predicted| / predicted in percent. */
  readonly errors: LatencyHistogram;
}

export interface CellSeries extends CellPlace {
  readonly target: SlaMeasure;
  readonly total: Tally;
  readonly drift: DriftDetector;
  /** Undefined until a quoted request ended. */
  prediction: Prediction | undefined;
  /** The open half of the recent window and the one before. */
  open: Tally;
  before: Tally;
  openedMs: number;
}

export class CellBook {
  readonly #series = new Map<string, CellSeries>();
  sinceWallMs: number;
  /** Samples that had no series. */
  untracked = 0;

  constructor(wallMs: number) {
    this.sinceWallMs = wallMs;
  }

  get series(): Iterable<CellSeries> {
    return this.#series.values();
  }

  /** Counts one measured request; answers the cell when it left its band or came back. */
  add(place: CellPlace, sample: CellSample, nowMs: number): CellSeries | undefined {
    const { target, measuredMs, targetMs, predictedMs, explicit } = sample;
    const series = this.#seriesOf(place, target, nowMs);
    if (!series) {
      this.untracked++;
      return undefined;
    }
    turnWindow(series, nowMs);
    for (const tally of [series.total, series.open]) {
      tally.latencies.add(measuredMs);
      if (explicit && measuredMs <= targetMs) tally.met++;
      else if (explicit) tally.missed++;
    }
    if (predictedMs !== undefined && predictedMs > 0) {
      series.prediction ??= { latencies: new LatencyHistogram(), errors: new LatencyHistogram() };
      series.prediction.latencies.add(predictedMs);
      series.prediction.errors.add((Math.abs(measuredMs - predictedMs) / predictedMs) * 100);
    }
    return series.drift.add(measuredMs, nowMs) === undefined ? undefined : series;
  }

  /** Forgets every sample, references of drift included. */
  reset(wallMs: number): void {
    this.#series.clear();
    this.sinceWallMs = wallMs;
    this.untracked = 0;
  }

  #seriesOf(place: CellPlace, target: SlaMeasure, nowMs: number): CellSeries | undefined {
    const key = `${target} ${place.role} ${place.cell} ${place.pool}`;
    const known = this.#series.get(key);
    if (known || this.#series.size >= cellSeriesMax) return known;
    const created: CellSeries = {
      ...place,
      target,
      total: emptyTally(),
      drift: new DriftDetector(),
      prediction: undefined,
      open: emptyTally(),
      before: emptyTally(),
      openedMs: nowMs,
    };
    this.#series.set(key, created);
    return created;
  }
}

/** The last `recentWindowMs` at most; what is older than that is gone. */
export function recentOf(series: CellSeries, nowMs: number): Tally {
  turnWindow(series, nowMs);
  const recent = emptyTally();
  for (const { latencies, met, missed } of [series.open, series.before]) {
    recent.latencies.merge(latencies);
    recent.met += met;
    recent.missed += missed;
  }
  return recent;
}

/** Share of requests that met their own target; null when none named one. */
export function attainmentOf({ met, missed }: Pick<Tally, "met" | "missed">): number | null {
  return met + missed === 0 ? null : met / (met + missed);
}

/** The cells of a book as JSON, by role. */
export function cellsOf(book: CellBook, nowMs: number): RoleCells[] {
  const roles = new Map<Role, CellJson[]>();
  for (const series of book.series) {
    const cells = roles.get(series.role) ?? [];
    cells.push(cellJson(series, nowMs));
    roles.set(series.role, cells);
  }
  return [...roles].map(([role, cells]) => ({ role, cells }));
}

export interface RoleCells {
  readonly role: Role;
  readonly cells: readonly CellJson[];
}

export interface LatencyJson {
  readonly count: number;
  readonly sum_ms: number;
  readonly p50_ms: number;
  readonly p90_ms: number;
  readonly p99_ms: number;
  /** Of requests that named a target. */
  readonly met: number;
  readonly missed: number;
}

export interface CellJson extends LatencyJson {
  readonly cell: string;
  readonly pool: string;
  readonly latency: SlaMeasure;
  /** Null when nothing ended in the recent window. */
  readonly recent: LatencyJson | null;
  /** What pools had quoted for the requests of the cell that they took; null without quotes. */
  readonly predicted: {
    readonly count: number;
    readonly p50_ms: number;
    readonly p90_ms: number;
    /** Median of |measured - predicted| / predicted. */
    readonly median_error: number;
  } | null;
  readonly drift: { readonly state: DriftState; readonly reference_ms: number | null };
}

function cellJson(series: CellSeries, nowMs: number): CellJson {
  const { cell, pool, target, total, prediction, drift } = series;
  const recent = recentOf(series, nowMs);
  const reference = drift.referenceMs;
  return {
    ...{ cell, pool, latency: target },
    ...latencyJson(total),
    recent: recent.latencies.count > 0 ? latencyJson(recent) : null,
    predicted: prediction ? predictedJson(prediction) : null,
    drift: {
      state: drift.state,
      reference_ms: Number.isNaN(reference) ? null : rounded(reference),
    },
  };
}

function predictedJson({ latencies, errors }: Prediction): CellJson["predicted"] {
  return {
    count: latencies.count,
    p50_ms: rounded(latencies.quantileMs(0.5)),
    p90_ms: rounded(latencies.quantileMs(0.9)),
    median_error: rounded(errors.quantileMs(0.5) / 100),
  };
}

function latencyJson({ latencies, met, missed }: Tally): LatencyJson {
  return {
    count: latencies.count,
    sum_ms: rounded(latencies.sumMs),
    p50_ms: rounded(latencies.quantileMs(0.5)),
    p90_ms: rounded(latencies.quantileMs(0.9)),
    p99_ms: rounded(latencies.quantileMs(0.99)),
    ...{ met, missed },
  };
}

function turnWindow(series: CellSeries, nowMs: number): void {
  const halves = Math.floor((nowMs - series.openedMs) / (recentWindowMs / 2));
  if (halves <= 0) return;
  series.before = halves === 1 ? series.open : emptyTally();
  series.open = emptyTally();
  series.openedMs += halves * (recentWindowMs / 2);
}

function emptyTally(): Tally {
  return { latencies: new LatencyHistogram(), met: 0, missed: 0 };
}

function rounded(valueMs: number): number {
  return Math.round(valueMs * 1000) / 1000;
}
