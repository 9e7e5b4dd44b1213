/** Rows of the metric table, and how they are written. */

export type MetricType = "counter" | "gauge" | "histogram";

export interface MetricRow {
  readonly type: MetricType;
  readonly help: string;
  readonly labels: readonly string[];
  /** Upper bounds of a histogram's buckets; empty for other types. */
  readonly buckets: readonly number[];
}

export type MetricTable = Readonly<Record<string, MetricRow>>;

/** A row with its own type and labels, which the series are checked against. */
export interface Row<Type extends MetricType, Labels extends readonly string[]> extends MetricRow {
  readonly type: Type;
  readonly labels: Labels;
}

export function counter<const Labels extends readonly string[] = []>(
  help: string,
  labels: Labels = [] as unknown as Labels,
): Row<"counter", Labels> {
  return { type: "counter", help, labels, buckets: [] };
}

export function gauge<const Labels extends readonly string[] = []>(
  help: string,
  labels: Labels = [] as unknown as Labels,
): Row<"gauge", Labels> {
  return { type: "gauge", help, labels, buckets: [] };
}

export function histogram<const Labels extends readonly string[] = []>(
  help: string,
  bounds: readonly number[],
  labels: Labels = [] as unknown as Labels,
): Row<"histogram", Labels> {
  return { type: "histogram", help, labels, buckets: bounds };
}
