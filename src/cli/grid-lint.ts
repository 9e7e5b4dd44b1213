/** `tiergrid grid lint`: what the loader says of a config, and what its grids do to requests. */
import { toTiergridError } from "../base/errors.ts";
import type { Given } from "../base/flags.ts";
import { type ConfigFault, childPointer, formatFault, sortFaults } from "../config/config-fault.ts";
import { type GridCurves, loadGridCurves } from "../config/grid-curves.ts";
import type { PoolConfig, RolePools } from "../config/pool-config.ts";
import { boundKey, mappingKey, namespacesKey, strategyKey } from "../config/pool-config-keys.ts";
import { type FindingPlace, lintGrid } from "../core/grid-lint.ts";
import { type GridTraffic, trafficOf } from "../core/grid-traffic.ts";
import type { Role } from "../core/sla-grid.ts";
import type { GridLintOptions, gridLintFlags } from "./flags-grid.ts";
import { jsonText, loadGrid, type Print } from "./grid-file.ts";
import { trafficJson } from "./grid-json.ts";
import { trafficRequests } from "./grid-requests.ts";

/** A note is told, a warning makes the command exit with 1. */
type Severity = "warning" | "note";

interface LintLine extends ConfigFault {
  readonly severity: Severity;
}

/** True of many a good grid: an older spelling, and tight targets for long requests. */
const notes: ReadonlySet<string> = new Set(["deprecated-alias", "target-unmeetable"]);

/** Prints all findings; answers 0 when none of them is a warning, else 1. */
export async function runGridLint(
  { options, operands }: Given<typeof gridLintFlags>,
  print: Print,
): Promise<number> {
  const loaded = await loadGrid(operands[0], options).catch((thrown: unknown) => {
    if (options.json) print(refusedJson(thrown));
    throw thrown;
  });
  const { config, warnings } = loaded;
  const curves = options.curves === null ? undefined : await loadGridCurves(options.curves, config);
  const requests = await trafficRequests(options);
  const traffic = new Map(
    requests &&
      config.roles.map(({ role, grid, pools }) => [role, trafficOf(grid, pools.length, requests)]),
  );
  const found = config.roles.flatMap((pools) =>
    findingsOf(pools, options, curves, traffic.get(pools.role)),
  );
  const lines = sortFaults([...warnings, ...found]).map(withSeverity);
  const failed = lines.some(({ severity }) => severity === "warning");
  print(options.json ? jsonText(jsonOf(config, lines, traffic)) : textOf(config, lines));
  return failed ? 1 : 0;
}

/** The same document for a file that a global router would refuse. */
function refusedJson(thrown: unknown): string {
  const { message, details } = toTiergridError(thrown);
  const faults = details["faults"] as readonly ConfigFault[] | undefined;
  const findings = (faults ?? [{ pointer: "", reason: "refused", message }]).map((fault) => ({
    ...fault,
    severity: "error",
  }));
  return jsonText({ config_version: null, findings });
}

function findingsOf(
  { role, grid, pools }: RolePools,
  { clampedShareMax }: GridLintOptions,
  curves: GridCurves | undefined,
  traffic: GridTraffic | undefined,
): ConfigFault[] {
  const evidence = {
    priorities: pools.map(({ priority }) => priority),
    curves: curves?.byRole.get(role),
    design: curves?.design,
    traffic,
    clampedShareMax,
  };
  return lintGrid(grid, evidence).map(({ reason, place, message }) => ({
    pointer: pointerOf(role, place),
    reason,
    message,
  }));
}

/** Where in the file, in the newest spelling, a finding is. */
function pointerOf(role: Role, place: FindingPlace): string {
  const strategy = `/${strategyKey(role)}`;
  const mapping = childPointer(strategy, mappingKey(role));
  switch (place.type) {
    case "mapping":
      return mapping;
    case "cell":
      return place.cell.reduce(childPointer, mapping);
    case "axis":
      return childPointer(strategy, boundKey(place.axis, place.end));
    case "pool":
      return childPointer(`/${namespacesKey(role)}`, place.pool);
    case "override":
      return childPointer(childPointer(strategy, "priority_overrides"), place.rule);
  }
}

function withSeverity(fault: ConfigFault): LintLine {
  return { ...fault, severity: notes.has(fault.reason) ? "note" : "warning" };
}

function textOf({ version, roles }: PoolConfig, lines: readonly LintLine[]): string {
  const rows = lines.map((line) => `${line.severity.padEnd(8)} ${formatFault(line)}\n`);
  const pools = roles.map((role) => `${role.pools.length} ${role.role}`).join(", ");
  const warned = lines.filter(({ severity }) => severity === "warning").length;
  const verdict = warned === 0 ? "ok" : "found";
  return `${rows.join("")}${verdict}  config ${version}: pools ${pools}; ${warned} warnings\n`;
}

function jsonOf(
  { version, roles }: PoolConfig,
  findings: readonly LintLine[],
  traffic: ReadonlyMap<Role, GridTraffic>,
): object {
  const seen = roles.flatMap((pools) => {
    const sorted = traffic.get(pools.role);
    return sorted ? [trafficJson(pools, sorted)] : [];
  });
  return { config_version: version, findings, ...(seen.length > 0 && { traffic: seen }) };
}
