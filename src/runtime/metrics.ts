/**
 * The metrics of one process. A series is a cell of plain numbers that the hot path holds on to and
 * counts in; nothing is looked up, formatted or allocated until somebody scrapes. `text` then hands
 * every family to a prom-client registry, which renders the Prometheus text format 0.0.4.
 *
 *   family                    label values          series (kept by its caller)
 *   requests_total  ──┬──────  ["m","ok"]  ───────▶  { value: 17 }
 *                     └──────  ["m","error"]  ────▶  { value: 2 }
 *   ttft_seconds    ─────────  ["m"]  ────────────▶  { counts: Float64Array(buckets + 1), sum }
 *
 * - A family has at most `seriesMax` series; further label sets share the one whose free labels are
 *   all `other`, and `tiergrid_metrics_dropped_series_total` counts them.
 * - A removed series is no longer rendered; counting into it is harmless.
 */
import { type Metric, Registry } from "prom-client";
import type { MetricRow, MetricTable } from "./metric-rows.ts";

export const seriesMax = 1000;
const labelLengthMax = 128;
const droppedSeries = "tiergrid_metrics_dropped_series_total";

/** A count that only rises. */
export class CounterSeries {
  value = 0;

  add(count = 1): void {
    this.value += count;
  }

  /** Takes over a total counted elsewhere. */
  follow(total: number): void {
    if (total > this.value) this.value = total;
  }
}

/** A level. */
export class GaugeSeries {
  value = 0;

  set(value: number): void {
    this.value = value;
  }

  add(delta: number): void {
    this.value += delta;
  }
}

/** Observations per bucket; the last count is that of `+Inf`. */
export class HistogramSeries {
  readonly bounds: readonly number[];
  readonly counts: Float64Array;
  sum = 0;

  constructor(bounds: readonly number[]) {
    this.bounds = bounds;
    this.counts = new Float64Array(bounds.length + 1);
  }

  /** Counts `times` observations of `value`. */
  observe(value: number, times = 1): void {
    const bounds = this.bounds;
    let bucket = 0;
    while (bucket < bounds.length && value > (bounds[bucket] as number)) bucket++;
    this.counts[bucket] = (this.counts[bucket] as number) + times;
    this.sum += value * times;
  }

  /** Adds observations that were counted elsewhere in the same buckets (`bounds` and `+Inf`). */
  merge(counts: ArrayLike<number>, sum: number): void {
    if (counts.length !== this.counts.length) return;
    for (let bucket = 0; bucket < counts.length; bucket++) {
      this.counts[bucket] = (this.counts[bucket] as number) + (counts[bucket] as number);
    }
    this.sum += sum;
  }
}

type Series = CounterSeries | GaugeSeries | HistogramSeries;
type NamesOf<Table extends MetricTable, Type extends MetricRow["type"]> = {
  [Name in keyof Table]: Table[Name]["type"] extends Type ? Name : never;
}[keyof Table] &
  string;
/** One value per label; no argument for a family without labels. */
type LabelsOf<Row extends MetricRow> = Row["labels"] extends readonly []
  ? []
  : [labels: Readonly<Record<Row["labels"][number], string | number>>];

/** The families of a table; labels and types are checked against it. */
export interface Metrics<Table extends MetricTable> {
  counter<Name extends NamesOf<Table, "counter">>(
    name: Name,
    ...labels: LabelsOf<Table[Name]>
  ): CounterSeries;
  gauge<Name extends NamesOf<Table, "gauge">>(
    name: Name,
    ...labels: LabelsOf<Table[Name]>
  ): GaugeSeries;
  histogram<Name extends NamesOf<Table, "histogram">>(
    name: Name,
    ...labels: LabelsOf<Table[Name]>
  ): HistogramSeries;
  /** Removes the series whose labels include all of `labels`, e.g. those of a worker that left. */
  remove<Name extends keyof Table & string>(
    name: Name,
    labels: Readonly<Partial<Record<Table[Name]["labels"][number], string | number>>>,
  ): void;
  /** Calls `collect` before each rendering, to copy what is counted elsewhere. */
  onScrape(collect: () => void): void;
  /** The Prometheus text of all families; those without labels appear from the start, with 0. */
  text(): Promise<string>;
}

/**
 * `find`, asked once per key: a hot path holds its series so, since finding one by its labels costs
 * about a microsecond. There are as many keys as words in this program, or places in a config; who
 * removes series drops what holds them.
 */
export function held<Key, Found>(find: (key: Key) => Found): (key: Key) => Found {
  const known = new Map<Key, Found>();
  return (key) => {
    let found = known.get(key);
    if (found === undefined) {
      found = find(key);
      known.set(key, found);
    }
    return found;
  };
}

/** Labels that every series of the families under `prefix` carries. */
export interface ConstantLabels {
  readonly prefix: string;
  readonly labels: Readonly<Record<string, string>>;
}

interface Family {
  readonly name: string;
  readonly row: MetricRow;
  readonly constant: Readonly<Record<string, string>>;
  readonly series: Map<string, { readonly values: readonly string[]; readonly series: Series }>;
}

/** Creates the families of `table` in a registry of their own. */
export function createMetrics<Table extends MetricTable>(
  table: Table,
  constants: readonly ConstantLabels[] = [],
): Metrics<Table> {
  const families = new Map<string, Family>();
  const collectors: (() => void)[] = [];
  const registry = new Registry();
  for (const [name, row] of Object.entries(table)) {
    const labels = constants.filter(({ prefix }) => name.startsWith(prefix));
    const constant = Object.assign({}, ...labels.map((found) => found.labels));
    const family: Family = { name, row, constant, series: new Map() };
    if (row.labels.length === 0) seriesOf(families, family, {});
    families.set(name, family);
    registry.registerMetric(rendered(family));
  }
  // The table's types tie each name to its kind of series; the map itself cannot say so.
  const find = (name: string, labels: Record<string, string | number> = {}): never =>
    seriesOf(families, families.get(name) as Family, labels) as never;
  return {
    counter: find,
    gauge: find,
    histogram: find,
    remove: (name, labels) => removeSeries(families.get(name), labels),
    onScrape: (collect) => {
      collectors.push(collect);
    },
    text: () => {
      for (const collect of collectors) collect();
      return registry.metrics();
    },
  };
}

function seriesOf(
  families: ReadonlyMap<string, Family>,
  family: Family,
  labels: Readonly<Record<string, string | number>>,
): Series {
  let key = "";
  for (const label of family.row.labels) key += `${labelText(labels[label])}\n`;
  const found = family.series.get(key);
  if (found !== undefined) return found.series;
  const values = family.row.labels.map((label) => labelText(labels[label]));
  const other = family.row.labels.map(() => "other");
  const full = family.series.size >= seriesMax - 1;
  if (!full || key === keyOf(other)) return addSeries(family, values);
  const dropped = families.get(droppedSeries);
  if (dropped !== undefined && family !== dropped) {
    (seriesOf(families, dropped, { metric: family.name }) as CounterSeries).add(1);
  }
  return family.series.get(keyOf(other))?.series ?? addSeries(family, other);
}

function addSeries({ row, series: all }: Family, values: readonly string[]): Series {
  const series = newSeries(row);
  all.set(keyOf(values), { values, series });
  return series;
}

/** One line per value; a value is a single line. */
const keyOf = (values: readonly string[]): string => values.map((value) => `${value}\n`).join("");

function newSeries(row: MetricRow): Series {
  if (row.type === "histogram") return new HistogramSeries(row.buckets);
  return row.type === "counter" ? new CounterSeries() : new GaugeSeries();
}

function removeSeries(
  family: Family | undefined,
  labels: Readonly<Record<string, string | number | undefined>>,
): void {
  if (family === undefined) return;
  for (const [key, { values }] of family.series) {
    const matches = family.row.labels.every(
      (label, at) => labels[label] === undefined || labelText(labels[label]) === values[at],
    );
    if (matches) family.series.delete(key);
  }
}

/** Label values are single lines of bounded length; the renderer escapes quotes and backslashes. */
function labelText(value: string | number | undefined): string {
  // Nearly all values are; a request looks up several series.
  if (typeof value === "string" && /^[ -~]{0,128}$/.test(value)) return value;
  const text = String(value ?? "").slice(0, labelLengthMax);
  return text.replace(/\p{Cc}/gu, " ");
}

interface Sample {
  readonly metricName: string;
  readonly labels: Readonly<Record<string, string | number>>;
  readonly value: number;
}

/** The part of a prom-client metric its registry calls: `name` and `get`. */
function rendered(family: Family): Metric {
  const { name, row } = family;
  const get = (): object => ({
    name,
    help: row.help,
    type: row.type,
    values: [...family.series.values()].flatMap(({ values, series }) =>
      samplesOf(name, labelled(family, values), series),
    ),
  });
  return { name, get, reset: () => family.series.clear() } as unknown as Metric;
}

function labelled({ constant, row }: Family, values: readonly string[]): Record<string, string> {
  const own = row.labels.map((label, at): [string, string] => [label, values[at] ?? ""]);
  return { ...constant, ...Object.fromEntries(own) };
}

function samplesOf(name: string, labels: Sample["labels"], series: Series): Sample[] {
  if (!(series instanceof HistogramSeries)) {
    return [{ metricName: name, labels, value: series.value }];
  }
  let count = 0;
  const samples = [...series.counts].map((bucketCount, bucket): Sample => {
    count += bucketCount;
    const le = series.bounds[bucket] ?? "+Inf";
    return { metricName: `${name}_bucket`, labels: { ...labels, le }, value: count };
  });
  samples.push({ metricName: `${name}_sum`, labels, value: series.sum });
  samples.push({ metricName: `${name}_count`, labels, value: count });
  return samples;
}
