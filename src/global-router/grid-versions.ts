/**
 * The grids of a router: the one in force, the one on trial, and those it may go back to.
 *
 *   offer ──percent 0──▶ in force ◀── promote ── trial ◀──percent > 0── offer, canary
 *              │            ▲                      │
 *              ▼            │ rollback             ▼ rollback
 *           versions [ A | B | C ]  ◀──────────  ended
 *
 * - A request is on trial when the hash of its `rid` says so: the same request always, and every
 *   request that was at a smaller percentage.
 * - A request keeps the `ActiveConfig` it started with; nothing here knows of requests.
 * - At most `versionsMax` versions; the oldest that gets no requests makes room.
 */
import { TiergridError } from "../base/errors.ts";
import type { PoolConfig } from "../config/pool-config.ts";
import { CellBook } from "./cell-latency.ts";
import type { ActiveConfig } from "./pool-health.ts";

export const versionsMax = 32;
export const gridEventsMax = 128;

/** Who asked for a change: the process's start, the watched file, a signal, an operator. */
export type ChangedBy = "start" | "file" | "signal" | "http" | "bus";

export interface VersionTally {
  requests: number;
  readonly ended: { ok: number; error: number; cancelled: number; lost: number };
  readonly ttft: { met: number; missed: number };
  readonly itl: { met: number; missed: number };
}

export interface GridVersion {
  readonly version: string;
  readonly config: PoolConfig;
  readonly warnings: number;
  readonly loadedWallMs: number;
  readonly by: ChangedBy;
  readonly tally: VersionTally;
}

/** A version that gets requests. */
export interface LiveVersion {
  readonly kept: GridVersion;
  readonly active: ActiveConfig;
  readonly cells: CellBook;
  readonly sinceWallMs: number;
}

export interface Trial extends LiveVersion {
  /** Share of requests, 0 to 100. */
  percent: number;
}

export interface GridEvent {
  readonly at: string;
  readonly action: "applied" | "canary" | "promoted" | "rolled_back" | "canary_ended" | "rejected";
  readonly version: string | null;
  readonly by: ChangedBy;
  readonly percent?: number;
}

/** What the versions need of the router. */
export interface GridHost {
  wallMs(): number;
  /** Makes the pools of a config live; those of `beside` stay so. */
  activate(config: PoolConfig, beside?: ActiveConfig): ActiveConfig;
  /** Lets go of every pool that this config does not have. */
  keepOnly(active: ActiveConfig): void;
}

export interface OfferedGrid {
  readonly config: PoolConfig;
  readonly warnings: number;
  readonly by: ChangedBy;
  /** Share of requests that gets it first; 0 puts it in force at once. */
  readonly percent: number;
}

export class GridVersions {
  readonly #host: GridHost;
  readonly #versions = new Map<string, GridVersion>();
  readonly #events: GridEvent[] = [];
  /** Versions that were in force, the present one last. */
  #past: string[] = [];
  #inForce: LiveVersion;
  #trial: Trial | undefined;
  /** What the file said last, whatever is in force since. */
  #offered: string;

  constructor(host: GridHost, first: Omit<OfferedGrid, "percent">) {
    this.#host = host;
    const kept = this.#keep(first);
    this.#inForce = this.#live(kept);
    this.#past.push(kept.version);
    this.#offered = kept.version;
    this.#record("applied", kept.version, first.by);
  }

  get inForce(): LiveVersion {
    return this.#inForce;
  }

  get trial(): Trial | undefined {
    return this.#trial;
  }

  /** Newest last. */
  get versions(): readonly GridVersion[] {
    return [...this.#versions.values()];
  }

  /** Newest last. */
  get events(): readonly GridEvent[] {
    return this.#events;
  }

  find(version: string): GridVersion | undefined {
    return this.#versions.get(version);
  }

  /** The live version of a config, if it is still one. */
  liveOf(active: ActiveConfig): LiveVersion | undefined {
    if (this.#inForce.active === active) return this.#inForce;
    return this.#trial?.active === active ? this.#trial : undefined;
  }

  /** The config that serves a request. */
  activeFor(rid: string): ActiveConfig {
    const trial = this.#trial;
    return trial && isOnTrial(rid, trial.percent) ? trial.active : this.#inForce.active;
  }

  /**
   * Takes a config. A file that says what it said before changes nothing, so that a rollback lasts
   * until the file changes; an operator who asks for a reload gets the file.
   */
  offer(offered: OfferedGrid): "applied" | "unchanged" {
    const { config, by, percent } = offered;
    const { version } = config;
    const repeated = by === "file" && version === this.#offered;
    this.#offered = version;
    if (repeated || this.#trial?.kept.version === version) return "unchanged";
    if (version === this.#inForce.kept.version) {
      if (!this.#trial) return "unchanged";
      this.#endTrial(by);
      return "applied";
    }
    const kept = this.#keep(offered);
    if (percent > 0) this.#try(kept, percent, by);
    else this.#apply(kept, "applied", by);
    return "applied";
  }

  /** Sets the share of the trial, or starts a trial of a kept version; throws `not_found`. */
  canary(percent: number, by: ChangedBy, version?: string): void {
    const trial = this.#trial;
    if (trial && (version === undefined || version === trial.kept.version)) {
      trial.percent = percent;
      this.#record("canary", trial.kept.version, by, percent);
      return;
    }
    if (version === undefined) throw new TiergridError("not_found", "no version is on trial");
    if (version === this.#inForce.kept.version) {
      throw new TiergridError("invalid_request", `version ${version} is in force`);
    }
    this.#try(this.#known(version), percent, by);
  }

  /** Puts the trial in force; throws `not_found` without one. */
  promote(by: ChangedBy): void {
    const trial = this.#trial;
    if (!trial) throw new TiergridError("not_found", "no version is on trial");
    this.#trial = undefined;
    const { kept, active, cells, sinceWallMs } = trial;
    this.#inForce = { kept, active, cells, sinceWallMs };
    this.#host.keepOnly(active);
    this.#push(kept.version);
    this.#record("promoted", kept.version, by);
  }

  /**
   * Without a version ends the trial, or else goes back to the version before; with one puts that
   * in force. Throws `not_found` when there is none.
   */
  rollback(by: ChangedBy, version?: string): void {
    const { version: present } = this.#inForce.kept;
    const back = version ?? (this.#trial ? present : this.#past.at(-2));
    if (back === undefined) throw new TiergridError("not_found", "no version before this one");
    if (back === present) {
      if (!this.#trial) throw new TiergridError("invalid_request", `version ${back} is in force`);
      this.#endTrial(by);
      return;
    }
    const kept = this.#known(back);
    if (version === undefined) this.#past.splice(-2);
    this.#apply(kept, "rolled_back", by);
  }

  /** Notes that a config was not taken; a file that stays bad is one event. */
  rejected(by: ChangedBy): void {
    const last = this.#events.at(-1);
    if (last?.action === "rejected" && last.by === by) return;
    this.#record("rejected", null, by);
  }

  #apply(kept: GridVersion, action: GridEvent["action"], by: ChangedBy): void {
    this.#dropTrial(by);
    this.#inForce = this.#live(kept);
    this.#push(kept.version);
    this.#record(action, kept.version, by);
  }

  #try(kept: GridVersion, percent: number, by: ChangedBy): void {
    this.#dropTrial(by);
    this.#trial = { ...this.#live(kept, this.#inForce.active), percent };
    this.#record("canary", kept.version, by, percent);
  }

  #endTrial(by: ChangedBy): void {
    this.#dropTrial(by);
    this.#host.keepOnly(this.#inForce.active);
  }

  /** Its pools stay live for what comes next. */
  #dropTrial(by: ChangedBy): void {
    if (!this.#trial) return;
    this.#record("canary_ended", this.#trial.kept.version, by);
    this.#trial = undefined;
  }

  #live(kept: GridVersion, beside?: ActiveConfig): LiveVersion {
    const active = this.#host.activate(kept.config, beside);
    const sinceWallMs = this.#host.wallMs();
    return { kept, active, cells: new CellBook(sinceWallMs), sinceWallMs };
  }

  #known(version: string): GridVersion {
    const kept = this.#versions.get(version);
    if (kept) return kept;
    throw new TiergridError("not_found", `version ${version.slice(0, 64)} is not kept`);
  }

  #keep({ config, warnings, by }: Omit<OfferedGrid, "percent">): GridVersion {
    const known = this.#versions.get(config.version);
    if (known) return known;
    const loadedWallMs = this.#host.wallMs();
    const { version } = config;
    const kept = { version, config, warnings, loadedWallMs, by, tally: emptyTally() };
    this.#versions.set(version, kept);
    for (const old of this.#versions.keys()) {
      if (this.#versions.size <= versionsMax) break;
      if (this.#isLive(old) || old === version) continue;
      this.#versions.delete(old);
      this.#past = this.#past
        .filter((past) => past !== old)
        .filter((past, at, rest) => past !== rest[at - 1]);
    }
    return kept;
  }

  #isLive(version: string): boolean {
    return [this.#inForce, this.#trial].some((live) => live?.kept.version === version);
  }

  #push(version: string): void {
    this.#past.push(version);
    if (this.#past.length > versionsMax) this.#past.shift();
  }

  #record(
    action: GridEvent["action"],
    version: string | null,
    by: ChangedBy,
    percent?: number,
  ): void {
    const at = new Date(this.#host.wallMs()).toISOString();
    this.#events.push({ at, action, version, by, ...(percent !== undefined && { percent }) });
    if (this.#events.length > gridEventsMax) this.#events.shift();
  }
}

/** True for the share `percent` (0 to 100) of all `rid`s: FNV-1a, then the finaliser of Murmur3. */
export function isOnTrial(rid: string, percent: number): boolean {
  let hash = 0x811c9dc5;
  for (let at = 0; at < rid.length; at++) hash = Math.imul(hash ^ rid.charCodeAt(at), 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return ((hash ^ (hash >>> 16)) >>> 0) * 100 < percent * 2 ** 32;
}

function emptyTally(): VersionTally {
  return {
    requests: 0,
    ended: { ok: 0, error: 0, cancelled: 0, lost: 0 },
    ttft: { met: 0, missed: 0 },
    itl: { met: 0, missed: 0 },
  };
}
