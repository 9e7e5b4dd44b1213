/** Pool config files and their output, as every `tiergrid grid` command reads and prints them. */
import { TiergridError } from "../base/errors.ts";
import type { ConfigFault } from "../config/config-fault.ts";
import { loadPoolConfigFile, poolConfigError } from "../config/load-pool-config.ts";
import type { PoolConfig } from "../config/pool-config.ts";
import type { GridFileOptions } from "./flags-grid.ts";

export type Print = (text: string) => void;

export interface LoadedGrid {
  readonly config: PoolConfig;
  readonly warnings: readonly ConfigFault[];
}

/** The config at `path`; throws `config_invalid` with every fault. */
export async function loadGrid(
  path: string | undefined,
  { namespace, strictConfig }: GridFileOptions,
): Promise<LoadedGrid> {
  if (path === undefined) throw new TiergridError("config_invalid", "<file> is missing");
  const result = await loadPoolConfigFile(path, { ownNamespace: namespace, strict: strictConfig });
  if (!result.ok) throw poolConfigError(result.faults);
  return result;
}

export function jsonText(value: unknown): string {
  return `${JSON.stringify(value, undefined, 2)}\n`;
}

/** Share as a percentage with three digits. */
export function percentText(part: number, whole: number): string {
  if (whole === 0) return "0 %";
  return `${Number(((100 * part) / whole).toPrecision(3))} %`;
}
