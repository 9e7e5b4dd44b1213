/** One thing wrong with a config, where it is and what was expected; shared by every config file. */

export interface ConfigFault {
  /** RFC 6901 JSON Pointer to the key as written, or to the place of a missing one; "" = file. */
  readonly pointer: string;
  /** Closed set of words per config, for tests, metrics and tools. */
  readonly reason: string;
  readonly message: string;
}

/** Values longer than this are cut in a message. */
const shownCharsMax = 60;

/** Pointer of `key` below `parent`. */
export function childPointer(parent: string, key: string | number): string {
  return `${parent}/${String(key).replaceAll("~", "~0").replaceAll("/", "~1")}`;
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

/** Type and value for a message: `string "2"`, `boolean true`, `array`, `null`. */
export function describeValue(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  if (typeof value === "object") return "object";
  const text = typeof value === "string" ? JSON.stringify(value) : String(value);
  return `${typeof value} ${text.length > shownCharsMax ? `${text.slice(0, shownCharsMax)}…` : text}`;
}

/** The known name nearest to `name` by edits, or undefined when none is near. */
export function nearestName(name: string, known: readonly string[]): string | undefined {
  let nearest: string | undefined;
  let leastEdits = Math.max(2, Math.floor(name.length / 3)) + 1;
  for (const candidate of known) {
    if (Math.abs(candidate.length - name.length) >= leastEdits) continue;
    const edits = editDistance(name, candidate);
    if (edits >= leastEdits) continue;
    leastEdits = edits;
    nearest = candidate;
  }
  return nearest;
}

/** Levenshtein distance over one row. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}
