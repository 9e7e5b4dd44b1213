/** `tiergrid grid build`: mappings from latency curves, and a report of what they promise. */
import { TiergridError } from "../base/errors.ts";
import type { Given } from "../base/flags.ts";
import { formatOfPath, parseConfigText, readConfigText } from "../config/config-text.ts";
import { type GridCurves, loadGridCurves } from "../config/grid-curves.ts";
import { checkPoolConfig, poolConfigError } from "../config/load-pool-config.ts";
import { nestCells, type PoolConfig, type RolePools } from "../config/pool-config.ts";
import {
  axesOfStrategy,
  type FileObject,
  isFileObject,
  resolutionKey,
} from "../config/pool-config-keys.ts";
import { poolConfigText, withMappings } from "../config/write-pool-config.ts";
import { type BuiltCell, buildCells } from "../core/grid-builder.ts";
import { cellText, type Role } from "../core/sla-grid.ts";
import type { gridBuildFlags } from "./flags-grid.ts";
import { jsonText, type Print } from "./grid-file.ts";
import { writeOutput } from "./output-file.ts";

/** Cells along one axis of a mapping that is filled in before its size has been checked. */
const filledCellsMax = 1024;

interface BuiltRole {
  readonly pools: RolePools;
  readonly cells: readonly BuiltCell[];
}

/** Writes the config where `--out` says, or prints it; answers 0. */
export async function runGridBuild(
  { options, operands }: Given<typeof gridBuildFlags>,
  print: Print,
): Promise<number> {
  const template = await readTemplate(operands[0] ?? "");
  const { namespace, strictConfig } = options;
  const frame = configOf(withMappings(template, emptyMapping), namespace, false);
  const curves = await loadGridCurves(options.curves, frame);
  const built = frame.roles.map((pools) => buildRole(pools, curves));
  const filled = withMappings(template, (_, role) => {
    const own = built.find(({ pools }) => pools.role === role);
    const cells = own?.cells.map(({ pool }) => pool) ?? [];
    return nestCells(cells, own?.pools.grid.axes.slice(1) ?? []);
  });
  const config = configOf(filled, namespace, strictConfig);
  const text = poolConfigText(config, template["$schema"]);
  if (options.out !== null) await writeOutput("--out", options.out, text);
  if (options.json) print(jsonText({ config: config.normal, report: built.map(jsonOf) }));
  else if (options.out === null) print(text);
  if (!options.json) {
    const report = `config ${config.version}\n${built.map(reportText).join("")}`;
    if (options.out === null) process.stderr.write(report);
    else print(report);
  }
  return 0;
}

async function readTemplate(path: string): Promise<FileObject> {
  const read = await readConfigText(path);
  if (!read.ok) throw poolConfigError([read.fault]);
  const parsed = parseConfigText(read.text, formatOfPath(path));
  if (!parsed.ok) throw poolConfigError([parsed.fault]);
  if (isFileObject(parsed.value)) return parsed.value;
  throw new TiergridError("config_invalid", "a pool config is one object");
}

/** Pool 0 in every cell, so that the loader can check all the rest. */
function emptyMapping(strategy: FileObject, role: Role): unknown {
  return axesOfStrategy(role, strategy).reduceRight<unknown>((inner, axis) => {
    const cells = strategy[resolutionKey(axis)];
    const isCount = Number.isInteger(cells) && (cells as number) <= filledCellsMax;
    return new Array(isCount ? Math.max(cells as number, 0) : 0).fill(inner);
  }, 0);
}

function configOf(file: FileObject, ownNamespace: string, strict: boolean): PoolConfig {
  const result = checkPoolConfig(file, { ownNamespace, strict });
  if (!result.ok) throw poolConfigError(result.faults);
  return result.config;
}

function buildRole(pools: RolePools, { byRole, design }: GridCurves): BuiltRole {
  const curves = byRole.get(pools.role);
  if (!curves) throw new TiergridError("internal_error", `no curves of role ${pools.role}`);
  return { pools, cells: buildCells(pools.grid.axes, curves, design) };
}

function reportText({ pools: { role, pools, grid }, cells }: BuiltRole): string {
  const lines = pools.map(({ index, namespace }) => {
    const own = cells.filter(({ pool }) => pool === index);
    return `  pool ${index} ${namespace}: ${own.length} of ${cells.length} cells\n`;
  });
  const missed = cells.filter(({ met }) => !met);
  const notes = missed.map(({ cell, pool, promises }) => {
    const late = promises.filter(({ predictedMs, targetMs }) => predictedMs > targetMs);
    const texts = late.map(
      ({ latency, tokens, targetMs, predictedMs }) =>
        `${latency} ${round(predictedMs)} ms at ${round(tokens)} tokens, target ${round(targetMs)}`,
    );
    return `  cell ${cellText(cell)}: nobody keeps it; pool ${pool} has ${texts.join(" and ")}\n`;
  });
  const ends = grid.axes.map(({ name, min, max }) =>
    name === "ttft" || name === "itl" ? `${name} below ${min} ms` : `${name} above ${max}`,
  );
  const border = `  no promise for ${ends.join(" or ")}: such requests are clamped into border cells\n`;
  return [`${role}\n`, ...lines, ...notes, border].join("");
}

function jsonOf({ pools: { role, pools, grid }, cells }: BuiltRole): object {
  return {
    role,
    cells: cells.map(({ cell, pool, promises, met }) => ({
      cell: cellText(cell),
      pool: pools[pool]?.namespace,
      met,
      border: isBorder(cell, grid.axes),
      promises: promises.map(({ latency, tokens, targetMs, predictedMs }) => ({
        latency,
        tokens,
        target_ms: targetMs,
        predicted_ms: predictedMs,
      })),
    })),
  };
}

/** True where requests beyond the promise are clamped: the longest row, the tightest column. */
function isBorder(cell: readonly number[], axes: RolePools["grid"]["axes"]): boolean {
  return axes.some(({ name, cells }, place) =>
    name === "ttft" || name === "itl" ? cell[place] === 0 : cell[place] === cells - 1,
  );
}

function round(value: number): number {
  return Number(value.toPrecision(4));
}
