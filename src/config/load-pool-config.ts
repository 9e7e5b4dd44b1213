/** Pool config files: a frozen `PoolConfig`, or everything that is wrong with the file at once. */
import { TiergridError } from "../base/errors.ts";
import { type ConfigFault, formatFault, sortFaults } from "./config-fault.ts";
import { type ConfigFormat, formatOfPath, parseConfigText, readConfigText } from "./config-text.ts";
import { buildPoolConfig, type PoolConfig } from "./pool-config.ts";
import { type FileObject, isFileObject } from "./pool-config-keys.ts";
import { ruleFaults } from "./pool-config-rules.ts";
import { modeOf, schemaFaults } from "./pool-config-schema.ts";
import { poolConfigWarnings } from "./pool-config-warnings.ts";

export interface PoolConfigOptions {
  /** Namespace of the global router itself, which must not be one of its pools. */
  readonly ownNamespace: string;
  /** Warnings become faults, except `deprecated-alias`. */
  readonly strict?: boolean;
}

/** `faults` and `warnings` are sorted by pointer. */
export type PoolConfigResult =
  | { readonly ok: true; readonly config: PoolConfig; readonly warnings: readonly ConfigFault[] }
  | { readonly ok: false; readonly faults: readonly ConfigFault[] };

/** Reads, checks and builds the config at `path`; `.yaml` and `.yml` are YAML, the rest JSON. */
export async function loadPoolConfigFile(
  path: string,
  options: PoolConfigOptions,
): Promise<PoolConfigResult> {
  const read = await readConfigText(path);
  if (!read.ok) return { ok: false, faults: [read.fault] };
  return loadPoolConfigText(read.text, formatOfPath(path), options);
}

export function loadPoolConfigText(
  text: string,
  format: ConfigFormat,
  options: PoolConfigOptions,
): PoolConfigResult {
  const parsed = parseConfigText(text, format);
  if (!parsed.ok) return { ok: false, faults: [parsed.fault] };
  return checkPoolConfig(parsed.value, options);
}

/** Checks a parsed value in two passes and builds the config when both are clean. */
export function checkPoolConfig(value: unknown, options: PoolConfigOptions): PoolConfigResult {
  const known = schemaFaults(value);
  if (!isFileObject(value) || known.some(({ pointer }) => pointer === "/mode")) {
    return { ok: false, faults: known };
  }
  const file: FileObject = value;
  const mode = modeOf(file);
  const faults = [...known, ...ruleFaults(file, mode, known, options.ownNamespace)];
  if (faults.length > 0) return { ok: false, faults: sortFaults(faults) };
  const config = buildPoolConfig(file, mode);
  const warnings = sortFaults(poolConfigWarnings(file, config));
  const strictFaults = warnings.filter(({ reason }) => reason !== "deprecated-alias");
  if (options.strict && strictFaults.length > 0) return { ok: false, faults: strictFaults };
  return { ok: true, config, warnings };
}

/** The `config_invalid` error of a failed load, one fault per line. */
export function poolConfigError(faults: readonly ConfigFault[]): TiergridError {
  const lines = faults.map((fault) => `\n  ${formatFault(fault)}`).join("");
  return new TiergridError("config_invalid", `pool config has ${faults.length} error(s):${lines}`, {
    faults,
  });
}
