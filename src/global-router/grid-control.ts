/**
 * Changes of grid on a running router: what the versions do, with its metrics, its log and its
 * answers to operators.
 *
 *   {"action":"versions"}                       what is in force, on trial and kept, and the history
 *   {"action":"canary","percent":5,"version"?}  share of the trial, or a trial of a kept version
 *   {"action":"promote"}                        the trial is in force
 *   {"action":"rollback","version"?}            ends the trial; without one, the version before
 *
 * A config that cannot be put in force changes nothing but `lastReload`, which says all that is
 * wrong with it.
 */
import type { Clock } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import { type ConfigFault, describeValue } from "../config/config-fault.ts";
import type { PoolConfig } from "../config/pool-config.ts";
import type { Role } from "../core/sla-grid.ts";
import type { Log } from "../runtime/log.ts";
import { type CellBook, cellsOf, type RoleCells } from "./cell-latency.ts";
import { collectCells } from "./drift.ts";
import {
  type ChangedBy,
  type GridEvent,
  GridVersions,
  type LiveVersion,
  type VersionTally,
} from "./grid-versions.ts";
import type { ActiveConfig, PoolHealth } from "./pool-health.ts";
import { cellLabelsMax, declarePools, type GlobalMetrics } from "./router-metrics.ts";

/** Faults of a rejected file that are shown; the log has all. */
export const shownFaultsMax = 100;

export interface LastReload {
  readonly result: "applied" | "unchanged" | "rejected";
  readonly at: string;
  readonly by: ChangedBy;
  /** What was wrong with a rejected file. */
  readonly faults?: readonly ConfigFault[];
}

export interface GridControlOptions {
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: GlobalMetrics;
  readonly model: string;
  readonly health: PoolHealth;
  readonly config: PoolConfig;
  readonly warnings: number;
  /** Share of requests, 0 to 100, that a new config gets before it is promoted; 0 swaps at once. */
  readonly canaryPercent: number;
}

export interface GridControl {
  readonly versions: GridVersions;
  readonly lastReload: LastReload | null;
  /** Takes a config; throws `config_invalid` for another mode, which needs a restart. */
  offer(config: PoolConfig, warnings: number, by: ChangedBy): "applied" | "unchanged";
  rejected(faults: readonly ConfigFault[], by: ChangedBy): void;
  /** Answers a question above; throws `invalid_request` and `not_found`. */
  answer(question: unknown, by: ChangedBy): GridAnswer;
  /** Measured latencies: `{"version"?, "reset"?}`, by default of the version in force. */
  cells(question: unknown): CellsAnswer;
}

export interface VersionJson {
  readonly version: string;
  readonly state: "in_force" | "canary" | "kept";
  readonly loaded_at: string;
  readonly by: ChangedBy;
  readonly warnings: number;
  readonly tally: VersionTally;
}

export interface GridAnswer {
  readonly in_force: string;
  readonly since: string;
  readonly canary: { readonly version: string; readonly percent: number } | null;
  readonly last_reload: LastReload | null;
  /** Newest last. */
  readonly versions: readonly VersionJson[];
  readonly history: readonly GridEvent[];
}

export interface CellsAnswer {
  readonly schema: "tiergrid.cells/1";
  readonly model: string;
  readonly config_version: string;
  readonly since: string;
  readonly at: string;
  /** Samples of cells beyond the bound on series. */
  readonly untracked: number;
  readonly roles: readonly RoleCells[];
}

interface Control extends GridControlOptions {
  readonly versions: GridVersions;
  lastReload: LastReload | null;
}

export function createGridControl(options: GridControlOptions): GridControl {
  const { clock, health, config, warnings, metrics } = options;
  const host = {
    wallMs: () => clock.wallMs(),
    activate: (next: PoolConfig, beside?: ActiveConfig) => health.activate(next, beside),
    keepOnly: (active: ActiveConfig) => health.keepOnly([active]),
  };
  const versions = new GridVersions(host, { config, warnings, by: "start" });
  const control: Control = { ...options, versions, lastReload: null };
  for (const result of ["applied", "rejected", "unchanged"]) {
    metrics.counter("tiergrid_config_reloads_total", { kind: "pool", result });
  }
  countConfig(control, []);
  collectGrids(control);
  return {
    versions,
    get lastReload() {
      return control.lastReload;
    },
    offer: (next, found, by) => offer(control, next, found, by),
    rejected: (faults, by) => rejected(control, faults, by),
    answer: (question, by) => answer(control, question, by),
    cells: (question) => cells(control, question),
  };
}

function offer(
  control: Control,
  config: PoolConfig,
  warnings: number,
  by: ChangedBy,
): "applied" | "unchanged" {
  const { versions, canaryPercent: percent } = control;
  const { mode } = versions.inForce.kept.config;
  if (config.mode !== mode) {
    const message = `mode ${mode} cannot become ${config.mode} without a restart`;
    rejected(control, [{ pointer: "/mode", reason: "needs-restart", message }], by);
    throw new TiergridError("config_invalid", message);
  }
  const result = change(control, by, () => versions.offer({ config, warnings, by, percent }));
  countReload(control, { result, by });
  return result;
}

function rejected(control: Control, faults: readonly ConfigFault[], by: ChangedBy): void {
  control.versions.rejected(by);
  countReload(control, { result: "rejected", by, faults: faults.slice(0, shownFaultsMax) });
  control.metrics.gauge("tiergrid_config_errors", { kind: "pool" }).set(faults.length);
}

function answer(control: Control, question: unknown, by: ChangedBy): GridAnswer {
  const { versions } = control;
  const asked = fieldsOf(question);
  const version = textField(asked, "version");
  switch (asked["action"]) {
    case "versions":
      break;
    case "canary":
      change(control, by, () => versions.canary(percentField(asked), by, version));
      break;
    case "promote":
      change(control, by, () => versions.promote(by));
      break;
    case "rollback":
      change(control, by, () => versions.rollback(by, version));
      break;
    default: {
      const message = "action must be versions, canary, promote or rollback";
      throw new TiergridError("invalid_request", message, { field: "action" });
    }
  }
  return answerOf(control);
}

/** Makes a change; logs what it did, and has the metrics follow the configs that are live. */
function change<T>(control: Control, by: ChangedBy, make: () => T): T {
  const { versions, log } = control;
  const before = liveVersions(versions).map(({ active }) => active);
  const last = versions.events.at(-1);
  const result = make();
  const made = versions.events.slice(last ? versions.events.lastIndexOf(last) + 1 : 0);
  for (const { action, version, percent } of made) {
    const share = percent === undefined ? {} : { percent };
    log.info(`pool config ${action}`, { config_version: version ?? "", by, ...share });
    control.metrics.counter("tiergrid_grid_changes_total", { action }).add(1);
  }
  if (made.length > 0) countConfig(control, before);
  return result;
}

function liveVersions({ inForce, trial }: GridVersions): LiveVersion[] {
  return trial ? [inForce, trial] : [inForce];
}

function answerOf({ versions, lastReload }: Control): GridAnswer {
  const { inForce, trial } = versions;
  const stateOf = (version: string): VersionJson["state"] => {
    if (version === inForce.kept.version) return "in_force";
    return version === trial?.kept.version ? "canary" : "kept";
  };
  return {
    in_force: inForce.kept.version,
    since: new Date(inForce.sinceWallMs).toISOString(),
    canary: trial ? { version: trial.kept.version, percent: trial.percent } : null,
    last_reload: lastReload,
    versions: versions.versions.map(({ version, loadedWallMs, by, warnings, tally }) => ({
      version,
      state: stateOf(version),
      loaded_at: new Date(loadedWallMs).toISOString(),
      by,
      warnings,
      tally,
    })),
    history: versions.events,
  };
}

function cells({ versions, clock, model }: Control, question: unknown): CellsAnswer {
  const asked = fieldsOf(question);
  const version = textField(asked, "version") ?? versions.inForce.kept.version;
  const live = liveVersions(versions).find(({ kept }) => kept.version === version);
  if (!live) {
    throw new TiergridError("not_found", `version ${version.slice(0, 64)} gets no requests`);
  }
  const found: CellsAnswer = {
    schema: "tiergrid.cells/1",
    model,
    config_version: version,
    since: new Date(live.cells.sinceWallMs).toISOString(),
    at: new Date(clock.wallMs()).toISOString(),
    untracked: live.cells.untracked,
    roles: cellsOf(live.cells, clock.nowMs()),
  };
  if (asked["reset"] === true) live.cells.reset(clock.wallMs());
  return found;
}

function countReload(control: Control, reload: Omit<LastReload, "at">): void {
  const { metrics, clock } = control;
  const { result, by } = reload;
  metrics.counter("tiergrid_config_reloads_total", { kind: "pool", result }).add(1);
  // Whatever else changes in the file's folder must not hide what became of the file.
  const wasRejected = control.lastReload?.result === "rejected";
  if (by === "file" && result === "unchanged" && !wasRejected) return;
  control.lastReload = { ...reload, at: new Date(clock.wallMs()).toISOString() };
  metrics.gauge("tiergrid_config_errors", { kind: "pool" }).set(0);
}

function countConfig({ metrics, model, versions }: Control, before: readonly ActiveConfig[]) {
  const { kept, sinceWallMs } = versions.inForce;
  const kind = "pool";
  metrics.remove("tiergrid_config_info", { kind });
  metrics.gauge("tiergrid_config_info", { kind, version: kept.version }).set(1);
  const applied = metrics.gauge("tiergrid_config_last_applied_timestamp_seconds", { kind });
  applied.set(sinceWallMs / 1000);
  metrics.gauge("tiergrid_config_warnings", { kind }).set(kept.warnings);
  const live = liveVersions(versions).map(({ active }) => active);
  declarePools(metrics, model, live, before);
}

/** Copies what the versions and the cells count at each scrape. */
function collectGrids({ metrics, versions, clock }: Control): void {
  const percent = metrics.gauge("tiergrid_grid_canary_percent");
  let shown: readonly string[] = [];
  let book: CellBook | undefined;
  metrics.onScrape(() => {
    percent.set(versions.trial?.percent ?? 0);
    for (const version of shown) if (!versions.find(version)) removeVersion(metrics, version);
    shown = versions.versions.map(({ version }) => version);
    for (const { version, tally } of versions.versions) countTally(metrics, version, tally);
    const { cells: present, active } = versions.inForce;
    const isLabelled = (role: Role): boolean =>
      (active.roles.get(role)?.grid.poolOfCell.length ?? 0) <= cellLabelsMax;
    collectCells(metrics, present, { nowMs: clock.nowMs(), isNew: present !== book, isLabelled });
    book = present;
  });
}

function countTally(metrics: GlobalMetrics, version: string, tally: VersionTally): void {
  for (const [outcome, count] of Object.entries(tally.ended)) {
    metrics.counter("tiergrid_grid_version_ended_total", { version, outcome }).follow(count);
  }
  for (const target of ["ttft", "itl"] as const) {
    for (const [result, count] of Object.entries(tally[target])) {
      const labels = { version, target, result };
      metrics.counter("tiergrid_grid_version_sla_total", labels).follow(count);
    }
  }
}

function removeVersion(metrics: GlobalMetrics, version: string): void {
  metrics.remove("tiergrid_grid_version_ended_total", { version });
  metrics.remove("tiergrid_grid_version_sla_total", { version });
}

type Fields = Readonly<Record<string, unknown>>;

function fieldsOf(question: unknown): Fields {
  if (typeof question === "object" && question !== null && !Array.isArray(question)) {
    return question as Fields;
  }
  throw new TiergridError("invalid_request", "expected a JSON object");
}

function textField(asked: Fields, field: string): string | undefined {
  const value = asked[field];
  if (value === undefined || value === null) return undefined;
  if (typeof value === "string") return value;
  throw new TiergridError("invalid_request", `${field} must be a string`, { field });
}

function percentField(asked: Fields): number {
  const percent = asked["percent"];
  if (typeof percent === "number" && percent >= 0 && percent <= 100) return percent;
  const message = `percent must be a number from 0 to 100, got ${describeValue(percent)}`;
  throw new TiergridError("invalid_request", message, { field: "percent" });
}
