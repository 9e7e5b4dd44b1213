/**
 * Workers and engines of the pools that `tiergrid grid calibrate --replay` measures, JSON or YAML:
 *
 *   {"prefill-fast": {"workers": 2, "engine": {"speedup_ratio": 3}},
 *    "prefill-bulk": {"workers": 2}}
 *
 * `engine` holds options of the mock engine. A role is replayed with all of its pools or, when the
 * file names none of them, left out. Everything wrong is reported at once.
 */
import { TiergridError } from "../base/errors.ts";
import {
  type ConfigFault,
  checkKeys,
  childPointer,
  describeValue,
  formatFault,
  type ReportFault,
} from "../config/config-fault.ts";
import type { PoolConfig, RolePools } from "../config/pool-config.ts";
import { type FileObject, isFileObject } from "../config/pool-config-keys.ts";
import type { Role } from "../core/sla-grid.ts";
import { type PoolEngines, replayedEngine } from "../sim/replay/replay-cells.ts";

const replayedWorkersMax = 1024;
const entryKeys = ["workers", "engine"];

/** Engines by role, in the order of the pools; throws `config_invalid` with one fault per line. */
export function readGridEngines(
  value: unknown,
  { roles }: PoolConfig,
): ReadonlyMap<Role, readonly PoolEngines[]> {
  const faults: ConfigFault[] = [];
  const report: ReportFault = (pointer, reason, message) =>
    faults.push({ pointer, reason, message });
  const file = isFileObject(value) ? value : {};
  if (file !== value) {
    report(
      "",
      "wrong-type",
      `expected an object with an entry per pool, got ${describeValue(value)}`,
    );
  }
  const known = roles.flatMap(({ pools }) => pools.map(({ namespace }) => namespace));
  checkKeys(file, "", known, report);
  const engines = new Map<Role, readonly PoolEngines[]>();
  for (const { role, pools } of roles) {
    if (!pools.some(({ namespace }) => Object.hasOwn(file, namespace))) continue;
    engines.set(role, poolsOf({ role, pools }, file, report));
  }
  if (engines.size === 0 && faults.length === 0) {
    report("", "required", `expected entries for the pools of a role, such as ${known[0]}`);
  }
  if (faults.length === 0) return engines;
  const lines = faults.map((fault) => `\n  ${formatFault(fault)}`).join("");
  const message = `--replay: engines have ${faults.length} error(s):${lines}`;
  throw new TiergridError("config_invalid", message, { faults });
}

function poolsOf(
  { role, pools }: Pick<RolePools, "role" | "pools">,
  file: FileObject,
  report: ReportFault,
): PoolEngines[] {
  return pools.flatMap(({ namespace }) => {
    const pointer = childPointer("", namespace);
    const entry = file[namespace];
    if (!isFileObject(entry)) {
      const expected = `expected workers and engine of the ${role} pool`;
      report(pointer, "required", `${expected}, got ${describeValue(entry)}`);
      return [];
    }
    checkKeys(entry, pointer, entryKeys, report);
    const engine = engineOf(role, entry["engine"] ?? {}, `${pointer}/engine`, report);
    const workers = workersOf(entry["workers"], `${pointer}/workers`, report);
    return engine ? [{ engine, workers }] : [];
  });
}

function workersOf(value: unknown, pointer: string, report: ReportFault): number {
  if (Number.isInteger(value)) {
    const workers = value as number;
    if (workers >= 1 && workers <= replayedWorkersMax) return workers;
  }
  const expected = `expected an integer from 1 to ${replayedWorkersMax}`;
  report(pointer, "not-allowed", `${expected}, got ${describeValue(value)}`);
  return 1;
}

function engineOf(
  role: Role,
  value: unknown,
  pointer: string,
  report: ReportFault,
): PoolEngines["engine"] | undefined {
  if (!isFileObject(value)) {
    const got = describeValue(value);
    report(pointer, "wrong-type", `expected options of the mock engine, got ${got}`);
    return undefined;
  }
  try {
    return replayedEngine(role, value);
  } catch (thrown) {
    if (!(thrown instanceof TiergridError)) throw thrown;
    // Each is `option: what is wrong`.
    const faults = (thrown.details["faults"] ?? [thrown.message]) as readonly string[];
    for (const fault of faults) {
      const [option = "", ...words] = fault.split(": ");
      report(childPointer(pointer, option), "not-allowed", words.join(": "));
    }
    return undefined;
  }
}
