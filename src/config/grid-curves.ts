/**
 * Latency curves of the pools of a config, from JSON or YAML:
 *
 *   {"prefill": [{"namespace": "prefill-fast", "cost": 4,
 *                 "ttft": {"type": "linear", "base_ms": 30, "per_token_ms": 0.02}}],
 *    "decode":  [{"namespace": "decode-fast", "cost": 4,
 *                 "itl": {"type": "table", "points": [[1024, 9], [131072, 21]]}}]}
 *
 * One entry per pool of the role, in any order; in agg mode each has both curves, and a grid without
 * an ISL axis also needs `design_isl` and `design_context`. A cost left out is what the config's
 * metadata says the pool's worker costs. Everything wrong is reported at once.
 */
import { TiergridError } from "../base/errors.ts";
import { didYouMean } from "../base/nearest-name.ts";
import type { Curve, DesignLengths, PoolCurves } from "../core/grid-builder.ts";
import type { Role } from "../core/sla-grid.ts";
import {
  type ConfigFault,
  checkKeys,
  childPointer,
  describeValue,
  formatFault,
  type ReportFault,
} from "./config-fault.ts";
import { formatOfPath, parseConfigText, readConfigText } from "./config-text.ts";
import type { Pool, PoolConfig } from "./pool-config.ts";
import { type FileObject, isFileObject } from "./pool-config-keys.ts";

export interface GridCurves {
  readonly byRole: ReadonlyMap<Role, PoolCurves>;
  readonly design: DesignLengths | undefined;
}

export type CurvesResult =
  | { readonly ok: true; readonly curves: GridCurves }
  | { readonly ok: false; readonly faults: readonly ConfigFault[] };

const latenciesOf = {
  prefill: ["ttft"],
  decode: ["itl"],
  agg: ["ttft", "itl"],
} as const satisfies Record<Role, readonly ("ttft" | "itl")[]>;
const entryKeys = ["namespace", "cost", "ttft", "itl"];
const designKeys = ["design_isl", "design_context"] as const;

/** Reads the curves at `path`; throws `config_invalid` with one fault per line. */
export async function loadGridCurves(path: string, config: PoolConfig): Promise<GridCurves> {
  const read = await readConfigText(path);
  const parsed = read.ok ? parseConfigText(read.text, formatOfPath(path)) : read;
  const result: CurvesResult = parsed.ok
    ? readGridCurves(parsed.value, config)
    : { ok: false, faults: [parsed.fault] };
  if (result.ok) return result.curves;
  const { faults } = result;
  const lines = faults.map((fault) => `\n  ${formatFault(fault)}`).join("");
  const message = `curves have ${faults.length} error(s):${lines}`;
  throw new TiergridError("config_invalid", message, { faults });
}

/** Curves of every role of `config`, in the order of its pools. */
export function readGridCurves(value: unknown, config: PoolConfig): CurvesResult {
  const faults: ConfigFault[] = [];
  const report: ReportFault = (pointer, reason, message) =>
    faults.push({ pointer, reason, message });
  if (!isFileObject(value)) {
    report("", "not-an-object", `curves are one object, got ${describeValue(value)}`);
    return { ok: false, faults };
  }
  const roles = config.roles.map(({ role }) => role);
  checkKeys(value, "", [...roles, ...designKeys], report);
  const byRole = new Map<Role, PoolCurves>();
  for (const { role, pools } of config.roles) {
    const namespaces = pools.map(({ namespace }) => namespace);
    const entries = entriesOf(value[role], `/${role}`, namespaces, report);
    const rows = namespaces.map((namespace) => entries.get(namespace));
    const costs = rows.map((row, at) => costOf(row, pools[at], report));
    const curves = { costs, ttft: [], itl: [] };
    const read = latenciesOf[role].map((latency) => [
      latency,
      rows.map((row) => (row ? curveOf(row, latency, report) : noCurve)),
    ]);
    byRole.set(role, { ...curves, ...Object.fromEntries(read) });
  }
  const design = designOf(value, report);
  return faults.length > 0 ? { ok: false, faults } : { ok: true, curves: { byRole, design } };
}

interface Entry {
  readonly pointer: string;
  readonly entry: FileObject;
}

/** Stands where a fault has been reported. */
const noCurve: Curve = { type: "linear", baseMs: 0, perTokenMs: 0 };

/** Entries by namespace; each of `namespaces` has to be there once. */
function entriesOf(
  value: unknown,
  pointer: string,
  namespaces: readonly string[],
  report: ReportFault,
): Map<string, Entry> {
  const entries = new Map<string, Entry>();
  if (!Array.isArray(value)) {
    const expected = "expected an array with one entry per pool";
    report(pointer, "wrong-type", `${expected}, got ${describeValue(value)}`);
    return entries;
  }
  value.forEach((entry: unknown, at) => {
    const own = childPointer(pointer, at);
    const namespace = isFileObject(entry) ? entry["namespace"] : undefined;
    if (!isFileObject(entry) || typeof namespace !== "string") {
      report(own, "wrong-type", `expected an object with a namespace, got ${describeValue(entry)}`);
      return;
    }
    if (!namespaces.includes(namespace)) {
      const hint = didYouMean(namespace, namespaces);
      report(`${own}/namespace`, "unknown-pool", `the config has no such pool${hint}`);
    } else if (entries.has(namespace)) {
      report(`${own}/namespace`, "duplicate-namespace", `${namespace} has curves already`);
    } else entries.set(namespace, { pointer: own, entry });
    checkKeys(entry, own, entryKeys, report);
  });
  for (const namespace of namespaces) {
    if (!entries.has(namespace)) report(pointer, "required", `no curves of pool ${namespace}`);
  }
  return entries;
}

function costOf(row: Entry | undefined, pool: Pool | undefined, report: ReportFault): number {
  if (!row) return 0;
  const known = Object.hasOwn(row.entry, "cost") || !pool ? undefined : workerCost(pool);
  return known ?? numberOf(row.entry["cost"], `${row.pointer}/cost`, report);
}

/** What a second of one worker costs by the pool's metadata. */
export function workerCost({ costPerSecond, gpus }: Pool): number | undefined {
  return costPerSecond === undefined ? undefined : costPerSecond * (gpus ?? 1);
}

function curveOf({ pointer, entry }: Entry, latency: "ttft" | "itl", report: ReportFault): Curve {
  const at = `${pointer}/${latency}`;
  const curve = entry[latency];
  if (!isFileObject(curve)) {
    report(at, "wrong-type", `expected a curve, got ${describeValue(curve)}`);
    return noCurve;
  }
  if (curve["type"] === "linear") {
    checkKeys(curve, at, ["type", "base_ms", "per_token_ms"], report);
    return {
      type: "linear",
      baseMs: numberOf(curve["base_ms"], `${at}/base_ms`, report),
      perTokenMs: numberOf(curve["per_token_ms"], `${at}/per_token_ms`, report),
    };
  }
  if (curve["type"] === "table") {
    checkKeys(curve, at, ["type", "points"], report);
    return { type: "table", points: pointsOf(curve["points"], `${at}/points`, report) };
  }
  const message = `expected linear or table, got ${describeValue(curve["type"])}`;
  report(`${at}/type`, "not-allowed", message);
  return noCurve;
}

function pointsOf(value: unknown, pointer: string, report: ReportFault): [number, number][] {
  if (!Array.isArray(value) || value.length === 0) {
    report(pointer, "wrong-type", `expected [tokens, ms] pairs, got ${describeValue(value)}`);
    return [[0, 0]];
  }
  let before = Number.NEGATIVE_INFINITY;
  return value.map((point: unknown, at) => {
    const own = childPointer(pointer, at);
    if (!Array.isArray(point) || point.length !== 2) {
      report(own, "wrong-type", `expected [tokens, ms], got ${describeValue(point)}`);
      return [0, 0];
    }
    const tokens = numberOf(point[0], `${own}/0`, report);
    const ms = numberOf(point[1], `${own}/1`, report);
    if (tokens <= before) {
      report(`${own}/0`, "not-ascending", `expected more than ${before} tokens, got ${tokens}`);
    }
    before = tokens;
    return [tokens, ms];
  });
}

function designOf(file: FileObject, report: ReportFault): DesignLengths | undefined {
  if (!designKeys.some((key) => Object.hasOwn(file, key))) return undefined;
  const [islTokens = 0, contextTokens = 0] = designKeys.map((key) =>
    numberOf(file[key], `/${key}`, report),
  );
  return { islTokens, contextTokens };
}

/** A finite number of at least 0; anything else is reported and counts as 0. */
function numberOf(value: unknown, pointer: string, report: ReportFault): number {
  if (typeof value === "number" && value >= 0 && Number.isFinite(value)) return value;
  const reason = typeof value === "number" ? "not-allowed" : "wrong-type";
  report(pointer, reason, `expected a finite number >= 0, got ${describeValue(value)}`);
  return 0;
}
