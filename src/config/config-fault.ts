/** One thing wrong with a config: where it is and what was expected. */
import { didYouMean } from "../base/nearest-name.ts";

export interface ConfigFault {
  /** RFC 6901 JSON Pointer to the key as written, or to the place of a missing one; "" = file. */
  readonly pointer: string;
  /** Closed set of words per config, for tests, metrics and tools. */
  readonly reason: string;
  readonly message: string;
}

export type ReportFault = (pointer: string, reason: string, message: string) => void;

/** Values longer than this are cut in a message. */
const shownCharsMax = 60;

/** Pointer of `key` below `parent`. */
export function childPointer(parent: string, key: string | number): string {
  return `${parent}/${String(key).replaceAll("~", "~0").replaceAll("/", "~1")}`;
}

/** Reports unknown keys; those that start with `_`, and `$schema`, are comments. */
export function checkKeys(
  object: Readonly<Record<string, unknown>>,
  pointer: string,
  known: readonly string[],
  report: ReportFault,
): void {
  for (const key of Object.keys(object)) {
    if (known.includes(key) || key.startsWith("_") || key === "$schema") continue;
    const message = `unknown key ${JSON.stringify(key)}${didYouMean(key, known)}`;
    report(childPointer(pointer, key), "unknown-key", message);
  }
}

/** Sorted by pointer, then reason, in code units: the same faults always print the same. */
export function sortFaults(faults: readonly ConfigFault[]): ConfigFault[] {
  const order = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);
  return [...faults].sort((a, b) => order(a.pointer, b.pointer) || order(a.reason, b.reason));
}

/** One line per fault, for logs and the command line. */
export function formatFault({ pointer, reason, message }: ConfigFault): string {
  return `${pointer === "" ? "(file)" : pointer}: ${message} [${reason}]`;
}

/** Type and value for a message: `string "2"`, `boolean true`, `array`, `null`, `nothing`. */
export function describeValue(value: unknown): string {
  if (value === undefined) return "nothing";
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  if (typeof value === "object") return "object";
  const text = typeof value === "string" ? JSON.stringify(value) : String(value);
  const shown = text.length > shownCharsMax ? `${text.slice(0, shownCharsMax)}…` : text;
  return `${typeof value} ${shown}`;
}
